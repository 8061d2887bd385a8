"""What an engine promises: the events of every view, numbered and in order, a block at a time.

n events of one block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lightning_mvrec.data.events import check_one_type
from lightning_mvrec.data.sources.parts import ViewParts


@dataclass
class ViewColumns:
    """What the events of a view have.

    Args:
        events: How many there are, duplicates included.
        has_times: Whether they have a time.
        numeric: Names of the numeric fields.
        categories: Distinct values of each categorical field, ascending.
    """

    events: int
    has_times: bool
    numeric: list[str] = field(default_factory=list)
    categories: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Block:
    """Events in (user, time, row) order; a user may go on in the next block.

    Args:
        user, item: ``(n,)`` numbers from 0, in the order of the raw ids.
        time: ``(n,)`` int64 seconds, or None where the view has no times.
        fields: ``(n,)`` each: float64 with NaN where missing, or int32 numbers of categories with -1 where missing.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray | None
    fields: dict[str, np.ndarray]


@dataclass
class Ids:
    """Raw ids that do not come from events.

    Args:
        parts: All of them, by where they are, for messages.
        known: Those that get a number.
    """

    parts: dict[str, np.ndarray]
    known: list[np.ndarray]


class Ordered:
    """Events that an engine has numbered and can give in order.

    Args:
        views: By name.
        users: Distinct raw user ids, ascending: int64 or strings. Number ``i`` is ``users[i]``.
        items: Distinct raw item ids, likewise.
    """

    def __init__(self, views: dict[str, ViewColumns], users: np.ndarray, items: np.ndarray) -> None:
        self.views = views
        self.users = users
        self.items = items

    def blocks(self, view: str) -> Iterator[Block]:
        """Sort one view's events and yield them."""
        raise TypeError(f"{type(self).__name__} must define blocks(view)")

    def close(self) -> None:
        """Free what the engine holds."""


class Engine:
    """Sorts, joins and numbers events that do not fit in memory.

    The store is the same whichever engine made it, so engines do not enter the name of a store.

    Args:
        threads: Threads to use, above 0; as many as this process may run on by default.

    Raises:
        ValueError: If ``threads`` is not above 0.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be above 0, got {threads}")
        self.threads = threads

    @property
    def num_threads(self) -> int:
        """Threads that are used."""
        return self.threads or len(os.sched_getaffinity(0))

    def open(self, views: dict[str, ViewParts], users: Ids, items: Ids, folder: Path) -> Ordered:
        """Read what the views have and number users and items.

        Args:
            views: Where the events of each view lie.
            users: User ids besides those of the events.
            items: Item ids besides those of the events.
            folder: An empty folder for the engine's own files; the caller removes it.

        Raises:
            ValueError: If the events are faulty; names the view, the column and the file.
        """
        raise TypeError(f"{type(self).__name__} must define open(views, users, items, folder)")


def merge_ids(column: str, found: dict[str, np.ndarray], aside: Ids) -> np.ndarray:
    """Return all distinct ids, ascending.

    Args:
        column: ``"user"`` or ``"item"``, for the message.
        found: Distinct ids of the events, by where they are.
        aside: The other ids.

    Raises:
        ValueError: If some are integers and some are strings.
    """
    check_one_type(column, {**found, **aside.parts})
    joined = np.concatenate([*found.values(), *aside.known])
    return np.unique(joined) if joined.dtype != object else np.array(sorted(set(joined)), dtype=object)
