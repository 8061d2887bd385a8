"""Vectors of items and users: the id's row plus those of the fields, and of items what their texts say.

B users, M distinct items, F fields, W width of content vectors, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.embeddings.tables import item_tables, look_up, output_keys, user_tables
from lightning_mvrec.schema import Schema


class ItemEmbedding(nn.Module):
    """Turn the batch's distinct items into vectors: ``id + sum_f scale_f * field_f + linear(content)``.

    The scale of each field is learned and starts at 1; a multi-hot field contributes the mean of its rows. All tables
    are looked up once. Content vectors are frozen and come with the batch; only their linear map is learned.

    Args:
        schema: Sizes and fields.
        embedding_dim: Width ``D``, a multiple of 4.
        fields: Item fields that are added; None: all that are categorical or multi-hot, ``[]``: none.
        bag_views: Views that need an item table of their own (see ``SequenceEncoder.own_table``).
        init_std: Standard deviation of a table's initial rows; None: ``1 / sqrt(D)``.
        device: Where the tables lie; ``"meta"`` leaves them to be materialised later.
        content: Whether content vectors are added, where the schema says that the data has them.

    Shape:
        - items: KJT of stride ``M`` with keys ``item_id`` and ``item_<field>``; other keys have no effect.
        - content: ``(M, W)`` float, of length about 1: the map of longer ones would learn faster than the id rows.
        - output: ``(M, D)`` item vectors, and ``(M, D)`` for each of ``bag_views``, by view name.

    Raises:
        ValueError: If a field or view is unknown, a field is numeric, ``embedding_dim`` is not a multiple of 4, or the
            content vectors are left out.

    Example:
        >>> from lightning_mvrec.schema import Schema, View
        >>> schema = Schema(views=(View("click"),), num_items=10, num_users=5, targets=("click",))
        >>> items = KeyedJaggedTensor.from_lengths_sync(["item_id"], torch.tensor([3, 7]), torch.tensor([1, 1]))
        >>> item_MD, bag_MD = ItemEmbedding(schema, 4, bag_views=["click"])(items)
        >>> item_MD.shape, bag_MD["click"].shape
        (torch.Size([2, 4]), torch.Size([2, 4]))
    """

    def __init__(
        self,
        schema: Schema,
        embedding_dim: int,
        fields: Sequence[str] | None = None,
        bag_views: Sequence[str] = (),
        init_std: float | None = None,
        device: torch.device | str | None = None,
        content: bool = True,
    ) -> None:
        super().__init__()
        self.tables = item_tables(schema, embedding_dim, fields, bag_views, init_std, device)
        self.bag_views = list(bag_views)
        self.keys = output_keys(self.tables)
        self.field_tables = list(self.keys)[1 : len(self.keys) - len(self.bag_views)]
        self.scale = _scales(len(self.field_tables))
        self.content: nn.Linear | None = None
        if content and schema.content_dim:
            # No bias: an item without any text is its id and fields alone.
            self.content = nn.Linear(schema.content_dim, embedding_dim, bias=False)
            std = embedding_dim**-0.5 if init_std is None else init_std
            # For content of length 1 this part starts as long as a row of a table.
            nn.init.normal_(self.content.weight, std=std)

    def forward(self, items: KeyedJaggedTensor, content_MW: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return item vectors, and by view name the rows of its own table."""
        vectors = look_up(self.tables, items, self.keys)
        item_MD = _add_fields(vectors["item_id"], vectors, self.field_tables, self.scale)
        if self.content is not None:
            if content_MW is None:
                raise ValueError(
                    "content_MW must hold the content vectors of the items, as the model adds them, got None"
                )
            item_MD = item_MD + self.content(content_MW)
        return item_MD, {view: vectors[f"bag_{view}"] for view in self.bag_views}


class UserEmbedding(nn.Module):
    """Turn users into vectors: ``id + sum_f scale_f * field_f``.

    Args:
        schema: Sizes and fields.
        embedding_dim: Width ``D``, a multiple of 4.
        fields: User fields that are added; None: all that are categorical or multi-hot, ``[]``: none.
        init_std: Standard deviation of a table's initial rows; None: ``1 / sqrt(D)``.
        device: Where the tables lie; ``"meta"`` leaves them to be materialised later.

    Shape:
        - users: KJT of stride ``B`` with keys ``user_id`` and ``user_<field>``; other keys have no effect.
        - output: ``(B, D)``.

    Raises:
        ValueError: If a field is unknown or numeric, or ``embedding_dim`` is not a multiple of 4.

    Example:
        >>> from lightning_mvrec.schema import Schema, View
        >>> schema = Schema(views=(View("click"),), num_items=10, num_users=5, targets=("click",))
        >>> users = KeyedJaggedTensor.from_lengths_sync(["user_id"], torch.tensor([1, 2]), torch.tensor([1, 1]))
        >>> UserEmbedding(schema, 4)(users).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        schema: Schema,
        embedding_dim: int,
        fields: Sequence[str] | None = None,
        init_std: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.tables = user_tables(schema, embedding_dim, fields, init_std, device)
        self.keys = output_keys(self.tables)
        self.field_tables = list(self.keys)[1:]
        self.scale = _scales(len(self.field_tables))

    def forward(self, users: KeyedJaggedTensor) -> Tensor:
        """Return user vectors."""
        vectors = look_up(self.tables, users, self.keys)
        return _add_fields(vectors["user_id"], vectors, self.field_tables, self.scale)


def _scales(num_fields: int) -> nn.Parameter | None:
    # No parameter at all where there is no field: an empty one would wait for a gradient that never comes.
    return nn.Parameter(torch.ones(num_fields)) if num_fields else None


def _add_fields(id_ND: Tensor, vectors: dict[str, Tensor], names: list[str], scale: Tensor | None) -> Tensor:
    if scale is None:
        return id_ND
    field_FND = torch.stack([vectors[name] for name in names])
    return id_ND + (scale[:, None, None] * field_FND).sum(0)
