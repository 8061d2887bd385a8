"""A store that an engine made is, byte for byte, the one that is made in memory."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_mvrec.data import (
    FieldLabel,
    GivenPairs,
    GlobalTimeSplit,
    Identity,
    KFold,
    LeaveOneOut,
    MinMax,
    NovelTargets,
    PerUserTimeSplit,
    RandomSplit,
    Store,
    TargetFilter,
    TextVectors,
    Transform,
    UserMean,
    find_leaks,
    prepare,
)
from lightning_mvrec.data.sources import FrameSource, LogSource, RetailRocket, TableSource, Taobao
from lightning_mvrec.data.stream import chunks

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

from lightning_mvrec.data.engines import DuckDB

ROOT = os.environ.get("MVREC_TEST_DATA")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    """Several chunks and blocks also of a few events."""
    monkeypatch.setattr(chunks, "CHUNK", 64)
    monkeypatch.setattr("lightning_mvrec.data.engines.duck._ROWS", 50)


def events(count=600, users=40, items=30, seed=0):
    """Few users, items and moments: many ties and duplicates, a user with much, an item that only tests see."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "user": (users * rng.random(count) ** 2).astype(np.int64) * 7 - 50,
            "item": (items * rng.random(count) ** 2).astype(np.int64) * 11 + 3,
            "time": 1_600_000_000 + rng.integers(0, 200, count),
            "stars": rng.integers(1, 6, count).astype(np.float64),
            "device": rng.choice(["phone", "desk", "täblet", "TV"], count),
        }
    )
    frame.loc[rng.random(count) < 0.1, "stars"] = np.nan
    frame.loc[rng.random(count) < 0.1, "device"] = None
    frame.loc[count - 1, ["item", "time", "device"]] = [99_991, 1_700_000_000, "late"]
    return frame


def write_parts(frame, folder, kind="parquet", parts=4):
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(np.array_split(np.arange(len(frame)), parts)):
        part = frame.iloc[rows]
        if kind == "parquet":
            part.to_parquet(folder / f"part-{number}.parquet", index=False)
        elif kind == "jsonl":
            part.to_json(folder / f"part-{number}.jsonl", orient="records", lines=True)
        else:
            part.to_csv(folder / f"part-{number}.{kind}", index=False, sep="\t" if kind == "tsv" else ",")


def name_of(value):
    """Name a test's setting; the same in every worker process, as the addresses of objects are not."""
    if isinstance(value, dict):
        return "-".join(f"{key}={name_of(item)}" for key, item in value.items())
    return value if isinstance(value, str) else str(value) if isinstance(value, (int, list)) else type(value).__name__


def two_views(root, kind="parquet"):
    write_parts(events(), root / "click", kind)
    write_parts(events(200, seed=1).drop(columns="device"), root / "buy", kind, parts=2)
    return TableSource({"click": "click", "buy": "buy"})


def content(store):
    return {path.relative_to(store.path).as_posix(): path.read_bytes() for path in store.path.rglob("*.*")}


def check_same(tmp_path, source, root, engine=None, **settings):
    settings = {"progress": False, **settings}
    plain = prepare(source, str(root), store_dir=tmp_path / "plain", **settings)
    made = prepare(source, str(root), store_dir=tmp_path / "made", engine=engine or DuckDB(threads=2), **settings)
    assert made.path.name == plain.path.name
    expected, got = content(plain), content(made)
    assert sorted(got) == sorted(expected)
    assert [name for name in expected if got[name] != expected[name]] == []
    assert [path.name for path in (tmp_path / "made").iterdir() if path.is_dir()] == [made.path.name]
    assert find_leaks(made) == []
    return made


