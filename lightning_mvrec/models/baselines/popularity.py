"""The same list for everybody: what is met most often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.events import training_events

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


class Popularity(Baseline):
    """Score an item by its number of training events.

    Args:
        views: Views whose events count; None for all.
        name: How results call it.
    """

    def __init__(self, views: list[str] | None = None, name: str = "popularity") -> None:
        super().__init__(name)
        self.views = views

    def fit(self, store: Store) -> Popularity:
        """Count events."""
        events = training_events(store, self.views)
        self.count = np.bincount(events.item, minlength=store.schema.num_items).astype(np.float64)
        return self

    def score(self, store: Store, targets: Targets, rows: np.ndarray) -> np.ndarray:
        """Return the counts."""
        return self.count
