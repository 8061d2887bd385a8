"""Which embedding tables a module has, where, and the rows of each that lie on this rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from lightning_mvrec.strategies.optimizers import TableOptimizer

COLLECTIONS = (EmbeddingBagCollection, EmbeddingCollection)
SHARDED_COLLECTIONS = (ShardedEmbeddingBagCollection, ShardedEmbeddingCollection)


@dataclass
class Table:
    """One embedding table of a module.

    Args:
        path: Path of the table's collection in the module.
        config: TorchRec's description of it.
        replicated: Whether every rank holds all of it and DDP averages its gradient.
        optimizer: How it is trained; None leaves it to the module's ``configure_optimizers``.
        frozen: Whether it must not change.
    """

    path: str
    config: BaseEmbeddingConfig
    replicated: bool
    optimizer: TableOptimizer | None = None
    frozen: bool = False

    @property
    def name(self) -> str:
        """Name of the table, unique in its module."""
        return self.config.name

    @property
    def local_key(self) -> str:
        """Name of its weight in its collection's state dict."""
        return f"{'embedding_bags' if hasattr(self.config, 'pooling') else 'embeddings'}.{self.name}.weight"

    @property
    def key(self) -> str:
        """Name of its weight in the module's state dict."""
        return f"{self.path}.{self.local_key}"


@dataclass
class Shard:
    """A rectangle of a table on this rank: ``tensor`` is a view that may be written."""

    first_row: int
    first_column: int
    tensor: Tensor


def find_collections(module: nn.Module) -> dict[str, nn.Module]:
    """Return path -> collection for every unsharded TorchRec collection in ``module``.

    Raises:
        ValueError: If one collection hangs at two paths, or two tables have one name.
    """
    found: dict[str, nn.Module] = {}
    paths: dict[nn.Module, str] = {}
    owner: dict[str, str] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        if not isinstance(child, COLLECTIONS):
            continue
        if child in paths:
            raise ValueError(f"one collection must hang at one place of the module, got {paths[child]!r} and {path!r}")
        paths[child] = path
        for config in configs(child):
            if config.name in owner:
                raise ValueError(
                    f"table names must be unique in a module, got {config.name!r} in {owner[config.name]!r} "
                    f"and {path!r}"
                )
            owner[config.name] = path
        found[path] = child
    return found


def configs(collection: Any) -> list[BaseEmbeddingConfig]:
    """Return the tables' descriptions of a collection, sharded or not."""
    for name in ("embedding_bag_configs", "embedding_configs", "_embedding_bag_configs", "_embedding_configs"):
        value = getattr(collection, name, None)
        if value is not None:
            return value() if callable(value) else value
    raise TypeError(f"not a collection of tables: {type(collection).__name__}")


def weights(collection: Any) -> Any:
    """Return the ModuleDict table name -> module with the table's ``weight``."""
    return collection.embedding_bags if hasattr(collection, "embedding_bags") else collection.embeddings


def materialise(collection: nn.Module, device: torch.device) -> list[str]:
    """Give the tables of an unsharded collection that are on ``meta`` empty memory, and return their names."""
    empty = []
    for name, owner in weights(collection).items():
        if owner.weight.is_meta:
            grad = owner.weight.requires_grad
            owner.weight = nn.Parameter(torch.empty_like(owner.weight, device=device), requires_grad=grad)
            empty.append(name)
    if empty:
        collection._device = device  # type: ignore[assignment]
    return empty


def shards(value: Tensor | ShardedTensor) -> list[Shard]:
    """Return the parts of a table (or of its state) that this rank holds; all of it for a plain tensor."""
    if isinstance(value, ShardedTensor):
        found = []
        for shard in value.local_shards():
            offsets = [*shard.metadata.shard_offsets, 0]
            found.append(Shard(int(offsets[0]), int(offsets[1]), shard.tensor))
        return found
    return [Shard(0, 0, value)]


def blocks(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(first, end)`` of consecutive blocks of rows.

    Example:
        >>> list(blocks(5, 2))
        [(0, 2), (2, 4), (4, 5)]
    """
    for first in range(0, rows, size):
        yield first, min(first + size, rows)


@torch.no_grad()
def write_block(parts: Iterable[Shard], first_row: int, block: Tensor) -> None:
    """Copy rows ``first_row ...`` of a table into the parts of it that hold them."""
    for part in parts:
        first = max(first_row, part.first_row)
        end = min(first_row + block.shape[0], part.first_row + part.tensor.shape[0])
        if first < end:
            columns = slice(part.first_column, part.first_column + part.tensor.shape[1])
            part.tensor[first - part.first_row : end - part.first_row].copy_(
                block[first - first_row : end - first_row, columns]
            )
