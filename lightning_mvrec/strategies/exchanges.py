"""The exchange of ids that begins a lookup of a sharded collection, in stages, so that it may begin a step early.

F features, B bags a rank has, M the most bags any rank has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


@dataclass(frozen=True)
class CheckedIds:
    """Ids of one lookup, looked at by this rank.

    Args:
        features: This rank's ids.
        path: Path of the collection, for messages.
        fault: What is wrong with an id of this rank, or None.
        even: Whether ranks must have the same number of bags. Every rank must then make this lookup.
    """

    features: KeyedJaggedTensor
    path: str
    fault: str | None
    even: bool


@dataclass
class Habit:
    """What ranks found at their last lookup of a collection, each the same.

    Attributes:
        ask_first: Whether to agree on the number of bags before ids are exchanged.
    """

    ask_first: bool = False


class Exchange:
    """The ids of one lookup on their way to the ranks that hold the rows, in stages that :meth:`advance` goes through.

    Two waits lie between ids and lookup: for the number of ids and bags that each rank sends, and for the ids. Ranks
    that must have the same number of bags see after the first whether they have. If they have not, they agree on the
    largest number, those with fewer begin again with empty bags at the end, and the next lookup agrees first (one wait
    more, but nothing twice) until they are even. A rank with an id outside its table sends one empty bag instead, by
    which all find out: where all have one bag they always ask.

    Every rank must make an exchange, and advance it, at the same points of its program.

    Args:
        module: The sharded collection.
        ids: What is looked up.
        habit: What ranks have found before; it learns what they find now.
    """

    def __init__(self, module: nn.Module, ids: CheckedIds, habit: Habit) -> None:
        self.ids = ids
        #: The number of bags that the lookup's result must be cut to, if it must be.
        self.bags: int | None = None
        self._module: Any = module
        self._habit = habit
        self._fault = ids.fault
        self._given = _fingerprint(ids.features)
        self._told: Tensor | None = None
        self._context: Any = None
        self._awaitable: Any = None
        self._sizes_known = False
        if ids.even and habit.ask_first:
            self._ask()
        elif ids.even and ids.fault:
            self._begin(nothing_like(ids.features))
        else:
            self._begin(readable(ids.features))

    def advance(self) -> None:
        """End the stage that is under way and begin the next; at the last one, do nothing."""
        if self._sizes_known:
            return
        if self._awaitable is None:
            self._sizes_known = not self._begin_evenly()
            return
        self._awaitable = self._awaitable.wait()
        self._sizes_known = True
        if self.ids.even and self._told is None and not _even(self._context):
            self._ask()
            self._awaitable.wait()  # nothing of this attempt is on its way any more
            if self._begin_evenly():
                self._awaitable = self._awaitable.wait()

    def result(self) -> tuple[Any, Any]:
        """Return TorchRec's context and the ids that this rank must look up.

        Raises:
            ValueError: If an id is outside its table, on this rank or (where ranks must be even) on another.
        """
        while not self._sizes_known:
            self.advance()
        found = None if self._awaitable is None else self._awaitable.wait()
        if self._fault:
            raise ValueError(self._fault)
        return self._context, found

    def _begin(self, features: KeyedJaggedTensor) -> None:
        if features is not self.ids.features:
            self.bags = self.ids.features.stride()
        self._context = self._module.create_context()
        self._awaitable = self._module.input_dist(self._context, features)

    def _ask(self) -> None:
        """Begin to tell the other ranks the number of bags, and whether an id is wrong."""
        bags = self.ids.features.stride()
        self._told = torch.tensor([bags, -bags, int(self._fault is not None)], device=self.ids.features.device())
        group = self._module._env.process_group
        self._work: Any = dist.all_reduce(self._told, dist.ReduceOp.MAX, group=group, async_op=True)

    def _begin_evenly(self) -> bool:
        """Begin with as many bags as any rank has; not if one has a wrong id, then on no rank."""
        assert self._told is not None
        self._work.wait()
        most, less_least, faults = self._told.tolist()
        self._habit.ask_first = most != -less_least or most == 1
        if faults:
            other = f"{self.ids.path}: another rank has an id outside its table; its message says which"
            self._fault = self._fault or other
            return False
        self._begin(pad_bags(readable(self.ids.features), max(most, 1)))
        return True

    def is_of(self, features: KeyedJaggedTensor) -> bool:
        """Whether it sent these ids: this object, unchanged, or one with the same content."""
        mine = self.ids.features
        if features is mine:
            return _fingerprint(features) == self._given
        return (
            features.keys() == mine.keys()
            and torch.equal(features.lengths(), mine.lengths())
            and torch.equal(features.values(), mine.values())
            and _same(features.weights_or_none(), mine.weights_or_none())
            and _fingerprint(mine) == self._given
        )


class ExchangedForward:
    """The forward pass of a sharded collection, with ids that an exchange brings where there is one.

    Args:
        module: The collection, whose ``forward`` this takes the place of.
        under_way: Returns the exchange of the lookup under way.
        complete: Returns an exchange's context and ids.
    """

    def __init__(
        self,
        module: nn.Module,
        under_way: Callable[[], Exchange | None],
        complete: Callable[[Exchange], tuple[Any, Any]] = Exchange.result,
    ) -> None:
        self._module: Any = module
        self._under_way = under_way
        self._complete = complete

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Look up."""
        exchange = self._under_way()
        if exchange is None:
            return type(self._module).forward(self._module, *args, **kwargs)
        return self._module.compute_and_output_dist(*self._complete(exchange))