@pytest.mark.parametrize("kind", ["parquet", "csv", "tsv", "csv.gz", "jsonl"])
def test_the_bytes_are_those_of_the_store_made_in_memory(tmp_path, kind):
    made = check_same(tmp_path, two_views(tmp_path / "log", kind), tmp_path / "log", targets=["buy"])
    assert sorted(made.view("click").fields) == ["device", "stars", "stars_missing"]
    assert made.manifest["counts"]["test"]["unknown"] == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"split": LeaveOneOut()},
        {"split": PerUserTimeSplit(0.2, 0.3)},
        {"split": GlobalTimeSplit(0.0, 0.0)},
        {"split": GlobalTimeSplit(0.3, 0.2), "targets": ["buy", "click"]},
        {"split": LeaveOneOut(), "target_filter": NovelTargets()},
        {"target_filter": NovelTargets()},
        {"label": FieldLabel("stars", 4.0), "expect": "must not be missing in a target"},
        {"transforms": {"stars": MinMax(), "time": Identity(), "click.stars": Identity()}},
        {"deduplicate": False},
    ],
    ids=name_of,
)
def test_settings_give_the_same_bytes(tmp_path, settings):
    settings = {"targets": ["buy"], **settings}
    source = two_views(tmp_path / "log")
    if message := settings.pop("expect", None):
        for engine in (None, DuckDB(threads=2)):
            with pytest.raises(ValueError, match=message):
                prepare(source, str(tmp_path / "log"), store_dir=tmp_path, engine=engine, progress=False, **settings)
    else:
        check_same(tmp_path, source, tmp_path / "log", **settings)


def test_a_running_mean_is_the_same_but_for_rounding(tmp_path):
    source = two_views(tmp_path / "log")
    settings = {"targets": ["buy"], "transforms": {"stars": UserMean()}, "progress": False}
    stores = [
        prepare(source, str(tmp_path / "log"), store_dir=tmp_path / str(number), engine=engine, **settings)
        for number, engine in enumerate([None, DuckDB()])
    ]
    for name in ("click", "buy"):
        expected, got = (store.view(name).fields["stars"] for store in stores)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_string_ids_and_a_behaviour_column_give_the_same_bytes(tmp_path):
    log = pd.concat([events().assign(what="click"), events(200, seed=1).assign(what="buy", device=None)])
    log = log.assign(user="u" + log["user"].astype(str), item="é" + log["item"].astype(str))
    write_parts(log.sample(frac=1, random_state=0), tmp_path / "log")
    columns = {"user": "user", "item": "item", "time": "time", "stars": "stars"}
    source = LogSource("log/*.parquet", "what", {"click": "click", "buy": "buy"}, columns)
    made = check_same(tmp_path, source, tmp_path, targets=["buy"], split=LeaveOneOut())
    assert made.user_ids[1:] == sorted(made.user_ids[1:])


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_dates_are_read_as_the_same_seconds(tmp_path, kind):
    frame = events().drop(columns=["stars", "device"])
    frame["time"] = pd.to_datetime(frame["time"], unit="s") + pd.Timedelta("700ms")
    write_parts(frame, tmp_path / "log", kind)
    made = check_same(tmp_path, TableSource({"click": "log"}), tmp_path, targets=["click"])
    assert made.view("click").times.min() == events()["time"].min()


@pytest.mark.parametrize("unit", ["ms", "ns"])
def test_units_of_time_are_rounded_down(tmp_path, unit):
    frame = events().drop(columns=["stars", "device"])
    per = {"ms": 1000, "ns": 10**9}[unit]
    frame["time"] = (frame["time"] - 1_600_000_100) * per + per - 1
    write_parts(frame, tmp_path / "log")
    source = TableSource({"click": "log"}, time_unit=unit)
    made = check_same(tmp_path, source, tmp_path, targets=["click"])
    assert made.view("click").times.min() == -100


def test_events_without_times_keep_the_order_of_the_parts(tmp_path):
    write_parts(events()[["user", "item"]], tmp_path / "log")
    made = check_same(tmp_path, TableSource({"click": "log"}), tmp_path, targets=["click"], split=LeaveOneOut())
    assert not made.schema.has_times


def test_items_users_and_held_out_pairs_come_from_their_files(tmp_path):
    source = two_views(tmp_path)
    items = pd.DataFrame({"item": [3, 7_777, 14], "title": ["a", "b", None], "price": [1.0, 2.0, np.nan]})
    users = pd.DataFrame({"user": [-50, 5_000], "age": [20, 30]})
    held_out = pd.DataFrame({"user": [-50, 6_000, -43], "item": [14, 3, 123_456]})
    for name, frame in (("items", items), ("users", users), ("pairs", held_out)):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    source = TableSource(source.views, items="items.csv", users="users.csv", held_out="pairs.csv", text=["title"])
    made = check_same(tmp_path, source, tmp_path, targets=["buy"], split=GivenPairs())
    assert 7_777 in made.item_ids
    assert 123_456 not in made.item_ids
    assert {5_000, 6_000} <= set(made.user_ids)


