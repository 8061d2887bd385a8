"""A checkpoint directory read into a run: weights, the tables' optimizer state, and what Lightning reads by itself."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn

from lightning_mvrec.strategies.checkpoint_convert import regroup_tables
from lightning_mvrec.strategies.checkpoint_read import read_meta
from lightning_mvrec.strategies.checkpoint_weights import read_weights
from lightning_mvrec.strategies.joined import JoinedOptimizer


def restore(
    path: str | os.PathLike[str], module: pl.LightningModule, joined: JoinedOptimizer | None, convert: bool
) -> tuple[dict[str, Any], list[Any]]:
    """Read a checkpoint directory; every rank calls it.

    Args:
        path: The directory.
        module: Its weights are filled, and in a fit the tables' optimizer state.
        joined: The optimizer that trains the tables, if there is one.
        convert: Whether optimizer state of another shape is averaged in or copied out.

    Returns:
        Lightning's checkpoint, with the module's own tensors as ``state_dict``; random state of each rank that wrote.

    Raises:
        ValueError: If it is no checkpoint of ours, damaged, or of another module.
    """
    meta = read_meta(path)
    checkpoint = meta["checkpoint"]
    state_dict = module.state_dict()
    weights = {key: value for key, value in state_dict.items() if key not in checkpoint["state_dict"]}
    fitting = module.trainer.state.fn == TrainerFn.FITTING and "optimizer_states" in checkpoint
    state = joined.table_state() if fitting and joined else None
    converted = read_weights(path, weights, state, strict=module.strict_loading, convert_state=convert)
    if converted:  # on this rank; others may hold none of these tables
        warnings.warn(f"optimizer state converted, which is inexact: {converted}", stacklevel=2)
    if state is not None and joined and convert:
        regroup_tables(checkpoint, [group.tables for group in joined.groups])
    checkpoint["state_dict"] = {**state_dict, **checkpoint["state_dict"]}
    return checkpoint, meta["random"]


@contextmanager
def naming(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Let an error in reading say which file it concerns."""
    try:
        yield
    except Exception as error:  # a damaged pickle raises almost anything
        if path is None or isinstance(error, OSError) or str(path) in str(error):
            raise
        kind = type(error) if type(error) in (RuntimeError, ValueError) else ValueError
        raise kind(f"{path}: {error}") from error
