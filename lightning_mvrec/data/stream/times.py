"""Order statistics of more times than fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvrec.data.appender import ArrayAppender, ArrayFile
from lightning_mvrec.data.settings import Settings
from lightning_mvrec.data.stream.chunks import Chunk, Histories, in_order

_BINS = 1 << 16
_ROWS = 1 << 20


class TimesOnDisk:
    """Times in any order, looked up as if they were sorted.

    Each look-up counts them in bins and narrows the range to the bin that holds the place, until a bin is one second.

    Args:
        path: A ``.npy`` file of int64.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(Path(folder) / "times.npy", np.array([30, 10, 20]))
        ...     times = TimesOnDisk(Path(folder) / "times.npy")
        ...     len(times), times[0], times[2]
        (3, 10, 30)
    """

    def __init__(self, path: Path) -> None:
        self._file = ArrayFile(path)
        blocks = [(int(block.min()), int(block.max())) for block in self._blocks()]
        self._low = min((low for low, _ in blocks), default=0)
        self._high = max((high for _, high in blocks), default=0)

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, place: int, /) -> int:
        """Return the ``place``-th smallest."""
        if not 0 <= place < len(self):
            raise IndexError(f"place must be in [0, {len(self)}), got {place}")
        low, high = self._low, self._high + 1
        while high - low > 1:
            width = -(-(high - low) // _BINS)
            count = np.zeros(_BINS, dtype=np.int64)
            for block in self._blocks():
                inside = block[(block >= low) & (block < high)]
                count += np.bincount((inside - low) // width, minlength=_BINS)
            upto = np.cumsum(count)
            number = int(np.searchsorted(upto, place, side="right"))
            place -= int(upto[number - 1]) if number else 0
            low, high = low + number * width, min(low + (number + 1) * width, high)
        return low

    def _blocks(self) -> Any:
        for first in range(0, len(self._file), _ROWS):
            yield self._file.read(first, min(first + _ROWS, len(self._file)))


def candidate_times(
    histories: Histories, settings: Settings, folder: Path, threads: int, advance: Callable[[int], Any]
) -> TimesOnDisk:
    """Return the times of all events that may be targets.

    Args:
        histories: What the first pass left.
        settings: What was asked for.
        folder: For the file of times.
        threads: Chunks that are worked on at a time.
        advance: Called with the number of events after each chunk.
    """
    names = list(histories.views)

    def work(chunk: Chunk) -> list[np.ndarray]:
        views = [histories.history(name, chunk) for name in names]
        eligible = settings.target_filter.eligible(views, [names.index(name) for name in settings.targets])
        return [views[view].time[mask] for view, mask in eligible.items()]

    path = folder / "times.npy"
    with ArrayAppender(path, np.int64) as file:
        for chunk, parts in in_order(work, histories.chunks(), threads):
            for part in parts:
                file.append(part)
            advance(histories.events(chunk))
    return TimesOnDisk(path)
