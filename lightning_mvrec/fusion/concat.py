"""Concatenate and connect fully: the plain way to join views.

R rows (one (user, target step) pair each), V views, D embedding width, H hidden width.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_mvrec.functional.dropout import Dropout
from lightning_mvrec.fusion._states import check_view_names, drop_views, stack_views
from lightning_mvrec.fusion.base import Fusion, ViewStates


class ConcatFusion(Fusion):
    """Put the views side by side and map them to one state; a learned vector stands in for an absent view.

    The weights that are returned are not part of the computation: a view's weight is its share in the first layer's
    input, ``||W_v x_v||`` over the sum of the present views' norms, where ``W_v`` are the columns of the first layer
    that read view ``v``. They tell which view moves the hidden state most, carry no gradient, and are 0 for absent
    views.

    Args:
        embedding_dim: Width ``D``.
        view_names: Names of the views, in the order of concatenation and of the weights.
        hidden: Widths of the hidden layers (ReLU after each); None: one of ``embedding_dim``, ``[]``: only a linear
            map.
        dropout: Probability in ``[0, 1)`` of dropping a channel of a hidden layer.
        view_dropout: Probability in ``[0, 1)`` of treating a view as absent in training; a row that would lose every
            view loses none.

    Shape:
        - output: ``(R, D)`` user state; weights ``(R, V)``: rows sum to 1 over the present views (all 0 where none is).

    Raises:
        ValueError: If an argument is out of its range, or the states lack a view.

    Example:
        >>> from lightning_mvrec.fusion.base import ViewState
        >>> one, there = torch.ones(2, 4), torch.tensor([True, False])
        >>> view = ViewState(one * there[:, None], there)
        >>> state_RD, weight_RV = ConcatFusion(4, ["click"])(ViewStates({"click": view}, torch.arange(2)))
        >>> state_RD.shape, weight_RV.flatten().tolist()
        (torch.Size([2, 4]), [1.0, 0.0])
    """

    reads_steps = False

    def __init__(
        self,
        embedding_dim: int,
        view_names: list[str],
        hidden: list[int] | None = None,
        dropout: float = 0.0,
        view_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.view_names = check_view_names(view_names)
        for name, value in (("view_dropout", view_dropout), ("dropout", dropout)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        hidden = [embedding_dim] if hidden is None else list(hidden)
        if any(width < 1 for width in hidden):
            raise ValueError(f"hidden must be widths of at least 1 channel, got {hidden}")
        self.view_dropout = view_dropout
        self.absent = nn.Parameter(torch.zeros(len(view_names), embedding_dim))
        widths = [*hidden, embedding_dim]
        self.first = nn.Linear(len(view_names) * embedding_dim, widths[0])
        rest: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            rest += [nn.ReLU(), Dropout(dropout), nn.Linear(width_in, width_out)]
        self.rest = nn.Sequential(*rest)

    def forward(self, states: ViewStates, candidates_RCD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the joined state and each present view's share in it."""
        state_RVD, present_RV = stack_views(states, self.view_names)
        if self.training and self.view_dropout > 0:
            present_RV = drop_views(present_RV, self.view_dropout)
        state_RVD = torch.where(present_RV[..., None], state_RVD, self.absent)
        user_RD = self.rest(self.first(state_RVD.flatten(1)))
        return user_RD, self._shares(state_RVD.detach(), present_RV)

    @torch.no_grad()
    def _shares(self, state_RVD: Tensor, present_RV: Tensor) -> Tensor:
        weight_HVD = self.first.weight.unflatten(1, state_RVD.shape[1:])
        # A floor, so that a present view counts even where every contribution is 0.
        norm_RV = (torch.einsum("rvd,hvd->rvh", state_RVD, weight_HVD).norm(dim=2) + 1e-12) * present_RV
        return norm_RV / norm_RV.sum(dim=1, keepdim=True).clamp(min=1e-12)
