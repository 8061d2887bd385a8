"""What a checkpoint will hold, gathered from a run in a moment: written at once, or copied to be written meanwhile."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from lightning_mvrec.strategies.checkpoint_random import random_state
from lightning_mvrec.strategies.checkpoint_read import FORMAT, SAFE_NUMPY, STATE, WEIGHTS, without_numpy

#: Parts of Lightning's checkpoint that training can go on without.
_OPTIONAL = ("hyper_parameters", "datamodule_hyper_parameters", "hparams_name", "datamodule_hparams_name")


@dataclass
class Staged:
    """A checkpoint that has not been written yet.

    Args:
        path: The directory that it is to become.
        state: This rank's tensors by their keys in the checkpoint.
        meta: Content of ``meta.pt``; only rank 0 has it.
        plan: Where the tables lie.
    """

    path: Path
    state: dict[str, Any]
    meta: bytes
    plan: Mapping[str, Any] | None


def stage(
    path: str | os.PathLike[str],
    checkpoint: dict[str, Any],
    table_state: Mapping[str, Tensor | ShardedTensor],
    plan: Mapping[str, Any] | None = None,
    copy: bool = False,
) -> Staged:
    """Gather what a checkpoint holds; every rank calls it.

    Args:
        path: The directory.
        checkpoint: Lightning's checkpoint; the tensors of ``state_dict`` are written by all ranks together.
        table_state: ``<table>/<state>`` -> this rank's part of the tables' optimizer state.
        plan: Where the tables lie.
        copy: Whether tensors are copied, into CPU memory: what is done to them later does not change the checkpoint.

    Raises:
        ValueError: If the checkpoint holds objects that could not be read back safely.
        RuntimeError: If ranks are not at the same step.
    """
    state_dict = checkpoint.pop("state_dict", {})
    tensors = {key: value for key, value in state_dict.items() if isinstance(value, (Tensor, ShardedTensor))}
    checkpoint["state_dict"] = {key: value for key, value in state_dict.items() if key not in tensors}
    states = {f"{STATE}{key}": value for key, value in table_state.items()}
    tensors, states = ({key: value for key, value in part.items() if _is_written(value)} for part in (tensors, states))
    everyone: list[Any] = [None] * dist.get_world_size()
    plain = [key for part in (tensors, states) for key, value in part.items() if not isinstance(value, ShardedTensor)]
    dist.all_gather_object(everyone, (random_state(), plain, checkpoint.get("global_step"), os.fspath(path)))
    randoms, written, steps, paths = ([*part] for part in zip(*everyone, strict=True))
    if len({*steps}) > 1:
        raise RuntimeError(
            f"{path} was not saved: ranks must be at the same step, got {steps} by rank. An interrupt (Ctrl-C) meets "
            "each rank where it is; SIGTERM to any of them stops all before the same batch, and saves there"
        )
    path = paths[0]  # a name may contain a metric, which each rank has its own of
    meta = b""

    def serialise() -> None:
        nonlocal meta
        meta = _serialise({"format": FORMAT, "checkpoint": checkpoint, "random": randoms})

    on_rank_zero(serialise)
    if copy:
        # What several ranks have, the first of them writes; the others need not copy it.
        others = {key for keys in written[: dist.get_rank()] for key in keys}
        tensors, states = (
            {key: value if key in others else _copied(value) for key, value in part.items()}
            for part in (tensors, states)
        )
    return Staged(Path(path), {WEIGHTS.rstrip("."): tensors, **states}, meta, plan)


def on_rank_zero(action: Callable[[], None], group: dist.ProcessGroup | None = None) -> None:
    """Call ``action`` on rank 0; if it raises there, raise everywhere instead of waiting for ever."""
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            action()
        except Exception as caught:
            error = caught
    said = [f"{type(error).__name__}: {error}" if error else None]
    dist.broadcast_object_list(said, 0, group=group)
    if error:
        raise error
    if said[0]:
        raise RuntimeError(f"rank 0 failed: {said[0]}")


@contextmanager
def checksums() -> Iterator[None]:
    """Let ``torch.save`` write the check sums that reading looks at, even where somebody has switched them off."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _is_written(value: Tensor | ShardedTensor) -> bool:
    """Whether this rank has a part in writing a tensor: of replicas of a table, rank 0's group writes its own."""
    return not isinstance(value, ShardedTensor) or 0 in dist.get_process_group_ranks(value._process_group)


@torch.no_grad()
def _copied(value: Tensor | ShardedTensor) -> Tensor | ShardedTensor:
    value = value.detach()
    there = value.cpu()
    return value.clone() if there is value else there  # what is on CPU already has not been copied


def _serialise(meta: dict[str, Any]) -> bytes:
    """Return ``meta`` as bytes that can be read back safely; hyper-parameters that cannot are left out, and said so."""
    checkpoint = without_numpy(dict(meta["checkpoint"]))
    for key in list(checkpoint):
        try:
            _round_trip(checkpoint[key])
        except Exception as error:
            if key not in _OPTIONAL:
                raise ValueError(
                    f"checkpoint[{key!r}] holds an object that cannot be read back safely; keep tensors and plain "
                    f"values in it, or allow its class by torch.serialization.add_safe_globals: {error}"
                ) from error
            rank_zero_warn(f"{key} are left out of the checkpoint: they hold more than plain values")
            del checkpoint[key]
    return _round_trip({**meta, "checkpoint": checkpoint})


def _round_trip(value: Any) -> bytes:
    buffer = io.BytesIO()
    with checksums():
        torch.save(value, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals(SAFE_NUMPY):
        torch.load(buffer, weights_only=True)
    return buffer.getvalue()
