"""What every worker does alike: time itself, and say what it found. Needs numpy alone besides the standard library."""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class Clock:
    """Wall and CPU seconds of the named parts of this process; the CPU time of all its threads counts."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """Time a block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = time.perf_counter() - wall
        self.cpu[name] = time.process_time() - cpu

    def report(self, events: int, **more: object) -> None:
        """Print the result as the last line."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"wall": self.wall, "cpu": self.cpu, "peak_mb": peak, "events": events, **more}))


def columns(folder: Path) -> dict[str, np.ndarray]:
    """Read the columns of a log."""
    return {name: np.load(folder / f"{name}.npy") for name in ("user", "item", "time")}


def arguments() -> argparse.Namespace:
    """Read the command line of a worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True, help="folder of the events")
    parser.add_argument("--work", type=Path, required=True, help="folder for files of this run")
    parser.add_argument("--memory", default="1GB", help="what the engine may hold in memory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", default="pandas", help="kind of frame, where a package takes several")
    return parser.parse_args()
