"""Parts read by Spark, with columns of the types that pandas would find and with the order of their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_mvrec.data.engines.duck_sql import MISSING
from lightning_mvrec.data.sources.parts import kind_of_file

INTEGERS = ("tinyint", "smallint", "int", "bigint")
NUMBERS = ("float", "double", "decimal", "boolean", *INTEGERS)
# JSON lines among which columns are looked for in the order of their first mention.
_LINES = 1000


def read_table(session: Any, files: tuple[Path, ...]) -> tuple[Any, list[str]]:
    """Return the rows of all parts, and the columns that say their order.

    Args:
        session: Spark's session.
        files: Parts of one kind, ordered by name.
    """
    from pyspark.sql import functions as F

    names = [uri(file) for file in files]
    kind = kind_of_file(files[0])
    if kind == ".parquet":
        table = session.read.option("mergeSchema", "true").parquet(*names)
    elif kind in (".csv", ".tsv"):
        table = session.read.csv(
            names, header=True, enforceSchema=False, sep="," if kind == ".csv" else "\t", quote='"', escape='"'
        )
    else:
        table = session.read.json(names)
        columns = _mentioned(session, names[0])
        table = table.select(*(column_of(name) for name in sorted(table.columns, key=_place_in(columns))))
    # By file, by where Spark began to read in it, and counted from there; names folder by folder, as paths compare.
    path = F.url_decode(F.replace(F.col("_metadata.file_path"), F.lit("+"), F.lit("%2B")))
    place = {
        "_file": F.split(path, "/"),
        "_block": F.col("_metadata.file_block_start"),
        "_row": F.monotonically_increasing_id(),
    }
    table = table.select(*map(column_of, table.columns), *(column.alias(name) for name, column in place.items()))
    return (_typed(table, list(place)) if kind in (".csv", ".tsv") else table), list(place)


def uri(path: Path) -> str:
    """Return a path of a file system that every machine mounts, as Spark takes it: nothing in it is escaped."""
    return f"file://{path.resolve()}"


def column_of(name: str) -> Any:
    """Return a column by its name, whatever characters it has."""
    from pyspark.sql import functions as F

    return F.col("`" + name.replace("`", "``") + "`")


def _mentioned(session: Any, name: str) -> list[str]:
    # Spark sorts the columns of JSON lines by name.
    lines = [row[0] for row in session.read.text(name).head(_LINES)]
    return list(dict.fromkeys(column for line in lines if line.strip() for column in json.loads(line)))


def _place_in(columns: list[str]) -> Any:
    return lambda name: columns.index(name) if name in columns else len(columns)


def _typed(table: Any, place: list[str]) -> Any:
    """Give columns of text the types that pandas finds: Spark knows one text for "missing", pandas many."""
    from pyspark.sql import functions as F

    names = [name for name in table.columns if name not in place]
    text = {name: F.when(~column_of(name).isin(*MISSING), column_of(name)) for name in names}
    casts = {"bigint": r"\s*[+-]?\d+\s*", "double": None, "boolean": "(?i)true|false"}
    # One scan: how many values there are, and how many of them each type can read.
    asked = []
    for number, name in enumerate(names):
        value = text[name]
        asked.append(F.count(value).alias(f"all_{number}"))
        for type_, pattern in casts.items():
            read = value.try_cast(type_).isNotNull()
            asked.append(
                F.count(F.when(read & value.rlike(f"^({pattern})$") if pattern else read, 1)).alias(f"{type_}_{number}")
            )
    (found,) = table.select(*asked).collect()
    chosen = []
    for number, name in enumerate(names):
        type_ = next((t for t in casts if found[f"{t}_{number}"] == found[f"all_{number}"]), "string")
        if not found[f"all_{number}"]:
            type_ = "double"  # nothing but missing values
        chosen.append(text[name].try_cast(type_).alias(name))
    return table.select(*chosen, *place)
