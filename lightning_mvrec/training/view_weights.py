"""Mean weight of each view over the rows of an epoch.

R rows, V views.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class ViewWeights(Metric):
    """Average the view weights that a fusion returned, over all rows and all ranks.

    Args:
        view_names: Names of the views, in the order of the weights.

    Example:
        >>> metric = ViewWeights(["view", "cart"])
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        >>> {name: value.item() for name, value in metric.compute().items()}
        {'weight/view': 0.75, 'weight/cart': 0.25}
    """

    full_state_update = False
    total: Tensor
    rows: Tensor

    def __init__(self, view_names: list[str]) -> None:
        super().__init__()
        self.view_names = view_names
        self.add_state("total", torch.zeros(len(view_names), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("rows", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, weights_RV: Tensor | None) -> None:
        """Add the weights ``(R, V)`` of a batch; a model without view weights gives None and adds nothing."""
        if weights_RV is not None:
            self.total += weights_RV.detach().double().sum(0)
            self.rows += weights_RV.shape[0]

    def compute(self) -> dict[str, Tensor]:
        """Return ``weight/<view>`` for each view; empty where no weights were seen."""
        if self.rows == 0:
            return {}
        return {f"weight/{name}": value for name, value in zip(self.view_names, self.total / self.rows, strict=True)}
