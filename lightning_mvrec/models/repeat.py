"""The chance that a user comes back to an item of their own past: "finish what you began".

R rows (one (user, target) pair each), V views, B users, T steps, E events, S distinct items over the pasts of all rows,
D embedding width, H hidden width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_mvrec.functional.repeats import Repeats

# Ages in powers of two of a second: bucket 31 is 68 years.
AGES = 32


class RepeatTerm(nn.Module):
    """One more logit for every item of a row's past, from what happened to it in each view.

    A softmax over item vectors must spread what it learns of "carted an hour ago" over all dimensions of all items;
    here it is read off directly, as in copy mechanisms (Gu et al., ACL 2016) and RepeatNet (Ren et al., "RepeatNet: A
    Repeat Aware Neural Recommendation Machine for Session-based Recommendation", AAAI 2019). For each distinct item
    of a row's past and each view: the place of its latest event from the end of the view (0: the newest), the age of
    that event, and how often it occurred, each one row of a small table; and the item's place among all of the row's
    items, whatever their views (0: the one met last). Their sum passes one hidden layer. Linear readings of the user
    state and of the item's vector say how much this user repeats and how much this item is repeated at all, and a share
    of the dot product ``s`` how well the two go together. The item's score is then ``log(exp(s) + exp(logit))``.

    Args:
        embedding_dim: Width ``D`` of user states.
        view_names: Views whose items may come back; the user's own view is left out.
        hidden_dim: Width ``H`` of the hidden layer, above 0.
        places: Places from the end that are told apart, above 0; older ones share the last.
        counts: Counts that are told apart, above 0; larger ones share the last.
        start: Bias that the logits start with: low, so that the catalogue speaks first.

    Shape:
        - see :meth:`forward`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        embedding_dim: int,
        view_names: list[str],
        hidden_dim: int = 32,
        places: int = 20,
        counts: int = 4,
        start: float = 0.0,
    ) -> None:
        super().__init__()
        for name, value in (("hidden_dim", hidden_dim), ("places", places), ("counts", counts)):
            if value < 1:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.view_names = list(view_names)
        self.places, self.counts = places, counts
        views = len(self.view_names)
        # Row 0 of each view's part: the item never occurred in it.
        self.place = nn.Embedding(views * (places + 1), hidden_dim)
        self.age = nn.Embedding(views * (AGES + 1), hidden_dim)
        self.count = nn.Embedding(views * (counts + 1), hidden_dim)
        self.order = nn.Embedding(places, hidden_dim)
        self.out = nn.Linear(hidden_dim, 1)
        self.user = nn.Linear(embedding_dim, 1, bias=False)
        self.item = nn.Linear(embedding_dim, 1, bias=False)
        self.share = nn.Parameter(torch.zeros(()))
        for table in (self.place, self.age, self.count, self.order):
            nn.init.normal_(table.weight, std=1 / math.sqrt(3 * views + 1))
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.constant_(self.out.bias, start)
        nn.init.zeros_(self.user.weight)
        nn.init.zeros_(self.item.weight)

    def forward(
        self,
        user_RD: Tensor,
        item_MD: Tensor,
        time_R: Tensor,
        user_R: Tensor,
        positions: list[Tensor],
        times: list[Tensor],
        lengths: list[Tensor],
        asof: list[Tensor],
    ) -> Repeats:
        """Return the logits of every distinct item that a row may look back on.

        Args:
            user_RD: ``(R, D)`` user states.
            item_MD: ``(M, D)`` vectors of the batch's items.
            time_R: ``(R,)`` int64 times of the targets.
            user_R: ``(R,)`` int64, the user of each row, in ``[0, B)``.
            positions: A view each: ``(E,)`` int64 items of its events, jagged over users, oldest first.
            times: A view each: ``(E,)`` int64.
            lengths: A view each: ``(B,)`` int64.
            asof: A view each: ``(R,)`` int64, events that precede the row's target.
        """
        num_items = item_MD.shape[0]
        rows, views = user_R.shape[0], len(self.view_names)
        slots = [
            _slots(position_E, time_E, lengths_B, asof_R, user_R)
            for position_E, time_E, lengths_B, asof_R in zip(positions, times, lengths, asof, strict=True)
        ]
        key = torch.cat([row_N * num_items + item_N for row_N, item_N, _, _ in slots])
        pair_S, pair_N = torch.unique(key, return_inverse=True)
        row_S, item_S = pair_S // num_items, pair_S % num_items
        place_SV, age_SV, count_SV = (pair_S.new_zeros(pair_S.shape[0], views) for _ in range(3))
        latest_S = pair_S.new_full(pair_S.shape, torch.iinfo(torch.int64).min)
        first = 0
        for view, (row_N, _, place_N, time_N) in enumerate(slots):
            here_N = pair_N[first : first + row_N.shape[0]]
            first += row_N.shape[0]
            latest_S = latest_S.scatter_reduce(0, here_N, time_N, "amax")
            age_N = (time_R[row_N] - time_N).clamp(min=0)
            bucket_N = (age_N.double() + 1).log2().long().clamp(max=AGES - 1)
            # Events come oldest first, so the smallest place and age are those of the latest one.
            place_SV[:, view] = _smallest(place_N.clamp(max=self.places - 1), here_N, pair_S.shape[0])
            age_SV[:, view] = _smallest(bucket_N, here_N, pair_S.shape[0])
            count_SV[:, view] = torch.bincount(here_N, minlength=pair_S.shape[0]).clamp(max=self.counts)
        lengths_R = torch.bincount(row_S, minlength=rows)
        offset_V = torch.arange(views, device=pair_S.device)
        hidden_SH = (
            functional.embedding_bag(place_SV + offset_V * (self.places + 1), self.place.weight, mode="sum")
            + functional.embedding_bag(age_SV + offset_V * (AGES + 1), self.age.weight, mode="sum")
            + functional.embedding_bag(count_SV + offset_V * (self.counts + 1), self.count.weight, mode="sum")
            + self.order(_places(latest_S, row_S, lengths_R).clamp(max=self.places - 1))
        )
        own_SD = functional.embedding(item_S, item_MD)
        logit_S = (
            self.out(hidden_SH.relu()).squeeze(1)
            + self.user(user_RD).squeeze(1)[row_S]
            + self.item(own_SD).squeeze(1)
            + self.share * (user_RD[row_S] * own_SD).sum(1)
        )
        return Repeats(item_S, lengths_R, logit_S)


