"""AUC as a state: batches, weights, precision, reset."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from lightning_mvrec.metrics import AUC, GroupedAUC


def test_batches_join_to_the_area_of_all_rows():
    torch.manual_seed(0)
    score, label = torch.randint(0, 9, (80,)).float(), (torch.rand(80) < 0.4).float()
    metric = AUC()
    for part in torch.arange(80).split(13):
        metric.update(score[part], label[part])
    assert metric.compute().item() == pytest.approx(roc_auc_score(label, score), abs=1e-12)


def test_rows_of_weight_0_are_dropped_even_when_nan():
    metric = AUC()
    metric.update(torch.tensor([0.0, 1.0, float("nan")]), torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 0.0]))
    assert metric.compute().item() == 1


def test_a_model_moved_to_bfloat16_keeps_close_scores_apart():
    metric = torch.nn.ModuleList([AUC()])[0]
    metric.update(torch.tensor([1.0001, 1.0002]), torch.tensor([1.0, 0.0]))
    torch.nn.ModuleList([metric]).to(torch.bfloat16)
    assert metric.compute().item() == 0


def test_reset_forgets_and_no_row_is_a_half():
    metric = GroupedAUC()
    metric.update(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]), group=torch.tensor([4, 4]))
    assert metric.compute().item() == 1
    metric.reset()
    metric.update(torch.zeros(0), torch.zeros(0), group=torch.zeros(0))
    assert metric.compute().item() == 0.5


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"label must have the shape of score \(2,\), got \(3,\)"):
        AUC().update(torch.zeros(2), torch.zeros(3))
