"""Read ahead: the engine makes the next blocks while this one is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any

_END = object()


def read_ahead(blocks: Iterable[Any], depth: int = 2) -> Iterator[Any]:
    """Yield what another thread takes from ``blocks``; an error of that thread is raised here.

    Args:
        blocks: What to take from.
        depth: How many are held ready.

    Example:
        >>> list(read_ahead(range(4)))
        [0, 1, 2, 3]
    """
    ready: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(value: Any) -> bool:
        while not stop.is_set():
            try:
                ready.put(value, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def take() -> None:
        try:
            for block in blocks:
                if not put(block):
                    return
            put(_END)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not _END:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        # Also where the caller stops early: the thread must not go on using an engine that is being closed.
        stop.set()
        thread.join()
