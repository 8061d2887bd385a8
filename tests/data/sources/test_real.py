"""Every adapter on the real files, where they are: set MVREC_TEST_DATA to the folder that holds them."""

import os

import numpy as np
import pytest

from lightning_mvrec.data import (
    FieldLabel,
    GivenPairs,
    GlobalTimeSplit,
    LeaveOneOut,
    NovelTargets,
    find_leaks,
    prepare,
)
from lightning_mvrec.data.sources import (
    AmazonSequences,
    MovieLens1MSequence,
    MovieLens100K,
    RetailRocket,
    TableSource,
    Taobao,
)

ROOT = os.environ.get("MVREC_TEST_DATA")
pytestmark = [
    pytest.mark.skipif(not ROOT, reason="MVREC_TEST_DATA is not set: the folder that holds ml-100k, taobao, ..."),
    pytest.mark.slow,
]


def make(tmp_path, folder, source, **settings):
    if not os.path.isdir(os.path.join(ROOT, folder)):
        pytest.skip(f"{folder} is not in MVREC_TEST_DATA")
    store = prepare(source, ROOT, store_dir=tmp_path, progress=False, **settings)
    assert find_leaks(store) == []
    return store


def sizes(store):
    views = {name: len(store.view(name).items) for name in store.schema.view_names}
    return store.schema.num_users - 1, store.schema.num_items - 1, views


def test_movielens_100k(tmp_path):
    store = make(
        tmp_path,
        "ml-100k",
        MovieLens100K(),
        targets=["rating"],
        label=FieldLabel("rating", 4.0),
        split=GlobalTimeSplit(0.0, 0.2),
    )
    assert sizes(store) == (943, 1682, {"rating": 100_000, "click": 55_375, "browse": 100_000})
    # Two ratings of one second lie at the cut: both test.
    assert [len(store.targets(stage)) for stage in ("train", "val", "test")] == [79_999, 0, 20_001]
    labels = np.concatenate([store.targets(stage).label for stage in ("train", "test")])
    assert labels.sum() == 55_375
    row = store.item_ids.index(1)
    values, offsets = store.item_fields["genres"]
    genres = [store.field_values["item_genres"][v] for v in values[offsets[row] : offsets[row + 1]]]
    assert store.item_text["title"][row] == "Toy Story (1995)"
    assert sorted(genres) == ["Animation", "Children's", "Comedy"]


def test_movielens_1m_sequences(tmp_path):
    store = make(tmp_path, "ml-1m", MovieLens1MSequence(), targets=["rating"], split=LeaveOneOut())
    assert sizes(store) == (6040, 3416, {"rating": 999_611})
    assert len(store.targets("test")) == 6040
    # Line 1 of the item map says that item 1 is film 1198.
    assert store.item_text["title"][store.item_ids.index(1)] == "Raiders of the Lost Ark (1981)"


def test_taobao(tmp_path):
    store = make(tmp_path, "taobao", Taobao(), targets=["buy"], split=LeaveOneOut())
    users, _, views = sizes(store)
    assert (users, views) == (31_882, {"fav": 49_482, "cart": 140_068, "buy": 167_862})
    assert len(store.targets("test")) == len(store.targets("val")) == 31_882


def test_retailrocket(tmp_path):
    store = make(
        tmp_path,
        "retailrocket",
        RetailRocket(),
        targets=["view", "addtocart", "transaction"],
        split=GivenPairs(),
        target_filter=NovelTargets(),
    )
    users, _, views = sizes(store)
    assert (users, views) == (2174, {"view": 75_374, "addtocart": 12_456, "transaction": 9_551})
    assert int((store.targets("test").item == 0).sum()) == 211
    assert store.view("view").times.max() < 2_000_000_000  # seconds, not milliseconds


def test_amazon_sequences(tmp_path):
    store = make(tmp_path, "amazon-beauty", AmazonSequences(), targets=["review"], split=LeaveOneOut())
    assert sizes(store) == (22_363, 12_101, {"review": 198_502})
    assert store.item_text["title"][store.item_ids.index(0)] == "Glow in the Dark Neon Nail Polish (6 Pack)"


def test_own_json_lines(tmp_path):
    source = TableSource(
        {"review": "amazon-gift-cards/Gift_Cards_5.jsonl"},
        columns={"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "rating": "overall"},
    )
    store = make(tmp_path, "amazon-gift-cards", source, targets=["review"])
    assert len(store.view("review").items) == 2_969
    assert "3 duplicates removed" in store.summary
