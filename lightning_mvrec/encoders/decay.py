"""Recency-weighted mean of one view: the cheap baseline attention has to beat.

B users, T steps (right-padded), S steps looked back on, D embedding width.
"""

import torch
from torch import Tensor, nn

from lightning_mvrec.encoders._steps import real_steps
from lightning_mvrec.encoders.base import SequenceEncoder

# Steps whose weights are laid out as a matrix; a longer history carries its sum from chunk to chunk, in O(T).
CHUNK = 64


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
        rate_D = torch.exp2(-self.log2_half_life)
        size = min(CHUNK, x_BTD.shape[1])
        step_T = torch.arange(size, device=x_BTD.device)
        age_TS = step_T[:, None] - step_T[None, :]
        # Clamp first: exp2 of a negative age overflows, and inf * 0 is NaN, masked or not.
        weight_DTS = torch.exp2(-age_TS.clamp(min=0) * rate_D[:, None, None]) * (age_TS >= 0)
        # What a sum carried over from before the chunk has become by step t of it.
        carry_TD = torch.exp2(-(step_T[:, None] + 1) * rate_D)
        sums: list[Tensor] = []
        for x_BSD in x_BTD.split(CHUNK, dim=1):
            steps = x_BSD.shape[1]
            # One small matrix product per channel.
            sum_BTD = (weight_DTS[:, :steps, :steps] @ x_BSD.permute(2, 1, 0)).permute(2, 1, 0)
            sums.append(sum_BTD + carry_TD[:steps] * sums[-1][:, -1:] if sums else sum_BTD)
        age_T1 = torch.arange(x_BTD.shape[1], device=x_BTD.device)[:, None]
        total_TD = torch.exp2(-age_T1 * rate_D).cumsum(dim=0)
        return torch.cat(sums, dim=1) / total_TD * real_steps(lengths_B, x_BTD.shape[1])
