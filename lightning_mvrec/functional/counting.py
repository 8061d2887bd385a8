"""Ranking without a users x items matrix: count, slice by slice of the catalogue, the items ahead of each target.

B rows (one (user, target) pair each), I item-table rows of one slice, D embedding width, S seen entries over all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mvrec.functional.ranking import seen_entries

# Ones that a float32 sum counts exactly.
EXACT_SUM = 2**24


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
    user_BD, item_ID = user_BD.detach().float(), item_ID.detach().float()
    target_score_B = target_score_B.detach().float()
    seen_user_S, seen_item_S = _seen(target_B, seen_row, seen_lengths_B)
    # Some users and all items at a time where that fits, for their seen items lie side by side; else some of the items.
    users = max(1, max_elements // rows) if rows * 64 <= max_elements else batch
    step = min(max(1, max_elements // users), EXACT_SUM)
    # The same two buffers for every part: fresh memory costs a page fault for each 4 kB of it.
    buffers = user_BD.new_empty(2, min(users, batch) * min(step, rows))
    starts = torch.arange(0, batch + users, users, device=seen_user_S.device).clamp(max=batch)
    edges = torch.searchsorted(seen_user_S, starts).tolist()
    for number, start in enumerate(range(0, batch, users)):
        block, seen = slice(start, start + users), slice(edges[number], edges[number + 1])
        own_C = torch.arange(len(target_B[block]), device=target_B.device)
        user_S = torch.cat([own_C, seen_user_S[seen] - start])
        row_S = torch.cat([target_B[block].long(), seen_item_S[seen]]) - first_row
        here_S = (row_S >= 0) & (row_S < rows)
        count_B[block] = _count(
            user_BD[block], item_ID, target_score_B[block], user_S[here_S], row_S[here_S], step, first_row == 0, buffers
        )
    return count_B


def _count(
    user_BD: Tensor,
    item_ID: Tensor,
    target_score_B: Tensor,
    user_S: Tensor,
    row_S: Tensor,
    step: int,
    skip_first: bool,
    buffers: Tensor,
) -> Tensor:
    """Count the items ahead, ``step`` at a time, but for the pairs given and, if asked, the first item."""
    rows = item_ID.shape[0]
    edges = [0, len(row_S)]
    if step < rows:
        row_S, order_S = row_S.sort()
        user_S = user_S[order_S]
        starts = torch.arange(0, rows + step, step, device=row_S.device).clamp(max=rows)
        edges = torch.searchsorted(row_S, starts).tolist()
    count_B = torch.zeros(user_BD.shape[0], dtype=torch.int64, device=user_BD.device)
    for number, start in enumerate(range(0, rows, step)):
        entries = slice(edges[number], edges[number + 1])
        item_CD = item_ID[start : start + step]
        below_BC = _below(user_BD, item_CD, target_score_B, user_S[entries], row_S[entries] - start, buffers)
        if skip_first and start == 0:
            below_BC[:, 0] = 1.0
        count_B += item_CD.shape[0] - below_BC.sum(1).long()
    return count_B


def _below(
    user_BD: Tensor, item_CD: Tensor, target_score_B: Tensor, user_S: Tensor, column_S: Tensor, buffers: Tensor
) -> Tensor:
    """Return ``(B, C)`` as if by :func:`dot_scores`: in float32 first, again where that leaves a doubt.

    1.0 where an item is below the target, and for the pairs given; else 0.0. Floats, because on CPU a comparison into
    them and their sum take a quarter of the time of booleans.
    """
    target_score_B1 = target_score_B[:, None]
    shape = torch.Size((user_BD.shape[0], item_CD.shape[0]))
    # A matrix product in TF32 is too coarse to leave but few doubts; autocast would make one of bfloat16.
    coarse = user_BD.is_cuda and torch.get_float32_matmul_precision() != "highest"
    if not coarse:
        above_BC, distance_BC = (buffer[: shape.numel()].view(shape) for buffer in buffers)
        with torch.autocast(user_BD.device.type, enabled=False):
            torch.mm(user_BD, item_CD.T, out=above_BC).sub_(target_score_B1)
        above_BC[user_S, column_S] = -torch.inf
        # A float32 sum of D products is off by at most D * 2**-24 * |u| |i|; twice that for the subtraction.
        width = max(8, user_BD.shape[1])
        slack_B = 2**-23 * width * user_BD.norm(dim=1) * item_CD.norm(dim=1).max()
        torch.abs(above_BC, out=distance_BC)
        unsure_N = (~(distance_BC.amin(1) > slack_B)).nonzero().squeeze(1)  # a row with a NaN is unsure of the others
        place_M, column_M = (distance_BC[unsure_N] <= slack_B[unsure_N, None]).nonzero(as_tuple=True)
        if place_M.numel() <= above_BC.numel() // 32:
            below_BC = torch.lt(above_BC, 0, out=distance_BC)
            user_M = unsure_N[place_M]
            score_M = dot_scores(user_BD[user_M], item_CD[column_M])
            below_BC[user_M, column_M] = (score_M < target_score_B[user_M]).float()
            return below_BC
    below_BC = ((user_BD.double() @ item_CD.double().T).float() < target_score_B1).float()
    below_BC[user_S, column_S] = 1.0
    return below_BC


def _seen(target_B: Tensor, seen_row: Tensor | None, seen_lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return owner and row of the seen items, by owner; two empty tensors where none are given."""
    if seen_row is None and seen_lengths_B is None:
        none = torch.zeros(0, dtype=torch.int64, device=target_B.device)
        return none, none
    return seen_entries(seen_row, seen_lengths_B)
