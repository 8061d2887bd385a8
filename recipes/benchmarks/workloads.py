"""What is looked up: ids and histories of a benchmark, and the batches made of them.

B users of this rank, E events over them, T steps of the longest history, M distinct ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

FEATURE = "item"


class Drawn(NamedTuple):
    """Ids and lengths of this rank's users."""

    id_E: np.ndarray
    length_B: np.ndarray
    label_B: np.ndarray


@dataclass(frozen=True)
class Workload:
    """One table and the histories that are looked up in it.

    Args:
        lookups: ``"pooled"``: the mean of a history; ``"sequence"``: a vector for each event.
        ids: ``"uniform"`` or ``"zipf"`` (exponent 1.1, popular ids spread over the table).
        lengths: ``"equal"``, or ``"unequal"``: 1 to 2 ``length`` - 1, evenly.
        rows: Rows of the table.
        dim: Width of the table.
        batch: Users over all processes.
        length: Mean length of a history.
    """

    lookups: str
    ids: str
    lengths: str
    rows: int
    dim: int = 32
    batch: int = 1024
    length: int = 50

    @property
    def longest(self) -> int:
        """Longest history that may come."""
        return self.length if self.lengths == "equal" else 2 * self.length - 1


class Source:
    """Draws the histories of one rank, and makes them batches.

    Args:
        workload: What to draw.
        rank: This process; each draws other numbers.
        world_size: Number of processes.
    """

    def __init__(self, workload: Workload, rank: int, world_size: int) -> None:
        self.workload = workload
        self._users = workload.batch // world_size
        self._rng = np.random.default_rng(rank)
        self._place = np.zeros(0, dtype=np.int64)
        if workload.ids == "zipf":
            self._share = np.cumsum(np.arange(1, workload.rows + 1) ** -1.1)

    def draw(self) -> Drawn:
        """Return new histories."""
        load, rng = self.workload, self._rng
        length_B = np.full(self._users, load.length, dtype=np.int64)
        if load.lengths == "unequal":
            length_B = rng.integers(1, load.longest + 1, self._users)
        events = int(length_B.sum())
        if load.ids == "uniform":
            id_E = rng.integers(0, load.rows, events)
        else:
            place_E = np.searchsorted(self._share, rng.random(events) * self._share[-1])
            id_E = place_E * 2_654_435_761 % load.rows  # a prime, so that every id keeps one place
        return Drawn(id_E, length_B, rng.integers(0, 2, self._users).astype(np.float32))

    def plain(self, drawn: Drawn) -> dict[str, Any]:
        """Return ids as a tensor."""
        return {"ids": torch.from_numpy(drawn.id_E), **_rest(drawn)}

    def jagged(self, drawn: Drawn) -> dict[str, Any]:
        """Return ids as a KeyedJaggedTensor, one bag a user."""
        return {"ids": _kjt(drawn.id_E, drawn.length_B), **_rest(drawn)}

    def distinct(self, drawn: Drawn) -> dict[str, Any]:
        """Return each distinct id once as a bag of one, and every event's position among them.

        As this package's collator does it: by marks in a table, which costs less than sorting.
        """
        if not len(self._place):
            self._place = np.empty(self.workload.rows, dtype=np.int64)
        marked = np.zeros(self.workload.rows, dtype=bool)
        marked[drawn.id_E] = True
        id_M = np.flatnonzero(marked)
        self._place[id_M] = np.arange(len(id_M))
        position_E = self._place[drawn.id_E]
        return {
            "ids": _kjt(id_M, np.ones_like(id_M)),
            "position": torch.from_numpy(position_E),
            **_rest(drawn),
        }


def _kjt(id_E: np.ndarray, length_B: np.ndarray) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        [FEATURE], values=torch.from_numpy(id_E), lengths=torch.from_numpy(length_B), stride=len(length_B)
    )


def _rest(drawn: Drawn) -> dict[str, Tensor]:
    return {"length": torch.from_numpy(drawn.length_B), "label": torch.from_numpy(drawn.label_B)}
