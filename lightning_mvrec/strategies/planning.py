"""Where the shards of a table lie: TorchRec's planner, kept within bounds, and a plan that a person can read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import KernelConfig, TopologyFactory, TrainerConfig
from torchrec.distributed.types import ModuleSharder, ShardingPlan, ShardingType
from torchrec.modules.embedding_configs import DataType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from lightning_mvrec.strategies.optimizers import RowWiseAdagrad
from lightning_mvrec.strategies.tables import Table

#: What the planner may choose among: sharded either way a table trains the same.
DEFAULT_SHARDING = (ShardingType.TABLE_WISE.value, ShardingType.ROW_WISE.value)
ROW_SHARDING = (ShardingType.ROW_WISE.value, ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value)
BAG_SHARDING = (
    *DEFAULT_SHARDING,
    ShardingType.COLUMN_WISE.value,
    ShardingType.TABLE_ROW_WISE.value,
    ShardingType.TABLE_COLUMN_WISE.value,
    ShardingType.GRID_SHARD.value,
)
SEQUENCE_SHARDING = (*DEFAULT_SHARDING, ShardingType.COLUMN_WISE.value)
COLUMN_SHARDING = (
    ShardingType.COLUMN_WISE.value,
    ShardingType.TABLE_COLUMN_WISE.value,
    ShardingType.GRID_SHARD.value,
)
_CUDA_KERNELS = [EmbeddingComputeKernel.FUSED_UVM.value, EmbeddingComputeKernel.FUSED_UVM_CACHING.value]


class _FusedOnly:
    """The fused kernels; the stock sharder also offers virtual and key-value tables, which need more than a plan."""

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [EmbeddingComputeKernel.FUSED.value, *(_CUDA_KERNELS if compute_device_type == "cuda" else [])]


class BagSharder(_FusedOnly, EmbeddingBagCollectionSharder):
    """Shards bag collections; the stock one hides row-wise sharding on CPU, where it works."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return every sharding but data-parallel."""
        return list(BAG_SHARDING)


class SequenceSharder(_FusedOnly, EmbeddingCollectionSharder):
    """Shards sequence collections, never data-parallel: on CPU that returns pooled rows."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return every sharding but data-parallel."""
        return list(SEQUENCE_SHARDING)


def sharders() -> list[ModuleSharder[Any]]:
    """Return a sharder for each kind of collection."""
    return [BagSharder(), SequenceSharder()]


def make_plan(
    collections: Mapping[str, nn.Module],
    tables: Sequence[Table],
    sharding: str | Mapping[str, str],
    device: torch.device,
    ranks_per_node: int,
) -> ShardingPlan:
    """Plan the sharded collections together on rank 0 and tell every rank; keys of the plan are their paths.

    Args:
        collections: Path -> collection, those to be sharded only.
        tables: All tables of the module; replicated ones are passed over.
        sharding: Kind of sharding of all of them, or by table name; tables not named are table-wise or row-wise, as the
            planner likes.
        device: This rank's device.
        ranks_per_node: Processes on one machine.

    Raises:
        ValueError: If ``sharding`` names no sharded table, a kind that the table's collection does not have, or
            column-wise sharding of a table with row-wise Adagrad.
    """
    sharded = {table.name: table for table in tables if not table.replicated}
    if isinstance(sharding, str):
        sharding = dict.fromkeys(sharded, sharding)
    if unknown := sorted(set(sharding) - set(sharded)):
        raise ValueError(f"sharding must name sharded tables: {unknown} are not among {sorted(sharded)}")
    for name, kind in sharding.items():
        _check_kind(sharded[name], kind, collections[sharded[name].path])

    if not collections:
        return ShardingPlan({})
    # A dot is not allowed in a child's name; the planner only reads and writes these names.
    container = nn.Module()
    for path, collection in collections.items():
        container.add_module(path.replace(".", "/"), collection)
    hbm = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    planner = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(world_size=dist.get_world_size(), local_world_size=ranks_per_node, hbm_cap_bytes=hbm),
            kernel_config=KernelConfig(compute_device=device.type),
        ),
        # The rest of the model, its gradients and the activations need room beside the tables.
        storage_reservation=FixedPercentageStorageReservation(0.25),
        constraints={
            name: ParameterConstraints(sharding_types=[sharding[name]] if name in sharding else list(DEFAULT_SHARDING))
            for name in sharded
        },
        debug=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = planner.collective_plan(container, sharders(), dist.group.WORLD)
    return ShardingPlan({path: plan.plan[path.replace(".", "/")] for path in collections})


def _check_kind(table: Table, kind: str, collection: nn.Module) -> None:
    allowed = BAG_SHARDING if isinstance(collection, EmbeddingBagCollection) else SEQUENCE_SHARDING
    if kind not in allowed:
        hint = "; to keep it whole on every rank use `replicate`" if kind == ShardingType.DATA_PARALLEL.value else ""
        raise ValueError(f"sharding[{table.name!r}] must be one of {list(allowed)}, got {kind!r}{hint}")
    if kind in COLUMN_SHARDING and isinstance(table.optimizer, RowWiseAdagrad):
        raise ValueError(
            f"sharding[{table.name!r}]={kind!r}: RowWiseAdagrad would keep a sum per slice of a row and train "
            "differently from the other kinds; use row_wise or table_wise, or Adagrad(lr=...)"
        )


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
