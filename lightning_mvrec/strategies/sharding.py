"""Replace the collections of a module by sharded ones, in place and once, and keep what must be known of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchrec.distributed.types import (
    EmbeddingModuleShardingPlan,
    ModuleSharder,
    ModuleShardingPlan,
    ShardingEnv,
    ShardingType,
)
from torchrec.modules.utils import reset_module_states_post_sharding

from lightning_mvrec.strategies.adagrad_rows import speed_up_adagrad
from lightning_mvrec.strategies.assign import assign_tables
from lightning_mvrec.strategies.constraints import Planner, Usage, apply_dtypes, check_constraints
from lightning_mvrec.strategies.held import HeldKernel
from lightning_mvrec.strategies.initialise import common_seed, draw_table, keep_table
from lightning_mvrec.strategies.joined import kernels
from lightning_mvrec.strategies.lookups import LookupGuard
from lightning_mvrec.strategies.optimizers import TableOptimizer
from lightning_mvrec.strategies.pages import take_large_pages
from lightning_mvrec.strategies.planning import COLUMN_SHARDING, ROW_SHARDING, make_plan, sharders
from lightning_mvrec.strategies.replicas import Replicas, make_replicas
from lightning_mvrec.strategies.report import PlanReport, report
from lightning_mvrec.strategies.sequences import speed_up
from lightning_mvrec.strategies.tables import SHARDED_COLLECTIONS, Table, find_collections, materialise, shards, weights


@dataclass
class ShardedTables:
    """The tables of a module after sharding.

    Args:
        tables: All tables, in the module's order.
        modules: Path -> collection, sharded or replicated.
        guards: Path -> what watches over its lookups.
        report: Where they lie.
        device: This rank's device.
        ignored: Names of the parameters and buffers that are not DDP's business.
        settings: What they were sharded with.
        replicas: Which ranks hold the same rows.
        held: This rank's fused kernels, whose updates can wait.
        watched: Parameters that must stay frozen or trained, as they were.
        announced: Whether the plan was printed.
    """

    tables: list[Table]
    modules: dict[str, nn.Module]
    guards: dict[str, LookupGuard]
    report: PlanReport
    device: torch.device
    ignored: list[str]
    settings: tuple[object, ...]
    replicas: Replicas
    held: list[HeldKernel] = field(default_factory=list)
    watched: list[tuple[nn.Parameter, Table]] = field(default_factory=list)
    announced: bool = False
    _sharded: list[Table] = field(init=False)

    def __post_init__(self) -> None:
        self._sharded = [table for table in self.tables if not table.replicated]

    @property
    def sharded(self) -> list[Table]:
        """The sharded ones."""
        return self._sharded

    def weight(self, table: Table) -> Tensor:
        """Return a table's weight as the state dict has it: a ShardedTensor if it is sharded."""
        return self.parameter(table) if table.replicated else self.modules[table.path].state_dict()[table.local_key]

    def parameter(self, table: Table) -> nn.Parameter:
        """Return the parameter that stands for a table in the module, in whatever part this rank has."""
        return self.modules[table.path].get_parameter(table.local_key)

    def trained_weights(self) -> list[Tensor]:
        """Return the parameters that no dense optimizer may hold."""
        return [self.parameter(table) for table in self.tables if table.optimizer is not None or not table.replicated]

    def local_rows(self, name: str) -> tuple[int, Tensor]:
        """Return the number of the first row that is this rank's, and its rows."""
        by_name = {table.name: table for table in self.tables}
        if name not in by_name:
            raise ValueError(f"local_rows: no table {name!r}, the module has {sorted(by_name)}")
        table = by_name[name]
        rows = table.config.num_embeddings
        if table.replicated:
            rank, size = dist.get_rank(), dist.get_world_size()
            first, end = rows * rank // size, rows * (rank + 1) // size
            return first, self.weight(table).detach()[first:end]
        kind = next(line.sharding for line in self.report.tables if line.table == name)
        if kind in COLUMN_SHARDING:
            raise ValueError(f"local_rows: table {name!r} is sharded {kind}, no rank has whole rows; use row_wise")
        parts = shards(self.weight(table))
        if not parts:
            return 0, torch.empty(0, table.config.embedding_dim)
        first, end = self.replicas.mine(len(parts[0].tensor))
        return parts[0].first_row + first, parts[0].tensor.detach()[first:end]

    @contextmanager
    def training_step(self, hold: bool = False, manual: bool = False) -> Iterator[None]:
        """Watch over the lookups until the context ends.

        Args:
            hold: Whether tables are updated in the optimizer step, instead of in the backward pass.
            manual: Whether the module decides when an optimizer steps.
        """
        for weight, table in self.watched:
            if weight.requires_grad == table.frozen:
                raise RuntimeError(
                    f"table {table.name!r} was {'frozen' if table.frozen else 'trained'} when it was sharded, and "
                    f"requires_grad={weight.requires_grad} since then does not reach its kernel. Decide before "
                    "Trainer.fit; to begin or stop in the middle of a run give the table a learning-rate schedule that "
                    "is 0 there: a group of its own in configure_optimizers"
                )
        for guard in self.guards.values():
            guard.start_step()
            guard.in_training_step = True
            guard.hold = hold
            guard.watch_backward = manual
        for kernel in self.held:
            kernel.hold = hold
        try:
            yield
        finally:
            for kernel in self.held:
                kernel.hold = False
            for guard in self.guards.values():
                guard.in_training_step = False

    def count_lookups(self) -> dict[str, int]:
        """Return how often each sharded collection was looked up, or is being looked up."""
        return {path: guard.lookups for path, guard in self.guards.items() if guard.once}

    def end_step(self) -> None:
        """Allow the next lookup: an optimizer has stepped."""
        for guard in self.guards.values():
            guard.end_step()


