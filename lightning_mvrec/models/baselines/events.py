"""Events as flat columns: those that may be learned from, and those that precede a target.

N events, n targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lightning_mvrec.models.baselines.base import chosen_views

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


@dataclass
class Events:
    """Events of several views, sorted by (owner, time, view, place in the view); never of item row 0.

    Args:
        owner: ``(N,)`` int64: a user row, or the place of a target whose history this is.
        item: ``(N,)`` int64 item-table rows.
        time: ``(N,)`` int64.
    """

    owner: np.ndarray
    item: np.ndarray
    time: np.ndarray

    def counts(self, num_owners: int, num_items: int) -> sparse.csr_array:
        """Return how often each owner met each item: ``(num_owners, num_items)``."""
        pairs = (np.ones(len(self.item)), (self.owner, self.item))
        return sparse.coo_array(pairs, shape=(num_owners, num_items)).tocsr()

    def first_meetings(self) -> Events:
        """Keep the first event of each owner and item."""
        size = int(self.item.max(initial=0)) + 1
        _, first = np.unique(self.owner * size + self.item, return_index=True)
        first.sort()
        return Events(self.owner[first], self.item[first], self.time[first])


def training_events(store: Store, views: list[str] | None = None) -> Events:
    """Return the events that training may learn from, by user.

    Args:
        store: The prepared data.
        views: Names of the views; None for all.
    """
    parts = []
    for number in chosen_views(store.schema, views):
        view = store.view(store.schema.view_names[number])
        user = np.repeat(np.arange(len(view.offsets) - 1), np.diff(view.offsets))
        parts.append((user, view.items, view.times, np.flatnonzero(view.stage == 0)))
    return _joined([(owner[index], item[index], time[index]) for owner, item, time, index in parts])


def histories(store: Store, targets: Targets, rows: np.ndarray, views: list[str] | None = None) -> Events:
    """Return the events that precede each of some targets, oldest first; the owner is the place in ``rows``.

    Args:
        store: The prepared data.
        targets: All targets of a stage.
        rows: ``(n,)`` which of them.
        views: Names of the views; None for all.
    """
    user, asof = targets.user[rows], targets.asof[rows]
    parts = []
    for number in chosen_views(store.schema, views):
        view = store.view(store.schema.view_names[number])
        count = asof[:, number].astype(np.int64)
        owner = np.repeat(np.arange(len(rows)), count)
        index = np.repeat(view.offsets[user] - (np.cumsum(count) - count), count) + np.arange(count.sum())
        parts.append((owner, view.items[index], view.times[index]))
    return _joined(parts)


def _joined(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Events:
    owner, item, time = (np.concatenate(column).astype(np.int64) for column in zip(*parts, strict=True))
    if len(parts) > 1:  # one view alone is in order already
        # Stable: among equal times the order of the views decides, then that within the view.
        order = np.lexsort((time, owner))
        owner, item, time = owner[order], item[order], time[order]
    known = item > 0
    return Events(owner[known], item[known], time[known])
