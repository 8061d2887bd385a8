"""All behaviours of a user as one more view, in the order of time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightning_mvrec.data._pandas import pd
from lightning_mvrec.data.sources.base import RawData, Source


class WithStream(Source):
    """Another source's views, and one more that holds the events of several of them: early fusion.

    One encoder then sees "favoured, carted, bought" in the order in which it happened, which no encoder of a single
    view does. The events keep nothing of their own view's fields but get a categorical field ``behavior``, the name of
    the view they came from.

    Args:
        source: Where the events come from.
        views: Names of the views that are merged; all by default.
        name: Name of the new view.

    Raises:
        ValueError: If a view does not exist, the name is taken, or the source has no times (its events would have no
            common order).

    Example:
        >>> from lightning_mvrec.data.sources import FrameSource
        >>> frame = pd.DataFrame({"user": [1, 1], "item": [7, 8], "time": [20, 10]})
        >>> WithStream(FrameSource({"cart": frame, "buy": frame.tail(1)})).load(None).views["stream"]["item"].tolist()
        [7, 8, 8]
    """

    def __init__(self, source: Source, views: list[str] | None = None, name: str = "stream") -> None:
        self.source = source
        self.views = views
        self.name = name
        self.folder = source.folder
        self.download = source.download

    def files(self, root: str | None) -> list[Path]:
        """Return the files of the source."""
        return self.source.files(root)

    def load(self, root: str | None) -> RawData:
        """Read the source's events and merge them."""
        raw = self.source.load(root)
        views = list(raw.views) if self.views is None else self.views
        if unknown := [view for view in views if view not in raw.views]:
            raise ValueError(f"views must be among {list(raw.views)}, got {unknown}")
        if self.name in raw.views:
            raise ValueError(f"name must be that of no view of the source {list(raw.views)}, got {self.name!r}")
        if not raw.has_times:
            raise ValueError("source must have times for its views to have a common order, got one without")
        columns = ["user", "item", "time"]
        parts = [raw.views[view][columns].assign(behavior=view) for view in views]
        stream = pd.concat(parts, ignore_index=True)
        return replace(raw, views={**raw.views, self.name: stream})
