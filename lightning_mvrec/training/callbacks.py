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
    """

    def __init__(self, show: bool = True) -> None:
        self.show = show
        self.epochs: list[dict[str, float]] = []
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of an epoch that a run resumes inside of: Lightning does not start that epoch again."""
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
