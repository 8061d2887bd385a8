import pytest
import torch
from torchrec.modules.embedding_configs import PoolingType

from lightning_mvrec.embeddings import item_tables, user_tables
from tests.embeddings.schemas import SCHEMA


def test_items_have_one_collection_of_the_agreed_names_features_and_sizes():
    tables = item_tables(SCHEMA, 8, bag_views=["cart"]).embedding_bag_configs()
    assert [(t.name, t.feature_names, t.num_embeddings, t.embedding_dim) for t in tables] == [
        ("item_id", ["item_id"], 20, 8),
        ("item_genre", ["item_genre"], 6, 8),
        ("item_brand", ["item_brand"], 5, 8),
        ("bag_cart", ["item_id"], 20, 8),
    ]
    assert [t.pooling for t in tables] == [PoolingType.SUM, PoolingType.MEAN, PoolingType.SUM, PoolingType.SUM]


def test_users_have_one_collection_of_the_agreed_names_features_and_sizes():
    tables = user_tables(SCHEMA, 8).embedding_bag_configs()
    assert [(t.name, t.feature_names, t.num_embeddings) for t in tables] == [
        ("user_id", ["user_id"], 10),
        ("user_age", ["user_age"], 4),
    ]


@pytest.mark.parametrize(("init_std", "expected"), [(None, 16**-0.5), (0.02, 0.02)])
def test_rows_are_drawn_from_the_asked_normal(init_std, expected):
    from dataclasses import replace

    torch.manual_seed(0)
    large = replace(SCHEMA, num_items=2000)
    weight = item_tables(large, 16, init_std=init_std).embedding_bags["item_id"].weight
    assert weight.std().item() == pytest.approx(expected, rel=0.05)
    assert weight.mean().item() == pytest.approx(0, abs=0.05 * expected)
    assert weight[0].abs().sum() > 0, "row 0 is a row like any other"


def test_meta_tables_take_no_memory():
    tables = item_tables(SCHEMA, 8, device="meta")
    assert all(parameter.is_meta for parameter in tables.parameters())


@pytest.mark.parametrize(("fields", "names"), [([], ["item_id"]), (["brand"], ["item_id", "item_brand"])])
def test_only_the_fields_named_get_a_table(fields, names):
    assert [t.name for t in item_tables(SCHEMA, 8, fields).embedding_bag_configs()] == names


@pytest.mark.parametrize("field", ["price", "colour"])
def test_a_field_that_is_numeric_or_unknown_is_refused(field):
    with pytest.raises(ValueError, match=rf"one of \['genre', 'brand'\], got '{field}'"):
        item_tables(SCHEMA, 8, [field])


def test_an_unknown_view_is_refused():
    with pytest.raises(ValueError, match=r"view must be one of \['click', 'cart'\], got 'buy'"):
        item_tables(SCHEMA, 8, bag_views=["buy"])


@pytest.mark.parametrize("width", [0, 6])
def test_a_width_that_the_table_kernels_cannot_take_is_refused(width):
    with pytest.raises(ValueError, match=f"embedding_dim must be a multiple of 4, got {width}"):
        user_tables(SCHEMA, width)


def test_a_spread_of_nothing_is_refused():
    with pytest.raises(ValueError, match="init_std must be above 0, got 0"):
        user_tables(SCHEMA, 8, init_std=0)
