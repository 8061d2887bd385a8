"""Which targets are of items that their user met in certain views. n targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_mvrec.data.store import Store, Targets


def met_in(store: Store, targets: Targets, views: Sequence[str]) -> np.ndarray:
    """Return ``(n,)`` bool: whether a training event of one of the views has the target's user and item."""
    size = store.schema.num_items
    known = []
    for name in views:
        view = store.view(name)
        user = np.repeat(np.arange(len(view.offsets) - 1), np.diff(view.offsets))
        train = view.stage == 0
        known.append(user[train] * size + view.items[train])
    return np.isin(targets.user * size + targets.item, np.concatenate(known))
