"""A callback that a command line can name: keeps the loss of every step in a file a rank."""

import json
from pathlib import Path

from lightning.pytorch.callbacks import Callback


class StepLosses(Callback):
    """Write the losses of this rank to ``<folder>/<rank>.json`` when training ends."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())

    def on_train_end(self, trainer, pl_module):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.values))


def mean_over_ranks(folder: Path) -> list[float]:
    """Return the loss of every step over all ranks: each rank's is scaled so that the mean is the global loss."""
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [sum(step) / len(ranks) for step in zip(*ranks, strict=True)]
