"""Any loss plus lambda times the squared length of the vectors it used.

R rows (one (user, target) pair each), M distinct items, N negatives, D embedding width.
"""

from torch import Tensor

from lightning_mvrec.losses._scores import weighted
from lightning_mvrec.losses.base import Loss, LossInput


class L2Penalty(Loss):
    """``loss + weight * sum_R(w * (|u|^2 + |v|^2 + mean_N |v_n|^2)) / total_weight``.

    ``w`` is the row's weight, ``u`` its user state, ``v`` its target's vector and ``v_n`` those of its negatives (no
    such term without negatives). Counting a vector once for each row that used it, as matrix factorisation does, makes
    the penalty the same however the rows are spread over ranks.

    Args:
        loss: The loss that is penalised.
        weight: Lambda, at least 0.

    Shape:
        - output: scalar.

    Raises:
        ValueError: If ``weight`` is below 0.

    Example:
        >>> import torch
        >>> from lightning_mvrec.losses import MSELoss
        >>> one, user, item = torch.ones(1), torch.tensor([[1.0]]), torch.tensor([[2.0]])
        >>> inputs = LossInput(user, item, torch.tensor([0]), label_R=one, weight_R=one, total_weight=1.0)
        >>> L2Penalty(MSELoss(), weight=0.1)(inputs).item()  # (2 - 1) ** 2 + 0.1 * (1 + 4)
        1.5
    """

    def __init__(self, loss: Loss, weight: float) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.loss = loss
        self.weight = weight

    def forward(self, inputs: LossInput) -> Tensor:
        """Return the penalised loss."""
        item_M = inputs.item_MD.square().sum(dim=1)
        square_R = inputs.user_RD.square().sum(dim=1) + item_M[inputs.target_R]
        if inputs.negative is not None and inputs.negative.shape[-1] > 0:
            square_R = square_R + item_M[inputs.negative].mean(dim=-1)
        return self.loss(inputs) + self.weight * weighted(square_R, inputs)
