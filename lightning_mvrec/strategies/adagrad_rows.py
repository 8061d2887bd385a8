"""Element-wise Adagrad of a batch's rows on CPU, many numbers at a time.

fbgemm's CPU kernel of this optimizer takes one number after the other through a square root and a division in double
precision. Here the rows of a batch are updated as a replicated table is, some at a time: gathered, changed while they
are in the cache, and put back. Results differ in the last digit.

F features, B bags of a feature, N ids, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import Tensor

from lightning_mvrec.strategies.optimizers import Adagrad
from lightning_mvrec.strategies.row_gradients import Layout, Lookup
from lightning_mvrec.strategies.row_sums import sum_by_row

#: Rows updated at once: with their state and gradient they fit into the second cache.
BLOCK = 1024


def speed_up_adagrad(kernel: Any) -> None:
    """Let a kernel of fbgemm on CPU update its tables here, if Adagrad of float32 bags is all that it does."""
    plain = (
        kernel.optimizer == EmbOptimType.EXACT_ADAGRAD
        and kernel.pooling_mode in (PoolingMode.SUM, PoolingMode.MEAN)
        and kernel.weights_precision == SparseType.FP32
        and kernel.output_dtype == SparseType.FP32.as_int()
        and not kernel.optimizer_args.gradient_clipping
        and not kernel.optimizer_args.max_norm
        and not kernel.optimizer_args.weight_decay
    )
    if plain:
        kernel.forward = _Forward(kernel)


class _Forward:
    """The forward pass of a kernel, whose backward pass updates the tables."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._forward = kernel.forward
        self._layout = Layout(kernel)
        # Without an argument that is trained, autograd would ask for no backward pass.
        self._trained = torch.empty(0, requires_grad=True)

    def __call__(self, indices: Tensor, offsets: Tensor, **others: Any) -> Tensor:
        if not torch.is_grad_enabled() or any(value is not None for value in others.values()):
            return self._forward(indices, offsets, **others)
        return _Lookup.apply(self._trained, self, indices, offsets)

    def look_up(self, indices: Tensor, offsets: Tensor) -> tuple[Tensor, float]:
        """Return sums or means over bags, and the learning rate that their gradient will be used with."""
        return self._forward(indices, offsets), self._kernel.get_learning_rate()

    def update(self, ids_N: Tensor, offsets: Tensor, gradient: Tensor, lr: float) -> None:
        """Train on the gradient of what a lookup gave."""
        if not len(ids_N):
            return
        lookup = Lookup(ids_N, offsets, None, len(self._kernel.feature_table_map))
        lengths_FB, parts, columns = lookup.lengths_FB, lookup.parts, self._layout.columns
        if self._kernel.pooling_mode == PoolingMode.MEAN:
            shares_BF = lengths_FB.t().clamp(min=1).reciprocal()
        optimizer = Adagrad(lr, self._kernel.optimizer_args.eps)
        weights = self._kernel.split_embedding_weights()
        sums = [states[0] for states in self._kernel.split_optimizer_states()]
        for table, mine in enumerate(self._layout.tables):
            ids = _joined([ids_N[parts[feature]] for feature in mine])
            if not len(ids):
                continue
            gradients = [gradient[:, columns[feature] : columns[feature + 1]] for feature in mine]
            if self._kernel.pooling_mode == PoolingMode.MEAN:
                gradients = [x_BD * shares_BF[:, f, None] for x_BD, f in zip(gradients, mine, strict=True)]
            update_rows(optimizer, weights[table], sums[table], ids, _bags(lengths_FB[mine]), _joined(gradients))


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trained: Tensor, owner: _Forward, indices: Tensor, offsets: Tensor) -> Tensor:
        found, lr = owner.look_up(indices, offsets)
        ctx.update = lambda gradient: owner.update(indices, offsets, gradient, lr)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.update(gradients[0])
        return None, None, None, None


def update_rows(
    optimizer: Adagrad, weight_RD: Tensor, sum_RD: Tensor, ids_N: Tensor, bag_N: Tensor | None, gradient_BD: Tensor
) -> None:
    """Train the rows of a table that were looked up.

    Args:
        optimizer: How.
        weight_RD: The table.
        sum_RD: Its sums of squares.
        ids_N: The rows, each as often as it was looked up.
        bag_N: Which row of the gradient each has; None: each its own.
        gradient_BD: The gradient of what was looked up.
    """
    tables = weight_RD, sum_RD
    blocks = weight_RD.new_empty(2, min(BLOCK, len(ids_N)), weight_RD.shape[1]).unbind()
    table_items, block_items = [_items(x_RD) for x_RD in tables], [_items(x_UD) for x_UD in blocks]
    for rows_U, gradient_UD in sum_by_row(ids_N, bag_N, gradient_BD, size=BLOCK):
        count = len(rows_U)
        weight_UD, sum_UD = (x_UD[:count] for x_UD in blocks)
        torch.index_select(weight_RD, 0, rows_U, out=weight_UD)
        torch.index_select(sum_RD, 0, rows_U, out=sum_UD)
        optimizer.update(weight_UD, gradient_UD, {"sum": sum_UD}, optimizer.lr, 0)
        rows = rows_U.numpy()
        for to, new in zip(table_items, block_items, strict=True):
            to[rows] = new[:count]


def _items(x_RD: Tensor) -> np.ndarray[Any, Any]:
    """Return the rows as items of one array, each of which is copied in one piece; torch copies number by number."""
    return x_RD.numpy().view(f"V{x_RD.shape[1] * x_RD.element_size()}")[:, 0]


def _bags(lengths_FB: Tensor) -> Tensor | None:
    """Return the bag of each id, counted over all features, or None if every bag has one."""
    lengths = lengths_FB.flatten()
    return None if bool((lengths == 1).all()) else torch.repeat_interleave(lengths)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
