"""Gradients of looked-up rows, summed over all ids that mean the same row.

N ids, S gradients, U distinct rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor


def sum_by_row(
    ids_N: Tensor, source_N: Tensor | None, gradient_SD: Tensor, weight_N: Tensor | None = None, size: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the distinct ids in rising order and, for each, the sum of the gradients that its occurrences point at.

    Args:
        ids_N: The ids, at least one, each in ``[0, 2^31)``.
        source_N: Which gradient each id has; None: id ``n`` has gradient ``n``.
        gradient_SD: The gradients.
        weight_N: What each id's gradient is multiplied by.
        size: The most ids that come at once; None: all of them.

    Shape:
        - output: ``(U,)`` and ``(U, D)``, at most ``size`` of them.

    Example:
        >>> list(sum_by_row(torch.tensor([7, 2, 7]), None, torch.tensor([[1.0], [2.0], [3.0]])))
        [(tensor([2, 7]), tensor([[2.],
                [4.]]))]
    """
    sorted_N, order_N = _sort(ids_N)
    rows_U, count_U = torch.unique_consecutive(sorted_N, return_counts=True)
    from_N = order_N if source_N is None else source_N[order_N]
    weight_N = None if weight_N is None else weight_N[order_N].to(gradient_SD.dtype)
    first_U = count_U.cumsum(0) - count_U
    size = size or len(rows_U)
    cuts = [*first_U[::size].tolist(), len(ids_N)]
    for number, (begin, end) in enumerate(pairwise(cuts)):
        part = slice(number * size, (number + 1) * size)
        summed = torch.nn.functional.embedding_bag(
            from_N[begin:end],
            gradient_SD,
            first_U[part] - begin,
            mode="sum",
            per_sample_weights=None if weight_N is None else weight_N[begin:end],
        )
        yield rows_U[part], summed


def _sort(ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ids in rising order and where each was, equal ones in the order in which they came.

    On CPU numpy sorts ids and places as one number each, in a third of the time of torch and, for less than 32,768
    ids, which torch compares one with the other, in a seventh.
    """
    if ids_N.device.type != "cpu":
        return torch.sort(ids_N, stable=True)
    both_N = (ids_N.long() << 32).add_(torch.arange(len(ids_N)))
    both_N.numpy().sort()
    return both_N >> 32, both_N & 0xFFFFFFFF
