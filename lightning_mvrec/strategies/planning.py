"""Where the shards of a table lie: TorchRec's planner, kept to plans that train alike."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import KernelConfig, PlannerError, TopologyFactory, TrainerConfig
from torchrec.distributed.types import CacheParams, ModuleSharder, ShardingPlan, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from lightning_mvrec.strategies.constraints import HOST_KERNELS, Planner, Usage
from lightning_mvrec.strategies.footprint import state_bytes, weight_bytes
from lightning_mvrec.strategies.optimizers import RowWiseAdagrad
from lightning_mvrec.strategies.tables import Table
from lightning_mvrec.strategies.unfit import explain

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
#: These cut tables by machine, so they depend on where the ranks of a group are.
MACHINE_SHARDING = (
    ShardingType.TABLE_ROW_WISE.value,
    ShardingType.TABLE_COLUMN_WISE.value,
    ShardingType.GRID_SHARD.value,
)
#: Of a device's memory, what the rest of the model, its gradients and the activations need beside the tables.
_RESERVED = 0.25


class _FusedOnly:
    """The fused kernels; the stock sharder also offers virtual and key-value tables, which need more than a plan."""

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [EmbeddingComputeKernel.FUSED.value, *(HOST_KERNELS if compute_device_type == "cuda" else [])]


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


def sharders(planner: Planner, check_ids: bool = True) -> list[ModuleSharder[Any]]:
    """Return a sharder for each kind of collection.

    Args:
        planner: How vectors are exchanged.
        check_ids: Whether kernels look for ids outside their tables; not where that was done before ids were sent.
    """
    codecs = planner.exchanged.codecs()
    fused = {} if check_ids else {"bounds_check_mode": BoundsCheckMode.NONE}
    return [kind(fused_params=dict(fused), qcomm_codecs_registry=codecs) for kind in (BagSharder, SequenceSharder)]


def make_plan(
    collections: Mapping[str, nn.Module],
    tables: Sequence[Table],
    sharding: str | Mapping[str, str],
    device: torch.device,
    ranks_per_node: int,
    planner: Planner | None = None,
    usage: Mapping[str, Usage] | None = None,
    replica_groups: int = 1,
) -> ShardingPlan:
    """Plan the sharded collections together on rank 0 and tell every rank; keys of the plan are their paths.

    With replica groups it is the plan of each of them, and the ranks in it are those of a group.

    Args:
        collections: Path -> collection, those to be sharded only.
        tables: All tables of the module; replicated ones are passed over.
        sharding: Kind of sharding of all of them, or by table name; tables not named are table-wise or row-wise, as the
            planner likes. With one kind for all, a table with too few rows for it is table-wise.
        device: This rank's device.
        ranks_per_node: Processes on one machine.
        planner: Further wishes, and memory.
        usage: How often features are looked up; TorchRec's guesses for those not named.
        replica_groups: Number of groups of ranks that hold all tables.

    Raises:
        ValueError: If ``sharding`` names no sharded table, a kind that the table's collection does not have, or
            column-wise sharding of a table with row-wise Adagrad, or leaves a rank without rows of a table; on every
            rank, if no plan fits into memory.
    """
    planner = planner or Planner()
    if not isinstance(sharding, str):
        wished = {name: wish.sharding for name, wish in planner.constraints.items() if wish.sharding is not None}
        sharding = {**sharding, **wished}
    ranks = dist.get_world_size() // replica_groups
    to_shard = [table for table in tables if not table.replicated]
    beside = math.gcd(ranks, ranks_per_node)  # those of a group on one machine
    kinds = _allowed_kinds(collections, to_shard, sharding, ranks, beside, replica_groups)
    if not collections:
        return ShardingPlan({})
    # A dot is not allowed in a child's name; the planner only reads and writes these names.
    container = nn.Module()
    for path, collection in collections.items():
        container.add_module(path.replace(".", "/"), collection)
    hbm, ddr = planner.memory(device, ranks_per_node)
    replicated = sum(_all_bytes(table) for table in tables if table.replicated)
    sharded = {table.name: table for table in tables if not table.replicated}
    search = EmbeddingShardingPlanner(
        topology=TopologyFactory.create_topology(
            TrainerConfig(
                world_size=ranks,
                local_world_size=beside,
                hbm_cap_bytes=max(hbm - replicated, 1) if hbm else None,
                ddr_cap_bytes=ddr if hbm else max(ddr - replicated, 1),
            ),
            kernel_config=KernelConfig(compute_device=device.type),
        ),
        storage_reservation=FixedPercentageStorageReservation(_RESERVED),
        constraints={
            name: _torchrec_constraint(sharded[name], allowed, planner, usage or {}) for name, allowed in kinds.items()
        },
        debug=False,
    )
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        logging.disable(logging.ERROR)  # the planner prints pages about a plan that it does not find
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[0] = search.plan(container, sharders(planner))
        except PlannerError:
            memory = "device memory (Planner(device_memory_gb=...), three quarters of it)"
            found[1] = explain(
                list(sharded.values()),
                kinds,
                capacity=int(hbm * (1 - _RESERVED)) if hbm else ddr,
                ranks=ranks,
                memory=memory if hbm else "host memory (Planner(host_memory_gb=...))",
                on_cuda=device.type == "cuda",
                reserved=replicated,
            )
        finally:
            logging.disable(logging.NOTSET)
    dist.broadcast_object_list(found, src=0, device=device)  # a rank that raised alone would leave the others waiting
    plan, fault = found
    if fault is not None:
        raise ValueError(fault)
    return ShardingPlan({path: plan.plan[path.replace(".", "/")] for path in collections})


def _torchrec_constraint(
    table: Table, kinds: list[str], planner: Planner, usage: Mapping[str, Usage]
) -> ParameterConstraints:
    wish = planner.constraints.get(table.name)
    made = ParameterConstraints(sharding_types=kinds)
    if wish is not None and wish.kernel is not None:
        made.compute_kernels = [wish.kernel]
    if wish is not None and wish.cache is not None:
        made.cache_params = CacheParams(load_factor=wish.cache)
    features = table.config.feature_names
    if all(name in usage for name in features):
        made.pooling_factors = [usage[name].pooling for name in features]
        made.batch_sizes = [max(1, round(usage[name].bags)) for name in features]
        made.num_poolings = [1.0] * len(features)
    return made


def _all_bytes(table: Table) -> int:
    rows, dim = table.config.num_embeddings, table.config.embedding_dim
    gradient = 0 if table.frozen else rows * dim * 4
    return weight_bytes(table, rows, dim) + state_bytes(table, rows, dim) + gradient


def _allowed_kinds(
    collections: Mapping[str, nn.Module],
    tables: Sequence[Table],
    sharding: str | Mapping[str, str],
    ranks: int,
    ranks_per_node: int,
    replica_groups: int,
) -> dict[str, list[str]]:
    by_name = {} if isinstance(sharding, str) else sharding
    if unknown := sorted(set(by_name) - {table.name for table in tables}):
        raise ValueError(
            f"sharding must name sharded tables: {unknown} are not among {sorted(table.name for table in tables)}"
        )
    kinds = {}
    for table in tables:
        asked = sharding if isinstance(sharding, str) else by_name.get(table.name)
        if asked is not None:
            _check_kind(table, asked, collections[table.path], replica_groups)
        if _leaves_ranks_without_rows(table, asked or ShardingType.ROW_WISE.value, ranks, ranks_per_node):
            # A kernel without rows fails with a message about devices.
            if table.name in by_name:
                raise ValueError(
                    f"sharding[{table.name!r}]={asked!r}: {table.config.num_embeddings} rows are too few to give every "
                    "rank some; use table_wise, or replicate the table"
                )
            asked = ShardingType.TABLE_WISE.value
        kinds[table.name] = [asked] if asked else list(DEFAULT_SHARDING)
    return kinds


def _leaves_ranks_without_rows(table: Table, kind: str, ranks: int, ranks_per_node: int) -> bool:
    parts = ranks if kind == ShardingType.ROW_WISE.value else ranks_per_node
    rows = table.config.num_embeddings
    return kind in ROW_SHARDING and (parts - 1) * -(-rows // parts) >= rows


def _check_kind(table: Table, kind: str, collection: nn.Module, replica_groups: int) -> None:
    allowed = BAG_SHARDING if isinstance(collection, EmbeddingBagCollection) else SEQUENCE_SHARDING
    if kind not in allowed:
        hint = "; to keep it whole on every rank use `replicate`" if kind == ShardingType.DATA_PARALLEL.value else ""
        raise ValueError(f"sharding[{table.name!r}] must be one of {list(allowed)}, got {kind!r}{hint}")
    if kind in MACHINE_SHARDING and replica_groups > 1:
        raise ValueError(
            f"sharding[{table.name!r}]={kind!r} cuts tables by machine, which replica_groups={replica_groups} does not "
            "allow; use row_wise, table_wise or column_wise, or leave replica_groups out"
        )
    if kind in COLUMN_SHARDING and isinstance(table.optimizer, RowWiseAdagrad):
        raise ValueError(
            f"sharding[{table.name!r}]={kind!r}: RowWiseAdagrad would keep a sum per slice of a row and train "
            "differently from the other kinds; use row_wise or table_wise, or Adagrad(lr=...)"
        )
