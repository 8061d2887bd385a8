"""What every loss reads: one object, from which each takes what it needs.

R rows (one (user, target) pair each), M distinct items of the batch, N negatives, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_mvrec.functional.repeats import Repeats


def dot(user: Tensor, item: Tensor) -> Tensor:
    """Score users ``(..., D)`` against items ``(..., D)``, element by element: ``(...)``."""
    return (user * item).sum(-1)


@dataclass
class LossInput:
    """The rows of one batch as a model scored them.

    Args:
        user_RD: ``(R, D)`` user states.
        item_MD: ``(M, D)`` vectors of the batch's distinct items; with ``catalogue`` row ``i`` is item ``i``.
        target_R: ``(R,)`` int64 positions into ``item_MD``.
        label_R: ``(R,)`` float.
        weight_R: ``(R,)`` float.
        total_weight: What a sum over rows is divided by (see ``MultiViewBatch.total_weight``).
        negative: ``(N,)`` or ``(R, N)`` int64 positions into ``item_MD``, or None.
        log_q_negative: Same shape, or None.
        log_q_R: ``(R,)`` log-probability of drawing the target as a negative, or None.
        catalogue: Whether ``item_MD`` is the whole item table, row 0 being "unknown" (never scored).
        score: Pairs of vectors ``(..., D), (..., D)`` to scores ``(...)``, broadcasting.
        retrieval: Whether ``score`` is the dot product.
        score_R: ``(R,)`` scores of the targets, where the model has computed them already (without ``repeats``).
        repeats: One more logit for every item of a row's past (positions into ``item_MD``), or None.
    """

    user_RD: Tensor
    item_MD: Tensor
    target_R: Tensor
    label_R: Tensor
    weight_R: Tensor
    total_weight: float
    negative: Tensor | None = None
    log_q_negative: Tensor | None = None
    log_q_R: Tensor | None = None
    catalogue: bool = False
    score: Callable[[Tensor, Tensor], Tensor] = dot
    retrieval: bool = True
    score_R: Tensor | None = None
    repeats: Repeats | None = None


class Loss(nn.Module):
    """A scalar from a :class:`LossInput`: ``sum_R(weight * loss) / total_weight``.

    A batch with no row (``R = 0``) gives 0 with a gradient, so that every rank takes part in the backward pass.

    Attributes:
        reads_repeats: Whether the loss takes :attr:`LossInput.repeats` into account; a model that has them is refused
            by one that does not.
    """

    reads_repeats: bool = False

    def forward(self, inputs: LossInput) -> Tensor:
        """Return the loss."""
        raise TypeError(f"{type(self).__name__} must define forward(inputs)")
