"""Lightning's ModelCheckpoint beside checkpoints that are not whole yet.

By itself it makes its ``last`` link as soon as a save returns, by removing the old link first. A kill in between, or
before the checkpoint is whole, would leave a link to nothing: `ckpt_path="last"` would begin from the start. It also
looks on the disk for names that are taken, where the checkpoint that is being written has none yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

if TYPE_CHECKING:
    from lightning_mvrec.strategies.checkpoint_async import Saves

_HOOKS = ("_link_checkpoint", "file_exists")


def follow(callbacks: Sequence[Callback], saves: Saves) -> None:
    """Let checkpoint callbacks link to, and know of, what is being written."""
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint):
            unfollow([callback])
            _follow(callback, saves)


def unfollow(callbacks: Sequence[Callback]) -> None:
    """Leave checkpoint callbacks as they were."""
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint):
            for hook in _HOOKS:
                vars(callback).pop(hook, None)


def _follow(callback: ModelCheckpoint, saves: Saves) -> None:
    stock = callback.file_exists

    def link_checkpoint(trainer: pl.Trainer, filepath: str, linkpath: str) -> None:
        saves.link(filepath, linkpath)
        trainer.strategy.barrier()

    def file_exists(filepath: str, trainer: pl.Trainer) -> bool:
        expected = saves.expects(filepath)
        return stock(filepath, trainer) if expected is None else expected

    callback._link_checkpoint = link_checkpoint  # type: ignore[method-assign]
    callback.file_exists = file_exists  # type: ignore[method-assign, assignment]
