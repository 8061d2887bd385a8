"""One optimizer for Lightning that joins the dense one with the tables' own."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.optim import Optimizer
from torchrec.optim.fused import FusedOptimizerModule

from lightning_mvrec.strategies.held import HeldKernel
from lightning_mvrec.strategies.optimizers import Adam, TableOptimizer
from lightning_mvrec.strategies.peers import share
from lightning_mvrec.strategies.rates import TableRates
from lightning_mvrec.strategies.replicas import Replicas
from lightning_mvrec.strategies.tables import SHARDED_COLLECTIONS, Table, shards


def kernels(collection: nn.Module) -> Iterator[Any]:
    """Yield the fused kernels of a sharded collection that this rank has; each holds the tables of one optimizer."""
    for lookup in collection._lookups:  # type: ignore[union-attr]
        for module in lookup.modules():
            if isinstance(module, FusedOptimizerModule) and hasattr(module, "_emb_module"):
                yield module


@dataclass
class TableGroup:
    """The tables that one table optimizer trains: a parameter group of the joined optimizer.

    Args:
        optimizer: What trains them.
        tables: Names of the tables.
        weights: Weight and state of each replicated one, by name.
        kernels: This rank's fused kernels for the sharded ones.
        all_weights: The parameters of all of them, in whatever part this rank has.
        steps: Optimizer steps done.
    """

    optimizer: TableOptimizer
    tables: list[str] = field(default_factory=list)
    weights: dict[str, tuple[nn.Parameter, dict[str, Tensor]]] = field(default_factory=dict)
    kernels: list[Any] = field(default_factory=list)
    all_weights: list[Tensor] = field(default_factory=list)
    steps: int = 0
    applied_lr: float | None = None

    def push(self, lr: float) -> None:
        """Tell the kernels what the next backward pass needs: learning rate and, for Adam, the number of steps done.

        A kernel's own count also counts the lookups of a validation, which would change Adam's bias correction.
        """
        for kernel in self.kernels:
            if lr != self.applied_lr:
                kernel._emb_module.set_learning_rate(lr)
            if isinstance(self.optimizer, Adam):
                kernel._emb_module.iter.fill_(self.steps)
                kernel._emb_module.iter_cpu.fill_(self.steps)
        self.applied_lr = lr

    def state(self) -> dict[str, Tensor | ShardedTensor]:
        """Return ``<table>/<state>`` -> state, under the same names whether a table is sharded or replicated.

        A rank that holds no rows of a sharded table has no entry for it.
        """
        found: dict[str, Tensor | ShardedTensor] = {
            f"{table}/{name}": value for table, (_, state) in self.weights.items() for name, value in state.items()
        }
        for kernel in self.kernels:
            for states in kernel.fused_optimizer.state.values():
                # TorchRec calls the first state of every optimizer `momentum1`; SGD has one that holds nothing.
                for name, (key, value) in zip(self.optimizer.states, states.items(), strict=False):
                    found[f"{key.rpartition('.')[0]}/{name}"] = value
        return found

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all state, as a new fit does with the dense optimizer's."""
        for value in self.state().values():
            for shard in shards(value):
                shard.tensor.zero_()

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Train the replicated tables on their gradients; the sharded ones were trained by their kernels."""
        self.steps += 1
        for weight, state in self.weights.values():
            if weight.grad is not None:
                self.optimizer.update(weight, weight.grad, state, lr, self.steps)


def group_tables(tables: Sequence[Table], modules: dict[str, nn.Module]) -> list[TableGroup]:
    """Return one group for each different table optimizer, in the tables' order: the same on every rank and plan."""
    groups: dict[TableOptimizer, TableGroup] = {}
    for table in tables:
        if table.optimizer is None or table.frozen:
            continue
        group = groups.setdefault(table.optimizer, TableGroup(table.optimizer))
        group.tables.append(table.name)
        weight = modules[table.path].get_parameter(table.local_key)
        group.all_weights.append(weight)
        if table.replicated:
            group.weights[table.name] = (weight, table.optimizer.init_state(weight))
    for module in modules.values():
        if not isinstance(module, SHARDED_COLLECTIONS):
            continue
        for kernel in kernels(module):
            names = {config.name for config in kernel._config.embedding_tables}
            for group in groups.values():
                if names & set(group.tables):
                    group.kernels.append(kernel)
    for group in groups.values():
        group.reset()
    return list(groups.values())


