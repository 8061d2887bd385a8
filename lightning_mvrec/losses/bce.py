"""Binary cross-entropy on logits, with or without negatives.

R rows (one (user, target) pair each), N negatives.
"""

from torch import Tensor
from torch.nn import functional

from lightning_mvrec.losses._scores import is_target, mean_over, negative_scores, target_scores, weighted
from lightning_mvrec.losses.base import Loss, LossInput


class BCELoss(Loss):
    """Log-loss of the target's label, plus that of the negatives as label 0 where the batch has any.

    A row's loss is ``bce(score, label) + negative_weight * mean_N bce(score_N, 0)``; a negative that is the row's own
    target is left out. With labels that are all 1 and no negatives the loss is least where every score is infinite:
    implicit feedback needs negatives. With one negative this is the loss of SASRec.

    Args:
        negative_weight: Weight of the negatives' mean, at least 0.

    Shape:
        - output: scalar, ``sum_R(weight * loss) / total_weight``.

    Raises:
        ValueError: If ``negative_weight`` is below 0.

    Example:
        >>> import torch
        >>> user, item = torch.zeros(1, 2), torch.ones(1, 2)
        >>> one = torch.ones(1)
        >>> inputs = LossInput(user, item, target_R=torch.tensor([0]), label_R=one, weight_R=one, total_weight=1.0)
        >>> round(BCELoss()(inputs).item(), 4)  # log(2)
        0.6931
    """

    def __init__(self, negative_weight: float = 1.0) -> None:
        super().__init__()
        if negative_weight < 0:
            raise ValueError(f"negative_weight must be at least 0, got {negative_weight}")
        self.negative_weight = negative_weight

    def forward(self, inputs: LossInput) -> Tensor:
        """Return the loss."""
        loss_R = functional.binary_cross_entropy_with_logits(target_scores(inputs), inputs.label_R, reduction="none")
        if inputs.negative is not None:
            # softplus(s) = -log(1 - sigmoid(s)), without the overflow.
            negative_RN = functional.softplus(negative_scores(inputs, inputs.negative))
            loss_R = loss_R + self.negative_weight * mean_over(negative_RN, is_target(inputs, inputs.negative))
        return weighted(loss_R, inputs)
