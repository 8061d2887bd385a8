"""Lightning's gradient clipping, with the sharded tables in it.

``gradient_clip_val`` with the algorithm ``norm`` (the default) knows one norm: that of the gradient of the dense
parameters, the replicated tables and the sharded ones together, as if all of them were ordinary parameters of one
process. ``value`` limits every element of the gradient, a table row's summed over all ids of the global batch that
mean it. Both are what Lightning does to a module whose tables are ``nn.Embedding``.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision

from lightning_mvrec.strategies.joined import JoinedOptimizer


def clip_tables(plugin: Precision, trainer: pl.Trainer) -> None:
    """Let a Trainer's precision plugin, which does the clipping, clip sharded tables as well. Once is enough.

    Args:
        plugin: Lightning's.
        trainer: Tells the position for messages.
    """
    if "clip_grad_by_norm" in vars(plugin):
        return
    by_norm, by_value = plugin.clip_grad_by_norm, plugin.clip_grad_by_value

    def clip_grad_by_norm(optimizer: Any, clip_val: float) -> None:
        joined = _with_sharded_tables(optimizer)
        if joined is None:
            by_norm(optimizer, clip_val)
        else:
            _clip_by_norm(joined, clip_val, trainer)

    def clip_grad_by_value(optimizer: Any, clip_val: float) -> None:
        joined = _with_sharded_tables(optimizer)
        by_value(optimizer, clip_val)
        if joined is not None:
            for kernel in joined.held:
                kernel.limit_gradients(float(clip_val))

    plugin.clip_grad_by_norm = clip_grad_by_norm  # type: ignore[method-assign]
    plugin.clip_grad_by_value = clip_grad_by_value  # type: ignore[method-assign]


def _with_sharded_tables(optimizer: Any) -> JoinedOptimizer | None:
    if isinstance(optimizer, LightningOptimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, JoinedOptimizer) or not optimizer.sharded or optimizer.clip_dense_only:
        return None
    if not optimizer.holding:
        raise RuntimeError(
            f"clip_gradients would not reach the sharded tables {optimizer.sharded}, which the backward pass has "
            "updated. Give Trainer(gradient_clip_val=...), with manual optimization let them be updated in the "
            "step: TorchRecStrategy(update_in_step=True), or say that only dense parameters are meant: "
            "TorchRecStrategy(clip_dense_only=True)"
        )
    return optimizer


@torch.no_grad()
def _clip_by_norm(optimizer: JoinedOptimizer, limit: float, trainer: pl.Trainer) -> None:
    """Scale all gradients by one factor. Every rank must call this.

    Raises:
        ValueError: On every rank, if the norm is NaN or infinite.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    device = trainer.strategy.root_device
    rows = torch.zeros((), dtype=torch.float64, device=device)
    optimizer.share()
    for kernel in optimizer.held:
        rows += kernel.square_norm()
    dist.all_reduce(rows)  # every row is on one rank of each replica group; the other gradients are the same on all
    rows /= optimizer.replicas.count if optimizer.replicas else 1
    rest = torch.nn.utils.get_total_norm([weight.grad for weight in weights]).to(device)
    norm = (rest.double().square() + rows).sqrt()
    if not torch.isfinite(norm):
        raise ValueError(
            f"gradient norm must be finite, got {float(norm)} in epoch {trainer.current_epoch}, batch "
            f"{trainer.fit_loop.epoch_loop.batch_idx}. Stopped before the optimizer step: tables and other weights are "
            "those of the last good step. Look at this batch, or use a smaller learning rate"
        )
    factor = (limit / (norm + 1e-6)).clamp(max=1.0).float()
    for weight in weights:
        assert weight.grad is not None
        weight.grad.mul_(factor.to(weight.grad.device))
    for kernel in optimizer.held:
        kernel.scale_gradients(factor)
