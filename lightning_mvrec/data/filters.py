"""Which events of the target views may be targets at all. N events of one view."""

from __future__ import annotations

import numpy as np

from lightning_mvrec.data.histories import History


class TargetFilter:
    """Chooses among the events of the target views.

    Attributes:
        by_user: Whether ``eligible`` decides about a user by that user's events alone, so that it may be given some
            whole users at a time, as for data larger than memory.
    """

    by_user: bool = False

    def eligible(self, histories: list[History], views: list[int]) -> dict[int, np.ndarray]:
        """Return ``(N,)`` bool for each target view (by index)."""
        raise TypeError(f"{type(self).__name__} must define eligible(histories, views)")


class AllTargets(TargetFilter):
    """Every event of a target view."""

    by_user = True

    def eligible(self, histories: list[History], views: list[int]) -> dict[int, np.ndarray]:
        """Keep all."""
        return {view: np.ones(len(histories[view].user), dtype=bool) for view in views}


class NovelTargets(TargetFilter):
    """Only items new to the user: no earlier event of the pair in ANY view, target view or not.

    Earlier means earlier in (time, row) order within one view and strictly earlier between views, as in histories.
    """

    by_user = True

    def eligible(self, histories: list[History], views: list[int]) -> dict[int, np.ndarray]:
        """Keep the first event of each (user, item) pair."""
        num_items = 1 + max((int(history.item.max()) for history in histories if len(history.item)), default=0)
        pairs = [history.user.astype(np.int64) * num_items + history.item for history in histories]
        known, inverse = np.unique(np.concatenate(pairs), return_inverse=True)
        earliest = np.full(len(known), np.iinfo(np.int64).max)
        np.minimum.at(earliest, inverse, np.concatenate([history.time for history in histories]))
        result = {}
        for view in views:
            _, first = np.unique(pairs[view], return_index=True)  # the first occurrence: rows are in (time, row) order
            mask = np.zeros(len(pairs[view]), dtype=bool)
            mask[first] = True
            result[view] = mask & (histories[view].time == earliest[np.searchsorted(known, pairs[view])])
        return result
