"""Why no plan fits: what is missing, on which rank, and which wish to loosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchrec.distributed.types import ShardingType

from lightning_mvrec.strategies.footprint import in_units, least_load, state_bytes, weight_bytes
from lightning_mvrec.strategies.tables import Table

_WHOLE = ShardingType.TABLE_WISE.value


def explain(
    tables: Sequence[Table],
    kinds: Mapping[str, Sequence[str]],
    capacity: int,
    ranks: int,
    memory: str,
    on_cuda: bool,
    reserved: int = 0,
) -> str:
    """Return what a person can do when sharded tables do not fit.

    Args:
        tables: The sharded tables.
        kinds: Kinds of sharding that each may have.
        capacity: Bytes that each rank has for tables.
        ranks: Number of ranks.
        memory: What the capacity is, and the setting that says so.
        on_cuda: Whether tables may go to host memory.
        reserved: Bytes of ``capacity`` that replicated tables take.
    """
    room = capacity - reserved
    split = {table.name: any(kind != _WHOLE for kind in kinds[table.name]) for table in tables}
    load = least_load(tables, split, ranks)
    short = {rank: bytes_ - room for rank, bytes_ in enumerate(load) if bytes_ > room}
    lines = [f"no plan fits the tables {[table.name for table in tables]} into {memory}: {in_units(capacity)} a rank"]
    if reserved:
        lines[0] += f", of which replicated tables take {in_units(reserved)}"
    for rank, missing in list(short.items())[:8]:
        lines.append(
            f"rank {rank}: weights and optimizer state need {in_units(load[rank])}, {in_units(missing)} are missing"
        )
    if not short:
        lines.append("weights and optimizer state alone would fit; with room for what is looked up they do not")
    return ". ".join([*lines, f"To make it fit: {_way_out(tables, split, room, ranks, memory, on_cuda)}"])


def _way_out(
    tables: Sequence[Table], split: Mapping[str, bool], room: int, ranks: int, memory: str, on_cuda: bool
) -> str:
    for table in _largest_first(tables):
        if not split[table.name] and max(least_load(tables, {**split, table.name: True}, ranks)) <= room:
            return f"let table {table.name!r} be row_wise (its sharding is table_wise)"
    whole = dict.fromkeys(split, True)
    stuck = sorted(name for name, cut in split.items() if not cut)
    if stuck and max(least_load(tables, whole, ranks)) <= room:
        return f"let the tables {stuck} be row_wise (their sharding is table_wise)"
    for table in _largest_first(tables):
        rows, dim = table.config.num_embeddings, table.config.embedding_dim
        halved = {table.name: rows * dim * 2 + state_bytes(table, rows, dim)}
        if weight_bytes(table, rows, dim) > rows * dim * 2 and max(least_load(tables, split, ranks, halved)) <= room:
            return f"keep table {table.name!r} in fp16: TableConstraint(dtype='fp16')"
    if on_cuda:
        name = _largest_first(tables)[0].name
        return f"keep table {name!r} in host memory: TableConstraint(kernel='fused_uvm_caching', cache=0.1)"
    total = sum(least_load(tables, whole, 1))
    if room > 0:
        loosen = f", with {stuck} row_wise" if stuck else ""
        return f"use {-(-total // room)} ranks{loosen}, or give each more memory ({memory})"
    return f"replicate less, or give each rank more memory ({memory})"


def _largest_first(tables: Sequence[Table]) -> list[Table]:
    return sorted(tables, key=lambda table: -table.config.num_embeddings * table.config.embedding_dim)
