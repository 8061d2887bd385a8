"""Bayesian personalised ranking: the target above each negative.

R rows (one (user, target) pair each), N negatives.
"""

from torch import Tensor
from torch.nn import functional

from lightning_mvrec.losses._scores import (
    is_target,
    mean_over,
    negative_scores,
    require_negatives,
    target_scores,
    weighted,
)
from lightning_mvrec.losses.base import Loss, LossInput


class BPRLoss(Loss):
    """``-log sigmoid(score - score_negative)``, the mean over a row's negatives other than its target.

    Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback" (UAI 2009).

    Shape:
        - output: scalar, ``sum_R(weight * loss) / total_weight``.

    Raises:
        ValueError: If the batch has no negatives.

    Example:
        >>> import torch
        >>> one, items = torch.ones(1), torch.tensor([[1.0], [1.0]])
        >>> inputs = LossInput(one[:, None], items, torch.tensor([0]), one, one, 1.0, negative=torch.tensor([0, 1]))
        >>> round(BPRLoss()(inputs).item(), 4)  # log(2)
        0.6931
    """

    def forward(self, inputs: LossInput) -> Tensor:
        """Return the loss."""
        negative = require_negatives(inputs, self)
        gap_RN = target_scores(inputs)[:, None] - negative_scores(inputs, negative)
        return weighted(mean_over(functional.softplus(-gap_RN), is_target(inputs, negative)), inputs)
