"""Events that lie in several files: the parts of a log, by name."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl", ".json")


@dataclass(frozen=True)
class ViewParts:
    """Where the events of one view lie, for an engine that reads them itself.

    Args:
        files: Files of one kind, in the order of their rows.
        columns: Our column name -> the files' name; all columns, under their own names, where it is empty.
        behavior: Column of the behaviour and the value of this view, or None if all rows are of this view.
        time_unit: Unit of numeric times.
        numeric: Columns of ours that must be numbers.
    """

    files: tuple[Path, ...]
    columns: dict[str, str]
    behavior: tuple[str, str] | None = None
    time_unit: str = "s"
    numeric: tuple[str, ...] = field(default_factory=tuple)


def kind_of_file(path: Path) -> str | None:
    """Return the ending that says how a file is read (``.gz`` aside), or None if it is none of ours.

    Example:
        >>> kind_of_file(Path("events.csv.gz")), kind_of_file(Path("notes.txt"))
        ('.csv', None)
    """
    name = path.name.removesuffix(".gz")
    return next((ending for ending in ENDINGS if name.endswith(ending)), None)


def find_parts(root: str | None, folder: str, name: str, download: str) -> list[Path]:
    """Return the files that a name stands for: one file, the parts in a folder, or those that match a pattern.

    Parts are ordered by name. Hidden files and those whose name begins with ``_`` are a writer's marks, and left out.

    Args:
        root: Folder of the source's files.
        folder: Name of the data set's folder, looked for inside ``root``.
        name: Name inside either.
        download: What to download, for the message.

    Raises:
        ValueError: If nothing is found, or the parts are of several kinds.
    """
    if root is None:
        raise ValueError(f"root must be the folder that holds {name}, got None (--data.root). {download}")
    places = list(dict.fromkeys((Path(root), Path(root) / folder)))
    for place in places:
        found = place / name
        if found.is_file():
            return [found]
        candidates = found.iterdir() if found.is_dir() else place.glob(name) if any(c in name for c in "*?[") else ()
        parts = sorted(p for p in candidates if p.is_file() and kind_of_file(p) and p.name[0] not in "._")
        if parts:
            kinds = sorted({str(kind_of_file(part)) for part in parts})
            if len(kinds) > 1:
                raise ValueError(f"the parts of {found} must have one ending, got {', '.join(kinds)}")
            return parts
        if found.is_dir():
            raise ValueError(f"{found} must hold parts that end in {', '.join(ENDINGS)}: there are none")
    looked = " or ".join(os.fspath(place / name) for place in places)
    raise ValueError(f"root must hold {name}: not found as {looked}. {download}")
