"""Events from frames, or from parquet, CSV and JSON-lines files, with a column map."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pandas as pd

from lightning_mvrec.data.sources.base import RawData, Source

_TIME_UNITS = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}


def read_table(path: Path) -> pd.DataFrame:
    """Read ``.parquet``, ``.csv``, ``.tsv`` (also gzipped) or ``.jsonl`` by its name.

    Raises:
        ValueError: If the ending is none of these, or the file is empty or cannot be read.
    """
    name = path.name.removesuffix(".gz")
    try:
        if name.endswith(".parquet"):
            return pd.read_parquet(path)
        if name.endswith((".csv", ".tsv")):
            return pd.read_csv(path, sep="\t" if name.endswith(".tsv") else ",", low_memory=False)
        if name.endswith((".jsonl", ".json")):
            # Ids and times stay what they are: pandas would guess dates from column names.
            return pd.read_json(path, lines=True, convert_dates=False, dtype=False)
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} must have at least one event, it is empty") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    raise ValueError(f"{path} must end in .parquet, .csv, .tsv, .jsonl (or .gz of these)")


def rename(frame: pd.DataFrame, columns: dict[str, str], where: str) -> pd.DataFrame:
    """Give columns our names.

    Args:
        frame: As read.
        columns: Our name -> the frame's name. Only these columns are kept; all, if empty.
        where: For the message.

    Raises:
        ValueError: If a column is missing.
    """
    absent = [theirs for theirs in columns.values() if theirs not in frame.columns]
    if absent:
        raise ValueError(
            f"{where} must have column(s) {', '.join(columns.values())}: {', '.join(absent)} is missing, "
            f"it has {', '.join(map(str, frame.columns))}"
        )
    if not columns:
        return frame
    return pd.DataFrame({ours: frame[theirs] for ours, theirs in columns.items()})


def numbers(frame: pd.DataFrame, columns: dict[str, str], names: list[str], where: str) -> pd.DataFrame:
    """Return the frame with columns read as numbers, as the lines of the file have them.

    Args:
        frame: As :func:`rename` gave it, in the file's order.
        columns: Our name -> the file's name, for the message.
        names: Our names of the columns that must be numbers.
        where: For the message.

    Raises:
        ValueError: If a value is no number; names its line, the first one of the file being its header.
    """
    for name in names:
        values = frame[name]
        if pd.api.types.is_numeric_dtype(values):
            continue
        read = pd.to_numeric(values, errors="coerce")
        bad = (read.isna() & values.notna()).to_numpy()
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"{where}, line {row + 2}, column {columns[name]!r}: must be a number, got {values.iloc[row]!r}"
            )
        frame = frame.assign(**{name: read})
    return frame


def scale_times(frame: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Return the frame with a numeric ``time`` in seconds."""
    if unit not in _TIME_UNITS:
        raise ValueError(f"time_unit must be one of {', '.join(_TIME_UNITS)}, got {unit!r}")
    if unit != "s" and "time" in frame.columns and pd.api.types.is_numeric_dtype(frame["time"]):
        frame = frame.assign(time=frame["time"] // _TIME_UNITS[unit])
    return frame


class FrameSource(Source):
    """Frames that are already in memory.

    Args:
        views: By name of the view: columns ``user``, ``item``, ``time`` and event fields.
        items: Column ``item`` and item fields.
        users: Column ``user`` and user fields.
        held_out: Columns ``user``, ``item`` and optionally ``view``.
        columns: Our column name -> the frames' name, for the views; all columns are kept where it is None.
        text: Columns of ``items`` kept as text.
        has_times: Whether ``time`` is a real time.

    Example:
        >>> frame = pd.DataFrame({"user": [1, 1, 1], "item": [5, 6, 7], "time": [10, 20, 30]})
        >>> list(FrameSource({"click": frame}).load().views)
        ['click']
    """

    folder = "frames"

    def __init__(
        self,
        views: dict[str, pd.DataFrame],
        items: pd.DataFrame | None = None,
        users: pd.DataFrame | None = None,
        held_out: pd.DataFrame | None = None,
        columns: dict[str, str] | None = None,
        text: tuple[str, ...] = (),
        has_times: bool = True,
    ) -> None:
        self.views = views
        self.items = items
        self.users = users
        self.held_out = held_out
        self.columns = columns
        self.text = text
        self.has_times = has_times

    def load(self, root: str | None = None) -> RawData:
        """Return the frames; ``root`` is not used."""
        views = {name: rename(frame, self.columns or {}, f"view {name!r}") for name, frame in self.views.items()}
        return RawData(views, self.items, self.users, self.held_out, self.text, self.has_times)


class TableSource(Source):
    """Files of one table each: parquet, CSV, TSV or JSON lines.

    Args:
        views: By name of the view: the file's name inside ``root``.
        columns: Our column name -> the files' name, for the views: at least ``user``, ``item``, ``time``; any other is
            an event field. All columns are kept, under their own names, where it is None.
        items: File of items: column ``item`` and fields.
        users: File of users: column ``user`` and fields.
        held_out: File of test pairs: columns ``user``, ``item`` and optionally ``view``.
        item_columns: Column map of ``items``.
        user_columns: Column map of ``users``.
        text: Columns of ``items`` kept as text.
        time_unit: Unit of numeric times.
    """

    folder = "tables"
    download = "The files are your own: see the settings of TableSource for their columns."

    def __init__(
        self,
        views: dict[str, str],
        columns: dict[str, str] | None = None,
        items: str | None = None,
        users: str | None = None,
        held_out: str | None = None,
        item_columns: dict[str, str] | None = None,
        user_columns: dict[str, str] | None = None,
        text: list[str] | None = None,
        time_unit: Literal["s", "ms", "us", "ns"] = "s",
    ) -> None:
        self.views = views
        self.columns = columns
        self.items = items
        self.users = users
        self.held_out = held_out
        self.item_columns = item_columns
        self.user_columns = user_columns
        self.text = text
        self.time_unit = time_unit

    def files(self, root: str | None) -> list[Path]:
        """Return every file that is named."""
        named = [*self.views.values(), *(name for name in (self.items, self.users, self.held_out) if name)]
        return [self.find(root, name) for name in dict.fromkeys(named)]

    def load(self, root: str | None) -> RawData:
        """Read the files."""
        views, origin = {}, {}
        for name, file in self.views.items():
            path = self.find(root, file)
            frame = rename(read_table(path), self.columns or {}, f"{path}")
            views[name], origin[name] = scale_times(frame, self.time_unit), str(path)
        return RawData(
            views,
            self._optional(root, self.items, self.item_columns),
            self._optional(root, self.users, self.user_columns),
            self._optional(root, self.held_out, None),
            tuple(self.text or ()),
            origin=origin,
        )

    def _optional(self, root: str | None, name: str | None, columns: dict[str, str] | None) -> pd.DataFrame | None:
        if name is None:
            return None
        path = self.find(root, name)
        return rename(read_table(path), columns or {}, f"{path}")


class LogSource(Source):
    """One file of events in which a column says the behaviour: a view for each of its values.

    Args:
        file: The file's name inside ``root``.
        behavior: Column of the behaviour.
        views: Name of the view -> value of the behaviour column.
        columns: Our column name -> the file's name: ``user``, ``item``, ``time`` and event fields.
        time_unit: Unit of numeric times.
        numeric: Columns of ours that must be numbers, such as the ids of a published log; others may be text.
    """

    folder = "log"
    download = "The file is your own: see the settings of LogSource for its columns."

    def __init__(
        self,
        file: str,
        behavior: str,
        views: dict[str, str],
        columns: dict[str, str],
        time_unit: Literal["s", "ms", "us", "ns"] = "s",
        numeric: list[str] | None = None,
    ) -> None:
        self.file = file
        self.behavior = behavior
        self.views = views
        self.columns = columns
        self.time_unit = time_unit
        self.numeric = list(numeric or [])

    def files(self, root: str | None) -> list[Path]:
        """Return the file."""
        return [self.find(root, self.file)]

    def load(self, root: str | None) -> RawData:
        """Read the file and tell the behaviours apart.

        Raises:
            ValueError: If a column is missing, a number is none, or a behaviour occurs in no row.
        """
        path = self.find(root, self.file)
        table = rename(read_table(path), {**self.columns, "_behavior": self.behavior}, str(path))
        if not len(table):
            raise ValueError(f"{path} must have at least one event, it has none")
        table = scale_times(numbers(table, self.columns, self.numeric, str(path)), self.time_unit)
        views = {}
        for name, value in self.views.items():
            views[name] = table[table["_behavior"] == value].drop(columns="_behavior")
            if not len(views[name]):
                raise ValueError(
                    f"{path}, column {self.behavior!r} must have rows {value!r} for view {name!r}, "
                    f"it has {sorted(map(str, table['_behavior'].unique()))[:10]}"
                )
        return RawData(views, origin=dict.fromkeys(views, str(path)))
