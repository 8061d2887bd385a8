"""The survey's recipe prints what the survey printed, both losses each epoch, and stops early when asked to."""

import logging
import re
import sys

import pytest

from lightning_mvrec.cli import fit
from tests.recipes.test_recipes import FOLDER
from tests.recipes.tiny import write_all


@pytest.fixture
def epochs(tmp_path, monkeypatch, caplog):
    """Return a function that trains the recipe on small files and gives the line of each epoch."""
    monkeypatch.setattr(sys, "argv", ["mvrec"])
    write_all(tmp_path)

    def train(*more: str) -> list[str]:
        words = ["--config", str(FOLDER / "movielens-100k" / "reference.yaml"), "--data.root", str(tmp_path)]
        words += ["--data.store_dir", str(tmp_path / "store"), "--run_dir", str(tmp_path / "run"), "--baselines", "[]"]
        with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
            assert fit.main("fit", [*words, *more]) == 0
        return [line for line in caplog.messages if line.startswith("epoch ")]

    return train


def test_both_losses_are_printed_for_every_epoch(epochs):
    lines = epochs("--trainer.max_epochs", "3")
    assert [line.split()[1] for line in lines] == ["1", "2", "3"]
    losses = [re.findall(r"(train|val)/loss (\d+\.\d+)", line) for line in lines]
    assert [{name for name, _ in each} for each in losses] == 3 * [{"train", "val"}]
    trained = [float(value) for each in losses for name, value in each if name == "train"]
    assert trained == sorted(trained, reverse=True)
    assert trained[0] > trained[-1]


def test_training_stops_when_the_validation_metric_no_longer_improves(epochs):
    stop = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/rmse"]
    # No epoch improves by 100 stars: the second one is the first without improvement, and the last.
    stop += ["--trainer.callbacks.min_delta=100", "--trainer.callbacks.patience=1"]
    assert len(epochs("--trainer.max_epochs", "5", *stop)) == 2
