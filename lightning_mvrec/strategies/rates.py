"""The learning rates of tables: their own, times what a schedule has made of the dense optimizer's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_mvrec.strategies.optimizers import TableOptimizer


class TableRates:
    """Parameter groups that show, and take, the learning rate of each table optimizer.

    A group's ``"lr"`` is the rate at work. Who writes another number there (a warm-up that sets all groups) has set the
    rate, and the schedule goes on from it.

    Args:
        dense: The module's own optimizer, before table weights are taken out of it.
        optimizers: The table optimizers.
        tables: Names of the tables of each.
        weights: Weights of the tables of each: the group of ``dense`` that has them tells which schedule they follow;
            where none has, they follow its first.
        shown: Weights of each that are in its group: those of replicated tables, to be clipped.
        follow: Whether a schedule of ``dense`` scales the tables' rates at all.
    """

    def __init__(
        self,
        dense: Optimizer,
        optimizers: Sequence[TableOptimizer],
        tables: Sequence[list[str]],
        weights: Sequence[Sequence[Tensor]],
        shown: Sequence[list[Any]],
        follow: bool,
    ) -> None:
        self.dense = dense
        self.follow = follow
        self.groups: list[dict[str, Any]] = [
            {
                "params": params,
                "name": "tables/" + "+".join(names if len(names) < 4 else [*names[:2], f"{len(names) - 2} more"]),
                "lr": optimizer.lr,
                "tables": list(names),
                # What Lightning's LearningRateMonitor asks of every group.
                "betas": getattr(optimizer, "betas", (0.0, 0.0)),
                "momentum": 0.0,
                "weight_decay": getattr(optimizer, "weight_decay", 0.0),
            }
            for optimizer, names, params in zip(optimizers, tables, shown, strict=True)
        ]
        self.base = [optimizer.lr for optimizer in optimizers]
        self._shown = [optimizer.lr for optimizer in optimizers]
        self._leader = [_holder(dense, some) for some in weights]
        self._first = [group.get("lr") for group in dense.param_groups]

    def refresh(self) -> list[float]:
        """Show the present rates and return them."""
        for number, group in enumerate(self.groups):
            factor = self._factor(number)
            if group["lr"] != self._shown[number]:
                self.base[number] = float(group["lr"]) / factor if factor else float(group["lr"])
                self._shown[number] = group["lr"] = float(group["lr"])
            else:
                self._shown[number] = group["lr"] = self.base[number] * factor
        return list(self._shown)

    def set_base(self, number: int, lr: float) -> None:
        """Set the rate that the schedule scales."""
        self.base[number] = self._shown[number] = self.groups[number]["lr"] = lr

    def _factor(self, number: int) -> float:
        """Return the leading group's present rate over its schedule's first one (``OneCycleLR``: its peak)."""
        leader = self._leader[number]
        if not self.follow or leader >= len(self.dense.param_groups):
            return 1.0
        group = self.dense.param_groups[leader]
        first = self._first[leader] if leader < len(self._first) else None
        start = group.get("max_lr", group.get("initial_lr", first))
        return float(group["lr"]) / float(start) if start and "lr" in group else 1.0


def _holder(dense: Optimizer, weights: Sequence[Tensor]) -> int:
    mine = {id(weight) for weight in weights}
    for number, group in enumerate(dense.param_groups):
        if any(id(weight) in mine for weight in group["params"]):
            return number
    return 0
