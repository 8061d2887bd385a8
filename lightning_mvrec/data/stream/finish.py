"""Third pass: rows of the catalogue instead of numbers, and fields as models read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvrec.data.appender import ArrayFile
from lightning_mvrec.data.settings import Settings
from lightning_mvrec.data.split import STAGES
from lightning_mvrec.data.store import StoreWriter
from lightning_mvrec.data.stream.assign import Assigned
from lightning_mvrec.data.stream.chunks import Histories, in_order
from lightning_mvrec.data.stream.state import begin_renumbering
from lightning_mvrec.data.transforms import Standardise, Transform
from lightning_mvrec.schema import Field, View

_ROWS = 1 << 20


def renumber(store: Path, folder: Path, names: list[str], found: Assigned) -> None:
    """Give the items of events and targets their rows; those outside the catalogue row 0."""
    if found.ranked.all():
        return  # number + 1 is the row
    begin_renumbering(folder)
    row = np.concatenate([[0], np.where(found.ranked, np.cumsum(found.ranked), 0)])
    for name in names:
        for rows in _rewrite(store / "views" / name / "items.npy", row):
            del rows
    for stage in STAGES:
        found.counts[stage]["unknown"] = sum(
            int((rows == 0).sum()) for rows in _rewrite(store / "targets" / stage / "item.npy", row)
        )


def _rewrite(path: Path, row: np.ndarray) -> Any:
    file = ArrayFile(path)
    for first in range(0, len(file), _ROWS):
        rows = row[file.read(first, min(first + _ROWS, len(file)))]
        file.write(first, rows)
        yield rows


def transform_of(settings: Settings, view: str, field: str) -> Transform:
    """Return how a numeric event field is normalised.

    Raises:
        ValueError: If it needs all training events at once.
    """
    transform = settings.transforms.get(f"{view}.{field}") or settings.transforms.get(field) or Standardise()
    if type(transform).scale is Transform.scale:
        raise ValueError(
            f"transform {type(transform).__name__} of {view}.{field} needs all training events at once, so an engine "
            "cannot apply it to data larger than memory: define scale(value_N, offsets, moments)"
        )
    return transform


def write_event_fields(
    writer: StoreWriter,
    histories: Histories,
    settings: Settings,
    found: Assigned,
    values: dict[str, list[Any]],
    threads: int,
) -> tuple[View, ...]:
    """Write the event fields of every view.

    Args:
        writer: Of the store.
        histories: What the first pass left.
        settings: What was asked for.
        found: What the second pass found out.
        values: Takes the raw values by field.
        threads: Chunks that are worked on at a time.
    """
    views = []
    for name, view in histories.views.items():
        fields: list[Field] = []
        numeric = histories.numeric(name)
        for field in [*view.numeric, *view.categories, *numeric[len(view.numeric) :]]:
            if field in numeric:
                fields += _write_numeric(writer, histories, settings, found, name, field, threads)
            else:
                fields.append(_write_categorical(writer, histories, found, name, field, values))
        views.append(View(name, fields=tuple(fields)))
    return tuple(views)


def _write_numeric(
    writer: StoreWriter,
    histories: Histories,
    settings: Settings,
    found: Assigned,
    name: str,
    field: str,
    threads: int,
) -> list[Field]:
    transform, moments = transform_of(settings, name, field), found.moments[name, field]
    missing = found.missing[name, field]
    file = writer.appended(f"views/{name}/field_{field}", np.float32)
    marks = writer.appended(f"views/{name}/field_{field}_missing", np.float32) if missing else None

    def work(chunk: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        value = histories.field(name, field, chunk)
        scaled = transform.scale(value, histories.local_offsets(name, chunk), moments)
        return scaled.astype(np.float32), np.isnan(value).astype(np.float32)

    for _, (scaled, absent) in in_order(work, histories.chunks(), threads):
        file.append(scaled)
        if marks:
            marks.append(absent)
    writer.close(file, *([marks] if marks else []))
    return [Field(field, "numeric"), *([Field(f"{field}_missing", "numeric")] if missing else [])]


def _write_categorical(
    writer: StoreWriter, histories: Histories, found: Assigned, name: str, field: str, values: dict[str, list[Any]]
) -> Field:
    seen = found.known[name, field]
    row = np.concatenate([np.where(seen, np.cumsum(seen), 0), [0]])  # the last one, at -1, for a missing value
    known = [value for value, trained in zip(histories.views[name].categories[field], seen, strict=True) if trained]
    file = writer.appended(f"views/{name}/field_{field}", np.int32)
    for chunk in histories.chunks():
        file.append(row[histories.field(name, field, chunk)])
    writer.close(file)
    values[f"{name}_{field}"] = [None, *known]
    return Field(field, "categorical", len(known) + 1)
