"""Items touched by one user within minutes.

I item-table rows, N events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lightning_mvrec.data.covisits import near_pairs
from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.events import Events, histories, training_events

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


class CoVisitation(Baseline):
    """Score an item by how close in time users touched it and an item of the history.

    Two items that one user first met ``t`` seconds apart are linked by ``exp(-t / decay)``, summed over users; an
    item's score is the sum of its links to the events of the history: an item met in several views counts as often.

    Args:
        views: Views that are read, as one; None for all.
        decay: Seconds in which a link falls to ``1 / e``, above 0.
        window: Events further apart than this many decays are not linked, above 0.
        name: How results call it.

    Raises:
        ValueError: If ``decay`` or ``window`` is not above 0, or the data has no times.
    """

    def __init__(
        self,
        views: list[str] | None = None,
        decay: float = 180.0,
        window: float = 10.0,
        name: str = "co-visitation",
    ) -> None:
        super().__init__(name)
        if decay <= 0:
            raise ValueError(f"decay must be above 0 seconds, got {decay}")
        if window <= 0:
            raise ValueError(f"window must be above 0 decays, got {window}")
        self.views = views
        self.decay = decay
        self.window = window

    def fit(self, store: Store) -> CoVisitation:
        """Add up the links."""
        if not store.schema.has_times:
            raise ValueError(f"baseline {self.name!r} needs events with times, got data without")
        self.links = self._links(training_events(store, self.views).first_meetings(), store.schema.num_items)
        return self

    def score(self, store: Store, targets: Targets, rows: np.ndarray) -> sparse.csr_array:
        """Return the sums of the links to the events of each history."""
        met = histories(store, targets, rows, self.views).counts(len(rows), store.schema.num_items)
        return met @ self.links

    def _links(self, events: Events, num_items: int) -> sparse.csr_array:
        earlier, later = near_pairs(events.owner, events.time, self.window * self.decay)
        gap = events.time[later] - events.time[earlier]
        pair = (events.item[earlier], events.item[later])
        links = sparse.coo_array((np.exp(-gap / self.decay), pair), shape=(num_items, num_items)).tocsr()
        return links + links.T.tocsr()
