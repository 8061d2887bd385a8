"""The reference model of the multi-view literature: user, item and tags, joined by two layers.

B users, M distinct items, R rows (one (user, target) pair each), D embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.batch import MultiViewBatch
from lightning_mvrec.embeddings.tables import item_tables, look_up, output_keys, user_tables
from lightning_mvrec.models.base import ModelOutput, Recommender, target_rows
from lightning_mvrec.schema import Schema


class MultiViewRepresentation(Recommender):
    """Predict a rating from the embeddings of a user, an item and the item's tags.

    The three vectors, all of width ``D``, pass a ReLU and are concatenated; ``fc1`` brings ``3 D`` to ``D``, a ReLU and
    ``fc2`` make it one number. The published settings are Adam at 0.001, mean squared error, width 16, batches of 32,
    10 epochs and a random 80/20 split: ``recipes/movielens-100k/reference.yaml``.

    The published listing does not run. What was corrected:

    - It splits one of the three views only; here a target is one row that carries its user, item and tags.
    - It hands three tensors to ``DataLoader``, which takes one data set; here a batch is a ``MultiViewBatch``.
    - It leaves the sizes of the vocabularies undefined; here they come from the schema of the prepared data.
    - It leaves the loader of the test part undefined; here the data module gives one for each stage.
    - It formats a loss that no function returns; here both losses of every epoch are logged.
    - It compares predictions ``(B, 1)`` with ratings ``(B,)``, which broadcasts to ``(B, B)`` and trains every
      prediction towards the mean; here scores are ``(R,)``.

    Args:
        schema: What the prepared data consists of; recipes leave it out, the training module passes it.
        embedding_dim: Width ``D`` of the three embeddings, a multiple of 4.
        tags: Multi-hot item field that is the third view; the first one of the schema by default.

    Shape:
        - batch: see :class:`~lightning_mvrec.batch.MultiViewBatch`; histories are not read.
        - output: see :class:`~lightning_mvrec.models.base.ModelOutput`; ``item_MD`` holds an item's vector and that of
          its tags side by side, ``(M, 2 D)``.

    Raises:
        ValueError: If the schema has no multi-hot item field, or not one of that name.
    """

    retrieval = False

    def __init__(self, schema: Schema, embedding_dim: int = 16, tags: str | None = None) -> None:
        super().__init__()
        known = [field.name for field in schema.item_fields if field.kind == "multi_hot"]
        if not known or tags not in (None, *known):
            raise ValueError(f"tags must be a multi-hot item field, one of {known}, got {tags!r}")
        self.view_names: list[str] = []  # it reads no history
        tags = tags or known[0]
        self.items = item_tables(schema, embedding_dim, fields=[tags])
        self.users = user_tables(schema, embedding_dim, fields=[])
        self.item_keys, self.user_keys = output_keys(self.items), output_keys(self.users)
        self.tag_table = f"item_{tags}"
        self.fc1 = nn.Linear(3 * embedding_dim, embedding_dim)
        self.fc2 = nn.Linear(embedding_dim, 1)

    def forward(self, batch: MultiViewBatch) -> ModelOutput:
        """Return the vectors and the score of every target."""
        item_MD = self.item_vectors(batch.items)
        user_BD = look_up(self.users, batch.users, self.user_keys)["user_id"]
        user_R, step_R = target_rows(batch)
        user_RD = user_BD[user_R]
        score_R = self.score(user_RD, item_MD[batch.target_BK[user_R, step_R]])
        return ModelOutput(user_RD, item_MD, user_R, step_R, score_R)

    def item_vectors(self, items: KeyedJaggedTensor, content_MW: Tensor | None = None) -> Tensor:
        """Return ``(M, 2 D)``: each item's own vector and that of its tags; content vectors are not read."""
        vectors = look_up(self.items, items, self.item_keys)
        return torch.cat([vectors["item_id"], vectors[self.tag_table]], dim=-1)

    def score(self, user: Tensor, item: Tensor) -> Tensor:
        """Score users ``(..., D)`` against items with their tags ``(..., 2 D)``, broadcasting: ``(...)``."""
        shape = torch.broadcast_shapes(user.shape[:-1], item.shape[:-1])
        views = torch.cat([user.expand(*shape, -1), item.expand(*shape, -1)], dim=-1).relu()
        return self.fc2(self.fc1(views).relu()).squeeze(-1)
