"""The reference model is what its formula says, and learns."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_mvrec.models import MultiViewRepresentation
from lightning_mvrec.schema import Field
from tests.batches import SCHEMA, make_batch

EVENTS = [[(1, 1), (2, 2), (3, 3)], [(4, 1), (6, 5)], [(5, 4)]]
NONE = [[], [], []]


@pytest.fixture
def batch():
    return make_batch([1, 2, 4], EVENTS, NONE, targets=[[(2, 2), (3, 3)], [(6, 5)], []])


def test_scores_are_those_of_the_formula(batch):
    model = MultiViewRepresentation(SCHEMA, embedding_dim=4)
    users = model.users.embedding_bags["user_id"].weight
    items, tags = (model.items.embedding_bags[name].weight for name in ("item_id", "item_genre"))
    expected = []
    for user, item in [(1, 2), (1, 3), (2, 6)]:
        genres = [item % 3 + 1] + ([0] if item % 2 == 0 else [])
        views = torch.cat([users[user], items[item], tags[genres].mean(0)]).relu()
        expected.append(model.fc2(model.fc1(views).relu()))
    output = model(batch)
    assert output.score_R.shape == (3,)
    assert torch.allclose(output.score_R, torch.cat(expected), atol=1e-6)


def test_all_three_views_and_both_layers_get_a_gradient(batch):
    model = MultiViewRepresentation(SCHEMA, embedding_dim=16)
    model(batch).score_R.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_scores_broadcast_over_candidates(batch):
    model = MultiViewRepresentation(SCHEMA, embedding_dim=4)
    output = model(batch)
    score_RM = model.score(output.user_RD[:, None], output.item_MD)
    assert score_RM.shape == (3, output.item_MD.shape[0])
    assert torch.allclose(score_RM[2, batch.target_BK[1, 0]], output.score_R[2], atol=1e-6)


def test_it_fits_labels_of_user_and_item(batch):
    torch.manual_seed(0)
    model = MultiViewRepresentation(SCHEMA, embedding_dim=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    label_R = torch.tensor([1.0, 5.0, 3.0])
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch).score_R, label_R)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


def test_the_tags_are_chosen_among_multi_hot_fields():
    with pytest.raises(ValueError, match=r"tags must be a multi-hot item field, one of \['genre'\], got 'title'"):
        MultiViewRepresentation(SCHEMA, tags="title")
    bare = replace(SCHEMA, item_fields=(Field("year", "categorical", 3),))
    with pytest.raises(ValueError, match=r"one of \[\], got None"):
        MultiViewRepresentation(bare)
