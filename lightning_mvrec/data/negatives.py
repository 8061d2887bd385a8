"""Samplers of negatives, with the log-probability of each draw. Item row 0 ("unknown") is never drawn.

A draw may equal a target: it is not drawn again, because the loss masks it by item row. I item rows.
"""

from __future__ import annotations

import numpy as np


class Negatives:
    """What a target is compared with.

    Attributes:
        catalogue: Whether every batch carries the whole item table instead of draws (full softmax).
        num: Negatives drawn, for a batch or for each target.
        per_target: Whether each target has its own.
    """

    catalogue: bool = False
    num: int = 0
    per_target: bool = False

    def setup(self, popularity_I: np.ndarray) -> None:
        """Learn what is drawn from: training events of each item row."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return int64 item rows above 0."""
        raise TypeError(f"{type(self).__name__} must define draw(rng, shape)")

    def log_q(self, row: np.ndarray) -> np.ndarray:
        """Return float32 log-probabilities of drawing each row."""
        raise TypeError(f"{type(self).__name__} must define log_q(row)")


class FullCatalogue(Negatives):
    """Every item of the catalogue, for a full softmax: the batch's ``items`` are the whole table, in order.

    Args:
        max_items: Largest catalogue for which this is allowed.
    """

    catalogue = True

    def __init__(self, max_items: int = 100_000) -> None:
        self.max_items = max_items

    def setup(self, popularity_I: np.ndarray) -> None:
        """Check the size of the catalogue.

        Raises:
            ValueError: If it is larger than ``max_items``.
        """
        if len(popularity_I) - 1 > self.max_items:
            raise ValueError(
                f"FullCatalogue allows at most {self.max_items:,} items (max_items), the catalogue has "
                f"{len(popularity_I) - 1:,}: use UniformNegatives or PopularityNegatives with a sampled softmax"
            )


class UniformNegatives(Negatives):
    """Items drawn uniformly from the catalogue, with replacement.

    Args:
        num: How many, above 0.
        per_target: Draw them for each target instead of once for the batch.

    Raises:
        ValueError: If ``num`` is not above 0.
    """

    def __init__(self, num: int = 256, per_target: bool = False) -> None:
        _check(num)
        self.num = num
        self.per_target = per_target

    def setup(self, popularity_I: np.ndarray) -> None:
        """Remember the size of the catalogue."""
        self._rows = len(popularity_I)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draw rows."""
        return rng.integers(1, self._rows, shape)

    def log_q(self, row: np.ndarray) -> np.ndarray:
        """Return minus the log of the catalogue's size."""
        return np.full(row.shape, -np.log(self._rows - 1), dtype=np.float32)


class PopularityNegatives(Negatives):
    """Items drawn with probability proportional to ``max(training events, 1) ** alpha``, with replacement.

    Args:
        num: How many, above 0.
        alpha: 0 is uniform, 1 is by popularity.
        per_target: Draw them for each target instead of once for the batch.

    Raises:
        ValueError: If ``num`` is not above 0 or ``alpha`` is negative.
    """

    def __init__(self, num: int = 256, alpha: float = 0.75, per_target: bool = False) -> None:
        _check(num)
        if alpha < 0:
            raise ValueError(f"alpha must not be negative, got {alpha}")
        self.num = num
        self.alpha = alpha
        self.per_target = per_target

    def setup(self, popularity_I: np.ndarray) -> None:
        """Compute the distribution."""
        chance = np.maximum(popularity_I[1:], 1).astype(np.float64) ** self.alpha
        chance /= chance.sum()
        self._until = np.cumsum(chance)
        self._until[-1] = 1.0
        self._log_q = np.concatenate([[-np.inf], np.log(chance)]).astype(np.float32)

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Draw rows by inverting the cumulative distribution."""
        return np.searchsorted(self._until, rng.random(shape), side="right").astype(np.int64) + 1

    def log_q(self, row: np.ndarray) -> np.ndarray:
        """Look the log-probability up; minus infinity for row 0."""
        return self._log_q[row]


def _check(num: int) -> None:
    if num < 1:
        raise ValueError(f"num must be above 0 negatives, got {num}")
