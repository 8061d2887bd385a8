"""The exchange of ids that begins a lookup of a sharded collection, in stages, so that it may begin a step early.

F features, B bags a rank has, M the most bags any rank has.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class BagCheck:
    """Ids of one lookup, checked by this rank, and the number of bags that ranks agree on.

    Args:
        features: This rank's ids.
        path: Path of the collection, for messages.
        fault: What is wrong with an id of this rank, or None.
        agree: Whether ranks must have the same number of bags. Every rank must then make its check.
    """

    def __init__(self, features: KeyedJaggedTensor, path: str, fault: str | None, agree: bool) -> None:
        self.features = features
        #: The number of bags that the lookup's result must be cut to, if it must be.
        self.bags: int | None = None
        self._path = path
        self._fault = fault
        self._most: Tensor | None = None
        self._padded: KeyedJaggedTensor | None = None
        if agree:
            # One exchange for both: a rank that raised alone would leave the others waiting.
            self.bags = features.stride()
            self._most = torch.tensor([self.bags, int(fault is not None)], device=features.device())
            self._work = dist.all_reduce(self._most, dist.ReduceOp.MAX, async_op=True)
        elif features.stride() == 0:
            self.bags = 0

    @property
    def agrees(self) -> bool:
        """Whether ranks were asked."""
        return self._most is not None

    def padded(self) -> KeyedJaggedTensor:
        """Return the ids with empty bags up to the largest number of any rank, even if one of them is wrong."""
        if self._padded is None:
            self._padded = readable(self.features)
            if self._most is not None:
                self._work.wait()
                largest, faults = self._most.tolist()
                if faults and not self._fault:
                    self._fault = f"{self._path}: another rank has an id outside its table; its message says which"
                self._padded = pad_bags(self._padded, max(largest, 1))
        return self._padded

    def finish(self) -> KeyedJaggedTensor:
        """Return the padded ids.

        Raises:
            ValueError: If an id is outside its table, on this rank or (where ranks agree on bags) on another.
        """
        padded = self.padded()
        if self._fault:
            raise ValueError(self._fault)
        return padded


class Exchange:
    """The ids of one lookup on their way to the ranks that hold the rows.

    Three waits lie between ids and lookup: for the number of bags, for the number of ids that each rank sends, and for
    the ids. :meth:`advance` ends one and begins the next. Every rank must call it at the same points of its program.

    Args:
        module: The sharded collection.
        check: The ids.
    """

    def __init__(self, module: nn.Module, check: BagCheck) -> None:
        self.check = check
        self._module: Any = module
        self._stage = 0
        self._context: Any = None
        self._awaitable: Any = None
        self._given = _fingerprint(check.features)
        if not check.agrees:
            self.advance()

    def advance(self) -> None:
        """End the stage that is under way and begin the next; at the last one, do nothing."""
        if self._stage == 0:
            self._context = self._module.create_context()
            self._awaitable = self._module.input_dist(self._context, self.check.padded())
        elif self._stage == 1:
            self._awaitable = self._awaitable.wait()
        else:
            return
        self._stage += 1

    def result(self) -> tuple[Any, Any]:
        """Return TorchRec's context and the ids that this rank must look up."""
        while self._stage < 2:
            self.advance()
        return self._context, self._awaitable.wait()

    def is_of(self, features: KeyedJaggedTensor) -> bool:
        """Whether it sent these ids: this object, unchanged, or one with the same content."""
        mine = self.check.features
        if features is mine:
            return _fingerprint(features) == self._given
        return (
            features.keys() == mine.keys()
            and torch.equal(features.lengths(), mine.lengths())
            and torch.equal(features.values(), mine.values())
            and _same(features.weights_or_none(), mine.weights_or_none())
            and _fingerprint(mine) == self._given
        )


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
