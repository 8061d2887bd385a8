"""Run a function on several gloo processes, forked from a parent that has already imported torchrec.

A spawned process pays some ten seconds for its imports; a forked one pays none.
"""

import faulthandler
import gc
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchrec  # noqa: F401  (imported here so that no child imports it)

#: Seconds for a function on all ranks. It is only waited for where something hangs, and the machine may be busy.
TIMEOUT = 240.0


class RankError(RuntimeError):
    """A rank of :func:`run_ranks` raised, died or did not end in time."""


def run_ranks(function: Callable[..., Any], world_size: int = 2, *args: Any, timeout: float = TIMEOUT) -> list[Any]:
    """Call ``function(*args)`` on each of ``world_size`` forked gloo processes and return their results by rank.

    The process group is ready when the function starts, and the environment says what Lightning wants to know:
    ``Trainer(accelerator="cpu", devices=world_size)`` works inside. Results travel as pickles; ``args`` and closures
    need not, since the processes are forked. What a child prints is lost unless it fails.

    Args:
        function: Called on every rank; ``torch.distributed.get_rank()`` tells which.
        world_size: Number of processes; 1 keeps the parent free of a process group.
        args: Given to the function.
        timeout: Seconds after which every rank is killed.

    Raises:
        RankError: With the tracebacks of all ranks that failed.
    """
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    children: dict[int, int] = {}
    try:
        _fork(children, function, args, world_size, folder, timeout)
        failed = _wait(children, timeout)
        reports = [f"rank {rank} {reason}\n{_read(folder / f'{rank}.log')}" for rank, reason in failed]
        if reports:
            raise RankError("\n".join(reports))
        return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(world_size)]
    finally:
        _kill(children)
        shutil.rmtree(folder, ignore_errors=True)


class Passed:
    """Seconds that have passed, without those in which the whole machine stood still."""

    def __init__(self) -> None:
        self._seconds, self._last = 0.0, time.monotonic()

    def look(self) -> float:
        """Return them; to be called every few milliseconds."""
        now = time.monotonic()
        self._seconds, self._last = self._seconds + min(now - self._last, 1.0), now
        return self._seconds


@dataclass
class End:
    """How a process of :func:`end_ranks` ended: its exit status, what it printed, and after how many seconds."""

    status: int
    log: str
    seconds: float


def end_ranks(function: Callable[..., Any], world_size: int = 2, *args: Any, timeout: float = TIMEOUT) -> list[End]:
    """Call ``function(*args)`` as :func:`run_ranks` does and return how each process ended, in good or ill.

    Raises:
        RankError: If one has not ended within ``timeout`` seconds; it is killed.
    """
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    children: dict[int, int] = {}
    ends: dict[int, End] = {}
    passed = Passed()
    try:
        _fork(children, function, args, world_size, folder, timeout)
        while children:
            seconds = passed.look()
            for pid in list(children):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    rank = children.pop(pid)
                    log = _read(folder / f"{rank}.log", 100_000)
                    ends[rank] = End(os.waitstatus_to_exitcode(status), log, seconds)
            if children and seconds > timeout:
                logs = "\n".join(_read(folder / f"{rank}.log") for rank in range(world_size))
                raise RankError(f"ranks {sorted(children.values())} did not end within {timeout} s\n{logs}")
            time.sleep(0.01)
        return [ends[rank] for rank in range(world_size)]
    finally:
        _kill(children)
        shutil.rmtree(folder, ignore_errors=True)


def _fork(children: dict[int, int], function: Any, args: Any, world_size: int, folder: Path, timeout: float) -> None:
    if dist.is_initialized():  # a forked process cannot use the threads of its parent's group
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            gc.freeze()  # what lies there to be collected may hold threads, which only the parent has
            _child(function, args, rank, world_size, folder, timeout)
        children[pid] = rank


def _kill(children: dict[int, int]) -> None:
    for pid in children:  # only those that are still running are left in it
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def _wait(children: dict[int, int], timeout: float) -> list[tuple[int, str]]:
    failed: list[tuple[int, str]] = []
    passed, end = Passed(), timeout
    while children:
        seconds = passed.look()
        for pid in list(children):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                rank = children.pop(pid)
                if status:
                    failed.append((rank, f"failed (status {os.waitstatus_to_exitcode(status)})"))
                    end = min(end, seconds + 20)  # the others wait for a rank that is gone
        if children and seconds > end:
            # Those that hang beside one that failed are not the cause.
            return failed or [(rank, f"did not end within {timeout} s") for rank in children.values()]
        time.sleep(0.01)
    return failed


def _child(function: Callable[..., Any], args: Any, rank: int, world_size: int, folder: Path, timeout: float) -> None:
    status = 1
    try:
        log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = os.fdopen(os.dup(log), "w", buffering=1)
        sys.stderr = os.fdopen(os.dup(log), "w", buffering=1)
        faulthandler.enable(sys.stderr)
        faulthandler.dump_traceback_later(timeout * 0.9, file=sys.stderr)
        torch.set_num_threads(1)  # an OpenMP pool does not survive a fork
        os.environ.update(
            LOCAL_RANK=str(rank),
            RANK=str(rank),
            NODE_RANK="0",
            WORLD_SIZE=str(world_size),
            LOCAL_WORLD_SIZE=str(world_size),
        )
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "1")  # unused: the file is the meeting point
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
        result = function(*args)
        (folder / f"{rank}.pkl").write_bytes(pickle.dumps(result))
        status = 0
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            status = error.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # no destructors, no atexit: they belong to the parent


def _read(path: Path, characters: int = 6000) -> str:
    return path.read_text(errors="replace")[-characters:] if path.exists() else ""
