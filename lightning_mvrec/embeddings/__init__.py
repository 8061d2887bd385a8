"""Embedding tables from a schema, and the vectors of items, users and events."""

from lightning_mvrec.embeddings.entities import ItemEmbedding, UserEmbedding
from lightning_mvrec.embeddings.events import EventEmbedding, time_features
from lightning_mvrec.embeddings.tables import item_tables, user_tables

__all__ = ["EventEmbedding", "ItemEmbedding", "UserEmbedding", "item_tables", "time_features", "user_tables"]
