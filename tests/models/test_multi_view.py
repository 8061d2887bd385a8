import pytest
import torch

from lightning_mvrec.encoders import AttentionEncoder, BagEncoder, DecayEncoder, GRUEncoder
from lightning_mvrec.encoders.base import SequenceEncoder
from lightning_mvrec.fusion import ConcatFusion, GateFusion
from lightning_mvrec.models import MLPScorer, MultiViewRecommender
from tests.batches import SCHEMA, item_kjt, make_batch

CLICK = [[(1, 10), (2, 20), (3, 30)], [(4, 15)]]
RATE = [[(5, 5, 1.0), (6, 25, 4.0)], []]
ATTENTION_LAST = AttentionEncoder.last
TARGETS = [[(2, 20), (3, 30), (7, 40)], [(8, 50)]]


def build(**changes) -> MultiViewRecommender:
    torch.manual_seed(0)
    settings = {"encoders": {"click": GRUEncoder, "rate": AttentionEncoder}, "fusion": GateFusion, "embedding_dim": 8}
    return MultiViewRecommender(SCHEMA, **{**settings, **changes}).eval()


def test_a_row_for_every_target_with_a_weight():
    output = build()(make_batch([1, 2], CLICK, RATE, TARGETS))
    assert output.user_R.tolist() == [0, 0, 0, 1]
    assert output.step_R.tolist() == [0, 1, 2, 0]
    assert output.user_RD.shape == (4, 8)


@pytest.mark.parametrize(("init_std", "expected"), [(None, 8**-0.5), (0.02, 0.02)])
def test_rows_of_item_and_user_tables_are_drawn_as_wide_as_asked(init_std, expected):
    model = build(init_std=init_std)
    for name, weight in [*model.items.tables.named_parameters(), *model.users.tables.named_parameters()]:
        assert abs(weight.std().item() / expected - 1) < 0.35, name


