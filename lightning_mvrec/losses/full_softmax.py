"""Softmax over the whole catalogue, without ever holding all logits.

R rows (one (user, target) pair each), I items (row 0 is "unknown"), C rows of one chunk, D embedding width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lightning_mvrec.losses._scores import repeat_parts
from lightning_mvrec.losses.base import Loss, LossInput

# Logits held at a time where no chunk size is given. On CPU a chunk should stay in the cache (2 MB: measured fastest
# for 3,417 items among 0.5 to 64 MB); on a GPU it should be large enough to keep the device busy.
CPU_LOGITS = 2**19
GPU_LOGITS = 2**26
# A target's share below this lies next to the end of float32 numbers, which have fewer digits there.
TINY = 1e-30


class FullSoftmaxLoss(Loss):
    """Cross-entropy of the target among all items: ``log sum_i exp(s_i) - s`` with scores divided by the temperature.

    Equal to ``torch.nn.functional.cross_entropy`` over items 1 to ``I - 1``. Rows are taken in chunks; each chunk's
    gradient is computed right after its logits, and both are dropped: memory for one chunk's logits instead of several
    times ``R * I``. The gradient cannot be differentiated again. Where a model has logits for items that come back
    (:class:`~lightning_mvrec.functional.Repeats`), they take part in the same softmax.

    Args:
        temperature: What scores are divided by, above 0.
        chunk_size: Rows at a time, at least 1; None: as many as suit the device.

    Shape:
        - output: scalar, ``sum_R(weight * loss) / total_weight``.

    Raises:
        ValueError: If an argument is out of its range, the batch does not hold the whole catalogue, or the model's
            score is not the dot product, or a model with repeats meets a temperature that is not its own.

    Example:
        >>> one, items = torch.ones(1), torch.zeros(5, 1)  # "unknown" and four items
        >>> inputs = LossInput(one[:, None], items, torch.tensor([1]), one, one, 1.0, catalogue=True)
        >>> round(FullSoftmaxLoss()(inputs).item(), 4)  # log(4)
        1.3863
    """

    reads_repeats = True

    def __init__(self, temperature: float = 1.0, chunk_size: int | None = None) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 row, got {chunk_size}")
        self.temperature = temperature
        self.chunk_size = chunk_size

    def forward(self, inputs: LossInput) -> Tensor:
        """Return the loss."""
        if not inputs.catalogue:
            raise ValueError(
                "FullSoftmaxLoss needs the whole catalogue in every batch, got distinct items only: set "
                "`catalogue: true` in the data module, or use SampledSoftmaxLoss where the catalogue is too large"
            )
        if not inputs.retrieval:
            raise ValueError("FullSoftmaxLoss needs a model whose score is the dot product; use SampledSoftmaxLoss")
        mass_R = own_R = None
        if inputs.repeats is not None:
            mass_R, own_R = repeat_parts(inputs, self.temperature)
        user_RD = inputs.user_RD if self.temperature == 1 else inputs.user_RD / self.temperature
        chunk_size = self.chunk_size
        if chunk_size is None:
            logits = GPU_LOGITS if user_RD.is_cuda else CPU_LOGITS
            chunk_size = max(1, logits // inputs.item_MD.shape[0])
        parts = (user_RD, inputs.item_MD, mass_R, own_R)
        needs_gradient = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts)
        total: Tensor = _CatalogueCrossEntropy.apply(
            user_RD, inputs.item_MD, inputs.target_R, inputs.weight_R, mass_R, own_R, chunk_size, needs_gradient
        )
        return total / inputs.total_weight


class _CatalogueCrossEntropy(Function):
    """``sum_R(weight * loss)``, with the gradients of users and items computed on the way.

    With repeats, ``mass_R`` is the log of the sum of their exponentials and ``own_R`` the target's own logit, -inf
    where it has none.
    """

    @staticmethod
    def forward(
        ctx: Any,
        user_RD: Tensor,
        item_MD: Tensor,
        target_R: Tensor,
        weight_R: Tensor,
        mass_R: Tensor | None,
        own_R: Tensor | None,
        chunk_size: int,
        needs_gradient: bool,
    ) -> Tensor:
        # Autocast would convert the items once a chunk; the users' type decides the type of the products instead.
        with torch.autocast(user_RD.device.type, enabled=False):
            user_RD = user_RD.detach()
            item_ID = item_MD.detach()[1:].to(user_RD.dtype)  # without row 0
            item_DI = item_ID.T.contiguous()
            target_R = (target_R - 1).clamp(min=0)  # rows of weight 0 may point anywhere
            exact = torch.promote_types(user_RD.dtype, torch.float32)  # of sums and exponentials
            total = torch.zeros((), dtype=exact, device=user_RD.device)
            grad_user_RD = torch.empty_like(user_RD)
            grad_item_MD = torch.zeros(item_MD.shape, dtype=exact, device=item_MD.device)
            grad_mass_R = None if mass_R is None else torch.empty_like(mass_R)
            grad_own_R = None if own_R is None else torch.empty_like(own_R)
            # The same two buffers for every chunk: fresh memory costs a page fault for each 4 kB of it.
            shape = (min(chunk_size, user_RD.shape[0]), item_ID.shape[0])
            logit_buffer, share_buffer = user_RD.new_empty(shape), user_RD.new_empty(shape, dtype=exact)
            for start in range(0, user_RD.shape[0], chunk_size):
                rows = slice(start, start + chunk_size)
                user_CD, target_C1, weight_C1 = user_RD[rows], target_R[rows, None], weight_R[rows, None].to(exact)
                logit_CI = torch.mm(user_CD, item_DI, out=logit_buffer[: len(user_CD)]).to(exact)
                share_CI = torch.softmax(logit_CI, dim=1, out=share_buffer[: len(user_CD)])
                log_sum_C1, score_C1 = _log_sum_and_score(logit_CI, share_CI, target_C1)
                pull_C1 = torch.full_like(weight_C1, -1.0)
                if mass_R is not None and own_R is not None and grad_mass_R is not None and grad_own_R is not None:
                    mass_C1, own_C1 = mass_R[rows, None].to(exact), own_R[rows, None].to(exact)
                    joint_C1, both_C1 = torch.logaddexp(log_sum_C1, mass_C1), torch.logaddexp(score_C1, own_C1)
                    pull_C1 = -(score_C1 - both_C1).exp()
                    grad_mass_R[rows] = (weight_C1 * (mass_C1 - joint_C1).exp()).squeeze(1)
                    grad_own_R[rows] = (-weight_C1 * (own_C1 - both_C1).exp()).squeeze(1)
                    share_CI *= (log_sum_C1 - joint_C1).exp()
                    log_sum_C1, score_C1 = joint_C1, both_C1
                total += (weight_C1 * (log_sum_C1 - score_C1)).sum()
                if needs_gradient:
                    grad_CI = share_CI.scatter_add_(1, target_C1, pull_C1).to(user_RD.dtype)
                    torch.mm(grad_CI, item_ID, out=grad_user_RD[rows]).mul_(weight_C1)
                    weighted_CD = (user_CD * weight_C1).to(user_RD.dtype)
                    if user_RD.dtype == exact:
                        grad_item_MD[1:].addmm_(grad_CI.T, weighted_CD)
                    else:
                        grad_item_MD[1:] += grad_CI.T @ weighted_CD
        if needs_gradient:
            ctx.save_for_backward(grad_user_RD, grad_item_MD.to(item_MD.dtype), grad_mass_R, grad_own_R)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_user_RD, grad_item_MD, grad_mass_R, grad_own_R = ctx.saved_tensors
        return (
            (grad * grad_user_RD).to(grad_user_RD.dtype),
            (grad * grad_item_MD).to(grad_item_MD.dtype),
            None,
            None,
            None if grad_mass_R is None else grad * grad_mass_R,
            None if grad_own_R is None else grad * grad_own_R,
            None,
            None,
        )


def _log_sum_and_score(logit_CI: Tensor, share_CI: Tensor, target_C1: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(C, 1)`` log of the sum of exponentials of a row's logits, and the target's logit."""
    score_C1, share_C1 = logit_CI.gather(1, target_C1), share_CI.gather(1, target_C1)
    # The target's share gives the sum without another pass over the logits. NaN takes the other way and stays NaN.
    if bool((share_C1 >= TINY).all()):
        return score_C1 - share_C1.log(), score_C1
    return logit_CI.logsumexp(1, keepdim=True), score_C1
