"""Metrics of ranked lists against hand computation and scikit-learn."""

from math import log2

import pytest
import torch
from sklearn.metrics import ndcg_score

from lightning_mvrec.functional import MISS, hit_rate, mrr, ndcg, recall


def test_one_relevant_item_has_the_values_of_the_definitions():
    rank_B = torch.tensor([1, 2, 10, 11, MISS])
    assert hit_rate(rank_B, 10).tolist() == [1, 1, 1, 0, 0]
    assert recall(rank_B, 10).tolist() == [1, 1, 1, 0, 0]
    assert ndcg(rank_B, 10).tolist() == pytest.approx([1, 1 / log2(3), 1 / log2(11), 0, 0])
    assert mrr(rank_B, 10).tolist() == pytest.approx([1, 1 / 2, 1 / 10, 0, 0])


def test_a_miss_stays_a_miss_at_any_cut_off():
    assert ndcg(torch.tensor([MISS]), 10**9).tolist() == [0]
    assert hit_rate(torch.tensor([MISS]), 10**9).tolist() == [0]


@pytest.mark.parametrize("k", [1, 3, 10, 50])
def test_ndcg_with_several_relevant_items_matches_scikit_learn(k):
    generator = torch.Generator().manual_seed(k)
    for _ in range(20):
        score_I = torch.randperm(30, generator=generator)
        relevant = torch.randperm(30, generator=generator)[: int(torch.randint(1, 12, (1,), generator=generator))]
        gain_I = torch.zeros(30)
        gain_I[relevant] = 1
        rank_K = (score_I[None, :] > score_I[relevant, None]).sum(1) + 1
        assert ndcg(rank_K[None, :], k).item() == pytest.approx(
            ndcg_score(gain_I[None].numpy(), score_I[None].numpy(), k=k)
        )


def test_padded_ranks_do_not_count():
    rank_BK = torch.tensor([[5, 1, 1], [1, 1, 1]])
    relevant_BK = torch.tensor([[True, False, False], [False, False, False]])
    assert hit_rate(rank_BK, 4, relevant_BK).tolist() == [0, 0]
    assert recall(rank_BK, 5, relevant_BK).tolist() == [1, 0]
    assert mrr(rank_BK, 5, relevant_BK).tolist() == [1 / 5, 0]
    assert ndcg(rank_BK, 5, relevant_BK).tolist() == pytest.approx([1 / log2(6), 0])


def test_recall_and_mrr_of_several_relevant_items():
    rank_BK = torch.tensor([[4, 2, 30]])
    assert recall(rank_BK, 10).item() == pytest.approx(2 / 3)
    assert mrr(rank_BK, 10).item() == 1 / 2
    assert hit_rate(rank_BK, 10).item() == 1


def test_no_list_and_no_relevant_item_are_allowed():
    for function in (hit_rate, recall, ndcg, mrr):
        assert function(torch.zeros(0, dtype=torch.int64), 3).tolist() == []
        assert function(torch.zeros(2, 0, dtype=torch.int64), 3).tolist() == [0, 0]


def test_a_cut_off_below_1_is_refused():
    with pytest.raises(ValueError, match="k must be above 0 items, got 0"):
        ndcg(torch.tensor([1]), 0)
