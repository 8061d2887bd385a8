"""DDP whose ranks watch each other: when one fails, all end, with a message that names it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.fabric.utilities.distributed import _init_dist_connection
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.optim import Optimizer

from lightning_mvrec.strategies.advice import advise
from lightning_mvrec.strategies.ending import say
from lightning_mvrec.strategies.standing import Beat, Observer
from lightning_mvrec.strategies.watch import TERMINATED, Limits, Surroundings, Watch

_LAUNCHER = "MVREC_LAUNCHER_PID"
#: Seconds that a process which has started others is given to end by itself, once it is not watched any more.
_TO_END = 10.0


class WatchedStrategy(DDPStrategy):
    """DDP with a :class:`Watch` over every run of more than one process.

    Args:
        failure_timeout: Seconds without progress inside a loop over batches after which a rank is taken to hang; also
            what a process that has to end is given. None: ranks do not watch each other.
        timeout: The same for what may take long: set-up, the first batch, saving, the end of an epoch.
        arguments: Those of ``DDPStrategy``.

    Raises:
        ValueError: If ``failure_timeout`` is not above 0.
    """

    def __init__(self, failure_timeout: float | timedelta | None, timeout: timedelta, **arguments: Any) -> None:
        super().__init__(timeout=timeout, **arguments)
        seconds = failure_timeout.total_seconds() if isinstance(failure_timeout, timedelta) else failure_timeout
        if seconds is not None and seconds <= 0:
            raise ValueError(f"failure_timeout must be above 0 seconds, or None, got {failure_timeout!r}")
        self._failure_timeout = seconds
        self._beat = Beat()
        self._watch: Watch | None = None
        self._hooks: _Hooks | None = None
        self._all_watch = False
        self._usual: dict[str, set[str]] = {}

    def _configure_launcher(self) -> None:
        if self.num_processes * self.num_nodes == 1:
            return  # one device needs no launcher, which also makes it work in a notebook
        super()._configure_launcher()
        assert self.cluster_environment is not None
        launches = isinstance(self._launcher, _SubprocessScriptLauncher)
        if launches and not self.cluster_environment.creates_processes_externally:
            os.environ[_LAUNCHER] = str(os.getpid())  # the processes that it starts look for it

    def setup_environment(self) -> None:
        """Join the process group and begin to watch its ranks."""
        with _not_alone(self._launching_pid()):
            super().setup_environment()
        size = dist.get_world_size()
        module = self.lightning_module
        assert module is not None
        assert self.cluster_environment is not None
        if size == 1 or self._failure_timeout is None:
            return
        trainer = module.trainer
        rank = dist.get_rank()
        self._beat = Beat()
        world: Any = dist.group.WORLD
        surroundings = Surroundings(
            exchange=self.broadcast,
            address=self.cluster_environment.main_address,
            observer=Observer(rank, self._beat, world._get_sequence_number_for_group, self._count_lookups),
            exit_status=self._exit_status,
            finalize=lambda: _finalize(trainer),
            between_batches=trainer.state.fn == TrainerFn.FITTING,
        )
        assert self._timeout is not None
        watch = Watch(rank, size, Limits(self._failure_timeout, self._timeout.total_seconds()), surroundings)
        started = watch.start()
        all_watch = self.reduce_boolean_decision(started)
        if not started:
            say(rank, "rank 0 cannot be reached beside the process group: if a rank fails, no message will name it")
            return
        self._watch = watch
        _let_watch_go_first(watch.thread)
        self._usual = {}
        self._hooks = _Hooks(trainer, watch, self._beat)
        self._all_watch = all_watch

    def setup_distributed(self) -> None:
        """Join the process group; after a restart by torchrun under keys of its own.

        Torchrun keeps its store, and a rank that is early would find where the processes of the last attempt were.
        Several machines may count their restarts differently: there the keys are torch's.
        """
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1"
        if kept and attempt != "0" and not dist.is_initialized():
            place = self.cluster_environment
            assert place is not None
            assert self._timeout is not None
            store = dist.TCPStore(place.main_address, place.main_port, is_master=False, timeout=self._timeout)
            _init_dist_connection(
                place,
                self._get_process_group_backend(),
                store=dist.PrefixStore(f"attempt_{attempt}", store),
                timeout=self._timeout,
                device_id=self.root_device if self.root_device.type == "cuda" else None,
            )
        super().setup_distributed()

    def _launching_pid(self) -> int | None:
        assert self.cluster_environment is not None
        launched = isinstance(self._launcher, _SubprocessScriptLauncher) and self.local_rank > 0
        pid = os.environ.get(_LAUNCHER)
        return int(pid) if launched and pid and not dist.is_initialized() else None

    def _count_lookups(self) -> Mapping[str, int]:
        """Return how often this rank has begun to look up each sharded collection."""
        return {}

    def _exit_status(self, rank: int) -> int | None:
        processes = self._launcher.procs if isinstance(self._launcher, _SubprocessScriptLauncher) else []
        return processes[rank - 1].poll() if 0 < rank <= len(processes) else None

    def teardown(self) -> None:
        """Leave the watch, then let go of the module."""
        self._leave()
        super().teardown()

    @contextmanager
    def _leaving(self) -> Iterator[None]:
        """Leave the watch when the context ends, in good or ill."""
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        watch, self._watch = self._watch, None
        hooks, self._hooks = self._hooks, None
        if hooks is not None:
            hooks.remove()
        if watch is not None:
            watch.stop()

    def on_exception(self, exception: BaseException) -> None:
        """Say the way out under this strategy."""
        advise(exception)

    def _stop_notice(self) -> int:
        """Return what this rank has to tell the others of SIGTERM."""
        return self._watch.stop_notice if self._watch else 0

    def _note_stop(self, notice: int) -> None:
        """Take the largest notice of all ranks, in the same step on each: no exchange before the next batch."""
        if self._hooks and self._all_watch:
            self._hooks.notice = notice

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Say that a checkpoint is being written, which may take long."""
        self._beat.saving = True
        try:
            yield
        finally:
            self._beat.saving = False
            self._beat.count += 1

    @contextmanager
    def _looking(self, kind: str) -> Iterator[None]:
        """Pause once if a step leaves out a lookup that other ranks may be waiting in."""
        watch = self._watch
        if watch is None:
            yield
            return
        before = self._count_lookups()
        yield
        made = {path for path, count in self._count_lookups().items() if count > before.get(path, 0)}
        usual = self._usual.get(kind, set(before))
        self._usual[kind] = usual & made
        if not usual <= made:
            self._beat.backward()
            watch.pause()

    @contextmanager
    def _evaluating(self, kind: str) -> Iterator[None]:
        """Mark the beginning and the end of a batch of an evaluation."""
        self._beat.step()
        with self._looking(kind):
            yield
        self._beat.stepped()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's ``training_step`` between two marks."""
        self._beat.step()
        with self._looking("training"):
            output = super().training_step(*args, **kwargs)
        self._beat.backward()
        return output

    def post_backward(self, closure_loss: Tensor) -> None:
        """Mark the end of a backward pass."""
        super().post_backward(closure_loss)
        self._beat.count += 1

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Step, and mark the end of the batch."""
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        self._beat.stepped()
        return output

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's ``validation_step`` between two marks."""
        with self._evaluating("validation"):
            return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's ``test_step`` between two marks."""
        with self._evaluating("test"):
            return super().test_step(*args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's ``predict_step`` between two marks."""
        with self._evaluating("predict"):
            return super().predict_step(*args, **kwargs)


class _Hooks(pl.Callback):
    """What a watch has to see of the Trainer: where loops begin and end, exceptions before all others, SIGTERM."""

    def __init__(self, trainer: pl.Trainer, watch: Watch, beat: Beat) -> None:
        self._trainer, self._watch, self._beat = trainer, watch, beat
        self._fitting = trainer.state.fn == TrainerFn.FITTING
        self._paused = False
        #: What ranks have told each other in the last training step, if that was the last thing that happened.
        self.notice: int | None = None
        # First: another callback may save on an exception, and wait for ranks that are not told yet.
        trainer.callbacks.insert(0, self)  # type: ignore[attr-defined]
        # Lightning's own handler starts a broadcast in the middle of whatever the rank is doing, and its agreement
        # hides a lost connection.
        trainer._signal_connector._sigterm_notifier_fn = self._note_sigterm  # type: ignore[method-assign, assignment]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = self._agree  # type: ignore[method-assign]

    def remove(self) -> None:
        """Leave the Trainer as it was."""
        self._trainer.callbacks.remove(self)  # type: ignore[attr-defined]
        del self._trainer._signal_connector._sigterm_notifier_fn
        del self._trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor

    def _note_sigterm(self, signum: int, frame: Any) -> None:
        self._watch.ask_to_stop()

    def _agree(self) -> None:
        """Stop on all ranks before the same batch, which Lightning asks before each, by an exchange of its own."""
        rank, self.notice = self.notice, None
        if rank is None:
            told = torch.tensor([self._watch.stop_notice], device=self._trainer.strategy.root_device)
            dist.broadcast(told, src=0)
            rank = int(told)
        if rank:
            self._watch.stopping()
            where = f"batch {self._trainer.fit_loop.epoch_loop.batch_idx + 1} of epoch {self._trainer.current_epoch}"
            say(dist.get_rank(), f"stopped before {where}, since rank {rank - 1} received SIGTERM")
            self._trainer._signal_connector.received_sigterm = True
            raise SIGTERMException(TERMINATED)  # with Lightning's own status, 0, torchrun would take it for success

    def _begin_epoch(self) -> None:
        self.notice = None  # as old as what was done before this epoch or in the middle of it
        loop = self._trainer.fit_loop.epoch_loop
        self._beat.begin(f"epoch {self._trainer.current_epoch}", True, loop.batch_progress.current.ready)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin_epoch()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._beat.end()
        loop = trainer.fit_loop.epoch_loop
        fewer = loop.batch_progress.current.ready < trainer.num_training_batches < float("inf")
        if fewer and not self._paused and not trainer.should_stop and not loop._is_training_done:
            self._paused = True
            self._watch.pause()  # its loader has ended early: do the others still train?

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._beat.begin("validation", False)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._beat.end()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._fitting and not trainer.sanity_checking:
            self._begin_epoch()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._beat.begin("test", False)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._beat.end()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._beat.begin("prediction", False)

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._beat.end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException):
            return
        if (fault := self._watch.explain(exception)) is not None:
            # What this rank was waiting in says nothing; the message does.
            exception.args = (str(fault),)
            exception.__cause__, exception.__suppress_context__ = None, True
            exception.__traceback__ = None
            return
        words = str(exception).strip().split("\n")[0]
        self._watch.report(f"failed: {type(exception).__name__}: {words} ({self._beat.describe()})")


