"""Which (histories, targets) make one example: a user and up to K consecutive targets.

n targets of a stage, X examples, V views.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_mvrec.data.histories import ranges
from lightning_mvrec.data.store import Store, Targets

# Targets that are cut into examples at a time.
BLOCK = 2**16
# Most targets that are held in memory alone where windows leave out more than they use: about 50 MB of one view's. Of a
# mapped stage training soon has every page in memory, since those in use lie in between the others.
HELD = 2**20


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
    """Cuts each user's targets into examples of consecutive targets.

    An example reads the most recent ``max_len`` events before its LAST target, so its earlier targets see less of them.
    A target joins an example only while the window keeps ``context`` of ``max_len`` events before it in every view:
    otherwise a view with many events would look empty to all but the last targets.

    Args:
        context: Share of ``max_len`` that a target sees at least, in [0, 1], where it has so many; never below 1 event.

    Attributes:
        cover: Whether the targets left over form further examples.

    Raises:
        ValueError: If ``context`` is outside [0, 1].
    """

    cover: bool = True

    def __init__(self, context: float = 0.25) -> None:
        if not 0 <= context <= 1:
            raise ValueError(f"context must be a share in [0, 1], got {context}")
        self.context = context

    def cut(self, targets: Targets, max_targets: int, max_len_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (first target, number of targets) of every window, by user and time.

        Args:
            targets: Sorted by user and time, at least one.
            max_targets: Most targets of one window.
            max_len_V: ``(V,)`` most events that are read of each view.
        """
        _, start, number = np.unique(targets.user, return_index=True, return_counts=True)
        earliest = self._earliest(targets, np.repeat(start, number), max_targets, max_len_V)
        first, count = [], []
        end = start + number
        # One round a window: all users at a time, each from its last target backwards.
        while len(end):
            begin = earliest[end - 1]
            first.append(begin)
            count.append(end - begin)
            more = begin > start
            start, end = start[more], begin[more]
            if not self.cover:
                break
        order = np.argsort(np.concatenate(first), kind="stable")
        return np.concatenate(first)[order], np.concatenate(count)[order]

    def _earliest(self, targets: Targets, start: np.ndarray, max_targets: int, max_len_V: np.ndarray) -> np.ndarray:
        """Return for each target, as the last of a window, the first target that the window can hold."""
        earliest = np.maximum(start, np.arange(len(targets)) - max_targets + 1)
        kept_V = np.maximum(np.ceil(self.context * max_len_V), 1).astype(np.int64)
        span = int(targets.asof.max()) + 1
        for view, (max_len, kept) in enumerate(zip(max_len_V, kept_V, strict=True)):
            asof = targets.asof[:, view]
            # Ascending: asof falls only between targets of one moment in different views.
            key = np.maximum.accumulate(targets.user * span + asof)
            needed = np.where(asof > max_len, asof - max_len + kept, 0)
            earliest = np.maximum(earliest, np.searchsorted(key, targets.user * span + needed))
        return np.minimum(earliest, np.arange(len(targets)))


class LastWindow(Windows):
    """One example a user, ending at the last target. The earlier targets of long histories never train."""

    cover = False


class CoveringWindows(Windows):
    """As many examples as it takes to cover every target exactly once; cut from the last target backwards."""

    cover = True


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
    none = np.empty(0, dtype=np.int64)
    kept, first, count, length, weight = [none], [none], [none], [none], [np.empty(0, dtype=np.float64)]
    passed = 0
    # Some users at a time: what cutting needs beside its result takes several times the memory of the targets.
    for block in _blocks_of_users(targets.user):
        part = Targets(**{name: value[block] for name, value in vars(targets).items()})
        keep = np.flatnonzero(part.asof.sum(1) >= min_history)
        if len(keep) < len(part):
            part = part.take(keep)
        kept.append(block.start + keep)
        if not len(part):
            continue
        begin, number = windows.cut(part, max_targets, max_len_V)
        # Windows are disjoint but may leave gaps: reduceat gets both ends of each, and every second sum is dropped.
        ends = np.stack([begin, begin + number], 1).ravel()
        closed = ends[:-1] if ends[-1] == len(part) else ends
        asof = np.maximum.reduceat(part.asof, closed, axis=0)[::2]
        first.append(passed + begin)
        count.append(number)
        length.append(np.minimum(asof, max_len_V).sum(1))
        weight.append(np.add.reduceat(part.weight.astype(np.float64), closed)[::2])
        passed += len(part)
    first_X, count_X = np.concatenate(first), np.concatenate(count)
    if passed < len(targets):
        kept_N = np.concatenate(kept)
        start_X = kept_N[first_X]
        if (kept_N[first_X + count_X - 1] - start_X == count_X - 1).all():
            first_X = start_X  # windows hold what lies side by side: the mapped targets serve as they are
        else:
            targets = targets.take(kept_N)
    used = int(count_X.sum())
    if used <= HELD and used < len(targets) // 2:
        targets = targets.take(ranges(first_X, count_X))
        first_X = np.cumsum(count_X) - count_X
    return Examples(targets, first_X, count_X, np.concatenate(length), np.concatenate(weight))


def _blocks_of_users(user: np.ndarray) -> Iterator[slice]:
    """Cut sorted targets into blocks of whole users, of about ``BLOCK`` targets each."""
    start = 0
    while start < len(user):
        last = user[min(start + BLOCK, len(user)) - 1]
        stop = int(np.searchsorted(user, last, side="right"))
        yield slice(start, stop)
        start = stop


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
