"""Examples to :class:`MultiViewBatch`, in numpy without a loop over users.

B users, K targets a user, V views, E events of one view, M distinct items, N negatives,
L links, W width of content vectors.
"""

from __future__ import annotations

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.batch import LinkBatch, MultiViewBatch, ViewBatch
from lightning_mvrec.data.covisits import CoVisits
from lightning_mvrec.data.examples import Examples
from lightning_mvrec.data.find_links import Links, find_links
from lightning_mvrec.data.histories import ranges
from lightning_mvrec.data.negatives import Negatives
from lightning_mvrec.data.store import Store, ViewStore
from lightning_mvrec.schema import Schema


class Collator:
    """Builds the batch of some examples.

    Args:
        store: The prepared data.
        schema: Its schema, with the ``max_len`` to read.
        negatives: Set-up sampler, or None.
        filter_seen: Views whose earlier items are left out of the ranking of an example's (only) target.
        covisits: Which links of co-visitation come with a batch, or None.
        training: Whether the examples are training's, so that ``CoVisits(whole_history=True)`` applies.
    """

    def __init__(
        self,
        store: Store,
        schema: Schema,
        negatives: Negatives | None = None,
        filter_seen: tuple[str, ...] = (),
        covisits: CoVisits | None = None,
        training: bool = False,
    ) -> None:
        self.store = store.open()
        self.schema = schema
        self.negatives = negatives
        self.filter_seen = filter_seen
        self.covisits = covisits
        self.training = training
        self._graph = None if covisits is None else covisits.graph(store)
        self._max_len_V = np.array([view.max_len for view in schema.views])
        self._catalogue: KeyedJaggedTensor | None = None
        self._catalogue_content: torch.Tensor | None = None

    def __call__(
        self,
        examples: Examples,
        number_B: np.ndarray,
        total_weight: float,
        drawn: np.ndarray | None = None,
    ) -> MultiViewBatch:
        """Return the batch of examples ``number_B``.

        Args:
            examples: The stage's examples.
            number_B: ``(B,)`` numbers of examples; -1 for a row without user, history or target.
            total_weight: See :class:`MultiViewBatch`.
            drawn: Item rows of the negatives: ``(N,)``, or ``(B, K, N)`` with ``K`` at least this batch's.
        """
        targets = examples.targets
        real_B = number_B >= 0
        count_B = np.where(real_B, examples.count[number_B], 0)
        first_B = np.where(real_B, examples.first[number_B], 0)
        user_B = np.where(real_B, targets.user[first_B], 0)
        num_targets = max(int(count_B.max()), 1)
        mask_BK = np.arange(num_targets) < count_B[:, None]
        target = ranges(first_B, count_B)

        asof_BKV = np.zeros((*mask_BK.shape, len(self._max_len_V)), dtype=np.int64)
        asof_BKV[mask_BK] = targets.asof[target]
        end_BV = asof_BKV.max(1)
        begin_BV = np.maximum(end_BV - self._max_len_V, 0)
        length_BV = end_BV - begin_BV
        asof_BKV -= begin_BV[:, None, :]
        np.maximum(asof_BKV, 0, out=asof_BKV)

        rows: list[np.ndarray] = []
        views: dict[str, ViewBatch] = {}
        for number, view in enumerate(self.schema.views):
            data = self.store.view(view.name)
            event = ranges(data.offsets[user_B] + begin_BV[:, number], length_BV[:, number])
            rows.append(data.items[event])
            views[view.name] = ViewBatch(
                position_E=torch.empty(0),  # filled in below, when the distinct items are known
                lengths_B=torch.from_numpy(np.ascontiguousarray(length_BV[:, number])),
                time_E=torch.from_numpy(data.times[event]),
                fields={f.name: _field(data.fields[f.name][event]) for f in view.fields},
            )
        target_row = targets.item[target]
        rows.append(target_row)
        links = self._links(user_B, begin_BV, asof_BKV, mask_BK, target_row)
        if links is not None:
            rows.append(links.neighbour)
        if drawn is not None:
            if drawn.ndim == 3:
                drawn = drawn[:, :num_targets]
            rows.append(drawn.ravel())
        items, positions = self._distinct(rows)
        for position, read in zip(positions, views.values(), strict=False):
            read.position_E = torch.from_numpy(position)

        batch = MultiViewBatch(
            items=items,
            users=self._users(user_B),
            views=views,
            target_BK=_spread(positions[len(views)], mask_BK, np.int64),
            weight_BK=_spread(targets.weight[target], mask_BK, np.float32),
            label_BK=_spread(targets.label[target], mask_BK, np.float32),
            time_BK=_spread(targets.time[target], mask_BK, np.int64),
            asof_BKV=torch.from_numpy(asof_BKV),
            total_weight=total_weight,
            example_B=torch.from_numpy(number_B.astype(np.int64)),
            content_MW=self._content_of(items),
            links=None if links is None else _link_batch(links, positions[len(views) + 1]),
        )
        self._add_negatives(batch, drawn, positions, target_row, mask_BK)
        self._add_seen(batch, examples, first_B, count_B, user_B)
        return batch

    def item_features(self, rows: np.ndarray) -> KeyedJaggedTensor:
        """Return the ``items`` KJT of item rows."""
        keys = ["item_id"]
        values = [rows.astype(np.int64)]
        lengths = [np.ones(len(rows), dtype=np.int64)]
        _append(keys, values, lengths, "item", self.store.item_fields, rows)
        return _kjt(keys, values, lengths)

    def item_content(self, rows: np.ndarray) -> torch.Tensor | None:
        """Return ``(M, W)`` frozen content vectors of item rows, or None where the data has none."""
        return None if self.store.content is None else torch.from_numpy(self.store.content[rows])

    def item_inputs(self, rows: np.ndarray) -> tuple[KeyedJaggedTensor, torch.Tensor | None]:
        """Return what a model makes the vectors of item rows of: their KJT and their content vectors."""
        return self.item_features(rows), self.item_content(rows)

    def _links(
        self,
        user_B: np.ndarray,
        begin_BV: np.ndarray,
        asof_BKV: np.ndarray,
        mask_BK: np.ndarray,
        target_row: np.ndarray,
    ) -> Links | None:
        """Return the links of the targets' histories, as far as these are read."""
        if self.covisits is None or self._graph is None:
            return None
        views = [self.store.view(view.name) for view in self.schema.views]
        number_n = np.flatnonzero(mask_BK)
        owner_n = number_n // mask_BK.shape[1]
        offset_BV = np.stack([view.offsets[user_B] for view in views], 1)
        without_n = target_row if self.covisits.whole_history else np.zeros_like(target_row)
        if self.training and self.covisits.whole_history:
            known_BV = np.stack([_trained(view, user_B) for view in views], 1)
            count_BV = np.minimum(known_BV, self._max_len_V)
            first_nV, count_nV = (offset_BV + known_BV - count_BV)[owner_n], count_BV[owner_n]
        else:
            first_nV, count_nV = (offset_BV + begin_BV)[owner_n], asof_BKV[mask_BK]
        items = [view.items for view in views]
        links = find_links(self._graph, items, first_nV, count_nV, user_B[owner_n], without_n, self.covisits.new_only)
        links.target = number_n[links.target]
        return links

    def _content_of(self, items: KeyedJaggedTensor) -> torch.Tensor | None:
        if items is not self._catalogue:
            return self.item_content(items["item_id"].values().numpy())
        if self._catalogue_content is None:
            self._catalogue_content = self.item_content(np.arange(self.schema.num_items))
        return self._catalogue_content

    def _users(self, user_B: np.ndarray) -> KeyedJaggedTensor:
        # A user that training never saw has an untrained row: it is read as "unknown".
        known_B = np.where(self.store.user_trained[user_B], user_B, 0)
        keys = ["user_id"]
        values = [known_B.astype(np.int64)]
        lengths = [np.ones(len(user_B), dtype=np.int64)]
        _append(keys, values, lengths, "user", self.store.user_fields, user_B)
        return _kjt(keys, values, lengths)

    def _distinct(self, rows: list[np.ndarray]) -> tuple[KeyedJaggedTensor, list[np.ndarray]]:
        """Return the KJT of the distinct rows and each array's positions in it."""
        if self.negatives is not None and self.negatives.catalogue:
            if self._catalogue is None:
                self._catalogue = self.item_features(np.arange(self.schema.num_items))
            return self._catalogue, [row.astype(np.int64) for row in rows]
        total = sum(map(len, rows))
        if self.schema.num_items <= 64 * total:
            # Marking rows in a table costs less than sorting while the table is not much larger than the batch.
            marked = np.zeros(self.schema.num_items, dtype=bool)
            for row in rows:
                marked[row] = True
            distinct = np.flatnonzero(marked)
            place = np.empty(self.schema.num_items, dtype=np.int64)
            place[distinct] = np.arange(len(distinct))
            positions = [place[row] for row in rows]
        else:
            distinct, inverse = np.unique(np.concatenate(rows), return_inverse=True)
            positions = np.split(inverse.astype(np.int64), np.cumsum([len(row) for row in rows])[:-1])
        if not len(distinct):
            distinct = np.zeros(1, dtype=np.int64)  # a rank without any event still looks one row up
        return self.item_features(distinct), positions

    def _add_negatives(
        self,
        batch: MultiViewBatch,
        drawn: np.ndarray | None,
        positions: list[np.ndarray],
        target_row: np.ndarray,
        mask_BK: np.ndarray,
    ) -> None:
        if self.negatives is None:
            return
        batch.catalogue = self.negatives.catalogue
        if drawn is not None:
            batch.negative = torch.from_numpy(positions[-1].reshape(drawn.shape))
            batch.log_q_negative = torch.from_numpy(self.negatives.log_q(drawn))
            batch.log_q_BK = _spread(self.negatives.log_q(target_row), mask_BK, np.float32)

    def _add_seen(
        self, batch: MultiViewBatch, examples: Examples, first_B: np.ndarray, count_B: np.ndarray, user_B: np.ndarray
    ) -> None:
        """Add the rows to leave out: items of the user's whole earlier history, the target itself never."""
        if not self.filter_seen:
            return
        parts = []
        for name in self.filter_seen:
            number = self.schema.view_names.index(name)
            data = self.store.view(name)
            length_B = np.where(count_B > 0, examples.targets.asof[first_B, number], 0)
            event = ranges(data.offsets[user_B], length_B)
            parts.append((np.repeat(np.arange(len(user_B)), length_B), data.items[event].astype(np.int64)))
        owner, row = (np.concatenate(each) for each in zip(*parts, strict=True))
        if len(parts) > 1:  # one view's events lie by user already
            order = np.argsort(owner, kind="stable")
            owner, row = owner[order], row[order]
        target_B = np.where(count_B > 0, examples.targets.item[first_B], 0)
        keep = (row > 0) & (row != target_B[owner])
        batch.seen_row = torch.from_numpy(row[keep])
        batch.seen_lengths_B = torch.from_numpy(np.bincount(owner[keep], minlength=len(user_B)).astype(np.int64))


