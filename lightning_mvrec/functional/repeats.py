"""Scores of the items that a row's user has met before, beside those of the whole catalogue.

R rows (one (user, target) pair each), S entries over all rows (distinct items of a row's past), M items, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mvrec.functional.counting import dot_scores
from lightning_mvrec.functional.ranking import seen_entries


@dataclass
class Repeats:
    """What each row's own past says of its items: one more logit for each of them.

    An item's score is ``log(exp(s) + exp(logit))`` with its dot product ``s``: one softmax over the catalogue and the
    past together (Gu et al., "Incorporating Copying Mechanism in Sequence-to-Sequence Learning", ACL 2016, eq. 4).

    Args:
        item_S: ``(S,)`` int64, which item; distinct within a row, rows one after the other.
        lengths_R: ``(R,)`` int64, entries of each row.
        logit_S: ``(S,)`` float.
    """

    item_S: Tensor
    lengths_R: Tensor
    logit_S: Tensor

    @property
    def row_S(self) -> Tensor:
        """``(S,)`` int64, the row that each entry belongs to."""
        return torch.repeat_interleave(self.lengths_R, output_size=self.item_S.shape[0])


def repeat_mass(repeats: Repeats) -> Tensor:
    """Return ``(R,)`` log of the sum of ``exp(logit)`` over each row's entries; -inf for a row without.

    Example:
        >>> repeats = Repeats(torch.tensor([4, 7]), torch.tensor([2, 0]), torch.zeros(2))
        >>> repeat_mass(repeats).exp().tolist()
        [2.0, 0.0]
    """
    return _segment_logsumexp(repeats.logit_S, repeats.row_S, repeats.lengths_R.shape[0])


def repeat_logit_of(repeats: Repeats, item_R: Tensor) -> Tensor:
    """Return ``(R,)`` the logit of one item a row; -inf where the row's past does not hold it.

    Example:
        >>> repeats = Repeats(torch.tensor([4, 7]), torch.tensor([2, 0]), torch.tensor([0.5, 2.0]))
        >>> repeat_logit_of(repeats, torch.tensor([7, 7])).tolist()
        [2.0, -inf]
    """
    row_S = repeats.row_S
    same_S = repeats.item_S == item_R[row_S]
    absent_R = repeats.logit_S.new_full(item_R.shape, -torch.inf)
    return absent_R.index_put((row_S[same_S],), repeats.logit_S[same_S])


def count_repeats(
    repeats: Repeats,
    user_RD: Tensor,
    item_ID: Tensor,
    target_score_R: Tensor,
    target_R: Tensor,
    first_row: int = 0,
    seen_row: Tensor | None = None,
    seen_lengths_R: Tensor | None = None,
) -> Tensor:
    """Count the items that their logit lifts ahead of a row's target: what a count of dot products leaves out.

    To be added to :func:`~lightning_mvrec.functional.count_at_least` of the same arguments, with scores of targets
    that contain their own logits. ``item_S`` of the repeats are item-table rows here.

    Shape:
        - user_RD: ``(R, D)``; item_ID: ``(I, D)``, item-table rows ``[first_row, first_row + I)``; target_score_R,
          target_R, seen_lengths_R: ``(R,)``; seen_row: jagged over ``R``.
        - output: ``(R,)`` int64.
    """
    row_S, item_S = repeats.row_S, repeats.item_S
    wanted_S = (item_S >= first_row) & (item_S < first_row + item_ID.shape[0]) & (item_S > 0)
    wanted_S &= item_S != target_R[row_S]
    if seen_row is not None and seen_lengths_R is not None and seen_row.numel():
        seen_owner, seen_item = seen_entries(seen_row, seen_lengths_R)
        stride = int(seen_item.max()) + 1  # an item beyond the largest seen one has not been seen
        seen_S = torch.isin(row_S * stride + item_S, seen_owner * stride + seen_item)
        wanted_S &= ~(seen_S & (item_S < stride))
    row_S, item_S, logit_S = row_S[wanted_S], item_S[wanted_S], repeats.logit_S[wanted_S]
    dot_S = dot_scores(user_RD[row_S], item_ID[item_S - first_row])
    threshold_S = target_score_R[row_S].float()
    lifted_S = ~(torch.logaddexp(dot_S, logit_S.float()) < threshold_S) & (dot_S < threshold_S)
    return torch.bincount(row_S[lifted_S], minlength=user_RD.shape[0])


def _segment_logsumexp(value_S: Tensor, segment_S: Tensor, segments: int) -> Tensor:
    top_R = value_S.new_full((segments,), -torch.inf).scatter_reduce(0, segment_S, value_S.detach(), "amax")
    base_R = torch.where(top_R.isfinite(), top_R, torch.zeros_like(top_R))
    total_R = value_S.new_zeros(segments).index_add(0, segment_S, (value_S - base_R[segment_S]).exp())
    return total_R.log() + base_R
