"""How far a rank has come: marks that its main thread leaves, and the picture of them that others are sent.

A mark is a few assignments, without a clock, a lock or an exchange. The thread of the watch looks once a second whether
there were new ones.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType

WAITING_FOR_BATCH, IN_STEP, IN_BACKWARD, AFTER_STEP, SERVING, AT_END = range(6)
#: The files in which a main thread stands while it waits for other ranks.
_EXCHANGES = re.compile(r"/(torch/distributed/(distributed_c10d|utils)|torchrec/distributed/(comm_ops|dist_data))\.py")
_PHASES = ("first batch", "step", "backward pass and optimizer", "callbacks and next batch", "no more batches", "end")


@dataclass(frozen=True)
class Standing:
    """Where a rank is.

    Args:
        rank: Its number.
        loop: Loops that it has begun: every training epoch and evaluation is one, and training after an evaluation.
        batch: Steps that it has begun in this loop.
        phase: What it does, from ``WAITING_FOR_BATCH`` to ``AT_END``.
        still: Seconds since its last mark.
        long: Whether what it does may take long: set-up, a first batch, saving, the end of an epoch.
        sequence: Collectives of the default process group that it has started.
        lookups: Lookups of each sharded collection that it has started.
        waits: Whether it waits in a collective, as far as its Python stack tells.
        waited: Seconds for which it has been seen in one and the same collective.
        where: All this in words.
        left: Whether it has ended this run.
    """

    rank: int
    loop: int = 0
    batch: int = 0
    phase: int = WAITING_FOR_BATCH
    still: float = 0.0
    long: bool = True
    sequence: int = 0
    lookups: Mapping[str, int] = field(default_factory=dict)
    waits: bool = False
    waited: float = 0.0
    where: str = "set-up"
    left: bool = False

    @property
    def key(self) -> tuple[int, int, int]:
        """Grows as a rank goes on."""
        return self.loop, self.batch, self.phase


class Beat:
    """The marks of one rank; only its main thread writes them."""

    def __init__(self) -> None:
        self.count = 0
        self.loop = 0
        self.batch = 0
        self.phase = WAITING_FOR_BATCH
        self.long = True
        self.stage = "set-up"
        self.saving = False
        self._first = 0
        self._known: set[bool] = set()
        self._training = False

    def begin(self, stage: str, training: bool, first: int = 0) -> None:
        """A loop over batches begins, with batch number ``first``, which may take long."""
        self.stage, self.loop, self.batch, self.phase, self.long = stage, self.loop + 1, 0, WAITING_FOR_BATCH, True
        self._training = training
        self._first = first
        self.count += 1

    def step(self) -> None:
        """A step begins. The first of a run may take long: memory is allocated, code compiled."""
        self.batch += 1
        self.phase = IN_STEP
        self.long = self._training not in self._known
        self.count += 1

    def backward(self) -> None:
        """The module's own part of a training step is over."""
        self.phase = IN_BACKWARD
        self.count += 1

    def stepped(self) -> None:
        """A batch is done."""
        self.phase = AFTER_STEP
        self.long = False
        self._known.add(self._training)
        self.count += 1

    def serve(self) -> None:
        """This rank has no more batches of an evaluation, and waits for lookups of the others to take part in."""
        self.phase, self.long = SERVING, False
        self.count += 1

    def end(self) -> None:
        """A loop over batches is over; what follows may take long."""
        self.phase, self.long = AT_END, True
        self.count += 1

    def describe(self) -> str:
        """Say where this rank is."""
        if self.saving:
            return f"{self.stage}, saving a checkpoint"
        if self.loop == 0:
            return self.stage
        if self.phase in (IN_STEP, IN_BACKWARD, AFTER_STEP):
            return f"{self.stage}, batch {self._first + self.batch - 1}: {_PHASES[self.phase]}"
        return f"{self.stage}: {_PHASES[self.phase]}"


class Observer:
    """Makes standings of a :class:`Beat`, in the thread of the watch.

    Args:
        rank: This rank.
        beat: Its marks.
        sequence: Returns the number of collectives started.
        lookups: Returns the number of lookups of each sharded collection.
    """

    def __init__(
        self, rank: int, beat: Beat, sequence: Callable[[], int], lookups: Callable[[], Mapping[str, int]]
    ) -> None:
        self._rank = rank
        self._beat = beat
        self._sequence = sequence
        self._lookups = lookups
        self._seen: tuple[int, Mapping[str, int]] = (-1, {})
        self._still = 0.0
        self._exchange: tuple[int, ...] | None = None
        self._waited = 0.0

    @property
    def saving(self) -> bool:
        """Whether this rank is writing a checkpoint."""
        return self._beat.saving

    def look(self, elapsed: float) -> Standing:
        """Return the standing now, ``elapsed`` seconds after the last look."""
        beat = self._beat
        seen = (beat.count, self._lookups())
        self._still = self._still + elapsed if seen == self._seen else 0.0
        self._seen = seen
        frames = [] if self._still == 0.0 else main_stack()
        place, waits = locate(frames)
        sequence = self._sequence()
        call = call_of_exchange(frames)
        exchange = None if call is None or beat.saving else (*call, sequence)
        self._waited = self._waited + elapsed if exchange is not None and exchange == self._exchange else 0.0
        self._exchange = exchange
        where = beat.describe()
        return Standing(
            rank=self._rank,
            loop=beat.loop,
            batch=beat.batch,
            phase=beat.phase,
            still=self._still,
            long=beat.long or beat.saving,
            sequence=sequence,
            lookups=seen[1],
            waits=waits and not beat.saving,
            waited=self._waited,
            where=f"{where} ({place})" if place else where,
        )


def main_stack() -> list[FrameType]:
    """Return the frames of the main thread, the innermost first."""
    ident = threading.main_thread().ident
    frame = sys._current_frames().get(ident) if ident else None
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def call_of_exchange(frames: list[FrameType]) -> tuple[int, int] | None:
    """Return what tells the call in which the main thread waits for other ranks from others; None: it does not wait.

    A frame stays the same object as long as its function runs.
    """
    if frames and _EXCHANGES.search(frames[0].f_code.co_filename):
        return id(frames[0]), frames[0].f_lasti
    return None


def locate(frames: list[FrameType]) -> tuple[str, bool]:
    """Return the line of the user's code in which the main thread is, and whether it waits for other ranks."""
    if not frames:
        return "", False
    names = [frame.f_code.co_filename for frame in frames]
    waits = any("/torch/distributed/" in name or "/torchrec/distributed/" in name for name in names[:6])
    waits = waits and not any("/torch/distributed/checkpoint/" in name for name in names)  # it reads, which takes long
    library = ("/site-packages/", "/dist-packages/", "/lib/python", "/lightning_mvrec/strategies/", "<frozen")
    own = [f for f in frames if not any(part in f.f_code.co_filename for part in library)]
    # The outermost ones are the script, which is in `trainer.fit` all the time.
    fit = next((n for n, f in enumerate(frames) if f.f_code.co_filename.endswith("pytorch/trainer/call.py")), None)
    inside = [f for f in own if fit is None or frames.index(f) < fit]
    if not inside and (waits or any(name.endswith("/strategies/watch.py") for name in names)):
        return "", waits  # the line of a collective tells nothing, nor does that of the pause after a skipped lookup
    frame = inside[0] if inside else frames[0]
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}", waits
