"""A table's optimizer state under another optimizer: one value a row <-> one a weight. Inexact, so only when asked for.

``RowWiseAdagrad`` keeps the mean of a row's squared gradients, ``Adagrad`` one square a weight. Column-wise sharding
needs the latter: what was kept for a row is copied out to its weights; the other way, it is averaged in. The average
is what row-wise Adagrad would have kept; what is copied out has forgotten how the weights of a row differed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import MetadataIndex

from lightning_mvrec.strategies.checkpoint_pieces import Pieces, blocks
from lightning_mvrec.strategies.checkpoint_read import SafeReader, whole


def convertible(saved: Sequence[int], wanted: Sequence[int]) -> bool:
    """Tell whether one shape is a value a row of the other.

    Example:
        >>> convertible([50], [50, 8]), convertible([50, 8], [50]), convertible([50], [51, 8])
        (True, True, False)
    """
    return {len(saved), len(wanted)} == {1, 2} and saved[0] == wanted[0]


@torch.no_grad()
def convert(path: str | os.PathLike[str], key: str, value: Tensor | ShardedTensor) -> None:
    """Fill a table's state, or this rank's part of it, in place from a saved one of the other shape.

    Args:
        path: The checkpoint directory.
        key: Key of the state in it.
        value: ``(R,)`` is averaged in, ``(R, D)`` copied out.
    """
    folder = whole(path)
    metadata = SafeReader(folder).read_metadata()
    pieces = Pieces(folder, metadata.storage_data)
    described: Any = metadata.state_dict_metadata[key]
    for offsets, tensor in _parts(value):
        tensor.zero_()
        for chunk in described.chunks:
            first = max(offsets[0], chunk.offsets[0])
            end = min(offsets[0] + tensor.shape[0], chunk.offsets[0] + chunk.sizes[0])
            if first >= end:
                continue
            mine = tensor[first - offsets[0] : end - offsets[0]]
            begin = [first - chunk.offsets[0], *[0] * (len(chunk.sizes) - 1)]
            with pieces.open(MetadataIndex(key, chunk.offsets)) as saved:
                for row, block in blocks(saved, begin, [end - first, *chunk.sizes[1:]]):
                    theirs = block.to(mine)
                    more = theirs[:, None] if mine.dim() == 2 else theirs.sum(dim=1) / described.size[-1]
                    mine[row : row + len(block)] += more


def regroup(saved: list[dict[str, Any]], groups: list[list[str]]) -> list[dict[str, Any]]:
    """Return saved groups of tables as groups with other tables in them: a converted table has another optimizer.

    Raises:
        ValueError: If tables come together whose groups had different settings.

    Example:
        >>> regroup([{"lr": 0.1, "tables": ["a", "b"]}], [["a"], ["b"]])
        [{'lr': 0.1, 'tables': ['a']}, {'lr': 0.1, 'tables': ['b']}]
    """
    of_table: Mapping[str, dict[str, Any]] = {table: group for group in saved for table in group["tables"]}
    if set(of_table) != {table for tables in groups for table in tables}:
        return saved  # refused by the optimizer, which names both
    made = []
    for tables in groups:
        found = [{**of_table[table], "tables": tables} for table in tables]
        if any(group != found[0] for group in found):
            raise ValueError(f"tables {tables} cannot share an optimizer: they were saved with different settings")
        made.append(found[0])
    return made


def regroup_tables(checkpoint: Mapping[str, Any], groups: list[list[str]]) -> None:
    """Regroup what a checkpoint says of the tables' optimizers, see :func:`regroup`."""
    for saved in checkpoint["optimizer_states"][:1]:  # the first is the one that trains the tables
        if "tables" in saved:
            saved["tables"] = regroup(saved["tables"], groups)


def _parts(value: Tensor | ShardedTensor) -> list[tuple[list[int], Tensor]]:
    if isinstance(value, ShardedTensor):
        return [(list(shard.metadata.shard_offsets), shard.tensor) for shard in value.local_shards()]
    return [([0] * value.dim(), value)]
