"""Errors of predicted values against scikit-learn."""

from math import log

import pytest
import torch
from sklearn.metrics import log_loss as sklearn_log_loss

from lightning_mvrec.functional import absolute_error, log_loss, squared_error


def test_log_loss_matches_scikit_learn():
    torch.manual_seed(0)
    probability_R, label_R = torch.rand(50), (torch.rand(50) < 0.4).float()
    expected = sklearn_log_loss(label_R.numpy(), probability_R.double().numpy())
    assert log_loss(probability_R, label_R).mean().item() == pytest.approx(expected, abs=1e-9)


def test_log_loss_of_a_sure_mistake_or_no_probability_is_finite():
    value_R = log_loss(torch.tensor([1.0, 0.0, 1.3, -0.2]), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert value_R.tolist() == pytest.approx([-log(1e-7)] * 4)


def test_errors_are_distances():
    score_R, label_R = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 1.0])
    assert absolute_error(score_R, label_R).tolist() == [2, 3]
    assert squared_error(score_R, label_R).tolist() == [4, 9]
