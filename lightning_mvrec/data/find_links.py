"""Links from the history of every target of a batch to its neighbours in the graph of co-visitation.

n targets, V views, N events over the histories of all targets, L links.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_mvrec.data.covisits import CoVisitGraph
from lightning_mvrec.data.histories import ranges


@dataclass
class Links:
    """As in :class:`~lightning_mvrec.batch.LinkBatch`, by number of the target and item-table row."""

    target: np.ndarray
    neighbour: np.ndarray
    event: np.ndarray
    place: np.ndarray
    source: np.ndarray
    view: np.ndarray


def find_links(
    graph: CoVisitGraph,
    items: list[np.ndarray],
    first_nV: np.ndarray,
    count_nV: np.ndarray,
    user_n: np.ndarray,
    without_n: np.ndarray,
    new_only: bool,
) -> Links:
    """Return the links of all targets, those of a target's own user left out.

    Args:
        graph: The links of the training events.
        items: By view, the item rows of all stored events.
        first_nV: ``(n, V)`` place among these of the first event that each target looks at.
        count_nV: ``(n, V)`` how many it looks at.
        user_n: ``(n,)`` user rows.
        without_n: ``(n,)`` item whose events a target does not look at; 0 for none.
        new_only: Whether items of the history are left out as neighbours.
    """
    targets, events, places, met = [], [], [], []
    for view, items_E in enumerate(items):
        event = ranges(first_nV[:, view], count_nV[:, view])
        target_N = np.repeat(np.arange(len(user_n)), count_nV[:, view])
        item_N = items_E[event].astype(np.int64)
        kept = item_N != np.where(without_n > 0, without_n, -1)[target_N]
        targets.append(target_N[kept])
        places.append(-1 - ranges(-count_nV[:, view], count_nV[:, view])[kept])
        met.append(item_N[kept])
        events.append(np.full(len(met[-1]), view))
    target_N, place_N, item_N, event_N = (np.concatenate(parts) for parts in (targets, places, met, events))
    at, link = graph.of(item_N, user_n[target_N])
    neighbour = graph.item[link].astype(np.int64)
    if new_only:
        size = len(graph.offsets)
        new = ~np.isin(target_N[at] * size + neighbour, np.unique(target_N * size + item_N))
        at, link, neighbour = at[new], link[new], neighbour[new]
    return Links(
        target=target_N[at],
        neighbour=neighbour,
        event=event_N[at],
        place=place_N[at],
        source=graph.source[link],
        view=graph.view[link],
    )
