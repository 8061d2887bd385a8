"""Stacked results: weighed on validation alone, measured on test."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lightning_mvrec.cli.stacked import stack
from lightning_mvrec.models import Stacking


def split(seed, rows=80):
    rng = np.random.default_rng(seed)
    label = (rng.random(rows) < 0.5).astype(np.float32)
    return {
        "user": np.arange(rows),
        "label": label,
        "model": label + rng.normal(size=rows),
        "item bias": rng.normal(size=rows),
    }


def test_weights_come_from_validation_and_figures_from_test():
    targets = {"val": split(0), "test": split(1)}
    results, sums, weights = stack(targets, ["loss", "auc", "ndcg@10"], binary=True)
    known = Stacking().fit({name: targets["val"][name] for name in ("model", "item bias")}, targets["val"]["label"])
    assert weights == known.weights
    np.testing.assert_allclose(sums, known.predict({name: targets["test"][name] for name in ("model", "item bias")}))
    (result,) = results
    assert (result.model, result.split, result.metric) == ("stacked", "test", "auc")
    assert result.value == pytest.approx(roc_auc_score(targets["test"]["label"], sums))


def test_labels_of_the_test_split_change_no_weight():
    targets = {"val": split(0), "test": split(1)}
    turned = {"val": split(0), "test": {**targets["test"], "label": 1 - targets["test"]["label"]}}
    assert stack(targets, ["auc"], binary=True)[2] == stack(turned, ["auc"], binary=True)[2]
