"""Write a checkpoint directory again with its rows in another number of files: one process, torch alone.

A run needs none of this to go on: reading puts shards together for any plan. It is for disks: many small files of a
large run become one, or the rows of one large file several. Nothing else changes, no number is computed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from lightning_mvrec.strategies.checkpoint_pieces import Pieces, read_into
from lightning_mvrec.strategies.checkpoint_read import (
    META,
    METADATA,
    PLAN,
    SafeReader,
    partial,
    read_meta,
    sealed,
    whole,
)


def reshard(path: str | os.PathLike[str], out: str | os.PathLike[str], files: int = 1) -> None:
    """Write the checkpoint directory ``path`` again as ``out``, its rows divided evenly over ``files`` files.

    Args:
        path: The directory.
        out: The new one; it has this name only once it is whole.
        files: Number of files, above 0; a tensor with fewer rows than that lies whole in the first one.

    Raises:
        ValueError: If ``out`` is there already, ``files`` is not above 0, or ``path`` is no checkpoint of ours.
    """
    if files < 1:
        raise ValueError(f"files must be above 0, got {files}")
    if os.path.lexists(out):
        raise ValueError(f"{out} is there already; give another name")
    source = whole(path)
    read_meta(source)
    metadata = SafeReader(source).read_metadata()
    temporary = partial(out)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _write(source, metadata, temporary, files)
        (temporary / METADATA).write_bytes(sealed((temporary / METADATA).read_bytes()))
        for name in (PLAN, META):
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Copy(dcp.DefaultSavePlanner):
    """Takes each rectangle from the other checkpoint when it is to be written, so that one is in memory at a time."""

    def __init__(self, source: Path, metadata: Metadata) -> None:
        super().__init__()
        self._pieces = Pieces(source, metadata.storage_data)
        self._metadata = metadata

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """Return a rectangle of a tensor, put together from the pieces that were saved."""
        assert write_item.tensor_data is not None
        wanted = write_item.tensor_data.chunk
        value = torch.empty(wanted.sizes, dtype=write_item.tensor_data.properties.dtype)
        described: Any = self._metadata.state_dict_metadata[write_item.index.fqn]
        for piece in described.chunks:
            low = [max(a, b) for a, b in zip(wanted.offsets, piece.offsets, strict=True)]
            high = [
                min(a + n, b + m)
                for a, n, b, m in zip(wanted.offsets, wanted.sizes, piece.offsets, piece.sizes, strict=True)
            ]
            if all(a < b for a, b in zip(low, high, strict=True)):
                with self._pieces.open(MetadataIndex(write_item.index.fqn, piece.offsets)) as saved:
                    begin = [first - offset for first, offset in zip(low, piece.offsets, strict=True)]
                    read_into(value[_within(low, high, wanted.offsets)], saved, begin)
        return value


def _write(source: Path, metadata: Metadata, target: Path, files: int) -> None:
    plans = [SavePlan(_items(metadata, number, files), planner_data=metadata.planner_data) for number in range(files)]
    planner = _Copy(source, metadata)
    writer = dcp.FileSystemWriter(target)
    planner.set_up_planner({}, writer.storage_meta(), is_coordinator=True)
    writer.set_up_storage_writer(is_coordinator=True)
    plans, made = planner.create_global_plan(plans)
    results = []
    for plan in writer.prepare_global_plan(plans):
        results.append(writer.write_data(plan, planner).wait() if plan.items else [])
    writer.finish(made, results)


def _items(metadata: Metadata, number: int, files: int) -> list[WriteItem]:
    items = []
    for key, described in metadata.state_dict_metadata.items():
        size: torch.Size = described.size  # type: ignore[union-attr]  # tensors only, the reader has seen to that
        offsets, sizes = [0] * len(size), list(size)
        if len(size) and size[0] >= files:
            offsets[0] = size[0] * number // files
            sizes[0] = size[0] * (number + 1) // files - offsets[0]
        elif number:
            continue
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        data = TensorWriteData(chunk=chunk, properties=described.properties, size=size)  # type: ignore[union-attr]
        index = MetadataIndex(key, chunk.offsets)
        items.append(WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data))
    return items


def _within(low: list[int], high: list[int], origin: torch.Size) -> tuple[slice, ...]:
    return tuple(slice(a - first, b - first) for a, b, first in zip(low, high, origin, strict=True))
