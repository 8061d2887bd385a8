"""Mean squared error between label and score.

R rows (one (user, target) pair each).
"""

from torch import Tensor

from lightning_mvrec.losses._scores import target_scores, weighted
from lightning_mvrec.losses.base import Loss, LossInput


class MSELoss(Loss):
    """``(score - label) ** 2`` for ratings and other numbers, in the label's own unit.

    Shape:
        - output: scalar, ``sum_R(weight * (score - label) ** 2) / total_weight``.

    Example:
        >>> import torch
        >>> user, item = torch.tensor([[1.0], [1.0]]), torch.tensor([[3.0], [5.0]])
        >>> rows, ones = torch.tensor([0, 1]), torch.ones(2)
        >>> MSELoss()(LossInput(user, item, target_R=rows, label_R=4 * ones, weight_R=ones, total_weight=2.0)).item()
        1.0
    """

    def forward(self, inputs: LossInput) -> Tensor:
        """Return the loss."""
        return weighted((target_scores(inputs) - inputs.label_R).square(), inputs)
