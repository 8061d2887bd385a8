"""Bytes of tables: weights, optimizer state, and what ranks send each other in a step.

W ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torchrec.modules.embedding_configs import DataType

from lightning_mvrec.strategies.constraints import Usage
from lightning_mvrec.strategies.tables import Table

_ID_BYTES = 8
_VECTOR_BYTES = 4  # of a number, on the way forth and of its gradient back


def in_units(count: float) -> str:
    """Return a number of bytes in words.

    Example:
        >>> in_units(130_000)
        '130 kB'
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"


def weight_bytes(table: Table, rows: int, columns: int) -> int:
    """Return the bytes of a part of a table."""
    return rows * columns * (4 if table.config.data_type == DataType.FP32 else 2)


def state_bytes(table: Table, rows: int, columns: int) -> int:
    """Return the bytes of the optimizer state of a part of a table, kept in float32."""
    states = table.optimizer.states.values() if table.optimizer else ()
    return sum(rows * (columns if dimensions == 2 else 1) * 4 for dimensions in states)


def sent_bytes(
    table: Table,
    placed: Sequence[Sequence[tuple[int, int]]],
    usage: Mapping[str, Usage],
    vector_bytes: tuple[int, int] = (_VECTOR_BYTES, _VECTOR_BYTES),
) -> list[int] | None:
    """Return about how many bytes each rank sends to others in one step because of a table.

    Ids and lengths go to the ranks that hold rows, vectors come back, gradients of vectors go there again. A replicated
    table is averaged by a ring: twice its share.

    Args:
        table: The table.
        placed: ``(rows, columns)`` of the shards on each rank.
        usage: How often its features are looked up.
        vector_bytes: Bytes of one number of a vector on its way forth, and of its gradient on the way back.

    Returns:
        One number a rank, or None if usage says nothing of a feature.
    """
    world_size = len(placed)
    if table.replicated:
        if table.frozen:
            return [0] * world_size
        whole = table.config.num_embeddings * table.config.embedding_dim * _VECTOR_BYTES
        return [2 * whole * (world_size - 1) // world_size] * world_size
    if any(name not in usage for name in table.config.feature_names):
        return None
    pooled = hasattr(table.config, "pooling")
    forth, back = vector_bytes
    sent = [0.0] * world_size
    for name in table.config.feature_names:
        looked_up = usage[name]
        for owner, shards in enumerate(placed):
            for rows, columns in shards:
                ids = looked_up.bags * looked_up.pooling * rows / table.config.num_embeddings
                vectors = (looked_up.bags if pooled else ids) * columns
                for rank in range(world_size):
                    if rank != owner:
                        sent[rank] += (ids + looked_up.bags) * _ID_BYTES + vectors * back
                        sent[owner] += vectors * forth
    return [round(amount) for amount in sent]


def shared_bytes(table: Table, placed: Sequence[Sequence[tuple[int, int]]], usage: Mapping[str, Usage]) -> list[int]:
    """Return about how many bytes each rank of a replica group sends to one peer in a step because of a table.

    Ids and lengths of all that its group has looked up on it, and gradients of the answers in float32.

    Args:
        table: A sharded table; usage knows its features.
        placed: ``(rows, columns)`` of the shards on each rank of the group.
        usage: How often its features are looked up by one rank.
    """
    sent = [0.0] * len(placed)
    if table.frozen:
        return [0] * len(placed)
    for name in table.config.feature_names:
        bags = usage[name].bags * len(placed)
        for owner, shards in enumerate(placed):
            for rows, columns in shards:
                ids = bags * usage[name].pooling * rows / table.config.num_embeddings
                vectors = (bags if hasattr(table.config, "pooling") else ids) * columns
                sent[owner] += (ids + bags) * _ID_BYTES + vectors * _VECTOR_BYTES
    return [round(amount) for amount in sent]


def least_load(tables: Sequence[Table], split: Mapping[str, bool], ranks: int, whole: Any = None) -> list[int]:
    """Return the bytes of weights and state on each rank when tables are laid out as evenly as may be.

    Args:
        tables: Sharded tables.
        split: Table name -> whether it may be cut into shards for all ranks; others lie whole on one.
        ranks: Number of ranks.
        whole: Bytes of a table, by name, where they differ from :func:`weight_bytes` and :func:`state_bytes`.
    """
    load = [0] * ranks
    sizes = {}
    for table in tables:
        rows, dim = table.config.num_embeddings, table.config.embedding_dim
        sizes[table.name] = (whole or {}).get(
            table.name, weight_bytes(table, rows, dim) + state_bytes(table, rows, dim)
        )
        if split[table.name]:
            load = [one + -(-sizes[table.name] // ranks) for one in load]
    for table in sorted(tables, key=lambda one: -sizes[one.name]):
        if not split[table.name]:
            load[load.index(min(load))] += sizes[table.name]
    return load
