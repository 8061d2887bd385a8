"""What the first pass leaves for the second, on disk: a preparation that was killed goes on from there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvrec.data._pandas import pd
from lightning_mvrec.data.engines.base import Ordered
from lightning_mvrec.data.stream.ordered import RawView

_FILE = "ordered.json"
_RENUMBERING = "renumbering"


@dataclass
class OrderedState:
    """The first pass, complete.

    Args:
        views: What is known of each view.
        users, items: Raw ids by number.
        events: All events, duplicates included.
        sizes: Size of the store's files so far.
    """

    views: dict[str, RawView]
    users: np.ndarray
    items: np.ndarray
    events: int
    sizes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, ordered: Ordered) -> OrderedState:
        """Return what an engine knows before it sorts."""
        views = {
            name: RawView(columns.numeric, columns.categories, columns.has_times)
            for name, columns in ordered.views.items()
        }
        return cls(views, ordered.users, ordered.items, sum(columns.events for columns in ordered.views.values()))

    def frames(self) -> dict[str, pd.DataFrame]:
        """Return frames without rows that have the columns of the views: settings are checked against them."""
        return {
            name: pd.DataFrame(columns=["user", "item", *(["time"] if view.has_times else []), *view.fields])
            for name, view in self.views.items()
        }

    def save(self, store: Path, folder: Path) -> None:
        """Write the state, last of all: where it is, the first pass is complete."""
        for name, ids in (("users", self.users), ("items", self.items)):
            # Not json.dump: it encodes in Python, json.dumps does not.
            (folder / f"{name}.json").write_text(json.dumps(ids.tolist()), encoding="utf-8")
        values = {
            "views": {name: asdict(view) for name, view in self.views.items()},
            "events": self.events,
            "sizes": self.sizes,
            "beside": _sizes(folder),
        }
        part = folder / f"{_FILE}.part"
        part.write_text(json.dumps(values), encoding="utf-8")
        part.replace(folder / _FILE)

    @classmethod
    def load(cls, store: Path, folder: Path) -> OrderedState | None:
        """Return the state, or None if there is none or its files are not as it left them."""
        file = folder / _FILE
        if not file.is_file():
            return None
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        now = _sizes(folder)
        whole = all(now.get(name) == size for name, size in values["beside"].items()) and all(
            (store / name).is_file() and (store / name).stat().st_size == size for name, size in values["sizes"].items()
        )
        # The third pass writes item rows over the numbers: from its beginning on nothing can be gone on with.
        if not whole or (folder / _RENUMBERING).exists():
            return None
        return cls(
            {name: RawView(**view) for name, view in values["views"].items()},
            users=_read_ids(folder / "users.json"),
            items=_read_ids(folder / "items.json"),
            events=values["events"],
            sizes=values["sizes"],
        )


def _read_ids(file: Path) -> np.ndarray:
    ids = json.loads(file.read_text(encoding="utf-8"))
    return np.array(ids, dtype=object if ids and isinstance(ids[0], str) else np.int64)


def begin_renumbering(folder: Path) -> None:
    """Note that item numbers are being replaced by rows."""
    (folder / _RENUMBERING).touch()


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(_FILE))
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
