"""What a user does on the whole: the mean of another encoder's states so far.

B users, T steps (right-padded), D embedding width.
"""

from collections.abc import Callable

from torch import Tensor

from lightning_mvrec.encoders.bag import running_sum
from lightning_mvrec.encoders.base import SequenceEncoder


class RunningMeanEncoder(SequenceEncoder):
    """Average an inner encoder's states over every prefix.

    A convolution of short reach sees the last few ratings and cannot know that a user always rates high; the mean of
    its states over the whole prefix can.

    Args:
        embedding_dim: Width ``D`` of input and output.
        encoder: Builds the inner encoder from ``embedding_dim``; None: average the events themselves.

    Shape:
        - x: ``(B, T, D)`` float; steps from ``lengths`` on are padding: finite, no effect.
        - lengths: ``(B,)`` int in ``[0, T]``.
        - output: ``(B, T, D)``; step ``t`` has seen what the inner encoder's steps ``0..t`` have seen, padded steps
          are 0.

    Example:
        >>> import torch
        >>> encoder = RunningMeanEncoder(embedding_dim=1)
        >>> encoder(torch.tensor([[[4.0], [2.0], [9.0]]]), torch.tensor([2])).flatten().tolist()
        [4.0, 3.0, 0.0]
    """

    def __init__(self, embedding_dim: int, encoder: Callable[[int], SequenceEncoder] | None = None) -> None:
        super().__init__()
        self.encoder = None if encoder is None else encoder(embedding_dim)
        if self.encoder is not None:
            self.causal = self.encoder.causal
            self.own_table = self.encoder.own_table

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the mean of the inner states up to each step."""
        h_BTD = x_BTD if self.encoder is None else self.encoder(x_BTD, lengths_B)
        return running_sum(h_BTD, lengths_B, mean=True)
