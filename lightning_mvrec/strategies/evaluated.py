"""Evaluation of ranks that have different numbers of batches: no batch is lost, no example counts twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DistributedSampler

from lightning_mvrec.strategies.company import Company
from lightning_mvrec.strategies.loaders import PassingLoader, count_batches
from lightning_mvrec.strategies.logged import fill_up
from lightning_mvrec.strategies.sharding import ShardedTables


class EvaluatedStrategy(DDPStrategy):
    """DDP that evaluates all batches of all ranks, once :meth:`_evaluate_all_of` was called on its loaders."""

    _company: Company | None = None
    _stop_company: Callable[[], None] | None = None

    def _evaluate_all_of(self, loader: Any, tables: ShardedTables, waits: Callable[[], None]) -> Any:
        """Return an evaluation loader that has as many batches as the longest of any rank says that it has."""
        if dist.get_world_size() == 1:
            return loader
        leave_out_repeats(loader)
        mine, smallest, largest = count_batches(loader, self.root_device)
        if smallest == largest and mine >= 0:
            return loader
        if self._company is None:
            self._company = Company(tables, self.root_device, waits)
        return loader if smallest < 0 else LongestLoader(loader, smallest, largest)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Reduce over ranks; the mean of whole numbers is not cut: Lightning divides a metric by a mean of counts."""
        if isinstance(tensor, Tensor) and reduce_op in ("mean", "avg") and not tensor.is_floating_point():
            tensor = tensor.double()
        return super().reduce(tensor, group, reduce_op)

    def on_validation_start(self) -> None:
        """Begin to look up together, where ranks have different numbers of batches."""
        super().on_validation_start()
        self._begin_company("_store_dataloader_outputs")

    def on_validation_end(self) -> None:
        """Lookups are made by all ranks at once again."""
        super().on_validation_end()
        self._end_company()

    def on_test_start(self) -> None:
        """Begin to look up together, where ranks have different numbers of batches."""
        super().on_test_start()
        self._begin_company("_store_dataloader_outputs")

    def on_test_end(self) -> None:
        """Lookups are made by all ranks at once again."""
        super().on_test_end()
        self._end_company()

    def on_predict_start(self) -> None:
        """Begin to look up together, where ranks have different numbers of batches."""
        super().on_predict_start()
        self._begin_company("_on_predict_epoch_end")

    def on_predict_end(self) -> None:
        """Lookups are made by all ranks at once again."""
        super().on_predict_end()
        self._end_company()

    def _begin_company(self, last: str) -> None:
        """Look up together until the loop calls its method ``last``, which it does when a loader has ended."""
        company = self._company
        if company is None:
            return
        assert self.lightning_module is not None
        trainer = self.lightning_module.trainer
        loop: Any = trainer._active_loop
        loaders = loop._combined_loader.flattened
        if len(loaders) > 1 and any(isinstance(loader, LongestLoader) and not loader.smallest for loader in loaders):
            raise ValueError("with several evaluation loaders every rank must have a batch of each, got one without")
        then = getattr(loop, last)

        def ended() -> Any:
            company.serve()
            if getattr(loop, "_results", None) is not None:
                fill_up(loop._results, trainer, company.group)
            return then()

        def stop() -> None:
            company.end()
            if last in vars(loop):
                delattr(loop, last)

        setattr(loop, last, ended)
        company.begin()
        self._stop_company = stop

    def _end_company(self) -> None:
        stop, self._stop_company = self._stop_company, None
        if stop is not None:
            stop()

    def teardown(self) -> None:
        """Leave the loops as they were."""
        self._forget_company()
        super().teardown()

    def _forget_company(self) -> None:
        self._end_company()
        self._company = None


class LongestLoader(PassingLoader):
    """A loader that says it has as many batches as the rank with the most; Lightning skips a loader that has none.

    Args:
        loader: This rank's loader.
        smallest: The smallest number of batches that a rank has.
        largest: The largest one.
    """

    def __init__(self, loader: Any, smallest: int, largest: int) -> None:
        super().__init__(loader)
        self._smallest = smallest
        self._largest = largest

    @property
    def smallest(self) -> int:
        """The smallest number of batches that a rank has."""
        return self._smallest

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)

    def __len__(self) -> int:
        return self._largest


def _each_once(kind: Any) -> Any:
    """Return a sampler's class whose objects do not repeat examples so that all ranks have the same number."""

    class EachOnce(kind):
        repeats = False

        def __iter__(self) -> Iterator[Any]:
            return islice(super().__iter__(), len(self))

        def __len__(self) -> int:
            return len(range(self.rank, len(self.dataset), self.num_replicas))

    return EachOnce


def leave_out_repeats(loader: Any) -> None:
    """Make the distributed sampler of a loader, Lightning's own or torch's, give out every example once.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampler = DistributedSampler(range(5), num_replicas=2, rank=1, shuffle=False)
        >>> loader = DataLoader(range(5), sampler=sampler, batch_size=None)
        >>> list(sampler), leave_out_repeats(loader), list(sampler), len(loader)
        ([1, 3, 0], None, [1, 3], 2)
    """
    for sampler in (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)):
        repeats = (
            isinstance(sampler, DistributedSampler) and not sampler.drop_last and getattr(sampler, "repeats", True)
        )
        if repeats:
            sampler.__class__ = _each_once(type(sampler))  # a loader does not let its sampler be replaced
