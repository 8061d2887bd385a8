"""The Beauty recipe with titles and categories: two processes train and measure as one, titles can be left out."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightning_mvrec.cli import fit
from tests.distributed.launch import run_ranks
from tests.recipes.losses import mean_over_ranks
from tests.recipes.tiny import amazon_beauty

RECIPE = Path(__file__).parents[2] / "recipes" / "amazon-beauty" / "multi_view.yaml"


def train(folder: Path, name: str, devices: int, *words: str) -> tuple[list[float], dict[str, float]]:
    """Train two epochs without dropout; return the loss of every step and what validation measured."""
    arguments = ["--config", str(RECIPE), "--data.root", str(folder), "--data.store_dir", str(folder / "store")]
    arguments += ["--run_dir", str(folder / name), "--trainer.devices", str(devices), "--trainer.max_epochs", "2"]
    arguments += ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false", "--baselines", "[]"]
    arguments += ["--trainer.callbacks", "tests.recipes.losses.StepLosses"]
    arguments += ["--trainer.callbacks.folder", str(folder / name / "losses")]
    arguments += ["--trainer.enable_progress_bar", "false", "--data.batch_size", "8"]
    # Sharded tables need an optimizer of their own; the recipe replicates them and leaves them to AdamW.
    arguments += ["--model.table_optimizer", "lightning_mvrec.strategies.Adagrad", "--model.table_optimizer.lr", "0.05"]
    arguments += ["--model.model.encoders", json.dumps(_without_dropout()), *words]

    def run() -> dict[str, float]:
        sys.argv = ["mvrec"]
        measured: dict[str, float] = {}

        def keep(self: fit.RecipeCLI) -> None:
            measured.update({key: float(value) for key, value in self.trainer.callback_metrics.items()})

        fit.RecipeCLI.after_fit = keep
        fit.main("fit", arguments)
        return measured

    measured = run_ranks(run, devices, timeout=300)[0]
    return mean_over_ranks(folder / name / "losses"), measured


def _without_dropout() -> dict:
    encoders = yaml.safe_load(RECIPE.read_text())["model"]["init_args"]["model"]["init_args"]["encoders"]
    encoders["review"]["init_args"]["dropout"] = 0.0
    return encoders


def test_two_processes_train_and_measure_as_one(tmp_path):
    amazon_beauty(tmp_path, np.random.default_rng(0))
    alone, measured = train(tmp_path, "one", 1)
    shared, measured_by_two = train(tmp_path, "two", 2, "--trainer.strategy.replicate", "[]")
    assert len(alone) == 10
    assert shared == pytest.approx(alone, abs=1e-5)
    for name in ("val/ndcg@10", "val/hr@10"):
        assert measured_by_two[name] == pytest.approx(measured[name], abs=1e-6)
    plain, _ = train(tmp_path, "plain", 1, "--model.model.content", "false")
    assert abs(plain[0] - alone[0]) > 1e-3
    assert torch.isfinite(torch.tensor(plain)).all()
