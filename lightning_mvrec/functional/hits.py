"""Metrics of one ranked list each, from the ranks of its relevant items.

B lists, K relevant items a list.

Every function takes ``rank_B`` (one relevant item a list) or ``rank_BK`` with ``relevant_BK`` (several, padded), and
returns ``(B,)``. Ranks are those of :func:`lightning_mvrec.functional.ranks`: 1 is the best, and each relevant item is
ranked among ALL items. A list without a relevant item has the value 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hit_rate(rank: Tensor, k: int, relevant_BK: Tensor | None = None) -> Tensor:
    """Whether any relevant item is among the first ``k``.

    Example:
        >>> hit_rate(torch.tensor([1, 2, 3]), k=2).tolist()
        [1.0, 1.0, 0.0]
    """
    rank_BK, relevant_BK = _lists(rank, k, relevant_BK)
    return ((rank_BK <= k) & relevant_BK).any(1).double()


def recall(rank: Tensor, k: int, relevant_BK: Tensor | None = None) -> Tensor:
    """Share of the relevant items that are among the first ``k``; with one relevant item, the hit rate.

    Example:
        >>> recall(torch.tensor([[1, 7]]), k=2, relevant_BK=torch.tensor([[True, True]])).tolist()
        [0.5]
    """
    rank_BK, relevant_BK = _lists(rank, k, relevant_BK)
    hits_B = ((rank_BK <= k) & relevant_BK).sum(1)
    return hits_B / relevant_BK.sum(1).clamp(min=1).double()


def ndcg(rank: Tensor, k: int, relevant_BK: Tensor | None = None) -> Tensor:
    """Discounted gain ``1 / log2(1 + rank)`` of the relevant items among the first ``k``, over that of the best order.

    Example:
        >>> ndcg(torch.tensor([1, 3, 11]), k=10).tolist()  # 1 / log2(2), 1 / log2(4), cut off
        [1.0, 0.5, 0.0]
    """
    rank_BK, relevant_BK = _lists(rank, k, relevant_BK)
    # Ranks go to float before 1 is added: MISS + 1 must not wrap around.
    gain_BK = torch.where((rank_BK <= k) & relevant_BK, 1 / (rank_BK.double() + 1).log2(), 0.0)
    place_K = torch.arange(1, rank_BK.shape[1] + 1, device=rank.device)
    best_K = torch.where(place_K <= k, 1 / (place_K.double() + 1).log2(), 0.0).cumsum(0)
    if best_K.numel() == 0:
        return gain_BK.sum(1)
    return gain_BK.sum(1) / best_K[(relevant_BK.sum(1) - 1).clamp(min=0)]


def mrr(rank: Tensor, k: int, relevant_BK: Tensor | None = None) -> Tensor:
    """Reciprocal of the best rank of a relevant item, 0 where that is beyond ``k``.

    Example:
        >>> mrr(torch.tensor([1, 4, 11]), k=10).tolist()
        [1.0, 0.25, 0.0]
    """
    rank_BK, relevant_BK = _lists(rank, k, relevant_BK)
    gain_BK = torch.where((rank_BK <= k) & relevant_BK, 1 / rank_BK.double(), 0.0)
    return gain_BK.amax(1) if gain_BK.shape[1] else gain_BK.sum(1)


def _lists(rank: Tensor, k: int, relevant_BK: Tensor | None) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise ValueError(f"k must be above 0 items, got {k}")
    rank_BK = rank if rank.dim() == 2 else rank[:, None]
    if relevant_BK is None:
        return rank_BK, torch.ones_like(rank_BK, dtype=torch.bool)
    if relevant_BK.shape != rank_BK.shape:
        shape, other = tuple(rank_BK.shape), tuple(relevant_BK.shape)
        raise ValueError(f"relevant_BK must have the shape of rank {shape}, got {other}")
    return rank_BK, relevant_BK
