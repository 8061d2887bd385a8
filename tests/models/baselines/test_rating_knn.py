"""Opinions on similar items and shared genres against loops over events."""

from math import sqrt

import numpy as np
import pytest

from lightning_mvrec.models.baselines import ItemBias, RatingKNN, UserItemBias
from tests.models.baselines.fake_store import FakeStore

GENRES = [[], [1], [1, 2], [2], [3]]


def make_store(seed=0, change=()):
    rng = np.random.default_rng(seed)
    events, labels, targets = [], {}, {"train": [], "test": []}
    for user in range(1, 9):
        for place, item in enumerate(rng.permutation(np.arange(1, 5))):
            events.append((user, int(item), place))
            labels["rating", user, place] = float(rng.integers(1, 6))
            targets["train" if place < 3 else "test"].append((user, "rating", place))
    labels.update(change)
    return FakeStore({"rating": events}, targets, 9, 5, labels=labels, genres=GENRES, label="numeric")


def naive(store, user):
    """The prediction for a user's only test target, the fourth event, by loops."""
    items, train = ItemBias(5).fit(store), store.targets("train")
    residual, lean = {}, {}
    for u, i, y in zip(train.user, train.item, train.label, strict=True):
        residual[int(u), int(i)] = y - items.mean - items.bias[i]
    for u in range(1, 9):
        own = [value for (owner, _), value in residual.items() if owner == u]
        lean[u] = sum(own) / (len(own) + 5)
    left = {(u, i): value - lean[u] for (u, i), value in residual.items()}
    own = {i: value for (u, i), value in left.items() if u == user}

    def norm(i):
        return sqrt(sum(value**2 for (_, j), value in left.items() if j == i))

    def similarity(i, j):
        common = sum(left.get((u, i), 0) * left.get((u, j), 0) for u in range(1, 9))
        return max(0, common / (norm(i) * norm(j) + 10))

    target = int(store.targets("test").item[user - 1])
    near = {j: similarity(target, j) for j in own}
    knn = sum(near[j] * own[j] for j in own) / (sum(near.values()) + 1)
    shared = [[own[j] for j in own if genre in GENRES[j]] for genre in GENRES[target]]
    genre = np.mean([sum(values) / (len(values) + 10) for values in shared])
    return items.mean + items.bias[target] + lean[user] + knn, genre


def test_predictions_match_loops_over_events():
    store = make_store()
    targets = store.targets("test")
    without = RatingKNN().fit(store).predict(store, targets)
    with_field = RatingKNN(field="genres").fit(store).predict(store, targets, chunk=3)
    for user in range(1, 9):
        value, genre = naive(store, user)
        assert without[user - 1] == pytest.approx(value)
        assert with_field[user - 1] == pytest.approx(value + genre)


def test_without_neighbours_it_is_the_running_user_bias():
    store = make_store()
    targets = store.targets("test")
    value = RatingKNN(knn_shrink=1e12).fit(store).predict(store, targets)
    assert value == pytest.approx(UserItemBias().fit(store).predict(store, targets))


def test_labels_of_targets_are_not_read():
    def predict(store):
        return RatingKNN("genres").fit(store).predict(store, store.targets("test"))

    changed = {("rating", user, 3): 99.0 for user in range(1, 9)}
    assert np.array_equal(predict(make_store()), predict(make_store(change=changed)))


def test_the_field_must_exist_and_shrinks_be_in_range():
    with pytest.raises(ValueError, match=r"field must be an item field, one of \['genres'\], got 'year'"):
        RatingKNN("year").fit(make_store())
    with pytest.raises(ValueError, match="knn_shrink must be above 0, got 0"):
        RatingKNN(knn_shrink=0)
    with pytest.raises(ValueError, match="bias_shrink must be at least 0, got -1"):
        RatingKNN(bias_shrink=-1)
