"""Factors of users and items from implicit feedback, by alternating least squares.

n targets, U users, I item-table rows, F factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.events import histories, training_events
from lightning_mvrec.models.baselines.least_squares import solve_rows

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


class MatrixFactorization(Baseline):
    """Implicit alternating least squares: met items should score 1, all others, with a small weight, 0.

    A target's user vector is solved from the history as of the target, so that later and new users have one too. The
    ridge of a row grows with its number of observations, as in Rendle et al., "Revisiting the performance of iALS on
    item recommendation benchmarks" (RecSys 2022).

    Args:
        views: Views that are read, as one; None for all.
        factors: Width of the vectors, above 0.
        iterations: Passes over users and items, above 0.
        unobserved: Weight of all items together, as not met, relative to that of an average user's met ones, above 0.
            Taken relative, one number suits dense and sparse data.
        ridge: Regularisation, above 0.
        seed: Seed of the first item vectors.
        name: How results call it.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(
        self,
        views: list[str] | None = None,
        factors: int = 64,
        iterations: int = 8,
        unobserved: float = 2.0,
        ridge: float = 0.01,
        seed: int = 0,
        name: str = "matrix factorisation",
    ) -> None:
        super().__init__(name)
        for argument, value in (
            ("factors", factors),
            ("iterations", iterations),
            ("unobserved", unobserved),
            ("ridge", ridge),
        ):
            if value <= 0:
                raise ValueError(f"{argument} must be above 0, got {value}")
        self.views = views
        self.factors = factors
        self.iterations = iterations
        self.unobserved = unobserved
        self.ridge = ridge
        self.seed = seed

    def fit(self, store: Store) -> MatrixFactorization:
        """Alternate between users and items."""
        met = training_events(store, self.views).counts(store.schema.num_users, store.schema.num_items)
        met.data[:] = 1
        met_by = met.T.tocsr()
        rng = np.random.default_rng(self.seed)
        self.item_factors = rng.normal(0, 0.1 / np.sqrt(self.factors), (met.shape[1], self.factors))
        num_users = int((np.diff(met.indptr) > 0).sum())
        self.weight = self.unobserved * met.nnz / max(1, num_users * met.shape[1])
        for _ in range(self.iterations):
            users = self._solve(met, self.item_factors)
            self.item_factors = self._solve(met_by, users)
        return self

    def score(self, store: Store, targets: Targets, rows: np.ndarray) -> np.ndarray:
        """Return the products of each history's user vector with all item vectors."""
        met = histories(store, targets, rows, self.views).counts(len(rows), store.schema.num_items)
        met.data[:] = 1
        return self._solve(met, self.item_factors) @ self.item_factors.T

    def _solve(self, met: sparse.csr_array, factors: np.ndarray) -> np.ndarray:
        others = int(factors.any(axis=1).sum())  # users without an event have no factors
        ridge = self.ridge * (np.diff(met.indptr) + self.weight * others)
        return solve_rows(met, factors, ridge, self.weight * factors.T @ factors)
