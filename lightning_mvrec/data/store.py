"""The prepared data on disk, memory-mapped: what models, baselines and the data module read.

N events of one view, U user rows, V views, n targets of one stage.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvrec.data.appender import ArrayAppender
from lightning_mvrec.schema import Schema

FORMAT = 1
MANIFEST = "store.json"


@dataclass
class ViewStore:
    """All events of one view, by user row, oldest first.

    Args:
        items: ``(N,)`` int32 item rows; 0 for an item outside the catalogue.
        times: ``(N,)`` int64.
        offsets: ``(num_users + 1,)`` int64: user row ``u`` owns ``offsets[u]:offsets[u + 1]``.
        fields: ``(N,)`` each: float32 for numeric, int32 rows for categorical event fields.
        stage: ``(N,)`` int8: 0 for events that training may learn from, 1 from a user's first validation target on,
            2 from the first test target on.
    """

    items: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    fields: dict[str, np.ndarray]
    stage: np.ndarray


@dataclass
class Targets:
    """What one stage predicts, sorted by (user row, time, row).

    Args:
        user, item: ``(n,)`` rows; item 0 is outside the catalogue: a miss for every model.
        time: ``(n,)`` int64.
        label, weight: ``(n,)`` float32.
        view: ``(n,)`` index into ``schema.views``.
        asof: ``(n, V)`` int64, events of the user's FULL history of each view that precede the target.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    view: np.ndarray
    asof: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Targets:
        """Return some of the targets, by number or as ``(n,)`` bool."""
        return Targets(**{name: value[rows] for name, value in vars(self).items()})


class Store:
    """Reader of one prepared data set; see :func:`~lightning_mvrec.data.prepare.prepare` for the writer.

    Args:
        path: Folder of the store.

    Raises:
        ValueError: If the folder is not a complete store of this format; names the file and the way out.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        manifest = self.path / MANIFEST
        if not manifest.is_file():
            raise ValueError(f"{self.path} must be a prepared store, but {MANIFEST} is missing; {self._way_out}")
        try:
            self.manifest: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
            found = self.manifest["format"]
            sizes = self.manifest["files"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{manifest} cannot be read ({error}); {self._way_out}") from error
        if found != FORMAT:
            raise ValueError(f"format of {self.path} must be {FORMAT}, got {found!r}; {self._way_out}")
        for name, size in sizes.items():
            file = self.path / name
            there = file.stat().st_size if file.is_file() else 0
            if there != size:
                raise ValueError(f"{file} is truncated: it must have {size} bytes, got {there}; {self._way_out}")
        self.schema = Schema.load(self.path / "schema.yaml")

    @property
    def _way_out(self) -> str:
        return "delete the folder and prepare the data again (mvrec prepare)"

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (os.fspath(self.path),)

    def open(self) -> Store:
        """Map every array that batches are built from, and return the store.

        Done before worker processes are forked: they share the maps, and numpy parses array headers as Python source,
        which CPython 3.11 was seen to fail at in a forked worker ("AST constructor recursion depth mismatch").
        """
        _ = self._views, self.item_fields, self.user_fields, self.user_trained, self.content
        return self

    @property
    def summary(self) -> str:
        """What was prepared, as text."""
        return self.manifest["summary"]

    def _array(self, name: str) -> np.ndarray:
        # A plain ndarray on the mapped memory: indexing np.memmap costs a Python call each time.
        array = np.load(self.path / f"{name}.npy", mmap_mode="r") if self._size(name) else None
        return np.asarray(array) if array is not None else np.load(self.path / f"{name}.npy")

    def _size(self, name: str) -> int:
        with open(self.path / f"{name}.npy", "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return int(np.prod(read(file)[0]))

    @cached_property
    def _views(self) -> dict[str, ViewStore]:
        views = {}
        for view in self.schema.views:
            base = f"views/{view.name}"
            views[view.name] = ViewStore(
                items=self._array(f"{base}/items"),
                times=self._array(f"{base}/times"),
                offsets=self._array(f"{base}/offsets"),
                fields={f.name: self._array(f"{base}/field_{f.name}") for f in view.fields},
                stage=self._array(f"{base}/stage"),
            )
        return views

    def view(self, name: str) -> ViewStore:
        """Return one view's events."""
        self.schema.view(name)
        return self._views[name]

    def targets(self, stage: str) -> Targets:
        """Return the targets of ``"train"``, ``"val"`` or ``"test"``."""
        if stage not in ("train", "val", "test"):
            raise ValueError(f"stage must be train, val or test, got {stage!r}")
        names = ("user", "item", "time", "label", "weight", "view", "asof")
        return Targets(**{name: self._array(f"targets/{stage}/{name}") for name in names})

    @cached_property
    def item_fields(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By name: (values, offsets), jagged over item rows."""
        return {f.name: self._jagged(f"items/{f.name}") for f in self.schema.item_fields}

    @cached_property
    def user_fields(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By name: (values, offsets), jagged over user rows."""
        return {f.name: self._jagged(f"users/{f.name}") for f in self.schema.user_fields}

    def _jagged(self, base: str) -> tuple[np.ndarray, np.ndarray]:
        return self._array(f"{base}/values"), self._array(f"{base}/offsets")

    @cached_property
    def content(self) -> np.ndarray | None:
        """``(num_items, W)`` float32 frozen vectors of the items, row 0 being 0; None where none were asked for."""
        return self._array("content") if self.schema.content_dim else None

    @cached_property
    def popularity(self) -> np.ndarray:
        """``(num_items,)`` int64 training events of each item, over all views."""
        return self._array("popularity")

    @cached_property
    def user_trained(self) -> np.ndarray:
        """``(num_users,)`` bool: whether training holds an event of the user; others are read as user row 0."""
        return self._array("user_trained")

    @cached_property
    def user_ids(self) -> list[Any]:
        """Raw user ids by row, None first."""
        return self._json("user_ids.json")

    @cached_property
    def item_ids(self) -> list[Any]:
        """Raw item ids by row, None first."""
        return self._json("item_ids.json")

    @cached_property
    def field_values(self) -> dict[str, list[Any]]:
        """Raw value by row, None first, of every field: keys ``item_<f>``, ``user_<f>``, ``<view>_<f>``."""
        return self._json("field_values.json")

    @cached_property
    def item_text(self) -> dict[str, list[str | None]]:
        """Text columns of the item file (titles) by item row."""
        return self._json("item_text.json")

    def _json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))


