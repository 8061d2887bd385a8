"""Events from frames, or from parquet, CSV and JSON-lines files, with a column map."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightning_mvrec.data._pandas import pd
from lightning_mvrec.data.sources.base import RawData, Source
from lightning_mvrec.data.sources.parts import ViewParts, find_parts

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


def read_parts(paths: list[Path]) -> pd.DataFrame:
    """Read the parts of one table, in order; rows are numbered from the first part on.

    Raises:
        ValueError: As :func:`read_table`.
    """
    frames = [read_table(path) for path in paths]
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def name_parts(paths: list[Path]) -> str:
    """Return what messages call the parts: the file, or the first one and how many follow."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


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
    """Tables of parquet, CSV, TSV or JSON lines.

    Args:
        views: By name of the view: the name inside ``root`` of a file, of a folder of parts, or a pattern such as
            ``clicks/*.parquet``; parts count as one table, in the order of their names.
        columns: Our column name -> the files' name, for the views: at least ``user``, ``item``, ``time``; any other is
            an event field. All columns are kept, under their own names, where it is None.
        items: File of items: column ``item`` and fields.
        users: File of users: column ``user`` and fields.
        held_out: File of test pairs: columns ``user``, ``item`` and optionally ``view``.
        item_columns: Column map of ``items``.
        user_columns: Column map of ``users``.
        text: Columns of ``items`` kept as text.
        time_unit: Unit of numeric times.

    Raises:
        ValueError: If two views have one file: all its events would be in both.
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
        for name, file in views.items():
            if alike := [other for other in views if views[other] == file and other != name]:
                raise ValueError(
                    f"views must have files of their own, {name!r} and {alike[0]!r} both have {file!r}. "
                    "LogSource(file=..., behavior=<column>) makes views of one log by the values of a column"
                )
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
        beside = [name for name in (self.items, self.users, self.held_out) if name]
        found = [path for name in self.views.values() for path in self._parts(root, name)]
        return list(dict.fromkeys([*found, *(self.find(root, name) for name in beside)]))

    def load(self, root: str | None) -> RawData:
        """Read the files."""
        raw = self.beside(root)
        for name, file in self.views.items():
            paths = self._parts(root, file)
            frame = rename(read_parts(paths), self.columns or {}, name_parts(paths))
            raw.views[name], raw.origin[name] = scale_times(frame, self.time_unit), name_parts(paths)
        return raw

    def parts(self, root: str | None) -> dict[str, ViewParts]:
        """Return where each view's events lie."""
        return {
            name: ViewParts(tuple(self._parts(root, file)), self.columns or {}, time_unit=self.time_unit)
            for name, file in self.views.items()
        }

    def beside(self, root: str | None) -> RawData:
        """Read items, users and held-out pairs."""
        return RawData(
            {},
            self._optional(root, self.items, self.item_columns),
            self._optional(root, self.users, self.user_columns),
            self._optional(root, self.held_out, None),
            tuple(self.text or ()),
        )

    def _parts(self, root: str | None, name: str) -> list[Path]:
        return find_parts(root, self.folder, name, self.download)

    def _optional(self, root: str | None, name: str | None, columns: dict[str, str] | None) -> pd.DataFrame | None:
        if name is None:
            return None
        path = self.find(root, name)
        return rename(read_table(path), columns or {}, f"{path}")


class LogSource(Source):
    """One log of events in which a column says the behaviour: a view for each of its values.

    Args:
        file: The name inside ``root`` of a file, of a folder of parts, or a pattern such as ``log/*.jsonl``; parts
            count as one table, in the order of their names.
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
        """Return the file, or its parts."""
        return find_parts(root, self.folder, self.file, self.download)

    def parts(self, root: str | None) -> dict[str, ViewParts]:
        """Return where each view's events lie."""
        files = tuple(LogSource.files(self, root))
        return {
            name: ViewParts(files, self.columns, (self.behavior, value), self.time_unit, tuple(self.numeric))
            for name, value in self.views.items()
        }

    def load(self, root: str | None) -> RawData:
        """Read the file and tell the behaviours apart.

        Raises:
            ValueError: If a column is missing, a number is none, or a behaviour occurs in no row.
        """
        paths = LogSource.files(self, root)
        where = name_parts(paths)
        table = rename(read_parts(paths), {**self.columns, "_behavior": self.behavior}, where)
        if not len(table):
            raise ValueError(f"{where} must have at least one event, it has none")
        table = scale_times(numbers(table, self.columns, self.numeric, where), self.time_unit)
        raw = self.beside(root)
        for name, value in self.views.items():
            raw.views[name] = table[table["_behavior"] == value].drop(columns="_behavior")
            raw.origin[name] = where
            if not len(raw.views[name]):
                raise ValueError(
                    f"{where}, column {self.behavior!r} must have rows {value!r} for view {name!r}, "
                    f"it has {sorted(map(str, table['_behavior'].unique()))[:10]}"
                )
        return raw
