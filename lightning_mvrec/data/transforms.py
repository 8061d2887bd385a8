"""Normalisation of numeric event fields, from training events or from a user's earlier events only.

N events of one view, sorted by (user, time, row); U users.
"""

from __future__ import annotations

import numpy as np

from lightning_mvrec.data.moments import Moments


class Transform:
    """Maps a numeric event field to what a model reads. Missing values come as NaN and must leave as numbers.

    One that knows the training events by their :class:`~lightning_mvrec.data.moments.Moments` defines ``scale``; data
    larger than memory can only be scaled so. One that needs all of them at once defines ``apply``.
    """

    def scale(self, value_N: np.ndarray, offsets: np.ndarray, moments: Moments) -> np.ndarray:
        """Return ``(N,)`` finite floats.

        Args:
            value_N: Raw values of whole users, NaN where missing.
            offsets: ``(U + 1,)``: user ``u`` owns ``offsets[u]:offsets[u + 1]``, oldest first.
            moments: Of the values of all training events.
        """
        raise TypeError(f"{type(self).__name__} must define scale(value_N, offsets, moments) or apply")

    def apply(self, value_N: np.ndarray, offsets: np.ndarray, train_N: np.ndarray) -> np.ndarray:
        """Return ``(N,)`` finite floats.

        Args:
            value_N: Raw values, NaN where missing.
            offsets: ``(U + 1,)``: user ``u`` owns ``offsets[u]:offsets[u + 1]``, oldest first.
            train_N: Which events belong to training: statistics come from these.
        """
        return self.scale(value_N, offsets, Moments.of(value_N[train_N & ~np.isnan(value_N)]))


class Identity(Transform):
    """The raw value; a missing one becomes the mean of the training events."""

    def scale(self, value_N: np.ndarray, offsets: np.ndarray, moments: Moments) -> np.ndarray:
        """Fill what is missing."""
        return np.where(np.isnan(value_N), moments.mean, value_N)


class Standardise(Transform):
    """Mean 0 and standard deviation 1 over the training events; a missing value becomes 0.

    Example:
        >>> Standardise().apply(np.array([1.0, 3.0, np.nan]), np.array([0, 3]), np.ones(3, bool)).tolist()
        [-1.0, 1.0, 0.0]
    """

    def scale(self, value_N: np.ndarray, offsets: np.ndarray, moments: Moments) -> np.ndarray:
        """Shift and scale."""
        return np.where(np.isnan(value_N), 0.0, (value_N - moments.mean) / moments.deviation)


class MinMax(Transform):
    """0 at the smallest and 1 at the largest value of the training events; later events may lie outside."""

    def scale(self, value_N: np.ndarray, offsets: np.ndarray, moments: Moments) -> np.ndarray:
        """Shift and scale."""
        scaled = (value_N - moments.low) / ((moments.high - moments.low) or 1.0)
        return np.where(np.isnan(value_N), 0.5, scaled)


class UserMean(Transform):
    """Distance from the mean of the SAME user's earlier events, in global standard deviations.

    The running mean starts at the global training mean, which counts as ``prior`` events: an event is measured only
    against what came before it, so nothing of a user's future enters.

    Args:
        prior: Weight of the global mean, in events, above 0.

    Raises:
        ValueError: If ``prior`` is not above 0.

    Example:
        >>> UserMean(prior=1.0).apply(np.array([2.0, 4.0]), np.array([0, 2]), np.ones(2, bool)).tolist()
        [-1.0, 1.5]
    """

    def __init__(self, prior: float = 5.0) -> None:
        if prior <= 0:
            raise ValueError(f"prior must be above 0 events, got {prior}")
        self.prior = prior

    def scale(self, value_N: np.ndarray, offsets: np.ndarray, moments: Moments) -> np.ndarray:
        """Subtract each user's running mean."""
        known = ~np.isnan(value_N)
        # Sums of centred values: a running sum over all users would otherwise lose digits.
        centred = np.where(known, value_N - moments.mean, 0.0)
        start_N = np.repeat(offsets[:-1], np.diff(offsets))
        total = np.concatenate([[0.0], np.cumsum(centred)])
        number = np.concatenate([[0], np.cumsum(known)])
        before = np.arange(len(value_N))
        running = (total[before] - total[start_N]) / (number[before] - number[start_N] + self.prior)
        return np.where(known, (centred - running) / moments.deviation, 0.0)
