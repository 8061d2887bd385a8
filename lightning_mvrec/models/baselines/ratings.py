"""Labels of events: which are known, and what the user's earlier ones were like as of a target.

n targets, N events of one view, V views.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


def event_labels(store: Store) -> list[np.ndarray]:
    """Return for each view ``(N,)`` labels of its events, NaN for those that are no target of any stage.

    A target of view ``v`` is event number ``asof[v]`` of its user's history of that view. Labels of evaluation events
    are known once they have happened: read only those before a target.
    """
    views = [store.view(name) for name in store.schema.view_names]
    labels = [np.full(len(view.items), np.nan) for view in views]
    for stage in ("train", "val", "test"):
        targets = store.targets(stage)
        for number, view in enumerate(views):
            own = np.flatnonzero(targets.view == number)
            user = targets.user[own]
            index = view.offsets[user] + targets.asof[own, number]
            there = index < view.offsets[user + 1]  # a held-out pair is no event
            labels[number][index[there]] = targets.label[own][there]
    return labels


def sums_before(store: Store, targets: Targets, values: list[np.ndarray]) -> np.ndarray:
    """Return ``(n,)`` sums of event values (one array a view, NaN counting 0) over what precedes each target."""
    result = np.zeros(len(targets.user))
    for number, name in enumerate(store.schema.view_names):
        offsets = store.view(name).offsets
        total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values[number]))])
        first = offsets[targets.user]
        result += total[first + targets.asof[:, number]] - total[first]
    return result


def shrunk_means(group: np.ndarray, value: np.ndarray, size: int, shrink: float) -> np.ndarray:
    """Return ``(size,)`` means of the values of each group, with ``shrink`` more values of 0.

    Example:
        >>> shrunk_means(np.array([1, 1, 2]), np.array([3.0, 3.0, 3.0]), size=4, shrink=1.0).tolist()
        [0.0, 2.0, 1.5, 0.0]
    """
    count = np.bincount(group, minlength=size)
    return np.bincount(group, value, minlength=size) / np.maximum(count + shrink, 1e-12)
