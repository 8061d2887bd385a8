"""The paired bootstrap against scikit-learn and known distributions."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from lightning_mvrec.cli.intervals import compare, resampled, user_weights

ONES = np.ones((1, 200), dtype=np.int32)


def scores(seed=0):
    rng = np.random.default_rng(seed)
    label = (rng.random(200) < 0.4).astype(np.float32)
    return np.round(0.5 * rng.random(200) + 0.3 * label, 1), label


def test_whole_users_are_drawn():
    weight = user_weights(np.array([7, 7, 9, 3, 3, 3]), resamples=500)
    assert (weight[:, 0] == weight[:, 1]).all()
    assert (weight[:, [0, 2, 3]].sum(1) == 3).all()
    assert weight[:, 2].mean() == pytest.approx(1.0, abs=0.1)


def test_weighted_auc_with_ties_equals_scikit_learns():
    score, label = scores()
    weight = np.random.default_rng(1).integers(0, 3, (4, 200))
    expected = [roc_auc_score(label, score, sample_weight=each) for each in weight]
    np.testing.assert_allclose(resampled("auc", score, label, weight), expected)


def test_means_equal_naive_ones():
    score, label = scores()
    rank = np.arange(1, 201)
    assert resampled("ndcg@3", rank, None, ONES)[0] == pytest.approx((1 + 1 / np.log2(3) + 1 / 2) / 200)
    assert resampled("mrr@2", rank, None, ONES)[0] == pytest.approx((1 + 1 / 2) / 200)
    assert resampled("hr@5", rank, None, ONES)[0] == pytest.approx(5 / 200)
    expected = log_loss(label, np.clip(score, 1e-7, 1))
    assert resampled("logloss", score, label, ONES)[0] == pytest.approx(expected, abs=1e-5)
    assert resampled("rmse", score, label, ONES)[0] == pytest.approx(np.sqrt(np.mean((score - label) ** 2)))


def test_an_interval_is_as_wide_as_theory_says():
    rng = np.random.default_rng(2)
    users = 4000
    hit = [np.where(rng.random(users) < chance, 1, 99) for chance in (0.5, 0.4)]
    (interval,) = compare({"model": [hit[0]], "b": [hit[1]]}, None, np.arange(users), "hr@10", ["b"])
    expected = 2 * 1.96 * np.sqrt((0.25 + 0.24) / users)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)
    assert interval.low < interval.difference < interval.high


def test_what_both_models_share_does_not_widen_the_interval():
    rank = np.random.default_rng(3).integers(1, 30, 1000)
    (interval,) = compare({"model": [rank], "b": [rank]}, None, np.arange(1000), "ndcg@10", ["b"])
    assert (interval.low, interval.difference, interval.high) == (0, 0, 0)


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match="got 'coverage@10'"):
        resampled("coverage@10", np.ones(200), None, ONES)
