"""Second pass: which events train, validate and test, and the targets, some users at a time.

N events of one view, n targets, U users, V views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_mvrec.data.build_targets import TYPES, count_targets, stage_columns
from lightning_mvrec.data.moments import Moments, RunningMoments
from lightning_mvrec.data.settings import Settings
from lightning_mvrec.data.sources.base import RawData
from lightning_mvrec.data.split import STAGES, Split, gather_candidates
from lightning_mvrec.data.store import StoreWriter
from lightning_mvrec.data.stream.chunks import Chunk, Histories, in_order
from lightning_mvrec.data.vocab import Vocabulary
from lightning_mvrec.data.work import Work


@dataclass
class Assigned:
    """What the second pass found out.

    Args:
        note: The split's sentence.
        counts: Targets by stage.
        ranked: ``(I,)`` items that can be ranked, by number.
        popularity: ``(I,)`` training events of each item.
        trained: ``(U,)`` users with a training event.
        last: ``(U,)`` time of each user's last event, 0 without any.
        moments: Of the training events, by view and numeric field.
        missing: Whether any value is missing, by view and numeric field.
        known: Which categories occur in training, by view and categorical field.
    """

    note: str
    counts: dict[str, dict[str, int]]
    ranked: np.ndarray
    popularity: np.ndarray
    trained: np.ndarray
    last: np.ndarray
    moments: dict[tuple[str, str], Moments] = field(default_factory=dict)
    missing: dict[tuple[str, str], bool] = field(default_factory=dict)
    known: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)


@dataclass
class _Part:
    """What one chunk gives."""

    stages: list[np.ndarray]
    targets: dict[str, dict[str, np.ndarray]]
    catalogue: list[np.ndarray]
    popular: list[tuple[np.ndarray, np.ndarray]]
    trained: np.ndarray
    last: np.ndarray
    note: str
    numeric: dict[tuple[str, str], tuple[np.ndarray, bool]]
    categories: dict[tuple[str, str], np.ndarray]


def assign(
    writer: StoreWriter,
    histories: Histories,
    settings: Settings,
    raw: RawData,
    split: Split,
    num_items: int,
    threads: int,
    advance: Callable[[int], Any],
) -> Assigned:
    """Write the stage of every event and the targets of every stage; target items are numbers + 1.

    Args:
        writer: Of the store.
        histories: What the first pass left.
        settings: What was asked for.
        raw: What the source gave beside the events.
        split: Made for chunks.
        num_items: Items with a number.
        threads: Chunks that are worked on at a time.
        advance: Called with the number of events after each chunk.
    """
    names = list(histories.views)
    found = Assigned(
        note="",
        counts={stage: {"targets": 0, "users": 0, "unknown": 0} for stage in STAGES},
        ranked=np.zeros(num_items, dtype=bool),
        popularity=np.zeros(num_items, dtype=np.int64),
        trained=np.zeros(histories.num_users, dtype=bool),
        last=np.zeros(histories.num_users, dtype=np.int64),
        known={
            (name, field_name): np.zeros(len(values), dtype=bool)
            for name, view in histories.views.items()
            for field_name, values in view.categories.items()
        },
    )
    stages = [writer.appended(f"views/{name}/stage", np.int8) for name in names]
    targets = {
        stage: {
            name: writer.appended(f"targets/{stage}/{name}", type_, (len(names),) if name == "asof" else ())
            for name, type_ in TYPES.items()
        }
        for stage in STAGES
    }
    sums = {(name, field_name): RunningMoments() for name in names for field_name in histories.numeric(name)}
    found.missing = dict.fromkeys(sums, False)
    numbers = np.arange(1, num_items + 1)

    def work(chunk: Chunk) -> _Part:
        return _work(histories, settings, raw, split, numbers, chunk)

    for chunk, part in in_order(work, histories.chunks(), threads):
        found.note = part.note
        for file, stage in zip(stages, part.stages, strict=True):
            file.append(stage)
        for stage_name, columns in part.targets.items():
            for name, file in targets[stage_name].items():
                file.append(columns[name])
            for name, number in count_targets(columns).items():
                found.counts[stage_name][name] += number
        for items in part.catalogue:
            found.ranked[items] = True
        for items, count in part.popular:
            found.popularity[items] += count
        found.trained[chunk[0] : chunk[1]] = part.trained
        found.last[chunk[0] : chunk[1]] = part.last
        for key, (known, missing) in part.numeric.items():
            sums[key].add(known)
            found.missing[key] |= missing
        for key, codes in part.categories.items():
            found.known[key][codes] = True
        advance(histories.events(chunk))
    writer.close(*stages, *(file for columns in targets.values() for file in columns.values()))
    found.moments = {key: running.result() for key, running in sums.items()}
    return found


def _work(
    histories: Histories, settings: Settings, raw: RawData, split: Split, numbers: np.ndarray, chunk: Chunk
) -> _Part:
    names = list(histories.views)
    label = settings.label.field if settings.label else None
    # A label is read from every numeric field of its name, so that a wrong one is refused with the names there are.
    read = {name: histories.numeric(name) if label else () for name in settings.targets}
    views = [histories.history(name, chunk, read.get(name, ())) for name in names]
    chosen = [names.index(name) for name in settings.targets]
    candidates = gather_candidates(views, settings.target_filter.eligible(views, chosen))
    assignment = split.assign(views, candidates)
    work = Work(
        settings=settings,
        raw=raw,
        names=names,
        histories=views,
        candidates=candidates,
        assignment=assignment,
        row_of_item=numbers,
        users=Vocabulary([]),
        items=Vocabulary([]),
        first_user=chunk[0],
    )
    trained = np.zeros(chunk[1] - chunk[0], dtype=bool)
    last = np.zeros(chunk[1] - chunk[0], dtype=np.int64)
    popular, numeric, categories = [], {}, {}
    for name, history, stage in zip(names, views, assignment.events, strict=True):
        train = stage == 0
        all_train = bool(train.all())
        count = np.bincount(history.item if all_train else history.item[train], minlength=1)
        items = np.flatnonzero(count)
        popular.append((items, count[items]))
        trained[history.user if all_train else history.user[train]] = True
        has = np.flatnonzero(np.diff(history.offsets))
        last[has] = np.maximum(last[has], history.time[history.offsets[has + 1] - 1])
        for field_name in histories.numeric(name):
            value = history.fields.get(field_name)
            value = histories.field(name, field_name, chunk) if value is None else value
            absent = np.isnan(value)
            numeric[name, field_name] = value[train & ~absent], bool(absent.any())
        for field_name in histories.views[name].categories:
            codes = np.unique(histories.field(name, field_name, chunk)[train])
            categories[name, field_name] = codes[codes >= 0]
    return _Part(
        stages=[stage.astype(np.int8, copy=False) for stage in assignment.events],
        targets=stage_columns(work),
        catalogue=[
            np.flatnonzero(np.bincount(history.item if mask.all() else history.item[mask], minlength=1))
            for history, mask in zip(views, assignment.catalogue, strict=True)
        ],
        popular=popular,
        trained=trained,
        last=last,
        note=assignment.note,
        numeric=numeric,
        categories=categories,
    )
