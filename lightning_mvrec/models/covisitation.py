"""The chance that a user goes on to an item that others met close in time to one of the user's own.

R rows (one (user, target) pair each), L links, S entries over all rows (distinct neighbours of a row), V views,
K decays, H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_mvrec.batch import LinkBatch
from lightning_mvrec.functional.repeats import Repeats

# What a sum of links is held above, so that its logarithm is finite: about one link of twelve decays.
LEAST = 1e-5


class CoVisitationTerm(nn.Module):
    """One more logit for every neighbour of a row's history in the graph of co-visitation.

    Time-decayed co-visitation counts how often, and how close in time, users met two items; here the count is learned.
    To an event of the history in view ``e``, a link to a neighbour weighs
    ``exp(event[e] + source + neighbour + place[p] - gap / decay)``: ``gap`` lies between the moments when the user who
    made the link first met the two items, ``source`` and ``neighbour`` are sums over the views in which that user met
    them, ``p`` is the event's place from the end of its view. Weights are summed over all events and links that lead to
    a neighbour, once for each of ``K`` learned decays, and one hidden layer reads the logarithms of the sums. A model
    of some views reads their events alone, and of a link only the meetings in them. The score of an item is
    ``log(exp(s) + exp(logit))`` with its dot product ``s``, as in :class:`~lightning_mvrec.models.RepeatTerm`. The
    links come with the batch (``EventsDataModule(covisits=CoVisits())``), without those of the row's own user.

    Args:
        view_names: Views that are read, the user's own left out.
        decays: Seconds in which a link falls to ``1 / e``, to begin with; each above 0.
        places: Places from the end that are told apart, above 0; older ones share the last.
        hidden_dim: Width ``H``, above 0.
        start: Bias that the logits start with.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        view_names: list[str],
        decays: tuple[float, ...] = (60.0, 180.0, 1800.0),
        places: int = 1,
        hidden_dim: int = 16,
        start: float = 5.0,
    ) -> None:
        super().__init__()
        for name, value in (("places", places), ("hidden_dim", hidden_dim)):
            if value < 1:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not decays or min(decays) <= 0:
            raise ValueError(f"decays must be above 0 seconds, at least one, got {list(decays)}")
        self.view_names = list(view_names)
        self.places = places
        views = len(self.view_names)
        self.event = nn.Parameter(torch.zeros(views))
        self.source = nn.Parameter(torch.zeros(views))
        self.neighbour = nn.Parameter(torch.zeros(views))
        self.place = nn.Parameter(torch.zeros(places))
        # As logarithms, so that no step can make a decay negative.
        self.log_decay = nn.Parameter(torch.tensor(decays).log())
        self.hidden = nn.Linear(len(decays), hidden_dim)
        self.out = nn.Linear(hidden_dim, 1)
        self.direct = nn.Linear(len(decays), 1, bias=False)
        nn.init.constant_(self.out.bias, start)
        nn.init.constant_(self.direct.weight, 1 / len(decays))

    def forward(
        self, links: LinkBatch, row_of: Tensor, rows: int, view_index: list[int], num_views: int, num_items: int
    ) -> Repeats:
        """Return the logits of every distinct neighbour of each row.

        Args:
            links: The batch's links.
            row_of: ``(B * K,)`` int64, by target of the batch its row, -1 for none.
            rows: ``R``.
            view_index: ``(V,)`` place in the schema of each view that is read.
            num_views: Views of the schema.
            num_items: ``M``, more than any position of a link.
        """
        own = torch.full((num_views,), -1, device=row_of.device)
        own[view_index] = torch.arange(len(view_index), device=row_of.device)
        row_L, event_L = row_of[links.target_L], own[links.event_L]
        source_LV, neighbour_LV = links.source_LV[:, view_index], links.neighbour_LV[:, view_index]
        first_L, other_L = source_LV.amin(1), neighbour_LV.amin(1)
        kept = (row_L >= 0) & (event_L >= 0) & first_L.isfinite() & other_L.isfinite()
        key_S, entry_L = torch.unique(row_L[kept] * num_items + links.position_L[kept], return_inverse=True)
        base_L = (
            self.event[event_L[kept]]
            + self.place[links.place_L[kept].clamp(max=self.places - 1)]
            + source_LV[kept].isfinite().to(self.source.dtype) @ self.source
            + neighbour_LV[kept].isfinite().to(self.source.dtype) @ self.neighbour
        )
        gap_L = (first_L[kept] - other_L[kept]).abs()
        weight_LK = (base_L[:, None] - gap_L[:, None] * (-self.log_decay).exp()).exp()
        total_SK = weight_LK.new_zeros(key_S.shape[0], weight_LK.shape[1]).index_add(0, entry_L, weight_LK)
        log_SK = (total_SK + LEAST).log()
        logit_S = (self.out(self.hidden(log_SK).relu()) + self.direct(log_SK)).squeeze(1)
        lengths_R = torch.bincount(key_S // num_items, minlength=rows)
        return Repeats(key_S % num_items, lengths_R, logit_S)
