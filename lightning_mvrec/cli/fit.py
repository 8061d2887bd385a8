"""``mvrec fit | validate | test | predict``: a recipe, through LightningCLI.

``fit`` trains, takes the checkpoint that validation chose, measures it once on the test split beside the baselines,
and leaves everything in the run's folder.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_mvrec.cli.parser import RecipeParser
from lightning_mvrec.cli.report import Result, draw_run, format_table, write_results
from lightning_mvrec.cli.run_folder import CONFIG, choose_run_dir, config_paths
from lightning_mvrec.cli.stacked import stack
from lightning_mvrec.cli.targets import FILE, STACKED, write_targets
from lightning_mvrec.data import EventsDataModule
from lightning_mvrec.models.baselines import Baseline, evaluate_baselines
from lightning_mvrec.strategies import TorchRecStrategy  # noqa: F401  known as "torchrec", and to --help
from lightning_mvrec.training import EpochHistory, MultiViewModule, RankingEvaluation
from lightning_mvrec.training.predictions import PredictionWriter

TRAINER_DEFAULTS: dict[str, Any] = {
    "strategy": "torchrec",
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


class RecipeCLI(LightningCLI):
    """LightningCLI with a run folder, baselines and a report at the end."""

    run_dir: Path

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to a run rather than to the trainer, the model or the data."""
        parser.add_argument("--run_dir", type=str | None, default=None, help="folder to write to; runs/<recipe>/<time>")
        parser.add_argument(
            "--baselines", type=list[Baseline], default=[], help="models printed beside the trained one"
        )
        parser.add_argument(
            "--stack",
            type=bool,
            default=False,
            help="add the weighted sum of model and baselines, weighed on validation",
        )

    def before_instantiate_classes(self) -> None:
        """Send everything that is written to the run's folder."""
        config = self._get(self.config, "trainer")
        self.run_dir = choose_run_dir(self._get(self.config, "run_dir"), config_paths(sys.argv[1:]))
        config.default_root_dir = str(self.run_dir)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add the history, and a CSV log where the recipe names no logger; files that are missing end the run here."""
        if isinstance(self.datamodule, EventsDataModule):
            # Before there are processes, whose lines would hide the message.
            self.datamodule.settings.source.files(self.datamodule.root)
        self.history = EpochHistory()
        if self._get(self.config_init, "trainer").logger in (None, True):
            kwargs["logger"] = CSVLogger(self.run_dir, name="", version="")
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.insert(0, self.history)  # type: ignore[attr-defined]
        if self.subcommand == "predict" and self._is_ours():
            trainer.callbacks.append(PredictionWriter(self.run_dir / "predictions.csv"))  # type: ignore[attr-defined]
        return trainer

    def before_fit(self) -> None:
        """Keep the resolved configuration and start the clock."""
        if self._get(self.config_init, "stack"):
            if not self._is_ours() or self.datamodule.settings.label is None:
                raise ValueError("stack must be false without labelled targets: ranks cannot be added up")
            if not self._get(self.config_init, "baselines"):
                raise ValueError("stack needs baselines to weigh beside the model, got none")
        self._save_config()
        self._started = time.perf_counter()

    def after_fit(self) -> None:
        """Measure the chosen checkpoint on both splits, print and keep the results."""
        seconds = time.perf_counter() - self._started
        module, trainer = self.model, self.trainer
        if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
            return
        if not self._is_ours():
            _print_last(self.run_dir)
            return
        best = self._best()
        history = list(self.history.epochs)
        values: dict[str, float] = {}
        for run in (trainer.validate, trainer.test):
            run(module, datamodule=self.datamodule, ckpt_path=best or None, verbose=False)
            values.update({name: float(value) for name, value in trainer.callback_metrics.items()})
        splits = ("val", "test") if self._get(self.config_init, "stack") else ("test",)
        rows = {split: module.evaluations[split].rows() for split in splits}
        self._report(values, history, seconds, rows)

    def before_validate(self) -> None:
        """Keep the resolved configuration."""
        self._save_config()

    before_test = before_validate
    before_predict = before_validate

    def after_validate(self) -> None:
        """Print and keep the results of the split."""
        self._report({name: float(value) for name, value in self.trainer.callback_metrics.items()}, [], 0.0)

    after_test = after_validate

    def after_predict(self) -> None:
        """Say where the predictions are."""
        _print_last(self.run_dir / "predictions.csv" if self._is_ours() else self.run_dir)

    def _is_ours(self) -> bool:
        """Whether module and data are this package's; of others only the training is known."""
        module, data = self._get(self.config_init, "model"), self._get(self.config_init, "data")
        return isinstance(module, MultiViewModule) and isinstance(data, EventsDataModule)

    def _best(self) -> str:
        """Path of the checkpoint that validation chose; empty where none was kept."""
        checkpoint = self.trainer.checkpoint_callback
        return checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""

    @rank_zero_only
    def _save_config(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        # Without the command's name around it, and without what is this run's alone, so that the file is a recipe that
        # every command takes.
        command = str(self.subcommand)
        parser, config = self._parser(command), self.config[command].clone()
        for name in ("run_dir", "trainer.default_root_dir", *self._subcommand_method_arguments[command]):
            config.pop(name, None)
        parser.save(config, self.run_dir / CONFIG, skip_none=False, skip_check=True)

    @rank_zero_only
    def _report(
        self,
        values: dict[str, float],
        history: list[dict[str, float]],
        seconds: float,
        rows: dict[str, dict[str, torch.Tensor]] | None = None,
    ) -> None:
        seed = self._get(self.config, "seed_everything")
        results: list[Result] = []
        weights: dict[str, float] = {}
        stack_weights: dict[str, float] = {}
        for name, value in values.items():
            split, _, metric = name.partition("/")
            if metric.startswith("weight/"):
                if split == "test":
                    weights[metric.removeprefix("weight/")] = value
            elif split in ("val", "test"):
                results.append(Result("model", split, metric, value, seed if isinstance(seed, int) else None))
        splits = [split for split in ("val", "test") if any(result.split == split for result in results)]
        if not self._is_ours():
            write_results(self.run_dir / "results.csv", results)
            _print_last(self.run_dir)
            return
        self.datamodule.schema.save(self.run_dir / "schema.yaml")
        evaluation = self.model.evaluations["test"]
        metrics = list(dict.fromkeys(result.metric for result in results))
        baselines = self._get(self.config_init, "baselines") or []
        each: dict[str, dict[str, np.ndarray]] = {split: {} for split in splits}
        for split in splits:
            for name, metric, value in evaluate_baselines(
                self.datamodule.store,
                split,
                baselines,
                metrics,
                filter_seen=self.datamodule.filter_seen,
                progress=True,
                keep=each[split],
                threshold=evaluation.threshold,
            ):
                results.append(Result(name, split, metric, value))
        if rows and rows["test"]:
            targets = {split: self._targets(split, measured, each[split]) for split, measured in rows.items()}
            if self._get(self.config_init, "stack"):
                more, targets["test"][STACKED], stack_weights = stack(targets, metrics, evaluation.binary)
                results += more
            write_targets(self.run_dir / FILE, targets["test"])
        write_results(self.run_dir / "results.csv", results)
        summary = {
            "primary": evaluation.primary,
            "largest_first": evaluation.largest_first,
            "views": self.model.model.view_names,
            "checkpoint": os.path.relpath(self._best(), self.run_dir) if self._best() else None,
            "train_seconds": round(seconds, 1),
            "epochs": len(history),
            "view_weights": weights,
            "stack_weights": stack_weights,
        }
        (self.run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        if history:
            draw_run(self.run_dir / "curves.png", history, weights, evaluation.primary)
        for split in splits:
            print()
            print(format_table(results, split, evaluation.primary, evaluation.largest_first))
        print(_what_is_ranked(evaluation, self.datamodule.filter_seen))
        if weights:
            print("view weights  " + "  ".join(f"{view} {weight:.3f}" for view, weight in weights.items()))
        if stack_weights:
            print("stacked  " + "  ".join(f"{name} {weight:.3f}" for name, weight in stack_weights.items()))
        if seconds:
            trained = self.history.trained
            print(f"trained {trained} epoch{'' if trained == 1 else 's'} in {seconds:.1f} s")
        _print_last(self.run_dir)

    def _targets(
        self, split: str, rows: dict[str, torch.Tensor], baselines: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return what was measured of each target of a split, in the store's order, for paired comparisons."""
        examples = self.datamodule.examples(split)
        target = examples.first[rows["example"].numpy()] + rows["step"].numpy()
        arrays = {"user": examples.targets.user[target]}
        arrays["model"] = rows["rank" if "rank" in rows else "score"].numpy()
        if "label" in rows:
            arrays["label"] = rows["label"].numpy()
        arrays.update({name: value[target] for name, value in baselines.items()})
        return arrays


def main(command: str, argv: list[str]) -> int:
    """Run one of ``fit``, ``validate``, ``test``, ``predict`` with the words that follow it."""
    if not config_paths(argv) and not any(
        word.startswith(("-h", "--help", "--model", "--print_config")) or word.partition("=")[0].endswith(".help")
        for word in argv
    ):
        print(
            f"mvrec {command}: needs a recipe, for example --config recipes/quickstart.yaml"
            + ("" if command == "fit" else " (or the config.yaml of a run) and --ckpt_path, a checkpoint of that run"),
            file=sys.stderr,
        )
        return 2
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    # The folder is this run's own: what lies in it is its configuration.
    warnings.filterwarnings("ignore", message="Experiment logs directory .*")
    warnings.filterwarnings("ignore", message="The dirpath has changed .*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_worth_reading)
    # Processes for further devices are started with this command line.
    sys.argv[1:] = [command, *argv]
    RecipeCLI(
        MultiViewModule,
        EventsDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        parser_class=RecipeParser,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        trainer_defaults=TRAINER_DEFAULTS,
        parser_kwargs={
            name: {"description": f"{name.capitalize()} a recipe."} for name in ("fit", "validate", "test", "predict")
        },
    )
    return 0


def _worth_reading(record: logging.LogRecord) -> bool:
    """Whether a line of Lightning's is about the run rather than about other products or hardware that is not there."""
    return not any(words in record.getMessage() for words in ("Tip:", "TPU available", "HPU available"))


def _what_is_ranked(evaluation: Any, filter_seen: Sequence[str]) -> str:
    if not isinstance(evaluation, RankingEvaluation):
        reached = "" if evaluation.threshold is None else f" being {evaluation.threshold:g} or more"
        return f"every target of the split, its score against its label{reached}"
    seen = f"items seen in {', '.join(filter_seen)} left out" if filter_seen else "seen items ranked as well"
    return f"ranked among the whole catalogue, {seen}"


@rank_zero_only
def _print_last(path: Path) -> None:
    print(f"\n{path}")
