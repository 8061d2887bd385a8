"""Some whole users at a time: their histories from disk, in the form that the rules of data.prepare take.

N events of one view, U users.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from lightning_mvrec.data.appender import ArrayFile
from lightning_mvrec.data.histories import History
from lightning_mvrec.data.settings import Settings
from lightning_mvrec.data.stream.ordered import RawView, raw_file

# Events of all views in one chunk; a user with more is a chunk alone. Fixed, so that nothing depends on the machine.
CHUNK = 1 << 17

Chunk = tuple[int, int]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Histories:
    """The events that the first pass left, by ranges of users.

    Args:
        store: Folder of the store that is being made.
        folder: Folder of the raw fields.
        views: What the first pass left, by name.
        num_users: How many users there are.
        transforms: Names of the transforms: ``time`` among them is a field of the events.
    """

    def __init__(
        self, store: Path, folder: Path, views: dict[str, RawView], num_users: int, transforms: Iterable[str] = ()
    ) -> None:
        self.views = views
        self.num_users = num_users
        self._time_field = set(transforms)
        base = {name: store / "views" / name for name in views}
        self.offsets = {name: np.load(path / "offsets.npy")[1:] for name, path in base.items()}
        self.items = {name: ArrayFile(path / "items.npy") for name, path in base.items()}
        self.times = {name: ArrayFile(path / "times.npy") for name, path in base.items()}
        self.raw = {
            name: {field: ArrayFile(raw_file(folder, name, field)) for field in view.fields}
            for name, view in views.items()
        }

    @classmethod
    def of(cls, store: Path, folder: Path, views: dict[str, RawView], num_users: int, settings: Settings) -> Histories:
        """Return the histories with the fields that the settings ask for."""
        return cls(store, folder, views, num_users, settings.transforms)

    def chunks(self) -> list[Chunk]:
        """Cut all users into ranges of at most :data:`CHUNK` events."""
        before_U = np.sum(list(self.offsets.values()), axis=0)
        cuts, at = [], 0
        while at < self.num_users:
            end = int(np.searchsorted(before_U, before_U[at] + CHUNK, side="right")) - 1
            end = min(max(end, at + 1), self.num_users)
            cuts.append((at, end))
            at = end
        return cuts

    def events(self, chunk: Chunk) -> int:
        """How many events a chunk has."""
        return sum(int(offsets[chunk[1]] - offsets[chunk[0]]) for offsets in self.offsets.values())

    def range(self, name: str, chunk: Chunk) -> tuple[int, int]:
        """Where a chunk's events of one view lie."""
        return int(self.offsets[name][chunk[0]]), int(self.offsets[name][chunk[1]])

    def local_offsets(self, name: str, chunk: Chunk) -> np.ndarray:
        """``(U + 1,)`` of the chunk, from 0."""
        offsets = self.offsets[name][chunk[0] : chunk[1] + 1]
        return offsets - offsets[0]

    def field(self, name: str, field: str, chunk: Chunk) -> np.ndarray:
        """``(N,)`` raw values of one field."""
        if field == "time" and field not in self.raw[name]:
            return self.times[name].read(*self.range(name, chunk)).astype(np.float64)
        return self.raw[name][field].read(*self.range(name, chunk))

    def numeric(self, name: str) -> list[str]:
        """Names of the numeric fields of a view, that of the time included."""
        view = self.views[name]
        timed = "time" in self._time_field or f"{name}.time" in self._time_field
        return [*view.numeric, *(["time"] if timed else [])]

    def history(self, name: str, chunk: Chunk, fields: Iterable[str] = ()) -> History:
        """Return the chunk's history of one view; users are counted from the chunk's first."""
        offsets = self.local_offsets(name, chunk)
        where = self.range(name, chunk)
        return History(
            user=np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)),
            item=self.items[name].read(*where) - 1,
            time=self.times[name].read(*where),
            offsets=offsets,
            fields={field: self.field(name, field, chunk) for field in fields},
        )


def in_order(work: Callable[[_In], _Out], parts: Iterable[_In], threads: int) -> Iterator[tuple[_In, _Out]]:
    """Do the parts' work in threads and yield each part with its result, in order; few results wait at a time.

    Example:
        >>> list(in_order(lambda x: x * x, [1, 2, 3], threads=2))
        [(1, 1), (2, 4), (3, 9)]
    """
    if threads == 1:
        yield from ((part, work(part)) for part in parts)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[_In, object]] = deque()
        try:
            for part in parts:
                waiting.append((part, pool.submit(work, part)))
                if len(waiting) > threads:
                    done, future = waiting.popleft()
                    yield done, future.result()  # type: ignore[attr-defined]
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()  # type: ignore[attr-defined]
        finally:
            for _, future in waiting:
                future.cancel()  # type: ignore[attr-defined]
