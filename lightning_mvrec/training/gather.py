"""Rows of every rank, joined: for evaluation, where ranks rarely hold the same number.

N rows on this rank, A rows on all ranks together.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> tuple[int, int]:
    """Return ``(rank, number of ranks)``; ``(0, 1)`` outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(*tensors: Tensor) -> tuple[list[Tensor], slice]:
    """Join tensors of the same number of rows over all ranks, in rank order.

    Args:
        tensors: ``(N, ...)`` each; ``N`` may differ between ranks, the rest of the shape and the type may not.

    Returns:
        The joined tensors ``(A, ...)``, the same on every rank, and which of their rows are this rank's.
    """
    rank, size = world()
    count = tensors[0].shape[0]
    if size == 1:
        return list(tensors), slice(0, count)
    counts = [torch.zeros(1, dtype=torch.int64, device=tensors[0].device) for _ in range(size)]
    dist.all_gather(counts, torch.tensor([count], device=tensors[0].device))
    numbers = [int(number) for number in counts]
    longest = max(numbers)
    joined = []
    for tensor in tensors:
        padded = tensor.new_zeros((longest, *tensor.shape[1:]))
        padded[:count] = tensor
        parts = [torch.empty_like(padded) for _ in range(size)]
        dist.all_gather(parts, padded)
        joined.append(torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)]))
    first = sum(numbers[:rank])
    return joined, slice(first, first + count)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the element-wise sum over all ranks; ``tensor`` is changed in place."""
    if world()[1] > 1:
        dist.all_reduce(tensor)
    return tensor
