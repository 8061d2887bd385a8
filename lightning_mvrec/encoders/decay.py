"""Recency-weighted mean of one view: the cheap baseline attention has to beat.

B users, T steps (right-padded), S steps looked back on, D embedding width.
"""

import torch
from torch import Tensor, nn

from lightning_mvrec.encoders._steps import real_steps
from lightning_mvrec.encoders.base import SequenceEncoder


class DecayEncoder(SequenceEncoder):
    """Average every prefix of a history, halving an event's weight each ``half_life`` steps.

    Args:
        embedding_dim: Width ``D`` of input and output.
        half_life: Initial half-life of every channel, in steps, above 0; learned from there.

    Shape:
        - x: ``(B, T, D)`` float; steps from ``lengths`` on are padding: finite, no effect.
        - lengths: ``(B,)`` int in ``[0, T]``.
        - output: ``(B, T, D)``; step ``t`` has seen steps ``0..t``, padded steps are 0.

    Raises:
        ValueError: If ``half_life`` is not above 0.

    Example:
        >>> encoder = DecayEncoder(embedding_dim=1, half_life=1.0)
        >>> encoder(torch.tensor([[[4.0], [1.0]]]), torch.tensor([2])).flatten().tolist()
        [4.0, 2.0]
    """

    def __init__(self, embedding_dim: int, half_life: float = 5.0) -> None:
        super().__init__()
        if half_life <= 0:
            raise ValueError(f"half_life must be above 0 steps, got {half_life}")
        # Stored as a log2 so that no gradient step can make a half-life negative.
        self.log2_half_life = nn.Parameter(torch.full((embedding_dim,), float(half_life)).log2())

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the decayed mean up to each step."""
        step_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        age_TS = step_T[:, None] - step_T[None, :]
        # Clamp first: exp2 of a negative age overflows, and inf * 0 is NaN, masked or not.
        weight_DTS = torch.exp2(-age_TS.clamp(min=0) / self.log2_half_life.exp2()[:, None, None])
        weight_DTS = weight_DTS * (age_TS >= 0)
        weight_DTS = weight_DTS / weight_DTS.sum(dim=2, keepdim=True)
        # One small matrix product per channel.
        state_BTD = (weight_DTS @ x_BTD.permute(2, 1, 0)).permute(2, 1, 0)
        return state_BTD * real_steps(lengths_B, x_BTD.shape[1])
