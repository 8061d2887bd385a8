"""DuckDB as the engine: one machine, memory bounded, what does not fit goes to disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvrec.data.engines.ahead import read_ahead
from lightning_mvrec.data.engines.base import Block, Engine, Ids, Ordered, ViewColumns, merge_ids
from lightning_mvrec.data.engines.duck_sql import (
    Columns,
    field_kind,
    id_kind,
    id_sql,
    literal,
    quote,
    read_sql,
    time_sql,
)
from lightning_mvrec.data.histories import run_starts
from lightning_mvrec.data.sources.parts import ViewParts, kind_of_file

# Rows of one block. With the two that are read ahead it is little beside any memory limit that makes sense.
_ROWS = 1 << 18


class DuckDB(Engine):
    """Sort with DuckDB, from parquet, CSV, TSV or JSON-lines parts.

    Needs the extra ``scale``: duckdb and pyarrow.

    Args:
        memory_limit: What DuckDB may hold in memory, such as ``"2GB"``; the rest goes to disk. The interpreter with its
            libraries and a few blocks of events come on top, some hundreds of megabytes.
        threads: Threads to use, above 0; as many as this process may run on by default.
        temp_dir: Folder for what does not fit in memory; beside the store by default.

    Example:
        >>> DuckDB(memory_limit="2GB", threads=2).num_threads
        2
    """

    def __init__(self, memory_limit: str = "4GB", threads: int | None = None, temp_dir: str | None = None) -> None:
        super().__init__(threads)
        self.memory_limit = memory_limit
        self.temp_dir = temp_dir

    def open(self, views: dict[str, ViewParts], users: Ids, items: Ids, folder: Path) -> Ordered:
        """Scan the parts once for what they have; see :meth:`Engine.open`."""
        try:
            import duckdb
        except ImportError as error:
            raise ImportError(
                "the engine DuckDB needs the packages of the extra 'scale': pip install 'duckdb>=2.0' 'pyarrow>=15'"
            ) from error
        spill = Path(self.temp_dir) if self.temp_dir else folder / "spill"
        spill.mkdir(parents=True, exist_ok=True)
        try:
            connection = duckdb.connect(
                folder / "events.duckdb",
                config={
                    "memory_limit": self.memory_limit,
                    "threads": self.num_threads,
                    "temp_directory": str(spill),
                },
            )
        except duckdb.Error as error:
            raise ValueError(
                f"memory_limit must be a size such as '2GB', got {self.memory_limit!r}: {error}"
            ) from error
        try:
            return _DuckDBOrdered(connection, views, users, items)
        except duckdb.Error as error:
            connection.close()
            raise ValueError(f"{_name(next(iter(views.values())))} cannot be read: {error}") from error
        except BaseException:
            connection.close()
            raise


def _name(parts: ViewParts) -> str:
    more = f" and {len(parts.files) - 1} more" if len(parts.files) > 1 else ""
    return f"{parts.files[0]}{more}"


class _DuckDBOrdered(Ordered):
    def __init__(self, connection: Any, views: dict[str, ViewParts], users: Ids, items: Ids) -> None:
        self.con = connection
        self.columns: dict[str, Columns] = {}
        self.span: dict[str, tuple[int, int]] = {}
        self._tables: dict[tuple[Path, ...], tuple[str, str]] = {}
        found_users: dict[str, np.ndarray] = {}
        found_items: dict[str, np.ndarray] = {}
        described = {}
        for number, (name, parts) in enumerate(views.items()):
            where = f"view {name!r} ({_name(parts)})"
            columns = self._columns(where, parts)
            self.columns[name] = columns
            described[name] = self._scan(number, name, where, columns)
            for found, sql in ((found_users, columns.user), (found_items, columns.item)):
                found[where] = self._ids(f"SELECT DISTINCT {sql} AS id FROM {columns.rows} ORDER BY id")
        super().__init__(described, merge_ids("user", found_users, users), merge_ids("item", found_items, items))
        self._dictionary("items", self.items)
        if self.users.dtype == object:
            self._dictionary("users", self.users)

    def close(self) -> None:
        self.con.close()

    def _one(self, sql: str) -> tuple[Any, ...]:
        # All of it: DuckDB 2 takes no other statement while a result waits to be read.
        (row,) = self.con.execute(sql).fetchall()
        return row

    def _ids(self, sql: str) -> np.ndarray:
        column = self.con.sql(sql).to_arrow_table().column("id")
        values = column.to_numpy()
        return values.astype(np.int64) if values.dtype.kind in "iu" else np.array(column.to_pylist(), dtype=object)

    def _table(self, parts: ViewParts) -> tuple[str, str]:
        """Return the SQL of the rows of some files, and of a row's number in the order of the files."""
        if parts.files not in self._tables:
            source = read_sql(self.con, parts.files)
            if kind_of_file(parts.files[0]) == ".parquet":
                counted = f"parquet_file_metadata({[str(file) for file in parts.files]!r})"
                (most,) = self._one(f"SELECT max(num_rows) FROM {counted}")
                type_ = "UINTEGER" if most * len(parts.files) < 2**32 else "UBIGINT"
                row = f"(file_index::UBIGINT * {most} + file_row_number::UBIGINT)::{type_}"
                self._tables[parts.files] = source, row
            else:
                # Text is read once, in order, into a table: its rows are numbered.
                table = f"log_{len(self._tables)}"
                self.con.execute(f"CREATE TABLE {table} AS SELECT * FROM {source}")
                self._tables[parts.files] = table, "rowid"
        return self._tables[parts.files]

    def _columns(self, where: str, parts: ViewParts) -> Columns:
        table, row = self._table(parts)
        described = self.con.sql(f"DESCRIBE SELECT * FROM {table}").fetchall()
        types = {str(name): str(type_) for name, type_, *_ in described}
        ours = parts.columns or {name: name for name in types}
        if not parts.columns and parts.behavior:
            ours.pop(parts.behavior[0], None)
        needed = {**ours, "_behavior": parts.behavior[0]} if parts.behavior else ours
        absent = [theirs for theirs in needed.values() if theirs not in types]
        if absent:
            raise ValueError(
                f"{where} must have column(s) {', '.join(needed.values())}: {', '.join(absent)} is missing, "
                f"it has {', '.join(types)}"
            )
        for column in ("user", "item"):
            if column not in ours:
                raise ValueError(f"{where} must have columns user, item: {column} is missing, it has {', '.join(ours)}")
        rows = f"(SELECT *, {row} AS _row FROM {table})"
        if parts.behavior:
            column, value = parts.behavior
            rows = f"(SELECT * FROM {rows} WHERE CAST({quote(column)} AS VARCHAR) = {literal(value)})"
        fields = {name: theirs for name, theirs in ours.items() if name not in ("user", "item", "time")}
        ids = {
            column: (id_kind(where, ours[column], types[ours[column]], column in parts.numeric), quote(ours[column]))
            for column in ("user", "item")
        }
        return Columns(
            rows=rows,
            user=id_sql(*ids["user"]),
            item=id_sql(*ids["item"]),
            integer_users=ids["user"][0] == "integer",
            time=time_sql(quote(ours["time"]), types[ours["time"]], parts.time_unit) if "time" in ours else None,
            raw={column: quote(ours[column]) for column in ("user", "item", "time") if column in ours},
            fields={name: (field_kind(where, theirs, types[theirs]), quote(theirs)) for name, theirs in fields.items()},
        )

    def _scan(self, number: int, name: str, where: str, columns: Columns) -> ViewColumns:
        """One scan: how many events there are, the range of the times, and what is missing."""
        time = columns.time or "NULL::BIGINT"
        events, users, items, times, first, last = self._one(
            f"SELECT count(*), count({columns.user}), count({columns.item}), count({time}), min({time}), max({time}) "
            f"FROM {columns.rows}"
        )
        if not events:
            raise ValueError(f"{where} must have at least one event, it has none")
        for column, faulty in (("user", events - users), ("item", events - items)):
            if faulty:
                self._refuse(where, columns, column, getattr(columns, column), int(faulty), "an id must not be missing")
        if columns.time and times < events:
            self._refuse(where, columns, "time", time, int(events - times), "cannot be read as a time")
        self.span[name] = (int(first), int(last)) if columns.time else (0, 0)
        categories = {}
        for position, (field, (kind, sql)) in enumerate(columns.fields.items()):
            if kind == "categorical":
                table = f"values_{number}_{position}"
                self.con.execute(
                    f"CREATE TEMP TABLE {table} AS SELECT value, (row_number() OVER (ORDER BY value) - 1)::INTEGER AS "
                    f"number FROM (SELECT DISTINCT CAST({sql} AS VARCHAR) AS value FROM {columns.rows}) "
                    "WHERE value IS NOT NULL"
                )
                found = self.con.execute(f"SELECT value FROM {table} ORDER BY number").fetchall()
                categories[field] = [value for (value,) in found]
                columns.tables[field] = table
        numeric = [field for field, (kind, _) in columns.fields.items() if kind == "numeric"]
        return ViewColumns(int(events), columns.time is not None, numeric, categories)

    def _refuse(self, where: str, columns: Columns, column: str, sql: str, faulty: int, rule: str) -> None:
        raw, row = self._one(
            f"SELECT {columns.raw[column]}, _row FROM {columns.rows} WHERE {sql} IS NULL ORDER BY _row LIMIT 1"
        )
        raise ValueError(f"{where}, row {row}, column {column!r}: {rule}, got {raw!r}; {faulty} are so")

    def _dictionary(self, table: str, ids: np.ndarray) -> None:
        import pyarrow as pa

        type_ = pa.string() if ids.dtype == object else pa.int64()
        rows = pa.table({"id": pa.array(ids, type_), "number": pa.array(np.arange(len(ids), dtype=np.int32))})
        self.con.register("ids", rows)
        self.con.execute(f"CREATE TEMP TABLE {table} AS SELECT * FROM ids")
        self.con.unregister("ids")

    def blocks(self, view: str) -> Iterator[Block]:
        columns = self.columns[view]
        numbered = self.users.dtype == object
        # Narrow sort keys: distances from the smallest value, in 4 bytes where they fit.
        least = 0 if numbered or not len(self.users) else int(self.users[0])
        first, last = self.span[view]
        user = "users.number" if numbered else _narrow(columns.user, least, int(self.users[-1]))
        select = {"u": user, "i": "items.number", "r": "e._row"}
        if columns.time:
            select["t"] = _narrow(columns.time, first, last)
        joins = [f"JOIN items ON {columns.item} = items.id"]
        if numbered:
            joins.append(f"JOIN users ON {columns.user} = users.id")
        for position, (field, (kind, sql)) in enumerate(columns.fields.items()):
            if kind == "numeric":
                select[f"f{position}"] = f"CAST({sql} AS DOUBLE)"
            else:
                joins.append(
                    f"LEFT JOIN {columns.tables[field]} AS v{position} ON CAST({sql} AS VARCHAR) = v{position}.value"
                )
                select[f"f{position}"] = f"coalesce(v{position}.number, -1)"
        sql = (
            f"SELECT {', '.join(f'{value} AS {name}' for name, value in select.items())} FROM {columns.rows} AS e "
            f"{' '.join(joins)} ORDER BY u, {'t, ' if columns.time else ''}r"
        )
        reader = self.con.sql(sql).to_arrow_reader(_ROWS)
        for batch in read_ahead(reader):
            if not batch.num_rows:
                continue
            part = {name: batch.column(name).to_numpy(zero_copy_only=False) for name in select}
            yield Block(
                user=part["u"] if numbered else _number_sorted(part["u"], self.users, least),
                item=part["i"],
                time=part["t"].astype(np.int64) + first if columns.time else None,
                fields={field: part[f"f{position}"] for position, field in enumerate(columns.fields)},
            )


def _narrow(sql: str, least: int, most: int) -> str:
    return f"({sql} - ({least}))::UINTEGER" if most - least < 2**32 else sql


def _number_sorted(key: np.ndarray, users: np.ndarray, least: int) -> np.ndarray:
    """Return the numbers of ascending raw ids (or distances from the least one, where they are narrow)."""
    starts = run_starts(key)
    raw = key[starts].astype(np.int64) + (least if key.dtype == np.uint32 else 0)
    return np.repeat(np.searchsorted(users, raw), np.diff(np.append(starts, len(key))))
