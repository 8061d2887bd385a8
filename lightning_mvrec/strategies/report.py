"""A plan that a person can read, and that can be saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torchrec.distributed.types import ShardingPlan

from lightning_mvrec.strategies.constraints import Exchanged, Usage
from lightning_mvrec.strategies.footprint import in_units, sent_bytes, shared_bytes, state_bytes, weight_bytes
from lightning_mvrec.strategies.tables import Table


@dataclass
class TableReport:
    """One table of a plan; ``rows`` and ``bytes`` on a rank count its weights there, ``bytes`` also their state.

    ``sent_on_rank`` is about what each rank sends to others in a step; None where nobody knows how often the table is
    looked up.
    """

    table: str
    collection: str
    rows: int
    dim: int
    sharding: str
    kernel: str
    optimizer: str
    rows_on_rank: list[int]
    bytes_on_rank: list[int]
    dtype: str = "fp32"
    weight_bytes_on_rank: list[int] = field(default_factory=list)
    state_bytes_on_rank: list[int] = field(default_factory=list)
    sent_on_rank: list[int] | None = None


@dataclass
class PlanReport:
    """A plan for reading: ``str()`` is a table, :meth:`save` writes JSON.

    Args:
        world_size: Number of ranks.
        device: Kind of device.
        tables: One entry a table, in the module's order.
        replica_groups: Number of groups of consecutive ranks, each of which holds all sharded tables.
    """

    world_size: int
    device: str
    tables: list[TableReport]
    replica_groups: int = 1

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def __str__(self) -> str:
        head = ["table", "rows", "dim", "sharding", "kernel", "optimizer", "rows on a rank", "memory on a rank"]
        lines = [head]
        for table in self.tables:
            lines.append(
                [
                    table.table,
                    str(table.rows),
                    str(table.dim),
                    table.sharding,
                    table.kernel,
                    table.optimizer,
                    _per_rank(table.rows_on_rank),
                    _per_rank(table.bytes_on_rank, in_units),
                ]
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        if self.replica_groups > 1:
            ranks += f" in {self.replica_groups} replica groups of {self.world_size // self.replica_groups}"
        return "\n".join([f"Embedding tables on {ranks} ({self.device}):", *text, *self.sentences()])

    def sentences(self) -> list[str]:
        """Return what each rank holds and sends, in words; of more than four ranks, the range."""
        if not self.tables or not all(table.weight_bytes_on_rank for table in self.tables):
            return []
        rows = _sum(table.rows_on_rank for table in self.tables)
        weights = _sum(table.weight_bytes_on_rank for table in self.tables)
        states = _sum(table.state_bytes_on_rank for table in self.tables)
        known = [table.sent_on_rank for table in self.tables if table.sent_on_rank is not None]
        sent = _sum(known) if known else None
        unknown = [table.table for table in self.tables if table.sent_on_rank is None]
        lines = []
        if self.world_size <= 4:
            for rank in range(self.world_size):
                line = f"Rank {rank} holds {rows[rank]} rows: {in_units(weights[rank])} of weights and "
                line += f"{in_units(states[rank])} of optimizer state"
                if sent is not None and self.world_size > 1:
                    line += f"; it sends about {in_units(sent[rank])} a step"
                lines.append(line + ".")
        else:
            line = f"A rank holds {_per_rank(rows)} rows: {_per_rank(weights, in_units)} of weights and "
            line += f"{_per_rank(states, in_units)} of optimizer state"
            if sent is not None:
                line += f"; it sends about {_per_rank(sent, in_units)} a step"
            lines.append(line + ".")
        if unknown and self.world_size > 1:
            lines.append(f"What is sent for {unknown} is not known: no module or data module has pooling_factors().")
        return lines


def _per_rank(values: Sequence[int], text: Callable[[int], str] = str) -> str:
    if len(values) <= 4:
        return " | ".join(text(value) for value in values)
    return f"{text(min(values))} .. {text(max(values))}"


def _sum(columns: Iterable[Sequence[int]]) -> list[int]:
    return [sum(values) for values in zip(*columns, strict=True)]


def report(
    tables: Sequence[Table],
    plan: ShardingPlan,
    device: torch.device,
    usage: Mapping[str, Usage] | None = None,
    exchanged: Exchanged | None = None,
    replica_groups: int = 1,
) -> PlanReport:
    """Describe where every table lies.

    Args:
        tables: All tables.
        plan: Where the sharded ones lie, in each of the replica groups.
        device: This rank's device.
        usage: How often features are looked up.
        exchanged: In which type vectors travel; None: float32.
        replica_groups: Number of groups of ranks.
    """
    world_size, usage = dist.get_world_size(), usage or {}
    lines = []
    for table in tables:
        rows, dim = table.config.num_embeddings, table.config.embedding_dim
        if table.replicated:
            kind, kernel = "replicated", "dense"
            held = [[(rows, dim)]] * world_size
        else:
            parameter = plan.plan[table.path][table.name]
            kind, kernel = parameter.sharding_type, parameter.compute_kernel
            held = [[] for _ in range(world_size // replica_groups)]
            for shard in parameter.sharding_spec.shards:
                held[shard.placement.rank()].append(tuple(shard.shard_sizes))
        sent = sent_bytes(table, held, usage, (exchanged or Exchanged()).bytes)
        if not table.replicated:
            if sent is not None and replica_groups > 1:
                more = shared_bytes(table, held, usage)
                sent = [one + (replica_groups - 1) * two for one, two in zip(sent, more, strict=True)]
            held, sent = held * replica_groups, sent and sent * replica_groups
        weights = [sum(weight_bytes(table, *size) for size in sizes) for sizes in held]
        states = [sum(state_bytes(table, *size) for size in sizes) for sizes in held]
        lines.append(
            TableReport(
                table=table.name,
                collection=table.path,
                rows=rows,
                dim=dim,
                sharding=kind,
                kernel=kernel,
                optimizer=_optimizer_text(table),
                rows_on_rank=[max((size[0] for size in sizes), default=0) for sizes in held],
                bytes_on_rank=[weight + state for weight, state in zip(weights, states, strict=True)],
                dtype=table.config.data_type.value.lower(),
                weight_bytes_on_rank=weights,
                state_bytes_on_rank=states,
                sent_on_rank=sent,
            )
        )
    return PlanReport(world_size, device.type, lines, replica_groups)


def _optimizer_text(table: Table) -> str:
    if table.frozen:
        return "none (frozen)"
    return repr(table.optimizer) if table.optimizer else "configure_optimizers"
