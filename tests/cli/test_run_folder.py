from pathlib import Path

import pytest

from lightning_mvrec.cli.run_folder import choose_run_dir


def test_a_named_folder_is_taken(monkeypatch):
    monkeypatch.delenv("MVREC_RUN_DIR", raising=False)
    assert choose_run_dir("here", ["a.yaml"]) == Path("here")


def test_a_new_folder_is_named_for_the_recipe(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MVREC_RUN_DIR", raising=False)
    assert choose_run_dir(None, ["recipes/taobao/multi_behavior.yaml"]).parent == Path("runs/taobao-multi_behavior")
    assert choose_run_dir(None, ["recipes/quickstart.yaml"]).parent == Path("runs/quickstart")


def test_an_existing_folder_is_not_taken_twice(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MVREC_RUN_DIR", raising=False)
    first = choose_run_dir(None, ["a.yaml"])
    first.mkdir(parents=True)
    assert choose_run_dir(None, ["a.yaml"]) != first


def test_processes_of_further_devices_share_the_first_one_s_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MVREC_RUN_DIR", raising=False)
    first = choose_run_dir(None, ["a.yaml"])
    first.mkdir(parents=True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_run_dir(None, ["a.yaml"]) == first


def test_a_run_of_a_runs_configuration_has_the_name_of_its_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MVREC_RUN_DIR", raising=False)
    chosen = choose_run_dir(None, ["runs/taobao-multi_behavior/20260101-000000/config.yaml"])
    assert chosen.parent.as_posix() == "runs/taobao-multi_behavior"


def test_a_folder_that_holds_a_run_is_refused(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=f"run_dir must be a folder without a run, {tmp_path} holds"):
        choose_run_dir(str(tmp_path), ["a.yaml"])
    monkeypatch.setenv("LOCAL_RANK", "1")  # the first process has just written it
    assert choose_run_dir(str(tmp_path), ["a.yaml"]) == tmp_path
