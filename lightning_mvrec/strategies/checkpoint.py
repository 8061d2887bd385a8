"""Checkpoint directories, ``format: 1``: every rank writes its own shards.

    last.ckpt/
      .metadata, *.distcp   torch.distributed.checkpoint: weights under "model.", the tables' optimizer state under
                            "table_state/<table>/<state>", the same keys whether a table is sharded or replicated
      plan.json             where each table lay, for people and for `mvrec checkpoint inspect`; nothing depends on it
      meta.pt               the rest of Lightning's checkpoint, random state of every rank, format

Nothing in them is unpickled beyond tensors and plain values: a checkpoint from elsewhere cannot run code.

A directory gets its name only when it is whole, and takes the place of an earlier one in one step: a kill at any
moment leaves either the one or the other.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from lightning_mvrec.strategies.checkpoint_random import random_state, set_random_state
from lightning_mvrec.strategies.checkpoint_read import (
    META,
    METADATA,
    PLAN,
    first_failure,
    is_checkpoint,
    partial,
    read_meta,
    replaced,
    sealed,
    whole,
)
from lightning_mvrec.strategies.checkpoint_stage import Staged, checksums, on_rank_zero, stage
from lightning_mvrec.strategies.checkpoint_weights import read_weights

__all__ = [
    "META",
    "Staged",
    "is_checkpoint",
    "on_rank_zero",
    "random_state",
    "read_meta",
    "read_weights",
    "remove",
    "set_random_state",
    "stage",
    "write",
    "write_staged",
]


def write(
    path: str | os.PathLike[str],
    checkpoint: dict[str, Any],
    table_state: Mapping[str, Tensor | ShardedTensor],
    plan: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint directory; every rank calls it. An earlier one at ``path`` stays until this one is whole.

    Args:
        path: The directory.
        checkpoint: Lightning's checkpoint; the tensors of ``state_dict`` are written by all ranks together.
        table_state: ``<table>/<state>`` -> this rank's part of the tables' optimizer state.
        plan: Where the tables lie, to be put beside the weights as JSON.

    Raises:
        ValueError: If the checkpoint holds objects that could not be read back safely.
        OSError: If a rank cannot write, for want of space for instance; what it had written is removed.
    """
    write_staged(stage(path, checkpoint, table_state, plan))


def write_staged(staged: Staged, group: dist.ProcessGroup | None = None) -> None:
    """Write what :func:`stage` has gathered; every rank calls it.

    Args:
        staged: This rank's part.
        group: All ranks, on CPU; None: the default group. A thread beside the training needs one of its own.

    Raises:
        OSError: If a rank cannot write, for want of space for instance; what it had written is removed.
    """
    target = staged.path
    temporary = partial(target)

    def prepare() -> None:
        if (found := whole(target)) != target:  # a save was killed between two renames
            found.rename(target)
        for left in (temporary, replaced(target)):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir(parents=True)

    def finish() -> None:
        try:
            _write_file(temporary / METADATA, sealed((temporary / METADATA).read_bytes()))
            if staged.plan is not None:
                _write_file(temporary / PLAN, (json.dumps(staged.plan, indent=1) + "\n").encode())
            _write_file(temporary / META, staged.meta)  # last: a directory that has it is whole
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _replace(temporary, target)

    on_rank_zero(prepare, group)
    try:
        with checksums():
            dcp.save(
                staged.state,
                storage_writer=dcp.FileSystemWriter(temporary),
                # Buffers that DDP has not yet made equal again are rank 0's, as they will be.
                planner=dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True),
                process_group=group,
            )
    except dcp.CheckpointException as error:  # raised on every rank; a BaseException, which nobody expects
        on_rank_zero(lambda: shutil.rmtree(temporary, ignore_errors=True), group)
        raise OSError(f"{target} could not be saved: {first_failure(error)}") from error
    on_rank_zero(finish, group)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a checkpoint directory, a link to one, or a file."""
    target = Path(path)
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.exists():
        # Half a directory must not have the name of a whole one.
        gone = target.with_name(f".{target.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        target.rename(gone)
        for left in (gone, partial(target), replaced(target)):
            shutil.rmtree(left, ignore_errors=True)


def _write_file(file: Path, content: bytes) -> None:
    """Write a file that is there either whole or not at all."""
    temporary = file.with_name(f"{file.name}.tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.rename(file)


def _replace(source: Path, target: Path) -> None:
    if not os.path.lexists(target):
        source.rename(target)
    elif _exchange(source, target):
        remove(source)
    else:  # a kill between the two renames leaves the earlier one beside, where reading looks for it
        old = replaced(target)
        remove(old)
        target.rename(old)
        source.rename(target)
        remove(old)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step, where system and file system can: Linux, but not NFS."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    at_cwd, exchange = -100, 2
    return rename(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0
