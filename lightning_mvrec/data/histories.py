"""Events to per-view histories: sorted by (user, time, row), with offsets, and how many precede a target.

N events of one view, U users, n targets, V views.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class History:
    """All events of one view, by user, oldest first.

    Args:
        user: ``(N,)`` user numbers from 0, ascending.
        item: ``(N,)`` item numbers from 0.
        time: ``(N,)`` int64, ascending within a user.
        offsets: ``(U + 1,)``: user ``u`` owns ``offsets[u]:offsets[u + 1]``.
        fields: ``(N,)`` each.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    offsets: np.ndarray
    fields: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def index(self) -> np.ndarray:
        """``(N,)`` number of each event within its user's history."""
        return np.arange(len(self.user)) - self.offsets[self.user]


def build_history(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, fields: dict[str, np.ndarray], num_users: int
) -> History:
    """Sort events by (user, time, row) and count them per user.

    Example:
        >>> history = build_history(np.array([1, 0, 1]), np.array([5, 6, 7]), np.array([9, 1, 3]), {}, num_users=2)
        >>> history.item.tolist(), history.offsets.tolist()
        ([6, 7, 5], [0, 1, 3])
    """
    order = np.lexsort((time, user))  # stable: rows decide among equal times
    offsets = np.zeros(num_users + 1, dtype=np.int64)
    np.cumsum(np.bincount(user, minlength=num_users), out=offsets[1:])
    return History(
        user[order], item[order], time[order], offsets, {name: value[order] for name, value in fields.items()}
    )


def events_before(history: History, user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Return for each (user, time) how many of the user's events are strictly earlier.

    Shape:
        - user, time: ``(n,)``; output: ``(n,)`` int64.

    Example:
        >>> history = build_history(np.array([0, 0, 0]), np.array([1, 2, 3]), np.array([5, 5, 8]), {}, num_users=1)
        >>> events_before(history, np.array([0, 0]), np.array([5, 9])).tolist()
        [0, 3]
    """
    if not len(history.user) or not len(user):
        return np.zeros(len(user), dtype=np.int64)
    # One ascending key (user, time): times are replaced by their rank so that the product cannot overflow.
    moments = np.unique(history.time)
    span = len(moments) + 1
    key = history.user.astype(np.int64) * span + np.searchsorted(moments, history.time)
    wanted = user.astype(np.int64) * span + np.searchsorted(moments, time)
    return np.searchsorted(key, wanted) - history.offsets[user]


def count_asof(
    histories: list[History], user: np.ndarray, time: np.ndarray, view: np.ndarray, index: np.ndarray
) -> np.ndarray:
    """Count the events of each view that precede each target: ``(n, V)``.

    Args:
        histories: One per view.
        user: ``(n,)`` users of the targets.
        time: ``(n,)`` their times.
        view: ``(n,)`` the view each target is an event of; -1 for none.
        index: ``(n,)`` number of the target within its user's history of that view; not read where ``view`` is -1.
    """
    asof = np.empty((len(user), len(histories)), dtype=np.int64)
    for number, history in enumerate(histories):
        own = view == number
        if own.all():
            asof[:, number] = index
            continue
        asof[:, number] = events_before(history, user, time)
        asof[own, number] = index[own]
    return asof


def run_starts(ascending: np.ndarray) -> np.ndarray:
    """Return where each run of equal values begins.

    Example:
        >>> run_starts(np.array([4, 4, 7, 9, 9])).tolist()
        [0, 2, 3]
    """
    if not len(ascending):
        return np.zeros(0, dtype=np.int64)
    return np.concatenate([[0], np.flatnonzero(ascending[1:] != ascending[:-1]) + 1])


def ranges(first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Concatenate ``first[i] : first[i] + count[i]``.

    Example:
        >>> ranges(np.array([10, 3]), np.array([2, 3])).tolist()
        [10, 11, 3, 4, 5]
    """
    end = np.cumsum(count)
    total = int(end[-1]) if len(end) else 0
    return np.repeat(first - (end - count), count) + np.arange(total)
