"""Lightning's callbacks and loggers run as they are, on two processes."""

import contextlib
import csv
import io
import os
import re

import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_mvrec.strategies import RowWiseAdagrad, TorchRecStrategy, plain_module
from lightning_mvrec.strategies.summary import WholeSummary
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import DIM, ITEMS, USERS, InConfigureModel, loader, trainer

TABLES = (ITEMS + USERS) * DIM
TOWER = 2 * DIM * 16 + 16 + 16 + 1


class Scored(InConfigureModel):
    def validation_step(self, batch, batch_idx):
        self.log("score", [3.0, 1.0, 2.0, 4.0, 5.0, 6.0][self.current_epoch], batch_size=1, sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), "interval": "epoch"}]


def strategy(sharding="row_wise"):
    return TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding=sharding)


def everything(folder):
    os.environ["COLUMNS"] = "120"
    loggers = [CSVLogger(folder, name="csv"), TensorBoardLogger(folder, name="tensorboard")]
    callbacks = [
        ModelCheckpoint(folder / "best", monitor="score", save_top_k=2, save_last="link", filename="{epoch}"),
        ModelCheckpoint(folder / "steps", every_n_train_steps=4, save_top_k=-1, save_last=True, filename="{step}"),
        EarlyStopping("score", patience=2),
        LearningRateMonitor(logging_interval="epoch"),
        ModelSummary(max_depth=1),
        RichProgressBar(),
    ]
    runner = trainer(
        strategy(),
        folder,
        max_epochs=6,
        logger=loggers,
        enable_checkpointing=True,
        enable_progress_bar=True,
        enable_model_summary=True,
        log_every_n_steps=1,
        callbacks=callbacks,
    )
    runner.fit(Scored(), loader(3), loader(1))
    return runner.current_epoch, [callback.best_model_path for callback in callbacks[:2]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("tensorboard")
    pytest.importorskip("rich")
    folder = tmp_path_factory.mktemp("run")
    return folder, run_ranks(everything, 2, folder)


def test_early_stopping_ends_all_ranks_together(run):
    assert [epochs for epochs, _ in run[1]] == [4, 4]  # best in epoch 1, then twice worse


def test_the_best_checkpoints_are_kept_and_last_is_a_link(run):
    folder, results = run
    assert sorted(path.name for path in (folder / "best").iterdir()) == ["epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"]
    assert (folder / "best" / "last.ckpt").is_symlink()
    assert {paths[0] for _, paths in results} == {str(folder / "best" / "epoch=1.ckpt")}


def test_checkpoints_by_steps_are_all_there_and_loadable(run):
    steps = run[0] / "steps"
    assert sorted(path.name for path in steps.iterdir()) == [
        "last.ckpt",
        "step=12.ckpt",
        "step=4.ckpt",
        "step=8.ckpt",
    ]
    assert not (steps / "last.ckpt").is_symlink()
    weights = [plain_module(steps / name, Scored()).state_dict() for name in ("last.ckpt", "step=12.ckpt")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_csv_has_the_learning_rates_of_the_dense_part_and_the_tables(run):
    with (run[0] / "csv" / "version_0" / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["score"] for line in lines if line["score"]] == ["3.0", "1.0", "2.0", "4.0"]
    dense = [float(line["lr-Adam"]) for line in lines if line["lr-Adam"]]
    assert dense == pytest.approx([0.01, 0.005, 0.0025, 0.00125])
    assert any(name.startswith("lr-JoinedOptimizer/tables/item+user") for name in lines[0])


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_a_progress_bar_counts_the_batches_of_each_loop_once(bar, monkeypatch):
    """With what the module logs for it, and on rank 0 only."""
    if bar is RichProgressBar:
        pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "160")

    class Shown(Scored):
        def validation_step(self, batch, batch_idx):
            self.log("score", 2.5, prog_bar=True, batch_size=1, sync_dist=True)

    def look():
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            runner = trainer(strategy(), max_epochs=2, enable_progress_bar=True, callbacks=[bar()])
            module = Shown()
            runner.fit(module, loader(3), loader(2))
            runner.validate(module, loader(2))
        last = [line.split("\r")[-1] for line in text.getvalue().splitlines()]
        return [line for line in last if "it/s" in line]

    shown, other = run_ranks(look, 2)
    assert other == []
    epoch, whole = [next(line for line in reversed(shown) if word in line) for word in ("Epoch 1", "Validation")]
    assert "3/3" in epoch
    assert re.search(r"score[:=] ?2\.50*", epoch)
    assert "2/2" in whole


def test_tensorboard_has_its_events(run):
    assert list((run[0] / "tensorboard").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_the_summary_counts_whole_tables(sharding):
    def look():
        callback = ModelSummary(max_depth=2)
        module = InConfigureModel()
        runner = trainer(strategy(sharding), callbacks=[callback], enable_model_summary=True)
        runner.fit(module, loader(1))
        summary = callback._summary(runner, module)
        assert isinstance(summary, WholeSummary)
        counts = dict(zip(summary.layer_names, summary.param_nums, strict=True))
        return counts["embeddings"], counts["tower"], summary.total_parameters, summary.trainable_parameters

    assert run_ranks(look, 2) == [(TABLES, TOWER, TABLES + TOWER, TABLES + TOWER)] * 2


@pytest.mark.slow  # its group of packages has wandb
def test_an_offline_wandb_run_has_the_metrics_once(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb, which is optional")
    from lightning.pytorch.loggers import WandbLogger

    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)

    def log():
        logger = WandbLogger(save_dir=tmp_path, project="parts", offline=True)
        keep = ModelCheckpoint(tmp_path / "kept", save_last="link", filename="{epoch}")
        runner = trainer(
            strategy(),
            tmp_path,
            max_epochs=2,
            logger=logger,
            enable_checkpointing=True,
            log_every_n_steps=1,
            callbacks=[keep, LearningRateMonitor(logging_interval="epoch")],
        )
        runner.fit(Scored(), loader(3), loader(1))
        summary = dict(logger.experiment.summary) if runner.is_global_zero else None
        if runner.is_global_zero:
            logger.experiment.finish()
        return summary

    summary, other = run_ranks(log, 2)
    assert other is None
    assert (summary["score"], summary["epoch"]) == (1.0, 1)
    assert summary["lr-JoinedOptimizer/tables/item+user"] == 0.05
    assert [len(list(path.glob("*.wandb"))) for path in (tmp_path / "wandb").glob("offline-run-*")] == [1]
    assert (tmp_path / "kept" / "last.ckpt").is_symlink()
