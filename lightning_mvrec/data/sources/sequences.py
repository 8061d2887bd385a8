"""Sequences without times: one event a line, or one user a line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lightning_mvrec.data._pandas import pd
from lightning_mvrec.data.sources.base import RawData, Source


class SequenceFile(Source):
    """Lines ``user item`` in time order, as in the files of the SASRec papers. No times: leave-one-out only.

    Args:
        file: The file's name inside ``root``.
        view: Name of the only view.
    """

    folder = "sequences"
    download = "The file is your own: one line 'user item' (integers) an event, in time order."

    def __init__(self, file: str, view: str = "event") -> None:
        self.file = file
        self.view = view

    def files(self, root: str | None) -> list[Path]:
        """Return the file."""
        return [self.find(root, self.file)]

    def load(self, root: str | None) -> RawData:
        """Read the file."""
        path = self.find(root, self.file)
        return RawData({self.view: read_pairs(path)}, has_times=False, origin={self.view: str(path)})


def read_pairs(path: Path) -> pd.DataFrame:
    """Read lines of two integers, ``user item``.

    Raises:
        ValueError: If the file is empty or a line is something else; names the line.
    """
    names = ["user", "item"]
    try:
        frame = pd.read_csv(path, sep=r"\s+", header=None, names=names, dtype=str, keep_default_na=False)
    except pd.errors.ParserError as error:
        raise ValueError(f"{path} must have lines 'user item': {error}") from error
    if not len(frame):
        raise ValueError(f"{path} must have at least one event, it is empty")
    numbers = frame.apply(pd.to_numeric, errors="coerce")
    bad = numbers.isna() | (numbers % 1 != 0)
    if bad.to_numpy().any():
        row, column = np.argwhere(bad.to_numpy())[0]
        raise ValueError(
            f"{path}, line {row + 1}, column {names[column]!r}: must be an integer, got {frame.iat[row, column]!r}"
        )
    return numbers.astype(np.int64)


class AmazonSequences(Source):
    """``sequences.txt`` (a line ``user item item ...`` in time order) and ``items.jsonl`` where it is present.

    ``items.jsonl`` has a line a item: ``item`` (number), ``title`` (kept as text) and ``categories`` (paths, read as a
    multi-hot field of the names on them).

    Args:
        view: Name of the only view.
    """

    folder = "amazon-beauty"
    download = (
        'Download the 5-core reviews of a category from "Amazon review data" (J. McAuley, UCSD) and lay them out as '
        "<root>/sequences.txt or <root>/amazon-beauty/sequences.txt: one user a line, 'user item item ...' in time "
        "order; item titles and categories beside it as items.jsonl."
    )

    def __init__(self, view: str = "review") -> None:
        self.view = view

    def files(self, root: str | None) -> list[Path]:
        """Return the sequences and the items."""
        items = self.find_optional(root, "items.jsonl")
        return [self.find(root, "sequences.txt"), *([items] if items else [])]

    def load(self, root: str | None) -> RawData:
        """Read both files."""
        path = self.find(root, "sequences.txt")
        users, items = [], []
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    user, *sequence = map(int, line.split())
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: must be integers 'user item item ...': {error}") from None
                users += [user] * len(sequence)
                items += sequence
        frame = pd.DataFrame({"user": np.array(users, dtype=np.int64), "item": np.array(items, dtype=np.int64)})
        file_of_items = self.find_optional(root, "items.jsonl")
        catalogue = _read_items(file_of_items) if file_of_items else None
        return RawData(
            {self.view: frame}, items=catalogue, text=("title",), has_times=False, origin={self.view: str(path)}
        )


def _read_items(path: Path) -> pd.DataFrame:
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                names = sorted({name for way in row.get("categories") or [] for name in way})
                rows.append((int(row["item"]), row.get("title"), names))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number}: must be a JSON object with an item number: {error}") from None
    return pd.DataFrame(rows, columns=["item", "title", "categories"])
