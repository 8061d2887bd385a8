"""Weights and the tables' optimizer state, read from a checkpoint directory into whatever plan this run has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from lightning_mvrec.strategies.checkpoint_convert import convert, convertible
from lightning_mvrec.strategies.checkpoint_read import STATE, WEIGHTS, SafeReader, load, whole

_WAY_OUT = (
    ": one is a value a row, the other one a weight. TorchRecStrategy(convert_table_state=True) averages it in or "
    "copies it out, which is inexact"
)


def read_weights(
    path: str | os.PathLike[str],
    weights: Mapping[str, Tensor | ShardedTensor],
    table_state: Mapping[str, Tensor | ShardedTensor] | None = None,
    strict: bool = True,
    alone: bool = False,
    convert_state: bool = False,
) -> list[str]:
    """Fill the tensors of ``weights`` (by name in the module) and ``table_state`` in place, whoever wrote which part.

    Args:
        path: The directory.
        weights: Tensors of a state dict.
        table_state: ``<table>/<state>`` -> state; None reads the weights only.
        strict: Whether names must be the same on both sides.
        alone: Whether this process reads for itself, without the other ranks.
        convert_state: Whether ``table_state`` may be one value a row where one a weight was saved, or the other way
            round: it is averaged in or copied out, see :mod:`checkpoint_convert`.

    Returns:
        Names in ``table_state`` that were converted.

    Raises:
        ValueError: If names are missing or unexpected, a shape differs, or a file is damaged.
    """
    wanted = {f"{WEIGHTS}{key}": value for key, value in weights.items()}
    saved = SafeReader(whole(path)).read_metadata().state_dict_metadata
    missing = sorted(set(wanted) - set(saved))
    surplus = sorted(key for key in set(saved) - set(wanted) if key.startswith(WEIGHTS))
    if strict and (missing or surplus):
        raise ValueError(f"{path}: the module has other weights; missing {missing[:5]}, unexpected {surplus[:5]}")
    wanted = {key: value for key, value in wanted.items() if key in saved}
    for key, value in (table_state or {}).items():
        if f"{STATE}{key}" not in saved:
            raise ValueError(f"{path} has no optimizer state {key!r}: the table was trained by another optimizer")
        wanted[f"{STATE}{key}"] = value
    to_convert: dict[str, Any] = {}
    for key, value in list(wanted.items()):
        found: Any = saved[key]  # a TensorStorageMetadata, the reader has seen to that
        if tuple(found.size) == tuple(value.size()):
            continue
        fits = key.startswith(STATE) and convertible(found.size, value.size())
        if not (fits and convert_state):
            message = f"{path}: {key} must be of shape {tuple(value.size())}, got {tuple(found.size)}"
            raise ValueError(f"{message}{_WAY_OUT if fits else ''}")
        to_convert[key] = wanted.pop(key)
    load(path, wanted, alone)
    for key, value in to_convert.items():
        convert(path, key, value)
    return [key.removeprefix(STATE) for key in to_convert]
