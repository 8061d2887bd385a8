"""Ranking without a users x items matrix: count, slice by slice of the catalogue, the items ahead of each target.

B rows (one (user, target) pair each), I item-table rows of one slice, D embedding width, S seen entries over all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mvrec.functional.ranking import seen_entries


def dot_scores(user_BD: Tensor, item_BD: Tensor) -> Tensor:
    """Return ``(B,)`` dot products, as :func:`count_at_least` takes them.

    Products of float32 numbers are summed in float64 and rounded once: the order of the sum, which differs between
    matrix products of different shapes, shows no more (but for one score in about 10**8). Items with equal vectors so
    tie, and a score counted on one rank equals that computed on another.
    """
    return (user_BD.double() * item_BD.double()).sum(-1).float()


def count_at_least(
    user_BD: Tensor,
    item_ID: Tensor,
    target_score_B: Tensor,
    target_B: Tensor,
    first_row: int = 0,
    seen_row: Tensor | None = None,
    seen_lengths_B: Tensor | None = None,
    max_elements: int = 2**20,
) -> Tensor:
    """Count the items of rows ``[first_row, first_row + I)`` that are ahead of each row's target.

    Counts of slices that together cover the catalogue sum to what :func:`~lightning_mvrec.functional.ranks` counts
    on the full score matrix, whoever holds which slice: ``to_ranks(sum of the counts, target_B)`` are the ranks. An
    item is ahead if it is not clearly below the target: ties and NaN count against the model. Row 0, the target
    itself and the row's seen items never count.

    Args:
        user_BD: User states.
        item_ID: Item vectors of the slice, in table order.
        target_score_B: Scores of the targets, from :func:`dot_scores`.
        target_B: Item-table rows of the targets, in or outside the slice; 0 for one outside the catalogue.
        first_row: Item-table row of ``item_ID[0]``.
        seen_row: Item-table rows to leave out, jagged over ``B``, of any slice; repeated entries are harmless.
        seen_lengths_B: How many of ``seen_row`` each row owns.
        max_elements: Scores held at a time, above 0.

    Shape:
        - user_BD: ``(B, D)``; item_ID: ``(I, D)``; target_score_B, target_B, seen_lengths_B: ``(B,)``;
          seen_row: ``(S,)``.
        - output: ``(B,)`` int64.

    Raises:
        ValueError: If ``max_elements`` is not above 0, or only one of the two seen tensors is given.

    Example:
        >>> user_BD, item_ID = torch.tensor([[1.0]]), torch.tensor([[5.0], [1.0], [2.0], [3.0]])
        >>> target_score_B = dot_scores(user_BD, item_ID[[2]])
        >>> count_at_least(user_BD, item_ID, target_score_B, torch.tensor([2])).tolist()  # row 3; never row 0
        [1]
    """
    if max_elements < 1:
        raise ValueError(f"max_elements must be above 0 scores, got {max_elements}")
    batch, rows = user_BD.shape[0], item_ID.shape[0]
    count_B = torch.zeros(batch, dtype=torch.int64, device=user_BD.device)
    if batch == 0 or rows == 0:
        return count_B
    user_S, row_S = _never_ahead(target_B, seen_row, seen_lengths_B)
    row_S, order_S = row_S.sort()
    user_S = user_S[order_S]
    user_BD, target_score_B = user_BD.float(), target_score_B.float()
    step = max(1, max_elements // batch)
    starts = torch.arange(0, rows + step, step, device=row_S.device).clamp(max=rows)
    edges = torch.searchsorted(row_S, starts + first_row).tolist()
    for number, start in enumerate(range(0, rows, step)):
        ahead_BC = _not_below(user_BD, item_ID[start : start + step].float(), target_score_B)
        entries = slice(edges[number], edges[number + 1])
        ahead_BC[user_S[entries], row_S[entries] - (first_row + start)] = False
        if start + first_row == 0:
            ahead_BC[:, 0] = False
        count_B += ahead_BC.sum(1)
    return count_B


def _not_below(user_BD: Tensor, item_CD: Tensor, target_score_B: Tensor) -> Tensor:
    """Return ``(B, C)`` bool as if by :func:`dot_scores`: in float32 first, again where that leaves a doubt."""
    target_score_B1 = target_score_B[:, None]
    # A matrix product in TF32 is too coarse to leave but few doubts; autocast would make one of bfloat16.
    coarse = user_BD.is_cuda and torch.get_float32_matmul_precision() != "highest"
    if not coarse:
        with torch.autocast(user_BD.device.type, enabled=False):
            above_BC = user_BD @ item_CD.T - target_score_B1
        # A float32 sum of D products is off by at most D * 2**-24 * |u| |i|; twice that for the subtraction.
        width = max(8, user_BD.shape[1])
        slack_B1 = 2**-23 * width * user_BD.norm(dim=1, keepdim=True) * item_CD.norm(dim=1).max()
        user_N, item_N = (above_BC.abs() <= slack_B1).nonzero(as_tuple=True)
        if user_N.numel() <= above_BC.numel() // 32:
            ahead_BC = ~(above_BC < 0)
            score_N = dot_scores(user_BD[user_N], item_CD[item_N])
            ahead_BC[user_N, item_N] = ~(score_N < target_score_B[user_N])
            return ahead_BC
    return ~((user_BD.double() @ item_CD.double().T).float() < target_score_B1)


def _never_ahead(target_B: Tensor, seen_row: Tensor | None, seen_lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """The (row number, item-table row) pairs that count for nobody: each target itself, and the seen items."""
    user_S, row_S = torch.arange(target_B.shape[0], device=target_B.device), target_B.long()
    if seen_row is None and seen_lengths_B is None:
        return user_S, row_S
    more_user_S, more_row_S = seen_entries(seen_row, seen_lengths_B)
    return torch.cat([user_S, more_user_S]), torch.cat([row_S, more_row_S])
