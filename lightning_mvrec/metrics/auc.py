"""Area under the ROC curve over all ranks, exact: every score is kept until the end.

R rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_mvrec.functional.auc import auc, grouped_auc


class _Kept(Metric):
    """Keep columns of rows, joined over ranks."""

    full_state_update = False
    higher_is_better = True
    columns: tuple[str, ...] = ("score", "label", "weight")
    score: list[Tensor]
    label: list[Tensor]
    weight: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for column in self.columns:
            self.add_state(column, [], dist_reduce_fx="cat")
        self._start()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._start()

    def _start(self) -> None:
        # In older torchmetrics (1.0.3) a rank whose list is empty takes no part in the gather, and the others wait for
        # it; one whose list holds an empty tensor does.
        for column in self.columns:
            getattr(self, column).append(self._column(torch.empty(0, device=self.device), column))

    def _column(self, value_R: Tensor, column: str) -> Tensor:
        return value_R.detach().to(torch.int64 if column == "group" else torch.float64)

    def _keep(self, score_R: Tensor, label_R: Tensor, weight_R: Tensor | None, **more: Tensor) -> None:
        weight_R = torch.ones_like(score_R) if weight_R is None else weight_R
        values = {"score": score_R, "label": label_R, "weight": weight_R, **more}
        for column, value_R in values.items():
            if value_R.shape != score_R.shape:
                shape, other = tuple(score_R.shape), tuple(value_R.shape)
                raise ValueError(f"{column} must have the shape of score {shape}, got {other}")
            getattr(self, column).append(self._column(value_R[weight_R > 0], column))

    def _joined(self, column: str) -> Tensor:
        value: Any = getattr(self, column)  # a list before, a tensor after ranks have been joined
        return torch.cat(value) if isinstance(value, list) else value

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Scores rounded to bfloat16 by module.to(torch.bfloat16) would tie.
        kept = {column: getattr(self, column) for column in self.columns}
        super()._apply(fn, *args, **kwargs)
        for column, values in kept.items():
            moved = [value.to(self.device) for value in values] if isinstance(values, list) else values.to(self.device)
            setattr(self, column, moved)
        return self


class AUC(_Kept):
    """Probability that a positive row scores above a negative one, ties being half; rows of weight 0 dropped.

    Memory grows with the rows of an evaluation: 24 bytes each. 0.5 where one of the classes is missing.

    Example:
        >>> metric = AUC()
        >>> metric.update(torch.tensor([0.1, 0.4, 0.35, 0.8]), torch.tensor([0.0, 0.0, 1.0, 1.0]))
        >>> metric.compute().item()  # 3 of 4 pairs in order
        0.75
    """

    name = "auc"

    def update(self, score: Tensor, label: Tensor, weight: Tensor | None = None) -> None:
        """Add rows; all arguments ``(R,)``."""
        self._keep(score, label, weight)

    def compute(self) -> Tensor:
        """Return the area."""
        return auc(self._joined("score"), self._joined("label"), self._joined("weight"))


class GroupedAUC(_Kept):
    """Mean of the areas inside each group (a user, mostly), weighted by the groups' total weights.

    Example:
        >>> metric = GroupedAUC()
        >>> score, label = torch.tensor([0.1, 0.2, 0.9, 0.8]), torch.tensor([0.0, 1.0, 0.0, 1.0])
        >>> metric.update(score, label, group=torch.tensor([1, 1, 2, 2]))
        >>> metric.compute().item()
        0.5
    """

    name = "gauc"
    columns = ("score", "label", "weight", "group")
    group: list[Tensor]

    def update(self, score: Tensor, label: Tensor, weight: Tensor | None = None, *, group: Tensor) -> None:
        """Add rows; all arguments ``(R,)``, ``group`` int64."""
        self._keep(score, label, weight, group=group)

    def compute(self) -> Tensor:
        """Return the mean area."""
        columns = [self._joined(column) for column in ("score", "label", "group", "weight")]
        return grouped_auc(*columns)
