"""Source -> store, once: clean, split, number, write beside, rename.

N events of one view, U users, V views, n candidate targets.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from lightning_mvrec.data.events import CleanView, clean_ids, clean_view, encode_field
from lightning_mvrec.data.filters import AllTargets, TargetFilter
from lightning_mvrec.data.fingerprint import fingerprint
from lightning_mvrec.data.histories import History, build_history
from lightning_mvrec.data.labels import Label
from lightning_mvrec.data.sources.base import RawData, Source
from lightning_mvrec.data.split import STAGES, Assignment, Candidates, GlobalTimeSplit, Split, gather_candidates
from lightning_mvrec.data.store import FORMAT, MANIFEST, Store, StoreWriter
from lightning_mvrec.data.summary import summarise
from lightning_mvrec.data.transforms import Standardise, Transform
from lightning_mvrec.data.vocab import Vocabulary
from lightning_mvrec.schema import Field, Schema, View


@dataclass
class Settings:
    """Everything besides the files that decides what a store holds; see :func:`prepare`."""

    source: Source
    targets: list[str]
    split: Split
    target_filter: TargetFilter
    label: Label | None
    transforms: dict[str, Transform]
    deduplicate: bool


def make_settings(
    source: Source,
    targets: list[str],
    split: Split | None = None,
    target_filter: TargetFilter | None = None,
    label: Label | None = None,
    transforms: dict[str, Transform] | None = None,
    deduplicate: bool = True,
) -> Settings:
    """Return settings with the defaults filled in."""
    return Settings(
        source,
        list(targets),
        split or GlobalTimeSplit(),
        target_filter or AllTargets(),
        label,
        dict(transforms or {}),
        deduplicate,
    )


def prepare(
    source: Source,
    root: str | None = None,
    *,
    targets: list[str],
    split: Split | None = None,
    target_filter: TargetFilter | None = None,
    label: Label | None = None,
    transforms: dict[str, Transform] | None = None,
    deduplicate: bool = True,
    store_dir: str | os.PathLike[str] = ".mvrec",
    progress: bool = True,
) -> Store:
    """Prepare a source, or find the store that the same files and settings gave before.

    Args:
        source: Where the events come from.
        root: Folder of the source's files.
        targets: Views whose events are predicted.
        split: What trains, validates and tests; a global time split 80/10/10 by default.
        target_filter: Which events of the target views may be targets; all by default.
        label: What a target's label is; None for implicit feedback.
        transforms: How numeric event fields are normalised, by ``"<field>"`` or ``"<view>.<field>"``; standardised by
            default. ``"time"`` (or ``"<view>.time"``) adds the event's time as a numeric field of that name.
        deduplicate: Whether events equal in user, item and time are kept once in each view.
        store_dir: Folder of the stores; each is named by source and content.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If the data or the settings are faulty; names the place. Earlier stores stay as they are.
    """
    settings = make_settings(source, targets, split, target_filter, label, transforms, deduplicate)
    path = store_path(settings, root, store_dir)
    if (path / MANIFEST).is_file():
        return Store(path)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with tqdm(total=6, desc=f"prepare {path.name}", disable=not progress, unit="step") as bar:
            _write(settings, root, StoreWriter(part), bar)
        try:
            part.rename(path)
        except OSError:
            # Another process finished the same store first: it holds the same bytes.
            if not (path / MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Store(path)


def store_path(settings: Settings, root: str | None, store_dir: str | os.PathLike[str]) -> Path:
    """Return the folder of the store that these files and settings give."""
    folder = Path(store_dir)
    files = settings.source.files(root)
    digest = fingerprint([FORMAT, settings], files, folder / "hashes.json")
    return folder / f"{settings.source.folder or type(settings.source).__name__.lower()}-{digest}"


def _write(settings: Settings, root: str | None, writer: StoreWriter, bar: Any) -> None:
    bar.set_postfix_str("reading")
    raw = settings.source.load(root)
    bar.update()
    names = list(raw.views)
    _check(settings, raw, names)
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
    views = [names.index(name) for name in settings.targets]
    candidates = gather_candidates(histories, settings.target_filter.eligible(histories, views))
    assignment = settings.split.assign(histories, candidates)
    bar.update()
    bar.set_postfix_str("writing")
    # The catalogue: items of the training events (or of all that precede the tests), and of the item file.
    ranked = np.zeros(len(items), dtype=bool)
    for history, mask in zip(histories, assignment.catalogue, strict=True):
        ranked[history.item[mask]] = True
    if raw.items is not None:
        ranked[item_of.rows(clean_ids("items", "item", raw.items["item"])) - 1] = True
    row_of_item = np.where(ranked, np.cumsum(ranked), 0)
    num_items = int(ranked.sum()) + 1
    values: dict[str, list[Any]] = {}
    schema_views = _write_views(writer, settings, names, histories, assignment, row_of_item, values)
    _write_known(writer, histories, assignment, row_of_item, num_items, len(users) + 1)
    item_rows = Vocabulary(items[ranked])
    item_fields = _write_fields(writer, "item", raw.items, item_rows, raw.text, values)
    user_fields = _write_fields(writer, "user", raw.users, user_of, (), values)
    counts = _write_targets(
        writer, settings, raw, names, histories, candidates, assignment, row_of_item, user_of, item_rows
    )
    bar.update()
    writer.json("user_ids.json", user_of.ids)
    writer.json("item_ids.json", item_rows.ids)
    writer.json("field_values.json", values)
    schema = Schema(
        views=schema_views,
        num_items=num_items,
        num_users=len(user_of),
        targets=tuple(settings.targets),
        item_fields=item_fields,
        user_fields=user_fields,
        has_times=raw.has_times,
        label=settings.label.kind if settings.label else "implicit",
    )
    writer.schema(schema)
    summary = summarise(schema, clean, assignment, counts)
    writer.finish(summary=summary, note=assignment.note, counts=counts)
    bar.update()


def _check(settings: Settings, raw: RawData, names: list[str]) -> None:
    if not settings.targets:
        raise ValueError(f"targets must name at least one view of {names}, got none")
    for name in settings.targets:
        if name not in names:
            raise ValueError(f"targets must be names of views {names}, got {name!r}")
    real_times = raw.has_times and all("time" in frame.columns for frame in raw.views.values())
    raw.has_times = real_times
    split = type(settings.split).__name__
    if settings.split.needs_times and not real_times:
        raise ValueError(f"split must not need times, because the source has none: got {split}; use LeaveOneOut")
    if settings.split.needs_pairs and raw.held_out is None:
        raise ValueError(f"split {split} needs held-out pairs, but the source gives none")
    for key in settings.transforms:
        view, _, field = key.rpartition(".")
        fields = {f for n in ([view] if view else names) if n in raw.views for f in raw.views[n].columns} | {"time"}
        if (view and view not in names) or field not in fields - {"user", "item"}:
            raise ValueError(f"transforms must name event fields or <view>.<field>, got {key!r}")


def _numbers(raw: RawData, clean: dict[str, CleanView], column: str) -> np.ndarray:
    """Return the distinct raw ids of all frames, ascending: number ``i`` is ``ids[i]``."""
    parts = {f"view {name!r}": getattr(view, column) for name, view in clean.items()}
    frame = raw.items if column == "item" else raw.users
    if frame is not None:
        parts[f"{column}s"] = clean_ids(f"{column}s", column, frame[column])
    if raw.held_out is not None and column == "user":
        parts["held_out"] = clean_ids("held_out", column, raw.held_out[column])
    (first, expected), *rest = ((where, values.dtype) for where, values in parts.items())
    for where, dtype in rest:
        if dtype != expected:
            raise ValueError(
                f"ids of column {column!r} must be of one type: {_type(expected)} in {first}, {_type(dtype)} in {where}"
            )
    joined = np.concatenate(list(parts.values()))
    return np.sort(pd.unique(joined)) if joined.dtype != object else np.array(sorted(set(joined)), dtype=object)


def _type(dtype: np.dtype) -> str:
    return "strings" if dtype.kind == "O" else "integers"


def _history(view: CleanView, user_of: Vocabulary, item_of: Vocabulary, num_users: int) -> History:
    fields: dict[str, np.ndarray] = {**view.numeric, **view.categorical}
    return build_history(user_of.rows(view.user) - 1, item_of.rows(view.item) - 1, view.time, fields, num_users)


def _write_views(
    writer: StoreWriter,
    settings: Settings,
    names: list[str],
    histories: list[History],
    assignment: Assignment,
    row_of_item: np.ndarray,
    values: dict[str, list[Any]],
) -> tuple[View, ...]:
    views = []
    for name, history, stage in zip(names, histories, assignment.events, strict=True):
        base = f"views/{name}"
        writer.array(f"{base}/items", row_of_item[history.item].astype(np.int32))
        writer.array(f"{base}/times", history.time.astype(np.int64))
        # User row 0 is "unknown" and owns nothing.
        writer.array(f"{base}/offsets", np.concatenate([[0], history.offsets]).astype(np.int64))
        writer.array(f"{base}/stage", stage.astype(np.int8))
        fields = []
        for field, column in _event_fields(settings, name, history).items():
            if column.dtype != object:
                transform = settings.transforms.get(f"{name}.{field}") or settings.transforms.get(field)
                missing = np.isnan(column)
                column_new = (transform or Standardise()).apply(column, history.offsets, stage == 0)
                writer.array(f"{base}/field_{field}", column_new.astype(np.float32))
                fields.append(Field(field, "numeric"))
                if missing.any():
                    writer.array(f"{base}/field_{field}_missing", missing.astype(np.float32))
                    fields.append(Field(f"{field}_missing", "numeric"))
            else:
                known = sorted({str(value) for value in column[stage == 0] if value is not None})
                text = pd.Index([None if value is None else str(value) for value in column], dtype=object)
                rows = pd.Index(known, dtype=object).get_indexer(text) + 1
                writer.array(f"{base}/field_{field}", rows.astype(np.int32))
                fields.append(Field(field, "categorical", len(known) + 1))
                values[f"{name}_{field}"] = [None, *known]
        views.append(View(name, fields=tuple(fields)))
    return tuple(views)


def _event_fields(settings: Settings, name: str, history: History) -> dict[str, np.ndarray]:
    fields = dict(history.fields)
    if "time" in settings.transforms or f"{name}.time" in settings.transforms:
        fields["time"] = history.time.astype(np.float64)
    return fields


def _write_known(
    writer: StoreWriter,
    histories: list[History],
    assignment: Assignment,
    row_of_item: np.ndarray,
    num_items: int,
    num_users: int,
) -> None:
    popularity = np.zeros(num_items, dtype=np.int64)
    trained = np.zeros(num_users, dtype=bool)
    for history, stage in zip(histories, assignment.events, strict=True):
        train = stage == 0
        popularity += np.bincount(row_of_item[history.item[train]], minlength=num_items)
        trained[history.user[train] + 1] = True
    popularity[0] = 0
    writer.array("popularity", popularity)
    writer.array("user_trained", trained)


def _write_fields(
    writer: StoreWriter,
    owner: str,
    frame: pd.DataFrame | None,
    rows: Vocabulary,
    text: tuple[str, ...],
    values: dict[str, list[Any]],
) -> tuple[Field, ...]:
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


def _write_targets(
    writer: StoreWriter,
    settings: Settings,
    raw: RawData,
    names: list[str],
    histories: list[History],
    candidates: Candidates,
    assignment: Assignment,
    row_of_item: np.ndarray,
    user_of: Vocabulary,
    item_rows: Vocabulary,
) -> dict[str, dict[str, int]]:
    label = _labels(settings, names, histories, candidates)
    counts = {}
    for number, stage in enumerate(STAGES):
        keep = np.flatnonzero(assignment.target == number)
        columns = {
            "user": candidates.user[keep] + 1,
            "item": row_of_item[candidates.item[keep]],
            "time": candidates.time[keep],
            "label": label[keep],
            "view": candidates.view[keep],
            "asof": candidates.asof[keep],
        }
        if stage == "test" and settings.split.needs_pairs:
            columns = _pairs(settings, raw, names, histories, user_of, item_rows)
        assert stage != "train" or (columns["item"] > 0).all()  # its event trains, so its item is in the catalogue
        counts[stage] = {
            "targets": len(columns["user"]),
            "users": len(np.unique(columns["user"])),
            "unknown": int((columns["item"] == 0).sum()),
        }
        columns["weight"] = np.ones(len(columns["user"]))
        types = {"label": np.float32, "weight": np.float32}
        for name, value in columns.items():
            writer.array(f"targets/{stage}/{name}", value.astype(types.get(name, np.int64)))
    if not counts["train"]["targets"]:
        raise ValueError(f"split {type(settings.split).__name__} leaves no training target")
    return counts


def _labels(settings: Settings, names: list[str], histories: list[History], candidates: Candidates) -> np.ndarray:
    label = np.ones(len(candidates.user), dtype=np.float32)
    if settings.label is None:
        return label
    for name in settings.targets:
        history = histories[names.index(name)]
        raw = history.fields.get(settings.label.field)
        if raw is None or raw.dtype == object:
            raise ValueError(
                f"label field must be a numeric field of target view {name!r}, got {settings.label.field!r}; "
                f"it has {sorted(f for f, v in history.fields.items() if v.dtype != object)}"
            )
        own = candidates.view == names.index(name)
        value = raw[history.offsets[candidates.user[own]] + candidates.index[own]]
        if np.isnan(value).any():
            raise ValueError(
                f"label field {settings.label.field!r} of view {name!r} must not be missing in a target: "
                f"{int(np.isnan(value).sum())} are"
            )
        label[own] = settings.label.values(value)
    return label


def _pairs(
    settings: Settings,
    raw: RawData,
    names: list[str],
    histories: list[History],
    user_of: Vocabulary,
    item_rows: Vocabulary,
) -> dict[str, np.ndarray]:
    """Return the held-out pairs as targets that come after everything of their user."""
    frame = raw.held_out
    assert frame is not None
    user = user_of.rows(clean_ids("held_out", "user", frame["user"]))
    item = item_rows.rows(clean_ids("held_out", "item", frame["item"]))
    view = frame["view"].tolist() if "view" in frame.columns else [settings.targets[0]] * len(frame)
    wrong = set(view) - set(names)
    if wrong:
        raise ValueError(f"held_out, column 'view' must name views {names}, got {sorted(wrong)}")
    asof = np.stack([np.diff(history.offsets)[user - 1] for history in histories], 1)
    last = np.zeros(len(user_of) - 1, dtype=np.int64)
    for history in histories:
        np.maximum.at(last, history.user, history.time)
    order = np.argsort(user, kind="stable")
    return {
        "user": user[order],
        "item": item[order],
        "time": last[user[order] - 1] + 1,
        "label": np.ones(len(user)),
        "view": np.array([names.index(name) for name in view], dtype=np.int64)[order],
        "asof": asof[order],
    }