def _append(
    keys: list[str],
    values: list[np.ndarray],
    lengths: list[np.ndarray],
    owner: str,
    fields: dict[str, tuple[np.ndarray, np.ndarray]],
    rows: np.ndarray,
) -> None:
    for name, (value, offsets) in fields.items():
        keys.append(f"{owner}_{name}")
        length = offsets[rows + 1] - offsets[rows]
        values.append(value[ranges(offsets[rows], length)].astype(np.int64))
        lengths.append(length)


def _kjt(keys: list[str], values: list[np.ndarray], lengths: list[np.ndarray]) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.from_numpy(np.concatenate(values)),
        lengths=torch.from_numpy(np.concatenate(lengths)),
        stride=len(lengths[0]),
    )


def _trained(view: ViewStore, user_B: np.ndarray) -> np.ndarray:
    """Return ``(B,)`` how many events of each user's history training knows before the first that it does not."""
    count_B = view.offsets[user_B + 1] - view.offsets[user_B]
    later = view.stage[ranges(view.offsets[user_B], count_B)] > 0
    owner = np.repeat(np.arange(len(user_B)), count_B)
    place = ranges(np.zeros_like(count_B), count_B)
    np.minimum.at(count_B, owner[later], place[later])
    return count_B


def _link_batch(links: Links, position_L: np.ndarray) -> LinkBatch:
    arrays = (links.target, position_L, links.event, links.place, links.source, links.view)
    return LinkBatch(*(torch.from_numpy(array) for array in arrays))


def _spread(values: np.ndarray, mask_BK: np.ndarray, dtype: type) -> torch.Tensor:
    out_BK: np.ndarray = np.zeros(mask_BK.shape, dtype=dtype)
    out_BK[mask_BK] = values
    return torch.from_numpy(out_BK)


def _field(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values if values.dtype == np.float32 else values.astype(np.int64))
