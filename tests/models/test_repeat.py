"""The repeat term against a loop over every row's past."""

import math

import pytest
import torch

from lightning_mvrec.encoders import DecayEncoder
from lightning_mvrec.fusion import GateFusion
from lightning_mvrec.models import MLPScorer, MultiViewRecommender, RepeatTerm
from lightning_mvrec.models.repeat import AGES
from tests.batches import SCHEMA, item_kjt, make_batch

CLICK = [[(1, 10), (2, 20), (1, 30)], [(4, 15)], []]
RATE = [[(2, 5, 1.0), (6, 25, 4.0)], [], []]
TARGETS = [[(2, 20), (3, 35)], [(8, 50)], [(9, 1)]]
EVENTS = (CLICK, RATE)


def build(**changes):
    torch.manual_seed(0)
    encoders = {"click": DecayEncoder, "rate": DecayEncoder}
    settings = {"encoders": encoders, "fusion": GateFusion, "embedding_dim": 8, "repeat": RepeatTerm}
    return MultiViewRecommender(SCHEMA, **{**settings, **changes}).eval()


def naive_logits(term, user_D, item_ID, user, time):
    """By item, the logit of a target of one user, from the definition in words."""
    past = [[event[:2] for event in each[user] if event[1] < time] for each in EVENTS]
    every = [event for each in past for event in each]
    latest = {item: max(when for other, when in every if other == item) for item, _ in every}
    newest = sorted(sorted(latest), key=lambda item: -latest[item])
    logits = {}
    for item in {item for each in past for item, _ in each}:
        hidden = 0
        for view, events in enumerate(past):
            mine = [(len(events) - 1 - index, when) for index, (other, when) in enumerate(events) if other == item]
            place, age, count = 0, 0, len(mine)
            if mine:
                place = 1 + min(min(place for place, _ in mine), term.places - 1)
                age = 1 + min(int(math.log2(time - max(when for _, when in mine) + 1)), AGES - 1)
            hidden = hidden + term.place.weight[view * (term.places + 1) + place]
            hidden = hidden + term.age.weight[view * (AGES + 1) + age]
            hidden = hidden + term.count.weight[view * (term.counts + 1) + min(count, term.counts)]
        hidden = hidden + term.order.weight[newest.index(item)]
        logits[item] = (
            term.out(hidden.relu()) + term.user(user_D) + term.item(item_ID[item]) + term.share * user_D @ item_ID[item]
        ).item()
    return logits


def test_logits_equal_a_loop_over_the_past():
    model = build()
    for weight in (model.repeat.user.weight, model.repeat.item.weight):
        torch.nn.init.normal_(weight)
    model.repeat.share.data.fill_(0.3)
    item_ID = model.item_vectors(item_kjt(list(range(SCHEMA.num_items))))
    batch = make_batch([1, 2, 3], CLICK, RATE, TARGETS)
    output = model(batch)
    rows = [(0, 20), (0, 35), (1, 50), (2, 1)]
    expected = [naive_logits(model.repeat, output.user_RD[row], item_ID, *each) for row, each in enumerate(rows)]
    assert output.repeats.lengths_R.tolist() == [len(each) for each in expected] == [2, 3, 1, 0]
    table_row_S = batch.item_row_M[output.repeats.item_S].tolist()
    for row, item, logit in zip(output.repeats.row_S, table_row_S, output.repeats.logit_S, strict=True):
        assert expected[row][item] == pytest.approx(logit.item(), abs=1e-5)


def test_only_the_views_that_are_read_repeat():
    output = build(views=["rate"])(make_batch([1, 2, 3], CLICK, RATE, TARGETS))
    assert output.repeats.lengths_R.tolist() == [1, 2, 0, 0]


def test_the_temperature_divides_scores_but_not_repeats():
    batch = make_batch([1, 2, 3], CLICK, RATE, TARGETS)
    plain, cold = build()(batch), build(temperature=0.5)(batch)
    torch.testing.assert_close(cold.score_R, 2 * plain.score_R)
    torch.testing.assert_close(cold.repeats.logit_S, plain.repeats.logit_S)


def test_every_parameter_of_the_term_gets_a_gradient():
    model = build()
    model(make_batch([1, 2, 3], CLICK, RATE, TARGETS)).repeats.logit_S.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.repeat.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.repeat.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0"),
        ({"scorer": lambda width: MLPScorer(width)}, "repeat needs a dot-product score"),
        ({"repeat": lambda width, views: RepeatTerm(width, views, places=0)}, "places must be above 0, got 0"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
