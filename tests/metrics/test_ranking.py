"""Ranking metrics as states: weights, batches, precision."""

from math import log2

import pytest
import torch

from lightning_mvrec.metrics import MRR, NDCG, HitRate, Recall


def test_names_carry_the_cut_off():
    assert [metric(k=5).name for metric in (NDCG, HitRate, Recall, MRR)] == ["ndcg@5", "hr@5", "recall@5", "mrr@5"]


@pytest.mark.parametrize("metric_class", [NDCG, HitRate, Recall, MRR])
def test_the_split_into_batches_does_not_matter(metric_class):
    rank_B = torch.randint(1, 20, (50,), generator=torch.Generator().manual_seed(1))
    whole, parts = metric_class(k=10), metric_class(k=10)
    whole.update(rank_B)
    for part in rank_B.split([7, 1, 30, 12]):
        parts.update(part)
    assert parts.compute().item() == pytest.approx(whole.compute().item(), abs=1e-12)


def test_rows_of_weight_0_do_not_count():
    metric = NDCG(k=10)
    metric.update(torch.tensor([2, 1, 1]), torch.tensor([1.0, 0.0, 0.0]))
    assert metric.compute().item() == pytest.approx(1 / log2(3))


def test_weights_are_weights():
    metric = HitRate(k=1)
    metric.update(torch.tensor([1, 2]), torch.tensor([3.0, 1.0]))
    assert metric.compute().item() == 3 / 4


def test_lists_with_several_relevant_items_count_once_each():
    metric = Recall(k=2)
    metric.update(torch.tensor([[1, 9, 1], [1, 2, 1], [1, 1, 1]]), torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 0]]))
    assert metric.compute().item() == (1 / 2 + 2 / 2) / 2


def test_no_row_is_0_and_reset_forgets():
    metric = MRR(k=3)
    metric.update(torch.tensor([1]))
    metric.reset()
    metric.update(torch.zeros(0, dtype=torch.int64))
    assert metric.compute().item() == 0


def test_counting_survives_a_model_moved_to_bfloat16():
    metric = torch.nn.ModuleList([HitRate(k=1)]).to(torch.bfloat16)[0]
    for _ in range(2):
        for _ in range(300):
            metric.update(torch.tensor([1, 2, 2]))
        assert metric.compute().item() == pytest.approx(1 / 3, abs=1e-12)
        metric.reset()


def test_a_cut_off_below_1_is_refused():
    with pytest.raises(ValueError, match="k must be above 0 items, got 0"):
        NDCG(k=0)
