"""Embedding tables from a schema: one TorchRec collection for items, one for users.

D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.schema import Field, Schema


def item_tables(
    schema: Schema,
    embedding_dim: int,
    fields: Sequence[str] | None = None,
    bag_views: Sequence[str] = (),
    init_std: float | None = None,
    device: torch.device | str | None = None,
) -> EmbeddingBagCollection:
    """Build the tables ``item_id``, ``item_<field>`` and, for a view that needs its own, ``bag_<view>``.

    A ``bag_<view>`` table reads the feature ``item_id``, so an item's rows of all tables come from one lookup.

    Args:
        schema: Sizes and fields.
        embedding_dim: Width ``D``, a multiple of 4 (the table kernels need it).
        fields: Item fields that get a table; None: all that are categorical or multi-hot.
        bag_views: Views with an item table of their own.
        init_std: Standard deviation of the normal that rows are drawn from; None: ``1 / sqrt(D)``, for vectors of
            length about 1.
        device: Where the tables lie; ``"meta"`` leaves them to be materialised later.

    Raises:
        ValueError: If a field or view is unknown, a field is numeric, or ``embedding_dim`` is not a multiple of 4.

    Example:
        >>> from lightning_mvrec.schema import Schema, View
        >>> schema = Schema(views=(View("click"),), num_items=10, num_users=5, targets=("click",))
        >>> [table.name for table in item_tables(schema, 4, bag_views=["click"]).embedding_bag_configs()]
        ['item_id', 'bag_click']
    """
    configs = [_config("item_id", "item_id", schema.num_items, embedding_dim, PoolingType.SUM, init_std)]
    for field in table_fields(schema.item_fields, fields, "item"):
        configs.append(_field_config("item", field, embedding_dim, init_std))
    for view in bag_views:
        schema.view(view)
        configs.append(_config(f"bag_{view}", "item_id", schema.num_items, embedding_dim, PoolingType.SUM, init_std))
    return EmbeddingBagCollection(tables=configs, device=_device(device))


def user_tables(
    schema: Schema,
    embedding_dim: int,
    fields: Sequence[str] | None = None,
    init_std: float | None = None,
    device: torch.device | str | None = None,
) -> EmbeddingBagCollection:
    """Build the tables ``user_id`` and ``user_<field>``.

    Args:
        schema: Sizes and fields.
        embedding_dim: Width ``D``, a multiple of 4.
        fields: User fields that get a table; None: all that are categorical or multi-hot.
        init_std: See :func:`item_tables`.
        device: See :func:`item_tables`.

    Raises:
        ValueError: If a field is unknown or numeric, or ``embedding_dim`` is not a multiple of 4.

    Example:
        >>> from lightning_mvrec.schema import Field, Schema, View
        >>> age = Field("age", "categorical", size=8)
        >>> schema = Schema((View("click"),), num_items=10, num_users=5, targets=("click",), user_fields=(age,))
        >>> [table.name for table in user_tables(schema, 4).embedding_bag_configs()]
        ['user_id', 'user_age']
    """
    configs = [_config("user_id", "user_id", schema.num_users, embedding_dim, PoolingType.SUM, init_std)]
    for field in table_fields(schema.user_fields, fields, "user"):
        configs.append(_field_config("user", field, embedding_dim, init_std))
    return EmbeddingBagCollection(tables=configs, device=_device(device))


def table_fields(known: Sequence[Field], names: Sequence[str] | None, owner: str) -> list[Field]:
    """Return the fields that get a table: all that are not numeric, or those named.

    Raises:
        ValueError: If a name is unknown or the field numeric.
    """
    with_table = {field.name: field for field in known if field.kind != "numeric"}
    if names is None:
        return list(with_table.values())
    for name in names:
        if name not in with_table:
            raise ValueError(
                f"fields must be categorical or multi-hot {owner} fields, one of {list(with_table)}, got {name!r}"
            )
    return [with_table[name] for name in names]


def output_keys(collection: EmbeddingBagCollection) -> dict[str, str]:
    """Say under which key a collection's result holds each table's vectors: key by table name.

    TorchRec names a vector for its feature, and ``<feature>@<table>`` where tables share one. Ask before sharding: the
    sharded module that takes the collection's place answers to the same keys.
    """
    tables = collection.embedding_bag_configs()
    features = [feature for table in tables for feature in table.feature_names]
    keys = {}
    for table in tables:
        feature = table.feature_names[0]
        keys[table.name] = feature if features.count(feature) == 1 else f"{feature}@{table.name}"
    return keys


def look_up(collection: EmbeddingBagCollection, features: KeyedJaggedTensor, keys: dict[str, str]) -> dict[str, Tensor]:
    """Look every table of a collection up, once, and return its vectors by table name.

    Args:
        collection: The tables, or the sharded module in their place.
        features: KJT of any stride ``N``; 0 included, which TorchRec itself cannot read.
        keys: What :func:`output_keys` gave.

    Returns:
        ``(N, D)`` by table name.
    """
    stride = features.stride()
    if stride == 0:
        # One empty bag: this rank still takes part in the exchange, and the graph stays whole.
        none = torch.zeros(len(features.keys()), dtype=torch.int64, device=features.device())
        features = KeyedJaggedTensor(features.keys(), features.values(), lengths=none)
    vectors = collection(features)
    return {table: vectors[key][:stride] for table, key in keys.items()}


def _field_config(owner: str, field: Field, embedding_dim: int, init_std: float | None) -> EmbeddingBagConfig:
    name = f"{owner}_{field.name}"
    # The mean keeps an item of many genres as long a vector as an item of one.
    pooling = PoolingType.MEAN if field.kind == "multi_hot" else PoolingType.SUM
    return _config(name, name, field.size, embedding_dim, pooling, init_std)


def _config(
    name: str, feature: str, rows: int, embedding_dim: int, pooling: PoolingType, init_std: float | None
) -> EmbeddingBagConfig:
    if embedding_dim < 4 or embedding_dim % 4:
        raise ValueError(f"embedding_dim must be a multiple of 4, got {embedding_dim}")
    if init_std is not None and init_std <= 0:
        raise ValueError(f"init_std must be above 0, got {init_std}")
    std = embedding_dim**-0.5 if init_std is None else init_std
    init_fn: Callable[[Tensor], Tensor] = partial(nn.init.normal_, std=std)
    return EmbeddingBagConfig(
        name=name,
        embedding_dim=embedding_dim,
        num_embeddings=rows,
        feature_names=[feature],
        pooling=pooling,
        init_fn=init_fn,
    )


def _device(device: torch.device | str | None) -> torch.device | None:
    return None if device is None else torch.device(device)
