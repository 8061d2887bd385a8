from dataclasses import replace

import pytest
import torch

from lightning_mvrec.embeddings import ItemEmbedding, UserEmbedding
from tests.embeddings.schemas import AGES, BRANDS, GENRES, ITEMS, SCHEMA, USERS, items, kjt, users


def weight(module, table):
    return module.tables.embedding_bags[table].weight


def test_item_vector_is_id_plus_scaled_fields():
    module = ItemEmbedding(SCHEMA, 4)
    with torch.no_grad():
        module.scale.copy_(torch.tensor([2.0, -1.0]))
    item_MD, bag_MD = module(items())
    for index, item in enumerate(ITEMS):
        genres = [weight(module, "item_genre")[genre] for genre in GENRES[index]]
        expected = weight(module, "item_id")[item] - weight(module, "item_brand")[BRANDS[index]]
        expected = expected + 2 * sum(genres, torch.zeros(4)) / max(len(genres), 1)
        torch.testing.assert_close(item_MD[index], expected)
    assert bag_MD == {}


def test_user_vector_is_id_plus_scaled_fields():
    module = UserEmbedding(SCHEMA, 4)
    for index, user in enumerate(USERS):
        expected = weight(module, "user_id")[user] + weight(module, "user_age")[AGES[index]]
        torch.testing.assert_close(module(users())[index], expected)


@pytest.mark.parametrize("bag_views", [["cart"], ["cart", "click"]])
@pytest.mark.parametrize("fields", [None, [], ["brand"]])
def test_a_view_with_its_own_table_gets_its_rows_of_the_same_items(bag_views, fields):
    module = ItemEmbedding(SCHEMA, 4, fields=fields, bag_views=bag_views)
    plain = ItemEmbedding(SCHEMA, 4, fields=fields)
    plain.load_state_dict({key: module.state_dict()[key] for key in plain.state_dict()})
    item_MD, bag_MD = module(items())
    torch.testing.assert_close(item_MD, plain(items())[0])
    assert list(bag_MD) == bag_views
    for view in bag_views:
        torch.testing.assert_close(bag_MD[view], weight(module, f"bag_{view}")[ITEMS])


def test_without_fields_there_is_no_idle_parameter():
    module = ItemEmbedding(SCHEMA, 4, fields=[])
    assert [name for name, _ in module.named_parameters()] == ["tables.embedding_bags.item_id.weight"]


def test_gradients_reach_tables_and_scales():
    module = ItemEmbedding(SCHEMA, 4, bag_views=["cart"])
    item_MD, bag_MD = module(items())
    (item_MD.square().sum() + bag_MD["cart"].square().sum()).backward()
    for name, parameter in module.named_parameters():
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("bag_views", [[], ["cart"]])
def test_every_table_is_looked_up_once(bag_views):
    module = ItemEmbedding(SCHEMA, 4, bag_views=bag_views)
    calls = []
    module.tables.register_forward_hook(lambda *_: calls.append(1))
    module(items())
    assert calls == [1]


def test_no_item_at_all_gives_no_vector():
    module = ItemEmbedding(SCHEMA, 4, bag_views=["cart"])
    item_MD, bag_MD = module(kjt(item_id=[], item_genre=[], item_brand=[]))
    assert item_MD.shape == bag_MD["cart"].shape == (0, 4)


def test_other_features_of_the_batch_have_no_effect():
    module = ItemEmbedding(SCHEMA, 4, fields=["brand"])
    few = kjt(item_id=[[i] for i in ITEMS], item_brand=[[b] for b in BRANDS])
    torch.testing.assert_close(module(items())[0], module(few)[0])


def test_content_adds_a_linear_map_of_each_items_own_vector():
    schema = replace(SCHEMA, content_dim=3)
    content_MW = torch.randn(len(ITEMS), 3)
    module, plain = ItemEmbedding(schema, 4), ItemEmbedding(schema, 4, content=False)
    plain.load_state_dict({key: module.state_dict()[key] for key in plain.state_dict()})
    item_MD = module(items(), content_MW)[0]
    for index in range(len(ITEMS)):
        added = [sum(w * c for w, c in zip(row, content_MW[index], strict=True)) for row in module.content.weight]
        torch.testing.assert_close(item_MD[index], plain(items())[0][index] + torch.stack(added))
    item_MD.square().sum().backward()
    assert module.content.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="content_MW must hold the content vectors"):
        module(items())


def test_content_vectors_are_part_of_no_state():
    module = ItemEmbedding(replace(SCHEMA, content_dim=3), 4)
    assert set(module.state_dict()) - set(ItemEmbedding(SCHEMA, 4).state_dict()) == {"content.weight"}
    assert ItemEmbedding(SCHEMA, 4).content is None
