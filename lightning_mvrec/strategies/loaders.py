"""Every rank the same number of batches: a rank that has one more would wait for the others for ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def even_out(loader: Any, device: torch.device) -> Any:
    """Return ``loader``, or one that ends on all ranks at once if their numbers of batches differ or are unknown.

    Loaders that know their length are compared once; others ask in every step whether all ranks have a batch, which
    costs one small all-reduce. Every rank must call this.
    """
    if dist.get_world_size() == 1:
        return loader
    try:
        length = len(loader)
    except (TypeError, NotImplementedError):
        length = -1
    bounds = torch.tensor([length, -length], device=device)
    dist.all_reduce(bounds, dist.ReduceOp.MIN)
    smallest, largest = int(bounds[0]), -int(bounds[1])
    if smallest == largest and length >= 0:
        return loader
    if smallest >= 0:
        rank_zero_warn(
            f"ranks have {smallest} to {largest} batches; all stop after {smallest}. "
            "Give every rank the same number of batches to train on all of them"
        )
        return EvenLoader(loader, device, smallest)
    return EvenLoader(loader, device, None)


class EvenLoader:
    """A loader that ends when the first rank's ends.

    Args:
        loader: This rank's loader; attributes that this class lacks are its.
        device: Device for the exchange.
        length: Batches that every rank has, or None if that is not known beforehand.
    """

    def __init__(self, loader: Any, device: torch.device, length: int | None) -> None:
        self._loader = loader
        self._device = device
        self._length = length

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        if self._length is not None:
            for _ in range(self._length):
                yield next(batches)
            return
        while True:
            batch = next(batches, self)
            everybody = torch.tensor([int(batch is not self)], device=self._device)
            dist.all_reduce(everybody, dist.ReduceOp.MIN)
            if not everybody.item():
                return
            yield batch

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError(f"{type(self._loader).__name__} has no length")
        return self._length

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_loader" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._loader, name)
