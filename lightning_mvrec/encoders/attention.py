"""Causal self-attention over one view.

B users, T steps (right-padded), D embedding width, H heads.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_mvrec.encoders._attention_block import ACTIVATIONS, AttentionBlock
from lightning_mvrec.encoders._steps import at_least_one, check_dropout, check_positive, real_steps
from lightning_mvrec.encoders.base import SequenceEncoder
from lightning_mvrec.functional.dropout import Dropout

POSITIONS = ("learned", "rotary", "none")
# Steps of all users that an evaluation on CPU takes at a time: as fast as whole batches (measured: 8192 to 25600 steps
# of 64 channels), in less memory.
CPU_STEPS = 16384


class AttentionEncoder(SequenceEncoder):
    """Let every event attend to those before it (and itself).

    Kang & McAuley, "Self-Attentive Sequential Recommendation" (ICDM 2018): item vectors times ``sqrt(D)`` plus learned
    positions, then blocks of attention and a position-wise network, each with layer normalisation in front, a
    residual and dropout, and one last normalisation. Positions count from the oldest event that was kept, so that they
    say nothing about how much is still to come; the original, which pads at the left, counts from the newest.

    Whatever the options, attention stays causal and, without ``attention_dropout``, in the fast fused kernel.

    Args:
        embedding_dim: Width ``D`` of input and output, a multiple of ``heads``.
        layers: Blocks, at least 1.
        heads: Attention heads, at least 1.
        dropout: Probability in ``[0, 1)`` of dropping a channel of the input and of each sublayer's output.
        hidden_dim: Width of the position-wise network; None: ``embedding_dim``, as in the paper. Transformers of other
            fields take ``4 * embedding_dim``.
        max_len: Longest history, at least 1: the rows of the table of learned positions.
        attention_dropout: Probability in ``[0, 1)`` of dropping one attention weight; 0 keeps the fast fused kernel.
        position: How order is known: ``"learned"``, a vector for each place in the history; ``"rotary"``, by the number
            of events between two (:func:`~lightning_mvrec.functional.rotate`), without a longest history; ``"none"``,
            by what the causal mask alone tells.
        activation: Of the position-wise network: ``"relu"`` as in the paper, or ``"gelu"``.

    Shape:
        - x: ``(B, T, D)`` float, with learned positions ``T`` at most ``max_len``; steps from ``lengths`` on are
          padding: finite, no effect.
        - lengths: ``(B,)`` int in ``[0, T]``.
        - output: ``(B, T, D)``; step ``t`` has seen steps ``0..t``, padded steps are 0.

    Raises:
        ValueError: If an argument is out of its range, or with learned positions a history is longer than ``max_len``.

    Example:
        >>> AttentionEncoder(embedding_dim=4, heads=2)(torch.ones(2, 3, 4), torch.tensor([3, 0])).shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        embedding_dim: int,
        layers: int = 2,
        heads: int = 1,
        dropout: float = 0.2,
        hidden_dim: int | None = None,
        max_len: int = 200,
        attention_dropout: float = 0.0,
        position: Literal["learned", "rotary", "none"] = "learned",
        activation: Literal["relu", "gelu"] = "relu",
    ) -> None:
        super().__init__()
        check_positive("layers", layers, "block")
        check_positive("heads", heads, "head")
        check_positive("max_len", max_len, "event")
        check_dropout("dropout", dropout)
        if embedding_dim % heads:
            raise ValueError(f"embedding_dim must be a multiple of heads, got {embedding_dim} and {heads}")
        if position not in POSITIONS:
            raise ValueError(f"position must be one of {list(POSITIONS)}, got {position!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {list(ACTIVATIONS)}, got {activation!r}")
        if position == "rotary" and embedding_dim // heads % 2:
            raise ValueError(
                f"embedding_dim / heads must be even with rotary positions, got {embedding_dim} and {heads}"
            )
        self.max_len = max_len
        self.scale = math.sqrt(embedding_dim)
        self.position: nn.Parameter | None = None
        if position == "learned":
            self.position = nn.Parameter(torch.empty(max_len, embedding_dim))
        hidden_dim = embedding_dim if hidden_dim is None else hidden_dim
        self.blocks = nn.ModuleList(
            AttentionBlock(
                embedding_dim, heads, hidden_dim, dropout, attention_dropout, position == "rotary", activation
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(embedding_dim)
        self.dropout = Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and positions from a narrow normal; biases 0."""
        if self.position is not None:
            nn.init.normal_(self.position, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the state after each event."""
        users, steps, _ = x_BTD.shape
        self._check_steps(steps)
        x_BTD, lengths_B = at_least_one(x_BTD, lengths_B)
        h_BTD = self.dropout(self._placed(x_BTD))
        for block in self.blocks:
            h_BTD = block(h_BTD)
        return (self.norm(h_BTD) * real_steps(lengths_B, h_BTD.shape[1]))[:users, :steps]

    def last(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the state after each user's last event: the last block asks for nothing else."""
        users, steps, _ = x_BTD.shape
        if self.training:
            return super().last(x_BTD, lengths_B)
        self._check_steps(steps)
        x_BTD, lengths_B = at_least_one(x_BTD, lengths_B)
        if x_BTD.device.type != "cpu":
            return self._last(x_BTD, lengths_B)[:users]
        at_a_time = max(1, CPU_STEPS // x_BTD.shape[1])
        parts = []
        for x, lengths in zip(x_BTD.split(at_a_time), lengths_B.split(at_a_time), strict=True):
            parts.append(self._last(x[:, : max(1, int(lengths.max()))], lengths))
        return torch.cat(parts)[:users]

    def _last(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        h_BTD = self._placed(x_BTD)
        for block in self.blocks[:-1]:
            h_BTD = block(h_BTD)
        last = self.blocks[-1]
        assert isinstance(last, AttentionBlock)
        state_BD: Tensor = self.norm(last.last(h_BTD, lengths_B))
        return state_BD * (lengths_B > 0)[:, None]

    def _placed(self, x_BTD: Tensor) -> Tensor:
        """Scale item vectors and say where they stand."""
        h_BTD = x_BTD * self.scale
        return h_BTD if self.position is None else h_BTD + self.position[: x_BTD.shape[1]]

    def _check_steps(self, steps: int) -> None:
        if self.position is not None and steps > self.max_len:
            raise ValueError(f"a history must have at most max_len={self.max_len} events, got {steps}")
