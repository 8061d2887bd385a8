"""``LightningModule.load_from_checkpoint`` for checkpoint directories, and for modules that are built on meta."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.core import module as lightning_module
from lightning.pytorch.core import saving

from lightning_mvrec.strategies.checkpoint_read import is_checkpoint, refuse_outer


def teach_load_from_checkpoint() -> None:
    """Let Lightning's ``load_from_checkpoint`` read what the strategy writes. Calling it again does nothing.

    What it is given otherwise it treats as before.
    """
    if hasattr(saving.pl_load, "reads_directories"):
        return
    saving.pl_load = _reader(saving.pl_load)
    lightning_module._load_from_checkpoint = _loader(lightning_module._load_from_checkpoint)


def _reader(stock: Any) -> Any:
    @functools.wraps(stock)
    def pl_load(path_or_url: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(path_or_url, (str, os.PathLike)) and Path(path_or_url).is_dir():
            if is_checkpoint(path_or_url):
                from lightning_mvrec.strategies.checkpoint_tools import read_whole

                return read_whole(path_or_url)
            refuse_outer(path_or_url)
        return stock(path_or_url, *args, **kwargs)

    pl_load.reads_directories = True  # type: ignore[attr-defined]
    return pl_load


def _loader(stock: Any) -> Any:
    @functools.wraps(stock)
    def load(cls: type[pl.LightningModule], *args: Any, **kwargs: Any) -> Any:
        with _memory_first(cls):
            return stock(cls, *args, **kwargs)

    return load


@contextmanager
def _memory_first(cls: type[pl.LightningModule]) -> Iterator[None]:
    """Give parameters on meta memory before values are copied into them: into meta they would be lost."""
    own = "load_state_dict" in vars(cls)
    stock = cls.load_state_dict

    def load_state_dict(self: pl.LightningModule, *args: Any, **kwargs: Any) -> Any:
        empty = {name for name, value in self.state_dict().items() if value.is_meta}
        if empty:
            from lightning_mvrec.strategies.plain import to_cpu

            to_cpu(self)
        result = stock(self, *args, **kwargs)
        if lost := sorted(empty & set(result.missing_keys)):
            raise ValueError(f"{cls.__name__} was built on meta and the checkpoint has no values for {lost}")
        return result

    cls.load_state_dict = load_state_dict  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        if own:
            cls.load_state_dict = stock  # type: ignore[method-assign]
        else:
            del cls.load_state_dict