def test_threads_limits_and_block_sizes_change_no_byte(tmp_path, monkeypatch):
    source = two_views(tmp_path / "log")
    stores = []
    for threads, rows, chunk in ((1, 7, 10**6), (2, 10**6, 64), (3, 200, 1)):
        monkeypatch.setattr("lightning_mvrec.data.engines.duck._ROWS", rows)
        monkeypatch.setattr(chunks, "CHUNK", chunk)
        engine = DuckDB(memory_limit=f"{40 + threads}MB", threads=threads, temp_dir=str(tmp_path / "spill"))
        folder = tmp_path / str(threads)
        stores.append(
            prepare(source, str(tmp_path / "log"), targets=["buy"], store_dir=folder, engine=engine, progress=False)
        )
    first, *others = map(content, stores)
    assert others == [first, first]


def test_parts_count_in_the_order_of_their_names(tmp_path):
    """Two events of one moment: the one in the part that comes first by name is the older."""
    folder = tmp_path / "log"
    folder.mkdir()
    for name, item in (("b", 2), ("a", 1), ("c", 3)):  # b is written first
        pd.DataFrame({"user": [1], "item": [item], "time": [5]}).to_parquet(folder / f"{name}.parquet")
    (folder / "_SUCCESS").touch()
    source = TableSource({"click": "log"})
    made = check_same(tmp_path, source, tmp_path, targets=["click"], split=LeaveOneOut(min_targets=4))
    assert [made.item_ids[row] for row in made.view("click").items] == [1, 2, 3]


@pytest.mark.parametrize("split", [RandomSplit(), KFold()], ids=name_of)
def test_a_split_over_all_targets_at_once_is_refused(tmp_path, split):
    source = two_views(tmp_path / "log")
    with pytest.raises(ValueError, match=f"{type(split).__name__} decides about all targets at once"):
        prepare(source, str(tmp_path / "log"), targets=["buy"], split=split, store_dir=tmp_path / "s", engine=DuckDB())
    assert [path for path in (tmp_path / "s").iterdir() if path.is_dir()] == []


class EverySecond(TargetFilter):
    def eligible(self, histories, views):
        return {view: np.arange(len(histories[view].user)) % 2 == 0 for view in views}


class Halved(Transform):
    def apply(self, value_N, offsets, train_N):
        return np.nan_to_num(value_N) / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_filter": EverySecond()}, "EverySecond must decide about each user by that user's events alone"),
        ({"transforms": {"stars": Halved()}}, "Halved of click.stars needs all training events at once"),
        ({"targets": ["wish"]}, "targets must be names of views"),
        ({"label": FieldLabel("device")}, "label field must be a numeric field of target view 'buy', got 'device'"),
        ({"transforms": {"wish": MinMax()}}, "transforms must be by event field"),
        ({"source": FrameSource({"buy": events()})}, "source FrameSource is read into memory"),
        ({"engine": DuckDB(memory_limit="much")}, "memory_limit must be a size such as '2GB', got 'much'"),
    ],
    ids=name_of,
)
def test_what_an_engine_cannot_do_is_named_and_leaves_nothing(tmp_path, settings, message):
    source = two_views(tmp_path / "log")
    settings = {"source": source, "targets": ["buy"], "engine": DuckDB(), **settings}
    source = settings.pop("source")
    with pytest.raises(ValueError, match=message):
        prepare(source, str(tmp_path / "log"), store_dir=tmp_path / "s", progress=False, **settings)
    assert [path for path in (tmp_path / "s").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": [1, None, 3]}, r"view 'click' .*, row 1, column 'user': an id must not be missing, got None; 1 are"),
        ({"item": ["a", "b", None]}, r"row 2, column 'item': an id must not be missing"),
        ({"item": [0.5, 1.0, 2.0]}, "column 'item': ids must be integers or strings, got DOUBLE"),
        (
            {"time": ["2020-01-01", "soon", "later"]},
            "row 1, column 'time': cannot be read as a time, got 'soon'; 2 are so",
        ),
        ({"time": [1.0, np.nan, 2.0]}, "row 1, column 'time': cannot be read as a time"),
        ({"field": [[1], [2], [3]]}, "column 'field': an event field must be a number or a text, got"),
        ({"user": None}, "must have columns user, item: user is missing"),
    ],
    ids=name_of,
)
def test_a_fault_in_the_events_names_view_row_and_column(tmp_path, change, message):
    frame = pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 3], "time": [1, 2, 3]})
    frame = frame.assign(**{name: pd.array(v) if name == "user" else v for name, v in change.items() if v is not None})
    frame = frame.drop(columns=[name for name, values in change.items() if values is None])
    write_parts(frame, tmp_path / "log", parts=1)
    with pytest.raises(ValueError, match=message):
        prepare(
            TableSource({"click": "log"}), str(tmp_path), targets=["click"], store_dir=tmp_path / "s", engine=DuckDB(),
            progress=False,
        )  # fmt: skip


