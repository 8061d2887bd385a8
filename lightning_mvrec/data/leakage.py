"""A check that no history of a prepared store holds what it is to predict, or anything later.

n targets of one stage, V views.
"""

from __future__ import annotations

import numpy as np

from lightning_mvrec.data.store import Store


def find_leaks(store: Store) -> list[str]:
    """Return a sentence for each kind of leak found; none for a clean store.

    Looked for, in every stage and every view: an event that is later than the target, or of the same moment in another
    view; the target's own event. For a split that is clean in time also training events and targets that do not lie
    before the first evaluation target.

    Example:
        >>> import tempfile
        >>> from lightning_mvrec.data import SyntheticEvents, prepare
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = SyntheticEvents(num_users=20)
        ...     find_leaks(prepare(source, targets=["buy"], store_dir=folder, progress=False))
        []
    """
    leaks = []
    for stage in ("train", "val", "test"):
        targets = store.targets(stage)
        for number, name in enumerate(store.schema.view_names):
            view = store.view(name)
            asof = targets.asof[:, number]
            have = np.flatnonzero(asof > 0)
            latest = view.times[view.offsets[targets.user[have]] + asof[have] - 1]
            own = targets.view[have] == number
            late = np.where(own, latest > targets.time[have], latest >= targets.time[have])
            if late.any():
                leaks.append(f"{stage}: {int(late.sum())} targets have events of view {name!r} that are not earlier")
            if (asof > np.diff(view.offsets)[targets.user]).any():
                leaks.append(f"{stage}: histories of view {name!r} run into the next user's")
            leaks += _own_events(store, stage, number)
    return leaks + _across_stages(store)


def _own_events(store: Store, stage: str, number: int) -> list[str]:
    """Find targets whose own event is counted as their history."""
    targets = store.targets(stage)
    name = store.schema.view_names[number]
    view = store.view(name)
    own = np.flatnonzero(targets.view == number)
    place = view.offsets[targets.user[own]] + targets.asof[own, number]
    # The event right after the history is the target itself; a held-out pair comes after the last event instead.
    inside = place < view.offsets[targets.user[own] + 1]
    event = own[inside]
    same = (view.times[place[inside]] == targets.time[event]) & (view.items[place[inside]] == targets.item[event])
    if same.all():
        return []
    return [f"{stage}: {int((~same).sum())} targets of view {name!r} are not the event after their history"]


def _across_stages(store: Store) -> list[str]:
    if not store.manifest["clean_in_time"]:
        return []
    starts = [store.targets(stage).time.min() for stage in ("val", "test") if len(store.targets(stage))]
    if not starts:
        return []
    leaks = []
    for name in store.schema.view_names:
        view = store.view(name)
        late = int((view.times[view.stage == 0] >= min(starts)).sum())
        if late:
            leaks.append(f"{late} training events of view {name!r} lie after the first evaluation target")
    late = int((store.targets("train").time >= min(starts)).sum())
    if late:
        leaks.append(f"{late} training targets lie after the first evaluation target")
    return leaks