_known: weakref.WeakKeyDictionary[nn.Module, ShardedTables] = weakref.WeakKeyDictionary()


def sharded_tables(module: nn.Module) -> ShardedTables | None:
    """Return what :func:`shard_tables` made of a module, if it has seen it."""
    return _known.get(module)


def shard_tables(
    module: nn.Module,
    device: torch.device,
    ranks_per_node: int,
    table_optimizer: TableOptimizer | Mapping[str, TableOptimizer] | None = None,
    sharding: str | Mapping[str, str] | None = None,
    replicate: str | Sequence[str] = (),
    replicate_below: int = 0,
    check_ids: bool = True,
    check: Callable[[list[str]], None] = lambda names: None,
    planner: Planner | None = None,
    usage: Callable[[], Mapping[str, Usage]] = dict,
    replica_groups: int = 1,
    timeout: timedelta | None = None,
) -> ShardedTables:
    """Shard every collection of ``module`` that is not to be replicated. A second call returns the first one's result.

    ``check`` is called with the names of the tables to be sharded, before anything is changed; it raises to refuse.
    ``usage`` is called where there is something to plan, and says how often features are looked up. ``timeout`` is that
    of the process groups which ``replica_groups`` above 1 need.

    Raises:
        ValueError: If the module was sharded with other settings, and for all that :mod:`assign`, :mod:`planning` and
            :mod:`replicas` refuse.
    """
    sharding, planner = sharding or {}, planner or Planner()
    settings = (table_optimizer, sharding, replicate, replicate_below, planner, replica_groups)
    if (known := _known.get(module)) is not None:
        _refuse_other_settings(known, settings)
        check([table.name for table in known.sharded])
        return known
    collections = find_collections(module)
    tables = assign_tables(module, collections, table_optimizer, replicate, replicate_below, device.type)
    check([table.name for table in tables if not table.replicated])
    check_constraints(planner, tables, sharding, device)
    apply_dtypes(planner, tables, collections)
    used = usage() if dist.get_world_size() > 1 else {}
    plain = {table.path for table in tables if table.replicated}
    to_shard = {path: collection for path, collection in collections.items() if path not in plain}
    if replica_groups > 1 and tables and not to_shard:
        raise ValueError(f"replica_groups={replica_groups} is about sharded tables, and all tables are replicated")
    replicas = make_replicas(replica_groups, timeout)
    with _noted_optimizers(tables, collections):
        plan = make_plan(to_shard, tables, sharding, device, ranks_per_node, planner, used, replica_groups)
        placed = {
            path: replicas.place(_uncut(plan.plan[path], replicas.size), device, ranks_per_node) for path in to_shard
        }
        modules = _shard_collections(
            module, collections, placed, replicas.env(), device, sharders(planner, not check_ids)
        )
    seed = common_seed(device)
    for path, collection in collections.items():
        mine = [table for table in tables if table.path == path]
        _first_values(mine, collection, modules[path], seed, device)
    reset_module_states_post_sharding(module)
    ignored = [
        name
        for name, _ in [*module.named_parameters(), *module.named_buffers()]
        if any(name.startswith(f"{path}.") for path in to_shard)
    ]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    made = ShardedTables(
        tables,
        modules,
        {},
        report(tables, plan, device, used, planner.exchanged, replica_groups),
        device,
        ignored,
        settings,
        replicas,
    )
    for path in collections:
        mine = [table for table in tables if table.path == path]
        kinds = {line.sharding for line in made.report.tables if line.collection == path}
        bags = hasattr(mine[0].config, "pooling")
        pad = bags and replicas.size > 1 and any(kind in ROW_SHARDING for kind in kinds)
        order = list(collections[path]._embedding_names) if bags else None  # type: ignore[arg-type]
        made.guards[path] = LookupGuard(path, mine, pad, once=path in to_shard, order=order, check_ids=check_ids)
        made.guards[path].attach(modules[path])
        if path in to_shard:
            frozen = {table.name for table in mine if table.frozen}
            for kernel in kernels(modules[path]):
                names = {config.name for config in kernel._config.embedding_tables}
                made.held.append(HeldKernel(path, kernel._emb_module, not names & frozen, replica_groups > 1))
    for table in tables:
        if table.optimizer is not None:
            if table.frozen and not table.replicated:
                # TorchRec's parameter says that it is trained, and being a view cannot be told otherwise.
                owner = weights(modules[table.path])[table.name]
                owner.register_parameter("weight", nn.Parameter(owner.weight.detach(), requires_grad=False))
            made.watched.append((made.parameter(table), table))
    _known[module] = made
    return made


