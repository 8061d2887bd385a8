"""The weighted sum of a run's model and its baselines, weighed on validation and measured on test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lightning_mvrec.cli.report import Result
from lightning_mvrec.cli.targets import STACKED
from lightning_mvrec.models.baselines.evaluate import compare_scores
from lightning_mvrec.models.stacking import Stacking

#: Arrays of a split that are no model's scores.
_OTHERS = ("user", "label")


def stack(
    targets: Mapping[str, dict[str, np.ndarray]], metrics: Sequence[str], binary: bool
) -> tuple[list[Result], np.ndarray, dict[str, float]]:
    """Weigh the models on the validation targets and measure their sum on the test targets.

    Args:
        targets: For ``"val"`` and ``"test"``, ``label`` and each model's scores, ``(n,)``.
        metrics: Names as in a model's results; those that compare no scores with labels are passed over.
        binary: Whether labels are 0 or 1.

    Returns:
        Results on test only (validation has chosen the weights), the sums of the test targets, and the weights.
    """
    scores = {
        split: {name: value for name, value in arrays.items() if name not in _OTHERS}
        for split, arrays in targets.items()
    }
    stacked = Stacking(binary).fit(scores["val"], targets["val"]["label"])
    sums = stacked.predict(scores["test"])
    score, label = torch.from_numpy(sums), torch.from_numpy(targets["test"]["label"])
    values = compare_scores(score.sigmoid() if binary else score, label, metrics)
    return [Result(STACKED, "test", name, value) for name, value in values.items()], sums, stacked.weights
