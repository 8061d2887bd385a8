"""What followed the last item most often.

I item-table rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.events import histories, training_events

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


class MarkovChain(Baseline):
    """First-order chain: score an item by how often it directly followed the user's latest item.

    Args:
        views: Views whose events form one sequence in time order; None for all.
        name: How results call it.
    """

    def __init__(self, views: list[str] | None = None, name: str = "markov") -> None:
        super().__init__(name)
        self.views = views

    def fit(self, store: Store) -> MarkovChain:
        """Count the pairs of neighbouring events."""
        events = training_events(store, self.views)
        same = events.owner[1:] == events.owner[:-1]
        pair = (events.item[:-1][same], events.item[1:][same])
        size = store.schema.num_items
        self.followed = sparse.coo_array((np.ones(same.sum()), pair), shape=(size, size)).tocsr()
        return self

    def score(self, store: Store, targets: Targets, rows: np.ndarray) -> sparse.csr_array:
        """Return the counts after each target's latest item; 0 without a history."""
        events = histories(store, targets, rows, self.views)
        last = np.zeros(len(rows), dtype=np.int64)  # row 0 was never followed by anything
        last[events.owner] = events.item  # in time order: the latest stays
        return self.followed[last]
