"""The commands on the embedded data, end to end: what a run leaves, and that its checkpoint gives the same figures."""

import csv
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lightning import Trainer

from lightning_mvrec import EventsDataModule, plain_module
from lightning_mvrec.cli import fit, prepare
from lightning_mvrec.cli.report import read_results
from lightning_mvrec.data import SyntheticEvents

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
SMALL = ["--data.source.num_users", "150", "--data.source.levels", "4", "--trainer.max_epochs", "2"]


def words(tmp_path: Path, run: str) -> list[str]:
    folders = ["--data.store_dir", str(tmp_path / "store"), "--run_dir", str(tmp_path / run)]
    return ["--config", str(RECIPE), *folders, *SMALL]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One trained run: its folder's parent, and what it printed."""
    folder = tmp_path_factory.mktemp("fit")
    environment = {**os.environ, "PYTHONPATH": str(RECIPE.parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lightning_mvrec.cli.main", "fit", *words(folder, "run")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


def test_the_last_line_is_the_run_s_folder(run):
    folder, printed = run
    assert printed.strip().splitlines()[-1] == str(folder / "run")


def test_a_run_leaves_results_configuration_plan_and_picture(run):
    folder = run[0] / "run"
    assert {"results.csv", "targets.npz", "config.yaml", "plan.json", "summary.json", "curves.png", "metrics.csv"} <= {
        path.name for path in folder.iterdir()
    }
    results = read_results(folder / "results.csv")
    assert {(row.split, row.seed) for row in results if row.model == "model"} == {("val", 0), ("test", 0)}
    assert {"popularity", "item-knn"} <= {row.model for row in results if row.split == "test"}
    assert json.loads((folder / "summary.json").read_text())["views"] == ["click", "cart", "buy"]
    assert {table["table"] for table in json.loads((folder / "plan.json").read_text())["tables"]} >= {"item_id"}


def test_two_processes_end_with_the_same_table(run):
    folder = run[0]
    environment = {**os.environ, "PYTHONPATH": str(RECIPE.parents[1]), "OMP_NUM_THREADS": "1"}
    overlay = str(RECIPE.parent / "hardware" / "cpu2.yaml")
    command = [sys.executable, "-m", "lightning_mvrec.cli.main", "fit", *words(folder, "two"), "--config", overlay]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

    def table(name):
        rows = read_results(folder / name / "results.csv")
        return {(row.model, row.split, row.metric): row.value for row in rows}

    assert table("two") == pytest.approx(table("run"), abs=1e-4)


def test_the_table_shows_the_model_beside_its_baselines(run):
    lines = run[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("test "))
    assert {"model", "popularity", "recency"} <= {line.split()[0] for line in lines[start + 1 : start + 8] if line}


def test_the_checkpoint_gives_the_same_test_figures(run, monkeypatch):
    folder = run[0]
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    best = next(path for path in (folder / "run" / "checkpoints").iterdir() if path.name.startswith("epoch"))
    monkeypatch.chdir(folder)
    assert fit.main("test", [*words(folder, "again"), "--ckpt_path", str(best)]) == 0

    def figures(name):
        rows = read_results(folder / name / "results.csv")
        return {row.metric: row.value for row in rows if row.model == "model" and row.split == "test"}

    assert figures("again") == pytest.approx(figures("run"), abs=1e-9)


def test_a_run_s_configuration_serves_every_command_and_none_writes_into_its_folder(run, monkeypatch, capsys, caplog):
    folder = run[0] / "run"
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    monkeypatch.chdir(run[0])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    config, last = ["--config", str(folder / "config.yaml")], ["--ckpt_path", str(folder / "checkpoints" / "last.ckpt")]
    for command, more in (("test", []), ("predict", []), ("fit", ["--trainer.max_epochs", "3"])):
        with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
            assert fit.main(command, [*config, *last, *more]) == 0
        made = sorted((run[0] / "runs" / run[0].name).iterdir())[-1]
        # What this command made can be taken up again as well, by another command.
        config = ["--config", str(made / "config.yaml")]
    assert (made / "checkpoints" / "last.ckpt").exists()
    assert "goes on from epoch 3" in caplog.messages  # two were trained before
    assert "\ntrained 1 epoch in " in capsys.readouterr().out
    with pytest.raises(ValueError, match="run_dir must be a folder without a run"):
        fit.main("test", [*config, *last, "--run_dir", str(folder)])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_predictions_are_written_with_raw_ids_and_seen_items_may_repeat(run, monkeypatch):
    folder = run[0]
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    monkeypatch.chdir(folder)
    last = str(folder / "run/checkpoints/last.ckpt")
    assert fit.main("predict", [*words(folder, "predict"), "--ckpt_path", last]) == 0
    with (folder / "predict" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["user"] for row in rows}) == 150
    first = [row for row in rows if row["user"] == rows[0]["user"]]
    assert [int(row["rank"]) for row in first] == list(range(1, 11))
    assert len({row["item"] for row in first}) == 10
    scores = [float(row["score"]) for row in first]
    assert scores == sorted(scores, reverse=True)


def test_a_run_comes_back_with_plain_tables_and_the_same_scores(run):
    folder = run[0]
    module = plain_module(folder / "run")
    assert {type(part).__name__ for part in module.modules()} >= {"EmbeddingBagCollection"}
    assert not [name for name in module.state_dict() if "sharded" in name.lower()]
    data = EventsDataModule(
        SyntheticEvents(num_users=150, levels=4), targets=["buy"], max_len=20, store_dir=str(folder / "store")
    )
    data.prepare_data()
    data.setup()
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    (values,) = trainer.test(module, datamodule=data, verbose=False)
    assert values["test/ndcg@10"] == pytest.approx(
        next(
            row.value
            for row in read_results(folder / "run" / "results.csv")
            if (row.model, row.split, row.metric) == ("model", "test", "ndcg@10")
        ),
        abs=1e-6,
    )


def test_a_folder_that_is_no_finished_run_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {}")
    with pytest.raises(ValueError, match=r"no schema.yaml and no summary.json"):
        plain_module(tmp_path)


def test_the_help_lists_the_strategy(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    with pytest.raises(SystemExit):
        fit.main("fit", ["--help"])
    assert re.search(r"lightning_mvrec\.[\w.]*TorchRecStrategy,", "".join(capsys.readouterr().out.split()))


def test_another_trainer_setting_needs_no_file(run, monkeypatch, capsys):
    folder = run[0]
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        fit.main("fit", [*words(folder, "x"), "--trainer.max_epoch", "3"])
    assert ended.value.code == 2
    assert "--trainer.max_epoch" in capsys.readouterr().err


def test_data_is_prepared_by_a_run_s_configuration(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    monkeypatch.chdir(run[0])
    assert prepare.main(["--config", str(run[0] / "run" / "config.yaml")]) == 0
