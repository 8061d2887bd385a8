"""The Taobao recipe on one and two processes: the same losses, sharded or replicated, and no rank with all rows."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_mvrec.cli import fit
from tests.distributed.launch import run_ranks
from tests.recipes.losses import mean_over_ranks
from tests.recipes.tiny import taobao

RECIPE = Path(__file__).parents[2] / "recipes" / "taobao" / "multi_behavior.yaml"


def steps(folder: Path, root: Path, name: str, devices: int, count: int, *words: str) -> list[float]:
    """Train ``count`` steps without dropout and return their losses."""
    arguments = ["--config", str(RECIPE), "--data.root", str(root), "--data.store_dir", str(folder / "store")]
    arguments += ["--run_dir", str(folder / name), "--trainer.devices", str(devices), "--trainer.max_steps", str(count)]
    arguments += ["--trainer.max_epochs", "1000", "--trainer.limit_val_batches", "0"]
    arguments += ["--trainer.callbacks", "tests.recipes.losses.StepLosses"]
    arguments += ["--trainer.callbacks.folder", str(folder / name / "losses")]
    arguments += ["--trainer.enable_checkpointing", "false"]
    arguments += ["--trainer.enable_progress_bar", "false", "--model.model.dropout", "0.0", "--baselines", "[]", *words]

    def run() -> None:
        sys.argv = ["mvrec"]
        fit.RecipeCLI.after_fit = lambda self: None
        fit.main("fit", arguments)

    run_ranks(run, devices, timeout=500)
    return mean_over_ranks(folder / name / "losses")


def check(folder: Path, root: Path, count: int) -> None:
    alone = steps(folder, root, "one", 1, count)
    shared = steps(folder, root, "two", 2, count)
    assert len(alone) == count
    assert np.abs(np.array(shared) - alone).max() <= 1e-5
    tables = json.loads((folder / "two" / "plan.json").read_text())["tables"]
    assert {table["table"] for table in tables} == {"item_id", "user_id"}
    for table in tables:
        assert table["sharding"] == "row_wise"
        assert max(table["rows_on_rank"]) <= table["rows"] / 2 + 1
    replicated = steps(folder, root, "whole", 2, 5, "--trainer.strategy.replicate", "all")
    assert np.abs(np.array(replicated) - alone[:5]).max() <= 1e-5
    plan = json.loads((folder / "whole" / "plan.json").read_text())["tables"]
    assert {table["sharding"] for table in plan} == {"replicated"}


def test_small_log(tmp_path):
    taobao(tmp_path, np.random.default_rng(0))
    check(tmp_path, tmp_path, 12)


@pytest.mark.slow
@pytest.mark.skipif("MVREC_TEST_DATA" not in os.environ, reason="MVREC_TEST_DATA is not set: the folder with taobao")
def test_real_log_over_50_steps(tmp_path):
    check(tmp_path, Path(os.environ["MVREC_TEST_DATA"]), 50)
