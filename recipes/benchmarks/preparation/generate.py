"""Events of users and items that follow power laws, in parquet parts of a million: the same bytes each time.

Needs numpy and pyarrow.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PART = 1_000_000
DAYS = 180


def write_columns(log: Path) -> Path:
    """Write each column of a log as one array, for packages that take a frame: any environment can read them."""
    folder = log.with_name(f"{log.name}-columns")
    if not (folder / "time.npy").is_file():
        folder.mkdir(exist_ok=True)
        for name in ("user", "item", "time"):
            np.save(folder / f"{name}.npy", pq.read_table(log, columns=[name]).column(name).to_numpy())
    return folder


def write_events(folder: Path, events: int) -> Path:
    """Write the parts of a log, unless they are there.

    A user has 50 events on average and an item 100 or more; the user at rank r has a share of them that falls as
    r ** -1/2, an item as r ** -2/3. Ids are scattered, and events come in no order of time.

    Args:
        folder: Where the log's folder goes.
        events: How many.

    Returns:
        The log's folder.
    """
    log = folder / f"events-{events}"
    done = log / "_SUCCESS"
    if done.is_file():
        return log
    log.mkdir(parents=True, exist_ok=True)
    users, items = max(events // 50, 10), max(min(events // 100, 200_000), 10)
    for part, first in enumerate(range(0, events, PART)):
        rng = np.random.default_rng([0, part])
        count = min(PART, events - first)
        user = (users * rng.random(count) ** 2).astype(np.int64) * 2_654_435_761 % (1 << 31)
        item = (items * rng.random(count) ** 3).astype(np.int64) * 40_503 % (1 << 31)
        time = 1_600_000_000 + rng.integers(0, DAYS * 86_400, count)
        table = pa.table({"user": user, "item": item, "time": time})
        pq.write_table(table, log / f"part-{part:05d}.parquet", use_dictionary=False)  # a dictionary would save nothing
    done.touch()
    return log
