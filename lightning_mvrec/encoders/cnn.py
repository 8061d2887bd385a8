"""Local patterns of one view: causal, dilated convolutions.

B users, T steps (right-padded), D embedding width, W kernel width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_mvrec.encoders._steps import at_least_one, check_dropout, check_positive, real_steps
from lightning_mvrec.encoders.base import SequenceEncoder
from lightning_mvrec.functional.dropout import Dropout


class CNNEncoder(SequenceEncoder):
    """Stack causal convolutions with residuals; layer ``i`` looks back in strides of ``2 ** i``.

    A state has seen the last ``1 + (kernel_size - 1) * (2 ** layers - 1)`` events (7 by default). What a user does on
    the whole lies beyond that reach: see :class:`~lightning_mvrec.encoders.RunningMeanEncoder`. The residual network of
    dilated convolutions follows Yuan et al., "A Simple Convolutional Generative Network for Next Item Recommendation"
    (WSDM 2019).

    Args:
        embedding_dim: Width ``D`` of input and output.
        kernel_size: Events under one kernel, at least 1.
        layers: Convolutions, at least 1.
        dropout: Probability in ``[0, 1)`` of dropping a channel of a layer's output.

    Shape:
        - x: ``(B, T, D)`` float; steps from ``lengths`` on are padding: finite, no effect.
        - lengths: ``(B,)`` int in ``[0, T]``.
        - output: ``(B, T, D)``; step ``t`` has seen steps ``0..t``, padded steps are 0.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> CNNEncoder(embedding_dim=4)(torch.ones(2, 3, 4), torch.tensor([3, 0])).shape
        torch.Size([2, 3, 4])
    """

    def __init__(self, embedding_dim: int, kernel_size: int = 3, layers: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        check_positive("kernel_size", kernel_size, "event")
        check_positive("layers", layers, "convolution")
        check_dropout("dropout", dropout)
        self.kernel_size = kernel_size
        self.norms = nn.ModuleList(nn.LayerNorm(embedding_dim) for _ in range(layers))
        # A convolution as a linear map of W shifted copies: on CPU faster than conv1d, which wants (B, D, T).
        self.kernels = nn.ModuleList(nn.Linear(kernel_size * embedding_dim, embedding_dim) for _ in range(layers))
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return each step's view of the events within reach."""
        users, steps, _ = x_BTD.shape
        h_BTD, lengths_B = at_least_one(x_BTD, lengths_B)
        for layer, (norm, kernel) in enumerate(zip(self.norms, self.kernels, strict=True)):
            dilation = 2**layer
            reach = (self.kernel_size - 1) * dilation
            padded = functional.pad(norm(h_BTD), (0, 0, reach, 0))
            length = h_BTD.shape[1]
            shifts = [padded[:, shift * dilation : shift * dilation + length] for shift in range(self.kernel_size)]
            h_BTD = h_BTD + self.dropout(functional.relu(kernel(torch.cat(shifts, dim=2))))
        return (h_BTD * real_steps(lengths_B, h_BTD.shape[1]))[:users, :steps]
