"""The term of co-visitation against a loop over links."""

import math

import pytest
import torch

from lightning_mvrec.batch import LinkBatch
from lightning_mvrec.encoders import DecayEncoder
from lightning_mvrec.fusion import GateFusion
from lightning_mvrec.models import CoVisitationTerm, MLPScorer, MultiViewRecommender, RepeatTerm
from lightning_mvrec.models.covisitation import LEAST
from tests.batches import SCHEMA, make_batch

NEVER = math.inf
# target, neighbour, view of the event, its place, first meetings of its item and of the neighbour by view
LINKS = [
    (0, 3, 0, 0, (0.0, NEVER), (60.0, 400.0)),
    (0, 3, 0, 5, (90.0, 0.0), (NEVER, 30.0)),
    (0, 7, 1, 0, (NEVER, 0.0), (NEVER, 10.0)),
    (1, 3, 1, 1, (20.0, 0.0), (5.0, NEVER)),
]


def batch():
    made = make_batch([1, 2], [[(1, 10)], []], [[], [(2, 5, 1.0)]], [[(3, 20)], [(7, 30)]], catalogue=True)
    columns = list(zip(*LINKS, strict=True))
    made.links = LinkBatch(*(torch.tensor(column) for column in columns))
    return made


def build(**changes):
    torch.manual_seed(0)
    encoders = {"click": DecayEncoder, "rate": DecayEncoder}
    settings = {"encoders": encoders, "fusion": GateFusion, "embedding_dim": 8, "covisits": term}
    model = MultiViewRecommender(SCHEMA, **{**settings, **changes}).eval()
    for name, parameter in model.covisits.named_parameters():
        if name in ("event", "source", "neighbour", "place"):
            torch.nn.init.normal_(parameter)
    return model


def term(views):
    return CoVisitationTerm(views, decays=(60.0, 600.0), places=3)


def naive(term, views):
    """By (row, neighbour), the logit from the definition in words; ``views`` are those that are read."""
    totals = {}
    for row, item, event, place, source, neighbour in LINKS:
        first = [source[view] for view in views if source[view] < NEVER]
        other = [neighbour[view] for view in views if neighbour[view] < NEVER]
        if event not in views or not first or not other:
            continue
        base = term.event[views.index(event)] + term.place[min(place, 2)]
        base = base + sum(term.source[at] for at, view in enumerate(views) if source[view] < NEVER)
        base = base + sum(term.neighbour[at] for at, view in enumerate(views) if neighbour[view] < NEVER)
        weight = [(base - abs(min(first) - min(other)) / term.log_decay[k].exp()).exp() for k in range(2)]
        totals[row, item] = [a + b for a, b in zip(totals.get((row, item), [0, 0]), weight, strict=True)]
    logits = {}
    for key, total in totals.items():
        log_K = torch.stack([torch.log(each + LEAST) for each in total])
        logits[key] = (term.out(term.hidden(log_K).relu()) + term.direct(log_K)).item()
    return logits


@pytest.mark.parametrize(("names", "views"), [(["click", "rate"], [0, 1]), (["click"], [0]), (["rate"], [1])])
def test_logits_equal_a_loop_over_the_links_of_the_views_that_are_read(names, views):
    model = build(views=names)
    repeats = model(batch()).repeats
    found = zip(repeats.row_S.tolist(), repeats.item_S.tolist(), repeats.logit_S.tolist(), strict=True)
    expected = naive(model.covisits, views)
    assert {(row, item): pytest.approx(logit, abs=1e-5) for row, item, logit in found} == expected
    assert repeats.lengths_R.shape == (2,)


def test_every_parameter_of_the_term_gets_a_finite_gradient():
    model = build()
    model(batch()).repeats.logit_S.sum().backward()
    for parameter in model.covisits.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


def test_targets_without_weight_have_no_row():
    made = batch()
    made.weight_BK[0] = 0
    assert build()(made).repeats.item_S.tolist() == [3]


def test_a_batch_without_links_is_refused():
    made = batch()
    made.links = None
    with pytest.raises(ValueError, match="needs batches with links"):
        build()(made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer": lambda width: MLPScorer(width)}, "covisits needs a dot-product score"),
        ({"repeat": RepeatTerm}, "covisits must be None where the model has a repeat term"),
        ({"covisits": lambda views: CoVisitationTerm(views, places=0)}, "places must be above 0, got 0"),
        ({"covisits": lambda views: CoVisitationTerm(views, decays=(0.0,))}, "decays must be above 0 seconds"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
