"""Lookups of sharded tables while ranks have different numbers of batches: a rank without one takes part with no ids.

Before a lookup, ranks agree which collection it is; one that does not look it up itself takes part until its own turn
comes, or all are done. Any order and any number of lookups is possible. It costs one exchange of a number a lookup.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.strategies.sharding import ShardedTables

#: Keys of a KeyedJaggedTensor, types of its values and lengths, and of its weights if it has any.
Pattern = tuple[list[str], torch.dtype, torch.dtype, torch.dtype | None]


class Company:
    """Ranks that look up together although not all have something to look up. All ranks must make it together.

    Args:
        tables: The module's tables.
        device: Device of this rank.
        waits: Called whenever this rank, out of batches, waits for the others.
    """

    def __init__(self, tables: ShardedTables, device: torch.device, waits: Callable[[], None]) -> None:
        self._tables = tables
        self._device = device
        self._waits = waits
        self._guards = [guard for _, guard in sorted(tables.guards.items()) if guard.once]
        self._patterns: dict[int, Pattern] = {}
        self._taking_part = False
        # A group of its own: exchanges of a step that are no lookups must not meet these.
        self.group: Any = dist.new_group()

    def begin(self) -> None:
        """From now on ranks agree before every lookup."""
        for number, guard in enumerate(self._guards):
            guard.announce = lambda features, number=number: self._announce(number, features)

    def end(self) -> None:
        """Lookups are made by all ranks at once again."""
        for guard in self._guards:
            guard.announce = None

    def serve(self) -> None:
        """Take part in lookups of other ranks until no rank makes any more. Every rank must call this in the end."""
        while True:
            self._waits()
            chosen = self._agree(-1)
            if chosen < 0:
                return
            self._share(chosen, None)
            self._take_part(chosen)

    def _announce(self, number: int, features: KeyedJaggedTensor) -> None:
        """Wait until all ranks are about to make the lookup of collection ``number``."""
        if self._taking_part:
            return
        if features.variable_stride_per_key():
            raise ValueError(
                f"{self._guards[number].path}: ranks have different numbers of evaluation batches, which is not "
                "possible with a variable number of bags per feature. Give every rank the same number of batches"
            )
        while True:
            chosen = self._agree(number)
            self._share(chosen, features if chosen == number else None)
            if chosen == number:
                return
            self._take_part(chosen)

    def _agree(self, number: int) -> int:
        code = torch.tensor(number, device=self._device)
        dist.all_reduce(code, dist.ReduceOp.MAX, group=self.group)
        return int(code)

    def _share(self, number: int, features: KeyedJaggedTensor | None) -> None:
        """Tell every rank, once, what this collection is looked up with: a first lookup fixes the order of features."""
        if number in self._patterns:
            return
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, None if features is None else _pattern(features), group=self.group)
        self._patterns[number] = next(pattern for pattern in everywhere if pattern is not None)

    def _take_part(self, number: int) -> None:
        self._taking_part = True
        try:
            output = self._tables.modules[self._guards[number].path](self._nothing(self._patterns[number]))
            if hasattr(output, "wait"):
                output.wait()
        finally:
            self._taking_part = False

    def _nothing(self, pattern: Pattern) -> KeyedJaggedTensor:
        """Return one empty bag for every feature."""
        keys, values, lengths, weights = pattern

        def empty(dtype: torch.dtype) -> Tensor:
            return torch.empty(0, dtype=dtype, device=self._device)

        return KeyedJaggedTensor(
            keys=keys,
            values=empty(values),
            weights=None if weights is None else empty(weights),
            lengths=torch.zeros(len(keys), dtype=lengths, device=self._device),
            stride=1,
        )


def _pattern(features: KeyedJaggedTensor) -> Pattern:
    weights = features.weights_or_none()
    return (
        features.keys(),
        features.values().dtype,
        features.lengths().dtype,
        None if weights is None else weights.dtype,
    )
