"""Which (histories, targets) make one example: a user and up to K consecutive targets.

n targets of a stage, X examples, V views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_mvrec.data.store import Store, Targets


@dataclass
class Examples:
    """Windows of consecutive targets of one user.

    Args:
        targets: The stage's targets.
        first: ``(X,)`` number of the first target of each window.
        count: ``(X,)`` targets in each window, above 0.
        length: ``(X,)`` events that are read, over all views: batches are bucketed by it.
        weight: ``(X,)`` sum of the window's target weights.
    """

    targets: Targets
    first: np.ndarray
    count: np.ndarray
    length: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


class Windows:
    """Cuts each user's targets into examples."""

    def cut(self, number: np.ndarray, max_targets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (user, first target within the user, targets) of every window.

        Args:
            number: Targets of each user.
            max_targets: Most targets of one window.
        """
        raise TypeError(f"{type(self).__name__} must define cut(number, max_targets)")


class LastWindow(Windows):
    """One example a user: the last ``max_targets`` targets. Earlier targets of long histories never train."""

    def cut(self, number: np.ndarray, max_targets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take the last targets of every user."""
        count = np.minimum(number, max_targets)
        return np.arange(len(number)), number - count, count


class CoveringWindows(Windows):
    """As many examples as it takes to cover every target exactly once; the last window of a user is full."""

    def cut(self, number: np.ndarray, max_targets: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut from the end of every user."""
        windows = -(-number // max_targets)
        user = np.repeat(np.arange(len(number)), windows)
        place = np.arange(len(user)) - np.repeat(np.cumsum(windows) - windows, windows)
        end = number[user] - (windows[user] - 1 - place) * max_targets
        first = np.maximum(end - max_targets, 0)
        return user, first, end - first


def build_examples(
    targets: Targets, windows: Windows, max_targets: int, max_len_V: np.ndarray, min_history: int = 0
) -> Examples:
    """Cut a stage's targets into examples.

    Args:
        targets: Sorted by user.
        windows: How.
        max_targets: Most targets of one example, above 0.
        max_len_V: ``(V,)`` most events that are read of each view.
        min_history: Targets with fewer earlier events, over all views, are left out.
    """
    if max_targets < 1:
        raise ValueError(f"max_targets must be above 0, got {max_targets}")
    if min_history > 0:
        keep = targets.asof.sum(1) >= min_history
        targets = Targets(**{name: value[keep] for name, value in vars(targets).items()})
    if not len(targets):
        none = np.empty(0, dtype=np.int64)
        return Examples(targets, none, none, none, np.empty(0, dtype=np.float64))
    _, start, number = np.unique(targets.user, return_index=True, return_counts=True)
    user, first, count = windows.cut(number, max_targets)
    first = start[user] + first
    # Windows may overlap nothing and leave gaps: reduceat needs both ends, and drops what lies between.
    ends = np.stack([first, first + count], 1).ravel()
    closed = ends[:-1] if ends[-1] == len(targets) else ends
    asof = np.maximum.reduceat(targets.asof, closed, axis=0)[::2]
    weight = np.add.reduceat(targets.weight.astype(np.float64), closed)[::2]
    return Examples(targets, first, count, np.minimum(asof, max_len_V).sum(1), weight)


def next_targets(store: Store) -> Targets:
    """Return one target a user for prediction: what comes after everything known, of weight 0."""
    counts_UV = np.stack([np.diff(store.view(name).offsets) for name in store.schema.view_names], 1)
    user = np.flatnonzero(counts_UV.sum(1) > 0)
    last_U = np.zeros(len(counts_UV), dtype=np.int64)
    for name in store.schema.view_names:
        view = store.view(name)
        have = np.flatnonzero(np.diff(view.offsets) > 0)
        last_U[have] = np.maximum(last_U[have], view.times[view.offsets[have + 1] - 1])
    zero = np.zeros(len(user), dtype=np.int64)
    flat = np.zeros(len(user), dtype=np.float32)
    main = store.schema.view_names.index(store.schema.targets[0])
    return Targets(user, zero, last_U[user] + 1, flat, flat, zero + main, counts_UV[user])
