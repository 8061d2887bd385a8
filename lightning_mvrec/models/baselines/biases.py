"""Labels predicted by means: of everything, of the item, of the user so far.

n targets, I item-table rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.ratings import event_labels, shrunk_means, sums_before

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


class GlobalMean(Baseline):
    """Predict the mean label of the training targets.

    Args:
        name: How results call it.
    """

    rates = True

    def __init__(self, name: str = "global mean") -> None:
        super().__init__(name)

    def fit(self, store: Store) -> GlobalMean:
        """Average the labels."""
        self.mean = float(np.mean(store.targets("train").label, dtype=np.float64))
        return self

    def predict(self, store: Store, targets: Targets) -> np.ndarray:
        """Return the mean."""
        return np.full(len(targets.user), self.mean)


class ItemBias(Baseline):
    """Predict the mean label of the item, drawn towards that of all targets.

    Args:
        shrink: Targets of average label that are added to each item's own, at least 0.
        name: How results call it.

    Raises:
        ValueError: If ``shrink`` is negative.
    """

    rates = True

    def __init__(self, shrink: float = 5.0, name: str = "item bias") -> None:
        super().__init__(name)
        if shrink < 0:
            raise ValueError(f"shrink must be at least 0 targets, got {shrink}")
        self.shrink = shrink

    def fit(self, store: Store) -> ItemBias:
        """Average the labels of each item."""
        train = store.targets("train")
        label = train.label.astype(np.float64)
        self.mean = float(label.mean())
        self.bias = shrunk_means(train.item, label - self.mean, store.schema.num_items, self.shrink)
        self.bias[0] = 0  # "unknown" is no item
        return self

    def predict(self, store: Store, targets: Targets) -> np.ndarray:
        """Return mean plus bias."""
        return self.mean + self.bias[targets.item]


class UserItemBias(Baseline):
    """Add the user's own leaning to :class:`ItemBias`: the mean of label minus item mean over their EARLIER events.

    Args:
        item_shrink: As ``shrink`` of :class:`ItemBias`.
        user_shrink: Events of average leaning that are added to each user's own, at least 0.
        running: Whether the leaning is that of all events before the target, evaluation events among them: what is
            known when the target happens. If not, it is that of the user's training targets, wherever they lie in time.
        name: How results call it.

    Raises:
        ValueError: If a shrink is negative.
    """

    rates = True

    def __init__(
        self, item_shrink: float = 5.0, user_shrink: float = 5.0, running: bool = True, name: str = "user + item bias"
    ) -> None:
        super().__init__(name)
        if user_shrink < 0:
            raise ValueError(f"user_shrink must be at least 0 events, got {user_shrink}")
        self.items = ItemBias(item_shrink)
        self.user_shrink = user_shrink
        self.running = running

    def fit(self, store: Store) -> UserItemBias:
        """Average items, and the training targets of each user."""
        train = store.targets("train")
        self.items.fit(store)
        residual = train.label - self.items.predict(store, train)
        self.bias = shrunk_means(train.user, residual, store.schema.num_users, self.user_shrink)
        return self

    def predict(self, store: Store, targets: Targets) -> np.ndarray:
        """Return mean plus both biases."""
        if not self.running:
            return self.items.predict(store, targets) + self.bias[targets.user]
        residuals = [
            label - self.items.mean - self.items.bias[store.view(name).items]
            for name, label in zip(store.schema.view_names, event_labels(store), strict=True)
        ]
        known = [~np.isnan(residual) for residual in residuals]
        count = sums_before(store, targets, [mask.astype(np.float64) for mask in known])
        leaning = sums_before(store, targets, residuals) / np.maximum(count + self.user_shrink, 1e-12)
        return self.items.predict(store, targets) + leaning
