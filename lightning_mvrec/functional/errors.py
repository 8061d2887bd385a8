"""Errors of predicted values, one a row, before any mean.

R rows.
"""

from __future__ import annotations

from torch import Tensor


def log_loss(probability_R: Tensor, label_R: Tensor, epsilon: float = 1e-7) -> Tensor:
    """Negative log-likelihood of labels in ``[0, 1]`` under predicted probabilities, in nats.

    Args:
        probability_R: ``(R,)``; what lies outside ``[epsilon, 1 - epsilon]`` is moved to its edge, so that one sure
            mistake costs 16 nats, not infinity.
        label_R: ``(R,)``.
        epsilon: In (0, 0.5).

    Example:
        >>> import torch
        >>> round(log_loss(torch.tensor([0.5]), torch.tensor([1.0])).item(), 4)  # log(2)
        0.6931
    """
    probability_R = probability_R.double().clamp(epsilon, 1 - epsilon)
    label_R = label_R.double()
    return -(label_R * probability_R.log() + (1 - label_R) * (-probability_R).log1p())


def absolute_error(score_R: Tensor, label_R: Tensor) -> Tensor:
    """Distance between score and label."""
    return (score_R.double() - label_R.double()).abs()


def squared_error(score_R: Tensor, label_R: Tensor) -> Tensor:
    """Squared distance between score and label."""
    return (score_R.double() - label_R.double()).square()
