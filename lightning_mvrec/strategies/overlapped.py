"""Lightning's hooks that drive look-ahead, kept apart from the strategy's own."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from lightning_mvrec.strategies.loaders import copy_ids
from lightning_mvrec.strategies.lookahead import LookAhead
from lightning_mvrec.strategies.sharding import ShardedTables


class OverlappedStrategy(DDPStrategy):
    """DDP that prepares the next training batch during a step, once :meth:`_look_ahead_in` was called."""

    _look_ahead: bool | Literal["auto"] = False
    _ahead: LookAhead | None = None

    def _look_ahead_in(self, loader: Any, tables: ShardedTables) -> Any:
        """Return a training loader that can be read ahead."""
        if self._ahead is None:
            assert self.lightning_module is not None
            self._ahead = LookAhead(self.lightning_module.trainer, tables, self.root_device, self._look_ahead)
        return self._ahead.wrap(loader)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Move a batch; ragged ids in pinned memory are copied without waiting, as Lightning does with tensors."""
        if self._ahead is not None and (prepared := self._ahead.moved(batch)) is not None:
            return prepared.moved
        return self._move(batch, device, dataloader_idx)

    def _move(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        target = device or self.root_device
        if target.type == "cuda":
            batch = copy_ids(batch, target)
        return super().batch_to_device(batch, device, dataloader_idx)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin to prepare the next batch: the module's and the callbacks' hooks have seen this one."""
        super().on_train_batch_start(batch, batch_idx)
        if self._ahead is not None:
            self._ahead.start(batch, batch_idx, self._move)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's ``training_step``."""
        output = super().training_step(*args, **kwargs)
        if self._ahead is not None:
            self._ahead.end()
        return output

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Go on with the exchanges of the next batch."""
        if self._ahead is not None:
            self._ahead.advance()
        super().pre_backward(closure_loss)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Go on with the exchanges of the next batch."""
        super().post_backward(closure_loss)
        if self._ahead is not None:
            self._ahead.advance()

    def on_train_end(self) -> None:
        """Complete exchanges of a batch that is not trained on any more, as when ``max_steps`` ends a run."""
        super().on_train_end()
        if self._ahead is not None:
            self._ahead.drain()

    def teardown(self) -> None:
        """Let go of what was prepared; after an exception other ranks may not answer any more."""
        self._forget_ahead()
        super().teardown()

    def _forget_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.forget()
            self._ahead = None
