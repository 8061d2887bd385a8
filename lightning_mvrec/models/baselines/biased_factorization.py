"""Factors of users and items from labels, on top of their biases.

n targets, F factors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.biases import UserItemBias
from lightning_mvrec.models.baselines.least_squares import solve_rows

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


class BiasedFactorization(Baseline):
    """Matrix factorisation of ratings: item bias, user bias and a product of vectors, fitted to the training targets.

    A user without training targets gets the item's bias alone.

    Args:
        factors: Width of the vectors, above 0.
        iterations: Passes of alternating least squares, above 0.
        ridge: Regularisation of each vector for each of its observations, above 0.
        seed: Seed of the first item vectors.
        name: How results call it.

    Raises:
        ValueError: If a number is out of its range.
    """

    rates = True

    def __init__(
        self,
        factors: int = 16,
        iterations: int = 10,
        ridge: float = 0.1,
        seed: int = 0,
        name: str = "matrix factorisation",
    ) -> None:
        super().__init__(name)
        for argument, value in (("factors", factors), ("iterations", iterations), ("ridge", ridge)):
            if value <= 0:
                raise ValueError(f"{argument} must be above 0, got {value}")
        self.biases = UserItemBias(running=False)
        self.factors = factors
        self.iterations = iterations
        self.ridge = ridge
        self.seed = seed

    def fit(self, store: Store) -> BiasedFactorization:
        """Fit the biases, then vectors to what they leave."""
        train = store.targets("train")
        residual = train.label - self.biases.fit(store).predict(store, train)
        shape = (store.schema.num_users, store.schema.num_items)
        pair, inverse = np.unique(train.user.astype(np.int64) * shape[1] + train.item, return_inverse=True)
        mean = np.bincount(inverse, residual) / np.bincount(inverse)  # of labels given to a pair more than once
        left = sparse.csr_array((mean, (pair // shape[1], pair % shape[1])), shape=shape)
        left_by = left.T.tocsr()
        rng = np.random.default_rng(self.seed)
        self.item_factors = rng.normal(0, 0.1, (shape[1], self.factors))
        for _ in range(self.iterations):
            self.user_factors = solve_rows(left, self.item_factors, self.ridge * np.diff(left.indptr))
            self.item_factors = solve_rows(left_by, self.user_factors, self.ridge * np.diff(left_by.indptr))
        self.item_factors[0] = 0
        return self

    def predict(self, store: Store, targets: Targets) -> np.ndarray:
        """Return biases plus product."""
        product = (self.user_factors[targets.user] * self.item_factors[targets.item]).sum(1)
        return self.biases.predict(store, targets) + product
