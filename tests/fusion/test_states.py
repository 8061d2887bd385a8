"""States made by hand hold what the fusion reads; what is missing is named."""

from dataclasses import replace

import pytest
import torch

from lightning_mvrec.fusion import ConcatFusion, GateFusion, TargetAttentionFusion, ViewState, ViewStates
from tests.fusion.views import make_states

NAMES = ["click", "cart"]


@pytest.mark.parametrize("fusion", [ConcatFusion(4, NAMES), GateFusion(4, NAMES, age=False)])
def test_state_and_presence_do_for_fusions_that_read_no_more(fusion):
    states = make_states([[True, True], [True, False]], NAMES)
    views = {name: ViewState(view.state_RD, view.present_R) for name, view in states.views.items()}
    for with_all, alone in zip(fusion(states), fusion(ViewStates(views, states.user_R)), strict=True):
        torch.testing.assert_close(alone, with_all, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("fusion", "argument"),
    [
        (GateFusion(4, NAMES), "age_R"),
        (TargetAttentionFusion(4, NAMES), "steps_BTD"),
        (TargetAttentionFusion(4, NAMES), "asof_R"),
        (TargetAttentionFusion(4, NAMES), "age_R"),  # of the gate inside
    ],
)
def test_what_a_fusion_cannot_do_without_is_named(fusion, argument):
    states = make_states([[True, True], [True, False]], NAMES)
    views = {**states.views, "cart": replace(states.views["cart"], **{argument: None})}
    with pytest.raises(ValueError, match=f"{argument} of view 'cart' must be given: .*Fusion.* reads it, got None"):
        fusion(ViewStates(views, states.user_R), torch.randn(2, 3, 4))
