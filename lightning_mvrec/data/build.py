"""The steps of preparing a store: read, clean, order, split, number, write.

N events of one view, U users.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_mvrec.data._pandas import pd
from lightning_mvrec.data.build_targets import write_targets
from lightning_mvrec.data.content import content_by_row
from lightning_mvrec.data.events import CleanView, check_one_type, clean_ids, clean_view, encode_field
from lightning_mvrec.data.histories import History, build_history
from lightning_mvrec.data.settings import Settings, check_settings, real_times
from lightning_mvrec.data.sources.base import RawData
from lightning_mvrec.data.split import Assignment, gather_candidates
from lightning_mvrec.data.store import StoreWriter
from lightning_mvrec.data.summary import ViewCounts, summarise
from lightning_mvrec.data.transforms import Standardise
from lightning_mvrec.data.vocab import Vocabulary
from lightning_mvrec.data.work import Work
from lightning_mvrec.schema import Field, Schema, View

STEPS = 6


def build(settings: Settings, root: str | None, writer: StoreWriter, bar: Any) -> None:
    """Fill a store; ``bar`` advances by :data:`STEPS`.

    Raises:
        ValueError: If the data or the settings are faulty; names the place.
    """
    bar.set_postfix_str("reading")
    raw = settings.source.load(root)
    bar.update()
    names = list(raw.views)
    check_settings(settings, raw, names)
    bar.set_postfix_str("cleaning")
    clean = {
        name: clean_view(name, frame, len(names) == 1, settings.deduplicate, raw.origin.get(name))
        for name, frame in raw.views.items()
    }
    bar.update()
    bar.set_postfix_str("ordering")
    users, items = _numbers(raw, clean, "user"), _numbers(raw, clean, "item")
    user_of, item_of = Vocabulary(users), Vocabulary(items)
    histories = [_history(view, user_of, item_of, len(users)) for view in clean.values()]
    bar.update()
    bar.set_postfix_str("splitting")
    targets = [names.index(name) for name in settings.targets]
    candidates = gather_candidates(histories, settings.target_filter.eligible(histories, targets))
    assignment = settings.split.assign(histories, candidates)
    bar.update()
    bar.set_postfix_str("writing")
    ranked = _catalogue(raw, histories, assignment, item_of)
    work = Work(
        settings=settings,
        raw=raw,
        names=names,
        histories=histories,
        candidates=candidates,
        assignment=assignment,
        row_of_item=np.where(ranked, np.cumsum(ranked), 0),
        users=user_of,
        items=Vocabulary(items[ranked]),
    )
    values: dict[str, list[Any]] = {}
    schema = Schema(
        views=_write_views(writer, work, values),
        num_items=len(work.items),
        num_users=len(work.users),
        targets=tuple(settings.targets),
        item_fields=write_fields(writer, "item", raw.items, work.items, raw.text, values),
        user_fields=write_fields(writer, "user", raw.users, work.users, (), values),
        has_times=real_times(raw),
        label=settings.label.kind if settings.label else "implicit",
        content_dim=settings.content.width if settings.content else 0,
    )
    _write_known(writer, work)
    if settings.content:
        writer.array("content", content_by_row(settings.content, raw, work.items))
    counts = write_targets(writer, work)
    bar.update()
    writer.schema(schema)
    writer.json("user_ids.json", work.users.ids)
    writer.json("item_ids.json", work.items.ids)
    writer.json("field_values.json", values)
    writer.finish(
        summary=summarise(schema, {name: ViewCounts.of(view) for name, view in clean.items()}, assignment.note, counts),
        note=assignment.note,
        counts=counts,
        clean_in_time=settings.split.clean_in_time,
    )
    bar.update()


def _catalogue(raw: RawData, histories: list[History], assignment: Assignment, item_of: Vocabulary) -> np.ndarray:
    """Return which items can be ranked: those of the training events and those of the item file."""
    ranked = np.zeros(len(item_of) - 1, dtype=bool)
    for history, mask in zip(histories, assignment.catalogue, strict=True):
        ranked[history.item[mask]] = True
    if raw.items is not None:
        ranked[item_of.rows(clean_ids("items", "item", raw.items["item"])) - 1] = True
    return ranked


def _numbers(raw: RawData, clean: dict[str, CleanView], column: str) -> np.ndarray:
    """Return the distinct raw ids of all frames, ascending: number ``i`` is ``ids[i]``."""
    parts = {f"view {name!r}": getattr(view, column) for name, view in clean.items()}
    aside, known = side_ids(raw, column)
    check_one_type(column, {**parts, **aside})
    joined = np.concatenate([*parts.values(), *known])
    return np.sort(pd.unique(joined)) if joined.dtype != object else np.array(sorted(set(joined)), dtype=object)


def side_ids(raw: RawData, column: str) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Return the raw ids beside the events: all, by where they are, and those that get a number."""
    parts, known = {}, []
    for where, frame in ((f"{column}s", raw.items if column == "item" else raw.users), ("held_out", raw.held_out)):
        if frame is None:
            continue
        if column not in frame.columns:
            raise ValueError(f"{where} must have a column {column!r}, it has {', '.join(map(str, frame.columns))}")
        parts[where] = clean_ids(where, column, frame[column])
        # A held-out item is only a test target: nothing makes it part of the catalogue.
        if where != "held_out" or column == "user":
            known.append(parts[where])
    return parts, known


