"""Errors of predicted values.

R rows.
"""

from __future__ import annotations

from torch import Tensor

from lightning_mvrec.functional.errors import absolute_error, log_loss, squared_error
from lightning_mvrec.metrics.base import MeanMetric


class LogLoss(MeanMetric):
    """Mean negative log-likelihood of labels in ``[0, 1]``; scores are probabilities, ``sigmoid(logit)`` of a model.

    Example:
        >>> import torch
        >>> metric = LogLoss()
        >>> metric.update(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0]))
        >>> round(metric.compute().item(), 4)  # log(2)
        0.6931
    """

    higher_is_better = False
    name = "logloss"

    def update(self, score: Tensor, label: Tensor, weight: Tensor | None = None) -> None:
        """Add rows; all arguments ``(R,)``."""
        self.add(log_loss(score, label), weight)


class MAE(MeanMetric):
    """Mean absolute error.

    Example:
        >>> import torch
        >>> metric = MAE()
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 5.0]))
        >>> metric.compute().item()  # (1 + 3) / 2
        2.0
    """

    higher_is_better = False
    name = "mae"

    def update(self, score: Tensor, label: Tensor, weight: Tensor | None = None) -> None:
        """Add rows; all arguments ``(R,)``."""
        self.add(absolute_error(score, label), weight)


class RMSE(MeanMetric):
    """Square root of the mean squared error.

    Example:
        >>> import torch
        >>> metric = RMSE()
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 9.0]))
        >>> metric.compute().item()  # sqrt((1 + 49) / 2)
        5.0
    """

    higher_is_better = False
    name = "rmse"

    def update(self, score: Tensor, label: Tensor, weight: Tensor | None = None) -> None:
        """Add rows; all arguments ``(R,)``."""
        self.add(squared_error(score, label), weight)

    def compute(self) -> Tensor:
        """Return the root, 0 where no row has been added."""
        return super().compute().sqrt()
