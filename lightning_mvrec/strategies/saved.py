"""Lightning's hooks that write and read checkpoint directories, kept apart from the strategy's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lightning_mvrec.strategies import checkpoint as files
from lightning_mvrec.strategies.checkpoint_async import Saves
from lightning_mvrec.strategies.checkpoint_restore import naming, restore
from lightning_mvrec.strategies.joined import JoinedOptimizer
from lightning_mvrec.strategies.sharding import ShardedTables
from lightning_mvrec.strategies.watched import WatchedStrategy


class SavedStrategy(WatchedStrategy):
    """DDP whose checkpoints are directories that all ranks write and read together, once ``_saves`` is there."""

    _saves: Saves
    _tables: ShardedTables | None = None
    _convert_table_state = False
    _random: list[Any] | None = None
    _resumed_from: str | Path | None = None

    @property
    def _joined(self) -> JoinedOptimizer | None:
        first = self.optimizers[0] if self.optimizers else None
        return first if isinstance(first, JoinedOptimizer) else None

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights are read into the shards, so these come first."""
        return True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint directory."""
        if storage_options is not None:
            raise ValueError(f"save_checkpoint: storage_options must be None, got {storage_options!r}")
        state = self._joined.table_state() if "optimizer_states" in checkpoint and self._joined else {}
        plan = asdict(self._tables.report) if self._tables else None
        with self._saving():
            self._saves.write(filepath, checkpoint, state, plan)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint directory into the module's shards, and for a fit into the tables' optimizers."""
        module = self.lightning_module
        assert module is not None
        self._saves.wait()
        self._random = None
        self._resumed_from = checkpoint_path
        if not files.is_checkpoint(checkpoint_path) and not Path(checkpoint_path).is_dir():
            with naming(checkpoint_path):
                return super().load_checkpoint(checkpoint_path, weights_only=weights_only)
        checkpoint, self._random = restore(checkpoint_path, module, self._joined, self._convert_table_state)
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load what was no directory; of one, the weights are in the module already."""
        with naming(self._resumed_from):
            super().load_model_state_dict(checkpoint, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimizers' state and go on with the random numbers of this rank."""
        with naming(self._resumed_from):
            super().load_optimizer_state_dict(checkpoint)
        if self._random is None:
            return
        if len(self._random) == dist.get_world_size():
            files.set_random_state(self._random[dist.get_rank()])
        else:
            rank_zero_warn(
                f"the checkpoint was written by {len(self._random)} ranks, this run has {dist.get_world_size()}: "
                "random numbers (dropout, sampling) go on from this run's seed"
            )

    def remove_checkpoint(self, filepath: Any) -> None:
        """Remove a checkpoint directory, not before the one that replaces it is whole."""
        self._saves.remove(filepath)

    def on_train_end(self) -> None:
        """Wait for the last checkpoint."""
        super().on_train_end()
        self._saves.wait()
