"""Where a target stands in the whole catalogue: the number every ranking metric is made of.

B rows (one (user, target) pair each), I item-table rows, D embedding width, S seen entries over all rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

MISS = 2**62
"""Rank of a target outside the catalogue (row 0): beyond every cut-off."""


def ranks(
    score_BI: Tensor,
    target_B: Tensor,
    seen_row: Tensor | None = None,
    seen_lengths_B: Tensor | None = None,
    tie_break_I: Tensor | None = None,
) -> Tensor:
    """Return the rank of each row's target among the catalogue, 1 being the best.

    The rank is 1 plus the number of OTHER items that are not clearly below the target: ties count against the model,
    so that a model which scores everything alike is ranked last, not first. A NaN is not below anything and nothing
    is below a NaN: both rank a diverged model last. Row 0 ("unknown") is never ranked; an item that the row has seen
    is left out, unless it is the target itself.

    Args:
        score_BI: Scores of every item-table row, row 0 included.
        target_B: Item-table row of the target; 0 is a target outside the catalogue: its rank is ``MISS``.
        seen_row: Item-table rows to leave out, jagged over ``B``; repeated entries and row 0 are harmless.
        seen_lengths_B: How many of ``seen_row`` each row owns.
        tie_break_I: Second key, higher being better: of items with the target's score only those with at least the
            target's key count. For count-based models, whose scores are mostly equal; None counts every tie.

    Shape:
        - score_BI: ``(B, I)`` float; target_B: ``(B,)`` int64; seen_row: ``(S,)`` int64; seen_lengths_B: ``(B,)`` int64
          with sum ``S``; tie_break_I: ``(I,)``.
        - output: ``(B,)`` int64.

    Raises:
        ValueError: If a target is not a row of the table, or only one of the two seen tensors is given.

    Example:
        >>> score_BI = torch.tensor([[9.0, 3.0, 3.0, 1.0]])
        >>> ranks(score_BI, torch.tensor([1])).tolist()
        [2]
        >>> ranks(score_BI, torch.tensor([1]), seen_row=torch.tensor([2]), seen_lengths_B=torch.tensor([1])).tolist()
        [1]
    """
    check_targets(target_B, score_BI.shape[1])
    target_score_B1 = score_BI.gather(1, target_B[:, None])
    ahead_BI = ~(score_BI < target_score_B1)
    if tie_break_I is not None:
        tie_BI = score_BI == target_score_B1
        ahead_BI &= ~(tie_BI & (tie_break_I < tie_break_I[target_B][:, None]))
    ahead_BI[:, 0] = False
    ahead_BI.scatter_(1, target_B[:, None], False)
    if seen_row is not None or seen_lengths_B is not None:
        user_S, row_S = seen_entries(seen_row, seen_lengths_B)
        ahead_BI[user_S, row_S] = False
    return to_ranks(ahead_BI.sum(1), target_B)


def to_ranks(ahead_B: Tensor, target_B: Tensor) -> Tensor:
    """Return ranks from the number of items ahead of each target; ``MISS`` where the target is row 0.

    Example:
        >>> to_ranks(torch.tensor([0, 4, 0]), torch.tensor([7, 8, 0])).tolist() == [1, 5, MISS]
        True
    """
    return torch.where(target_B == 0, MISS, ahead_B + 1)


def seen_entries(seen_row: Tensor | None, seen_lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return ``(S,)`` row numbers in ``[0, B)`` and ``(S,)`` item-table rows of jagged seen items.

    Raises:
        ValueError: If only one of the two is given, or the lengths do not sum to the number of entries.
    """
    if seen_row is None or seen_lengths_B is None:
        raise ValueError("seen_row and seen_lengths_B must be given together, got one of them")
    user_S = torch.repeat_interleave(seen_lengths_B.long())
    if user_S.numel() != seen_row.numel():
        raise ValueError(f"seen_lengths_B must sum to the {seen_row.numel()} entries of seen_row, got {user_S.numel()}")
    return user_S, seen_row.long()


def check_targets(target_B: Tensor, num_items: int) -> None:
    """Raise where a target is no row of a table of ``num_items`` rows.

    Raises:
        ValueError: If it is not.
    """
    if target_B.numel() and (int(target_B.min()) < 0 or int(target_B.max()) >= num_items):
        low, high = int(target_B.min()), int(target_B.max())
        raise ValueError(f"target_B must be item-table rows in [0, {num_items}), got rows from {low} to {high}")
