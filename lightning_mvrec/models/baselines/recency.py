"""What the user touched last comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.events import histories

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


class Recency(Baseline):
    """Rank the items of some views newest first, then everything else by popularity.

    Where people buy what they carted it is hard to beat. Items that the evaluation leaves out as seen are left out
    here too, so choose views whose items stay in.

    Args:
        views: Views whose items come first; None for all.
        name: How results call it.
    """

    def __init__(self, views: list[str] | None = None, name: str = "recency") -> None:
        super().__init__(name)
        self.views = views

    def score(self, store: Store, targets: Targets, rows: np.ndarray) -> sparse.csr_array:
        """Return a number that grows with the latest time an item of the history was met; 0 for all others."""
        events = histories(store, targets, rows, self.views)
        new = np.ones(len(events.owner), dtype=bool)
        new[1:] = (events.owner[1:] != events.owner[:-1]) | (events.time[1:] != events.time[:-1])
        moment = np.cumsum(new)  # grows over the whole chunk; only the order within an owner matters
        size = store.schema.num_items
        # The last occurrence of each item: the first one in reverse order.
        _, last = np.unique((events.owner * size + events.item)[::-1], return_index=True)
        last = len(moment) - 1 - last
        score = (moment[last].astype(np.float64), (events.owner[last], events.item[last]))
        return sparse.coo_array(score, shape=(len(rows), size)).tocsr()
