"""A loader of ready batches that Lightning leaves alone, equal for every rank and world size.

X examples of a stage, B users of one rank's batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_mvrec.batch import MultiViewBatch
from lightning_mvrec.data.collate import Collator
from lightning_mvrec.data.examples import Examples
from lightning_mvrec.data.negatives import Negatives


def epoch_order(
    examples: Examples, batch_size: int, bucket_batches: int, shuffle: bool, seed: int, epoch: int
) -> list[np.ndarray]:
    """Return the numbers of the examples of every global batch, of similar length where possible.

    Shuffled: all examples, sorted by length within chunks of ``bucket_batches`` batches, then the batches. Otherwise
    from the longest to the shortest. Only the arguments decide: no state, no world size.
    """
    if not shuffle:
        order = np.argsort(-examples.length, kind="stable")
        return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(examples))
    chunk = batch_size * bucket_batches
    batches = []
    for at in range(0, len(order), chunk):
        part = order[at : at + chunk]
        part = part[np.argsort(-examples.length[part], kind="stable")]
        batches += [part[start : start + batch_size] for start in range(0, len(part), batch_size)]
    return [batches[number] for number in rng.permutation(len(batches))]


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, batch number); the epoch travels with the index, so workers need no state.

    Args:
        num_batches: Batches of an epoch.
    """

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.epoch = 0
        self.first = 0  # batch that the next iteration begins with

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields; Lightning calls this, also after a resume."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        return ((epoch, number) for number in range(self.first, self.num_batches))

    def __len__(self) -> int:
        return self.num_batches


class BatchDataset(Dataset[MultiViewBatch]):
    """One rank's slice of every global batch, by (epoch, batch number).

    Args:
        examples: The stage's examples.
        collator: Builds the batch.
        negatives: Set-up sampler, or None.
        batch_size: Users of a global batch.
        shuffle: Whether each epoch has an order of its own.
        bucket_batches: See :func:`epoch_order`.
        seed: Seed of order and negatives.
        rank: This process.
        world_size: All processes.
    """

    def __init__(
        self,
        examples: Examples,
        collator: Collator,
        negatives: Negatives | None,
        batch_size: int,
        shuffle: bool,
        bucket_batches: int = 16,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.examples = examples
        self.collator = collator
        self.negatives = negatives
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.bucket_batches = bucket_batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._epoch = -1
        self._batches: list[np.ndarray] = []

    def __len__(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    def order_settings(self) -> dict[str, int]:
        """Return what the batches of an epoch depend on, by name; rank and world size are not among it."""
        return {
            "num_examples": len(self.examples),
            "batch_size": self.batch_size,
            "bucket_batches": self.bucket_batches,
            "seed": self.seed,
        }

    def __getitem__(self, index: tuple[int, int]) -> MultiViewBatch:
        epoch, number = index
        if not self.shuffle:
            epoch = 0
        if epoch != self._epoch:
            self._batches = epoch_order(
                self.examples, self.batch_size, self.bucket_batches, self.shuffle, self.seed, epoch
            )
            self._epoch = epoch
        batch = self._batches[number]
        # Every rank gets every world_size-th example, so that all have examples of about the same length; the last
        # rows of a batch that does not divide are empty.
        rows = -(-len(batch) // self.world_size)
        padded = np.full(rows * self.world_size, -1, dtype=np.int64)
        padded[: len(batch)] = batch
        return self.collator(
            self.examples,
            padded[self.rank :: self.world_size],
            total_weight=float(self.examples.weight[batch].sum()) / self.world_size,
            drawn=self._draw(epoch, number, batch),
        )

    def _draw(self, epoch: int, number: int, batch: np.ndarray) -> np.ndarray | None:
        negatives = self.negatives
        if negatives is None or negatives.catalogue:
            return None
        # Drawn for the global batch on every rank, so that ranks and world sizes agree.
        rng = np.random.default_rng([self.seed, int(self.shuffle), epoch, number])
        if not negatives.per_target:
            return negatives.draw(rng, (negatives.num,))
        most = int(self.examples.count[batch].max())
        drawn = negatives.draw(rng, (len(batch), most, negatives.num))
        rows = -(-len(batch) // self.world_size) * self.world_size
        if rows > len(batch):
            drawn = np.concatenate([drawn, np.ones((rows - len(batch), most, negatives.num), dtype=drawn.dtype)])
        return drawn[self.rank :: self.world_size]


class BatchLoader:
    """Iterates the batches of one rank. Not a ``DataLoader``, so Lightning neither replaces its sampler nor wraps it.

    Its state is the position in the epoch, so that a run resumed inside an epoch goes on with the next batch. It counts
    the batches handed out, not those that workers have prepared, and is the same on every rank and world size.

    Args:
        dataset: The batches.
        num_workers: Processes that build batches.
        pin_memory: Whether batches are put into page-locked memory.
    """

    batch_sampler = None  # Lightning asks for it where it finds a ``sampler``

    def __init__(self, dataset: BatchDataset, num_workers: int = 0, pin_memory: bool = False) -> None:
        self.dataset = dataset
        self.sampler = EpochSampler(len(dataset))
        self._epoch = 0
        self._handed_out = 0
        self._loaded: dict[str, Any] | None = None
        self._loader: DataLoader[MultiViewBatch] = DataLoader(
            dataset,
            batch_size=None,
            sampler=self.sampler,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # An iterator draws a seed for its workers when it is made. From the global generator that draw would shift
            # the dropout of a resumed run, which makes its iterators at other times than an uninterrupted one.
            generator=torch.Generator().manual_seed(dataset.seed),
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[MultiViewBatch]:
        # A generator, so that the epoch is read at the first batch: after a resume Lightning makes the iterator before
        # it calls set_epoch, and an eager one would read epoch 0 again.
        self._epoch = self.sampler.epoch
        self._handed_out = self.sampler.first = self._first_batch(self._epoch)
        for batch in self._loader:
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position: the epoch, the batches handed out in it, and what the order of batches depends on."""
        if self._loaded is not None:
            return dict(self._loaded)
        return {"epoch": self._epoch, "batches": self._handed_out, **self.dataset.order_settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a position; the next iteration of the same epoch begins there, one of another at its first batch.

        Raises:
            ValueError: If the state is another loader's.
        """
        missing = {"epoch", "batches", *self.dataset.order_settings()} - set(state_dict)
        if missing:
            raise ValueError(f"state_dict must be a BatchLoader's, got one without {sorted(missing)}")
        self._loaded = dict(state_dict)

    def _first_batch(self, epoch: int) -> int:
        """The batch that an iteration begins with; a loaded position is used once.

        Raises:
            ValueError: If the epoch goes on, but not in the order that it began in.
        """
        state, self._loaded = self._loaded, None
        if state is None or state["epoch"] != epoch or not 0 < state["batches"] < len(self):
            return 0
        for name, value in self.dataset.order_settings().items():
            if state[name] != value:
                raise ValueError(
                    f"{name} must be {state[name]}, as in the run that stopped after batch {state['batches']} of epoch "
                    f"{epoch}, got {value}: the rest of the epoch is not known. Resume from an epoch's checkpoint to "
                    "change it"
                )
        return state["batches"]
