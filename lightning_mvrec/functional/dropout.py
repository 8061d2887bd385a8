"""Dropout that is quick on CPU, where drawing the mask costs more than the layer around it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

LEVELS = 2**16


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Set elements to 0 with a probability and scale up the others, so that the mean stays.

    On CPU one 64-bit random number serves four elements, which makes the mask about five times cheaper than that of
    ``torch.nn.functional.dropout``; the probability is rounded to a multiple of ``1 / 65536`` and the scale fits the
    rounded one. Elsewhere the two are the same.

    Args:
        x: ``(...)`` float.
        probability: In ``[0, 1)``.
        training: Whether to do anything.

    Returns:
        ``(...)``.

    Raises:
        ValueError: If ``probability`` is not in ``[0, 1)``.

    Example:
        >>> dropped = dropout(torch.ones(1000), 0.5)
        >>> sorted(set(dropped.tolist()))
        [0.0, 2.0]
    """
    _check(probability)
    if not training or probability == 0.0:
        return x
    if x.device.type != "cpu":
        return functional.dropout(x, probability)
    result: Tensor = _Dropped.apply(x, *_draw(x, probability))
    return result


def relu_dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Return ``dropout(relu(x))``, on CPU with nothing but the result kept for the backward pass.

    Where the result is 0, either was; everywhere else the gradient is the scale. The values are those of the two in
    turn, and so are the gradients.

    Args:
        x: ``(...)`` float.
        probability: In ``[0, 1)``.
        training: Whether to drop anything.

    Returns:
        ``(...)``.

    Raises:
        ValueError: If ``probability`` is not in ``[0, 1)``.

    Example:
        >>> relu_dropout(torch.tensor([-1.0, 2.0]), 0.5, training=False).tolist()
        [0.0, 2.0]
    """
    _check(probability)
    if not training or probability == 0.0 or x.device.type != "cpu":
        return dropout(functional.relu(x), probability, training)
    result: Tensor = _ReluDropped.apply(x, *_draw(x, probability))
    return result


def _check(probability: float) -> None:
    if not 0.0 <= probability < 1.0:
        raise ValueError(f"probability must be in [0, 1), got {probability}")


def _draw(x: Tensor, probability: float) -> tuple[Tensor, int, float]:
    """Return a 16-bit number for each element, the least one that keeps its element, and the scale."""
    dropped = round(probability * LEVELS)
    if dropped == LEVELS:  # a probability that rounds to 1 would leave nothing to scale
        dropped -= 1
    draw = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    draw = draw.view(torch.int16)[: x.numel()].view(x.shape)
    return draw, dropped - LEVELS // 2, LEVELS / (LEVELS - dropped)


class _Dropped(Function):
    """``x * (draw >= least) * scale``, keeping the draws for the backward pass: half the memory of a mask of floats."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: Tensor, least: int, scale: float) -> Tensor:
        ctx.save_for_backward(draw)
        ctx.least, ctx.scale = least, scale
        return _keep(x, draw, least, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (draw,) = ctx.saved_tensors
        return _keep(grad, draw, ctx.least, ctx.scale), None, None, None


class _ReluDropped(Function):
    """``relu(x) * (draw >= least) * scale``; its backward pass reads from the result what passed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, draw: Tensor, least: int, scale: float) -> Tensor:
        result = _keep(x, draw, least, scale).relu_()
        ctx.save_for_backward(result)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (result,) = ctx.saved_tensors
        mask = torch.gt(result, 0, out=torch.empty_like(result))
        return mask.mul_(grad).mul_(ctx.scale), None, None, None


def _keep(x: Tensor, draw: Tensor, least: int, scale: float) -> Tensor:
    # Compared straight into floats: on CPU that takes less than half the time of a comparison into booleans.
    mask = torch.ge(draw, least, out=torch.empty(draw.shape, dtype=x.dtype))
    return (x * mask).mul_(scale)


class Dropout(nn.Module):
    """Module form of :func:`dropout`.

    Args:
        probability: In ``[0, 1)``.

    Raises:
        ValueError: If ``probability`` is not in ``[0, 1)``.

    Example:
        >>> Dropout(0.5).eval()(torch.ones(2)).tolist()
        [1.0, 1.0]
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        _check(probability)
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Drop in training, pass through otherwise."""
        return dropout(x, self.probability, self.training)

    def extra_repr(self) -> str:
        """Show the probability."""
        return str(self.probability)


class ReluDropout(Dropout):
    """Module form of :func:`relu_dropout`.

    Args:
        probability: In ``[0, 1)``.

    Raises:
        ValueError: If ``probability`` is not in ``[0, 1)``.

    Example:
        >>> ReluDropout(0.5).eval()(torch.tensor([-1.0, 2.0])).tolist()
        [0.0, 2.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        """Cut below 0 always, drop in training."""
        return relu_dropout(x, self.probability, self.training)
