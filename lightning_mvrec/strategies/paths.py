"""Where in a batch ids lie: dicts, lists, tuples and attributes of plain objects are looked into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

_DEPTH = 5


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif hasattr(value, "__dict__") and not isinstance(value, (Tensor, nn.Module, type)):
        yield from vars(value).items()


def find_ids(batch: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], KeyedJaggedTensor]]:
    """Yield path and KeyedJaggedTensor for each of a batch.

    Example:
        >>> import torch
        >>> ids = KeyedJaggedTensor(["a"], values=torch.tensor([1]), lengths=torch.tensor([1]))
        >>> [path for path, _ in find_ids({"x": [3, ids], "y": ids})]
        [('x', 1), ('y',)]
    """
    if isinstance(batch, KeyedJaggedTensor):
        yield path, batch
    elif len(path) < _DEPTH:
        for key, value in _children(batch):
            yield from find_ids(value, (*path, key))


def follow(batch: Any, path: tuple[Any, ...]) -> KeyedJaggedTensor | None:
    """Return what lies at a path of a batch, or None if that is no KeyedJaggedTensor."""
    for key in path:
        found = dict(_children(batch))
        if key not in found:
            return None
        batch = found[key]
    return batch if isinstance(batch, KeyedJaggedTensor) else None


def record_stream(value: Any, stream: Any, depth: int = 0) -> None:
    """Tell the CUDA allocator that ``stream`` uses every tensor of a batch.

    Raises:
        TypeError: If a tensor lies deeper in the batch than this looks.
    """
    if hasattr(value, "record_stream"):
        value.record_stream(stream)
    elif depth < _DEPTH:
        for _, child in _children(value):
            record_stream(child, stream, depth + 1)
