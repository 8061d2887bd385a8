"""A preparation that was killed goes on, or begins again; nothing half-written is taken for whole."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")

from lightning_mvrec.data import LeaveOneOut, prepare
from lightning_mvrec.data.engines import DuckDB
from lightning_mvrec.data.stream import build as build_module
from lightning_mvrec.data.stream.state import OrderedState
from tests.data.stream.test_stream import content, two_views


class Killed(BaseException):
    """As a kill: no handler of errors sees it."""


def make(root, folder, **settings):
    source = two_views(root / "log")
    settings = {"targets": ["buy"], "engine": DuckDB(threads=2), "progress": False, **settings}
    return prepare(source, str(root / "log"), store_dir=folder, **settings)


@pytest.mark.parametrize(
    "place", ["write_ordered", "candidate_times", "assign", "renumber", "write_event_fields", "summarise"]
)
def test_a_kill_before_any_step_is_mended_by_the_next_call(tmp_path, monkeypatch, place):
    expected = content(make(tmp_path, tmp_path / "whole"))

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(build_module, place, kill)
        with pytest.raises(Killed):
            make(tmp_path, tmp_path / "killed")
    assert [path.name.rpartition(".")[2] for path in (tmp_path / "killed").iterdir() if path.is_dir()] == ["building"]
    sorted_before = place != "write_ordered"
    opened = []
    original = DuckDB.open
    monkeypatch.setattr(DuckDB, "open", lambda self, *a: opened.append(1) or original(self, *a))
    assert content(make(tmp_path, tmp_path / "killed")) == expected
    # The sort, which is the long part, is not done twice, unless its result was being written over.
    assert len(opened) == (0 if sorted_before and place not in ("write_event_fields", "summarise") else 1)


def test_a_file_cut_short_makes_it_begin_again(tmp_path, monkeypatch):
    expected = content(make(tmp_path, tmp_path / "whole"))

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "assign", kill)
        with pytest.raises(Killed):
            make(tmp_path, tmp_path / "cut")
    (building,) = (tmp_path / "cut").glob("*.building")
    file = building / "store" / "views" / "buy" / "items.npy"
    file.write_bytes(file.read_bytes()[:-4])
    assert OrderedState.load(building / "store", building / "temporary") is None
    assert content(make(tmp_path, tmp_path / "cut")) == expected


def test_two_processes_make_one_store(tmp_path, monkeypatch):
    """The second waits for the first and finds its store."""
    begun, goes_on = threading.Event(), threading.Event()
    original = build_module.assign

    def slow(*args, **settings):
        begun.set()
        goes_on.wait(60)
        return original(*args, **settings)

    monkeypatch.setattr(build_module, "assign", slow)
    found = []
    two_views(tmp_path / "log")
    first = threading.Thread(target=lambda: found.append(make(tmp_path, tmp_path / "one").path))
    first.start()
    begun.wait(60)
    second = threading.Thread(target=lambda: found.append(make(tmp_path, tmp_path / "one").path))
    second.start()
    time.sleep(0.3)
    assert not found
    goes_on.set()
    first.join()
    second.join()
    assert len(set(found)) == 1
    assert [path.suffix for path in (tmp_path / "one").iterdir() if path.is_dir()] == [""]


@pytest.mark.slow
def test_a_real_kill_while_sorting_leaves_no_store_and_no_lock(tmp_path):
    expected = content(make(tmp_path, tmp_path / "whole", split=LeaveOneOut()))
    script = textwrap.dedent(
        """
        import os, sys, time
        from pathlib import Path
        from lightning_mvrec.data import LeaveOneOut, prepare
        from lightning_mvrec.data.engines import DuckDB
        from lightning_mvrec.data.sources import TableSource
        from lightning_mvrec.data.stream import ordered
        original = ordered._without_duplicates
        def slow(block):
            print("sorting", flush=True)
            time.sleep(600)
        ordered._without_duplicates = slow
        source = TableSource({"click": "click", "buy": "buy"})
        prepare(source, sys.argv[1], targets=["buy"], split=LeaveOneOut(), store_dir=sys.argv[2], engine=DuckDB())
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path / "log"), str(tmp_path / "killed")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout.readline() == "sorting\n"
        process.send_signal(signal.SIGKILL)
    assert [path.suffix for path in (tmp_path / "killed").iterdir() if path.is_dir()] == [".building"]
    assert content(make(tmp_path, tmp_path / "killed", split=LeaveOneOut())) == expected
