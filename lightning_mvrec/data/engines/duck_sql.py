"""The SQL of columns: the same rules for ids, times and fields as :mod:`lightning_mvrec.data.events` has for frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning_mvrec.data.sources.parts import kind_of_file

Kind = Literal["integer", "string"]

_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "HUGEINT")
_FRACTIONS = ("FLOAT", "DOUBLE", "DECIMAL")
_DATES = ("DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE")
PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
# What pandas takes for a missing value in a CSV file.
MISSING = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
)


@dataclass
class Columns:
    """SQL of what is read of one view's rows.

    Args:
        rows: The rows, with their number as ``_row``.
        user, item: Ids.
        integer_users: Whether user ids are integers.
        time: Seconds, or None.
        raw: The columns as they are, for messages.
        fields: Kind and column of each event field.
        tables: By categorical field: table of its values and their numbers.
    """

    rows: str
    user: str
    item: str
    integer_users: bool
    time: str | None
    raw: dict[str, str]
    fields: dict[str, tuple[str, str]]
    tables: dict[str, str] = field(default_factory=dict)


def quote(name: str) -> str:
    """Return a column's name as SQL.

    Example:
        >>> quote('a "b"') == '"' + 'a ""b""' + '"'
        True
    """
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as SQL.

    Example:
        >>> print(literal("it's"))
        'it''s'
    """
    return "'" + str(text).replace("'", "''") + "'"


def read_sql(connection: Any, files: tuple[Path, ...]) -> str:
    """Return the SQL that reads files of one kind, columns by name."""
    names = f"[{', '.join(literal(str(file)) for file in files)}]"
    kind = kind_of_file(files[0])
    if kind == ".parquet":
        return f"read_parquet({names}, union_by_name = true)"
    if kind in (".csv", ".tsv"):
        missing = ", ".join(map(literal, MISSING))
        types = "'BOOLEAN', 'BIGINT', 'DOUBLE', 'VARCHAR'"
        return (
            f"read_csv({names}, header = true, delim = {literal(',' if kind == '.csv' else chr(9))}, quote = '\"', "
            f"escape = '\"', nullstr = [{missing}], auto_type_candidates = [{types}], union_by_name = true)"
        )
    guessed = f"read_json({names}, format = 'newline_delimited', union_by_name = true"
    described = connection.sql(f"DESCRIBE SELECT * FROM {guessed})").fetchall()
    # Text stays text: DuckDB would make dates and UUIDs of what looks like them.
    plain = [
        f"{literal(name)}: {literal(type_ if _numeric(type_) or '[' in type_ or '(' in type_ else 'VARCHAR')}"
        for name, type_, *_ in described
    ]
    return f"{guessed}, columns = {{{', '.join(plain)}}})"


def _numeric(type_: str) -> bool:
    return type_ in _INTEGERS or type_.startswith(_FRACTIONS) or type_ == "BOOLEAN"


def id_kind(where: str, column: str, type_: str, numeric: bool) -> Kind:
    """Return whether ids are integers or strings.

    Raises:
        ValueError: If they are neither.
    """
    if type_ in _INTEGERS:
        return "integer"
    if type_ == "VARCHAR" or type_.startswith("ENUM"):
        if numeric:
            raise ValueError(f"{where}, column {column!r}: must be a number, got text")
        return "string"
    raise ValueError(f"{where}, column {column!r}: ids must be integers or strings, got {type_}")


def id_sql(kind: Kind, column: str) -> str:
    """Return the SQL of an id."""
    return f"CAST({column} AS {'BIGINT' if kind == 'integer' else 'VARCHAR'})"


def time_sql(column: str, type_: str, unit: str) -> str:
    """Return the SQL of seconds since the epoch, rounded down; NULL where a value cannot be read."""
    per = PER_SECOND[unit]
    if type_ in _INTEGERS:
        whole = f"CAST({column} AS BIGINT)"
        return whole if per == 1 else f"(({whole} - (({whole} % {per}) + {per}) % {per}) // {per})"
    if type_.startswith(_FRACTIONS):
        return f"TRY_CAST(floor(CAST({column} AS DOUBLE) / {per}) AS BIGINT)"
    if type_ in _DATES:
        return f"CAST(floor(epoch_us(CAST({column} AS TIMESTAMP)) / 1000000) AS BIGINT)"
    text = f"CAST({column} AS VARCHAR)"
    moment = f"CAST(floor(epoch_us(TRY_CAST({text} AS TIMESTAMP WITH TIME ZONE)) / 1000000) AS BIGINT)"
    return f"coalesce(TRY_CAST(floor(TRY_CAST({text} AS DOUBLE)) AS BIGINT), {moment})"


def field_kind(where: str, column: str, type_: str) -> str:
    """Return ``"numeric"`` or ``"categorical"``.

    Raises:
        ValueError: If the type is a list or a structure.
    """
    if _numeric(type_):
        return "numeric"
    if "[" in type_ or type_.startswith(("STRUCT", "MAP", "UNION")):
        raise ValueError(f"{where}, column {column!r}: an event field must be a number or a text, got {type_}")
    return "categorical"
