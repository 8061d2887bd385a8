"""PySpark as the engine: for logs that outgrow one machine, on a cluster that exists already."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvrec.data._pandas import pd
from lightning_mvrec.data.engines.base import Block, Engine, Ids, Ordered, ViewColumns, merge_ids
from lightning_mvrec.data.engines.duck_sql import PER_SECOND
from lightning_mvrec.data.engines.spark_read import INTEGERS, NUMBERS, column_of, read_table, uri
from lightning_mvrec.data.sources.parts import ViewParts

_ROWS = 1 << 18


class Spark(Engine):
    """Sort with Spark; this process then reads the sorted events once and writes the store.

    Needs the extra ``spark`` (pyspark and pyarrow) and Java. Where a session exists, such as on a
    cluster, it is used; every executor must reach the parts and ``temp_dir`` by the same path.

    Args:
        master: Spark's master where no session exists yet: this machine by default.
        memory: Memory of the session's driver where none exists yet; on this machine the driver does all the work.
        temp_dir: Folder for the sorted events; beside the store by default.
        threads: Threads with which this process writes, above 0; as many as it may run on by default.

    Example:
        >>> Spark(master="local[2]").master
        'local[2]'
    """

    def __init__(
        self, master: str = "local[*]", memory: str = "2g", temp_dir: str | None = None, threads: int | None = None
    ) -> None:
        super().__init__(threads)
        self.master = master
        self.memory = memory
        self.temp_dir = temp_dir

    def open(self, views: dict[str, ViewParts], users: Ids, items: Ids, folder: Path) -> Ordered:
        """Read what the parts have; see :meth:`Engine.open`."""
        try:
            import pyarrow  # noqa: F401 - the sorted events are read with it
            from py4j.protocol import Py4JJavaError
            from pyspark.errors import PySparkException
            from pyspark.sql import SparkSession
        except ImportError as error:
            raise ImportError(
                "the engine Spark needs the packages of the extra 'spark': pip install 'pyspark>=4.0' 'pyarrow>=15'"
            ) from error
        session = SparkSession.getActiveSession()
        own = session is None
        if session is None:
            builder = SparkSession.builder.master(self.master).appName("mvrec prepare")
            for name, value in (
                ("spark.ui.enabled", "false"),
                ("spark.driver.memory", self.memory),
                ("spark.sql.warehouse.dir", str(folder)),
                ("spark.local.dir", str(folder)),
            ):
                builder = builder.config(name, value)
            session = builder.getOrCreate()
        target = Path(self.temp_dir) / folder.parent.parent.name if self.temp_dir else folder / "sorted"
        ordered = _SparkOrdered(session, own, target.resolve())
        try:
            ordered.read(views, users, items)
        except (PySparkException, Py4JJavaError) as error:
            ordered.close()
            said = str(getattr(error, "java_exception", error)).splitlines()[0]
            raise ValueError(f"{next(iter(views.values())).files[0]} cannot be read: {said}") from error
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
        shutil.rmtree(self.folder, ignore_errors=True)

    def read(self, views: dict[str, ViewParts], users: Ids, items: Ids) -> None:
        """Read the columns, and number users and items."""
        found: dict[str, dict[str, np.ndarray]] = {"user": {}, "item": {}}
        for name, parts in views.items():
            where = f"view {name!r} ({parts.files[0]})"
            frame, columns = self._frame(where, parts)
            for column in ("user", "item"):
                found[column][where] = _distinct(frame, column)
            self.frames[name], self.views[name] = frame, columns
        self.users = merge_ids("user", found["user"], users)
        self.items = merge_ids("item", found["item"], items)

    def _frame(self, where: str, parts: ViewParts) -> tuple[Any, ViewColumns]:
        from pyspark.sql import functions as F

        table, place = read_table(self.spark, parts.files)
        theirs_all = [name for name in table.columns if name not in place]
        ours = dict(parts.columns) or {name: name for name in theirs_all}
        behavior = parts.behavior
        if behavior and not parts.columns:
            ours.pop(behavior[0], None)
        absent = [name for name in [*ours.values(), *(behavior[:1] if behavior else ())] if name not in theirs_all]
        absent += [name for name in ("user", "item") if name not in ours]
        if absent:
            raise ValueError(f"{where} must have column(s) {', '.join(absent)}, it has {', '.join(theirs_all)}")
        if behavior:
            table = table.where(column_of(behavior[0]).cast("string") == behavior[1])
        types = dict(table.dtypes)
        chosen, numeric, categorical = [], [], []
        for name, theirs in ours.items():
            column, type_ = column_of(theirs), types[theirs]
            if name in ("user", "item"):
                if type_ not in (*INTEGERS, "string") or (type_ == "string" and name in parts.numeric):
                    raise ValueError(f"{where}, column {theirs!r}: ids must be integers or strings, got {type_}")
                chosen.append(column.cast("bigint" if type_ in INTEGERS else "string").alias(name))
            elif name == "time":
                chosen.append(_seconds(column, type_, parts.time_unit).alias("time"))
            elif type_.startswith(NUMBERS):
                numeric.append(name)
                chosen.append(column.cast("double").alias(f"field_{name}"))
            elif type_.startswith(("array", "map", "struct")):
                raise ValueError(f"{where}, column {theirs!r}: an event field must be a number or a text, got {type_}")
            else:
                categorical.append(name)
                chosen.append(column.cast("string").alias(f"field_{name}"))
        frame = table.select(*chosen, *place)
        needed = [name for name in ("user", "item", "time") if name in ours]
        (counted,) = frame.select(
            F.count("*").alias("events"), *(F.count(name).alias(name) for name in needed)
        ).collect()
        if not counted["events"]:
            raise ValueError(f"{where} must have at least one event, it has none")
        for name in needed:
            if counted[name] < counted["events"]:
                raise ValueError(
                    f"{where}, column {name!r}: must be {'a time' if name == 'time' else 'an id'} in every row, "
                    f"{counted['events'] - counted[name]} are missing or cannot be read"
                )
        values = {name: _distinct(frame, f"field_{name}").tolist() for name in categorical}
        return frame, ViewColumns(counted["events"], "time" in ours, numeric, values)

    def blocks(self, view: str) -> Iterator[Block]:
        import pyarrow.parquet as pq

        columns, frame = self.views[view], self.frames[view]
        fields = [name for name in frame.columns if name.startswith("field_")]
        place = [name for name in frame.columns if name.startswith("_")]
        target = self.folder / view
        # A sort of the whole is a range for each partition: the parts, by name, are in order.
        ordered = frame.orderBy("user", *(["time"] if columns.has_times else []), *place).drop(*place)
        ordered.write.mode("overwrite").parquet(uri(target))
        user_of, item_of = pd.Index(self.users), pd.Index(self.items)
        value_of = {name: pd.Index(values, dtype=object) for name, values in columns.categories.items()}
        for part in sorted(target.glob("*.parquet")):
            for batch in pq.ParquetFile(part).iter_batches(_ROWS):
                read = {name: _values(batch.column(name)) for name in batch.schema.names}
                yield Block(
                    user=user_of.get_indexer(read["user"]),
                    item=item_of.get_indexer(read["item"]).astype(np.int32),
                    time=read["time"] if columns.has_times else None,
                    fields={
                        name.removeprefix("field_"): _field(read[name], value_of.get(name.removeprefix("field_")))
                        for name in fields
                    },
                )


def _seconds(column: Any, type_: str, unit: str) -> Any:
    from pyspark.sql import functions as F

    per = PER_SECOND[unit]
    if type_ in INTEGERS:
        return column.cast("bigint") if per == 1 else _divide(column.cast("bigint"), per)
    if type_.startswith(NUMBERS):
        return F.floor(F.nanvl(column.cast("double"), F.lit(None)) / per)
    if type_ in ("date", "timestamp", "timestamp_ntz"):
        return _divide(F.unix_micros(column.cast("timestamp")), 1_000_000)
    moment = _divide(F.unix_micros(column.try_cast("timestamp")), 1_000_000)
    return F.coalesce(F.floor(column.try_cast("double")), moment)


def _divide(whole: Any, by: int) -> Any:
    """Return the quotient of integers, rounded down."""
    from pyspark.sql import functions as F

    # Spark divides in floating point, in which a multiple of a power of 10 that fits in 8 bytes is exact.
    return ((whole - F.pmod(whole, F.lit(by))) / by).cast("bigint")


def _distinct(frame: Any, column: str) -> np.ndarray:
    """Return the distinct values of a column that are not missing, ascending."""
    (values,) = frame.select(column).dropna().distinct().orderBy(column).toArrow().columns
    return np.array(values.to_pylist(), dtype=object) if str(values.type) == "string" else values.to_numpy()


def _values(column: Any) -> np.ndarray:
    values = column.to_numpy(zero_copy_only=False)
    return values if values.dtype.kind != "O" else np.array(column.to_pylist(), dtype=object)


def _field(values: np.ndarray, known: pd.Index | None) -> np.ndarray:
    return values if known is None else known.get_indexer(pd.Index(values, dtype=object)).astype(np.int32)
