"""Which rank is at fault when several stand still: decided from their standings alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_mvrec.strategies.standing import AT_END, IN_BACKWARD, IN_STEP, SERVING, Standing


@dataclass(frozen=True)
class Fault:
    """Why a run ends.

    Args:
        rank: The rank at fault.
        text: What it did, to be read after its number: ``hangs: ...``.
        stuck: Whether its main thread cannot be expected to end by itself.
    """

    rank: int
    text: str
    stuck: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank} {self.text}"


def diagnose(standings: Sequence[Standing], limit: float, long_limit: float, sure_after: float) -> Fault | None:
    """Return the fault of the rank that the others wait for in vain, or None as long as all may be well.

    Args:
        standings: Of every rank that is known.
        limit: Seconds without progress that are a hang.
        long_limit: The same for what may take long.
        sure_after: Seconds after which ranks that cannot meet any more are told so.

    Example:
        >>> first = Standing(rank=0, loop=1, batch=4, phase=IN_STEP, still=61, long=False, sequence=9, waits=True)
        >>> other = Standing(rank=1, loop=1, batch=4, phase=IN_STEP, still=60, long=False, sequence=8, where="a.py:7")
        >>> str(diagnose([first, other], limit=60, long_limit=1800, sure_after=3)).split(";")[0]
        'rank 1 hangs: no progress for 60 s in a.py:7'
        >>> diagnose([first, other], limit=90, long_limit=1800, sure_after=3)
    """
    return _missing_lookup(standings, sure_after) or _standstill(standings, limit, long_limit)


def _missing_lookup(standings: Sequence[Standing], sure_after: float) -> Fault | None:
    """Find a rank that has gone past a lookup in which another one waits: they will never meet."""
    for waiting in standings:
        if waiting.left or waiting.still < sure_after or waiting.phase not in (IN_STEP, IN_BACKWARD):
            continue
        for other in standings:
            if (not other.left and other.still < sure_after) or other.phase == SERVING:
                continue
            missing = [path for path, count in waiting.lookups.items() if other.lookups.get(path, 0) < count]
            if not missing:
                continue
            at_end = other.loop == waiting.loop and other.phase == AT_END
            if other.left or other.loop > waiting.loop or at_end:
                return Fault(
                    other.rank,
                    f"has no more batches, rank {waiting.rank} waits in {waiting.where}. Every rank needs the same "
                    "number of batches, and a loader's length must be what it gives",
                    stuck=True,
                )
            past = (other.batch, other.phase) >= (waiting.batch, IN_BACKWARD)
            if other.loop == waiting.loop and past:
                return Fault(
                    other.rank,
                    f"skipped the lookup of {missing[0]!r} that rank {waiting.rank} waits for, in {other.where}. All "
                    "ranks must look up a sharded collection together: look it up with no ids where a rank has none",
                    stuck=True,
                )
            turned = [path for path, count in other.lookups.items() if waiting.lookups.get(path, 0) < count]
            if other.key == waiting.key and turned:
                return Fault(
                    max(other.rank, waiting.rank),
                    f"and rank {min(other.rank, waiting.rank)} look up {turned[0]!r} and {missing[0]!r} in different "
                    f"order, and wait for each other in {waiting.where}",
                    stuck=True,
                )
    return None


def _standstill(standings: Sequence[Standing], limit: float, long_limit: float) -> Fault | None:
    """Find a rank without progress that does not itself wait for one that may still be working."""
    present = [standing for standing in standings if not standing.left]
    # Nobody does anything that may take long where all wait for each other. That all are seen in an exchange says
    # nothing, a set-up that has taken long already consists of many; only that they stay in the same one for long.
    stuck = all(standing.waited >= limit for standing in present)
    still = [s for s in present if s.still >= (long_limit if s.long and not stuck else limit)]
    alone = [
        standing
        for standing in still
        if all(other in still for other in present if other.sequence <= standing.sequence)
    ]
    if not alone:
        return None
    # The others wait for the one that has started the fewest collectives; among equals for one that works.
    last = min(alone, key=lambda standing: (standing.sequence, standing.waits, -standing.rank))
    gone = next((s for s in standings if s.left), None)
    if gone is not None and last.waits:
        text = f"has no more batches, rank {last.rank} waits in {last.where}. All ranks must end together"
        return Fault(gone.rank, text, stuck=True)
    # Not only among those still for as long: the other rank may have come to its exchange a moment later.
    working = next((s for s in present if s.phase != SERVING), None)
    if last.phase == SERVING and working is not None:
        return Fault(
            last.rank,
            f"has no more batches of this evaluation, and rank {working.rank} waits in {working.where}. Where ranks "
            "have different numbers of batches a step may meet the other ranks by looking up sharded tables only: log "
            "with on_epoch=True, not on_step=True, and let metrics meet at the end of the epoch",
            stuck=True,
        )
    allowed = "timeout" if last.long and not stuck else "failure_timeout"
    others = [s for s in alone if s is not last and s.sequence == last.sequence]
    also = "".join(f"; rank {s.rank} is in {s.where}" for s in others)
    return Fault(
        last.rank,
        f"hangs: no progress for {last.still:.0f} s in {last.where}{also}; TorchRecStrategy({allowed}=...) allows more",
        stuck=True,
    )
