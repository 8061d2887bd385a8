"""What every fusion promises, asked of each of them."""

from dataclasses import replace

import pytest
import torch

from lightning_mvrec.fusion import ConcatFusion, GateFusion, ViewStates
from tests.fusion.views import make_states

NAMES = ["click", "cart", "user"]
PRESENT = [[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
BUILD = {
    "gate": lambda names, **options: GateFusion(4, names, **options),
    "gate-plain": lambda names, **options: GateFusion(4, names, project=False, age=False, hidden_dim=3, **options),
    "concat": lambda names, **options: ConcatFusion(4, names, **options),
    "concat-linear": lambda names, **options: ConcatFusion(4, names, hidden=[], **options),
    "concat-deep": lambda names, **options: ConcatFusion(4, names, hidden=[5, 6], **options),
}


@pytest.fixture(params=BUILD, name="build")
def _build(request):
    def build(names=NAMES, **options):
        torch.manual_seed(0)
        fusion = BUILD[request.param](names, **options)
        for parameter in fusion.parameters():  # far from an initialisation that hides a path
            torch.nn.init.normal_(parameter)
        return fusion

    return build


def test_weights_sum_to_one_over_the_present_views(build):
    state_RD, weight_RV = build()(make_states(PRESENT, NAMES))
    assert state_RD.shape == (5, 4)
    torch.testing.assert_close(weight_RV.sum(1), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))
    assert ((weight_RV > 0) == torch.tensor(PRESENT, dtype=torch.bool)).all()


def test_rows_do_not_see_each_other(build):
    fusion = build()
    states = make_states(PRESENT, NAMES)
    together, weights = fusion(states)
    order = torch.tensor([3, 1, 4, 0, 2])
    views = {}
    for name, view in states.views.items():
        row_wise = {key: getattr(view, key)[order] for key in ("state_RD", "present_R", "age_R", "asof_R")}
        views[name] = replace(view, **row_wise)
    shuffled, shuffled_weights = fusion(ViewStates(views, order))
    torch.testing.assert_close(shuffled, together[order])
    torch.testing.assert_close(shuffled_weights, weights[order])


def test_what_an_absent_view_holds_has_no_effect(build):
    fusion = build()
    clean = make_states(PRESENT, NAMES)
    dirty = {}
    for name, view in clean.views.items():
        absent = ~view.present_R
        dirty[name] = replace(
            view, state_RD=view.state_RD + 9.0 * absent[:, None], age_R=view.age_R + 1e6 * absent.float()
        )
    torch.testing.assert_close(fusion(ViewStates(dirty, clean.user_R)), fusion(clean))


def test_views_are_found_by_name_and_not_by_place(build):
    fusion = build()
    states = make_states(PRESENT, NAMES)
    other = ViewStates(dict(reversed([*states.views.items(), ("unread", states.views["click"])])), states.user_R)
    torch.testing.assert_close(fusion(other), fusion(states))


def test_gradients_are_finite_and_reach_every_parameter(build):
    fusion = build()
    states = make_states(PRESENT * 8, NAMES, requires_grad=True)  # enough rows that no ReLU sleeps through all
    fusion(states)[0].square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name
    for view in states.views.values():
        assert (view.state_RD.grad[~view.present_R] == 0).all()
        assert (view.state_RD.grad[view.present_R] != 0).any()


@pytest.mark.parametrize("present", [[[0, 0, 0], [0, 0, 0]], []])
def test_no_view_or_no_row_gives_every_parameter_a_gradient(build, present):
    fusion = build()
    state_RD, weight_RV = fusion(make_states(present, NAMES))
    assert state_RD.shape == (len(present), 4)
    assert (weight_RV == 0).all()
    state_RD.sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_one_view_alone_has_weight_one_and_no_idle_parameter(build):
    fusion = build(["click"])
    state_RD, weight_RV = fusion(make_states([[1], [0]], ["click"]))
    assert weight_RV.tolist() == [[1.0], [0.0]]
    if list(fusion.parameters()):
        state_RD.square().sum().backward()
    assert all((parameter.grad != 0).any() for parameter in fusion.parameters())


def test_view_dropout_hides_views_but_never_the_only_one(build):
    fusion = build(view_dropout=0.5)
    present = torch.tensor([[1, 1, 1]] * 2000 + [[0, 1, 0]] * 200, dtype=torch.bool)
    _, weight_RV = fusion.train()(make_states(present, NAMES))
    hidden_RV = weight_RV == 0
    assert (weight_RV[2000:, 1] == 1).all()
    torch.testing.assert_close(weight_RV.sum(1), torch.ones(2200))
    # A half is hidden, but for the eighth of rows that would lose all three and lose none.
    assert hidden_RV[:2000].float().mean().item() == pytest.approx(1 / 2 - 1 / 8, abs=0.02)


def test_view_dropout_acts_in_training_only(build):
    fusion = build(view_dropout=0.5).eval()
    states = make_states(PRESENT, NAMES)
    torch.testing.assert_close(fusion(states), build().eval()(states))


def test_states_without_a_view_are_refused(build):
    with pytest.raises(ValueError, match=r"\['cart', 'user'\] are missing"):
        build()(make_states([[1]], ["click"]))


@pytest.mark.parametrize("names", [[], ["click", "click"]])
def test_names_that_are_none_or_twice_are_refused(build, names):
    with pytest.raises(ValueError, match="view_names must be at least one name and no name twice"):
        build(names)


@pytest.mark.parametrize("option", ["dropout", "view_dropout"])
def test_probabilities_out_of_range_are_refused(build, option):
    with pytest.raises(ValueError, match=rf"{option} must be in \[0, 1\), got 1.0"):
        build(**{option: 1.0})
