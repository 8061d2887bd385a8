"""Error metrics against scikit-learn, weighted and batched."""

import pytest
import torch
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error

from lightning_mvrec.metrics import MAE, RMSE, LogLoss


@pytest.fixture
def rows():
    torch.manual_seed(2)
    return torch.rand(60), (torch.rand(60) < 0.5).float(), torch.randint(0, 3, (60,)).float()


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (LogLoss(), lambda s, y, w: log_loss(y, s, sample_weight=w)),
        (MAE(), lambda s, y, w: mean_absolute_error(y, s, sample_weight=w)),
        (RMSE(), lambda s, y, w: mean_squared_error(y, s, sample_weight=w) ** 0.5),
    ],
    ids=["logloss", "mae", "rmse"],
)
def test_weighted_batches_match_scikit_learn(metric, expected, rows):
    score, label, weight = rows
    for part in torch.arange(60).split(17):
        metric.update(score[part], label[part], weight[part])
    value = expected(*(column.double().numpy() for column in rows))
    assert metric.compute().item() == pytest.approx(value, abs=1e-9)


def test_a_nan_of_weight_0_does_not_spread():
    metric = MAE()
    metric.update(torch.tensor([float("nan"), 1.0]), torch.tensor([0.0, 3.0]), torch.tensor([0.0, 1.0]))
    assert metric.compute().item() == 2


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"each of \(2,\) rows, got \(1,\)"):
        RMSE().update(torch.zeros(2), torch.zeros(2), torch.ones(1))
