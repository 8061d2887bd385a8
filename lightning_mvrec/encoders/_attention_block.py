"""One block of causal self-attention.

B users, T steps (right-padded), D embedding width, H heads, d and e channels of a head.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_mvrec.encoders._steps import check_dropout, check_positive
from lightning_mvrec.functional.dropout import Dropout, ReluDropout
from lightning_mvrec.functional.rotary import rotate

ACTIVATIONS = ("relu", "gelu")


class AttentionBlock(nn.Module):
    """Attention and a position-wise network, each behind a layer normalisation, with a residual and dropout.

    Args:
        embedding_dim: Width ``D``.
        heads: Attention heads ``H``.
        hidden_dim: Width of the position-wise network, at least 1.
        dropout: Probability of dropping a channel of the network's hidden layer and of both sublayers' output.
        attention_dropout: Probability of dropping one attention weight.
        rotary: Whether queries and keys are turned by their step.
        activation: One of ``ACTIVATIONS``.

    Shape:
        - h: ``(B, T, D)``, ``T`` at least 1; right-padded.
        - output: ``(B, T, D)``; step ``t`` has seen steps ``0..t``.
    """

    def __init__(
        self,
        embedding_dim: int,
        heads: int,
        hidden_dim: int,
        dropout: float,
        attention_dropout: float,
        rotary: bool,
        activation: str,
    ) -> None:
        super().__init__()
        check_positive("hidden_dim", hidden_dim, "channel")
        self.heads = heads
        self.rotary = rotary
        self.attention_dropout = check_dropout("attention_dropout", attention_dropout)
        self.norm_attention = nn.LayerNorm(embedding_dim)
        self.qkv = nn.Linear(embedding_dim, 3 * embedding_dim)
        self.out = nn.Linear(embedding_dim, embedding_dim)
        self.norm_network = nn.LayerNorm(embedding_dim)
        middle = ReluDropout(dropout) if activation == "relu" else nn.Sequential(nn.GELU(), Dropout(dropout))
        # Named as in saved checkpoints, where activation and dropout were two entries.
        self.network = nn.Sequential(
            OrderedDict(
                {"0": nn.Linear(embedding_dim, hidden_dim), "1": middle, "3": nn.Linear(hidden_dim, embedding_dim)}
            )
        )
        self.dropout = Dropout(dropout)

    def forward(self, h_BTD: Tensor) -> Tensor:
        """Return the state after each step."""
        qkv = self.qkv(self.norm_attention(h_BTD)).unflatten(2, (3, self.heads, -1))
        q_BHTd, k_BHTd, v_BHTd = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.rotary:
            q_BHTd, k_BHTd = rotate(q_BHTd), rotate(k_BHTd)
        # Padding stands at the right, so the causal mask alone hides it from every real step.
        mixed_BHTd = functional.scaled_dot_product_attention(
            q_BHTd, k_BHTd, v_BHTd, dropout_p=self.attention_dropout if self.training else 0.0, is_causal=True
        )
        h_BTD = h_BTD + self.dropout(self.out(mixed_BHTd.transpose(1, 2).flatten(2)))
        return h_BTD + self.dropout(self.network(self.norm_network(h_BTD)))

    def last(self, h_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return ``(B, D)``, the state after step ``lengths - 1``; without dropout, and finite where a length is 0.

        One query a user: instead of making a key and a value of every step, the query goes through the keys' matrix
        and the weighted mean of the steps through the values'. The keys' bias adds the same to all logits of a query
        and falls out.
        """
        users, steps, width = h_BTD.shape
        n_BTD = self.norm_attention(h_BTD)
        user_B = torch.arange(users, device=h_BTD.device)
        last_B = (lengths_B.long() - 1).clamp(min=0)
        weight_qkv = self.qkv.weight.unflatten(0, (3, self.heads, -1))
        bias_qkv = self.qkv.bias.unflatten(0, (3, self.heads, -1))
        q_BHd = torch.einsum("bd,hed->bhe", n_BTD[user_B, last_B], weight_qkv[0]) + bias_qkv[0]
        if self.rotary:
            k_BTHd = torch.einsum("btd,hed->bthe", n_BTD, weight_qkv[1]) + bias_qkv[1]
            k_BHTd = rotate(k_BTHd.transpose(1, 2))
            q_BH1d = rotate(q_BHd, last_B[:, None])[:, :, None]
            logit_BHT = (q_BH1d @ k_BHTd.transpose(2, 3)).squeeze(2)
        else:
            logit_BHT = torch.einsum("bhe,hed->bhd", q_BHd, weight_qkv[1]) @ n_BTD.transpose(1, 2)
        unseen_BT = torch.arange(steps, device=h_BTD.device) > last_B[:, None]
        logit_BHT = (logit_BHT * (width // self.heads) ** -0.5).masked_fill(unseen_BT[:, None], -torch.inf)
        mean_BHD = logit_BHT.softmax(-1) @ n_BTD
        mixed_BHd = torch.einsum("bhd,hed->bhe", mean_BHD, weight_qkv[2]) + bias_qkv[2]
        h_BD = h_BTD[user_B, last_B] + self.out(mixed_BHd.flatten(1))
        return h_BD + self.network(self.norm_network(h_BD))
