"""Batches on their way to the module: every rank the same number of them, and ids copied without waiting.

A rank that has one batch more than the others would wait for them for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def count_batches(loader: Any, device: torch.device) -> tuple[int, int, int]:
    """Return the number of batches of this rank's loader, the smallest and the largest of all ranks; -1: not known.

    Every rank must call this.
    """
    known = sized_len(loader)
    length = -1 if known is None else known
    bounds = torch.tensor([length, -length], device=device)
    dist.all_reduce(bounds, dist.ReduceOp.MIN)
    return length, int(bounds[0]), -int(bounds[1])


def even_out(loader: Any, device: torch.device) -> Any:
    """Return ``loader``, or one that ends on all ranks at once if their numbers of batches differ or are unknown.

    Loaders that know their length are compared once; others ask in every step whether all ranks have a batch, which
    costs one small all-reduce. Batches that not every rank has are left out. Every rank must call this.

    Args:
        loader: This rank's loader, of a training.
        device: Device for the exchange.
    """
    if dist.get_world_size() == 1:
        return loader
    length, smallest, largest = count_batches(loader, device)
    if smallest == largest and length >= 0:
        return loader
    kind = StatefulEvenLoader if has_state(loader) else EvenLoader
    if smallest < 0:
        return kind(loader, device, None)
    rank_zero_warn(
        f"ranks have {smallest} to {largest} batches; all stop after {smallest}. "
        "Give every rank the same number of batches to train on all of them"
    )
    return kind(loader, device, smallest)


def has_state(loader: Any) -> bool:
    """Tell whether a loader can say where it is and go on from there."""
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


class PassingLoader:
    """A loader around another; attributes that this class lacks are the other's, to read and to set.

    Args:
        loader: The other loader.
    """

    _loader: Any

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_loader" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:  # such as worker_init_fn, which Lightning sets
            setattr(self._loader, name, value)


class EvenLoader(PassingLoader):
    """A loader that ends when the first rank's ends.

    Args:
        loader: This rank's loader; attributes that this class lacks are its.
        device: Device for the exchange.
        length: Batches that every rank has, or None if that is not known beforehand.
    """

    def __init__(self, loader: Any, device: torch.device, length: int | None) -> None:
        super().__init__(loader)
        self._device = device
        self._length = length

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        if self._length is not None:
            for _ in range(self._length):
                yield next(batches)
            return
        while True:
            fault: Exception | None = None
            try:
                batch = next(batches, self)
            except Exception as error:  # kept until the others know: they wait in the exchange below
                batch, fault = self, error
            broken = -1 if fault is None else dist.get_rank()
            agreed = torch.tensor([int(batch is not self), -broken], device=self._device)
            dist.all_reduce(agreed, dist.ReduceOp.MIN)
            everybody, broken = bool(agreed[0]), -int(agreed[1])
            if fault is not None:
                raise fault
            if broken >= 0:
                raise RuntimeError(f"the loader of rank {broken} raised; its message says why")
            if not everybody:
                return
            yield batch

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError(f"{type(self._loader).__name__} has no length")
        return self._length


class StatefulEvenLoader(EvenLoader):
    """An :class:`EvenLoader` around a loader with state; Lightning asks the class whether it has any."""

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's state."""
        return self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the loader its state back."""
        self._loader.load_state_dict(state_dict)


def copy_ids(batch: Any, device: torch.device) -> Any:
    """Move the KeyedJaggedTensors of a batch without waiting; in dicts, lists and tuples they are found too."""
    if isinstance(batch, KeyedJaggedTensor):
        return batch.to(device, non_blocking=True)
    if type(batch) is dict:
        return {key: copy_ids(value, device) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)(copy_ids(value, device) for value in batch)
    return batch
