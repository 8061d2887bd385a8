"""Replica groups (2D parallelism): ranks in groups, each of which holds every sharded table.

Ids and vectors travel inside a group. Ranks that hold the same rows, one of each group, are peers: they exchange the
rows' gradients before an update and all make the same one, see :mod:`peers`.

    4 ranks, 2 groups       rows 0 ..    rows 50 ..
    group 0                 rank 0       rank 1         ids and vectors travel along a line,
    group 1                 rank 2       rank 3         gradients of rows along a column
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharding_spec import EnumerableShardingSpec, ShardMetadata
from torchrec.distributed.planner.utils import placement
from torchrec.distributed.types import EmbeddingModuleShardingPlan, ModuleShardingPlan, ParameterSharding, ShardingEnv


@dataclass(frozen=True)
class Replicas:
    """This rank among the replicas of the tables.

    Args:
        count: Number of groups.
        size: Ranks of a group.
        number: The group of this rank.
        group: Its ranks.
        peers: The ranks that hold the same rows, by group.
    """

    count: int
    size: int
    number: int
    group: Any
    peers: Any

    def env(self) -> ShardingEnv:
        """Return what TorchRec shards over: the ranks of the group."""
        if self.count == 1:
            return ShardingEnv.from_process_group(self.group)
        env = ShardingEnv(self.size, dist.get_rank(self.group))
        # Given to the constructor, it would make a mesh of the first ranks of the run, whichever these are.
        env.process_group = self.group
        return env

    def place(self, plan: ModuleShardingPlan, device: torch.device, ranks_per_node: int) -> ModuleShardingPlan:
        """Return the plan of a collection, made for the ranks of a group, with the ranks of the run in it.

        A shard's place is told by the rank of the run, and the number of its device on the machine.
        """
        assert isinstance(plan, EmbeddingModuleShardingPlan)
        if self.count == 1:
            return plan
        first = self.number * self.size
        moved = {}
        for name, part in plan.items():
            spec: Any = part.sharding_spec
            shards = [
                ShardMetadata(
                    shard.shard_offsets,
                    shard.shard_sizes,
                    placement(device.type, first + shard.placement.rank(), ranks_per_node),
                )
                for shard in spec.shards
            ]
            moved[name] = ParameterSharding(**{**vars(part), "sharding_spec": EnumerableShardingSpec(shards)})
        return EmbeddingModuleShardingPlan(moved)

    def mine(self, rows: int) -> tuple[int, int]:
        """Return the first and the end of the rows of a shard that are this rank's, not its peers', to work on.

        Example:
            >>> [Replicas(2, 1, number, None, None).mine(5) for number in (0, 1)]
            [(0, 2), (2, 5)]
        """
        return rows * self.number // self.count, rows * (self.number + 1) // self.count


def make_replicas(count: int, timeout: timedelta | None = None) -> Replicas:
    """Divide the ranks of the run into ``count`` groups of consecutive ranks; every rank calls it.

    Args:
        count: Number of groups.
        timeout: After this time, a rank that waits for another one gives up.

    Raises:
        ValueError: If the number of ranks cannot be divided by ``count``.
    """
    world = dist.get_world_size()
    if world % count:
        raise ValueError(f"replica_groups must divide the number of ranks, got {count} groups of {world} ranks")
    size, rank = world // count, dist.get_rank()
    if count == 1:
        return Replicas(1, world, 0, dist.group.WORLD, None)
    groups = [list(range(number * size, (number + 1) * size)) for number in range(count)]
    group, _ = dist.new_subgroups_by_enumeration(groups, timeout=timeout)
    peers, _ = dist.new_subgroups_by_enumeration([list(column) for column in zip(*groups, strict=True)], timeout)
    return Replicas(count, size, rank // size, group, peers)
