"""Rows of a matrix by number, many of them more than once, with a backward pass that is cheap on CPU.

M rows, D embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def take_rows(x_MD: Tensor, index: Tensor) -> Tensor:
    """Take rows by number; number ``M`` itself stands for a row of zeros.

    This is ``embedding`` with a padding row. On CPU its backward pass sorts the numbers and adds up each row's
    gradients in one go; torch's own adds them one after the other, into memory in any order, and takes longer.

    Args:
        x_MD: ``(M, D)`` float.
        index: int64 of any shape in ``[0, M]``.

    Returns:
        ``(*index.shape, D)``.

    Example:
        >>> x = torch.tensor([[1.0], [2.0]], requires_grad=True)
        >>> rows = take_rows(x, torch.tensor([[1, 0], [1, 2]]))
        >>> rows.flatten().tolist()
        [2.0, 1.0, 2.0, 0.0]
        >>> rows.sum().backward()
        >>> x.grad.flatten().tolist()
        [1.0, 2.0]
    """
    if x_MD.device.type == "cpu" and x_MD.requires_grad and torch.is_grad_enabled():
        taken: Tensor = _TakeRows.apply(x_MD, index)
        return taken
    # A padding row whose gradient is skipped.
    return functional.embedding(index, functional.pad(x_MD, (0, 0, 0, 1)), padding_idx=x_MD.shape[0])


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, index: Tensor) -> Tensor:
        index_N = index.flatten()
        ctx.index_N = index_N
        ctx.real_N = None
        ctx.num_rows = x_MD.shape[0]
        real_N = index_N != ctx.num_rows
        if real_N.all():
            return functional.embedding(index, x_MD)
        ctx.real_N = real_N
        # A bag of one row each, an empty one for "none": a copy of the matrix with a row more would cost more.
        first_N = functional.pad(real_N.cumsum(0), (1, 0))
        return _sums(index_N[real_N], x_MD, first_N).view(*index.shape, x_MD.shape[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        index_N = ctx.index_N if ctx.real_N is None else ctx.index_N[ctx.real_N]
        first_M = functional.pad(torch.bincount(index_N, minlength=ctx.num_rows).cumsum(0), (1, 0))
        order_N = index_N.argsort()
        if ctx.real_N is not None:
            order_N = ctx.real_N.nonzero().squeeze(1)[order_N]
        return _sums(order_N, gradients[0].reshape(len(ctx.index_N), gradients[0].shape[-1]), first_M), None


def _sums(index: Tensor, x_MD: Tensor, first: Tensor) -> Tensor:
    return functional.embedding_bag(index, x_MD, first, mode="sum", include_last_offset=True)
