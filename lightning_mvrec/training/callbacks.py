"""What the recipes show and keep while they train."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_info


class EpochHistory(Callback):
    """Keep what was logged in each epoch, print it as a line, and carry it through a resume.

    Args:
        show: Whether to print a line an epoch.

    Attributes:
        epochs: One dictionary an epoch: every logged value whose name has no ``/weight/`` in it, and ``seconds``.
        trained: How many epochs this run has trained; of a run that was resumed, ``epochs`` has the earlier ones too.
    """

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self.epochs: list[dict[str, float]] = []
        self.trained = 0
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where a run goes on, and start the clock: an epoch that is resumed inside of does not start again."""
        self.trained = 0
        if trainer.ckpt_path is not None and self.show:
            rank_zero_info(f"goes on from epoch {trainer.current_epoch + 1}")
        self._started = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record and print the epoch."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if "/weight/" not in name}
        # Keeps the list right when an epoch is run again after a resume.
        del self.epochs[trainer.current_epoch :]
        self.epochs.append({**values, "seconds": time.perf_counter() - self._started})
        self.trained += 1
        if self.show:
            figures = "  ".join(f"{name} {value:.4f}" for name, value in sorted(values.items(), reverse=True))
            rank_zero_info(f"epoch {trainer.current_epoch + 1}  {figures}  ({self.epochs[-1]['seconds']:.1f} s)")

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where a checkpoint ended."""
        self.epochs = list(state_dict["epochs"])


def show_resumed_epoch(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Give a tqdm bar the number and length of the epoch that a run resumes inside of.

    Lightning names both where an epoch begins, which it has; its Rich bar helps itself.
    """
    bar = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar) and trainer.fit_loop.restarted_mid_epoch:
        bar.on_train_epoch_start(trainer, module)
