"""Histories as bags of items: the survey's linear view map, and a perceptron on top.

B users, T steps (right-padded), D embedding width.
"""

from torch import Tensor, nn

from lightning_mvrec.encoders._steps import check_dropout, check_positive, real_steps
from lightning_mvrec.encoders.base import SequenceEncoder
from lightning_mvrec.functional.dropout import Dropout


def running_sum(x_BTD: Tensor, lengths_B: Tensor, mean: bool) -> Tensor:
    """Sum (or average) every prefix; padded steps are 0.

    Shape:
        - x: ``(B, T, D)`` float.
        - lengths: ``(B,)`` int in ``[0, T]``.
        - output: ``(B, T, D)``.

    Example:
        >>> import torch
        >>> running_sum(torch.tensor([[[4.0], [2.0], [9.0]]]), torch.tensor([2]), mean=True).flatten().tolist()
        [4.0, 3.0, 0.0]
    """
    real_BT1 = real_steps(lengths_B, x_BTD.shape[1])
    state_BTD = x_BTD.cumsum(dim=1)
    if mean:
        state_BTD = state_BTD / real_BT1.cumsum(dim=1).clamp(min=1)
    return state_BTD * real_BT1


class BagEncoder(SequenceEncoder):
    """The survey's linear view map ``H_i = X_i W_i`` over an item-id multi-hot, after every event.

    ``X_i`` counts how often the user met each item in view ``i``; ``W_i`` is the view's own item table, so the product
    is the running sum of that table's rows and no multi-hot vector is ever built.

    Args:
        embedding_dim: Width ``D`` of the view's own table.
        normalize: Divide by the number of events: a mean, which does not grow with the history.

    Shape:
        - x: ``(B, T, D)`` float: rows of ``W_i``; steps from ``lengths`` on are padding: finite, no effect.
        - lengths: ``(B,)`` int in ``[0, T]``.
        - output: ``(B, T, D)``; step ``t`` has seen steps ``0..t``, padded steps are 0.

    Example:
        >>> import torch
        >>> encoder = BagEncoder(embedding_dim=1)
        >>> encoder(torch.tensor([[[4.0], [2.0], [9.0]]]), torch.tensor([2])).flatten().tolist()
        [4.0, 6.0, 0.0]
    """

    own_table = True

    def __init__(self, embedding_dim: int, normalize: bool = False) -> None:
        super().__init__()
        check_positive("embedding_dim", embedding_dim, "channel")
        self.normalize = normalize

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the sum (or mean) up to each step."""
        return running_sum(x_BTD, lengths_B, mean=self.normalize)


class MLPEncoder(SequenceEncoder):
    """A multi-layer perceptron over the bag of items, after every event.

    The first layer over the multi-hot vector is the view's own table (see :class:`BagEncoder`), averaged over the
    events; hidden layers with ReLU and dropout follow, and a linear one back to ``D``.

    Args:
        embedding_dim: Width ``D`` of the view's own table and of the output.
        hidden_dim: Width of the hidden layers; None: ``embedding_dim``.
        layers: Hidden layers, at least 1.
        dropout: Probability in ``[0, 1)`` of dropping a hidden channel.

    Shape:
        - x: ``(B, T, D)`` float; steps from ``lengths`` on are padding: finite, no effect.
        - lengths: ``(B,)`` int in ``[0, T]``.
        - output: ``(B, T, D)``; step ``t`` has seen steps ``0..t``, padded steps are 0.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> MLPEncoder(embedding_dim=4)(torch.ones(2, 3, 4), torch.tensor([3, 0])).shape
        torch.Size([2, 3, 4])
    """

    own_table = True

    def __init__(
        self, embedding_dim: int, hidden_dim: int | None = None, layers: int = 1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        check_positive("layers", layers, "hidden layer")
        check_dropout("dropout", dropout)
        hidden_dim = check_positive("hidden_dim", embedding_dim if hidden_dim is None else hidden_dim, "channel")
        stack: list[nn.Module] = []
        width = embedding_dim
        for _ in range(layers):
            stack += [nn.Linear(width, hidden_dim), nn.ReLU(), Dropout(dropout)]
            width = hidden_dim
        self.network = nn.Sequential(*stack, nn.Linear(width, embedding_dim))

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the perceptron's reading of the bag up to each step."""
        h_BTD = self.network(running_sum(x_BTD, lengths_B, mean=True))
        return h_BTD * real_steps(lengths_B, x_BTD.shape[1])
