"""A plan that a person can read, and that can be saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import DataType

from lightning_mvrec.strategies.tables import Table


@dataclass
class TableReport:
    """One table of a plan; ``rows`` and ``bytes`` on a rank count its weights there, ``bytes`` also their state."""

    table: str
    collection: str
    rows: int
    dim: int
    sharding: str
    kernel: str
    optimizer: str
    rows_on_rank: list[int]
    bytes_on_rank: list[int]


@dataclass
class PlanReport:
    """A plan for reading: ``str()`` is a table, :meth:`save` writes JSON.

    Args:
        world_size: Number of ranks.
        device: Kind of device.
        tables: One entry a table, in the module's order.
    """

    world_size: int
    device: str
    tables: list[TableReport]

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
                    _per_rank(table.bytes_on_rank, _memory),
                ]
            )
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        text = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        ranks = "1 rank" if self.world_size == 1 else f"{self.world_size} ranks"
        return "\n".join([f"Embedding tables on {ranks} ({self.device}):", *text])


def _per_rank(values: Sequence[int], text: Callable[[int], str] = str) -> str:
    if len(values) <= 4:
        return " | ".join(text(value) for value in values)
    return f"{text(min(values))} .. {text(max(values))}"


def _memory(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"


def report(tables: Sequence[Table], plan: ShardingPlan, device: torch.device) -> PlanReport:
    """Describe where every table lies."""
    world_size = dist.get_world_size()
    lines = []
    for table in tables:
        rows, dim = table.config.num_embeddings, table.config.embedding_dim
        if table.replicated:
            kind, kernel = "replicated", "dense"
            held = [[(rows, dim)]] * world_size
        else:
            parameter = plan.plan[table.path][table.name]
            kind, kernel = parameter.sharding_type, parameter.compute_kernel
            held = [[] for _ in range(world_size)]
            for shard in parameter.sharding_spec.shards:
                held[shard.placement.rank()].append(tuple(shard.shard_sizes))
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
                bytes_on_rank=[sum(_bytes(table, *size) for size in sizes) for sizes in held],
            )
        )
    return PlanReport(world_size, device.type, lines)


def _bytes(table: Table, rows: int, columns: int) -> int:
    weight = rows * columns * (4 if table.config.data_type == DataType.FP32 else 2)
    states = table.optimizer.states.values() if table.optimizer else ()
    return weight + sum(rows * (columns if dimensions == 2 else 1) * 4 for dimensions in states)


def _optimizer_text(table: Table) -> str:
    if table.frozen:
        return "none (frozen)"
    return repr(table.optimizer) if table.optimizer else "configure_optimizers"
