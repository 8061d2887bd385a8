"""The trained module with ordinary tables again: for serving, for looking at, for another framework."""

from __future__ import annotations

import copy
import os
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.init import _materialize_meta_tensors
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from lightning_mvrec.strategies.checkpoint import is_checkpoint, read_meta, read_weights
from lightning_mvrec.strategies.checkpoint_read import refuse_outer
from lightning_mvrec.strategies.sharding import ShardedTables, sharded_tables
from lightning_mvrec.strategies.tables import (
    SHARDED_COLLECTIONS,
    blocks,
    find_collections,
    materialise,
    shards,
    weights,
)


def plain_module(
    source: pl.Trainer | pl.LightningModule | Any | str | os.PathLike[str], module: pl.LightningModule | None = None
) -> pl.LightningModule:
    """Return a trained LightningModule with ordinary tables on CPU, as if it had never been sharded.

    Args:
        source: A Trainer, its strategy or the trained LightningModule: every rank calls this and gets a copy, while
            the trained one stays as it is. Or the path of a checkpoint directory: then this process reads it alone.
        module: With a path, a new module of the same architecture, which is filled and returned. Its
            ``configure_model`` is called first.

    Raises:
        ValueError: If there is nothing trained in ``source``, or the checkpoint does not fit the module.

    Example:
        >>> model = plain_module("runs/7/last.ckpt", MyModule())  # doctest: +SKIP
    """
    if isinstance(source, (str, os.PathLike)):
        if module is None:
            raise ValueError("plain_module(path, module): a path needs a module to fill, got module=None")
        return _from_checkpoint(source, module)
    if module is not None:
        raise ValueError("plain_module: `module` goes with a path only")
    trained = source if isinstance(source, pl.LightningModule) else getattr(source, "lightning_module", None)
    if trained is None:
        raise ValueError(f"plain_module: no module has been trained with this {type(source).__name__} yet")
    tables = sharded_tables(trained)
    return _copy(trained, tables) if tables else to_cpu(copy.deepcopy(trained))


def _copy(trained: pl.LightningModule, tables: ShardedTables) -> pl.LightningModule:
    """Copy a module whose collections are swapped for plain ones while it is copied."""
    places = {path: path.rpartition(".") for path in tables.modules}
    parents = {path: (trained.get_submodule(parent), name) for path, (parent, _, name) in places.items()}
    plain = {path: _plain_collection(path, tables) for path in tables.modules}
    ignored = trained.__dict__.pop("_ddp_params_and_buffers_to_ignore", None)
    try:
        for path, (parent, name) in parents.items():
            parent._modules[name] = plain[path]
        copied = copy.deepcopy(trained)
    finally:
        for path, (parent, name) in parents.items():
            parent._modules[name] = tables.modules[path]
        if ignored is not None:
            trained._ddp_params_and_buffers_to_ignore = ignored
    return to_cpu(copied)


def _plain_collection(path: str, tables: ShardedTables) -> nn.Module:
    collection: Any = tables.modules[path]
    mine = [table for table in tables.tables if table.path == path]
    kind = EmbeddingBagCollection if hasattr(mine[0].config, "pooling") else EmbeddingCollection
    configs: list[Any] = [table.config for table in mine]
    if kind is EmbeddingBagCollection:
        weighted = collection._is_weighted if hasattr(collection, "_is_weighted") else collection.is_weighted()
        made: Any = EmbeddingBagCollection(configs, is_weighted=weighted, device=torch.device("meta"))
    else:
        made = EmbeddingCollection(configs, device=torch.device("meta"), need_indices=collection._need_indices)
    for table in mine:
        weight = nn.Parameter(
            whole_table(tables.weight(table), table.config, tables.device), requires_grad=not table.frozen
        )
        weights(made)[table.name].weight = weight
    made._device = torch.device("cpu")
    return made.train(collection.training)


@torch.no_grad()
def whole_table(weight: Tensor | ShardedTensor, config: BaseEmbeddingConfig, device: torch.device) -> Tensor:
    """Return a table on CPU, put together from all ranks' parts, a block of rows at a time."""
    if not isinstance(weight, ShardedTensor):
        return weight.detach().cpu().clone()
    parts = shards(weight)
    dtype = weight.metadata().tensor_properties.dtype
    whole = torch.empty(config.num_embeddings, config.embedding_dim, dtype=dtype)
    for first, end in blocks(config.num_embeddings, 1 << 16):
        block = torch.zeros(end - first, config.embedding_dim, dtype=dtype, device=device)
        for part in parts:
            low, high = max(first, part.first_row), min(end, part.first_row + part.tensor.shape[0])
            if low < high:
                columns = slice(part.first_column, part.first_column + part.tensor.shape[1])
                block[low - first : high - first, columns] = part.tensor[low - part.first_row : high - part.first_row]
        dist.all_reduce(block, group=weight._process_group)  # every weight is on one rank of it and 0 on the others
        whole[first:end] = block.cpu()
    return whole


def _from_checkpoint(path: str | os.PathLike[str], module: pl.LightningModule) -> pl.LightningModule:
    if any(isinstance(child, SHARDED_COLLECTIONS) for child in module.modules()):
        raise ValueError("plain_module(path, module): give a new module, this one's tables are sharded")
    if not is_checkpoint(path):
        refuse_outer(path)
    rest = read_meta(path)["checkpoint"]["state_dict"]
    module.configure_model()
    to_cpu(module)
    tensors = {key: value for key, value in module.state_dict().items() if key not in rest}
    read_weights(path, tensors, strict=module.strict_loading, alone=True)
    module.load_state_dict({**tensors, **rest}, strict=module.strict_loading)
    return module.eval()


def to_cpu(module: pl.LightningModule) -> pl.LightningModule:
    """Bring a module to CPU; what is on meta gets memory without values."""
    for collection in find_collections(module).values():
        materialise(collection, torch.device("cpu"))
    _materialize_meta_tensors(module, torch.device("cpu"))
    return module.cpu()
