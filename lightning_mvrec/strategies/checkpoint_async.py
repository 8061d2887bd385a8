"""One checkpoint at a time is written by a thread while training goes on.

The tensors were copied beforehand. The thread talks to the other ranks in a group of its own (gloo): on the group of
the training, its messages would come between those of a step. What depends on the checkpoint (removing the one that it
replaces, a link to it) waits until it is whole, and is left undone if it does not become so.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from lightning_mvrec.strategies.checkpoint import Staged, on_rank_zero, remove, stage, write_staged
from lightning_mvrec.strategies.checkpoint_callbacks import follow, unfollow

#: Seconds that a rank waits for its own thread once another rank's has failed.
_GRACE = 10.0


class Saves:
    """Writes the checkpoints of a run, beside its training if that is wanted. Every rank makes the same calls.

    Args:
        background: Whether a run goes on while its checkpoints are written.
        timeout: After this time, a rank that waits for another in the background gives up.
    """

    def __init__(self, background: bool, timeout: timedelta) -> None:
        self._background = background
        self._timeout = timeout
        self._group: dist.ProcessGroup | None = None
        self._world: dist.ProcessGroup | None = None
        self._save: _Save | None = None
        self._trainer: pl.Trainer | None = None
        self._linked: list[Path] = []

    def open(self, trainer: pl.Trainer) -> None:
        """Begin a fit: until it is closed, checkpoints may be written beside it."""
        self._trainer = trainer
        follow(trainer.callbacks, self)  # type: ignore[attr-defined]

    def write(
        self,
        path: str | os.PathLike[str],
        checkpoint: dict[str, Any],
        table_state: Mapping[str, Tensor | ShardedTensor],
        plan: Mapping[str, Any] | None,
    ) -> None:
        """Write a checkpoint directory, see :func:`checkpoint.write`; the one before is waited for.

        Args:
            path: The directory.
            checkpoint: Lightning's checkpoint.
            table_state: This rank's part of the tables' optimizer state.
            plan: Where the tables lie.

        Raises:
            OSError: If this one, or in the background the one before, could not be written.
        """
        self.wait()
        # What Slurm's signal handler or an error has saved must be there when this returns: the process ends.
        ending = self._interrupted or Path(path).name.startswith("hpc_ckpt")
        background = self._background and self._trainer is not None and not ending
        staged = stage(path, checkpoint, table_state, plan, copy=background)
        if not background:
            write_staged(staged)
            return
        if self._world is not dist.group.WORLD:  # the first save, or the first after the processes met anew
            self._world = dist.group.WORLD
            # torch 2.14 says that it may be a number: to a rank outside of the group, and none is.
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=self._timeout))
        self._save = _Save(staged, self._group)
        self._save.thread.start()

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is whole.

        Raises:
            OSError: If it could not be written. An error that is ending the run already is not hidden: then it warns.
        """
        save, self._save = self._save, None
        if save is None:
            return
        save.thread.join()
        if save.error is None:
            return
        message = f"{save.name} could not be written in the background: {save.reason}"
        if not self._interrupted:
            raise OSError(message) from save.error
        warnings.warn(message, stacklevel=2)

    def check(self, device: torch.device) -> None:
        """Raise on all ranks at once if the thread of any of them has failed. It does not wait for the threads.

        Args:
            device: Device for the exchange between ranks, of two numbers and only while a checkpoint is being written.

        Raises:
            OSError: With the reasons of all ranks that have one.
        """
        save = self._save
        if save is None:
            return
        ended = not save.thread.is_alive()
        failed = ended and save.error is not None
        if dist.get_world_size() > 1:
            agreed = torch.tensor([int(ended), int(not failed)], device=device)
            dist.all_reduce(agreed, dist.ReduceOp.MIN)
            ended, failed = bool(agreed[0]), not bool(agreed[1])
        if not failed:
            if ended:
                self._save = None
            return
        self._save = None
        save.thread.join(_GRACE)  # on this rank it may be about to fail too
        reasons: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(reasons, save.reason)
        said = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
        raise OSError(f"{save.name} could not be written in the background: {said}") from save.error

    def close(self) -> None:
        """End a fit: wait for its last checkpoint, see :meth:`wait`."""
        try:
            self.wait()
        finally:
            self._remove_unlinked()
            self._linked = []
            if self._trainer is not None:
                unfollow(self._trainer.callbacks)  # type: ignore[attr-defined]
            self._trainer = None

    def remove(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint, once the one that is being written is whole: until then it is the last good one.

        During a run, one that a link beside it leads to is kept until the link leads elsewhere.
        """
        if self._save is not None:
            self._save.expected[_key(path)] = False
        self._afterwards(lambda: self._remove(Path(path)))

    def link(self, path: str | os.PathLike[str], link: str | os.PathLike[str]) -> None:
        """Let ``link`` lead to a checkpoint, once this is whole: until then it leads to the one before."""
        if self._save is not None:
            self._save.expected[_key(link)] = True
        self._afterwards(lambda: self._relink(Path(path), Path(link)))

    def expects(self, path: str | os.PathLike[str]) -> bool | None:
        """Tell whether there will be something at ``path``; None: nothing is being written that changes it."""
        return self._save.expected.get(_key(path)) if self._save is not None else None

    @property
    def _interrupted(self) -> bool:
        return self._trainer is not None and bool(self._trainer.interrupted)

    def _afterwards(self, action: Callable[[], None]) -> None:
        waits = self._save is not None and self._save.add(action)
        if not waits and (not dist.is_initialized() or dist.get_rank() == 0):
            action()

    def _remove(self, path: Path) -> None:
        if self._trainer is not None and _has_link(path):
            self._linked.append(path)
        else:
            remove(path)

    def _relink(self, path: Path, link: Path) -> None:
        if _key(path) == _key(link):
            return
        made = link.with_name(f".{link.name}.link")
        made.unlink(missing_ok=True)
        made.symlink_to(os.path.relpath(path, link.parent))
        if link.is_dir() and not link.is_symlink():
            remove(link)
        made.replace(link)  # in one step: a kill leaves the earlier link or this one
        self._remove_unlinked()

    def _remove_unlinked(self) -> None:
        for path in [path for path in self._linked if not _has_link(path)]:
            self._linked.remove(path)
            remove(path)


class _Save:
    """A checkpoint that is being written, and what is to be done when it is whole."""

    def __init__(self, staged: Staged, group: dist.ProcessGroup | None) -> None:
        self.name = str(staged.path)
        self.error: BaseException | None = None
        self.expected = {_key(staged.path): True}
        self._staged: Staged | None = staged
        self._group = group
        self._actions: list[Callable[[], None]] = []
        self._open = True
        self._lock = threading.Lock()
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        # A daemon: a process that ends in another way than by the Trainer's teardown must not wait for the others.
        self.thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)

    @property
    def reason(self) -> str | None:
        """What went wrong."""
        return f"{type(self.error).__name__}: {self.error}" if self.error is not None else None

    def add(self, action: Callable[[], None]) -> bool:
        """Take an action for later; False if the checkpoint is whole already."""
        with self._lock:
            if self._open or self.error is not None:
                self._actions.append(action)
                return True
            return False

    def _run(self) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)  # else every rank would open a context on the first device
            assert self._staged is not None
            write_staged(self._staged, self._group)
            self._staged = None  # the copies are not needed any longer
            on_rank_zero(self._act, self._group)  # the other ranks may look at the disk when their threads end
            with self._lock:
                self._open = False
        except BaseException as error:  # raised by the thread that trains
            self.error = error
            self._staged = None

    def _act(self) -> None:
        while True:
            with self._lock:
                if not self._actions:
                    self._open = False
                    return
                action = self._actions.pop(0)
            action()


def _key(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(path)


def _has_link(path: Path) -> bool:
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    return any(other.is_symlink() and other.resolve() == path.resolve() for other in beside)
