"""First pass: an engine's ordered events into arrays on disk.

N events of one view, U users.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvrec.data.appender import ArrayAppender
from lightning_mvrec.data.engines.base import Block, Ordered
from lightning_mvrec.data.events import duplicated
from lightning_mvrec.data.histories import run_starts
from lightning_mvrec.data.store import StoreWriter


@dataclass
class RawView:
    """One view on disk after the first pass; items are numbers + 1, fields raw.

    Args:
        numeric: Names of the numeric fields.
        categories: Distinct values of each categorical field, ascending.
        has_times: Whether the events have a time.
        events, users, items: How many there are after cleaning.
        removed: Duplicates removed.
        missing: Missing values by field, before that.
    """

    numeric: list[str]
    categories: dict[str, list[str]]
    has_times: bool
    events: int = 0
    users: int = 0
    items: int = 0
    removed: int = 0
    missing: dict[str, int] = field(default_factory=dict)

    @property
    def fields(self) -> list[str]:
        """Names of the fields, numeric ones first."""
        return [*self.numeric, *self.categories]


def raw_file(folder: Path, view: str, name: str) -> Path:
    """Return the file of a raw event field."""
    return folder / "raw" / view / f"{name}.npy"


def write_ordered(
    writer: StoreWriter,
    folder: Path,
    ordered: Ordered,
    deduplicate: bool,
    advance: Callable[[int], Any],
) -> dict[str, RawView]:
    """Write items, times and offsets of every view, and the raw fields beside.

    Args:
        writer: Of the store.
        folder: For the raw fields.
        ordered: The engine's events.
        deduplicate: Whether events equal in user, item and time are kept once.
        advance: Called with the number of events after each block.
    """
    return {name: _write_view(writer, folder, name, ordered, deduplicate, advance) for name in ordered.views}


def _write_view(
    writer: StoreWriter,
    folder: Path,
    name: str,
    ordered: Ordered,
    deduplicate: bool,
    advance: Callable[[int], Any],
) -> RawView:
    columns = ordered.views[name]
    view = RawView(columns.numeric, columns.categories, columns.has_times)
    items = writer.appended(f"views/{name}/items", np.int32)
    times = writer.appended(f"views/{name}/times", np.int64)
    fields = {
        field: ArrayAppender(raw_file(folder, name, field), np.float64 if field in view.numeric else np.int32)
        for field in view.fields
    }
    count_U = np.zeros(len(ordered.users), dtype=np.int64)
    seen = np.zeros(len(ordered.items), dtype=bool)
    for block in _whole_users(ordered.blocks(name)):
        events = len(block.user)
        for field_name, value in block.fields.items():
            missing = int((np.isnan(value) if field_name in view.numeric else value < 0).sum())
            # In the order of the columns, whichever block is the first to miss one.
            view.missing[field_name] = view.missing.get(field_name, 0) + missing
        if block.time is None:
            starts = run_starts(block.user)
            block.time = np.arange(events) - np.repeat(starts, np.diff(np.append(starts, events)))
        elif deduplicate:
            block = _without_duplicates(block)
            view.removed += events - len(block.user)
        first = int(block.user[0])
        counted = np.bincount(block.user - first)
        count_U[first : first + len(counted)] += counted
        seen[block.item] = True
        items.append(block.item + np.int32(1))
        assert block.time is not None
        times.append(block.time)
        for field_name, file in fields.items():
            file.append(block.fields[field_name])
        advance(events)
    writer.close(items, times)
    for file in fields.values():
        file.close()
    # User row 0 is "unknown" and owns nothing.
    writer.array(f"views/{name}/offsets", np.concatenate([[0, 0], np.cumsum(count_U)]))
    view.missing = {field_name: number for field_name, number in view.missing.items() if number}
    view.events, view.users, view.items = items.rows, int((count_U > 0).sum()), int(seen.sum())
    return view


def _whole_users(blocks: Iterator[Block]) -> Iterator[Block]:
    """Regroup blocks so that none ends inside a user's moment: duplicates then lie in one block.

    A user without times ends with the block, since their events are counted.
    """
    waiting: list[Block] = []
    for block in blocks:
        last = len(block.user) - 1
        same = block.user == block.user[last]
        if block.time is not None:
            same &= block.time == block.time[last]
        cut = int(same.argmax())  # where the last user or moment of this block begins
        begun = waiting and _goes_on(waiting[-1], block)
        if not begun and waiting:
            yield _join(waiting)
            waiting = []
        if cut > 0:
            yield _join([*waiting, _part(block, slice(0, cut))])
            waiting = []
        waiting.append(_part(block, slice(cut, None)))
    if waiting:
        yield _join(waiting)


def _goes_on(before: Block, block: Block) -> bool:
    if before.user[-1] != block.user[0]:
        return False
    return before.time is None or block.time is None or bool(before.time[-1] == block.time[0])


def _part(block: Block, rows: Any) -> Block:
    return Block(
        block.user[rows],
        block.item[rows],
        None if block.time is None else block.time[rows],
        {name: value[rows] for name, value in block.fields.items()},
    )


def _join(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    times = [block.time for block in blocks if block.time is not None]
    return Block(
        np.concatenate([block.user for block in blocks]),
        np.concatenate([block.item for block in blocks]),
        np.concatenate(times) if times else None,
        {name: np.concatenate([block.fields[name] for block in blocks]) for name in blocks[0].fields},
    )


def _without_duplicates(block: Block) -> Block:
    assert block.time is not None
    # Equal events are neighbours in (user, time), so only where two neighbours share both is there anything to compare.
    same = (block.user[1:] == block.user[:-1]) & (block.time[1:] == block.time[:-1])
    if not same.any():
        return block
    rows = np.flatnonzero(np.append(same, False) | np.append(False, same))
    again = rows[duplicated(block.user[rows], block.item[rows], block.time[rows])]
    if not len(again):
        return block
    keep = np.ones(len(block.user), dtype=bool)
    keep[again] = False
    return _part(block, keep)
