"""Weights of stacked models against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from lightning_mvrec.models import Stacking


def scores(rows=300):
    rng = np.random.default_rng(0)
    first = rng.normal(3.0, 2.0, rows)
    return {"first": first, "second": 0.5 * first + rng.normal(size=rows), "third": rng.normal(size=rows)}


def standardised(values):
    matrix = np.stack(list(values.values()), axis=1)
    return (matrix - matrix.mean(0)) / matrix.std(0)


def test_labels_of_0_and_1_give_a_logistic_regression():
    values = scores()
    label = (values["first"] + np.random.default_rng(1).normal(size=300) > 3).astype(np.float32)
    stacked = Stacking(penalty=2.0).fit(values, label)
    known = LogisticRegression(C=1 / 2.0, tol=1e-10, max_iter=1000).fit(standardised(values), label)
    np.testing.assert_allclose(list(stacked.weights.values()), known.coef_[0], atol=2e-4)
    np.testing.assert_allclose(stacked.predict(values), known.decision_function(standardised(values)), atol=1e-3)


def test_numbers_give_a_ridge_regression():
    values = scores()
    label = values["first"] - 0.3 * values["third"] + 2
    stacked = Stacking(binary=False, penalty=5.0).fit(values, label)
    known = Ridge(alpha=5.0).fit(standardised(values), label)
    np.testing.assert_allclose(list(stacked.weights.values()), known.coef_, atol=1e-4)


def test_a_target_of_weight_two_counts_as_two():
    values, label = scores(40), (np.arange(40) % 3 == 0).astype(np.float32)
    weight = np.where(np.arange(40) < 10, 2.0, 1.0)
    twice = {name: np.concatenate([value, value[:10]]) for name, value in values.items()}
    weighted = Stacking().fit(values, label, weight)
    repeated = Stacking().fit(twice, np.concatenate([label, label[:10]]))
    assert weighted.weights == pytest.approx(repeated.weights, abs=1e-4)


def test_other_targets_are_measured_by_the_scale_of_the_fitting_ones():
    values = scores()
    stacked = Stacking(binary=False).fit(values, values["first"])
    part = {name: value[:7] for name, value in values.items()}
    np.testing.assert_allclose(stacked.predict(part), stacked.predict(values)[:7])


def test_a_model_that_says_the_same_of_everything_gets_no_weight():
    values = {"flat": np.full(20, 7.0), "good": np.arange(20.0)}
    assert Stacking(binary=False).fit(values, np.arange(20.0)).weights["flat"] == 0


def test_other_models_than_the_fitted_are_refused():
    stacked = Stacking().fit({"a": np.arange(4.0), "b": np.ones(4)}, np.array([0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"scores must be those of \['a', 'b'\], got \['b', 'a'\]"):
        stacked.predict({"b": np.ones(4), "a": np.arange(4.0)})


def test_nothing_to_weigh_is_refused():
    with pytest.raises(ValueError, match="stacking needs models and targets"):
        Stacking().fit({}, np.zeros(3))
    with pytest.raises(ValueError, match="penalty must be at least 0, got -1"):
        Stacking(penalty=-1)
