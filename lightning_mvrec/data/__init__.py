"""Events to batches: the only place that knows pandas.

``EventsDataModule`` is imported at its first use, so that stores can be read where lightning is not installed.
"""

from typing import TYPE_CHECKING, Any

from lightning_mvrec.data.collate import Collator
from lightning_mvrec.data.content import Content, TextVectors
from lightning_mvrec.data.covisits import CoVisits
from lightning_mvrec.data.examples import CoveringWindows, LastWindow, Windows
from lightning_mvrec.data.filters import AllTargets, NovelTargets, TargetFilter
from lightning_mvrec.data.labels import FieldLabel, Label
from lightning_mvrec.data.leakage import find_leaks
from lightning_mvrec.data.negatives import FullCatalogue, Negatives, PopularityNegatives, UniformNegatives
from lightning_mvrec.data.prepare import prepare
from lightning_mvrec.data.sources import RawData, Source
from lightning_mvrec.data.split import (
    GivenPairs,
    GlobalTimeSplit,
    KFold,
    LeaveOneOut,
    PerUserTimeSplit,
    RandomSplit,
    Split,
)
from lightning_mvrec.data.store import Store, Targets, ViewStore
from lightning_mvrec.data.synthetic import SyntheticEvents, synthetic_events
from lightning_mvrec.data.transforms import Identity, MinMax, Standardise, Transform, UserMean

if TYPE_CHECKING:
    from lightning_mvrec.data.datamodule import EventsDataModule

__all__ = [
    "AllTargets",
    "CoVisits",
    "Collator",
    "Content",
    "CoveringWindows",
    "EventsDataModule",
    "FieldLabel",
    "FullCatalogue",
    "GivenPairs",
    "GlobalTimeSplit",
    "Identity",
    "KFold",
    "Label",
    "LastWindow",
    "LeaveOneOut",
    "MinMax",
    "Negatives",
    "NovelTargets",
    "PerUserTimeSplit",
    "PopularityNegatives",
    "RandomSplit",
    "RawData",
    "Source",
    "Split",
    "Standardise",
    "Store",
    "SyntheticEvents",
    "TargetFilter",
    "Targets",
    "TextVectors",
    "Transform",
    "UniformNegatives",
    "UserMean",
    "ViewStore",
    "Windows",
    "find_leaks",
    "prepare",
    "synthetic_events",
]


def __getattr__(name: str) -> Any:
    if name == "EventsDataModule":
        from lightning_mvrec.data.datamodule import EventsDataModule

        return EventsDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
