"""Area under the ROC curve, exact and weighted, over everything or inside groups.

R rows, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor


def auc(score_R: Tensor, label_R: Tensor, weight_R: Tensor | None = None) -> Tensor:
    """Probability that a positive row scores above a negative one, a tie being half.

    Args:
        score_R: Scores; any increasing function of them gives the same area.
        label_R: Positive where above 0.5.
        weight_R: Weight of each row; None is 1 each.

    Shape:
        - all ``(R,)``; output: scalar float64; 0.5 (an uninformed score) where one of the classes is missing.

    Raises:
        ValueError: If a score with a weight is NaN: it has no place in an order.

    Example:
        >>> auc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0])).item()  # (1 + 0.5 + 1 + 1) / 4
        0.875
    """
    value_G, _, _ = _auc_by_group(score_R, label_R, weight_R, torch.zeros_like(score_R, dtype=torch.int64))
    return value_G[0] if value_G.numel() else torch.full((), 0.5, dtype=torch.float64, device=score_R.device)


def grouped_auc(score_R: Tensor, label_R: Tensor, group_R: Tensor, weight_R: Tensor | None = None) -> Tensor:
    """Mean of the areas inside each group (a user, mostly), weighted by the groups' total weights.

    Groups without a positive or without a negative row say nothing about an order and are left out; 0.5 where no
    group is left.

    Example:
        >>> score_R, label_R = torch.tensor([0.1, 0.2, 0.9, 0.8]), torch.tensor([0.0, 1.0, 0.0, 1.0])
        >>> grouped_auc(score_R, label_R, torch.tensor([1, 1, 2, 2])).item()  # (2 * 1 + 2 * 0) / 4
        0.5
    """
    value_G, weight_G, both_G = _auc_by_group(score_R, label_R, weight_R, group_R)
    weight_G = weight_G * both_G
    if not bool(both_G.any()):
        return torch.full((), 0.5, dtype=torch.float64, device=score_R.device)
    return (value_G * weight_G).sum() / weight_G.sum()


def _auc_by_group(
    score_R: Tensor, label_R: Tensor, weight_R: Tensor | None, group_R: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Area, total weight, and whether both classes are there, of each group with a row of weight above 0."""
    weight_R = torch.ones_like(score_R, dtype=torch.float64) if weight_R is None else weight_R.double()
    kept = weight_R > 0
    score_R, label_R, weight_R, group_R = score_R[kept], label_R[kept], weight_R[kept], group_R[kept]
    if bool(score_R.isnan().any()):
        raise ValueError(f"score must be a number, got NaN in {int(score_R.isnan().sum())} of {score_R.numel()} rows")
    order_R = score_R.argsort(stable=True)
    order_R = order_R[group_R[order_R].argsort(stable=True)]
    score_R, group_R = score_R[order_R], group_R[order_R]
    positive_R = torch.where(label_R[order_R] > 0.5, weight_R[order_R], 0.0)
    negative_R = weight_R[order_R] - positive_R

    # One "bin" for each distinct score of a group: inside a bin everything ties.
    _, group_R = group_R.unique_consecutive(return_inverse=True)
    new_R = torch.ones_like(group_R, dtype=torch.bool)
    new_R[1:] = (score_R[1:] != score_R[:-1]) | (group_R[1:] != group_R[:-1])
    bin_R = new_R.cumsum(0) - 1
    groups, bins = _count(group_R), _count(bin_R)
    group_of_bin = group_R[new_R]
    positive_bin = positive_R.new_zeros(bins).index_add_(0, bin_R, positive_R)
    negative_bin = negative_R.new_zeros(bins).index_add_(0, bin_R, negative_R)
    positive_G = positive_R.new_zeros(groups).index_add_(0, group_R, positive_R)
    negative_G = negative_R.new_zeros(groups).index_add_(0, group_R, negative_R)

    below_bin = negative_bin.cumsum(0) - negative_bin
    before_G = negative_G.cumsum(0) - negative_G  # negatives of the groups before
    won_bin = positive_bin * (below_bin - before_G[group_of_bin] + negative_bin / 2)
    won_G = positive_R.new_zeros(groups).index_add_(0, group_of_bin, won_bin)
    both_G = (positive_G > 0) & (negative_G > 0)
    value_G = torch.where(both_G, won_G / torch.where(both_G, positive_G * negative_G, 1.0), 0.5)
    return value_G, positive_G + negative_G, both_G


def _count(number: Tensor) -> int:
    return int(number[-1]) + 1 if number.numel() else 0
