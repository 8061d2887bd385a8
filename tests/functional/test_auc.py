"""Areas against scikit-learn and against the count of pairs."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lightning_mvrec.functional import auc, grouped_auc


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 12, 400).astype(np.float32)  # few values: many ties
    label = (rng.random(400) < 0.3).astype(np.float32)
    weight = rng.integers(0, 4, 400).astype(np.float32)
    group = rng.integers(0, 60, 400)
    return score, label, weight, group


def test_auc_matches_scikit_learn_with_ties_and_weights(rows):
    score, label, weight, _ = rows
    tensors = [torch.from_numpy(column) for column in (score, label, weight)]
    assert auc(*tensors[:2]).item() == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    assert auc(*tensors).item() == pytest.approx(roc_auc_score(label, score, sample_weight=weight), abs=1e-12)


def test_grouped_auc_is_the_weighted_mean_over_groups_with_both_classes(rows):
    score, label, weight, group = rows
    values, weights = [], []
    for one in np.unique(group):
        mask = (group == one) & (weight > 0)
        if 0 < label[mask].sum() < mask.sum():
            values.append(roc_auc_score(label[mask], score[mask], sample_weight=weight[mask]))
            weights.append(weight[mask].sum())
    value = grouped_auc(*(torch.from_numpy(column) for column in (score, label, group, weight)))
    assert value.item() == pytest.approx(np.average(values, weights=weights), abs=1e-12)


def test_order_of_rows_does_not_matter(rows):
    score, label, weight, group = (torch.from_numpy(column) for column in rows)
    order = torch.randperm(400)
    assert auc(score[order], label[order], weight[order]).item() == pytest.approx(auc(score, label, weight).item())
    assert grouped_auc(score[order], label[order], group[order]).item() == pytest.approx(
        grouped_auc(score, label, group).item()
    )


def test_one_class_or_no_row_is_an_uninformed_half():
    empty = torch.zeros(0)
    assert auc(empty, empty).item() == 0.5
    assert auc(torch.tensor([1.0, 2.0]), torch.ones(2)).item() == 0.5
    assert grouped_auc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]), torch.tensor([1, 2])).item() == 0.5


def test_a_nan_score_is_refused_unless_its_weight_is_0():
    score, label = torch.tensor([1.0, float("nan"), 2.0]), torch.tensor([0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="got NaN in 1 of 3 rows"):
        auc(score, label)
    assert auc(score, label, torch.tensor([1.0, 0.0, 1.0])).item() == 1
