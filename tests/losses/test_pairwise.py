"""The pairwise objectives against naive loops."""

import math

import pytest
import torch

from lightning_mvrec.losses import BPRLoss, L2Penalty, MSELoss, PairwiseLoss
from tests.losses.inputs import both_layouts, make_input


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def naive(inputs, row_loss):
    negative_RN, _ = both_layouts(inputs)
    total = 0.0
    for row, target in enumerate(inputs.target_R.tolist()):
        user = inputs.user_RD[row]
        score = (user @ inputs.item_MD[target]).item()
        others = [(user @ inputs.item_MD[item]).item() for item in negative_RN[row].tolist() if item != target]
        total += inputs.weight_R[row].item() * row_loss(inputs.label_R[row].item(), score, others)
    assert (negative_RN == inputs.target_R[:, None]).any(), "the case of a negative that is the target must occur"
    return total / inputs.total_weight


@pytest.mark.parametrize("negatives", [4, (6, 4)])
def test_pairwise_objective_is_the_surveys_double_sum(negatives):
    inputs = make_input(negatives=negatives, label_R=torch.tensor([1.0, 1.0, 0.5, 1.0, 0.0, 1.0]))

    def row_loss(label, score, others):
        return (label - sigmoid(score)) ** 2 + sum((0 - sigmoid(other)) ** 2 for other in others)

    assert PairwiseLoss()(inputs).item() == pytest.approx(naive(inputs, row_loss), rel=1e-5)


@pytest.mark.parametrize("negatives", [4, (6, 4)])
def test_bpr_is_the_log_odds_of_target_above_negative(negatives):
    inputs = make_input(negatives=negatives)

    def row_loss(label, score, others):
        return sum(-math.log(sigmoid(score - other)) for other in others) / max(len(others), 1)

    assert BPRLoss()(inputs).item() == pytest.approx(naive(inputs, row_loss), rel=1e-5)


@pytest.mark.parametrize("negatives", [None, 4, (6, 4)])
def test_l2_adds_the_squared_lengths_of_the_vectors_that_a_row_used(negatives):
    inputs = make_input(negatives=negatives)
    penalty = 0.0
    for row in range(6):
        square = inputs.user_RD[row].square().sum() + inputs.item_MD[inputs.target_R[row]].square().sum()
        if negatives is not None:
            negative_N = both_layouts(inputs)[0][row]
            square = square + sum(inputs.item_MD[item].square().sum() for item in negative_N) / 4
        penalty += inputs.weight_R[row] * square / 3.0
    torch.testing.assert_close(L2Penalty(MSELoss(), 0.2)(inputs), MSELoss()(inputs) + 0.2 * penalty)


def test_l2_is_the_same_however_the_rows_lie_on_ranks():
    inputs = make_input(negatives=4, weight_R=torch.ones(6), total_weight=6.0)
    loss, halves = L2Penalty(BPRLoss(), 0.2), []
    for rows in (slice(0, 2), slice(2, 6)):
        part = {name: getattr(inputs, name)[rows] for name in ("user_RD", "target_R", "label_R", "weight_R")}
        # Total weight is that of all ranks over the number of ranks; the mean over ranks is the global loss.
        halves.append(loss(make_input(negatives=4, item_MD=inputs.item_MD, total_weight=6.0 / 2, **part)))
    inputs = make_input(negatives=4, item_MD=inputs.item_MD, weight_R=torch.ones(6), total_weight=6.0)
    torch.testing.assert_close(sum(halves) / 2, loss(inputs))


def test_a_lambda_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"weight must be at least 0, got -0\.1"):
        L2Penalty(MSELoss(), -0.1)
