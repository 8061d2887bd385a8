import pytest
import torch

from lightning_mvrec.fusion import ConcatFusion, GateFusion, TargetAttentionFusion
from lightning_mvrec.fusion.base import ViewState, ViewStates

NAMES = ["click", "cart"]
ASOF = {"click": [0, 2, 3], "cart": [1, 0, 2]}
USER_R = torch.tensor([0, 0, 1])


def states() -> ViewStates:
    torch.manual_seed(1)
    views = {}
    for name in NAMES:
        steps_BTD, asof_R = torch.randn(2, 3, 4), torch.tensor(ASOF[name])
        state_RD = steps_BTD[USER_R, (asof_R - 1).clamp(min=0)] * (asof_R > 0)[:, None]
        views[name] = ViewState(
            state_RD, asof_R > 0, torch.ones(3), asof_R, steps_BTD, torch.tensor([3, 3]), torch.zeros(2, 3).long()
        )
    return ViewStates(views, USER_R)


def build(fusion=GateFusion) -> TargetAttentionFusion:
    torch.manual_seed(0)
    made = TargetAttentionFusion(4, NAMES, fusion)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def test_equals_a_naive_loop_over_rows_candidates_and_steps():
    fusion, given, candidates_RCD = build(), states(), torch.randn(3, 2, 4)
    output_RCD, _ = fusion(given, candidates_RCD)
    for row in range(3):
        for candidate in range(2):
            query = fusion.query.weight @ candidates_RCD[row, candidate]
            views = {}
            for number, name in enumerate(NAMES):
                view = given.views[name]
                steps = view.steps_BTD[USER_R[row], : ASOF[name][row]]
                logits = [
                    (fusion.keys[number].weight @ step) @ query * fusion.log_factor[number].exp() / 2 for step in steps
                ]
                shares = torch.stack([fusion.sink[number], *logits]).exp()
                attended = sum((share * step for share, step in zip(shares[1:], steps, strict=True)), torch.zeros(4))
                mean = steps.sum(0) / (len(steps) + fusion.log_shrink[number].exp())
                state = fusion.join[number] @ torch.cat([view.state_RD[row], mean, attended / shares.sum()])
                views[name] = ViewState(
                    state[None],
                    view.present_R[[row]],
                    view.age_R[[row]],
                    view.asof_R[[row]],
                    view.steps_BTD,
                    *[None] * 2,
                )
            expected, _ = fusion.fusion(ViewStates(views, USER_R[[row]]))
            torch.testing.assert_close(output_RCD[row, candidate], expected[0])


def test_later_steps_change_nothing():
    fusion, given, candidates_RCD = build(ConcatFusion), states(), torch.randn(3, 2, 4)
    before, weights = fusion(given, candidates_RCD)
    given.views["click"].steps_BTD[0, 2] = 100.0  # row 1 of user 0 has seen two clicks
    given.views["cart"].steps_BTD[1, 2] = 100.0  # user 1's row has seen two
    after, _ = fusion(given, candidates_RCD)
    torch.testing.assert_close(after, before)
    assert weights.shape == (3, 2)


def test_one_candidate_does_not_see_another():
    fusion, given, candidates_RCD = build(), states(), torch.randn(3, 2, 4)
    both, _ = fusion(given, candidates_RCD)
    alone, _ = fusion(given, candidates_RCD[:, 1:])
    torch.testing.assert_close(both[:, 1:], alone)


def test_absent_views_have_no_weight_and_rows_without_any_are_allowed():
    fusion, given = build(), states()
    _, weights_RV = fusion(given, torch.randn(3, 1, 4))
    assert weights_RV[0, 0] == 0
    assert weights_RV[1, 1] == 0
    torch.testing.assert_close(weights_RV.sum(1), torch.ones(3))


def test_no_rows_give_no_rows_with_a_gradient():
    fusion, given = build(), states()
    views = {
        name: ViewState(
            torch.zeros(0, 4), *[torch.zeros(0).bool(), torch.zeros(0)], USER_R[:0], view.steps_BTD, *[None] * 2
        )
        for name, view in given.views.items()
    }
    output, weights = fusion(ViewStates(views, USER_R[:0]), torch.zeros(0, 1, 4))
    assert output.shape == (0, 1, 4)
    assert weights.shape == (0, 2)
    output.sum().backward()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TargetAttentionFusion(4, NAMES, temperature=0.0), "temperature must be above 0, got 0.0"),
        (lambda: TargetAttentionFusion(4, NAMES, shrink=-1.0), "shrink must be above 0, got -1.0"),
        (lambda: TargetAttentionFusion(4, NAMES, TargetAttentionFusion), "must not look at candidates itself"),
        (lambda: build()(states()), "candidates_RCD must be given"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
