"""A loss that is not finite must not reach the tables: fused kernels would write it into them in the backward pass."""

from __future__ import annotations

import math

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor


def check_loss(loss: Tensor, trainer: pl.Trainer, device: torch.device, notice: int = 0) -> int:
    """Stop all ranks with one message if the loss of any of them is NaN or infinite. Every rank must call this.

    Args:
        loss: This rank's loss, before its backward pass.
        trainer: Tells the position.
        device: Device for the exchange between ranks; one process has none.
        notice: A number that travels along, at least 0.

    Returns:
        The largest ``notice`` of any rank.

    Raises:
        ValueError: With epoch, batch number, rank and value, on every rank.
    """
    total = float(loss.detach().float().sum())
    if dist.get_world_size() == 1:
        value, rank = total, 0
        bad = not math.isfinite(total)
    else:
        code = 0
        if not math.isfinite(total):
            code = 2 * (dist.get_rank() + 1) + int(math.isnan(total))
        told = torch.tensor([code, notice], device=device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        found, notice = told.tolist()
        bad, rank = found > 0, found // 2 - 1
        value = float("nan" if found % 2 else "inf")
    if bad:
        raise ValueError(
            f"loss must be finite, got {value} in epoch {trainer.current_epoch}, batch "
            f"{trainer.fit_loop.epoch_loop.batch_idx} on rank {rank}. Stopped before its backward pass: tables and "
            "other weights are those of the last good step. Look at this batch, or use a smaller learning rate; "
            "TorchRecStrategy(check_loss=False) trains on"
        )
    return notice
