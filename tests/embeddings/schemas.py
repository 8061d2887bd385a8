"""A schema with every kind of field, and KJTs that fit it."""

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.schema import Field, Schema, View

SCHEMA = Schema(
    views=(View("click"), View("cart")),
    num_items=20,
    num_users=10,
    targets=("click",),
    item_fields=(Field("genre", "multi_hot", 6), Field("brand", "categorical", 5), Field("price", "numeric")),
    user_fields=(Field("age", "categorical", 4),),
)

ITEMS = [2, 7, 19]
GENRES = [[1, 3], [], [5]]
BRANDS = [4, 0, 1]
USERS = [1, 9]
AGES = [3, 0]


def kjt(**columns):
    """A KJT from lists of lists of rows."""
    lists = [each for column in columns.values() for each in column]
    return KeyedJaggedTensor(
        keys=list(columns),
        values=torch.tensor([value for each in lists for value in each], dtype=torch.int64),
        lengths=torch.tensor([len(each) for each in lists], dtype=torch.int64),
    )


def items():
    """Three items with their genres and brands."""
    return kjt(item_id=[[i] for i in ITEMS], item_genre=GENRES, item_brand=[[b] for b in BRANDS])


def users():
    """Two users with their ages."""
    return kjt(user_id=[[u] for u in USERS], user_age=[[a] for a in AGES])
