"""Each view read anew for each candidate: which past events matter for this item?

B users, K rows a user (padded), R rows, C candidates, T steps, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_mvrec.functional.dropout import Dropout
from lightning_mvrec.functional.jagged import last_state
from lightning_mvrec.fusion._states import needed
from lightning_mvrec.fusion.base import Fusion, ViewStates
from lightning_mvrec.fusion.gate import GateFusion


class TargetAttentionFusion(Fusion):
    """Attend from the candidate item over the events of every view, then join the views with another fusion.

    To each view's latest state come two means of its steps: one weighted by attention, queried by the candidate (Zhou
    et al. 2018, Deep Interest Network, section 4.3; here with a softmax), and a plain one. One learned entry of value 0
    takes part in the softmax, so that a history without anything like the candidate adds little, and a learned number
    of events of value 0 in the plain mean: both play the part of the shrinkage in item-kNN. Queries and keys start as
    the identity, an event counting as much as its vector resembles the candidate's; the three are added up at first.
    The encoder should keep events apart: of one that averages them, the candidate sees averages.

    Args:
        embedding_dim: Width ``D``.
        view_names: Names of the views.
        fusion: Builds what joins the views, from the width and the names; it sees one row per (row, candidate).
        temperature: Initial factor of the attention logits, above 0; learned from there.
        shrink: Initial number of events of value 0 in the plain mean, above 0; learned from there.
        dropout: Probability of dropping a channel of what a view gives to the inner fusion, in ``[0, 1)``.

    Shape:
        - states: see :class:`~lightning_mvrec.fusion.base.ViewStates`.
        - candidates: ``(R, C, D)``.
        - output: ``(R, C, D)`` user state for each candidate; weights ``(R, V)``, the mean over candidates.

    Raises:
        ValueError: If ``temperature`` or ``shrink`` is not above 0, no candidates are given, a view's state lacks its
            steps or ``asof_R``, or the inner fusion is target-aware itself.
    """

    target_aware = True

    def __init__(
        self,
        embedding_dim: int,
        view_names: list[str],
        fusion: Callable[[int, list[str]], Fusion] = GateFusion,
        temperature: float = 1.0,
        shrink: float = 5.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("temperature", temperature), ("shrink", shrink)):
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.view_names = list(view_names)
        self.query = nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.keys = nn.ModuleList(nn.Linear(embedding_dim, embedding_dim, bias=False) for _ in view_names)
        for layer in (self.query, *self.keys):
            nn.init.eye_(layer.weight)
        self.log_factor = nn.Parameter(torch.full((len(view_names),), float(temperature)).log())
        self.sink = nn.Parameter(torch.zeros(len(view_names)))
        self.log_shrink = nn.Parameter(torch.full((len(view_names),), float(shrink)).log())
        self.join = nn.Parameter(torch.eye(embedding_dim).repeat(len(view_names), 1, 3))
        self.dropout = Dropout(dropout)
        self.fusion = fusion(embedding_dim, view_names)
        if self.fusion.target_aware:
            raise ValueError(f"fusion must not look at candidates itself, got {type(self.fusion).__name__}")

    def forward(self, states: ViewStates, candidates_RCD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the user state for each candidate and the mean weight of each view."""
        if candidates_RCD is None:
            raise ValueError("candidates_RCD must be given: this fusion looks at the candidate, got None")
        rows, num_candidates, width = candidates_RCD.shape
        query_RCD = self.query(candidates_RCD)
        views = {}
        for number, name in enumerate(self.view_names):
            view = states.views[name]
            steps_BTD = needed(view.steps_BTD, "steps_BTD", name, "TargetAttentionFusion")
            asof_R = needed(view.asof_R, "asof_R", name, "TargetAttentionFusion")
            attended_RCD = self._attend(number, asof_R, steps_BTD, states.user_R, query_RCD)
            sum_RD = last_state(steps_BTD.cumsum(1), asof_R, states.user_R)
            mean_RD = sum_RD / (asof_R[:, None] + self.log_shrink[number].exp())
            same_RCD = torch.cat([view.state_RD, mean_RD], -1)[:, None].expand(-1, num_candidates, -1)
            state_RCD = torch.cat([same_RCD, attended_RCD], -1) @ self.join[number].T
            views[name] = replace(
                view,
                state_RD=self.dropout(state_RCD.flatten(0, 1)),
                present_R=view.present_R.repeat_interleave(num_candidates),
                age_R=None if view.age_R is None else view.age_R.repeat_interleave(num_candidates),
                asof_R=asof_R.repeat_interleave(num_candidates),
            )
        user_R = states.user_R.repeat_interleave(num_candidates)
        fused, weights = self.fusion(ViewStates(views, user_R))
        weights_RV = weights.unflatten(0, (rows, num_candidates)).mean(1)
        return fused.reshape(rows, num_candidates, width), weights_RV

    def _attend(self, number: int, asof_R: Tensor, steps_BTD: Tensor, user_R: Tensor, query_RCD: Tensor) -> Tensor:
        """Return the weighted mean ``(R, C, D)`` of the steps that each row may see."""
        batch, steps, width = steps_BTD.shape
        num_candidates = query_RCD.shape[1]
        place_R, most = _place_within_user(user_R, batch)
        # Rows of one user share its steps: two batched products instead of a copy of the history for every row.
        query_BKCD = query_RCD.new_zeros(batch, most, num_candidates, width)
        query_BKCD = query_BKCD.index_put((user_R, place_R), query_RCD)
        key_BTD = self.keys[number](steps_BTD)
        logit_BKCT = (query_BKCD.flatten(1, 2) @ key_BTD.transpose(1, 2)).unflatten(1, (most, num_candidates))
        logit_BKCT = logit_BKCT * (self.log_factor[number].exp() / width**0.5)
        asof_BK = torch.zeros(batch, most, dtype=torch.int64, device=user_R.device)
        asof_BK = asof_BK.index_put((user_R, place_R), asof_R)
        unseen_BKT = torch.arange(steps, device=user_R.device) >= asof_BK[..., None]
        logit_BKCT = logit_BKCT.masked_fill(unseen_BKT[:, :, None], torch.finfo(logit_BKCT.dtype).min)
        sink = self.sink[number].expand(batch, most, num_candidates, 1)
        weight_BKCT = torch.cat([sink, logit_BKCT], dim=-1).softmax(-1)[..., 1:]
        attended_BKCD = (weight_BKCT.flatten(1, 2) @ steps_BTD).unflatten(1, (most, num_candidates))
        return attended_BKCD[user_R, place_R]


def _place_within_user(user_R: Tensor, batch: int) -> tuple[Tensor, int]:
    """Return the number of each row among its user's rows, and the most rows of a user (1 where there are none).

    Example:
        >>> _place_within_user(torch.tensor([0, 0, 2]), 3)
        (tensor([0, 1, 0]), 2)
    """
    count_B = torch.bincount(user_R, minlength=batch)
    order = user_R.argsort(stable=True)
    first_B = count_B.cumsum(0) - count_B
    place_R = torch.empty_like(user_R)
    place_R[order] = torch.arange(len(user_R), device=user_R.device) - first_B[user_R[order]]
    return place_R, max(1, int(count_B.max())) if batch else 1
