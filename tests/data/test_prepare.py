import numpy as np
import pandas as pd
import pytest

from lightning_mvrec.data import (
    FieldLabel,
    GivenPairs,
    GlobalTimeSplit,
    LeaveOneOut,
    MinMax,
    prepare,
)
from lightning_mvrec.data.sources import FrameSource


def frames(**columns):
    time = np.arange(20) * 10
    base = pd.DataFrame({"user": np.arange(20) % 2, "item": np.arange(20) % 7, "time": time})
    return {"click": base.assign(**columns), "buy": base.iloc[::2].assign(time=time[::2] + 5)}


def make(folder, views=None, targets=("buy",), **settings):
    source = settings.pop("source", None) or FrameSource(views or frames(), **settings.pop("source_settings", {}))
    return prepare(source, targets=list(targets), store_dir=folder, progress=False, **settings)


def test_popularity_counts_training_events_of_all_views(tmp_path):
    store = make(tmp_path, split=GlobalTimeSplit(0.2, 0.2))
    first = min(store.targets(stage).time.min() for stage in ("val", "test"))
    views = frames().values()
    expected = pd.concat([frame[frame["time"] < first] for frame in views])["item"].value_counts()
    by_item = {item: int(store.popularity[row]) for row, item in enumerate(store.item_ids) if item is not None}
    assert {item: count for item, count in by_item.items() if count} == expected.to_dict()
    assert store.popularity[0] == 0


def test_a_test_target_outside_the_catalogue_is_row_0_and_reported(tmp_path):
    views = frames()
    views["buy"] = pd.concat([views["buy"], pd.DataFrame({"user": [0], "item": [99], "time": [1000]})])
    store = make(tmp_path, views, split=GlobalTimeSplit(0.1, 0.1))
    targets = store.targets("test")
    assert targets.item[targets.time == 1000].tolist() == [0]
    assert 99 not in store.item_ids
    assert "1 outside the catalogue: misses for every model" in store.summary


def test_an_item_of_the_item_file_belongs_to_the_catalogue_without_any_event(tmp_path):
    items = pd.DataFrame({"item": [99, 3], "title": ["Ninety-nine", None], "kind": ["a", "b"]})
    store = make(tmp_path, source_settings={"items": items, "text": ("title",)})
    row = store.item_ids.index(99)
    assert store.popularity[row] == 0
    assert store.item_text["title"][row] == "Ninety-nine"
    assert [field.name for field in store.schema.item_fields] == ["kind"]


def test_held_out_pairs_come_after_everything_of_their_user(tmp_path):
    held_out = pd.DataFrame({"user": [1, 0], "item": [3, 1234]})
    store = make(tmp_path, split=GivenPairs(), source_settings={"held_out": held_out})
    test = store.targets("test")
    assert [store.user_ids[user] for user in test.user] == [0, 1]
    assert [store.item_ids[item] for item in test.item] == [None, 3]  # 1234 is in no event
    for number, name in enumerate(store.schema.view_names):
        assert test.asof[:, number].tolist() == np.diff(store.view(name).offsets)[test.user].tolist()
    assert test.time.tolist() == [185 + 1, 190 + 1]


def test_a_user_without_training_events_is_marked(tmp_path):
    views = frames()
    views["buy"] = pd.concat([views["buy"], pd.DataFrame({"user": [7], "item": [1], "time": [1000]})])
    store = make(tmp_path, views, split=GlobalTimeSplit(0.1, 0.1))
    assert [store.user_ids[row] for row in np.flatnonzero(~store.user_trained)] == [None, 7]


def test_fields_are_normalised_and_missing_values_marked(tmp_path):
    stars = np.where(np.arange(20) % 5 == 0, np.nan, np.arange(20.0))
    store = make(tmp_path, frames(stars=stars), transforms={"click.stars": MinMax(), "time": MinMax()})
    fields = store.view("click").fields
    assert sorted(fields) == ["stars", "stars_missing", "time"]
    assert fields["stars_missing"].sum() == 4
    assert fields["stars"][fields["stars_missing"] == 1].tolist() == [0.5] * 4
    assert fields["time"].min() == 0
    assert "stars: 4 missing" in store.summary
    assert sorted(store.view("buy").fields) == ["time"]


def test_labels_come_from_the_raw_field(tmp_path):
    store = make(tmp_path, frames(stars=np.arange(20.0)), targets=["click"], label=FieldLabel("stars", 10.0))
    assert store.schema.label == "binary"
    targets = store.targets("train")
    assert targets.label.tolist() == (targets.time >= 100).astype(float).tolist()


def test_a_failed_preparation_leaves_earlier_stores_and_no_litter(tmp_path):
    store = make(tmp_path)
    before = {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()}
    bad = frames()
    bad["buy"] = bad["buy"].assign(time="soon")
    with pytest.raises(ValueError, match="cannot read 'soon'"):
        make(tmp_path, bad)
    assert {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.path.name]


def test_equal_content_is_reused_and_changed_content_is_not(tmp_path):
    one = make(tmp_path)
    stamp = (one.path / "store.json").stat().st_mtime_ns
    assert (make(tmp_path).path / "store.json").stat().st_mtime_ns == stamp
    assert make(tmp_path, frames(stars=np.arange(20.0))).path != one.path
    assert make(tmp_path, split=LeaveOneOut()).path != one.path


def test_events_without_times_refuse_a_time_split_and_take_leave_one_out(tmp_path):
    views = {"watch": pd.DataFrame({"user": [1] * 5, "item": range(5)})}
    with pytest.raises(ValueError, match=r"GlobalTimeSplit needs events with times, .*use LeaveOneOut"):
        make(tmp_path, views, targets=["watch"])
    store = make(tmp_path, views, targets=["watch"], split=LeaveOneOut())
    assert not store.schema.has_times
    assert store.targets("test").time.tolist() == [4]
    assert "looks into the future" in store.summary


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["wish"]}, "targets must be names of views .* got 'wish'"),
        ({"targets": []}, "targets must name at least one view"),
        ({"split": GivenPairs()}, "GivenPairs needs held-out pairs"),
        ({"label": FieldLabel("stars")}, "label field must be a numeric field of target view 'buy', got 'stars'"),
        ({"transforms": {"stars": MinMax()}}, "transforms must be by event field .* got 'stars'"),
        ({"transforms": {"wish.time": MinMax()}}, "transforms must be by event field .* got 'wish.time'"),
        ({"source_settings": {"items": pd.DataFrame({"id": [1]})}}, "items must have a column 'item', it has id"),
        (
            {"source_settings": {"items": pd.DataFrame({"item": ["a"]})}},
            "ids of column 'item' must be of one type: integers in view 'click', strings in items",
        ),
        (
            {"split": GivenPairs(), "source_settings": {"held_out": pd.DataFrame({"user": [1], "item": ["3"]})}},
            "ids of column 'item' must be of one type: integers in view 'click', strings in held_out",
        ),
        (
            {
                "split": GivenPairs(),
                "source_settings": {"held_out": pd.DataFrame({"user": [1], "item": [3], "view": ["wish"]})},
            },
            "column 'view' must name views",
        ),
    ],
)
def test_settings_that_do_not_fit_the_data_are_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_label_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must not be missing in a target: 1 are"):
        make(tmp_path, frames(stars=[np.nan] + [1.0] * 19), targets=["click"], label=FieldLabel("stars"))
