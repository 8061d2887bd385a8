"""The one batch that every model reads: distinct items once, and positions into them.

B users, K targets a user (right-padded), V views, M distinct items, E events of one view over all users, N negatives,
L links, W width of content vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass
class ViewBatch:
    """The histories of one view, jagged: user ``b`` owns ``lengths_B[b]`` consecutive events, oldest first.

    Args:
        position_E: ``(E,)`` int64, position of each event's item in ``MultiViewBatch.items``.
        lengths_B: ``(B,)`` int64, events of each user, at most the view's ``max_len``.
        time_E: ``(E,)`` int64, seconds since the epoch (or the event's number where a source has no times).
        fields: ``(E,)`` each: float32 for numeric, int64 table rows for categorical event fields.
    """

    position_E: Tensor
    lengths_B: Tensor
    time_E: Tensor
    fields: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class LinkBatch:
    """Links of co-visitation from the events of each target's history to their neighbours, in no order.

    Links that the target's own user made are not among them.

    Args:
        target_L: ``(L,)`` int64, the target: user ``b``, step ``k`` is number ``b * K + k``.
        position_L: ``(L,)`` int64, position of the neighbour in ``MultiViewBatch.items``.
        event_L: ``(L,)`` int64, the schema's view of the history's event.
        place_L: ``(L,)`` int64, place of the history's event from the end of its view, 0 for the newest.
        source_LV: ``(L, V)`` float32, when the user who made the link first met that event's item in each of the
            schema's views: seconds from the first moment of the link, inf where it was not met.
        neighbour_LV: ``(L, V)`` float32, likewise of the neighbour.
    """

    target_L: Tensor
    position_L: Tensor
    event_L: Tensor
    place_L: Tensor
    source_LV: Tensor
    neighbour_LV: Tensor


@dataclass
class MultiViewBatch:
    """Users, their histories by view, and what is to be predicted.

    Args:
        items: KJT of stride ``M`` over the batch's DISTINCT items (events, targets, negatives): keys ``item_id`` (one
            row each) and ``item_<field>`` (any number). ``items["item_id"].values()`` is strictly increasing; with
            ``catalogue`` it is ``0 .. num_items - 1``, so that a position is a table row.
        users: KJT of stride ``B``: keys ``user_id`` and ``user_<field>``.
        views: Histories by view name, in the schema's order.
        target_BK: ``(B, K)`` int64 positions into ``items``, in time order; padded entries are 0.
        weight_BK: ``(B, K)`` float32; 0 where there is no target. A row that only evens out ranks has weights 0.
        label_BK: ``(B, K)`` float32; 1 for implicit feedback.
        time_BK: ``(B, K)`` int64, time of the target, as in the views.
        asof_BKV: ``(B, K, V)`` int64, how many events of this batch's history of each view precede the target.
        negative: int64 positions into ``items``: ``(N,)`` shared by all targets, ``(B, K, N)``, or None.
        log_q_negative: Log-probability of drawing each negative, of the same shape, or None.
        log_q_BK: ``(B, K)`` log-probability of drawing each target as a negative, or None.
        catalogue: Whether ``items`` is the whole item table, in order (full softmax).
        total_weight: Sum of the weights over ALL ranks divided by the number of ranks: a loss is
            ``sum(weight * loss) / total_weight`` on each rank, and the mean over ranks is the global mean.
        example_B: ``(B,)`` int64, each example's number in its stage, for predictions; -1 for rows that even out ranks.
        seen_row: Item-table rows to leave out of a ranking, jagged over users (evaluation only), or None; in any order,
            and a row may come twice.
        seen_lengths_B: ``(B,)`` int64, how many of ``seen_row`` each user owns, or None.
        content_MW: ``(M, W)`` float32, frozen content vectors of the distinct items, where the data has them. They
            travel with the batch, so that no model, checkpoint or rank holds the whole matrix.
        links: Neighbours of the histories in the graph of co-visitation, where the data module was asked for them.
    """

    items: KeyedJaggedTensor
    users: KeyedJaggedTensor
    views: dict[str, ViewBatch]
    target_BK: Tensor
    weight_BK: Tensor
    label_BK: Tensor
    time_BK: Tensor
    asof_BKV: Tensor
    total_weight: float
    negative: Tensor | None = None
    log_q_negative: Tensor | None = None
    log_q_BK: Tensor | None = None
    catalogue: bool = False
    example_B: Tensor | None = None
    seen_row: Tensor | None = None
    seen_lengths_B: Tensor | None = None
    content_MW: Tensor | None = None
    links: LinkBatch | None = None

    @property
    def batch_size(self) -> int:
        """Users ``B``."""
        return self.target_BK.shape[0]

    @property
    def item_row_M(self) -> Tensor:
        """``(M,)`` item-table rows of the distinct items."""
        return self.items["item_id"].values()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MultiViewBatch:
        """Return the batch on another device."""
        return _map(self, lambda value: value.to(device=torch.device(device), non_blocking=non_blocking))

    def pin_memory(self) -> MultiViewBatch:
        """Return the batch in page-locked memory."""
        return _map(self, lambda value: value.pin_memory())

    def record_stream(self, stream: Any) -> None:
        """Tell the CUDA allocator that ``stream`` uses every tensor of the batch."""

        def record(value: Any) -> Any:
            value.record_stream(stream)
            return value

        _map(self, record)


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, (Tensor, KeyedJaggedTensor)):
        return function(value)
    if isinstance(value, dict):
        return {key: _map(item, function) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{item.name: _map(getattr(value, item.name), function) for item in fields(value)})
    return value
