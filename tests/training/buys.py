"""The data of the tests of resumed runs."""

from pathlib import Path
from typing import Any

from lightning_mvrec import EventsDataModule
from lightning_mvrec.data import LeaveOneOut, SyntheticEvents, UniformNegatives


def prepared_buys(folder: Path, **settings: Any) -> EventsDataModule:
    """Return 60 users of synthetic events whose purchases are to be found, prepared below a folder."""
    data = EventsDataModule(
        SyntheticEvents(num_users=60, levels=3),
        targets=["buy"],
        split=LeaveOneOut(),
        store_dir=str(folder / "store"),
        negatives=UniformNegatives(num=20),
        max_len=10,
        **settings,
    )
    data.prepare_data()
    return data
