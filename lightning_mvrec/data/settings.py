"""Everything besides the files that decides what a store holds."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_mvrec.data.content import Content
from lightning_mvrec.data.filters import AllTargets, TargetFilter
from lightning_mvrec.data.labels import Label
from lightning_mvrec.data.sources.base import RawData, Source
from lightning_mvrec.data.split import GlobalTimeSplit, Split
from lightning_mvrec.data.transforms import Transform


@dataclass
class Settings:
    """Settings of :func:`~lightning_mvrec.data.prepare.prepare`, defaults filled in."""

    source: Source
    targets: list[str]
    split: Split
    target_filter: TargetFilter
    label: Label | None
    transforms: dict[str, Transform]
    deduplicate: bool
    content: Content | None = None


def make_settings(
    source: Source,
    targets: list[str],
    split: Split | None = None,
    target_filter: TargetFilter | None = None,
    label: Label | None = None,
    transforms: dict[str, Transform] | None = None,
    deduplicate: bool = True,
    content: Content | None = None,
) -> Settings:
    """Return settings with the defaults filled in."""
    return Settings(
        source,
        list(targets),
        split or GlobalTimeSplit(),
        target_filter or AllTargets(),
        label,
        dict(transforms or {}),
        deduplicate,
        content,
    )


def real_times(raw: RawData) -> bool:
    """Whether every event has a real time."""
    return raw.has_times and all("time" in frame.columns for frame in raw.views.values())


def check_settings(settings: Settings, raw: RawData, names: list[str]) -> None:
    """Check the settings against what the source gave.

    Raises:
        ValueError: If they name a view or field that does not exist, or split or content need what the source lacks.
    """
    if not settings.targets:
        raise ValueError(f"targets must name at least one view of {names}, got none")
    for name in settings.targets:
        if name not in names:
            raise ValueError(f"targets must be names of views {names}, got {name!r}")
    split = type(settings.split).__name__
    if settings.split.needs_times and not real_times(raw):
        raise ValueError(f"split {split} needs events with times, but the source has none: use LeaveOneOut")
    if settings.split.needs_pairs and raw.held_out is None:
        raise ValueError(f"split {split} needs held-out pairs, but the source gives none")
    if settings.content is not None and raw.items is None:
        raise ValueError("content needs an item file, but the source gives none: set content to None")
    for key in settings.transforms:
        view, _, field = key.rpartition(".")
        among = [view] if view in names else [] if view else names
        fields = {"time"}.union(*(raw.views[name].columns for name in among)) - {"user", "item"}
        if not among or field not in fields:
            raise ValueError(f"transforms must be by event field or <view>.<field>, got {key!r}")