def _even(context: Any) -> bool:
    """Whether all ranks have sent the same number of bags, and more than one: the same answer on every rank."""
    strides = {bags for sharding in context.sharding_contexts for bags in sharding.batch_size_per_rank}
    return len(strides) == 1 and strides != {1}


def _fingerprint(features: KeyedJaggedTensor) -> list[tuple[int, int]]:
    parts = [features.values(), features.lengths(), features.weights_or_none()]
    return [(id(part), part._version) for part in parts if part is not None]


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def readable(features: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """Return ``features``, or one empty bag where there is none, which TorchRec could not read."""
    return features if features.stride() else nothing_like(features)


def nothing_like(features: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """Return one empty bag for every feature, to take part in an exchange with.

    Example:
        >>> full = KeyedJaggedTensor(["a", "b"], values=torch.tensor([7, 8]), lengths=torch.tensor([1, 1]))
        >>> nothing_like(full).lengths().tolist(), nothing_like(full).values().tolist()
        ([0, 0], [])
    """
    weights = features.weights_or_none()
    return KeyedJaggedTensor(
        keys=features.keys(),
        values=features.values()[:0],
        weights=None if weights is None else weights[:0],
        lengths=features.lengths().new_zeros(len(features.keys())),
        stride=1,
    )


def pad_bags(features: KeyedJaggedTensor, bags: int) -> KeyedJaggedTensor:
    """Return ``features`` with empty bags at the end of every feature, ``bags`` of them in all.

    Example:
        >>> kjt = KeyedJaggedTensor(["a", "b"], values=torch.tensor([7, 8]), lengths=torch.tensor([1, 1]))
        >>> pad_bags(kjt, 3).lengths().tolist()
        [1, 0, 0, 1, 0, 0]
    """
    missing = bags - features.stride()
    if missing == 0:
        return features
    lengths_FB = features.lengths().view(len(features.keys()), features.stride())
    lengths_FM: Tensor = torch.nn.functional.pad(lengths_FB, (0, missing))
    return KeyedJaggedTensor(
        keys=features.keys(),
        values=features.values(),
        weights=features.weights_or_none(),
        lengths=lengths_FM.flatten(),
        stride=bags,
    )