def test_ids_of_two_types_are_refused(tmp_path):
    write_parts(events(), tmp_path / "click")
    write_parts(events().assign(user="x"), tmp_path / "buy")
    source = TableSource({"click": "click", "buy": "buy"})
    with pytest.raises(ValueError, match=r"ids of column 'user' must be of one type: integers in .* strings in"):
        prepare(source, str(tmp_path), targets=["buy"], store_dir=tmp_path / "s", engine=DuckDB(), progress=False)


def requirements(extra: str) -> str:
    """What ``pyproject.toml`` says that the extra needs, as the words of a command line."""
    listed = re.search(
        rf"^{extra} = (\[.*\])", (Path(__file__).parents[3] / "pyproject.toml").read_text(), re.MULTILINE
    )
    return " ".join(f"'{each}'" for each in json.loads(listed[1]))


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
    source = two_views(tmp_path / "log")
    with pytest.raises(ImportError, match="the extra 'scale': pip install " + requirements("scale")):
        prepare(source, str(tmp_path / "log"), targets=["buy"], store_dir=tmp_path / "s", engine=DuckDB())


def test_the_manifest_is_written_last(tmp_path):
    source = two_views(tmp_path / "log")
    made = prepare(source, str(tmp_path / "log"), targets=["buy"], store_dir=tmp_path / "s", engine=DuckDB())
    sizes = json.loads((made.path / "store.json").read_text())["files"]
    assert sizes == {name: len(data) for name, data in content(made).items() if name != "store.json"}
    assert isinstance(Store(made.path).view("click").items, np.ndarray)


@pytest.mark.slow
@pytest.mark.skipif(not ROOT, reason="MVREC_TEST_DATA is not set: the folder that holds ml-100k, taobao, ...")
@pytest.mark.parametrize(
    ("source", "settings"),
    [
        (Taobao(), {"targets": ["buy"], "split": LeaveOneOut()}),
        (Taobao(), {"targets": ["buy"]}),
        (RetailRocket(), {"targets": ["view", "transaction"], "split": GivenPairs(), "target_filter": NovelTargets()}),
        (
            TableSource(
                {"review": "amazon-gift-cards/Gift_Cards_5.jsonl"},
                columns={"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "rating": "overall"},
            ),
            {"targets": ["review"], "label": FieldLabel("rating", 4.0)},
        ),
    ],
    ids=["taobao-last", "taobao-time", "retailrocket", "gift-cards"],
)
def test_real_logs_give_the_same_bytes(tmp_path, monkeypatch, source, settings):
    monkeypatch.setattr(chunks, "CHUNK", 1 << 14)
    monkeypatch.setattr("lightning_mvrec.data.engines.duck._ROWS", 10_000)
    check_same(tmp_path, source, ROOT, **settings)


@pytest.mark.slow
@pytest.mark.skipif(not ROOT, reason="MVREC_TEST_DATA is not set: the folder that holds ml-100k, taobao, ...")
def test_movielens_ratings_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 1 << 14)
    names = ["user", "item", "rating", "time"]
    frame = pd.read_csv(os.path.join(ROOT, "ml-100k", "u.data"), sep="\t", names=names)
    write_parts(frame, tmp_path / "ratings", parts=7)
    check_same(
        tmp_path,
        TableSource({"rating": "ratings"}),
        tmp_path,
        targets=["rating"],
        label=FieldLabel("rating", 4.0),
        transforms={"time": MinMax()},
    )


def test_content_of_item_texts_is_the_same(tmp_path):
    pytest.importorskip("sklearn")
    write_parts(events(), tmp_path / "log")
    items = pd.DataFrame({"item": events()["item"].unique()})
    items.assign(title=[f"lip stick {number % 5}" for number in range(len(items))]).to_csv(
        tmp_path / "i.csv", index=False
    )
    source = TableSource({"click": "log"}, items="i.csv", text=["title"])
    made = check_same(tmp_path, source, tmp_path, targets=["click"], content=TextVectors(["title"], width=4))
    assert made.content.shape == (made.schema.num_items, 4)
