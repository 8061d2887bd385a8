"""PySpark as the engine: for logs that outgrow one machine, on a cluster that exists already."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvrec.data.engines.base import Block, Engine, Ids, Ordered, ViewColumns, merge_ids
from lightning_mvrec.data.engines.duck_sql import MISSING, PER_SECOND
from lightning_mvrec.data.sources.parts import ViewParts, kind_of_file

_INTEGERS = ("tinyint", "smallint", "int", "bigint")
_NUMBERS = ("float", "double", "decimal", "boolean", *_INTEGERS)
_ROWS = 1 << 18


class Spark(Engine):
    """Sort with Spark; this process then reads the sorted events once and writes the store.

    Needs the extra ``spark``, ``pip install 'lightning-mvrec[spark]'``, and Java. Where a session exists, such as on a
    cluster, it is used; every executor must reach the parts and ``temp_dir`` by the same path.

    Args:
        master: Spark's master where no session exists yet: this machine by default.
        temp_dir: Folder for the sorted events; beside the store by default.
        threads: Threads with which this process writes, above 0; as many as it may run on by default.

    Example:
        >>> Spark(master="local[2]").master
        'local[2]'
    """

    def __init__(self, master: str = "local[*]", temp_dir: str | None = None, threads: int | None = None) -> None:
        super().__init__(threads)
        self.master = master
        self.temp_dir = temp_dir

    def open(self, views: dict[str, ViewParts], users: Ids, items: Ids, folder: Path) -> Ordered:
        """Read what the parts have; see :meth:`Engine.open`."""
        try:
            import pyarrow  # noqa: F401 - the sorted events are read with it
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise ImportError(
                "the engine Spark needs the packages pyspark and pyarrow: pip install 'lightning-mvrec[spark]'"
            ) from error
        session = SparkSession.getActiveSession()
        own = session is None
        if session is None:
            builder = SparkSession.builder.master(self.master).appName("mvrec prepare")
            builder = builder.config("spark.ui.enabled", "false").config("spark.sql.warehouse.dir", str(folder))
            session = builder.getOrCreate()
        target = Path(self.temp_dir) / f"{folder.parent.parent.name}" if self.temp_dir else folder / "sorted"
        ordered = _SparkOrdered(session, own, target)
        try:
            ordered.read(views, users, items)
        except BaseException:
            ordered.close()
            raise
        return ordered


class _SparkOrdered(Ordered):
    def __init__(self, session: Any, own: bool, folder: Path) -> None:
        super().__init__({}, np.empty(0), np.empty(0))
        self.spark = session
        self.own = own
        self.folder = folder
        self.frames: dict[str, Any] = {}
        # Times are read and dates rounded in UTC, whatever the cluster's zone.
        self._zone = session.conf.get("spark.sql.session.timeZone")
        session.conf.set("spark.sql.session.timeZone", "UTC")

    def close(self) -> None:
        self.spark.conf.set("spark.sql.session.timeZone", self._zone)
        if self.own:
            self.spark.stop()

    def read(self, views: dict[str, ViewParts], users: Ids, items: Ids) -> None:
        """Read the columns, and number users and items."""
        found: dict[str, dict[str, np.ndarray]] = {"user": {}, "item": {}}
        for name, parts in views.items():
            where = f"view {name!r} ({parts.files[0]})"
            frame, columns = self._frame(where, parts)
            for column in ("user", "item"):
                found[column][where] = _collect(frame.select(column).distinct().orderBy(column), column)
            self.frames[name], self.views[name] = frame, columns
        self.users = merge_ids("user", found["user"], users)
        self.items = merge_ids("item", found["item"], items)

    def _frame(self, where: str, parts: ViewParts) -> tuple[Any, ViewColumns]:
        from pyspark.sql import functions as F

        table = self._load(parts)
        ours = dict(parts.columns) or {name: name for name in table.columns}
        behavior = parts.behavior
        if behavior and not parts.columns:
            ours.pop(behavior[0], None)
        absent = [name for name in [*ours.values(), *(behavior[:1] if behavior else ())] if name not in table.columns]
        absent += [name for name in ("user", "item") if name not in ours]
        if absent:
            raise ValueError(f"{where} must have column(s) {', '.join(absent)}, it has {', '.join(table.columns)}")
        # The order of rows: by file, by where Spark began to read in it, and counted from there.
        place = [
            F.col("_metadata.file_path").alias("_file"),
            F.col("_metadata.file_block_start").alias("_block"),
            F.monotonically_increasing_id().alias("_row"),
        ]
        table = table.select(*(F.col(f"`{name}`") for name in table.columns), *place)
        if behavior:
            table = table.where(F.col(f"`{behavior[0]}`").cast("string") == behavior[1])
        types = dict(table.dtypes)
        chosen, numeric, categorical = [], [], []
        for name, theirs in ours.items():
            column, type_ = F.col(f"`{theirs}`"), types[theirs]
            if name in ("user", "item"):
                if type_ not in (*_INTEGERS, "string") or (type_ == "string" and name in parts.numeric):
                    raise ValueError(f"{where}, column {theirs!r}: ids must be integers or strings, got {type_}")
                chosen.append(column.cast("bigint" if type_ in _INTEGERS else "string").alias(name))
            elif name == "time":
                chosen.append(_seconds(column, type_, parts.time_unit).alias("time"))
            elif type_.startswith(_NUMBERS):
                numeric.append(name)
                chosen.append(column.cast("double").alias(f"field_{name}"))
            elif type_.startswith(("array", "map", "struct")):
                raise ValueError(f"{where}, column {theirs!r}: an event field must be a number or a text, got {type_}")
            else:
                categorical.append(name)
                chosen.append(column.cast("string").alias(f"field_{name}"))
        frame = table.select(*chosen, "_file", "_block", "_row")
        needed = [name for name in ("user", "item", "time") if name in ours]
        counted = frame.select(F.count("*").alias("events"), *(F.count(name).alias(name) for name in needed)).first()
        assert counted is not None
        if not counted["events"]:
            raise ValueError(f"{where} must have at least one event, it has none")
        for name in needed:
            if counted[name] < counted["events"]:
                raise ValueError(
                    f"{where}, column {name!r}: must be a {'time' if name == 'time' else 'id'} in every row, "
                    f"{counted['events'] - counted[name]} are missing or cannot be read"
                )
        values = {
            name: _collect(frame.select(f"field_{name}").distinct().dropna().orderBy(f"field_{name}"), f"field_{name}")
            for name in categorical
        }
        columns = ViewColumns(
            counted["events"], "time" in ours, numeric, {name: value.tolist() for name, value in values.items()}
        )
        return frame, columns

    def _load(self, parts: ViewParts) -> Any:
        files = [os.path.abspath(file) for file in parts.files]
        kind = kind_of_file(parts.files[0])
        if kind == ".parquet":
            return self.spark.read.parquet(*files)
        if kind in (".csv", ".tsv"):
            table = self.spark.read.csv(
                files,
                header=True,
                inferSchema=True,
                sep="," if kind == ".csv" else "\t",
                quote='"',
                escape='"',
                timestampFormat="'no date is read as one'",
            )
            # Spark knows one text for "missing", pandas and DuckDB know many.
            return table.replace(dict.fromkeys(MISSING)) if "string" in dict(table.dtypes).values() else table
        return self.spark.read.json(files)

    def blocks(self, view: str) -> Iterator[Block]:
        import pyarrow.parquet as pq
        from pyspark.sql import functions as F

        columns = self.views[view]
        frame = self.frames[view]
        order = ["user", *(["time"] if columns.has_times else []), "_file", "_block", "_row"]
        fields = [*columns.numeric, *columns.categories]
        target = self.folder / view
        # A sort of the whole is a range for each partition: the parts, by name, are in order.
        frame.orderBy(*(F.col(name) for name in order)).drop("_file", "_block", "_row").write.mode("overwrite").parquet(
            str(target)
        )
        for part in sorted(target.glob("*.parquet")):
            for batch in pq.ParquetFile(part).iter_batches(_ROWS):
                read = {name: _values(batch.column(name)) for name in batch.schema.names}
                yield Block(
                    user=_numbers(read["user"], self.users),
                    item=_numbers(read["item"], self.items),
                    time=read["time"] if columns.has_times else None,
                    fields={
                        name: _numbers(read[f"field_{name}"], np.array(columns.categories[name], dtype=object))
                        if name in columns.categories
                        else read[f"field_{name}"].astype(np.float64)
                        for name in fields
                    },
                )


def _seconds(column: Any, type_: str, unit: str) -> Any:
    from pyspark.sql import functions as F

    per = PER_SECOND[unit]
    if type_ in _INTEGERS:
        return column.cast("bigint") if per == 1 else ((column - F.pmod(column, F.lit(per))) / per).cast("bigint")
    if type_.startswith(_NUMBERS):
        return F.floor(column.cast("double") / per)
    if type_ in ("date", "timestamp", "timestamp_ntz"):
        return F.floor(F.unix_micros(column.cast("timestamp")) / 1_000_000)
    moment = F.floor(F.unix_micros(column.try_cast("timestamp")) / 1_000_000)
    return F.coalesce(F.floor(column.try_cast("double")), moment)


def _collect(frame: Any, column: str) -> np.ndarray:
    values = [row[column] for row in frame.toLocalIterator()]
    return np.array(values, dtype=object if values and isinstance(values[0], str) else np.int64)


def _values(column: Any) -> np.ndarray:
    values = column.to_numpy(zero_copy_only=False)
    return values if values.dtype.kind != "O" else np.array(column.to_pylist(), dtype=object)


def _numbers(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the number of each value, -1 where it is missing."""
    if values.dtype != object:
        return np.searchsorted(known, values).astype(np.int32)
    number_of = {value: number for number, value in enumerate(known.tolist())}
    return np.fromiter((-1 if value is None else number_of[value] for value in values), np.int32, len(values))
