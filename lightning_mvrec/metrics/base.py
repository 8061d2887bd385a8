"""A weighted mean as a torchmetrics metric: two sums, exact on any number of ranks.

R rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanMetric(Metric):
    """Mean of a value a row, weighted; subclasses give the values to :meth:`add`.

    The sums are kept in float64 whatever precision the model is moved to, and added over ranks, so that the result
    does not depend on how rows fall to ranks. Rows of weight 0 (which only even out ranks) do not count, not even
    with a NaN. The mean of no row is 0.

    Attributes:
        name: How the metric is called in logs and tables.
    """

    full_state_update = False
    name: str = "mean"
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, value_R: Tensor, weight_R: Tensor | None) -> None:
        """Add one value a row."""
        weight_R = torch.ones_like(value_R) if weight_R is None else weight_R
        if weight_R.shape != value_R.shape:
            shape, other = tuple(value_R.shape), tuple(weight_R.shape)
            raise ValueError(f"weight must have a value for each of {shape} rows, got {other}")
        weight_R = weight_R.detach().double()
        self.total += torch.where(weight_R == 0, 0.0, value_R.detach().double() * weight_R).sum()
        self.weight += weight_R.sum()

    def compute(self) -> Tensor:
        """Return the mean, 0 where no row has been added."""
        return self.total / torch.where(self.weight == 0, 1.0, self.weight)

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # module.to(torch.bfloat16) reaches metrics too (torchmetrics only skips .half() and .bfloat16()); a bfloat16
        # counter stops counting at 256.
        super()._apply(fn, *args, **kwargs)
        for name in ("total", "weight"):
            self._defaults[name] = torch.zeros((), dtype=torch.float64, device=self.device)
            setattr(self, name, getattr(self, name).double())
        return self
