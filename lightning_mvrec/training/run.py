"""A finished run, taken up again in Python."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from lightning_mvrec import strategies
from lightning_mvrec.schema import Schema
from lightning_mvrec.training.module import MultiViewModule


def plain_module(source: Any, module: L.LightningModule | None = None) -> L.LightningModule:
    """Return a trained module with ordinary, unsharded tables on CPU.

    Args:
        source: A run's folder (what ``mvrec fit`` prints last): its module is built from ``config.yaml`` and filled
            from the checkpoint that validation chose. Building it imports the classes that the file names, as running
            the recipe does: give it only folders that you would run. Or a Trainer, its strategy or the trained
            LightningModule; or, with ``module``, the path of a checkpoint.
        module: With the path of a checkpoint, a new module of the same architecture to fill.

    Returns:
        The module; of a run, with ``schema`` set, ready for batches of its data.

    Raises:
        ValueError: If the folder is no finished run, or nothing has been trained.
    """
    if module is not None or not isinstance(source, (str, os.PathLike)) or not (Path(source) / "config.yaml").exists():
        return strategies.plain_module(source, module)
    folder = Path(source)
    absent = [name for name in ("schema.yaml", "summary.json") if not (folder / name).exists()]
    if absent:
        raise ValueError(f"{folder} must be the folder of a finished run: it has no {' and no '.join(absent)}")
    checkpoint = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("checkpoint")
    if checkpoint is None:
        raise ValueError(f"{folder} must hold the checkpoint of its run, which was trained without checkpoints")
    made = _build(folder / "config.yaml")
    made.schema = Schema.load(folder / "schema.yaml")
    return strategies.plain_module(folder / checkpoint, made)


def _build(config: Path) -> MultiViewModule:
    """Build the module that a run's configuration describes."""
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(MultiViewModule, "model", subclass_mode=True)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    return parser.instantiate_classes(parser.parse_object({"model": settings["model"]})).model