@pytest.mark.parametrize("fusion", [GateFusion, ConcatFusion])
def test_many_targets_in_one_pass_equal_one_target_a_pass(fusion):
    model = build(fusion=fusion, times=True)
    together = model(make_batch([1, 2], CLICK, RATE, TARGETS))
    for row, (user, step) in enumerate(zip(together.user_R.tolist(), together.step_R.tolist(), strict=True)):
        alone = [[TARGETS[other][step if other == user else 0]] for other in range(2)]
        output = model(make_batch([1, 2], CLICK, RATE, alone))
        torch.testing.assert_close(output.user_RD[user], together.user_RD[row], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(output.score_R[user], together.score_R[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fusion", [GateFusion, ConcatFusion])
@pytest.mark.parametrize("present", [[0, 1], [1]])
def test_an_evaluation_of_last_states_equals_that_of_all_steps(fusion, present, monkeypatch):
    model = build(fusion=fusion, times=True)
    # User 0's target lies before its last events; a row without a target takes no part.
    batch = make_batch([1, 2], CLICK, RATE, [[(2, 20)], [(8, 50)]])
    batch.weight_BK[[user for user in range(2) if user not in present]] = 0
    lasts = []
    monkeypatch.setattr(AttentionEncoder, "last", lambda *inputs: lasts.append(1) or ATTENTION_LAST(*inputs))
    with torch.no_grad():
        short = model(batch)
        assert lasts
        monkeypatch.setattr(fusion, "reads_steps", True)
        lasts.clear()
        whole = model(batch)
        assert not lasts
    assert short.user_R.tolist() == whole.user_R.tolist() == present
    torch.testing.assert_close(short.user_RD, whole.user_RD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(short.weights_RV, whole.weights_RV, rtol=1e-5, atol=1e-6)


def test_later_events_do_not_change_a_state():
    model = build(times=True)
    before = model(make_batch([1, 2], CLICK, RATE, TARGETS))
    later_click = [[*CLICK[0][:2], (9, 35)], CLICK[1]]
    later_rate = [[RATE[0][0], (10, 21, 5.0)], []]
    after = model(make_batch([1, 2], later_click, later_rate, TARGETS))
    # The first target of user 0 is at time 20: click 3 and rating 6 lie behind it.
    torch.testing.assert_close(after.user_RD[0], before.user_RD[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after.user_RD[2], before.user_RD[2])


def test_an_absent_view_has_no_weight():
    output = build()(make_batch([1, 2], CLICK, RATE, TARGETS))
    rate = build().view_names.index("rate")
    assert output.weights_RV[3, rate] == 0
    torch.testing.assert_close(output.weights_RV.sum(1), torch.ones(4))


def test_the_order_of_users_does_not_matter():
    model = build()
    straight = model(make_batch([1, 2], CLICK, RATE, TARGETS))
    turned = model(make_batch([2, 1], CLICK[::-1], RATE[::-1], TARGETS[::-1]))
    torch.testing.assert_close(turned.user_RD[1:], straight.user_RD[:3], rtol=1e-5, atol=1e-6)


def test_single_views_read_nothing_else():
    model = build(views=["rate"])
    assert model.view_names == ["rate"]
    one = model(make_batch([1, 2], CLICK, RATE, TARGETS))
    two = model(make_batch([3, 4], [[(11, 1)], []], RATE, TARGETS))
    torch.testing.assert_close(one.user_RD, two.user_RD, rtol=1e-5, atol=1e-6)


def test_a_bag_view_is_the_product_of_its_multi_hot_with_its_own_table():
    model = build(encoders={"click": BagEncoder}, user=False)
    output = model(make_batch([1, 2], CLICK, RATE, TARGETS))
    table = dict(model.items.named_parameters())
    (weight,) = [value for name, value in table.items() if "bag_click" in name]
    multi_hot = torch.zeros(12)
    multi_hot[[1, 2, 3]] = 1.0  # all clicks of user 0 are before its last target
    torch.testing.assert_close(output.user_RD[2], multi_hot @ weight, rtol=1e-5, atol=1e-6)


def test_every_parameter_gets_a_finite_gradient():
    model = build(scorer=MLPScorer, times=True).train()
    output = model(make_batch([1, 2], CLICK, RATE, TARGETS))
    output.score_R.sum().backward()
    missing = [name for name, value in model.named_parameters() if value.grad is None]
    assert not missing
    assert all(torch.isfinite(value.grad).all() for value in model.parameters())


def test_a_batch_without_targets_gives_no_rows_and_still_has_gradients():
    model = build()
    batch = make_batch([1, 2], CLICK, RATE, TARGETS)
    batch.weight_BK.zero_()
    output = model(batch)
    assert output.user_RD.shape == (0, 8)
    (output.user_RD.sum() + output.item_MD.sum() * 0).backward()


class _Backward(SequenceEncoder):
    causal = False

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()

    def forward(self, x_BTD, lengths_B):
        return x_BTD.flip(1).cumsum(1).flip(1)


def test_an_encoder_that_looks_ahead_is_refused_with_many_targets():
    model = build(encoders={"click": _Backward})
    with pytest.raises(ValueError, match="'click' is not causal"):
        model(make_batch([1, 2], CLICK, RATE, TARGETS))
    model(make_batch([1, 2], CLICK, RATE, [[(7, 40)], [(8, 50)]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_dim": 6}, "multiple of 4, got 6"),
        ({"views": ["clicks"]}, r"views must be among .* got \['clicks'\]"),
        ({"encoders": {"swipe": DecayEncoder}}, r"named for the views of the data .* got \['swipe'\]"),
        ({"encoders": {}, "user": False}, "at least one view"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_item_vectors_equal_those_of_a_batch():
    model = build()
    output = model(make_batch([1, 2], CLICK, RATE, TARGETS, catalogue=True))
    torch.testing.assert_close(model.item_vectors(item_kjt([3, 7])), output.item_MD[[3, 7]])
