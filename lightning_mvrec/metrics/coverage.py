"""How much of the catalogue is ever recommended.

B lists, K recommended items a list, I item-table rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class Coverage(Metric):
    """Share of the catalogue that is in at least one list's first ``k`` items.

    Args:
        num_items: Rows of the item table; the catalogue is rows ``1 .. num_items - 1``.
        k: Items of a list that count, above 0.

    Raises:
        ValueError: If there is no catalogue, ``k`` is below 1, or a list names a row outside the table.

    Example:
        >>> metric = Coverage(num_items=5, k=2)
        >>> metric.update(torch.tensor([[1, 2, 4], [2, 1, 4]]))
        >>> metric.compute().item()  # items 1 and 2 of 4
        0.5
    """

    full_state_update = False
    higher_is_better = True
    recommended: Tensor

    def __init__(self, num_items: int, k: int = 10) -> None:
        super().__init__()
        if num_items < 2:
            raise ValueError(f"num_items must be above 1 (row 0 is no item), got {num_items}")
        if k < 1:
            raise ValueError(f"k must be above 0 items, got {k}")
        self.num_items, self.k, self.name = num_items, k, f"coverage@{k}"
        # uint8, not bool: gloo and NCCL gather it in every version.
        self.add_state("recommended", torch.zeros(num_items, dtype=torch.uint8), dist_reduce_fx="max")

    def update(self, top_BK: Tensor, weight_B: Tensor | None = None) -> None:
        """Add lists of item-table rows, best first; row 0 fills short lists and does not count.

        Args:
            top_BK: ``(B, K)`` int64.
            weight_B: ``(B,)``; a list of weight 0 does not count.
        """
        top_BK = top_BK[:, : self.k]
        if weight_B is not None:
            top_BK = top_BK[weight_B > 0]
        if top_BK.numel() and (int(top_BK.min()) < 0 or int(top_BK.max()) >= self.num_items):
            low, high = int(top_BK.min()), int(top_BK.max())
            raise ValueError(f"top_BK must be item-table rows in [0, {self.num_items}), got rows from {low} to {high}")
        self.recommended[top_BK.flatten()] = 1

    def compute(self) -> Tensor:
        """Return the share, 0 where no list has been added."""
        return self.recommended[1:].double().mean()
