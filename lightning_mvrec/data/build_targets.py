"""The targets of each stage, with labels, into a store.

n targets of one stage, U users, V views.
"""

from __future__ import annotations

import numpy as np

from lightning_mvrec.data.events import clean_ids
from lightning_mvrec.data.histories import run_starts
from lightning_mvrec.data.settings import Settings
from lightning_mvrec.data.sources.base import RawData
from lightning_mvrec.data.split import STAGES, Split
from lightning_mvrec.data.store import StoreWriter
from lightning_mvrec.data.vocab import Vocabulary
from lightning_mvrec.data.work import Work

TYPES: dict[str, type] = {
    **dict.fromkeys(("user", "item", "time", "view", "asof"), np.int64),
    **dict.fromkeys(("label", "weight"), np.float32),
}


def write_targets(writer: StoreWriter, work: Work) -> dict[str, dict[str, int]]:
    """Write the targets of the three stages and return how many there are.

    Raises:
        ValueError: If no target is left for training, or a label is missing.
    """
    counts = {}
    columns_of = stage_columns(work)
    for stage, columns in columns_of.items():
        if stage == "test" and work.settings.split.needs_pairs:
            columns = pair_columns(
                work.settings,
                work.raw,
                work.users,
                work.items,
                np.stack([np.diff(history.offsets) for history in work.histories], 1),
                _last_times(work),
            )
        counts[stage] = count_targets(columns)
        for name, value in columns.items():
            writer.array(f"targets/{stage}/{name}", value)
    check_counts(counts, work.settings.split)
    return counts


def stage_columns(work: Work) -> dict[str, dict[str, np.ndarray]]:
    """Return the targets by stage and column, as they are stored.

    Raises:
        ValueError: If a label is missing.
    """
    candidates = work.candidates
    label = _labels(work)
    stages = {}
    for number, stage in enumerate(STAGES):
        keep = np.flatnonzero(work.assignment.target == number)
        columns = {
            "user": candidates.user[keep] + 1 + work.first_user,
            "item": work.row_of_item[candidates.item[keep]],
            "time": candidates.time[keep],
            "label": label[keep],
            "view": candidates.view[keep],
            "asof": candidates.asof[keep],
            "weight": np.ones(len(keep)),
        }
        assert stage != "train" or (columns["item"] > 0).all()  # its event trains, so its item is in the catalogue
        stages[stage] = _typed(columns)
    return stages


def _typed(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(TYPES[name], copy=False) for name, value in columns.items()}


def count_targets(columns: dict[str, np.ndarray]) -> dict[str, int]:
    """Return the number of targets, of their users, and of those outside the catalogue."""
    return {
        "targets": len(columns["user"]),
        "users": len(run_starts(columns["user"])),
        "unknown": int((columns["item"] == 0).sum()),
    }


def check_counts(counts: dict[str, dict[str, int]], split: Split) -> None:
    """Check that something can be trained on.

    Raises:
        ValueError: If no target is left for training.
    """
    if not counts["train"]["targets"]:
        raise ValueError(f"split {type(split).__name__} leaves no training target")


def _labels(work: Work) -> np.ndarray:
    settings, candidates = work.settings, work.candidates
    label = np.ones(len(candidates.user), dtype=np.float32)
    if settings.label is None:
        return label
    for name in settings.targets:
        history = work.histories[work.names.index(name)]
        raw = history.fields.get(settings.label.field)
        if raw is None or raw.dtype == object:
            raise ValueError(
                f"label field must be a numeric field of target view {name!r}, got {settings.label.field!r}; "
                f"it has {sorted(f for f, v in history.fields.items() if v.dtype != object)}"
            )
        own = candidates.view == work.names.index(name)
        value = raw[history.offsets[candidates.user[own]] + candidates.index[own]]
        if np.isnan(value).any():
            raise ValueError(
                f"label field {settings.label.field!r} of view {name!r} must not be missing in a target: "
                f"{int(np.isnan(value).sum())} are"
            )
        label[own] = settings.label.values(value)
    return label


def _last_times(work: Work) -> np.ndarray:
    last = np.zeros(len(work.users) - 1, dtype=np.int64)
    for history in work.histories:
        np.maximum.at(last, history.user, history.time)
    return last


def pair_columns(
    settings: Settings, raw: RawData, users: Vocabulary, items: Vocabulary, count_UV: np.ndarray, last_U: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the held-out pairs as targets that come after everything of their user.

    Args:
        settings: What was asked for.
        raw: What the source gave.
        users: Raw user id <-> user row.
        items: Raw item id <-> item row.
        count_UV: ``(U, V)`` events of each user.
        last_U: ``(U,)`` time of each user's last event, 0 without any.

    Raises:
        ValueError: If a pair names a view that does not exist.
    """
    frame, names = raw.held_out, list(raw.views)
    assert frame is not None
    user = users.rows(clean_ids("held_out", "user", frame["user"]))
    item = items.rows(clean_ids("held_out", "item", frame["item"]))
    view = frame["view"].tolist() if "view" in frame.columns else [settings.targets[0]] * len(frame)
    wrong = set(view) - set(names)
    if wrong:
        raise ValueError(f"held_out, column 'view' must name views {names}, got {sorted(wrong)}")
    order = np.argsort(user, kind="stable")
    user = user[order]
    return _typed(
        {
            "user": user,
            "item": item[order],
            "time": last_U[user - 1] + 1,
            "label": np.ones(len(user)),
            "view": np.array([names.index(name) for name in view], dtype=np.int64)[order],
            "asof": count_UV[user - 1],
            "weight": np.ones(len(user)),
        }
    )
