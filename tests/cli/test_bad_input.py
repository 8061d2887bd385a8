"""Bad input through the command line: one message that names the place, a status that is not 0, nothing lost."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_mvrec.cli.main import main
from tests.recipes.tiny import taobao

RECIPE = Path(__file__).parents[2] / "recipes" / "taobao" / "multi_behavior.yaml"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    taobao(tmp_path, np.random.default_rng(0))
    return tmp_path


def mvrec(capsys, place, command, *words):
    """Run a command on the recipe; return its status and what it printed to the screen and as an error."""
    arguments = [command, "--config", str(RECIPE), "--data.root", str(place), *words]
    try:
        status = main(arguments)
    except SystemExit as ended:
        status = ended.code
    return status, capsys.readouterr().err


def edit(place, change) -> None:
    file = place / "taobao" / "events.csv"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(change(lines)) + "\n")


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file's content, but for the cache of the source files' hashes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "hashes.json"]
    return {str(path): path.read_bytes() for path in files}


BAD = {
    "a missing column": (lambda lines: [line.rsplit(",", 1)[0] for line in lines], ["events.csv", "timestamp"]),
    "an unparsable timestamp": (
        lambda lines: [*lines[:4], lines[4].rsplit(",", 1)[0] + ",yesterday", *lines[5:]],
        ["events.csv, line 5", "timestamp", "yesterday"],
    ),
    "an empty file": (lambda lines: [], ["events.csv", "empty"]),
    "only a header": (lambda lines: lines[:1], ["events.csv"]),
    "an id of the wrong type": (
        lambda lines: [*lines[:4], "abc" + lines[4], *lines[5:]],
        ["events.csv, line 5", "user_id", "abc"],
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_named_and_earlier_stores_stay(kind, place, capsys):
    assert mvrec(capsys, place, "prepare")[0] == 0
    before = snapshot(place / ".mvrec")
    change, words = BAD[kind]
    edit(place, change)
    status, error = mvrec(capsys, place, "prepare")
    assert status == 1, error
    assert all(word in error for word in words), error
    assert "Traceback" not in error
    assert snapshot(place / ".mvrec") == before


def test_users_without_events_of_a_view_are_no_error(place, capsys):
    edit(place, lambda lines: [line for line in lines if not (line.startswith("3,") and ",cart," in line)])
    status, error = mvrec(capsys, place, "fit", "--trainer.fast_dev_run", "1")
    assert status == 0, error


def test_a_truncated_store_is_named_and_left_alone(place, capsys):
    assert mvrec(capsys, place, "prepare")[0] == 0
    store = next(path for path in (place / ".mvrec").iterdir() if path.is_dir())
    largest = max((path for path in store.rglob("*.npy")), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-20])
    status, error = mvrec(capsys, place, "fit", "--trainer.fast_dev_run", "1")
    assert status == 1
    assert largest.name in error


def test_no_table_optimizer_shows_the_lines_to_add(place, capsys):
    words = ["--model.table_optimizer", "null", "--trainer.fast_dev_run", "1"]
    status, error = mvrec(capsys, place, "fit", *words)
    assert status == 1
    assert "configure_table_optimizers" in error


def test_a_misspelt_key_is_refused_before_anything_is_written(place, capsys):
    overlay = place / "more.yaml"
    overlay.write_text("model: {init_args: {model: {init_args: {embeding_dim: 8}}}}")
    status, _ = mvrec(capsys, place, "fit", "--config", str(overlay))
    assert status == 2
    assert not (place / ".mvrec").exists()
    assert not (place / "runs").exists()


def test_the_traceback_of_a_refused_key_is_there_for_who_asks(place, capsys, monkeypatch):
    words = ["--trainer.max_epoch", "3"]
    assert 'File "' not in mvrec(capsys, place, "fit", *words)[1]
    monkeypatch.setenv("MVREC_TRACEBACK", "1")
    status, error = mvrec(capsys, place, "fit", *words)
    assert status == 2
    assert 'parser.py", line' in error


def test_missing_files_are_named_before_anything_is_set_up(place, capsys, caplog):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        status, error = mvrec(capsys, place, "fit", "--data.root", str(place / "nowhere"))
    assert status == 1
    assert "root must hold" in error
    assert not [line for line in caplog.messages if "GPU available" in line or "distributed" in line]
    assert not (place / "runs").exists()


def test_a_checkpoint_that_is_none_is_named_and_earlier_ones_stay(place, capsys):
    assert mvrec(capsys, place, "fit", "--trainer.max_epochs", "1", "--run_dir", "run", "--baselines", "[]")[0] == 0
    good = snapshot(place / "run" / "checkpoints")
    assert good
    bad = place / "bad.ckpt"
    bad.mkdir()
    (bad / "meta.pt").write_bytes(b"nonsense")
    words = ["--ckpt_path", str(bad), "--run_dir", "more", "--trainer.max_epochs", "2"]
    status, error = mvrec(capsys, place, "fit", *words)
    assert status == 1
    assert "bad.ckpt" in error
    assert snapshot(place / "run" / "checkpoints") == good


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_a_command_without_a_recipe_says_what_it_needs(command, capsys):
    assert main([command]) == 2
    assert f"mvrec {command}: needs a recipe, for example --config recipes/quickstart.yaml" in capsys.readouterr().err
