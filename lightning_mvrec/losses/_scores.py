"""Scores of targets and negatives, and what a loss asks of a batch.

R rows (one (user, target) pair each), M distinct items, N negatives, D embedding width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from lightning_mvrec.functional.repeats import repeat_logit_of, repeat_mass
from lightning_mvrec.losses.base import LossInput


def require_negatives(inputs: LossInput, loss: object) -> Tensor:
    """Return the negatives' positions.

    Raises:
        ValueError: If the batch has none.
    """
    if inputs.negative is None:
        raise ValueError(
            f"{type(loss).__name__} needs negatives, got a batch without: set `negatives` of the data module to a "
            "sampler that draws at least 1"
        )
    return inputs.negative


def gather(item_MD: Tensor, position: Tensor) -> Tensor:
    """Return ``(..., D)`` item vectors at positions ``(...)``."""
    # Not item_MD[position]: the backward of indexing is several times slower on CPU.
    return functional.embedding(position, item_MD)


def target_scores(inputs: LossInput) -> Tensor:
    """Return ``(R,)`` scores of the targets."""
    if inputs.score_R is not None:
        return inputs.score_R
    return inputs.score(inputs.user_RD, gather(inputs.item_MD, inputs.target_R))


def negative_scores(inputs: LossInput, negative: Tensor) -> Tensor:
    """Return ``(R, N)`` scores of negatives ``(N,)`` or ``(R, N)``."""
    item = gather(inputs.item_MD, negative)
    if not inputs.retrieval:
        return inputs.score(inputs.user_RD[:, None], item)
    if negative.dim() == 1:
        return inputs.user_RD @ item.T
    return torch.bmm(item, inputs.user_RD[:, :, None]).squeeze(2)


def is_target(inputs: LossInput, negative: Tensor) -> Tensor:
    """Return ``(R, N)`` bool: whether a negative is the row's own target. The batch's items are distinct."""
    return negative == inputs.target_R[:, None]


def repeat_parts(inputs: LossInput, temperature: float) -> tuple[Tensor, Tensor]:
    """Return ``(R,)`` each: the log mass of the items that may come back, and the target's own logit among them.

    Raises:
        ValueError: If the loss has a temperature of its own: a ranking would compare other scores than the loss did.
    """
    assert inputs.repeats is not None
    if temperature != 1:
        raise ValueError(
            f"temperature must be 1 where the model has a repeat term, got {temperature}: give the model the "
            "temperature instead, so that rankings compare the same scores"
        )
    return repeat_mass(inputs.repeats), repeat_logit_of(inputs.repeats, inputs.target_R)


def mean_over(value_RN: Tensor, drop_RN: Tensor) -> Tensor:
    """Return ``(R,)`` means over the entries that are not dropped; 0 where all are."""
    count_R = (~drop_RN).sum(dim=1).clamp(min=1)
    return value_RN.masked_fill(drop_RN, 0.0).sum(dim=1) / count_R


def weighted(loss_R: Tensor, inputs: LossInput) -> Tensor:
    """Return ``sum(weight * loss) / total_weight``; 0, with a gradient, where there is no row."""
    return (inputs.weight_R * loss_R).sum() / inputs.total_weight
