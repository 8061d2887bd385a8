"""What every loss promises, asked of each of them."""

from dataclasses import replace

import pytest
import torch

from lightning_mvrec.losses import (
    BCELoss,
    BPRLoss,
    FullSoftmaxLoss,
    L2Penalty,
    MSELoss,
    OrdinalLoss,
    PairwiseLoss,
    SampledSoftmaxLoss,
)
from tests.losses.inputs import make_input

BUILD = {
    "mse": MSELoss,
    "bce": BCELoss,
    "bpr": BPRLoss,
    "ordinal": lambda: OrdinalLoss(grades=[0.5, 1.0, 2.0], base=1.0),
    "pairwise": PairwiseLoss,
    "full": lambda: FullSoftmaxLoss(temperature=0.7, chunk_size=4),
    "sampled": lambda: SampledSoftmaxLoss(temperature=0.7),
    "l2": lambda: L2Penalty(BPRLoss(), 0.1),
}


@pytest.fixture(params=BUILD, name="loss")
def _loss(request):
    return BUILD[request.param]()


@pytest.fixture(params=[3, "per-row"], name="negatives")
def _negatives(request):
    return lambda rows: (rows, 3) if request.param == "per-row" else 3


def select(inputs, rows):
    """Keep some rows of a batch."""
    row_wise = {name: getattr(inputs, name)[rows] for name in ("user_RD", "target_R", "label_R", "weight_R")}
    if inputs.negative.dim() == 2:
        row_wise |= {name: getattr(inputs, name)[rows] for name in ("negative", "log_q_negative")}
    return replace(inputs, **row_wise)


def test_no_row_gives_zero_with_a_gradient(loss, negatives):
    inputs = make_input(rows=0, negatives=negatives(0))
    value = loss(inputs)
    assert value.shape == ()
    assert value.item() == 0.0
    value.backward()
    assert (inputs.item_MD.grad == 0).all()
    assert inputs.user_RD.grad.shape == (0, 4)


def test_is_a_sum_over_rows_divided_by_the_total_weight(loss, negatives):
    inputs = make_input(rows=6, negatives=negatives(6))
    parts = [loss(select(inputs, slice(row, row + 1))) for row in range(6)]
    torch.testing.assert_close(loss(inputs), sum(parts))
    torch.testing.assert_close(loss(replace(inputs, total_weight=6.0)), loss(inputs) / 2)


def test_a_row_of_weight_zero_has_no_effect(loss, negatives):
    inputs = make_input(rows=6, negatives=negatives(6))
    inputs.weight_R[4] = 0.0
    inputs.target_R[4] = 0
    value = loss(inputs)
    torch.testing.assert_close(value, loss(select(inputs, torch.tensor([0, 1, 2, 3, 5]))))
    value.backward()
    assert (inputs.user_RD.grad[4] == 0).all()


def test_order_of_rows_has_no_effect(loss, negatives):
    inputs = make_input(rows=6, negatives=negatives(6))
    torch.testing.assert_close(loss(select(inputs, torch.randperm(6))), loss(inputs))


def test_gradient_equals_finite_differences(loss, negatives):
    inputs = make_input(rows=5, negatives=negatives(5), dtype=torch.float64)

    def run(user_RD, item_MD):
        return loss(replace(inputs, user_RD=user_RD, item_MD=item_MD))

    assert torch.autograd.gradcheck(run, (inputs.user_RD, inputs.item_MD))


@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_extreme_scores_give_finite_loss_and_gradient(loss, negatives, scale):
    inputs = make_input(rows=6, negatives=negatives(6))
    inputs.user_RD = (inputs.user_RD.detach() * scale).requires_grad_()
    value = loss(inputs)
    value.backward()
    assert value.isfinite()
    assert inputs.user_RD.grad.isfinite().all()
    assert inputs.item_MD.grad.isfinite().all()


def test_negatives_that_are_all_the_target_give_finite_gradients(loss):
    inputs = make_input(rows=6, negatives=(6, 3))
    inputs.negative[:] = inputs.target_R[:, None]
    value = loss(inputs)
    value.backward()
    assert value.isfinite()
    assert inputs.user_RD.grad.isfinite().all()


def test_a_model_with_a_score_of_its_own_is_scored_by_it(loss, negatives):
    inputs = make_input(rows=6, negatives=negatives(6))
    other = replace(inputs, retrieval=False, score=lambda user, item: 2 * (user * item).sum(-1) + 1)
    if isinstance(loss, FullSoftmaxLoss):
        with pytest.raises(ValueError, match="needs a model whose score is the dot product"):
            loss(other)
        return
    if isinstance(loss, L2Penalty):
        loss = loss.loss
    # The same score by a dot product: double the user, and 1 more through a channel of ones.
    ones = torch.ones(6, 1)
    user_RD, item_MD = torch.cat([2 * inputs.user_RD, ones], 1), torch.cat([inputs.item_MD, torch.ones(9, 1)], 1)
    torch.testing.assert_close(loss(other), loss(replace(inputs, user_RD=user_RD, item_MD=item_MD)))


@pytest.mark.parametrize("name", ["bpr", "pairwise", "sampled"])
def test_a_batch_without_negatives_is_refused_naming_the_option(name):
    with pytest.raises(ValueError, match="needs negatives, got a batch without: set `negatives` of the data module"):
        BUILD[name]()(make_input())
