"""Least squares against numpy, and factors that find planted tastes."""

import numpy as np
import pytest
from scipy import sparse

from lightning_mvrec.models.baselines import BiasedFactorization, MatrixFactorization, Popularity, evaluate_baselines
from lightning_mvrec.models.baselines.least_squares import solve_rows
from tests.models.baselines.fake_store import FakeStore


def test_rows_are_ridge_regressions():
    rng = np.random.default_rng(0)
    values = sparse.csr_array(rng.normal(size=(300, 9)) * (rng.random((300, 9)) < 0.2))  # some rows are empty
    factors, ridge = rng.normal(size=(9, 3)), rng.random(300) + 0.1
    shared = 0.2 * factors.T @ factors
    result = solve_rows(values, factors, ridge, shared)
    for row in range(300):
        seen = values.indices[values.indptr[row] : values.indptr[row + 1]]
        # The same problem as an ordinary least squares: stack the penalties as rows of their own.
        left = np.vstack([factors[seen], np.sqrt(0.2) * factors, np.sqrt(ridge[row]) * np.eye(3)])
        right = np.concatenate([values.toarray()[row, seen], np.zeros(9 + 3)])
        expected = np.linalg.lstsq(left, right, rcond=None)[0] if len(seen) else np.zeros(3)
        assert result[row] == pytest.approx(expected, abs=1e-8)


@pytest.fixture
def two_tastes():
    # Odd users meet odd items, even users even items; the last event tests.
    rng = np.random.default_rng(1)
    events = []
    for user in range(1, 61):
        items = rng.permutation(np.arange(1 + (user + 1) % 2, 21, 2))[:6]
        events += [(user, int(item), time) for time, item in enumerate(items)]
    return FakeStore({"view": events}, {"test": [(user, "view", 5) for user in range(1, 61)]}, 61, 21)


def test_implicit_factors_find_the_taste(two_tastes):
    factorization = MatrixFactorization(factors=2)
    values = evaluate_baselines(two_tastes, "test", [factorization, Popularity()], ["hr@5"], ["view"])
    assert values[0][2] == 1  # ten items of the taste less five seen
    assert values[1][2] < 0.7


def test_implicit_factors_do_not_read_test_events(two_tastes):
    targets = two_tastes.targets("test")
    before = MatrixFactorization(factors=4).fit(two_tastes).score(two_tastes, targets, np.arange(9))
    view = two_tastes.view("view")
    view.items[view.stage > 0] = 1
    after = MatrixFactorization(factors=4).fit(two_tastes).score(two_tastes, targets, np.arange(9))
    assert np.array_equal(before, after)


def test_biased_factors_find_a_product_of_user_and_item():
    rng = np.random.default_rng(2)
    user_taste, item_taste = rng.choice([-1, 1], 41), rng.choice([-1, 1], 31)
    events, labels, targets = [], {}, {"train": [], "test": []}
    for user in range(1, 41):
        for place, item in enumerate(rng.permutation(np.arange(1, 31))):
            events.append((user, int(item), place))
            labels["view", user, place] = 3.0 + user_taste[user] * item_taste[item]
            targets["test" if place % 5 == 0 else "train"].append((user, "view", place))
    store = FakeStore({"view": events}, targets, 41, 31, labels=labels, label="numeric")
    values = evaluate_baselines(store, "test", [BiasedFactorization(factors=2)], ["rmse"])
    assert values[0][2] < 0.3  # biases alone are off by 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MatrixFactorization(factors=0), "factors must be above 0, got 0"),
        (lambda: MatrixFactorization(unobserved=0), "unobserved must be above 0, got 0"),
        (lambda: BiasedFactorization(ridge=0), "ridge must be above 0, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
