"""Lightning's ModelSummary with whole tables: by itself it counts the rows that one rank happens to hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import ModelSummary as SummaryCallback
from lightning.pytorch.utilities.model_summary import ModelSummary

from lightning_mvrec.strategies.sharding import sharded_tables


class WholeSummary(ModelSummary):
    """Counts every row of every table, once.

    Args:
        module: A module whose tables have been sharded.
        max_depth: Lightning's.
    """

    def __init__(self, module: pl.LightningModule, max_depth: int = 1) -> None:
        tables = sharded_tables(module)
        held = {name: weight.numel() for name, weight in module.named_parameters()}
        self._elsewhere = {
            table.key: table.config.num_embeddings * table.config.embedding_dim - held.get(table.key, 0)
            for table in (tables.sharded if tables else ())
        }
        self._frozen = {table.key for table in (tables.sharded if tables else ()) if table.frozen}
        super().__init__(module, max_depth)

    @property
    def param_nums(self) -> list[int]:
        """Parameters of each layer, on all ranks."""
        return [layer.num_parameters + self._below(name) for name, layer in self._layer_summary.items()]

    @property
    def total_parameters(self) -> int:
        """Parameters of the module, on all ranks."""
        return super().total_parameters + sum(self._elsewhere.values())

    @property
    def trainable_parameters(self) -> int:
        """Those that are not frozen."""
        frozen = sum(count for key, count in self._elsewhere.items() if key in self._frozen)
        return super().trainable_parameters + sum(self._elsewhere.values()) - frozen

    def _below(self, name: str) -> int:
        return sum(count for key, count in self._elsewhere.items() if key.startswith(f"{name}."))


def count_whole_tables(callbacks: Sequence[Callback]) -> None:
    """Let summaries among the callbacks count whole tables; those of a module without any are as before."""
    for callback in callbacks:
        if isinstance(callback, SummaryCallback) and "_summary" not in vars(callback):
            callback._summary = _summary_of(callback)  # type: ignore[method-assign]


def _summary_of(callback: SummaryCallback) -> Any:
    stock, depth = callback._summary, callback._max_depth

    def summary(trainer: pl.Trainer, module: pl.LightningModule) -> Any:
        tables = sharded_tables(module)
        return WholeSummary(module, depth) if tables and tables.sharded else stock(trainer, module)

    return summary
