"""Items met by the same users.

I item-table rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.events import histories, training_events

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


class ItemKNN(Baseline):
    """Score an item by its cosine similarities to the items of the history, one term an event.

    The similarity of two items is ``common / (sqrt(users_a * users_b) + shrink)``.

    Args:
        views: Views that are read, as one; None for all.
        shrink: Damps similarities that rest on few users, at least 0.
        neighbours: Most similar items kept for each item, above 0; None keeps all: up to ``I * I`` numbers.
        name: How results call it.

    Raises:
        ValueError: If ``shrink`` is negative or ``neighbours`` below 1.
    """

    def __init__(
        self,
        views: list[str] | None = None,
        shrink: float = 10.0,
        neighbours: int | None = 200,
        name: str = "item-knn",
    ) -> None:
        super().__init__(name)
        if shrink < 0:
            raise ValueError(f"shrink must be at least 0 users, got {shrink}")
        if neighbours is not None and neighbours < 1:
            raise ValueError(f"neighbours must be above 0 items, got {neighbours}")
        self.views = views
        self.shrink = shrink
        self.neighbours = neighbours

    def fit(self, store: Store) -> ItemKNN:
        """Compute the similarities."""
        events = training_events(store, self.views)
        met = events.counts(store.schema.num_users, store.schema.num_items)
        met.data[:] = 1
        users = np.asarray(met.sum(axis=0)).ravel()
        self.similar = _similarities(met, users, self.shrink, self.neighbours)
        return self

    def score(self, store: Store, targets: Targets, rows: np.ndarray) -> sparse.csr_array:
        """Return the sums of the similarities to the events of each history."""
        met = histories(store, targets, rows, self.views).counts(len(rows), store.schema.num_items)
        return met @ self.similar


def _similarities(
    met: sparse.csr_array, users: np.ndarray, shrink: float, neighbours: int | None, max_elements: int = 2**23
) -> sparse.csr_array:
    """Compute ``(I, I)`` similarities, some rows at a time: only what is kept of a chunk stays in memory."""
    columns, parts = met.tocsc(), []
    step = max(1, max_elements // met.shape[1])
    for start in range(0, met.shape[1], step):
        part = sparse.csr_array(columns[:, start : start + step].T @ met)
        row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr)) + start
        part.data /= np.sqrt(users[row] * users[part.indices]) + shrink
        part.data[row == part.indices] = 0
        if neighbours is not None:
            for first, last in zip(part.indptr[:-1], part.indptr[1:], strict=True):
                if last - first > neighbours:
                    value = part.data[first:last]
                    value[np.argpartition(value, -neighbours)[:-neighbours]] = 0
        part.eliminate_zeros()
        parts.append(part)
    return sparse.vstack(parts, format="csr")
