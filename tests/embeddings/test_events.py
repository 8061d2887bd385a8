import math
from datetime import datetime, timezone

import pytest
import torch

from lightning_mvrec.embeddings import EventEmbedding, time_features
from lightning_mvrec.schema import Field, View

VIEW = View("rating", fields=(Field("stars", "numeric"), Field("dwell", "numeric"), Field("type", "categorical", 3)))
LENGTHS = torch.tensor([3, 1])


def inputs():
    torch.manual_seed(0)
    fields_BT = {
        "stars": torch.tensor([[0.1, -0.5, 1.0], [0.7, 0, 0]]),
        "dwell": torch.tensor([[1.0, 2.0, 0.0], [0.5, 0, 0]]),
        "type": torch.tensor([[0, 2, 1], [1, 0, 0]]),
    }
    times_BT = torch.tensor([[1_000_000_000, 1_000_000_060, 1_000_090_000], [1_500_000_000, 0, 0]])
    return torch.randn(2, 3, 4), fields_BT, times_BT, LENGTHS


@pytest.mark.parametrize("times", [False, True])
@pytest.mark.parametrize("view", [VIEW, View("click")])
def test_starts_as_the_identity(view, times):
    x_BTD, *rest = inputs()
    assert torch.equal(EventEmbedding(4, view, times)(x_BTD, *rest), x_BTD)


def test_equals_a_naive_scale_and_shift():
    module = EventEmbedding(4, VIEW, times=True)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    x_BTD, fields_BT, times_BT, lengths_B = inputs()
    result = module(x_BTD, fields_BT, times_BT, lengths_B)
    for user, step in ((0, 0), (0, 1), (0, 2), (1, 0)):
        read = [fields_BT["stars"][user, step], fields_BT["dwell"][user, step], *time_features(times_BT)[user, step]]
        effect = module.dense.weight @ torch.stack(read)
        effect = effect + module.tables[0].weight[fields_BT["type"][user, step]]
        expected = x_BTD[user, step] * (1 + effect[:4]) + effect[4:]
        torch.testing.assert_close(result[user, step], expected)


@pytest.mark.parametrize("seconds", [0, 951_782_400 + 3_723, 1_511_544_070, 2_000_000_001])
def test_time_of_day_and_week_agree_with_the_calendar(seconds):
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    day = (moment.hour * 3600 + moment.minute * 60 + moment.second) / 86_400
    week = (moment.isoweekday() % 7 + day) / 7  # from Sunday
    features = time_features(torch.tensor([[seconds]]))[0, 0].tolist()
    expected = [0.0] + [f(2 * math.pi * part) for part in (day, week) for f in (math.sin, math.cos)]
    assert features == pytest.approx(expected, abs=1e-5)


def test_gaps_are_exact_in_seconds_and_one_for_a_day():
    times_BT = torch.tensor([[1_700_000_000, 1_700_000_001, 1_700_086_401, 1_700_000_000]])
    gaps = time_features(times_BT)[0, :, 0].tolist()
    assert gaps == pytest.approx([0, math.log(2) / math.log(86_401), 1, 0])


def test_a_later_time_never_changes_an_earlier_event():
    times_BT = torch.tensor([[10, 20, 30]])
    later = torch.tensor([[10, 20, 99]])
    assert torch.equal(time_features(times_BT)[:, :2], time_features(later)[:, :2])


def test_padding_and_empty_batches_stay_finite():
    module = EventEmbedding(4, VIEW, times=True)
    x_BTD, fields_BT, times_BT, lengths_B = inputs()
    assert module(x_BTD, fields_BT, times_BT, lengths_B).isfinite().all()
    empty = {name: value[:, :0] for name, value in fields_BT.items()}
    result = module(x_BTD[:, :0], empty, times_BT[:, :0], torch.tensor([0, 0]))
    assert result.shape == (2, 0, 4)
    result.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_gradients_reach_every_parameter_from_the_start():
    module = EventEmbedding(4, VIEW, times=True)
    module(*inputs()).square().sum().backward()
    assert all((parameter.grad != 0).any() for parameter in module.parameters())


def test_without_fields_or_times_there_is_no_parameter():
    assert not list(EventEmbedding(4, View("click")).parameters())


def test_a_batch_without_a_field_is_refused():
    x_BTD, fields_BT, times_BT, lengths_B = inputs()
    del fields_BT["dwell"]
    with pytest.raises(ValueError, match=r"events of view 'rating' must have the fields \['dwell'\]"):
        EventEmbedding(4, VIEW)(x_BTD, fields_BT, times_BT, lengths_B)


def test_a_multi_hot_event_field_is_refused():
    with pytest.raises(ValueError, match="field 'tags' of view 'x' must be numeric or categorical"):
        EventEmbedding(4, View("x", fields=(Field("tags", "multi_hot", 3),)))
