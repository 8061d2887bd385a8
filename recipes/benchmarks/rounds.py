"""Interleaved rounds: every variant runs in processes of its own, and only one of them at a time.

Variants are started once and stand still between rounds, so that what disturbs the machine for a while disturbs all of
them alike. CPU time is what the operating system charged to the processes, all their threads together.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchrec  # noqa: F401  (imported here so that no child imports it)
from tqdm import tqdm

_PARENTS_ENDS: list[Connection] = []


@dataclass(frozen=True)
class Sample:
    """One round of one variant, for each step: CPU seconds summed over its processes, and wall seconds."""

    cpu: float
    wall: float


@dataclass
class Result:
    """All rounds of one variant; round numbers tell which of another variant's ran beside it."""

    samples: dict[int, Sample] = field(default_factory=dict)
    peak_mib: float = 0.0

    def cpu_ms(self) -> float:
        """Median CPU time a step, summed over the processes."""
        return 1000 * statistics.median(sample.cpu for sample in self.samples.values())

    def wall_ms(self) -> float:
        """Median wall time a step."""
        return 1000 * statistics.median(sample.wall for sample in self.samples.values())

    def over(self, other: Result, what: str = "cpu") -> float:
        """Median over the rounds of this variant's time divided by the other's in the same round."""
        return statistics.median(mine / theirs for mine, theirs in self._pairs(other, what))

    def above(self, other: Result, what: str = "cpu") -> float:
        """Median over the rounds of this variant's time less the other's in the same round, in ms."""
        return 1000 * statistics.median(mine - theirs for mine, theirs in self._pairs(other, what))

    def _pairs(self, other: Result, what: str) -> list[tuple[float, float]]:
        common = self.samples.keys() & other.samples.keys()
        return [(getattr(self.samples[n], what), getattr(other.samples[n], what)) for n in sorted(common)]


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        name: What the table calls it.
        train: Called in every process with a :class:`Rounds`; iterates over it, one batch a step, until it ends.
        every: It takes part in every ``every``-th round only.
        steps: Steps of its rounds; None: as many as the others'.
    """

    name: str
    train: Callable[[Rounds], None]
    every: int = 1
    steps: int | None = None


class Rounds:
    """The batches of one process: an iterator that waits for the next round, then is timed to its end.

    Args:
        connection: To the parent.
        draw: Makes what a batch is made of; not timed.
        collate: Makes a batch of it, as a loader would; timed.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.draw: Callable[[], Any] = lambda: None
        self.collate: Callable[[Any], Any] = lambda drawn: drawn

    def __len__(self) -> int:
        return 1_000_000_000  # a Trainer that knows the length fetches no batch ahead

    def __iter__(self) -> Iterator[Any]:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("batches must be asked for by the thread that trains: else a round ends before its work")
        while (steps := self._connection.recv()) is not None:
            drawn = [self.draw() for _ in range(steps)]
            self._connection.send("drawn")
            self._connection.recv()
            cpu, wall = time.process_time(), time.perf_counter()
            for one in drawn:
                yield self.collate(one)
            # Asked for the batch after the last: every step of the round has been made.
            self._connection.send((time.process_time() - cpu, time.perf_counter() - wall))
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        self._connection.send(int(peak[1]) / 1024 if peak else float("nan"))


class Group:
    """The processes of one variant."""

    def __init__(self, variant: Variant, world_size: int, folder: Path) -> None:
        self.variant = variant
        self._children: list[int] = []
        self._connections: list[Connection] = []
        self._logs = [folder / f"{variant.name.replace(' ', '_')}.{rank}.log" for rank in range(world_size)]
        sys.stdout.flush()
        for rank in range(world_size):
            here, there = Pipe()
            child = os.fork()
            if child == 0:
                for connection in (here, *_PARENTS_ENDS):
                    connection.close()  # held open here, the others would not notice the end of their parent
                _child(variant, there, rank, self._logs[rank], folder, world_size)
            there.close()
            _PARENTS_ENDS.append(here)
            self._children.append(child)
            self._connections.append(here)

    def round(self, steps: int) -> Sample:
        """Run ``steps`` steps in every process."""
        self._send(steps)
        self._receive()
        self._send("go")
        times = self._receive()
        return Sample(sum(cpu for cpu, _ in times) / steps, max(wall for _, wall in times) / steps)

    def stop(self) -> float:
        """End the processes and return the largest peak memory of one, in MiB."""
        self._send(None)
        peaks = self._receive()
        for child in self._children:
            os.waitpid(child, 0)
        self._children = []
        for connection in self._connections:
            _PARENTS_ENDS.remove(connection)
            connection.close()
        return max(peaks)

    def kill(self) -> None:
        """End what still runs."""
        for child in self._children:
            os.kill(child, 9)
            os.waitpid(child, 0)

    def _send(self, what: Any) -> None:
        for connection in self._connections:
            connection.send(what)

    def _receive(self) -> list[Any]:
        try:
            return [connection.recv() for connection in self._connections]
        except (EOFError, ConnectionError):
            time.sleep(1)  # the others notice, too
            text = "\n".join(log.read_text(errors="replace")[-4000:] for log in self._logs)
            raise RuntimeError(f"a process of variant {self.variant.name!r} has ended:\n{text}") from None


def interleave(variants: Sequence[Variant], world_size: int, rounds: int, steps: int, bar: tqdm) -> dict[str, Result]:
    """Run ``rounds`` rounds of every variant, in turn, and return the results by name.

    The first round of a variant is thrown away. The order is turned round in every other round.

    Args:
        variants: What is compared.
        world_size: Processes of each.
        rounds: Rounds that count.
        steps: Steps in a round.
        bar: Moved on by one for each round of a variant.
    """
    results = {variant.name: Result() for variant in variants}
    groups: list[Group] = []
    with tempfile.TemporaryDirectory(prefix="rounds-") as folder:
        try:
            for number, variant in enumerate(variants):
                (Path(folder) / str(number)).mkdir()
                groups.append(Group(variant, world_size, Path(folder) / str(number)))
                bar.set_postfix_str(variant.name)
                groups[-1].round(variant.steps or steps)  # alone, and one after the other: set-up takes memory
            for number in range(rounds):
                for group in groups if number % 2 else reversed(groups):
                    if number % group.variant.every == 0:
                        bar.set_postfix_str(group.variant.name)
                        sample = group.round(group.variant.steps or steps)
                        results[group.variant.name].samples[number] = sample
                    bar.update()
            for group in groups:
                results[group.variant.name].peak_mib = group.stop()
        finally:
            for group in groups:
                group.kill()
    return results


def _child(variant: Variant, connection: Connection, rank: int, log: Path, folder: Path, world_size: int) -> None:
    status = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = os.fdopen(os.dup(file), "w", buffering=1)
        sys.stderr = os.fdopen(os.dup(file), "w", buffering=1)
        torch.set_num_threads(1)
        names = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        values = (str(rank), str(rank), "0", str(world_size), str(world_size), "127.0.0.1", "1")
        os.environ.update(zip(names, values, strict=True))
        os.chdir(folder)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
        variant.train(Rounds(connection))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # no destructors, no atexit: they belong to the parent
