"""The end of a process whose main thread may be stuck, and what is known of other processes."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_mvrec.strategies.standing import main_stack

_LOST = re.compile(
    r"gloo/|Connection (closed|reset|refused)|Broken pipe|Timed out waiting|NCCL|TCPStore|recvValue|Socket closed"
)


@dataclass(frozen=True)
class Identity:
    """A process, so that no other one is taken for it.

    Args:
        pid: Its number.
        started: When it was started, in the kernel's ticks.
        host: Machine and pid namespace.
    """

    pid: int
    started: str
    host: str

    @classmethod
    def mine(cls) -> Identity:
        """Return this process."""
        with contextlib.suppress(OSError):
            host = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
            return cls(os.getpid(), _started(os.getpid()), host)
        return cls(os.getpid(), "", "")

    def kill(self) -> bool:
        """Kill this process if it is on this machine, and say whether it was there."""
        if not self.host or self.host != Identity.mine().host or self.started != _started(self.pid):
            return False
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
            return True
        return False


def _started(pid: int) -> str:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] != "Z":
            return fields[19]
    return ""


def lost_connection(error: BaseException) -> bool:
    """Say whether an exception is what a rank sees of the end of another one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError) and _LOST.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def say(rank: int, text: str) -> None:
    """Print a line that stands by itself, whatever a progress bar has written before."""
    with contextlib.suppress(OSError, ValueError):
        print(f"\n[rank {rank}] {text}", file=sys.stderr, flush=True)


def show_stack(rank: int) -> None:
    """Print where the main thread is."""
    frames = main_stack()
    if frames:
        lines = traceback.StackSummary.extract([(frame, frame.f_lineno) for frame in reversed(frames[:12])])
        say(rank, "its main thread is here:\n" + "".join(lines.format()).rstrip())


def end_process(status: int, finalize: Callable[[], None]) -> None:
    """End this process now, whatever its main thread does.

    Args:
        status: Exit status.
        finalize: Writes what loggers still hold; it is waited for two seconds at most.
    """
    for work in (finalize, _flush):
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(2.0)
    os._exit(status)


def _flush() -> None:
    for handler in list(logging.getLogger().handlers):
        with contextlib.suppress(Exception):
            handler.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
