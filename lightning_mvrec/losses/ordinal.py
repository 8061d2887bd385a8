"""Binary cross-entropy at every grade of an ordered label.

R rows (one (user, target) pair each), C grades.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_mvrec.losses._scores import target_scores, weighted
from lightning_mvrec.losses.base import Loss, LossInput


class OrdinalLoss(Loss):
    """Whether a label reaches each of several grades, from one score with a learned offset a grade.

    ``P(label >= grade_c) = sigmoid(score + offset_c)``; a row's loss is the mean of the cross-entropies over the
    grades. A click that is "4 stars or more" is learned from 1 to 5 stars that way: the score is the logit of
    ``label >= base``, the one offset that stays 0. Cao, Mirjalili & Raschka, "Rank consistent ordinal regression for
    neural networks" (Pattern Recognition Letters 2020), section 3. Offsets start one apart.

    Args:
        grades: Ascending values of the label, at least 2; without the least possible label, which everything reaches.
        base: The grade whose logit the score is: one of ``grades``.

    Shape:
        - output: scalar, ``sum_R(weight * loss) / total_weight``.

    Raises:
        ValueError: If there are fewer than 2 grades, they do not ascend, or ``base`` is not among them.

    Example:
        >>> user, item, one = torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1)
        >>> inputs = LossInput(user, item, target_R=torch.tensor([0]), label_R=one, weight_R=one, total_weight=1.0)
        >>> loss = OrdinalLoss(grades=[2.0, 3.0], base=2.0)  # logits 0 and -1, neither grade is reached
        >>> round(loss(inputs).item(), 4)  # (log(2) + log(1 + exp(-1))) / 2
        0.5032
    """

    grade_C: Tensor
    is_base_C: Tensor

    def __init__(self, grades: list[float], base: float) -> None:
        super().__init__()
        if len(grades) < 2 or any(low >= high for low, high in itertools.pairwise(grades)):
            raise ValueError(f"grades must be at least 2 ascending values, got {grades}")
        if base not in grades:
            raise ValueError(f"base must be one of grades {grades}, got {base}")
        self.register_buffer("grade_C", torch.tensor(grades), persistent=False)
        place = grades.index(base)
        self.register_buffer("is_base_C", torch.arange(len(grades)) == place, persistent=False)
        self.offset_C = nn.Parameter(place - torch.arange(len(grades), dtype=torch.float32))

    def forward(self, inputs: LossInput) -> Tensor:
        """Return the loss."""
        logit_RC = target_scores(inputs)[:, None] + self.offset_C.masked_fill(self.is_base_C, 0.0)
        reached_RC = (inputs.label_R[:, None] >= self.grade_C).to(logit_RC.dtype)
        loss_RC = functional.binary_cross_entropy_with_logits(logit_RC, reached_RC, reduction="none")
        return weighted(loss_RC.mean(dim=1), inputs)
