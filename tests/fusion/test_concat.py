import pytest
import torch

from lightning_mvrec.fusion import ConcatFusion
from tests.fusion.views import make_states

NAMES = ["click", "cart"]


def make(**options):
    torch.manual_seed(0)
    fusion = ConcatFusion(4, NAMES, **options)
    torch.nn.init.normal_(fusion.absent)
    return fusion


def test_equals_concatenation_and_two_linear_maps():
    fusion = make(hidden=[5])
    states = make_states([[1, 1], [0, 1]], NAMES)
    click, cart = (states.views[name].state_RD for name in NAMES)
    both = torch.cat([torch.stack([click[0], fusion.absent[0]]), cart], dim=1)
    last = fusion.rest[-1]
    expected = (both @ fusion.first.weight.T + fusion.first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(fusion(states)[0], expected)


def test_weights_are_shares_of_the_first_layers_input():
    fusion = make()
    states = make_states([[1, 1]], NAMES)
    norms = [
        (fusion.first.weight[:, 4 * view : 4 * view + 4] @ states.views[name].state_RD[0]).norm()
        for view, name in enumerate(NAMES)
    ]
    torch.testing.assert_close(fusion(states)[1][0], torch.stack(norms) / sum(norms))


def test_weights_carry_no_gradient():
    assert not make()(make_states([[1, 1]], NAMES))[1].requires_grad


def test_views_whose_states_are_all_zero_share_evenly():
    states = make_states([[1, 1]], NAMES)
    for view in states.views.values():
        view.state_RD = torch.zeros(1, 4)
    assert make()(states)[1].tolist() == [[0.5, 0.5]]


def test_a_width_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"hidden must be widths of at least 1 channel, got \[4, 0\]"):
        make(hidden=[4, 0])
