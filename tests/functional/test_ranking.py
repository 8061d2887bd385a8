"""Ranks against the definition, read off a sorted list."""

import itertools

import pytest
import torch

from lightning_mvrec.functional import MISS, count_at_least, dot_scores, ranks, to_ranks
from lightning_mvrec.functional.ranking import seen_entries


def naive_rank(score_I, target, seen=(), tie_break_I=None):
    if target == 0:
        return MISS
    ahead = 0
    for item in range(1, len(score_I)):
        if item == target or item in seen:
            continue
        if score_I[item] > score_I[target]:
            ahead += 1
        elif score_I[item] == score_I[target]:
            ahead += tie_break_I is None or tie_break_I[item] >= tie_break_I[target]
    return 1 + ahead


def jagged(seen):
    return torch.tensor([row for rows in seen for row in rows], dtype=torch.int64), torch.tensor([len(r) for r in seen])


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(3)
    score_BI = torch.randint(0, 6, (40, 23), generator=generator).float()  # few values: many ties
    target_B = torch.randint(0, 23, (40,), generator=generator)
    seen = [torch.randint(0, 23, (int(n),), generator=generator).tolist() for n in torch.randint(0, 9, (40,))]
    return score_BI, target_B, seen


def test_ranks_match_the_definition_with_ties_and_seen_items(case):
    score_BI, target_B, seen = case
    rank_B = ranks(score_BI, target_B, *jagged(seen))
    assert rank_B.tolist() == [
        naive_rank(s.tolist(), int(t), r) for s, t, r in zip(score_BI, target_B, seen, strict=True)
    ]


def test_ranks_break_ties_by_the_second_key(case):
    score_BI, target_B, _ = case
    key_I = torch.arange(23) // 2
    rank_B = ranks(score_BI, target_B, tie_break_I=key_I)
    assert rank_B.tolist() == [
        naive_rank(s.tolist(), int(t), (), key_I.tolist()) for s, t in zip(score_BI, target_B, strict=True)
    ]


def test_a_model_that_scores_everything_alike_is_ranked_last():
    assert ranks(torch.zeros(1, 11), torch.tensor([4])).tolist() == [10]


def test_nan_scores_rank_the_target_last():
    score_BI = torch.tensor([[0.0, float("nan"), 1.0, 2.0], [0.0, 5.0, float("nan"), 1.0]])
    assert ranks(score_BI, torch.tensor([1, 1])).tolist() == [3, 2]


def test_row_0_is_never_ranked_and_a_target_in_row_0_is_a_miss():
    score_BI = torch.tensor([[9.0, 1.0, 0.0], [9.0, 1.0, 0.0]])
    assert ranks(score_BI, torch.tensor([1, 0])).tolist() == [1, MISS]


def test_a_target_that_was_seen_is_still_ranked():
    score_BI = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert ranks(score_BI, torch.tensor([2]), torch.tensor([2, 3]), torch.tensor([2])).tolist() == [1]


def test_ranks_refuse_a_target_outside_the_table():
    with pytest.raises(ValueError, match=r"target_B must be item-table rows in \[0, 3\), got rows from 1 to 3"):
        ranks(torch.zeros(2, 3), torch.tensor([1, 3]))


def test_seen_items_need_lengths_that_sum_to_their_number():
    with pytest.raises(ValueError, match="must be given together"):
        seen_entries(torch.tensor([1]), None)
    with pytest.raises(ValueError, match="must sum to the 1 entries"):
        seen_entries(torch.tensor([1]), torch.tensor([1, 1]))


@pytest.mark.parametrize("cuts", [[0, 57], [0, 1, 2, 20, 57], [0, 0, 30, 57]])
@pytest.mark.parametrize("max_elements", [1, 100, 2**20])
def test_counts_of_any_slices_sum_to_the_ranks_of_the_full_matrix(cuts, max_elements):
    torch.manual_seed(5)
    item_ID, user_BD = torch.randint(-2, 3, (57, 3)).float(), torch.randint(-2, 3, (30, 3)).float()
    target_B = torch.randint(0, 57, (30,))
    seen_row, seen_lengths_B = jagged([torch.randint(0, 57, (5,)).tolist() for _ in range(30)])
    target_score_B = dot_scores(user_BD, item_ID[target_B])
    counts = [
        count_at_least(
            user_BD,
            item_ID[low:high],
            target_score_B,
            target_B,
            low,
            seen_row,
            seen_lengths_B,
            max_elements=max_elements,
        )
        for low, high in itertools.pairwise(cuts)
    ]
    expected_B = ranks(user_BD @ item_ID.T, target_B, seen_row, seen_lengths_B)
    assert to_ranks(sum(counts), target_B).tolist() == expected_B.tolist()


def test_items_with_equal_vectors_tie_whatever_the_slicing():
    torch.manual_seed(0)
    user_BD = torch.randn(64, 48)
    item_ID = torch.randn(1, 48).expand(301, 48)
    target_B = torch.randint(1, 301, (64,))
    target_score_B = dot_scores(user_BD, item_ID[target_B])
    for cut in (1, 7, 150, 300):
        count_B = count_at_least(user_BD, item_ID[:cut], target_score_B, target_B)
        count_B += count_at_least(user_BD, item_ID[cut:], target_score_B, target_B, cut)
        assert count_B.tolist() == [299] * 64


def test_a_nan_user_state_ranks_last_when_counted():
    item_ID = torch.randn(6, 2)
    user_BD = torch.full((1, 2), float("nan"))
    assert count_at_least(user_BD, item_ID, dot_scores(user_BD, item_ID[[3]]), torch.tensor([3])).tolist() == [4]


def test_an_empty_slice_or_batch_counts_nothing():
    assert count_at_least(torch.randn(2, 3), torch.randn(0, 3), torch.zeros(2), torch.tensor([1, 2]), 5).tolist() == [
        0,
        0,
    ]
    assert count_at_least(torch.randn(0, 3), torch.randn(4, 3), torch.zeros(0), torch.zeros(0).long()).tolist() == []


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_counts_are_exact_where_float32_would_err(scale):
    torch.manual_seed(1)
    item_ID = scale * torch.randn(2000, 32)
    item_ID[:40] = scale * (torch.randn(32) + 1e-7 * torch.randn(40, 32))  # a rounding apart from each other
    user_BD = torch.randn(16, 32)
    target_B = torch.randint(1, 40, (16,))
    target_score_B = dot_scores(user_BD, item_ID[target_B])
    expected_B = ranks((user_BD.double() @ item_ID.double().T).float(), target_B) - 1
    for max_elements in (16 * 5, 2**20):  # doubts are most of a chunk, or few
        count_B = count_at_least(user_BD, item_ID, target_score_B, target_B, max_elements=max_elements)
        assert (count_B - expected_B).abs().max() <= 1  # one score in 10**8 may round the other way
    assert (ranks(user_BD @ item_ID.T, target_B) - 1 - expected_B).abs().max() > 1


def test_autocast_does_not_coarsen_counts():
    torch.manual_seed(2)
    item_ID, user_BD, target_B = torch.randn(500, 16), torch.randn(20, 16), torch.randint(1, 500, (20,))
    expected_B = count_at_least(user_BD, item_ID, dot_scores(user_BD, item_ID[target_B]), target_B)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        count_B = count_at_least(user_BD, item_ID, dot_scores(user_BD, item_ID[target_B]), target_B)
    assert count_B.tolist() == expected_B.tolist()