@dataclass
class StoreWriter:
    """Writes a store's files into a folder; :meth:`finish` writes the manifest, last."""

    path: Path
    sizes: dict[str, int] = field(default_factory=dict)

    def array(self, name: str, value: np.ndarray) -> None:
        """Write one array."""
        file = self.path / f"{name}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, value)
        self.sizes[f"{name}.npy"] = file.stat().st_size

    def appended(self, name: str, dtype: type | np.dtype, tail: tuple[int, ...] = ()) -> ArrayAppender:
        """Return an array that grows; :meth:`close` counts it in when it is closed."""
        return ArrayAppender(self.path / f"{name}.npy", dtype, tail)

    def close(self, *arrays: ArrayAppender) -> None:
        """Complete arrays that grew."""
        for array in arrays:
            array.close()
            self.count(array.path)

    def count(self, file: Path) -> None:
        """Note the size of a file that is complete."""
        self.sizes[file.relative_to(self.path).as_posix()] = file.stat().st_size

    def json(self, name: str, value: Any) -> None:
        """Write one JSON file."""
        file = self.path / name
        file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
        self.sizes[name] = file.stat().st_size

    def json_list(self, name: str, ids: np.ndarray) -> None:
        """Write raw ids as :meth:`json` would write ``[None, *ids]``, without a list of them all."""
        file = self.path / name
        with open(file, "w", encoding="utf-8") as out:
            out.write("[null")
            for first in range(0, len(ids), 1 << 16):
                out.write(", ")
                out.write(json.dumps(ids[first : first + (1 << 16)].tolist(), ensure_ascii=False)[1:-1])
            out.write("]")
        self.count(file)

    def schema(self, schema: Schema) -> None:
        """Write ``schema.yaml``."""
        schema.save(self.path / "schema.yaml")
        self.sizes["schema.yaml"] = (self.path / "schema.yaml").stat().st_size

    def finish(self, **values: Any) -> None:
        """Write the manifest: format, size of every file, and ``values``."""
        # Sorted: files may be written in any order, and the manifest is the same.
        manifest = {"format": FORMAT, **values, "files": dict(sorted(self.sizes.items()))}
        (self.path / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=1), encoding="utf-8")
