"""Logits of items that come back, against dense matrices."""

import torch

from lightning_mvrec.functional import Repeats, count_at_least, count_repeats, dot_scores, repeat_logit_of, repeat_mass

REPEATS = Repeats(torch.tensor([1, 2, 3, 3, 5, 8, 0]), torch.tensor([3, 0, 1, 3]), torch.randn(7).mul(2))


def dense(repeats, items):
    matrix = torch.full((len(repeats.lengths_R), items), -torch.inf)
    matrix[repeats.row_S, repeats.item_S] = repeats.logit_S
    return matrix


def test_mass_and_own_logits_equal_those_of_a_dense_matrix():
    matrix = dense(REPEATS, 9)
    torch.testing.assert_close(repeat_mass(REPEATS), matrix.logsumexp(1))
    target_R = torch.tensor([2, 2, 3, 4])
    torch.testing.assert_close(repeat_logit_of(REPEATS, target_R), matrix.gather(1, target_R[:, None]).squeeze(1))


def test_a_row_without_entries_has_no_nan_gradient():
    logit_S = torch.randn(7, requires_grad=True)
    mass_R = repeat_mass(Repeats(REPEATS.item_S, REPEATS.lengths_R, logit_S))
    torch.logaddexp(mass_R, torch.zeros(4)).sum().backward()
    assert logit_S.grad.isfinite().all()
    assert (logit_S.grad != 0).all()


def test_counts_of_slices_equal_ranks_on_the_dense_scores():
    torch.manual_seed(1)
    user_RD, item_ID = torch.randn(4, 3), torch.randn(9, 3)
    target_R = torch.tensor([2, 4, 3, 7])
    seen_row, seen_lengths_R = torch.tensor([1, 6, 5]), torch.tensor([1, 0, 0, 2])
    own_R = dot_scores(user_RD, item_ID[target_R])
    target_score_R = torch.logaddexp(own_R, repeat_logit_of(REPEATS, target_R))
    ahead_R = torch.zeros(4, dtype=torch.int64)
    for first in (0, 4):
        part = item_ID[first : first + 5][: 4 if first == 0 else 5]
        arguments = (user_RD, part, target_score_R, target_R, first, seen_row, seen_lengths_R)
        ahead_R += count_at_least(*arguments) + count_repeats(REPEATS, *arguments)
    score_RI = torch.logaddexp(user_RD @ item_ID.T, dense(REPEATS, 9))
    score_RI[:, 0] = score_RI[0, 1] = score_RI[3, 6] = score_RI[3, 5] = -torch.inf
    score_RI[torch.arange(4), target_R] = -torch.inf
    assert ahead_R.tolist() == (score_RI >= target_score_R[:, None]).sum(1).tolist()
    assert ahead_R.sum() > 0
