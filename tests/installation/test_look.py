"""Imports are tried elsewhere: what breaks there does not break here."""

import os
import sys

import pytest

from lightning_mvrec.installation.look import inspect, probe
from lightning_mvrec.installation.trio import Found


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Write modules that shadow the real ones in the probe's process."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(**sources):
        for name, source in sources.items():
            (tmp_path / f"{name}.py").write_text(source)

    return write


def test_versions_and_builds_are_read_without_importing():
    found = inspect()
    assert found.versions["torch"].startswith("2.")
    assert found.python == sys.executable


def test_a_crash_of_one_import_is_seen_and_the_others_are_still_tried(modules):
    modules(lightning="import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", pandas="", torchmetrics="1 / 0")
    found = Found(versions={"lightning": "2.6.6", "pandas": "3", "torchmetrics": "1.9"})
    probe(found)
    assert found.imports == {
        "lightning": "killed by signal 11",
        "torchmetrics": "ZeroDivisionError: division by zero",
        "pandas": "",
    }


def test_an_import_that_hangs_is_given_up(modules):
    modules(lightning="import time; time.sleep(60)", pandas="")
    found = Found(versions={"lightning": "2.6.6", "pandas": "3"})
    probe(found, timeout=3.0)
    assert found.imports == {"lightning": "not finished after 3 s", "pandas": ""}


def test_a_malicious_release_is_not_imported(modules, tmp_path):
    modules(lightning=f"open({os.fspath(tmp_path / 'ran')!r}, 'w')", pandas="")
    found = Found(versions={"lightning": "2.6.3", "pandas": "3"})
    probe(found)
    assert not (tmp_path / "ran").exists()
    assert found.imports == {"pandas": ""}
