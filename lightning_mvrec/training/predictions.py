"""Predictions of every rank in one file, with the raw ids of users and items."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lightning_mvrec.training.gather import gather_rows, world


class PredictionWriter(Callback):
    """Write ``user, rank, item, score`` rows to a CSV file as ``mvrec predict`` goes.

    Args:
        path: The file; written under a temporary name and renamed at the end.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the file."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        self._store, self._examples = datamodule.store, datamodule.examples(datamodule.predict_stage)
        if world()[0] == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.with_name(self.path.name + ".part").open("w", newline="", encoding="utf-8")
            self._writer = csv.writer(self._file)
            self._writer.writerow(["user", "rank", "item", "score"])

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Gather the batch's rows and write them."""
        (example, item, score), _ = gather_rows(outputs["example"], outputs["item"], outputs["score"].float())
        if world()[0] != 0:
            return
        store, examples = self._store, self._examples
        user = torch.from_numpy(examples.targets.user[examples.first[example.cpu().numpy()]])
        item, score = item.cpu().reshape(len(user), -1), score.cpu().reshape(len(user), -1)
        for u, row_K, score_K in zip(user.tolist(), item.tolist(), score.tolist(), strict=True):
            self._writer.writerows(_rows(store.user_ids[u], row_K, score_K, store.item_ids))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the file its name."""
        if world()[0] == 0:
            self._file.close()
            Path(self._file.name).replace(self.path)


def _rows(user: Any, items: Sequence[int], scores: Sequence[float], item_ids: Any) -> list[list[Any]]:
    """One line an item; row 0 fills a list where the catalogue is shorter than the cut-off."""
    return [
        [user, rank, item_ids[item], f"{score:.6g}"]
        for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1)
        if item != 0
    ]
