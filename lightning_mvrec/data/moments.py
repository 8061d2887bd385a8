"""Mean, deviation and range of values that arrive in pieces, the same however they are cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Sums are taken over blocks of this many values, counted from the first, and not over the pieces: rounding, and so the
# bytes of a store, does not depend on how much was in memory at a time.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Moments:
    """What normalisation needs to know of the training events.

    Args:
        mean: Their mean; 0 without any.
        deviation: Their standard deviation; 1 where it is 0 and without any.
        low: The smallest; 0 without any.
        high: The largest; 1 without any.
    """

    mean: float = 0.0
    deviation: float = 1.0
    low: float = 0.0
    high: float = 1.0

    @classmethod
    def of(cls, known: np.ndarray) -> Moments:
        """Return the moments of values that are all there.

        Example:
            >>> Moments.of(np.array([1.0, 3.0]))
            Moments(mean=2.0, deviation=1.0, low=1.0, high=3.0)
        """
        running = RunningMoments()
        running.add(known)
        return running.result()


class RunningMoments:
    """Adds values up.

    Example:
        >>> running = RunningMoments()
        >>> running.add(np.array([1.0]))
        >>> running.add(np.array([3.0]))
        >>> running.result().deviation
        1.0
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._rest: list[np.ndarray] = []
        self._waiting = 0
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._low, self._high = np.inf, -np.inf

    def add(self, known: np.ndarray) -> None:
        """Add values, none of them NaN."""
        if not len(known):
            return
        known = known.astype(np.float64)
        self._low, self._high = min(self._low, float(known.min())), max(self._high, float(known.max()))
        if self._first is None:
            self._first = float(known[0])
        self._rest.append(known)
        self._waiting += len(known)
        if self._waiting >= _BLOCK:
            waiting = np.concatenate(self._rest)
            whole = len(waiting) - len(waiting) % _BLOCK
            for at in range(0, whole, _BLOCK):
                self._merge(waiting[at : at + _BLOCK])
            self._rest, self._waiting = [waiting[whole:].copy()], len(waiting) - whole

    def result(self) -> Moments:
        """Return the moments of all values so far; ends the adding."""
        if self._first is None:
            return Moments()
        if self._waiting:
            self._merge(np.concatenate(self._rest))
            self._rest, self._waiting = [], 0
        deviation = float(np.sqrt(self._squares / self._count))
        return Moments(self._first + self._mean, deviation or 1.0, self._low, self._high)

    def _merge(self, block: np.ndarray) -> None:
        assert self._first is not None
        # Distances from the first value: equal values have a deviation of exactly 0, and times keep their digits.
        block = block - self._first
        mean = float(block.mean())
        squares = float(((block - mean) ** 2).sum())
        count = self._count + len(block)
        apart = mean - self._mean
        # Chan, Golub and LeVeque (1979): the squares of a union from those of its parts.
        self._squares += squares + apart * apart * self._count * len(block) / count
        self._mean += apart * len(block) / count
        self._count = count
