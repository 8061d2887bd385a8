"""Spark's stores are, byte for byte, those made in memory."""

import shutil
import sys
from importlib.util import find_spec

import pandas as pd
import pytest

pytest.importorskip("pyarrow")

from lightning_mvrec.data import GlobalTimeSplit, Identity, LeaveOneOut, prepare
from lightning_mvrec.data.engines import Spark
from lightning_mvrec.data.sources import LogSource, TableSource
from lightning_mvrec.data.stream import chunks
from tests.data.stream.test_stream import check_same, events, name_of, requirements, two_views, write_parts


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    source = two_views(tmp_path / "log")
    with pytest.raises(ImportError, match="the extra 'spark': pip install " + requirements("spark")):
        prepare(source, str(tmp_path / "log"), targets=["buy"], store_dir=tmp_path / "s", engine=Spark())


needs_spark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
    pytest.mark.skipif(not find_spec("pyspark"), reason="pyspark is not installed"),
]


# A session for all of them: starting one takes longer than any test.
@pytest.mark.usefixtures("_session")
class TestOneSession:
    pytestmark = needs_spark

    @pytest.fixture(scope="class")
    def _session(self, tmp_path_factory):
        from pyspark.sql import SparkSession

        folder = str(tmp_path_factory.mktemp("spark"))
        builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
        builder = builder.config("spark.sql.shuffle.partitions", "2").config("spark.local.dir", folder)
        # Parts of a few rows are read in several pieces.
        builder = builder.config("spark.sql.files.maxPartitionBytes", "6000").config("spark.driver.memory", "1g")
        builder = builder.config("spark.sql.codegen.wholeStage", "false")  # compiling costs more than it saves here
        session = builder.config("spark.sql.session.timeZone", "Asia/Kolkata").getOrCreate()
        yield session
        assert session.conf.get("spark.sql.session.timeZone") == "Asia/Kolkata"
        session.stop()

    @pytest.fixture(autouse=True)
    def _small_chunks(self, monkeypatch):
        monkeypatch.setattr(chunks, "CHUNK", 64)
        monkeypatch.setattr("lightning_mvrec.data.engines.spark._ROWS", 50)

    @pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
    def test_the_bytes_are_those_of_the_store_made_in_memory(self, tmp_path, kind):
        source = two_views(tmp_path / "log", kind)
        settings = {"targets": ["buy"], "split": GlobalTimeSplit(0.3, 0.2), "transforms": {"time": Identity()}}
        made = check_same(tmp_path, source, tmp_path / "log", engine=Spark(threads=2), **settings)
        assert sorted(made.view("click").fields) == ["device", "stars", "stars_missing", "time"]

    def test_string_ids_and_a_behaviour_column_give_the_same_bytes(self, tmp_path):
        log = pd.concat([events().assign(what="click"), events(200, seed=1).assign(what="buy", device=None)])
        log = log.assign(user="u" + log["user"].astype(str), item="é" + log["item"].astype(str))
        write_parts(log.sample(frac=1, random_state=0), tmp_path / "log a+b", parts=5)
        columns = {"user": "user", "item": "item", "time": "time", "stars": "stars"}
        source = LogSource("log a+b/*.parquet", "what", {"click": "click", "buy": "buy"}, columns)
        check_same(tmp_path, source, tmp_path, engine=Spark(), targets=["buy"], split=LeaveOneOut())

    @pytest.mark.parametrize("kind", ["parquet", "csv"])
    def test_dates_are_read_as_the_same_seconds(self, tmp_path, kind):
        frame = events().drop(columns=["stars", "device"])
        frame["time"] = pd.to_datetime(frame["time"], unit="s") + pd.Timedelta("700ms")
        write_parts(frame, tmp_path / "log", kind)
        check_same(tmp_path, TableSource({"click": "log"}), tmp_path, engine=Spark(), targets=["click"])

    def test_units_of_time_are_rounded_down(self, tmp_path):
        frame = events().drop(columns=["stars", "device"])
        frame["time"] = (frame["time"] - 1_600_000_100) * 10**9 + 10**9 - 1
        write_parts(frame, tmp_path / "log")
        source = TableSource({"click": "log"}, time_unit="ns")
        made = check_same(tmp_path, source, tmp_path, engine=Spark(), targets=["click"])
        assert made.view("click").times.min() == -100

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"user": [1, None, 3]}, r"view 'click' .*column 'user': must be an id in every row, 1 are missing"),
            (
                {"time": ["2020-01-01", "soon", "later"]},
                r"column 'time': must be a time in every row, 2 are missing or",
            ),
            ({"item": [0.5, 1.0, 2.0]}, "column 'item': ids must be integers or strings, got double"),
            ({"field": [[1], [2], [3]]}, "column 'field': an event field must be a number or a text"),
        ],
        ids=name_of,
    )
    def test_a_fault_in_the_events_names_view_and_column(self, tmp_path, change, message):
        frame = pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 3], "time": [1, 2, 3]})
        changed = frame.assign(**{name: pd.array(v) if name == "user" else v for name, v in change.items()})
        write_parts(changed, tmp_path / "log", parts=1)
        with pytest.raises(ValueError, match=message):
            prepare(
                TableSource({"click": "log"}), str(tmp_path), targets=["click"], store_dir=tmp_path / "s",
                engine=Spark(), progress=False,
            )  # fmt: skip
        assert [path for path in (tmp_path / "s").iterdir() if path.is_dir()] == []

    def test_files_that_are_none_are_named(self, tmp_path):
        (tmp_path / "log").mkdir()
        (tmp_path / "log" / "part.parquet").write_bytes(b"no parquet")
        with pytest.raises(ValueError, match=r"part.parquet cannot be read"):
            prepare(
                TableSource({"click": "log"}), str(tmp_path), targets=["click"], store_dir=tmp_path / "s",
                engine=Spark(), progress=False,
            )  # fmt: skip


class TestNoSession:
    pytestmark = needs_spark

    def test_a_session_of_its_own_is_ended_and_leaves_nothing_behind(self, tmp_path, monkeypatch):
        from pyspark.sql import SparkSession

        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        source = two_views(tmp_path / "log")
        engine = Spark(master="local[2]", memory="1g", temp_dir=str(tmp_path / "sorted"))
        check_same(tmp_path, source, tmp_path / "log", engine=engine, targets=["buy"])
        assert SparkSession.getActiveSession() is None
        assert list((tmp_path / "here").iterdir()) == []
        assert list((tmp_path / "sorted").iterdir()) == []
