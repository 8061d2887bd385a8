"""The learning rates of tables: their own, times what a schedule has made of the dense optimizer's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from lightning_mvrec.strategies.joined import TableGroup


class TableRates:
    """Parameter groups that show, and take, the learning rate of each table optimizer.

    A group's ``"lr"`` is the rate at work. Who writes another number there (a warm-up that sets all groups) has set the
    rate, and the schedule goes on from it.

    Args:
        dense: The module's own optimizer, before table weights are taken out of it.
        tables: The tables of each table optimizer. The group of ``dense`` that has their weights tells which schedule
            they follow; where none has, they follow its first.
        follow: Whether a schedule of ``dense`` scales the tables' rates at all.
    """

    def __init__(self, dense: Optimizer, tables: Sequence[TableGroup], follow: bool) -> None:
        self.dense = dense
        self.follow = follow
        self.groups: list[dict[str, Any]] = [
            {
                "params": [weight for weight, _ in group.weights.values()],  # those of replicated tables, to be clipped
                "name": "tables/" + "+".join(_few(group.tables)),
                "lr": group.optimizer.lr,
                "tables": list(group.tables),
                # What Lightning's LearningRateMonitor asks of every group.
                "betas": getattr(group.optimizer, "betas", (0.0, 0.0)),
                "momentum": 0.0,
                "weight_decay": getattr(group.optimizer, "weight_decay", 0.0),
            }
            for group in tables
        ]
        self.base = [group.optimizer.lr for group in tables]
        self._shown = list(self.base)
        self._leader = [_holder(dense, group.all_weights) for group in tables]
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


def _few(names: list[str]) -> list[str]:
    return names if len(names) < 4 else [*names[:2], f"{len(names) - 2} more"]


def _holder(dense: Optimizer, weights: Sequence[Tensor]) -> int:
    mine = {id(weight) for weight in weights}
    for number, group in enumerate(dense.param_groups):
        if any(id(weight) in mine for weight in group["params"]):
            return number
    return 0
