"""Tables in int8 for serving: bag and sequence collections alike."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.inference.modules import quantize_embeddings
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.quant.embedding_modules import EmbeddingCollection as QuantizedCollection

from lightning_mvrec.strategies.tables import COLLECTIONS, SHARDED_COLLECTIONS, find_collections


def quantize_tables(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose tables hold int8 numbers with a scale and an offset for each row.

    TorchRec's own ``quantize_embeddings`` leaves an ``EmbeddingCollection`` in float32 unless it is told about it.
    A weight is off by at most half a 255th of the range of its row. Lookups return float32; the tables cannot be
    trained any more.

    Args:
        module: With ordinary tables, as ``plain_module(trainer)`` returns it.

    Raises:
        ValueError: If tables are sharded, or there are none.

    Example:
        >>> from torchrec import EmbeddingConfig
        >>> config = EmbeddingConfig(name="t", num_embeddings=9, embedding_dim=4, feature_names=["a"])
        >>> tables = EmbeddingCollection(tables=[config])
        >>> type(quantize_tables(torch.nn.Sequential(tables))[0]).__module__
        'torchrec.quant.embedding_modules'
    """
    if any(isinstance(child, SHARDED_COLLECTIONS) for child in module.modules()):
        raise ValueError("quantize_tables: the module's tables are sharded; give plain_module(trainer)")
    if isinstance(module, COLLECTIONS):
        raise ValueError("quantize_tables: give the module that holds the collection, not the collection itself")
    if not find_collections(module):
        raise ValueError(
            f"quantize_tables: {type(module).__name__} has no EmbeddingBagCollection or EmbeddingCollection"
        )
    return quantize_embeddings(
        module,
        dtype=torch.qint8,
        inplace=False,
        additional_qconfig_spec_keys=[EmbeddingCollection],
        additional_mapping={EmbeddingCollection: QuantizedCollection},
    )
