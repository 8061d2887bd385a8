"""The survey's pairwise objective.

R rows (one (user, target) pair each), N negatives, D embedding width.
"""

from torch import Tensor

from lightning_mvrec.losses._scores import is_target, negative_scores, require_negatives, target_scores, weighted
from lightning_mvrec.losses.base import Loss, LossInput


class PairwiseLoss(Loss):
    """``1/N sum_i sum_j (y_ij - sigmoid(H_i . H_j)) ** 2``.

    ``i`` runs over the rows (user states ``H_i``), ``j`` over the row's target and its negatives (item vectors
    ``H_j``). ``y_ij`` is the target's label, 1 for implicit feedback and in [0, 1] otherwise, and 0 for a negative; a
    negative that is the row's own target is left out. ``N`` is the number of rows: their total weight. Where a model's
    score is not the dot product, its score takes the place of ``H_i . H_j``.

    Shape:
        - output: scalar, ``sum_R(weight * sum_j(...)) / total_weight``.

    Raises:
        ValueError: If the batch has no negatives.

    Example:
        >>> import torch
        >>> one, items = torch.ones(1), torch.zeros(2, 1)
        >>> inputs = LossInput(one[:, None], items, torch.tensor([0]), one, one, 1.0, negative=torch.tensor([1]))
        >>> PairwiseLoss()(inputs).item()  # (1 - 1/2) ** 2 + (0 - 1/2) ** 2
        0.5
    """

    def forward(self, inputs: LossInput) -> Tensor:
        """Return the loss."""
        negative = require_negatives(inputs, self)
        target_R = (inputs.label_R - target_scores(inputs).sigmoid()).square()
        negative_RN = negative_scores(inputs, negative).sigmoid().square()
        return weighted(target_R + negative_RN.masked_fill(is_target(inputs, negative), 0.0).sum(dim=1), inputs)
