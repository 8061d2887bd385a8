"""Baselines on the real files, where they are: set MVREC_TEST_DATA to the folder that holds them.

The figures are those of simple scripts on the same files and protocols, independent of this package; the margin is
what other ways to break ties and to count training events move.
"""

import os
from functools import cache
from pathlib import Path

import pytest

from lightning_mvrec.data import (
    FieldLabel,
    GivenPairs,
    GlobalTimeSplit,
    LeaveOneOut,
    NovelTargets,
    RandomSplit,
    prepare,
)
from lightning_mvrec.data.sources import MovieLens1MSequence, MovieLens100K, RetailRocket, Taobao
from lightning_mvrec.models.baselines import (
    BiasedFactorization,
    CoVisitation,
    ItemBias,
    ItemKNN,
    MarkovChain,
    Popularity,
    RatingKNN,
    Recency,
    UserItemBias,
    evaluate_baselines,
)

ROOT = os.environ.get("MVREC_TEST_DATA")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ROOT, reason="MVREC_TEST_DATA is not set: the folder that holds ml-100k, ml-1m, ..."),
]
METRICS = ["hr@10", "ndcg@10"]


@pytest.fixture(scope="module")
def measure(tmp_path_factory):
    @cache
    def store(source, folder, targets, **settings):
        path = Path(ROOT) / folder
        if not path.is_dir():
            pytest.skip(f"{folder} is not in MVREC_TEST_DATA")
        folder = tmp_path_factory.mktemp("store")
        return prepare(source(), root=str(path), targets=list(targets), store_dir=folder, progress=False, **settings)

    def run(baseline, metrics, seen, *args, **settings):
        values = evaluate_baselines(store(*args, **settings), "test", [baseline], metrics, seen)
        return [value for *_, value in values]

    return run


# One object each, so that equal settings share a prepared store.
LAST, LAST_ANY, PAIRS, NOVEL = LeaveOneOut(), LeaveOneOut(min_targets=1), GivenPairs(), NovelTargets()
TIME, RANDOM, CLICK, RATING = (
    GlobalTimeSplit(0.0, 0.2),
    RandomSplit(0.0, 0.2),
    FieldLabel("rating", 4.0),
    FieldLabel("rating"),
)
ALL = ("view", "addtocart", "transaction")


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [(Popularity(), [0.036, 0.018]), (MarkovChain(), [0.215, 0.126])],
    ids=lambda value: getattr(value, "name", None),
)
def test_movielens_1m_last_item(measure, baseline, expected):
    values = measure(baseline, METRICS, ["rating"], MovieLens1MSequence, "ml-1m", ("rating",), split=LAST)
    assert values == pytest.approx(expected, abs=0.0015)


def test_taobao_last_purchase_is_mostly_what_was_carted_or_favoured(measure):
    baseline = Recency(["fav", "cart"])
    values = measure(baseline, METRICS, ["buy"], Taobao, "taobao", ("buy",), split=LAST_ANY)
    assert values == pytest.approx([0.230, 0.182], abs=0.004)


@pytest.mark.parametrize(
    ("baseline", "expected", "margin"),
    [
        (Popularity(), [0.036, 0.019], 0.001),
        (ItemKNN(neighbours=None), [0.086, 0.056], 0.01),
        (CoVisitation(["view"]), [0.286, 0.196], 0.015),
    ],
    ids=["popularity", "item-knn", "co-visitation of views"],
)
def test_retailrocket_held_out_purchase(measure, baseline, expected, margin):
    values = measure(baseline, METRICS, ALL, RetailRocket, "retailrocket", ALL, split=PAIRS)
    assert values == pytest.approx(expected, abs=margin)


def test_retailrocket_co_visitation_of_all_views_passes_that_of_views(measure):
    values = measure(CoVisitation(), METRICS, ALL, RetailRocket, "retailrocket", ALL, split=PAIRS, target_filter=NOVEL)
    assert values[0] > 0.32
    assert values[1] > 0.24


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [(ItemBias(), 0.698), (UserItemBias(), 0.746), (RatingKNN("genres"), 0.761)],
    ids=["item bias", "running user bias", "genres and kNN"],
)
def test_movielens_100k_clicks_after_a_moment(measure, baseline, expected):
    values = measure(baseline, ["auc"], [], MovieLens100K, "ml-100k", ("rating",), split=TIME, label=CLICK)
    assert values == pytest.approx([expected], abs=0.005)


def test_movielens_100k_ratings_at_random(measure):
    source = (MovieLens100K, "ml-100k", ("rating",))
    static = measure(UserItemBias(running=False), ["rmse"], [], *source, split=RANDOM, label=RATING)
    factors = measure(BiasedFactorization(), ["rmse"], [], *source, split=RANDOM, label=RATING)
    assert factors[0] < static[0] < 0.95
