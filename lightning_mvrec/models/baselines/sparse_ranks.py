"""Ranks from scores that are mostly 0, without a dense row.

n targets, I item-table rows, S stored scores.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from lightning_mvrec.functional import to_ranks


def sparse_ranks(
    score: sparse.csr_array, target: np.ndarray, seen_owner: np.ndarray, seen_item: np.ndarray, popularity: np.ndarray
) -> torch.Tensor:
    """Return what :func:`lightning_mvrec.functional.ranks` returns for ``score.toarray()`` with ties by popularity.

    Args:
        score: ``(n, I)``; stored values are above 0, all others are 0.
        target: ``(n,)`` item-table rows.
        seen_owner: Which of the ``n`` rows has seen an item, any order.
        seen_item: That item's table row.
        popularity: ``(I,)`` the second key.

    Example:
        >>> score = sparse.csr_array([[0.0, 0.0, 2.0, 0.0]])
        >>> none = np.zeros(0, dtype=np.int64)
        >>> sparse_ranks(score, np.array([3]), none, none, np.array([0, 5, 1, 7])).tolist()  # after item 2, before 1
        [2]
    """
    count, size = score.shape
    target = target.astype(np.int64)
    own = np.arange(count) * size + target
    score.sort_indices()
    owner = np.repeat(np.arange(count), np.diff(score.indptr))
    item = score.indices.astype(np.int64)
    key = owner * size + item  # ascending
    value_of_target = np.zeros(count)
    place, found = _find(key, own)
    value_of_target[found] = score.data[place[found]]

    seen = np.unique(seen_owner.astype(np.int64) * size + seen_item)
    seen = seen[(seen % size > 0) & (seen % size != target[seen // size])]
    ranked = ~_find(seen, key)[1] & (item > 0) & (item != target[owner])
    limit = popularity[target]
    as_popular = popularity[item] >= limit[owner]
    value = value_of_target[owner]
    ahead = np.bincount(owner[ranked & ((score.data > value) | ((score.data == value) & as_popular))], minlength=count)

    # A target without a score stands among all the others without one, in order of popularity.
    ordered = np.sort(popularity[1:])
    as_popular_all = len(ordered) - np.searchsorted(ordered, limit)
    scored = np.bincount(owner[(item > 0) & as_popular & (item != target[owner])], minlength=count)
    seen = seen[~_find(key, seen)[1]]
    seen_owner = seen // size
    skipped = np.bincount(seen_owner[popularity[seen % size] >= limit[seen_owner]], minlength=count)
    ahead += np.where(value_of_target == 0, as_popular_all - 1 - scored - skipped, 0)
    return to_ranks(torch.from_numpy(ahead.astype(np.int64)), torch.from_numpy(target))


def _find(ascending: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of each wanted key, and whether it is there."""
    place = np.searchsorted(ascending, wanted)
    found = place < len(ascending)
    found[found] = ascending[place[found]] == wanted[found]
    return place, found
