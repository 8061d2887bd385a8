"""Item bias and running leaning against a naive loop, and what they may not see."""

from dataclasses import replace

import pytest
import torch

from lightning_mvrec.encoders import AttentionEncoder, GRUEncoder
from lightning_mvrec.fusion import GateFusion
from lightning_mvrec.models import BiasTerm, MultiViewRecommender
from tests.batches import SCHEMA, make_batch

LABELLED = replace(SCHEMA, label="numeric")
CLICK = [[(1, 10), (2, 20)], [(4, 15)], []]
RATE = [[(5, 5, 1.0), (6, 25, 4.0), (5, 35, -2.0)], [], [(9, 1, 0.5)]]
TARGETS = [[(2, 20), (3, 30), (7, 40)], [(8, 50)], [(9, 60), (1, 70)]]


def term(**changes) -> BiasTerm:
    made = BiasTerm(LABELLED, "rate", "stars", **{"shrink": 2.0, "scale": 1.5, "speed": 8.0, **changes})
    made.tables.embedding_bags["item_bias"].weight.data = torch.arange(48.0).reshape(12, 4) / 100
    return made


def added(bias, batch, views=None):
    """What the term adds to each target's score in a model of both views."""
    torch.manual_seed(0)
    settings = {"encoders": {"click": GRUEncoder, "rate": AttentionEncoder}, "fusion": GateFusion, "embedding_dim": 8}
    plain = MultiViewRecommender(LABELLED, views=views, **settings).eval()
    torch.manual_seed(0)
    with_term = MultiViewRecommender(LABELLED, views=views, bias=lambda schema: bias, **settings).eval()
    return with_term(batch).score_R - plain(batch).score_R


def test_it_is_the_items_bias_and_the_mean_of_what_is_left_of_earlier_events():
    expected = []
    bias_of = {item: 8.0 * sum((4 * item + column) / 100 for column in range(4)) / 4 for item in range(12)}
    for rate, targets in zip(RATE, TARGETS, strict=True):
        for item, time in targets:
            left = [1.5 * stars - bias_of[other] for other, at, stars in rate if at < time]
            expected.append(bias_of[item] + sum(left) / (len(left) + 2.0))
    found = added(term(), make_batch([1, 2, 3], CLICK, RATE, TARGETS))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_later_events_do_not_count():
    later = [[*RATE[0][:1], (6, 25, -9.0), (1, 36, 7.0)], *RATE[1:]]
    before, after = (added(term(), make_batch([1, 2, 3], CLICK, rate, TARGETS)) for rate in (RATE, later))
    assert after[0].item() == pytest.approx(before[0].item())  # at time 20: only the event of time 5
    assert after[1].item() != pytest.approx(before[1].item())  # at time 30: the changed event of time 25 as well


def test_without_its_view_the_items_bias_remains():
    found = added(term(), make_batch([1, 2, 3], CLICK, RATE, TARGETS), views=["click"])
    items = torch.tensor([2, 3, 7, 8, 9, 1])
    torch.testing.assert_close(found, 8.0 * (4 * items + 1.5) / 100, rtol=1e-5, atol=1e-5)


def test_biases_scale_and_shrink_learn():
    bias = term()
    added(bias, make_batch([1, 2, 3], CLICK, RATE, TARGETS)).square().sum().backward()
    weight = bias.tables.embedding_bags["item_bias"].weight
    assert weight.grad[[2, 3, 7, 8, 9, 1, 5, 6]].abs().min() > 0
    assert bias.scale.grad != 0
    assert bias.log_shrink.grad != 0


def test_negatives_are_refused():
    with pytest.raises(ValueError, match="negatives would be scored without"):
        added(term(), make_batch([1, 2, 3], CLICK, RATE, TARGETS, negative=[10, 11]))


@pytest.mark.parametrize(
    ("schema", "arguments", "message"),
    [
        (SCHEMA, {}, "bias needs targets with labels"),
        (LABELLED, {"field": "price"}, r"numeric field of view 'rate', one of \['stars'\], got 'price'"),
        (LABELLED, {"view": "cart"}, "view must be one of"),
        (LABELLED, {"shrink": 0.0}, r"shrink must be above 0, got 0\.0"),
        (LABELLED, {"speed": -1.0}, r"speed must be above 0, got -1\.0"),
    ],
)
def test_what_does_not_fit_is_refused(schema, arguments, message):
    with pytest.raises(ValueError, match=message):
        BiasTerm(schema, **{"view": "rate", "field": "stars", **arguments})
