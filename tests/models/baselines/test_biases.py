"""Means of labels on a log small enough to average by hand, and no look into the future."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lightning_mvrec.models.baselines import GlobalMean, ItemBias, UserItemBias, evaluate_baselines
from lightning_mvrec.models.baselines.ratings import event_labels
from tests.models.baselines.fake_store import FakeStore

EVENTS = {"rating": [(1, 1, 0), (1, 2, 10), (1, 1, 20), (2, 2, 5), (2, 1, 30), (3, 3, 40)]}
TARGETS = {
    "train": [(1, "rating", 0), (1, "rating", 1), (2, "rating", 0)],
    "test": [(1, "rating", 2), (2, "rating", 1), (3, "rating", 0)],
}
LABELS = {
    ("rating", 1, 0): 5.0,
    ("rating", 1, 1): 2.0,
    ("rating", 2, 0): 2.0,
    ("rating", 1, 2): 4.0,
    ("rating", 2, 1): 1.0,
    ("rating", 3, 0): 3.0,
}


def make_store(**labels):
    return FakeStore(EVENTS, TARGETS, num_users=4, num_items=4, labels={**LABELS, **labels}, label="numeric")


@pytest.fixture
def store():
    return make_store()


def test_global_mean_is_that_of_the_training_targets(store):
    assert GlobalMean().fit(store).predict(store, store.targets("test")).tolist() == [3.0] * 3  # (5 + 2 + 2) / 3


def test_item_bias_is_drawn_towards_the_mean(store):
    values = ItemBias(shrink=1).fit(store).predict(store, store.targets("test"))
    # Item 1 once 2 above the mean; item 3 unknown.
    assert values.tolist() == [3 + 2 / (1 + 1)] * 2 + [3]


def test_running_user_bias_reads_the_events_before_the_target(store):
    values = UserItemBias(item_shrink=0, user_shrink=1).fit(store).predict(store, store.targets("test"))
    # Item means 5 and 2, no residual in user 1's or user 2's past.
    assert values.tolist() == [5, 5, 3]
    values = UserItemBias(item_shrink=1, user_shrink=1).fit(store).predict(store, store.targets("test"))
    bias = {1: 2 / 2, 2: -2 / 3}
    user_1 = ((5 - 3 - bias[1]) + (2 - 3 - bias[2])) / (2 + 1)
    user_2 = (2 - 3 - bias[2]) / (1 + 1)
    assert values.tolist() == pytest.approx([3 + bias[1] + user_1, 3 + bias[1] + user_2, 3])


def test_static_user_bias_is_that_of_the_training_targets(store):
    baseline = UserItemBias(item_shrink=1, user_shrink=0, running=False).fit(store)
    bias_2 = 2 - 3 - (-2 / 3)
    assert baseline.predict(store, store.targets("test"))[1] == pytest.approx(3 + 1 + bias_2)


def test_the_label_of_a_target_and_of_later_events_is_not_read():
    def predict(**change):
        store = FakeStore(EVENTS, TARGETS, 4, 4, labels={**LABELS, **change.get("labels", {})}, label="numeric")
        return UserItemBias().fit(store).predict(store, store.targets("test"))

    changed = {("rating", user, place): 9.0 for user, place in [(1, 2), (2, 1), (3, 0)]}
    assert np.array_equal(predict(), predict(labels=changed))


def test_labels_of_events_are_those_of_the_targets(store):
    assert event_labels(store)[0].tolist() == [5, 2, 4, 2, 1, 3]


def test_pointwise_metrics_of_a_baseline_match_numpy(store):
    values = evaluate_baselines(store, "test", [GlobalMean()], ["rmse", "mae", "loss", "ndcg@10"])
    error = 3 - np.array([4, 1, 3])
    assert values == [
        ("global mean", "rmse", pytest.approx(np.sqrt((error**2).mean()))),
        ("global mean", "mae", pytest.approx(np.abs(error).mean())),
    ]


def test_auc_and_log_loss_of_binary_labels():
    labels = {key: float(value >= 3) for key, value in LABELS.items()}
    store = FakeStore(EVENTS, TARGETS, 4, 4, labels=labels, label="binary")
    values = evaluate_baselines(store, "test", [GlobalMean()], ["auc", "gauc", "logloss"])
    p = 1 / 3  # test labels are 1, 0, 1
    assert [value for *_, value in values] == pytest.approx([0.5, 0.5, -(2 * np.log(p) + np.log(1 - p)) / 3])


def test_with_a_threshold_numbers_are_measured_as_zero_and_one_without_a_log_loss(store):
    found = {
        name: value
        for _, name, value in evaluate_baselines(
            store, "test", [UserItemBias()], ["auc", "logloss", "rmse"], threshold=3.0
        )
    }
    baseline = UserItemBias().fit(store)
    score = baseline.predict(store, store.targets("test"))
    assert set(found) == {"auc", "rmse"}
    assert found["auc"] == pytest.approx(roc_auc_score([1, 0, 1], score))


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="shrink must be at least 0 targets, got -1"):
        ItemBias(shrink=-1)
    with pytest.raises(ValueError, match="user_shrink must be at least 0 events, got -1"):
        UserItemBias(user_shrink=-1)