def _slots(
    position_E: Tensor, time_E: Tensor, lengths_B: Tensor, asof_R: Tensor, user_R: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return row, item, place from the end and time of every event that a row may look back on."""
    row_N = torch.repeat_interleave(asof_R)
    start_R = (lengths_B.cumsum(0) - lengths_B)[user_R]
    step_N = torch.arange(row_N.shape[0], device=row_N.device) - (asof_R.cumsum(0) - asof_R)[row_N]
    event_N = start_R[row_N] + step_N
    return row_N, position_E[event_N], asof_R[row_N] - 1 - step_N, time_E[event_N]


def _places(latest_S: Tensor, row_S: Tensor, lengths_R: Tensor) -> Tensor:
    """Return the place of each entry within its row, 0 for the latest; equal times in the order of the items."""
    order_S = latest_S.argsort(descending=True, stable=True)
    order_S = order_S[row_S[order_S].argsort(stable=True)]
    first_S = (lengths_R.cumsum(0) - lengths_R)[row_S]
    place_S = torch.empty_like(order_S)
    place_S[order_S] = torch.arange(order_S.shape[0], device=order_S.device)
    return place_S - first_S


def _smallest(value_N: Tensor, pair_N: Tensor, pairs: int) -> Tensor:
    """Return 1 + the smallest value of each pair; 0 where it has none."""
    none = torch.iinfo(torch.int64).max
    least_S = torch.full((pairs,), none, dtype=torch.int64, device=value_N.device)
    least_S = least_S.scatter_reduce(0, pair_N, value_N, "amin")
    return torch.where(least_S == none, 0, least_S + 1)
