"""The steps of preparing a store from events that do not fit in memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvrec.data._pandas import pd
from lightning_mvrec.data.build import side_ids, write_fields
from lightning_mvrec.data.build_targets import check_counts, count_targets, pair_columns
from lightning_mvrec.data.content import content_by_row
from lightning_mvrec.data.engines.base import Engine, Ids, Ordered
from lightning_mvrec.data.events import clean_ids
from lightning_mvrec.data.settings import Settings, check_settings, real_times
from lightning_mvrec.data.sources.base import RawData
from lightning_mvrec.data.split import Split
from lightning_mvrec.data.store import StoreWriter
from lightning_mvrec.data.stream.assign import Assigned, assign
from lightning_mvrec.data.stream.chunks import Histories
from lightning_mvrec.data.stream.finish import renumber, transform_of, write_event_fields
from lightning_mvrec.data.stream.ordered import write_ordered
from lightning_mvrec.data.stream.state import OrderedState
from lightning_mvrec.data.stream.times import candidate_times
from lightning_mvrec.data.summary import ViewCounts, summarise
from lightning_mvrec.data.vocab import Vocabulary
from lightning_mvrec.schema import Schema


def build_stream(
    settings: Settings, root: str | None, engine: Engine, store: Path, folder: Path, bar: Any
) -> StoreWriter:
    """Fill ``store``; ``folder`` holds what goes away afterwards. A first pass that is complete there is not repeated.

    Args:
        settings: What was asked for.
        root: Folder of the source's files.
        engine: What sorts.
        store: Folder of the store.
        folder: Folder of the raw fields and of the engine.
        bar: A progress bar; its total becomes known with the number of events.

    Raises:
        ValueError: If the data or the settings are faulty; names the place.
    """
    check_by_user(settings)
    bar.set_postfix_str("reading")
    raw = settings.source.beside(root)
    writer = StoreWriter(store)
    state = OrderedState.load(store, folder)
    passes = 3 if type(settings.split).for_chunks is not Split.for_chunks else 2
    if state is None:
        for path in (store, folder):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        state = _order(settings, root, engine, writer, raw, folder, bar, passes)
    else:
        writer.sizes.update(state.sizes)
        bar.total = passes * state.events
        bar.update(state.events)
    raw.views = state.frames()
    histories = Histories.of(store, folder, state.views, len(state.users), settings)
    bar.set_postfix_str("splitting")
    threads = engine.num_threads
    times = candidate_times(histories, settings, folder, threads, bar.update) if passes == 3 else np.zeros(0)
    split = settings.split.for_chunks(times)
    found = assign(writer, histories, settings, raw, split, len(state.items), threads, bar.update)
    bar.set_postfix_str("writing")
    _finish(writer, folder, settings, raw, state, histories, found, threads)
    return writer


def check_by_user(settings: Settings) -> None:
    """Check that the rules can be applied to some users at a time.

    Raises:
        ValueError: If the split or the target filter needs all users at once.
    """
    if type(settings.split).for_chunks is Split.for_chunks:
        settings.split.for_chunks(())
    if not settings.target_filter.by_user:
        raise ValueError(
            f"target_filter {type(settings.target_filter).__name__} must decide about each user by that user's events "
            "alone (by_user = True) for an engine to apply it to data larger than memory"
        )


def _order(
    settings: Settings,
    root: str | None,
    engine: Engine,
    writer: StoreWriter,
    raw: RawData,
    folder: Path,
    bar: Any,
    passes: int,
) -> OrderedState:
    ids = {column: Ids(*side_ids(raw, column)) for column in ("user", "item")}
    parts = settings.source.parts(root)
    own = folder / "engine"
    own.mkdir()
    ordered = engine.open(parts, ids["user"], ids["item"], own)
    try:
        state = OrderedState.of(ordered)
        raw.views = state.frames()
        check_settings(settings, raw, list(raw.views))
        _check_views(settings, ordered)
        bar.total = passes * state.events
        bar.set_postfix_str("sorting")
        state.views = write_ordered(writer, folder, ordered, settings.deduplicate, bar.update)
    finally:
        ordered.close()
        shutil.rmtree(own, ignore_errors=True)
    writer.json_list("user_ids.json", state.users)
    state.sizes = dict(writer.sizes)
    state.save(writer.path, folder)
    return state


def _check_views(settings: Settings, ordered: Ordered) -> None:
    for name, columns in ordered.views.items():
        if not columns.has_times and len(ordered.views) > 1:
            raise ValueError(f"view {name!r} must have columns user, item, time: time is missing")
        for field in columns.numeric:
            transform_of(settings, name, field)


def _finish(
    writer: StoreWriter,
    folder: Path,
    settings: Settings,
    raw: RawData,
    state: OrderedState,
    histories: Histories,
    found: Assigned,
    threads: int,
) -> None:
    ids = pd.Index(state.items)
    if raw.items is not None:
        found.ranked[ids.get_indexer(pd.Index(clean_ids("items", "item", raw.items["item"])))] = True
    renumber(writer.path, folder, list(state.views), found)
    items = state.items[found.ranked]
    writer.array("popularity", np.concatenate([[0], found.popularity[found.ranked]]))
    writer.array("user_trained", np.concatenate([[False], found.trained]))
    values: dict[str, list[Any]] = {}
    item_of = Vocabulary(items)
    user_of = Vocabulary(state.users if raw.users is not None or raw.held_out is not None else [])
    schema = Schema(
        views=write_event_fields(writer, histories, settings, found, values, threads),
        num_items=len(items) + 1,
        num_users=len(state.users) + 1,
        targets=tuple(settings.targets),
        item_fields=write_fields(writer, "item", raw.items, item_of, raw.text, values),
        user_fields=write_fields(writer, "user", raw.users, user_of, (), values),
        has_times=real_times(raw),
        label=settings.label.kind if settings.label else "implicit",
        content_dim=settings.content.width if settings.content else 0,
    )
    if settings.content:
        writer.array("content", content_by_row(settings.content, raw, item_of))
    if settings.split.needs_pairs:
        count_UV = np.stack([np.diff(offsets) for offsets in histories.offsets.values()], 1)
        columns = pair_columns(settings, raw, user_of, item_of, count_UV, found.last)
        found.counts["test"] = count_targets(columns)
        for name, value in columns.items():
            writer.array(f"targets/test/{name}", value)
    check_counts(found.counts, settings.split)
    writer.schema(schema)
    writer.json_list("item_ids.json", items)
    writer.json("field_values.json", values)
    views = {
        name: ViewCounts(view.events, view.users, view.items, view.removed, view.missing)
        for name, view in state.views.items()
    }
    writer.finish(
        summary=summarise(schema, views, found.note, found.counts),
        note=found.note,
        counts=found.counts,
        clean_in_time=settings.split.clean_in_time,
    )
