"""Squared error and binary cross-entropy against scikit-learn and a naive loop."""

import math

import pytest
import torch
from sklearn.metrics import log_loss, mean_squared_error

from lightning_mvrec.losses import BCELoss, MSELoss, OrdinalLoss
from tests.losses.inputs import both_layouts, make_input


def scores(inputs):
    return (inputs.user_RD * inputs.item_MD[inputs.target_R]).sum(1).detach()


def weights_given(inputs):
    inputs.total_weight = inputs.weight_R.sum().item()
    return inputs


def test_squared_error_equals_scikit_learn():
    inputs = weights_given(make_input(label_R=torch.tensor([1.0, 5.0, 3.0, 2.0, 4.0, 4.5])))
    expected = mean_squared_error(inputs.label_R, scores(inputs), sample_weight=inputs.weight_R)
    assert MSELoss()(inputs).item() == pytest.approx(expected, rel=1e-5)


def test_the_ordinal_loss_is_the_mean_over_the_grades_of_scikit_learns_log_loss():
    inputs = weights_given(make_input(label_R=torch.tensor([1.0, 5.0, 3.0, 2.0, 4.0, 3.0])))
    grades, offsets = [2.0, 3.0, 4.0, 5.0], [1.7, 0.4, 0.0, -1.5]
    loss = OrdinalLoss(grades, base=4.0)
    assert loss.offset_C.tolist() == [2.0, 1.0, 0.0, -1.0]
    loss.offset_C.data = torch.tensor(offsets)
    expected = [
        log_loss(inputs.label_R >= grade, (scores(inputs) + offset).sigmoid().double(), sample_weight=inputs.weight_R)
        for grade, offset in zip(grades, offsets, strict=True)
    ]
    assert loss(inputs).item() == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_the_offset_of_the_base_grade_stays_zero_and_the_others_learn():
    loss = OrdinalLoss([2.0, 3.0, 4.0], base=3.0)
    loss.offset_C.data[1] = 9.0  # must not be read
    inputs = make_input(label_R=torch.tensor([1.0, 2.0, 3.0, 4.0, 4.0, 2.0]))
    loss(inputs).backward()
    assert loss.offset_C.grad[1] == 0
    assert (loss.offset_C.grad[[0, 2]] != 0).all()
    other = OrdinalLoss([2.0, 3.0, 4.0], base=3.0)
    assert loss(inputs).item() == pytest.approx(other(inputs).item())


@pytest.mark.parametrize(
    ("grades", "base", "message"),
    [
        ([4.0], 4.0, "at least 2 ascending values"),
        ([3.0, 3.0], 3.0, "at least 2 ascending values"),
        ([3.0, 4.0], 5.0, "base must be one of"),
    ],
)
def test_grades_that_are_no_scale_are_refused(grades, base, message):
    with pytest.raises(ValueError, match=message):
        OrdinalLoss(grades, base)


def test_squared_error_uses_the_scores_that_the_model_has_computed():
    inputs = make_input(score_R=torch.full((6,), 3.0))
    expected = (inputs.weight_R * (3 - 1) ** 2).sum() / 3.0
    torch.testing.assert_close(MSELoss()(inputs), expected)


def test_binary_cross_entropy_equals_scikit_learn():
    inputs = weights_given(make_input(label_R=torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])))
    expected = log_loss(inputs.label_R, scores(inputs).sigmoid().double(), sample_weight=inputs.weight_R)
    assert BCELoss()(inputs).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("negatives", [4, (6, 4)])
@pytest.mark.parametrize("negative_weight", [1.0, 0.25])
def test_negatives_count_as_label_zero(negatives, negative_weight):
    inputs = make_input(negatives=negatives, label_R=torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0]))
    negative_RN, _ = both_layouts(inputs)
    total = 0.0
    for row in range(6):
        user, target = inputs.user_RD[row], int(inputs.target_R[row])
        sigmoid = 1 / (1 + math.exp(-(user @ inputs.item_MD[target]).item()))
        loss = -math.log(sigmoid if inputs.label_R[row] == 1 else 1 - sigmoid)
        others = [
            -math.log(1 - 1 / (1 + math.exp(-(user @ inputs.item_MD[item]).item())))
            for item in negative_RN[row].tolist()
            if item != target
        ]
        loss += negative_weight * sum(others) / max(len(others), 1)
        total += inputs.weight_R[row].item() * loss
    assert (negative_RN == inputs.target_R[:, None]).any(), "the case of a negative that is the target must occur"
    assert BCELoss(negative_weight)(inputs).item() == pytest.approx(total / 3.0, rel=1e-5)


def test_a_negative_weight_below_zero_is_refused():
    with pytest.raises(ValueError, match="negative_weight must be at least 0, got -1"):
        BCELoss(-1)
