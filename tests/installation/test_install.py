"""What the set-up would run, without running it."""

import json
import subprocess
import sys

import pytest

from lightning_mvrec.installation import install as module
from lightning_mvrec.installation.install import STAMP, install, install_into_venv, setup_key
from lightning_mvrec.installation.trio import Found


@pytest.fixture
def calls(monkeypatch):
    """Record the commands; they all succeed unless told otherwise."""
    recorded = []
    monkeypatch.setattr(subprocess, "call", lambda command: recorded.append(command) or 0)
    monkeypatch.setattr(module, "inspect", lambda: Found(python="py"))
    return recorded


@pytest.fixture
def project(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return tmp_path


def test_the_checkout_goes_in_without_its_dependencies_and_then_what_is_left_of_them(calls, project):
    install("cpu", None, str(project), ["test"], dry=False)
    assert calls[:3] == [
        ["py", "-m", "pip", "install", "torch==2.13.0"],
        ["py", "-m", "pip", "install", "--no-deps", "--force-reinstall", "fbgemm-gpu-cpu==1.8.0"],
        ["py", "-m", "pip", "install", "--no-deps", "torchrec==1.8.0"],
    ]
    assert calls[3] == ["py", "-m", "pip", "install", "--no-deps", "--editable", str(project)]
    assert calls[4][:6] == ["py", "-m", "pip", "install", "--no-warn-conflicts", "torch==2.13.0"]
    assert calls[4][-2:] == ["--group", f"{project / 'pyproject.toml'}:test"]
    assert not [word for word in calls[4] if word.startswith(("fbgemm", "torchrec"))]


def test_a_dry_run_runs_nothing(calls, project, capsys):
    install("cuda", "2.14", "", [], dry=True)
    assert calls == []
    assert "py -m pip install torch===2.14.1" in capsys.readouterr().out


def test_what_pip_says_about_a_trio_that_the_package_does_not_ask_for_is_foretold(calls, capsys):
    install("cpu", "2.14", "", [], dry=True)
    said = capsys.readouterr().out
    assert "goes on asking for torch 2.13: `pip check` says so" in said
    assert "`mvrec doctor --install --trio 2.14` mends it" in said
    assert "ERROR" not in said
    install("cpu", "2.13", "", [], dry=True)
    assert "pip check" not in capsys.readouterr().out


@pytest.mark.parametrize(("have", "want"), [("2.13.0+cpu", "2.14"), ("2.14.1", "2.13")])
def test_that_pip_speaks_of_errors_while_trios_change_is_foretold(calls, monkeypatch, capsys, have, want):
    monkeypatch.setattr(module, "inspect", lambda: Found(python="py", versions={"torch": have}))
    install("cpu", None, "", [], dry=True)
    assert "ERROR" not in capsys.readouterr().out
    install("cpu", want, "", [], dry=True)
    assert "pip may speak of an ERROR" in capsys.readouterr().out


def test_a_step_that_fails_stops_the_rest_and_is_named(calls, monkeypatch):
    monkeypatch.setattr(subprocess, "call", lambda command: calls.append(command) or 1)
    with pytest.raises(SystemExit, match="failed, see above: py -m pip install torch"):
        install("cpu", None, "", [], dry=False)
    assert len(calls) == 1


def test_a_second_set_up_installs_nothing_until_something_changes(calls, project):
    venv = project / ".venv"
    venv.mkdir()
    assert install_into_venv(venv, "cpu", None, str(project), ["test"]) == 0
    first = len(calls)
    assert first > 0
    assert install_into_venv(venv, "cpu", None, str(project), ["test"]) == 0
    assert install_into_venv(venv, "cpu", None, str(project), []) == 0
    assert len(calls) == first
    (project / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    install_into_venv(venv, "cpu", None, str(project), ["test"])
    assert len(calls) > first


def test_another_group_is_added_to_those_that_are_in(calls, project):
    venv = project / ".venv"
    venv.mkdir()
    install_into_venv(venv, "cpu", None, str(project), ["test"])
    install_into_venv(venv, "cpu", None, str(project), ["lint"])
    assert json.loads((venv / STAMP).read_text())["groups"] == ["lint", "test"]
    assert calls[-1][-4:] == ["--group", "lint", "--group", "test"]


def test_an_environment_of_another_python_is_made_again_and_any_other_folder_is_left_as_it_is(calls, project):
    mine = project / ".venv"
    mine.mkdir()
    install_into_venv(mine, "cpu", None, str(project), [])
    assert calls[0] == [sys.executable, "-m", "venv", str(mine)]
    (mine / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.8.1\n")
    (mine / STAMP).unlink()
    calls.clear()
    install_into_venv(mine, "cpu", None, str(project), [])
    assert calls[0] == [sys.executable, "-m", "venv", "--clear", str(mine)]


def test_a_sound_environment_is_kept(calls, project, monkeypatch):
    major, minor = sys.version_info[:2]
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (project / ".venv" / "pyvenv.cfg").write_text(f"version = {major}.{minor}.0\n")
    install_into_venv(project / ".venv", "cpu", None, str(project), [])
    assert "venv" not in calls[0]
    assert calls[0][2:5] == ["pip", "install", "--quiet"]


def test_a_set_up_that_failed_is_tried_again(calls, project, monkeypatch):
    venv = project / ".venv"
    venv.mkdir()
    monkeypatch.setattr(subprocess, "call", lambda command: int("--install" in command))
    assert install_into_venv(venv, "cpu", None, str(project), []) == 1
    assert not (venv / STAMP).exists()


def test_the_key_depends_on_device_trio_and_project(project):
    keys = {setup_key(str(project), "cpu", ""), setup_key(str(project), "cuda", ""), setup_key("", "cpu", "")}
    keys.add(setup_key(str(project), "cpu", "2.14"))
    assert len(keys) == 4
