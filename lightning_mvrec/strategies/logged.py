"""What steps have logged, made alike on all ranks.

One without a batch has logged nothing, and Lightning's exchange at the end of an epoch would wait for it.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch import nn

#: What can be sent as it is.
_FIELDS = [field.name for field in fields(_Metadata) if field.name not in ("reduce_fx", "_sync")]


def fill_up(results: Any, trainer: pl.Trainer, group: Any) -> None:
    """Add what other ranks have logged and this one has not, with a weight of 0. Every rank must call this.

    Args:
        results: Lightning's collection of logged values.
        trainer: Lightning's.
        group: Process group for the exchange.
    """
    everywhere: list[Any] = [None] * dist.get_world_size()
    # Those of an earlier epoch stay in the collection, reset, and do not count.
    mine = {key: _describe(metric) for key, metric in results.items() if not metric.has_reset}
    dist.all_gather_object(everywhere, mine, group=group)
    longest = max(everywhere, key=len)
    if all(key in mine for key in longest):
        return
    known = dict(results)
    results.clear()
    for key, described in longest.items():  # in one order: ranks exchange them one by one
        metric = known.pop(key, None)
        results[key] = metric if key in mine else _neutral(described, trainer)
    results.update(known)


def _describe(metric: _ResultMetric) -> dict[str, Any]:
    meta = metric.meta
    return {
        "fields": {name: getattr(meta, name) for name in _FIELDS},
        "reduce": meta.reduce_fx.__name__,
        "sync": (meta.sync.should, meta.sync.rank_zero_only),
        "dtype": metric.value.dtype if metric.is_tensor else None,
    }


def _neutral(described: dict[str, Any], trainer: pl.Trainer) -> _ResultMetric:
    meta = _Metadata(**described["fields"], reduce_fx=described["reduce"])
    should, rank_zero_only = described["sync"]
    meta.sync = _Sync(_should=should, fn=trainer.strategy.reduce, rank_zero_only=rank_zero_only)
    dtype: torch.dtype | None = described["dtype"]
    metric = _ResultMetric(meta, is_tensor=dtype is not None)
    if dtype is not None:
        metric.value = metric.value.to(dtype)
    else:
        metric.value = _submodule(trainer.lightning_module, meta.metric_attribute)
    metric._update_count = 1
    return metric.to(trainer.strategy.root_device)


def _submodule(module: pl.LightningModule, path: str | None) -> nn.Module:
    if path is None:
        raise ValueError("a metric that steps log must be an attribute of the module: a rank has no batch to log it in")
    return module.get_submodule(path)
