"""A loader that may run ahead of the training, and whose state is nevertheless that of the batch in training."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lightning_mvrec.strategies.loaders import PassingLoader, has_state


@dataclass
class Taken:
    """A batch taken from a loader.

    Args:
        batch: The batch; None if there was none.
        state: The loader's state with this batch as the last one taken; None if it has no state.
        error: What the loader raised in its place, StopIteration included.
    """

    batch: Any
    state: dict[str, Any] | None = None
    error: Exception | None = None


class AheadLoader(PassingLoader):
    """A loader from which batches may be taken before they are asked for.

    Batches taken ahead are handed out when their turn comes, and what the loader raised is raised then. Nothing is
    taken before the first batch is asked for.

    Args:
        loader: This rank's loader.
        on_start: Called when an iteration begins.
    """

    def __init__(self, loader: Any, on_start: Callable[[], None] = lambda: None) -> None:
        super().__init__(loader)
        self._on_start = on_start
        self._batches: Iterator[Any] | None = None
        self._ahead: deque[Taken] = deque()  # taken, not handed out
        self._out: deque[Taken] = deque()  # handed out, not in training
        self._current: Taken | None = None  # in training
        self._followed = True

    def __iter__(self) -> Iterator[Any]:
        self._on_start()
        self._clear()
        self._batches = iter(self._loader)
        while True:
            taken = self._ahead.popleft() if self._ahead else self._take()
            if isinstance(taken.error, StopIteration):
                return
            if taken.error is not None:
                raise taken.error
            if self._followed:
                self._out.append(taken)
            yield taken.batch

    def __len__(self) -> int:
        return len(self._loader)

    def begin(self) -> None:
        """The next batch that was handed out is now in training."""
        if self._out:
            self._current = self._out.popleft()

    def let_go(self) -> None:
        """Hand batches out and keep none: nobody says which of them is in training."""
        self._followed = False
        self._out.clear()
        self._current = None

    def peek(self, take: bool) -> Taken | None:
        """Return the batch after the one in training.

        Args:
            take: Whether to take it from the loader if that has not happened yet. None is returned otherwise.
        """
        if self._out:
            return self._out[0]
        if not self._ahead and take and self._batches is not None:
            self._ahead.append(self._take())
        return self._ahead[0] if self._ahead else None

    def _take(self) -> Taken:
        assert self._batches is not None
        try:
            batch = next(self._batches)
        except Exception as error:
            return Taken(None, error=error)
        return Taken(batch, state=self._snapshot() if self._followed else None)

    def _snapshot(self) -> dict[str, Any] | None:
        return None

    def _clear(self) -> None:
        self._ahead.clear()
        self._out.clear()
        self._current = None


class StatefulAheadLoader(AheadLoader):
    """An :class:`AheadLoader` around a loader with state; Lightning asks the class whether it has any."""

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's state with the batch in training as the last one taken."""
        further = any(taken.error is None for taken in (*self._out, *self._ahead))
        if self._current is not None and self._current.state is not None and further:
            return copy.deepcopy(self._current.state)
        return self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the loader its state back."""
        self._clear()
        self._loader.load_state_dict(state_dict)

    def _snapshot(self) -> dict[str, Any]:
        return copy.deepcopy(self._loader.state_dict())


def ahead_loader(loader: Any, on_start: Callable[[], None] = lambda: None) -> AheadLoader:
    """Return ``loader`` as one from which batches may be taken ahead, with state if it has state.

    Example:
        >>> loader = ahead_loader([1, 2])
        >>> batches = iter(loader)
        >>> next(batches), loader.begin(), loader.peek(take=True).batch
        (1, None, 2)
        >>> next(batches)
        2
    """
    return (StatefulAheadLoader if has_state(loader) else AheadLoader)(loader, on_start)
