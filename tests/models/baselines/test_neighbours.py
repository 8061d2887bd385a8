"""Recency, Markov chain, item-kNN and co-visitation on logs small enough to count by hand."""

from math import exp, sqrt

import numpy as np
import pytest

from lightning_mvrec.models.baselines import CoVisitation, ItemKNN, MarkovChain, Popularity, Recency
from tests.models.baselines.fake_store import FakeStore


@pytest.fixture
def store():
    view = [(1, 1, 0), (1, 2, 60), (1, 3, 300), (2, 1, 0), (2, 2, 30), (3, 2, 10), (3, 4, 10), (3, 1, 90)]
    buy = [(1, 3, 400), (1, 1, 500), (2, 4, 40), (2, 3, 100), (3, 5, 100)]
    targets = {"val": [(1, "buy", 1)], "test": [(2, "buy", 1), (3, "buy", 0)]}
    return FakeStore({"view": view, "buy": buy}, targets, num_users=4, num_items=6)


def dense(score):
    return score if isinstance(score, np.ndarray) else score.toarray()


def scores(baseline, store, stage="test"):
    targets = store.targets(stage)
    return dense(baseline.fit(store).score(store, targets, np.arange(len(targets.user))))


def test_popularity_counts_the_training_events_of_its_views(store):
    # Of user 1 all but the validation target, of user 2 all before time 100, of user 3 all views.
    assert Popularity().fit(store).count.tolist() == [0, 3, 3, 2, 2, 0]
    assert Popularity(["buy"]).fit(store).count.tolist() == [0, 0, 0, 1, 1, 0]


def test_recency_orders_the_history_newest_first(store):
    user_2, user_3 = scores(Recency(), store)
    assert user_2[4] > user_2[2] > user_2[1] > user_2[3] == user_2[5] == 0
    assert user_3[1] > user_3[2] == user_3[4] > user_3[3] == user_3[5] == 0  # items 2 and 4 at one time


def test_recency_reads_only_its_views(store):
    assert (scores(Recency(["buy"]), store)[0] > 0).tolist() == [False, False, False, False, True, False]


def test_recency_takes_the_last_time_an_item_was_met():
    events = [(1, 1, 0), (1, 2, 1), (1, 1, 2), (1, 3, 3), (1, 4, 4)]
    store = FakeStore({"view": events}, {"test": [(1, "view", 4)]}, num_users=2, num_items=5)
    row = scores(Recency(), store)[0]
    assert row[3] > row[1] > row[2] > row[4] == 0


def test_markov_counts_what_followed_the_latest_item(store):
    # In time order user 1: 1 2 3 3; user 2: 1 2 4; user 3: 2 4 1. Latest items: user 2 has 4, user 3 has 1.
    user_2, user_3 = scores(MarkovChain(), store)
    assert user_2.tolist() == [0, 1, 0, 0, 0, 0]
    assert user_3.tolist() == [0, 0, 2, 0, 0, 0]


def test_markov_without_a_history_scores_nothing(store):
    assert scores(MarkovChain(["buy"]), store)[1].tolist() == [0] * 6


def test_item_knn_is_the_damped_cosine_over_users(store):
    # Users that met them: item 1: 1 2 3; item 2: 1 2 3; item 3: 1; item 4: 2 3.
    similar = ItemKNN(shrink=10).fit(store).similar.toarray()
    assert similar[1, 2] == pytest.approx(3 / (sqrt(3 * 3) + 10))
    assert similar[1, 4] == pytest.approx(2 / (sqrt(3 * 2) + 10))
    assert similar[3, 4] == 0
    assert similar.diagonal().tolist() == [0] * 6
    # User 2 has met 1, 2 and 4.
    assert scores(ItemKNN(shrink=10), store)[0][3] == pytest.approx(2 * 1 / (sqrt(3 * 1) + 10))


def test_item_knn_keeps_the_most_similar_items_of_each(store):
    similar = ItemKNN(shrink=0, neighbours=1).fit(store).similar.toarray()
    assert similar[4].nonzero()[0].size == 1
    assert similar[1].nonzero()[0].tolist() == [2]


def test_co_visitation_sums_decayed_links_of_first_meetings(store):
    links = CoVisitation(decay=100, window=2).fit(store).links.toarray()
    # Items 1 and 2: user 1 60 s apart, user 2 30 s, user 3 80 s; 2 and 3 (user 1) are 240 s apart: beyond 200 s.
    assert links[1, 2] == links[2, 1] == pytest.approx(exp(-0.6) + exp(-0.3) + exp(-0.8))
    assert links[2, 3] == 0
    assert links[2, 4] == pytest.approx(exp(-0.1) + exp(0))
    assert links.diagonal().tolist() == [0] * 6


def test_co_visitation_needs_times():
    store = FakeStore({"view": [(1, 1, 0)]}, {}, num_users=2, num_items=2, has_times=False)
    with pytest.raises(ValueError, match="needs events with times"):
        CoVisitation().fit(store)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ItemKNN(shrink=-1), "shrink must be at least 0 users, got -1"),
        (lambda: ItemKNN(neighbours=0), "neighbours must be above 0 items, got 0"),
        (lambda: CoVisitation(decay=0), "decay must be above 0 seconds, got 0"),
        (lambda: CoVisitation(window=0), "window must be above 0 decays, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_views_must_exist(store):
    with pytest.raises(ValueError, match=r"views must be names of views \['view', 'buy'\], got \['cart'\]"):
        MarkovChain(["cart"]).fit(store)
    with pytest.raises(ValueError, match="views must name at least one"):
        MarkovChain([]).fit(store)


@pytest.mark.parametrize("baseline", [Popularity(), MarkovChain(), ItemKNN(), CoVisitation()], ids=lambda b: b.name)
def test_what_follows_the_targets_changes_nothing(baseline, store):
    """Events of the evaluation, and later ones, are neither counted nor read."""
    before = scores(baseline, store)
    for name in ("view", "buy"):
        view = store.view(name)
        view.items[view.stage > 0] = 5
    after = scores(baseline, store)
    assert np.array_equal(before, after)
