"""Look-ahead: while a step computes, the next batch is copied to the device and its ids travel between ranks.

The module's ``training_step`` is not touched: what it looks up in the first step is found again in the batch, and from
then on sent a step ahead from the same place of the next batch. All ranks begin, go on with and end these exchanges at
the same points of a step, whatever happens to one of their batches; a rank without a next batch takes part with none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.strategies.exchanges import Exchange, ExchangedForward, nothing_like
from lightning_mvrec.strategies.loaders import has_state
from lightning_mvrec.strategies.paths import find_ids, follow, record_stream
from lightning_mvrec.strategies.positions import AheadLoader, Taken, ahead_loader
from lightning_mvrec.strategies.sharding import ShardedTables

#: Path of a KeyedJaggedTensor in a batch; None for one that is made in training_step.
Path = tuple[Any, ...] | None


@dataclass
class _Next:
    """The batch after the one in training: as the loader gave it, on the device, and its exchanges by collection."""

    taken: Taken
    moved: Any = None
    error: Exception | None = None
    exchanges: dict[str, list[Exchange | None]] = field(default_factory=dict)

    def all(self) -> list[Exchange]:
        return [exchange for found in self.exchanges.values() for exchange in found if exchange is not None]


class LookAhead:
    """Prepares the next training batch while a step runs.

    Args:
        trainer: Lightning's.
        tables: The module's tables.
        device: This rank's device.
        wanted: ``"auto"``: on CUDA only.
    """

    def __init__(
        self, trainer: pl.Trainer, tables: ShardedTables, device: torch.device, wanted: bool | Literal["auto"]
    ) -> None:
        self._trainer = trainer
        self._tables = tables
        self._device = device
        self._wanted = wanted
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None
        self._loaders: list[AheadLoader] = []
        self._wrapping = False
        self._known_length = True
        self._active: bool | None = None
        self._places: dict[str, list[Path]] | None = None
        self._patterns: dict[str, list[KeyedJaggedTensor | None]] = {}
        self._batch: Any = None
        self._next: _Next | None = None

    def wrap(self, loader: Any) -> Any:
        """Return a training loader whose batches can be taken ahead, or ``loader`` where that is never done."""
        if not self._wrapping:
            self._loaders, self._wrapping = [], True
        self._known_length = sized_len(loader) is not None
        # Lightning takes a batch ahead from a loader without length, whose state would then be one batch too far.
        reason = self._reason_before()
        if reason is not None and self._wanted is True:
            self._say(reason)
        if reason is not None and (self._known_length or not has_state(loader)):
            return loader
        self._loaders.append(ahead_loader(loader, self.drain))
        return self._loaders[-1]

    def moved(self, batch: Any) -> _Next | None:
        """Return what has been made of this batch of the loader already.

        Raises:
            Exception: What moving it has raised.
        """
        prepared = self._next
        if prepared is None or batch is None or prepared.taken.batch is not batch:
            return None
        if prepared.error is not None:
            raise prepared.error
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            record_stream(prepared.moved, current)
        return prepared

    def start(self, batch: Any, batch_idx: int, move: Any) -> None:
        """A step begins with ``batch`` on the device: take the next batch and begin to prepare it.

        Args:
            batch: The batch in training.
            batch_idx: Its number in the epoch.
            move: Moves a batch to the device.
        """
        self._wrapping = False
        if not self._loaders:
            return
        self._loaders[0].begin()
        prepared, self._next = self._next, None
        if prepared is not None:
            assert prepared.moved is batch
            for path, exchanges in prepared.exchanges.items():
                self._tables.guards[path].sent = list(exchanges)
        if self._active is None:
            self._decide()
        if not self._active:
            return
        if self._places is None:
            self._batch = batch
            for guard in self._lookups():
                guard.seen = []
            return
        more = batch_idx + 1 < self._trainer.num_training_batches
        taken = self._loaders[0].peek(take=more and self._known_length)
        if not more or taken is None or (taken.error is not None and not self._known_length):
            return  # on all ranks: lengths were compared, or ranks ask each other for every batch
        self._next = self._prepare(taken, move)

    def advance(self) -> None:
        """A point of the step that all ranks pass: begin the next stage of every exchange under way."""
        if self._next is not None:
            with self._side():
                for exchange in self._next.all():
                    exchange.advance()

    def end(self) -> None:
        """``training_step`` has returned: remember what it looked up; complete what it has not."""
        for guard in self._tables.guards.values():
            for exchange in guard.sent:
                if exchange is not None:
                    self.complete(exchange)
            guard.sent = []
        if self._active and self._places is None:
            self._learn()

    def drain(self) -> None:
        """Complete the exchanges of a batch that will not be trained on. Every rank must call this."""
        prepared, self._next = self._next, None
        if prepared is not None:
            with self._side():
                for exchange in prepared.all():
                    exchange.result()

    def forget(self) -> None:
        """Drop everything, without waiting for other ranks."""
        self._next = self._batch = None
        for guard in self._tables.guards.values():
            guard.sent, guard.seen = [], None

    def _lookups(self) -> list[Any]:
        return [guard for guard in self._tables.guards.values() if guard.once]

    def _reason_before(self) -> str | None:
        if not self._wanted:
            return "look_ahead=False"
        if self._device.type != "cuda":
            if dist.get_world_size() == 1:
                return "one process on CPU has nothing to exchange and nothing to copy"
            if not self._tables.sharded:
                return "no table is sharded, so no ids are exchanged"
            if self._wanted == "auto":
                return 'on CPU it is not on by "auto"'
        return None

    def _reason(self) -> str | None:
        trainer = self._trainer
        assert trainer.fit_loop._combined_loader is not None
        if (reason := self._reason_before()) is not None:
            return reason
        if isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher):
            return "training_step(dataloader_iter) takes its batches itself"
        if len(trainer.fit_loop._combined_loader.flattened) > 1:
            return "there are several training loaders"
        for hook in ("on_before_batch_transfer", "on_after_batch_transfer"):
            for owner in (trainer.lightning_module, getattr(trainer, "datamodule", None)):
                if is_overridden(hook, owner):
                    return f"{type(owner).__name__}.{hook} may depend on the step that it belongs to"
        return None

    def _decide(self) -> None:
        reason = self._reason()
        self._active = reason is None
        assert self._trainer.fit_loop._combined_loader is not None
        if len(self._trainer.fit_loop._combined_loader.flattened) > 1:
            for loader in self._loaders:
                loader.let_go()
        if reason is not None and self._reason_before() is None:
            self._say(reason)

    def _say(self, reason: str) -> None:
        (rank_zero_warn if self._wanted is True else rank_zero_info)(f"look-ahead is off: {reason}")

    def _learn(self) -> None:
        found = {id(ids): path for path, ids in find_ids(self._batch)}
        places: dict[str, list[Path]] = {}
        for guard in self._lookups():
            seen, guard.seen = guard.seen or [], None
            fixed = [None if ids.variable_stride_per_key() else found.get(id(ids)) for ids in seen]
            if any(path is not None for path in fixed):
                places[guard.path] = fixed
                self._patterns[guard.path] = [
                    None if path is None else nothing_like(ids) for ids, path in zip(seen, fixed, strict=True)
                ]
        self._batch = None
        if dist.get_world_size() > 1:
            everywhere: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, places)
            if any(other != places for other in everywhere):
                rank_zero_warn("look-ahead is off: ranks look up different parts of their first batches")
                places = {}
        self._places = places
        if not places and self._stream is None:
            self._active = False
            self._say("training_step looks up no KeyedJaggedTensor of the batch itself")
        for path in places:
            module = self._tables.modules[path]
            module.forward = ExchangedForward(module, self._tables.guards[path].under_way, self.complete)

    def _prepare(self, taken: Taken, move: Any) -> _Next:
        prepared = _Next(taken)
        if taken.error is None and taken.batch is not None:
            try:
                with self._side():
                    prepared.moved = move(taken.batch)
            except Exception as error:  # raised when this batch's turn comes
                prepared.error = error
        assert self._places is not None
        with self._side():
            for collection, places in self._places.items():
                guard, module = self._tables.guards[collection], self._tables.modules[collection]
                made: list[Exchange | None] = []
                for place, nothing in zip(places, self._patterns[collection], strict=True):
                    if place is None or nothing is None:
                        made.append(None)
                        continue
                    ids, on_host = follow(prepared.moved, place), follow(taken.batch, place)
                    usable = ids is not None and ids.keys() == nothing.keys() and not ids.variable_stride_per_key()
                    made.append(guard.send(module, guard.check(ids, on_host) if usable else guard.check(nothing)))
                prepared.exchanges[collection] = made
        return prepared

    @contextmanager
    def _side(self) -> Iterator[None]:
        """On CUDA, the stream on which batches are copied and exchanged."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield

    def complete(self, exchange: Exchange) -> tuple[Any, Any]:
        """Return an exchange's result for use on the current stream."""
        with self._side():
            context, ids = exchange.result()
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            ids.record_stream(current)
            context.record_stream(current)
        return context, ids
