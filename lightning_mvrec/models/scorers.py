"""How a user state and an item vector become a score.

D embedding width; leading dimensions broadcast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_mvrec.functional.dropout import Dropout
from lightning_mvrec.losses.base import dot


class Scorer(nn.Module):
    """Score user states ``(..., D)`` against item vectors ``(..., D)``: ``(...)``.

    Attributes:
        retrieval: Whether the score is the plain dot product.
    """

    retrieval: bool = False


class DotScorer(Scorer):
    """The dot product: the whole catalogue is ranked by one matrix product.

    Args:
        embedding_dim: Width ``D``.

    Example:
        >>> DotScorer(2)(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])).item()
        11.0
    """

    retrieval = True

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the scores."""
        return dot(user, item)


class MLPScorer(Scorer):
    """A multi-layer perceptron over user, item and their product: for ratings and click-through rates.

    Without hidden layers it is linear in all three, so that user and item biases and a weighted dot product remain.

    Args:
        embedding_dim: Width ``D``.
        hidden: Widths of the hidden layers; may be empty.
        dropout: Probability of dropping an input or a hidden unit, in ``[0, 1)``.

    Example:
        >>> scorer = MLPScorer(4, hidden=[8])
        >>> scorer(torch.zeros(3, 4), torch.zeros(3, 4)).shape
        torch.Size([3])
    """

    def __init__(self, embedding_dim: int, hidden: list[int] | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        layers: list[nn.Module] = [Dropout(dropout)]
        width = 3 * embedding_dim
        for size in hidden or []:
            layers += [nn.Linear(width, size), nn.ReLU(), Dropout(dropout)]
            width = size
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """Return the scores."""
        user, item = torch.broadcast_tensors(user, item)
        return self.layers(torch.cat([user, item, user * item], dim=-1)).squeeze(-1)
