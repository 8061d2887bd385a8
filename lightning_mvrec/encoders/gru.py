"""One view read event by event: a gated recurrent network.

B users, T steps (right-padded), D embedding width.
"""

from torch import Tensor, nn

from lightning_mvrec.encoders._steps import at_least_one, check_dropout, check_positive, real_steps
from lightning_mvrec.encoders.base import SequenceEncoder
from lightning_mvrec.functional.dropout import Dropout


class GRUEncoder(SequenceEncoder):
    """Carry one state along the history and project it back to the items' space.

    After Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks" (ICLR 2016).

    Args:
        embedding_dim: Width ``D`` of input, state and output.
        layers: Recurrent layers, at least 1.
        dropout: Probability in ``[0, 1)`` of dropping a channel of the input and of each layer's output.

    Shape:
        - x: ``(B, T, D)`` float; steps from ``lengths`` on are padding: finite, no effect.
        - lengths: ``(B,)`` int in ``[0, T]``.
        - output: ``(B, T, D)``; step ``t`` has seen steps ``0..t``, padded steps are 0.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> GRUEncoder(embedding_dim=4)(torch.ones(2, 3, 4), torch.tensor([3, 0])).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, embedding_dim: int, layers: int = 1, dropout: float = 0.1) -> None:
        super().__init__()
        check_positive("layers", layers, "layer")
        check_dropout("dropout", dropout)
        self.dropout = Dropout(dropout)
        # nn.GRU warns about dropout in a single layer, where it has no effect.
        self.gru = nn.GRU(
            embedding_dim, embedding_dim, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0
        )
        self.project = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the state after each event."""
        users, steps, _ = x_BTD.shape
        x_BTD, lengths_B = at_least_one(x_BTD, lengths_B)
        # Padding stands at the right, where a recurrence comes to it last: no packing needed.
        h_BTD, _ = self.gru(self.dropout(x_BTD))
        h_BTD = self.project(self.dropout(h_BTD))
        return (h_BTD * real_steps(lengths_B, h_BTD.shape[1]))[:users, :steps]
