import math

import pytest
import torch

from lightning_mvrec.fusion import GateFusion
from tests.fusion.views import make_states

NAMES = ["click", "cart"]


def test_starts_as_the_mean_of_the_present_views():
    states = make_states([[1, 1], [1, 0]], NAMES)
    state_RD, weight_RV = GateFusion(4, NAMES)(states)
    click, cart = (states.views[name].state_RD for name in NAMES)
    torch.testing.assert_close(state_RD, torch.stack([(click[0] + cart[0]) / 2, click[1]]))
    assert weight_RV.tolist() == [[0.5, 0.5], [1.0, 0.0]]


def test_equals_a_naive_row_by_row_definition():
    torch.manual_seed(0)
    fusion = GateFusion(4, NAMES, hidden_dim=3)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter)
    present = [[1, 1], [0, 1], [1, 0]]
    states = make_states(present, NAMES, age=86_400.0)
    state_RD, weight_RV = fusion(states)
    read, _, _, logits = fusion.gate
    for row, there in enumerate(present):
        vectors = [states.views[name].state_RD[row] for name in NAMES]
        # A day of age reads as 1.0.
        seen = torch.cat([*vectors, torch.tensor(there).float(), torch.tensor(there).float()])
        logit = logits.weight @ (read.weight @ seen + read.bias).clamp(min=0) + logits.bias
        share = [math.exp(logit[view].item()) * there[view] for view in range(2)]
        expected = sum(
            share[view] / sum(share) * (fusion.weight[view] @ vectors[view] + fusion.bias[view]) for view in range(2)
        )
        torch.testing.assert_close(state_RD[row], expected)
        torch.testing.assert_close(weight_RV[row], torch.tensor(share) / sum(share))


def test_weights_depend_on_the_states():
    torch.manual_seed(0)
    fusion = GateFusion(4, NAMES)
    torch.nn.init.normal_(fusion.gate[-1].weight)
    weight_RV = fusion(make_states([[1, 1], [1, 1]], NAMES))[1]
    assert not torch.allclose(weight_RV[0], weight_RV[1], atol=1e-3)


@pytest.mark.parametrize("age", [False, True])
def test_weights_depend_on_age_only_if_asked(age):
    torch.manual_seed(0)
    fusion = GateFusion(4, NAMES, age=age)
    torch.nn.init.normal_(fusion.gate[-1].weight)
    recent = fusion(make_states([[1, 1]], NAMES, age=1.0))[1]
    old = fusion(make_states([[1, 1]], NAMES, age=1e8))[1]
    assert torch.allclose(recent, old) is not age


def test_huge_states_keep_weights_and_gradients_finite():
    fusion = GateFusion(4, NAMES)
    torch.nn.init.constant_(fusion.gate[-1].weight, 1.0)
    states = make_states([[1, 1], [0, 0], [1, 0]], NAMES)
    for view in states.views.values():
        view.state_RD = (view.state_RD * 1e4).requires_grad_()
    state_RD, weight_RV = fusion(states)
    state_RD.sum().backward()
    assert weight_RV.isfinite().all()
    assert all(view.state_RD.grad.isfinite().all() for view in states.views.values())


def test_without_projection_one_view_passes_through_untouched():
    fusion = GateFusion(4, ["click"], project=False)
    states = make_states([[1], [1]], ["click"])
    assert not list(fusion.parameters())
    assert torch.equal(fusion(states)[0], states.views["click"].state_RD)


def test_hidden_width_of_nothing_is_refused():
    with pytest.raises(ValueError, match="hidden_dim must be at least 1 channel, got 0"):
        GateFusion(4, NAMES, hidden_dim=0)
