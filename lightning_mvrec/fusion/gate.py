"""Learned, input-dependent view weights.

R rows (one (user, target step) pair each), V views, D embedding width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_mvrec.functional.dropout import Dropout
from lightning_mvrec.fusion._states import check_view_names, drop_views, needed, stack_views
from lightning_mvrec.fusion.base import Fusion, ViewStates

DAY = 86_400


class GateFusion(Fusion):
    """Weigh the present views by a softmax over logits read from all of them, and add them up.

    Each view's state passes a linear map of its own that starts as the identity: with tied item vectors, "what the
    user did last" is a good answer from the first step on. The logits start at 0, so every present view starts with the
    same weight. One view alone passes through with weight 1.

    Args:
        embedding_dim: Width ``D``.
        view_names: Names of the views, in the order of the weights.
        hidden_dim: Width of the hidden layer that reads the states; None: ``embedding_dim``.
        project: Whether each view has a linear map (``D * D + D`` parameters).
        age: Whether the logits also see how long ago each view's latest event was.
        view_dropout: Probability in ``[0, 1)`` of hiding a view from a row in training; a row that would lose every
            view loses none.
        dropout: Probability in ``[0, 1)`` of dropping a channel of the hidden layer.

    Shape:
        - output: ``(R, D)`` user state, 0 where no view is present; weights ``(R, V)``: rows sum to 1 over the present
          views (all 0 where none is). In training, a view hidden by ``view_dropout`` has weight 0.

    Raises:
        ValueError: If an argument is out of its range, or the states lack a view, or its age where that is read.

    Example:
        >>> from lightning_mvrec.fusion.base import ViewState
        >>> one, there = torch.ones(2, 4), torch.tensor([True, False])
        >>> view = ViewState(one * there[:, None], there)
        >>> state_RD, weight_RV = GateFusion(4, ["click"])(ViewStates({"click": view}, torch.arange(2)))
        >>> state_RD[:, 0].tolist(), weight_RV.flatten().tolist()
        ([1.0, 0.0], [1.0, 0.0])
    """

    reads_steps = False

    def __init__(
        self,
        embedding_dim: int,
        view_names: list[str],
        hidden_dim: int | None = None,
        project: bool = True,
        age: bool = True,
        view_dropout: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.view_names = check_view_names(view_names)
        for name, value in (("view_dropout", view_dropout), ("dropout", dropout)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if hidden_dim is not None and hidden_dim < 1:
            raise ValueError(f"hidden_dim must be at least 1 channel, got {hidden_dim}")
        num_views = len(view_names)
        hidden_dim = embedding_dim if hidden_dim is None else hidden_dim
        self.age = age
        self.view_dropout = view_dropout
        self.weight: nn.Parameter | None = None
        if project:
            self.weight = nn.Parameter(torch.eye(embedding_dim).repeat(num_views, 1, 1))
            self.bias = nn.Parameter(torch.zeros(num_views, embedding_dim))
        self.gate: nn.Sequential | None = None
        if num_views > 1:  # one view needs no weight, and an idle parameter would never see a gradient
            read, logits = (
                nn.Linear(num_views * (embedding_dim + 1 + age), hidden_dim),
                nn.Linear(hidden_dim, num_views),
            )
            nn.init.zeros_(logits.weight)
            nn.init.zeros_(logits.bias)
            self.gate = nn.Sequential(read, nn.ReLU(), Dropout(dropout), logits)

    def forward(self, states: ViewStates, candidates_RCD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the present views and their weights."""
        state_RVD, present_RV = stack_views(states, self.view_names)
        if self.training and self.view_dropout > 0:
            present_RV = drop_views(present_RV, self.view_dropout)
        state_RVD = state_RVD * present_RV[..., None]
        if self.gate is None:
            weight_RV = present_RV.to(state_RVD.dtype)
        else:
            read = [state_RVD.flatten(1), present_RV.to(state_RVD.dtype)]
            if self.age:
                reader = "GateFusion(age=True)"
                ages = [needed(states.views[name].age_R, "age_R", name, reader) for name in self.view_names]
                age_RV = torch.stack(ages, dim=1)
                # 1.0 is a day; seconds themselves would drown the states.
                read.append(age_RV.clamp(min=0).log1p() / math.log1p(DAY) * present_RV)
            logit_RV = self.gate(torch.cat(read, dim=1))
            # A large negative number, not -inf: a row without any view would be NaN, masked afterwards or not.
            logit_RV = logit_RV.masked_fill(~present_RV, torch.finfo(logit_RV.dtype).min)
            weight_RV = functional.softmax(logit_RV, dim=1) * present_RV
        if self.weight is not None:
            state_RVD = torch.einsum("rvd,ved->rve", state_RVD, self.weight) + self.bias
        return (weight_RV[..., None] * state_RVD).sum(dim=1), weight_RV
