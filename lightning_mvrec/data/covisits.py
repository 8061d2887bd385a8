"""Which items were met by one user within minutes: the item-item graph of co-visitation, kept apart by views.

N events, L links, I item-table rows, V views.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lightning_mvrec.data.histories import ranges, run_starts

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store

_COLUMNS = ("offsets", "item", "user", "source", "view")
_FORMAT = 3
ABSENT = np.float32(np.inf)


def near_pairs(owner: np.ndarray, time: np.ndarray, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the places ``(earlier, later)`` of all pairs of events of one owner that are at most ``window`` apart.

    Args:
        owner: ``(N,)``; one owner's events lie together.
        time: ``(N,)``, ascending within an owner.
        window: In the unit of the times; the bound itself is near.

    Example:
        >>> earlier, later = near_pairs(np.array([1, 1, 1, 2]), np.array([0, 3, 9, 9]), window=6)
        >>> list(zip(earlier.tolist(), later.tolist()))
        [(0, 1), (1, 2)]
    """
    parts = []
    step, earlier = 1, np.arange(len(owner))
    # Pairs of events that are 1, 2, ... places apart, until none is within the window.
    while len(earlier):
        earlier = earlier[earlier + step < len(owner)]
        later = earlier + step
        earlier = earlier[(owner[earlier] == owner[later]) & (time[later] - time[earlier] <= window)]
        parts.append((earlier, earlier + step))
        step += 1
    if not parts:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    first, second = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first, second


@dataclass
class CoVisits:
    """Ask for links between items that one user met within a window of time; the data module makes them once.

    Two items that one user met at most ``window`` seconds apart, in whatever views, are linked in either direction. A
    link knows when the user first met either item in each view, so that a model can read it as of the views it reads:
    first meetings in these alone. It remembers its user, whose own links are left out of that user's batches: otherwise
    every training target would be linked to its history by the very events that are to be predicted.

    Args:
        window: Seconds, above 0.
        max_links: Links that an item keeps, those of the smallest gaps; above 0.
        new_only: Whether items of a row's history are never its neighbours, as where targets are new to the user.
        whole_history: Whether a training target is linked to all of its user's other training events, also later ones,
            those of its own item left out: right where what is to be predicted may lie anywhere in the history, as the
            held-out pairs of :class:`~lightning_mvrec.data.GivenPairs`. Evaluation looks at what precedes its target.

    Raises:
        ValueError: If an argument is out of its range.
    """

    window: float = 1800.0
    max_links: int = 256
    new_only: bool = False
    whole_history: bool = False

    def __post_init__(self) -> None:
        if self.window <= 0:
            raise ValueError(f"window must be above 0 seconds, got {self.window}")
        if self.max_links < 1:
            raise ValueError(f"max_links must be above 0, got {self.max_links}")

    def graph(self, store: Store) -> CoVisitGraph:
        """Return the graph of a store's training events, made beside the store the first time.

        Raises:
            ValueError: If the data has no times.
        """
        if not store.schema.has_times:
            raise ValueError("covisits needs events with times, got data without")
        digest = hashlib.sha256(f"{_FORMAT} {self.window} {self.max_links}".encode()).hexdigest()[:16]
        path = store.path.with_name(f"{store.path.name}-covisits-{digest}")
        if not path.is_dir():
            part = path.with_name(f"{path.name}.part-{os.getpid()}")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            build_graph(store, self.window, self.max_links).save(part)
            try:
                part.rename(path)
            except OSError:
                # Another process made the same graph first.
                shutil.rmtree(part, ignore_errors=True)
        return CoVisitGraph.load(path)


@dataclass
class CoVisitGraph:
    """Links by item, nearest links first. Times are seconds from the first of a link's own, inf where there is none.

    Args:
        offsets: ``(I + 1,)`` int64: item ``i`` owns links ``offsets[i]:offsets[i + 1]``.
        item: ``(L,)`` int32, the neighbour.
        user: ``(L,)`` int32, who met both.
        source: ``(L, V)`` float32, when the user first met the item itself in each view.
        view: ``(L, V)`` float32, when the user first met the neighbour in each view.
    """

    offsets: np.ndarray
    item: np.ndarray
    user: np.ndarray
    source: np.ndarray
    view: np.ndarray

    def of(self, item: np.ndarray, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for each link of some items but those of the given users, its item's place and its own number.

        Args:
            item: ``(n,)`` item rows.
            user: ``(n,)`` whose links are left out for each.
        """
        count = self.offsets[item + 1] - self.offsets[item]
        link = ranges(self.offsets[item], count)
        place = np.repeat(np.arange(len(item)), count)
        others = self.user[link] != user[place]
        return place[others], link[others]

    def save(self, path: Path) -> None:
        """Write the arrays into a folder."""
        for name in _COLUMNS:
            np.save(path / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, path: Path) -> CoVisitGraph:
        """Map the arrays of a folder."""
        read = {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in _COLUMNS}
        # A plain ndarray on the mapped memory: indexing np.memmap costs a Python call each time.
        return cls(**{name: np.asarray(value) for name, value in read.items()})


def build_graph(store: Store, window: float, max_links: int) -> CoVisitGraph:
    """Link the training events (stage 0) of a store; see :class:`CoVisits`."""
    parts = []
    for number, name in enumerate(store.schema.view_names):
        view = store.view(name)
        kept = np.flatnonzero((view.stage == 0) & (view.items > 0))
        user = np.repeat(np.arange(len(view.offsets) - 1), np.diff(view.offsets))[kept]
        parts.append((user, view.items[kept], view.times[kept], np.full(len(kept), number)))
    user, item, time, view_of = (np.concatenate(column).astype(np.int64) for column in zip(*parts, strict=True))
    order = np.lexsort((view_of, time, user))
    user, item, time, view_of = user[order], item[order], time[order], view_of[order]
    # One row for each user and item: its first time in every view.
    size = store.schema.num_items
    known, pair = np.unique(user * size + item, return_inverse=True)
    first = np.full((len(known), len(store.schema.views)), np.iinfo(np.int64).max)
    np.minimum.at(first, (pair, view_of), time)
    earlier, later = near_pairs(user, time, window)
    different = item[earlier] != item[later]
    earlier, later = earlier[different], later[different]
    # A pair of items that one user met near each other several times is one link, of its smallest gap.
    ends = np.concatenate([pair[earlier] * len(known) + pair[later], pair[later] * len(known) + pair[earlier]])
    gap = np.tile(time[later] - time[earlier], 2)
    order = np.lexsort((gap, ends))
    ends, gap = ends[order], gap[order]
    one = run_starts(ends)
    start, other, gap = ends[one] // len(known), ends[one] % len(known), gap[one]
    order = np.lexsort((known[other], gap, known[start] % size))
    count = np.bincount(known[start] % size, minlength=size)
    order = order[np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count) < max_links]
    start, other = start[order], other[order]
    base = np.minimum(first[start].min(1), first[other].min(1))[:, None]
    return CoVisitGraph(
        offsets=np.concatenate([[0], np.cumsum(np.minimum(count, max_links))]),
        item=(known[other] % size).astype(np.int32),
        user=(known[other] // size).astype(np.int32),
        source=_since(first[start], base),
        view=_since(first[other], base),
    )


def _since(time: np.ndarray, base: np.ndarray) -> np.ndarray:
    return np.where(time == np.iinfo(np.int64).max, ABSENT, (time - base).astype(np.float32))
