"""A thread on every rank that knows how the others are, and ends its process with a reason when one has failed.

Rank 0 hears from all ranks once a second, decides who is at fault and tells everybody. A rank whose rank 0 is gone
decides that for itself.
"""

from __future__ import annotations

import queue
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning_mvrec.strategies.channel import Line, connect, listen, pair
from lightning_mvrec.strategies.diagnosis import Fault, diagnose
from lightning_mvrec.strategies.ending import Identity, end_process, lost_connection, say, show_stack
from lightning_mvrec.strategies.standing import Observer, Standing

TERMINATED = 128 + 15


@dataclass(frozen=True)
class Limits:
    """How long to wait, in seconds.

    Args:
        step: Without progress inside a loop over batches, and for a process to end.
        long: Without progress in what may take long.
    """

    step: float
    long: float

    @property
    def interval(self) -> float:
        """Between two looks."""
        return min(1.0, self.step / 10)

    @property
    def grace(self) -> float:
        """For a main thread to end by itself once another rank has failed; a busy machine may need seconds for it."""
        return min(10.0, max(5.0, self.step / 4))

    @property
    def sure(self) -> float:
        """Until ranks that can never meet are told so."""
        return min(3.0, self.step / 4)


@dataclass(frozen=True)
class Surroundings:
    """What a watch asks of and tells the strategy.

    Args:
        exchange: Gives every rank the object of rank 0.
        address: How other machines know the one of rank 0.
        observer: Makes this rank's standings.
        exit_status: Returns the exit status of the process of a rank, if that is known.
        finalize: Writes what loggers still hold.
        between_batches: Whether a run that is to stop does so between two batches, or else at once.
    """

    exchange: Callable[[Any], Any]
    address: str
    observer: Observer
    exit_status: Callable[[int], int | None]
    finalize: Callable[[], None]
    between_batches: bool


