"""Ranking metrics at a cut-off, from ranks among the whole catalogue.

B lists, K relevant items a list.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lightning_mvrec.functional.hits import hit_rate, mrr, ndcg, recall
from lightning_mvrec.metrics.base import MeanMetric


class _RankMetric(MeanMetric):
    higher_is_better = True
    prefix: str
    function: Callable[[Tensor, int, Tensor | None], Tensor]

    def __init__(self, k: int = 10) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be above 0 items, got {k}")
        self.k = k
        self.name = f"{self.prefix}@{k}"

    def update(self, rank: Tensor, weight: Tensor | None = None) -> None:
        """Add ranked lists.

        Args:
            rank: ``(B,)`` rank of the one relevant item of each list, or ``(B, K)`` ranks of several.
            weight: Of the same shape; 0 drops a rank. In ``(B, K)`` a weight above 0 marks a relevant item, and a
                list weighs as much as the heaviest of its items.
        """
        if rank.dim() == 1:
            self.add(self.function(rank, self.k, None), weight)
            return
        relevant_BK = weight > 0 if weight is not None else None
        weight_B = weight.amax(1) if weight is not None and weight.shape[1] else None
        self.add(self.function(rank, self.k, relevant_BK), weight_B)


class NDCG(_RankMetric):
    """Normalised discounted cumulative gain: ``1 / log2(1 + rank)`` for one relevant item within the first ``k``.

    Example:
        >>> import torch
        >>> metric = NDCG(k=10)
        >>> metric.update(torch.tensor([1, 3, 11]))
        >>> metric.compute().item()  # (1 + 1 / 2 + 0) / 3
        0.5
    """

    prefix = "ndcg"
    function = staticmethod(ndcg)


class HitRate(_RankMetric):
    """Share of lists with a relevant item within the first ``k``.

    Example:
        >>> import torch
        >>> metric = HitRate(k=2)
        >>> metric.update(torch.tensor([1, 3, 2, 9]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
        >>> round(metric.compute().item(), 4)  # 2 of 3
        0.6667
    """

    prefix = "hr"
    function = staticmethod(hit_rate)


class Recall(_RankMetric):
    """Share of a list's relevant items within the first ``k``; with one relevant item, the hit rate.

    Example:
        >>> import torch
        >>> metric = Recall(k=2)
        >>> metric.update(torch.tensor([[1, 9]]), torch.tensor([[1.0, 1.0]]))
        >>> metric.compute().item()
        0.5
    """

    prefix = "recall"
    function = staticmethod(recall)


class MRR(_RankMetric):
    """Reciprocal rank of the first relevant item, 0 beyond ``k``.

    Example:
        >>> import torch
        >>> metric = MRR(k=10)
        >>> metric.update(torch.tensor([1, 4, 11, 2]))
        >>> metric.compute().item()  # (1 + 1 / 4 + 0 + 1 / 2) / 4
        0.4375
    """

    prefix = "mrr"
    function = staticmethod(mrr)
