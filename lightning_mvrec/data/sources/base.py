"""What a source of events promises: frames per view, and which files they came from."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from lightning_mvrec.data._pandas import pd
from lightning_mvrec.data.sources.parts import ViewParts


@dataclass
class RawData:
    """Events as a source read them, before cleaning.

    Args:
        views: One frame per view with columns ``user``, ``item``, ``time`` (seconds since the epoch, or anything
            ``pandas.to_datetime`` reads) and any event fields. A single view may lack ``time``: its events are then
            numbered per user in the order of the rows.
        items: Column ``item`` and item fields, one row an item, or None. Its items belong to the catalogue.
        users: Column ``user`` and user fields, one row a user, or None.
        held_out: Columns ``user``, ``item`` and optionally ``view``: test pairs for :class:`~.split.GivenPairs`.
        text: Columns of ``items`` kept as text (titles) instead of becoming a field.
        has_times: Whether ``time`` is a real time in seconds rather than a number of the event.
        origin: By name of the view, the file it was read from: messages name it. Rows are named by the frame's index,
            so a source keeps that of the file (0 is the first row after a header line).
    """

    views: dict[str, pd.DataFrame]
    items: pd.DataFrame | None = None
    users: pd.DataFrame | None = None
    held_out: pd.DataFrame | None = None
    text: tuple[str, ...] = ()
    has_times: bool = True
    origin: dict[str, str] = field(default_factory=dict)


class Source:
    """Where events come from. A new source defines :meth:`load`, and :meth:`files` if it reads any.

    Attributes:
        folder: Name of the data set's folder, looked for inside ``root`` when the files are not in ``root`` itself.
        download: What to download, by project page, and how to lay it out: shown when a file is absent.
    """

    folder: str = ""
    download: str = ""

    def files(self, root: str | None) -> list[Path]:
        """Return the files that :meth:`load` reads; their content decides whether a prepared store is reused."""
        return []

    def load(self, root: str | None) -> RawData:
        """Read the events."""
        raise TypeError(f"{type(self).__name__} must define load(root)")

    def parts(self, root: str | None) -> dict[str, ViewParts]:
        """Return where each view's events lie, for an engine that reads them itself.

        Raises:
            ValueError: If the source can only be read into memory.
        """
        raise ValueError(
            f"source {type(self).__name__} is read into memory and cannot be prepared by an engine: use TableSource, "
            "LogSource, or define parts(root) and beside(root)"
        )

    def beside(self, root: str | None) -> RawData:
        """Return what is read into memory beside the views, with no views: items, users and held-out pairs."""
        return RawData({})

    def find_optional(self, root: str | None, name: str) -> Path | None:
        """Return the path of one file, in ``root`` or in ``root/<folder>``, or None."""
        if root is None:
            raise ValueError(f"root must be the folder that holds {name}, got None (--data.root). {self.download}")
        for place in (Path(root), Path(root) / self.folder):
            if (place / name).is_file():
                return place / name
        return None

    def find(self, root: str | None, name: str) -> Path:
        """Return the path of one file, in ``root`` or in ``root/<folder>``.

        Raises:
            ValueError: If ``root`` is None or the file is in neither place; says what to download.
        """
        found = self.find_optional(root, name)
        if found is not None:
            return found
        assert root is not None
        looked = " or ".join(os.fspath(p) for p in dict.fromkeys((Path(root) / name, Path(root) / self.folder / name)))
        raise ValueError(f"root must hold {name}: not found as {looked}. {self.download}")