def _history(view: CleanView, user_of: Vocabulary, item_of: Vocabulary, num_users: int) -> History:
    fields: dict[str, np.ndarray] = {**view.numeric, **view.categorical}
    return build_history(user_of.rows(view.user) - 1, item_of.rows(view.item) - 1, view.time, fields, num_users)


def _write_views(writer: StoreWriter, work: Work, values: dict[str, list[Any]]) -> tuple[View, ...]:
    views = []
    for name, history, stage in zip(work.names, work.histories, work.assignment.events, strict=True):
        base = f"views/{name}"
        writer.array(f"{base}/items", work.row_of_item[history.item].astype(np.int32))
        writer.array(f"{base}/times", history.time.astype(np.int64))
        # User row 0 is "unknown" and owns nothing.
        writer.array(f"{base}/offsets", np.concatenate([[0], history.offsets]).astype(np.int64))
        writer.array(f"{base}/stage", stage.astype(np.int8))
        views.append(View(name, fields=_write_event_fields(writer, work.settings, name, history, stage == 0, values)))
    return tuple(views)


def _write_event_fields(
    writer: StoreWriter,
    settings: Settings,
    name: str,
    history: History,
    train: np.ndarray,
    values: dict[str, list[Any]],
) -> tuple[Field, ...]:
    base = f"views/{name}/field"
    fields = []
    for field, column in _event_fields(settings, name, history).items():
        if column.dtype != object:
            transform = settings.transforms.get(f"{name}.{field}") or settings.transforms.get(field) or Standardise()
            writer.array(f"{base}_{field}", transform.apply(column, history.offsets, train).astype(np.float32))
            fields.append(Field(field, "numeric"))
            missing = np.isnan(column)
            if missing.any():
                writer.array(f"{base}_{field}_missing", missing.astype(np.float32))
                fields.append(Field(f"{field}_missing", "numeric"))
        else:
            known = sorted({str(value) for value in column[train] if value is not None})
            text = pd.Index([None if value is None else str(value) for value in column], dtype=object)
            writer.array(f"{base}_{field}", (pd.Index(known, dtype=object).get_indexer(text) + 1).astype(np.int32))
            fields.append(Field(field, "categorical", len(known) + 1))
            values[f"{name}_{field}"] = [None, *known]
    return tuple(fields)


def _event_fields(settings: Settings, name: str, history: History) -> dict[str, np.ndarray]:
    fields = dict(history.fields)
    if "time" in settings.transforms or f"{name}.time" in settings.transforms:
        fields["time"] = history.time.astype(np.float64)
    return fields


def _write_known(writer: StoreWriter, work: Work) -> None:
    popularity = np.zeros(len(work.items), dtype=np.int64)
    trained = np.zeros(len(work.users), dtype=bool)
    for history, stage in zip(work.histories, work.assignment.events, strict=True):
        train = stage == 0
        popularity += np.bincount(work.row_of_item[history.item[train]], minlength=len(popularity))
        trained[history.user[train] + 1] = True
    popularity[0] = 0
    writer.array("popularity", popularity)
    writer.array("user_trained", trained)


def write_fields(
    writer: StoreWriter,
    owner: str,
    frame: pd.DataFrame | None,
    rows: Vocabulary,
    text: tuple[str, ...],
    values: dict[str, list[Any]],
) -> tuple[Field, ...]:
    """Write the fields of items or users, and the text of items.

    Args:
        writer: Of the store.
        owner: ``"item"`` or ``"user"``.
        frame: The items or users, or None.
        rows: Raw id <-> row of the owners.
        text: Columns kept as text.
        values: Takes the raw values by field.
    """
    fields = []
    if frame is not None:
        row = rows.rows(clean_ids(f"{owner}s", owner, frame[owner]))
        for name in frame.columns:
            if name == owner or name in text:
                continue
            encoded = encode_field(frame[name], row, len(rows))
            writer.array(f"{owner}s/{name}/values", encoded.values)
            writer.array(f"{owner}s/{name}/offsets", encoded.offsets)
            values[f"{owner}_{name}"] = encoded.known
            fields.append(Field(name, "multi_hot" if encoded.kind == "multi_hot" else "categorical", encoded.size))
    if owner == "item":
        titles: dict[str, list[str | None]] = {}
        for name in text:
            by_row: list[str | None] = [None] * len(rows)
            if frame is not None:
                for number, title in zip(row, frame[name], strict=True):
                    by_row[number] = title if isinstance(title, str) and number else by_row[number]
            titles[name] = by_row
        writer.json("item_text.json", titles)
    return tuple(fields)