@contextmanager
def _noted_optimizers(tables: Sequence[Table], collections: Mapping[str, nn.Module]) -> Iterator[None]:
    """Write on each weight to be sharded how it is trained, where TorchRec looks for it.

    This is what TorchRec's own helper writes, without its throw-away optimizer over the whole table.
    """
    noted = []
    for table in tables:
        if not table.replicated:
            assert table.optimizer is not None
            weight = weights(collections[table.path])[table.name].weight
            weight._optimizer_classes = [_torch_class(table.optimizer)]
            weight._optimizer_kwargs = [table.optimizer.fused_kwargs()]
            noted.append(weight)
    try:
        yield
    finally:
        for weight in noted:
            del weight._optimizer_classes, weight._optimizer_kwargs


def _shard_collections(
    module: nn.Module,
    collections: Mapping[str, nn.Module],
    plans: Mapping[str, ModuleShardingPlan],
    env: ShardingEnv,
    device: torch.device,
    kinds: Sequence[ModuleSharder[Any]],
) -> dict[str, nn.Module]:
    modules = dict(collections)
    sharder_of = {sharder.module_type: sharder for sharder in kinds}
    for path, plan in plans.items():
        collection = collections[path]
        with torch.random.fork_rng(devices=[]):  # TorchRec draws first values, as many as this rank has rows
            modules[path] = sharder_of[type(collection)].shard(collection, plan, env, device, path)
        if device.type == "cpu":
            speed_up(modules[path])
            for kernel in kernels(modules[path]):
                speed_up_adagrad(kernel._emb_module)
                for tensor in (*kernel._emb_module.parameters(), *kernel._emb_module.buffers()):
                    take_large_pages(tensor.detach())
        parent, _, name = path.rpartition(".")
        module.get_submodule(parent).register_module(name, modules[path])
    return modules


def _uncut(plan: ModuleShardingPlan, ranks: int) -> ModuleShardingPlan:
    """Return the plan of a collection; on one rank, table-wise where it is row-wise.

    The rows and their state are the same, but then TorchRec does not ask of each id which rank has it.
    """
    if ranks > 1:
        return plan
    assert isinstance(plan, EmbeddingModuleShardingPlan)
    whole = ShardingType.TABLE_WISE.value
    return EmbeddingModuleShardingPlan(
        {
            name: replace(part, sharding_type=whole) if part.sharding_type in ROW_SHARDING else part
            for name, part in plan.items()
        }
    )


def _first_values(tables: list[Table], old: nn.Module, new: nn.Module, seed: int, device: torch.device) -> None:
    if isinstance(new, SHARDED_COLLECTIONS):
        state = new.state_dict()
        for table in tables:
            target = state[table.local_key]
            weight = weights(old)[table.name].weight
            if weight.is_meta:
                draw_table(target, table.config, seed)
            else:
                keep_table(target, weight.detach(), device)
        return
    empty = materialise(new, device)
    for table in tables:
        if table.name in empty:
            draw_table(weights(new)[table.name].weight, table.config, seed)


def _torch_class(optimizer: TableOptimizer) -> type[torch.optim.Optimizer]:
    import torchrec.optim as optim

    return {"SGD": torch.optim.SGD, "Adagrad": torch.optim.Adagrad, "RowWiseAdagrad": optim.RowWiseAdagrad}.get(
        type(optimizer).__name__, torch.optim.Adam
    )


def _refuse_other_settings(known: ShardedTables, settings: tuple[object, ...]) -> None:
    if known.settings != settings:
        raise ValueError(
            "this module's tables are sharded already, with (table_optimizer, sharding, replicate, replicate_below, "
            f"planner, replica_groups) = {known.settings}; a strategy with {settings} cannot take it over. Make a new "
            "module, or take plain_module(trainer) and train that"
        )
