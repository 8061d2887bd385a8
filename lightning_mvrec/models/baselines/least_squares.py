"""The step that both matrix factorisations repeat: ridge regressions on fixed factors, one a row.

n rows, m columns, F factors.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


def solve_rows(
    values: sparse.csr_array, factors: np.ndarray, ridge: np.ndarray, shared: np.ndarray | None = None
) -> np.ndarray:
    """Return for each row the ``x`` that minimises ``sum_j (value_j - x . factor_j)**2 + x (shared + ridge I) x``.

    The sum runs over the stored entries of the row.

    Args:
        values: ``(n, m)``; stored entries are observations, zeros among them too.
        factors: ``(m, F)`` of the columns.
        ridge: ``(n,)`` above 0.
        shared: ``(F, F)`` added for every row, or None.

    Returns:
        ``(n, F)``; 0 for a row without an entry.
    """
    count, width = values.shape[0], factors.shape[1]
    result = np.zeros((count, width))
    base = np.zeros((width, width)) if shared is None else shared
    identity = np.eye(width)
    filled = np.flatnonzero(np.diff(values.indptr))
    for chunk in np.split(filled, range(256, len(filled), 256)):
        matrix = np.empty((len(chunk), width, width))
        right = np.empty((len(chunk), width, 1))
        for place, row in enumerate(chunk):
            entries = slice(values.indptr[row], values.indptr[row + 1])
            own = factors[values.indices[entries]]
            matrix[place] = own.T @ own + base + ridge[row] * identity
            right[place, :, 0] = own.T @ values.data[entries]
        result[chunk] = np.linalg.solve(matrix, right)[..., 0]
    return result
