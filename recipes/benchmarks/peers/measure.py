"""What every worker of the comparison does alike: read the file, split it, time itself, say what it found.

Needs the standard library and numpy only, so that it runs in every peer's environment.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

WIDTH, BLOCKS, HEADS, BATCH, EVAL_BATCH, DROPOUT, RATE, BETAS = 64, 2, 2, 128, 512, 0.2, 1e-3, (0.9, 0.98)
"""Hyper-parameters of all sides; the position-wise network is as wide as the model."""


def arguments() -> argparse.Namespace:
    """Read the command line of a worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", required=True, help="lines 'user item' in time order")
    parser.add_argument("--length", type=int, required=True, help="items that a model reads")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", required=True, help="folder for files of this run")
    return parser.parse_args()


def histories(path: str) -> tuple[list[np.ndarray], int]:
    """Return each user's items in time order, numbered from 0, and the number of items."""
    pairs = np.loadtxt(path, dtype=np.int64)
    items, item = np.unique(pairs[:, 1], return_inverse=True)
    order = np.argsort(pairs[:, 0], kind="stable")
    _, first = np.unique(pairs[order, 0], return_index=True)
    return np.split(item[order], first[1:]), len(items)


def split(sequences: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Return what trains, all but a user's last two items, and the item before the last, which is to be found.

    The last item stays unread: a comparison of speed has no claim on the test set.
    """
    return [sequence[:-2] for sequence in sequences], np.array([sequence[-2] for sequence in sequences])


def ndcg(lists: list[np.ndarray], targets: np.ndarray, k: int = 10) -> float:
    """Return the mean of ``1 / log2(rank + 1)`` over users, 0 beyond rank ``k``; lists hold the best items in order."""
    gains = []
    for best, target in zip(lists, targets, strict=True):
        place = np.flatnonzero(np.asarray(best)[:k] == target)
        gains.append(1 / np.log2(place[0] + 2) if len(place) else 0.0)
    return float(np.mean(gains))


def peak_megabytes() -> float:
    """Return the most memory that this process has had resident so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """CPU seconds of all threads of this process, and wall seconds, of each lap."""

    def __init__(self) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self._begin = (0.0, 0.0)

    def start(self) -> None:
        """Begin a lap."""
        self._begin = (time.process_time(), time.perf_counter())

    def stop(self) -> None:
        """End it."""
        self.cpu.append(time.process_time() - self._begin[0])
        self.wall.append(time.perf_counter() - self._begin[1])

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Time a block."""
        self.start()
        yield
        self.stop()


def trainer_settings(epochs: int, folder: str) -> dict:
    """Return what every Lightning trainer of the comparison is given: nothing is logged, saved or shown."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return {"max_epochs": epochs, "accelerator": "cpu", "devices": 1, "default_root_dir": folder, **quiet}


def clocked(callback: type, clock: Clock) -> object:
    """Return a Lightning callback, of the base class given, that times epochs: loading included, evaluation not."""

    class Epochs(callback):  # type: ignore[misc, valid-type]
        def on_train_epoch_start(self, *_: object) -> None:
            clock.start()

        def on_train_epoch_end(self, *_: object) -> None:
            clock.stop()

    return Epochs()


def report(train: Clock, peak: float, evaluation: Clock, quality: float, versions: dict, **more: float) -> None:
    """Print the result as the last line."""
    values = {"train_cpu": train.cpu, "train_wall": train.wall, "peak_mb": peak, "eval_cpu": evaluation.cpu}
    print(json.dumps({**values, "eval_wall": evaluation.wall, "ndcg@10": quality, "versions": versions, **more}))


def begin(seed_everything: Callable[[int], object]) -> argparse.Namespace:
    """Read the command line and seed; refuse to run where a numerical library would start threads of its own.

    Args:
        seed_everything: Lightning's, of the package that the worker uses.
    """
    options = arguments()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("OMP_NUM_THREADS must be 1: run.py sets it")
    seed_everything(options.seed)
    return options
