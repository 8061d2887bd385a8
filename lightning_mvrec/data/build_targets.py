"""The targets of each stage, with labels, into a store.

n targets of one stage, V views.
"""

from __future__ import annotations

import numpy as np

from lightning_mvrec.data.events import clean_ids
from lightning_mvrec.data.split import STAGES
from lightning_mvrec.data.store import StoreWriter
from lightning_mvrec.data.work import Work


def write_targets(writer: StoreWriter, work: Work) -> dict[str, dict[str, int]]:
    """Write the targets of the three stages and return how many there are.

    Raises:
        ValueError: If no target is left for training, or a label is missing.
    """
    candidates, assignment = work.candidates, work.assignment
    label = _labels(work)
    counts = {}
    for number, stage in enumerate(STAGES):
        keep = np.flatnonzero(assignment.target == number)
        columns = {
            "user": candidates.user[keep] + 1,
            "item": work.row_of_item[candidates.item[keep]],
            "time": candidates.time[keep],
            "label": label[keep],
            "view": candidates.view[keep],
            "asof": candidates.asof[keep],
        }
        if stage == "test" and work.settings.split.needs_pairs:
            columns = _pairs(work)
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
        raise ValueError(f"split {type(work.settings.split).__name__} leaves no training target")
    return counts


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


def _pairs(work: Work) -> dict[str, np.ndarray]:
    """Return the held-out pairs as targets that come after everything of their user."""
    frame, names = work.raw.held_out, work.names
    assert frame is not None
    user = work.users.rows(clean_ids("held_out", "user", frame["user"]))
    item = work.items.rows(clean_ids("held_out", "item", frame["item"]))
    view = frame["view"].tolist() if "view" in frame.columns else [work.settings.targets[0]] * len(frame)
    wrong = set(view) - set(names)
    if wrong:
        raise ValueError(f"held_out, column 'view' must name views {names}, got {sorted(wrong)}")
    asof = np.stack([np.diff(history.offsets)[user - 1] for history in work.histories], 1)
    last = np.zeros(len(work.users) - 1, dtype=np.int64)
    for history in work.histories:
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