class JoinedOptimizer(Optimizer):
    """The module's own optimizer, plus one parameter group for each table optimizer.

    A step calls its closure once. The table groups hold the weights of replicated tables only, so that these are
    clipped with the dense parameters. Sharded tables are trained by their kernels, replicated ones
    here. The groups' number depends neither on the rank nor on the plan.

    Args:
        dense: What ``configure_optimizers`` returned; table weights are taken out of it.
        groups: The table groups.
        table_weights: Weights of all tables that have a table optimizer or are frozen.
        follow_schedule: Whether a learning-rate schedule of ``dense`` scales the tables' learning rates as well: that
            of the group which held the tables' weights, or else of the first.
        held: This rank's fused kernels, whose updates may wait for a step.
        sharded: Names of the sharded tables that are trained, the same on every rank.
        clip_dense_only: Whether clipping leaves the sharded tables out.
        replicas: Which other ranks hold the rows of this one.
    """

    def __init__(
        self,
        dense: Optimizer,
        groups: list[TableGroup],
        table_weights: Sequence[Tensor],
        follow_schedule: bool = True,
        held: Sequence[HeldKernel] = (),
        sharded: Sequence[str] = (),
        clip_dense_only: bool = False,
        replicas: Replicas | None = None,
    ) -> None:
        # Optimizer.__init__ wants parameters of its own.
        self.defaults: dict[str, Any] = dict(dense.defaults)
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()
        self.dense = dense
        self.groups = groups
        self.held = list(held)
        self.sharded = list(sharded)
        self.clip_dense_only = clip_dense_only
        self.replicas = replicas
        #: Whether the sharded tables' updates wait for the step that comes next.
        self.holding = False
        self._rates = TableRates(dense, groups, follow_schedule)
        self.table_groups = self._rates.groups
        strip(dense, table_weights)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The dense optimizer's groups, then one for each table optimizer."""
        self._rates.refresh()
        return [*self.dense.param_groups, *self.table_groups]

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The dense optimizer's state; the tables' is kept apart, since it may be sharded."""
        return self.dense.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Call the closure once, then step the dense optimizer and the replicated tables."""
        rates = self.push()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.share()
        for kernel in self.held:
            kernel.update(self.push)
        self.dense.step()
        for group, lr in zip(self.groups, rates, strict=True):
            group.step(lr)
        return loss

    def share(self) -> None:
        """Give this rank's rows the gradients that have arrived in other replica groups. Every rank must call this."""
        if self.replicas is not None:
            share(self.held, self.replicas)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of dense parameters and replicated tables."""
        self.push()  # with manual optimization the backward pass comes before `step`
        self.dense.zero_grad(set_to_none=set_to_none)
        for group in self.groups:
            for weight, _ in group.weights.values():
                if weight.grad is not None:
                    weight.grad = None if set_to_none else weight.grad.detach().zero_()
        for kernel in self.held:
            kernel.clear_gradients()

    def table_state(self) -> dict[str, Tensor | ShardedTensor]:
        """Return ``<table>/<state>`` -> this rank's part of the tables' state."""
        return {key: value for group in self.groups for key, value in group.state().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the dense optimizer's state, and of the tables only what is the same on every rank."""
        return {
            "dense": self.dense.state_dict(),
            "tables": [
                {"lr": lr, "tables": group["tables"], "steps": tables.steps}
                for lr, group, tables in zip(self._rates.base, self.table_groups, self.groups, strict=True)
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        Raises:
            ValueError: If the tables of the groups differ.
        """
        if "tables" not in state_dict:
            raise ValueError(
                "this checkpoint was written without TorchRecStrategy and has no optimizer state of the tables: train "
                "on from its weights only (load them into the module before Trainer.fit)"
            )
        saved, mine = ([group["tables"] for group in groups] for groups in (state_dict["tables"], self.table_groups))
        if saved != mine:
            raise ValueError(f"tables must have the optimizers that they were saved with: groups {saved}, now {mine}")
        self.dense.load_state_dict(state_dict["dense"])
        for number, (saved_group, tables) in enumerate(zip(state_dict["tables"], self.groups, strict=True)):
            self._rates.set_base(number, saved_group["lr"])
            tables.steps = saved_group["steps"]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the dense optimizer, as a fine-tuning callback does."""
        self.dense.add_param_group(param_group)

    def __repr__(self) -> str:
        return f"JoinedOptimizer(dense={self.dense!r}, tables={[group.optimizer for group in self.groups]})"

    def push(self) -> list[float]:
        """Tell the kernels the present learning rates and numbers of steps; they look when they are asked for rows."""
        rates = self._rates.refresh()
        for group, lr in zip(self.groups, rates, strict=True):
            group.push(lr)
        return rates


def strip(dense: Optimizer, table_weights: Sequence[Tensor]) -> None:
    """Take table weights out of an optimizer: they are not its to train."""
    mine = {id(weight) for weight in table_weights}
    for group in dense.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in mine]
    for weight in [weight for weight in dense.state if id(weight) in mine]:
        del dense.state[weight]
