"""Labels predicted by biases, by what the user thought of similar items, and by their leaning to a field's values.

n targets, I item-table rows, N events, G values of the field.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.biases import ItemBias
from lightning_mvrec.models.baselines.ratings import event_labels, shrunk_means

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


class RatingKNN(Baseline):
    """Add to item bias and running user bias two means of what they leave over, both of the user's EARLIER events.

    One is weighted by the similarity of the event's item to the target's: the damped cosine of what biases leave over
    in the training targets, negative ones dropped. The other runs over events whose item shares a value of ``field``
    with the target's, a genre say. Everything is a sum of means; nothing is trained.

    Args:
        field: Multi-hot or categorical item field; None leaves that term out.
        bias_shrink: Average labels added to those of an item, and of a user, at least 0.
        similarity_shrink: Damps similarities that rest on few users, at least 0.
        knn_shrink: Similarity to events without an opinion that is added, above 0.
        field_shrink: Events without an opinion that are added to those of a field's value, above 0.
        name: How results call it.

    Raises:
        ValueError: If a shrink is out of its range, or (when fitted) the data has no such field.
    """

    rates = True

    def __init__(
        self,
        field: str | None = None,
        bias_shrink: float = 5.0,
        similarity_shrink: float = 10.0,
        knn_shrink: float = 1.0,
        field_shrink: float = 10.0,
        name: str = "biases + kNN",
    ) -> None:
        super().__init__(name)
        for argument, value in (("bias_shrink", bias_shrink), ("similarity_shrink", similarity_shrink)):
            if value < 0:
                raise ValueError(f"{argument} must be at least 0, got {value}")
        for argument, value in (("knn_shrink", knn_shrink), ("field_shrink", field_shrink)):
            if value <= 0:
                raise ValueError(f"{argument} must be above 0, got {value}")
        self.field = field
        self.items = ItemBias(bias_shrink)
        self.bias_shrink = bias_shrink
        self.similarity_shrink = similarity_shrink
        self.knn_shrink = knn_shrink
        self.field_shrink = field_shrink

    def fit(self, store: Store) -> RatingKNN:
        """Fit the item biases and similarities."""
        if self.field is not None and self.field not in store.item_fields:
            raise ValueError(f"field must be an item field, one of {sorted(store.item_fields)}, got {self.field!r}")
        train, num_items = store.targets("train"), store.schema.num_items
        residual = train.label - self.items.fit(store).predict(store, train)
        residual -= shrunk_means(train.user, residual, store.schema.num_users, self.bias_shrink)[train.user]
        left = sparse.coo_array((residual, (train.user, train.item)), shape=(store.schema.num_users, num_items)).tocsr()
        norm = np.sqrt(np.bincount(left.indices, left.data**2, minlength=num_items))
        similar = (left.T @ left).tocoo()
        row, column = similar.row, similar.col
        similar.data /= norm[row] * norm[column] + self.similarity_shrink
        keep = (row != column) & (similar.data > 0)
        self.similar = sparse.csr_array((similar.data[keep], (row[keep], column[keep])), shape=similar.shape)
        self.values = sparse.csr_array((num_items, 1))
        if self.field is not None:
            values, offsets = store.item_fields[self.field]
            self.values = sparse.csr_array((np.ones(len(values)), values, offsets), dtype=np.float64)
        return self

    def predict(self, store: Store, targets: Targets, chunk: int = 4096) -> np.ndarray:
        """Return the sums, ``chunk`` targets at a time."""
        labels = event_labels(store)
        rows = np.arange(len(targets.user))
        parts = [self._predict(store, targets, part, labels) for part in np.split(rows, range(chunk, len(rows), chunk))]
        return self.items.predict(store, targets) + np.concatenate(parts)

    def _predict(self, store: Store, targets: Targets, rows: np.ndarray, labels: list[np.ndarray]) -> np.ndarray:
        owner, item, residual = self._earlier(store, targets, rows, labels)
        count = np.bincount(owner, minlength=len(rows))
        leaning = np.bincount(owner, residual, minlength=len(rows)) / np.maximum(count + self.bias_shrink, 1e-12)
        opinion = residual - leaning[owner]
        shape = (len(rows), store.schema.num_items)
        total = sparse.coo_array((opinion, (owner, item)), shape=shape).tocsr()
        events = sparse.coo_array((np.ones(len(item)), (owner, item)), shape=shape).tocsr()
        own = targets.item[rows]
        near = self.similar[own]
        knn = near.multiply(total).sum(axis=1) / (near.multiply(events).sum(axis=1) + self.knn_shrink)
        by_value = (total @ self.values).toarray() / ((events @ self.values).toarray() + self.field_shrink)
        of_target = self.values[own].toarray()
        shared = (by_value * of_target).sum(1) / np.maximum(of_target.sum(1), 1)
        return leaning + np.asarray(knn).ravel() + shared

    def _earlier(
        self, store: Store, targets: Targets, rows: np.ndarray, labels: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return place in ``rows``, item, and label less item mean of every labelled event before each target."""
        owners, items, residuals = [], [], []
        for number, name in enumerate(store.schema.view_names):
            view, count = store.view(name), targets.asof[rows, number].astype(np.int64)
            owner = np.repeat(np.arange(len(rows)), count)
            first = view.offsets[targets.user[rows]] - (np.cumsum(count) - count)
            index = np.repeat(first, count) + np.arange(count.sum())
            known = ~np.isnan(labels[number][index])
            owners.append(owner[known])
            items.append(view.items[index[known]].astype(np.int64))
            residuals.append(labels[number][index[known]] - self.items.mean - self.items.bias[items[-1]])
        return np.concatenate(owners), np.concatenate(items), np.concatenate(residuals)