def _finalize(trainer: pl.Trainer) -> None:
    for logger in trainer.loggers:  # on other ranks they do nothing
        with contextlib.suppress(Exception):
            logger.finalize("failed")


def _let_watch_go_first(watch: threading.Thread) -> None:
    """Let Lightning kill this process for the loss of another one only after there was time to say which, and to end.

    Its thread looks every five seconds, which may be a moment after the loss.
    """

    def end(observer: _ChildProcessObserver) -> None:
        watch.join()  # it ends the process itself, unless an exception is on its way out of the Trainer
        time.sleep(_TO_END)
        type(observer)._terminate_all(observer)

    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._terminate_all = partial(end, thread)  # type: ignore[method-assign]


@contextmanager
def _not_alone(launcher: int | None) -> Iterator[None]:
    """End this process if the one that has started it is gone before both have joined their process group."""
    joined = threading.Event()

    def look() -> None:
        while os.getppid() == launcher:
            if joined.wait(1.0):
                return
        if not joined.is_set():
            say(int(os.environ.get("LOCAL_RANK", 0)), "rank 0 is gone: the process that has started this one ended")
            os._exit(1)

    thread = threading.Thread(target=look, daemon=True, name="mvrec-launcher")
    if launcher is not None:
        thread.start()
    try:
        yield
    finally:
        joined.set()
        if launcher is not None:
            thread.join()