class Watch:
    """Watches a run of several ranks.

    Every rank makes and starts one at the same place; it makes the threads and connections of one run.

    Args:
        rank: This rank.
        size: Number of ranks.
        limits: How long to wait.
        surroundings: The run.
    """

    def __init__(self, rank: int, size: int, limits: Limits, surroundings: Surroundings) -> None:
        self.fault: Fault | None = None
        #: The rank that was asked to stop by SIGTERM.
        self.stop_asked_of: int | None = None
        self._rank, self._size, self._limits, self._run_of = rank, size, limits, surroundings
        self._me = Identity.mine()
        self._identities: dict[int, Identity] = {}
        self._lines: dict[int, Line] = {}
        self._standings: dict[int, Standing] = {}
        self._aware: set[int] = set()  # ranks that know of the fault
        self._reports: queue.SimpleQueue[Fault] = queue.SimpleQueue()
        self._known, self._told = threading.Event(), threading.Event()
        self._raising = self._leaving = self._sigterm = self._sigterm_told = False
        self._deadline: float | None = None
        self._stop_deadline: float | None = None
        self._kill_at: float | None = None
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = pair()
        self._server: socket.socket | None = None
        self._token = ""
        self.thread = threading.Thread(target=self._work, daemon=True, name="mvrec-watch")

    def start(self) -> bool:
        """Meet the other ranks; False if rank 0 cannot be reached. Every rank must call this."""
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        if self._rank == 0:
            self._server, addresses = listen(self._run_of.address)
            self._token = secrets.token_hex(16)
            port = self._server.getsockname()[1]
            self._run_of.exchange((addresses, port, self._token, self._me))
            self._selector.register(self._server, selectors.EVENT_READ)
        else:
            addresses, port, self._token, self._identities[0] = self._run_of.exchange(None)
            line = connect(addresses, port, timeout=10.0)
            if line is None:
                self._close()
                return False
            self._lines[0] = line
            self._selector.register(line, selectors.EVENT_READ, 0)
            line.send(hello=self._rank, token=self._token, identity=asdict(self._me))
        self.thread.start()
        return True

    @property
    def stop_notice(self) -> int:
        """The rank that was asked to stop, plus 1, as ranks tell it to each other; 0: none that is known."""
        return 0 if self.stop_asked_of is None else self.stop_asked_of + 1

    def ask_to_stop(self) -> None:
        """Tell all ranks that this one has received SIGTERM; may be called in a signal handler."""
        self._sigterm = True

    def stopping(self) -> None:
        """All ranks have agreed to stop, and may take their time to save."""
        self._stop_deadline = None
        self._sigterm_told = True

    def report(self, text: str) -> None:
        """Tell all ranks that this one has failed; its main thread is about to end."""
        self._raising = True
        self._reports.put(Fault(self._rank, text))
        self._rouse()
        self._told.wait(self._limits.grace)

    def explain(self, error: BaseException) -> Fault | None:
        """Return why the connection to another rank was lost, or None if ``error`` is about something else."""
        if not lost_connection(error):
            return None
        self._raising = True
        self._known.wait(2 * self._limits.grace)
        return self.fault

    def pause(self) -> None:
        """Wait as long as it takes to find out that another rank waits for what this one has left out.

        Without it the next exchange of this rank would meet another one of the others, and gloo would end a process.

        Raises:
            RuntimeError: If that is so, or any rank has failed.
        """
        self._known.wait(self._limits.sure + 4 * self._limits.interval)
        if self.fault is not None:
            self._raising = True
            raise RuntimeError(str(self.fault))

    def stop(self) -> None:
        """Leave, once all ranks want to: one whose loop ends early stays to be told that others still wait for it.

        Raises:
            RuntimeError: If another rank has failed, and nothing else was raised about it.
        """
        self._leaving = True
        self._rouse()
        self.thread.join()
        if self.fault is not None and not self._raising:
            raise RuntimeError(str(self.fault))

    def _rouse(self) -> None:
        try:
            self._wake.send(b"x")
        except OSError:
            self._told.set()

    def _work(self) -> None:
        try:
            self._loop()
        except Exception as error:
            say(self._rank, f"the ranks of this run are not watched any more: {type(error).__name__}: {error}")
        finally:
            self._close()
            self._told.set()
            self._known.set()

    def _loop(self) -> None:
        last = time.monotonic()
        while True:
            for key, _ in self._selector.select(self._limits.interval):
                self._serve(key.fileobj, key.data)
            while not self._reports.empty():
                self._adopt(self._reports.get())
                self._told.set()
            now = time.monotonic()
            if now - last >= 0.9 * self._limits.interval:
                # A process that was stopped, with all the others perhaps, has not stood still in that time.
                self._tick(now, min(now - last, 2 * self._limits.interval), late=now - last > 5.0)
                last = now
            if self._leaving and self._may_leave():
                for line in self._lines.values():
                    line.send(bye=self._rank)
                return

    def _may_leave(self) -> bool:
        if self._raising or self.fault:
            return True
        if self._rank != 0:  # rank 0 answers when it has heard this of all
            self._lines[0].send(bye=self._rank)
            return self._lines[0].closed or self._has_left(0)
        return all(line.closed or self._has_left(rank) for rank, line in self._lines.items())

    def _has_left(self, rank: int) -> bool:
        standing = self._standings.get(rank)
        return standing is not None and standing.left

    def _serve(self, source: Any, rank: int | None) -> None:
        if source is self._woken:
            self._woken.recv(1 << 10)
        elif isinstance(source, socket.socket):
            try:
                sock, _ = source.accept()
            except OSError:
                return
            self._selector.register(Line(sock), selectors.EVENT_READ)
        else:
            for message in source.read():
                rank = self._hear(source, rank, message)
            if source.closed:
                self._selector.unregister(source)
                source.close()
                if rank is not None and not self._has_left(rank):
                    self._adopt(Fault(rank, f"is gone: {self._why(rank)}"))

    def _hear(self, line: Line, rank: int | None, message: dict[str, Any]) -> int | None:
        if rank is None:
            if message.get("token") != self._token:
                line.closed = True
                return None
            rank = int(message["hello"])
            self._lines[rank] = line
            self._identities[rank] = Identity(**message["identity"])
            self._selector.modify(line, selectors.EVENT_READ, rank)
            if self.fault:
                line.send(fault=asdict(self.fault))
        if "standing" in message:
            self._standings[rank] = Standing(**message["standing"])
        if "bye" in message:
            self._standings[rank] = replace(self._standings.get(rank, Standing(rank)), left=True)
        if "sigterm" in message:
            self._ask(rank)
        if "stop" in message:
            self._stop(message["stop"])
        if "fault" in message:
            if "identity" in message:
                self._identities[message["fault"]["rank"]] = Identity(**message["identity"])
            self._adopt(Fault(**message["fault"]))
            line.send(known=True)
        if "known" in message:
            self._aware.add(rank)
        return rank

    def _tick(self, now: float, elapsed: float, late: bool) -> None:
        mine = self._run_of.observer.look(elapsed)
        self._standings[self._rank] = replace(mine, left=self._leaving)
        for line in self._lines.values():
            line.send(standing=asdict(mine))
            if late:
                line.heard = now
        if self._sigterm and not self._sigterm_told:
            self._sigterm_told = True
            if self._rank == 0:
                self._ask(0)
            else:
                self._lines[0].send(sigterm=True)
        for rank, line in self._lines.items():
            last = self._standings.get(rank, Standing(rank))
            quiet = now - line.heard
            # It has come further than it could say if this rank has made steps since, which all make together.
            long = last.long and mine.key[:2] <= last.key[:2]
            if not last.left and quiet > (self._limits.long if long else self._limits.step):
                text = f"has not been heard of for {quiet:.0f} s, it was last seen in {last.where}: "
                self._adopt(Fault(rank, text + "stopped, or its machine or network is gone", stuck=True))
        if self._rank == 0 and self.fault is None and len(self._standings) == self._size and not self._raising:
            limits = self._limits
            fault = diagnose(list(self._standings.values()), limits.step, limits.long, limits.sure)
            if fault is not None:
                self._adopt(fault)
        self._meet_deadlines(now)

    def _meet_deadlines(self, now: float) -> None:
        if self.fault and self._kill_at and now > self._kill_at:
            self._kill_at = None
            if (process := self._identities.get(self.fault.rank)) and process.kill():
                say(self._rank, f"rank {self.fault.rank} did not end by itself and was killed")
        if self._deadline and now > self._deadline:
            end_process(1, self._run_of.finalize)
        if self._stop_deadline and now > self._stop_deadline and not self._run_of.observer.saving:
            say(self._rank, f"rank {self.stop_asked_of} received SIGTERM, and its batch did not end in time")
            end_process(TERMINATED, self._run_of.finalize)

    def _ask(self, rank: int) -> None:
        for line in self._lines.values():
            line.send(stop=rank)
        self._stop(rank)

    def _stop(self, rank: int) -> None:
        if self.stop_asked_of is not None or self._leaving or self.fault is not None:
            return
        self._sigterm_told = True
        how = "all ranks stop before their next batch" if self._run_of.between_batches else "all ranks stop"
        say(self._rank, f"rank {rank} received SIGTERM: {how}")
        self._stop_deadline = time.monotonic() + self._limits.step
        self.stop_asked_of = rank
        if not self._run_of.between_batches:
            end_process(TERMINATED, self._run_of.finalize)

    def _adopt(self, fault: Fault) -> None:
        """Take a fault as the reason of the end, and tell the others if this is rank 0 or the rank at fault."""
        if self.fault is not None:
            return
        if self._rank in (0, fault.rank):
            identity = self._identities.get(fault.rank)
            for line in self._lines.values():
                line.send(fault=asdict(fault), **({"identity": asdict(identity)} if identity else {}))
        self.fault = fault
        say(self._rank, str(fault))
        self._known.set()
        now = time.monotonic()
        if fault.rank == self._rank and fault.stuck:
            show_stack(self._rank)
            self._await_aware(now + 1.0)
            end_process(1, self._run_of.finalize)
        self._deadline = now + (self._limits.step if self._raising else self._limits.grace)
        if fault.stuck:
            self._kill_at = now + self._limits.grace / 2

    def _await_aware(self, end: float) -> None:
        """Stay until all that are told of the fault know it: what is under way when a process ends may be lost."""
        while any(not line.closed and rank not in self._aware for rank, line in self._lines.items()):
            if time.monotonic() > end:
                return
            for key, _ in self._selector.select(0.1):
                self._serve(key.fileobj, key.data)

    def _why(self, rank: int) -> str:
        for _ in range(10):
            status = self._run_of.exit_status(rank)
            if status is not None:
                how = f"killed by signal {-status}" if status < 0 else f"it ended with status {status}"
                return how + (" (SIGKILL: by somebody, or for want of memory)" if status == -9 else "")
            time.sleep(0.05)
        return "its process was killed (for want of memory?) or has crashed, or its machine is lost"

    def _close(self) -> None:
        for key in list((self._selector.get_map() or {}).values()):
            if isinstance(key.fileobj, Line):
                key.fileobj.close()
        self._selector.close()
        for sock in (self._server, self._wake, self._woken):
            if sock is not None:
                sock.close()
