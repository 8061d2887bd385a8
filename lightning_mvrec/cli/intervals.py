"""Is the difference of two models more than chance: a paired bootstrap over users.

n test targets, U users with a test target, S seeds, W resamples.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A difference of two models' means over seeds, and what 95 of 100 resamples of the users lie in."""

    model: str
    other: str
    metric: str
    difference: float
    low: float
    high: float


def user_weights(user: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Draw users with replacement: ``(W, n)`` how often each target's user was drawn.

    Args:
        user: ``(n,)`` user of each target.
        resamples: Draws ``W``, above 0.
        seed: The same draws for the same seed: what makes the comparison paired.
    """
    _, number, counts = np.unique(user, return_inverse=True, return_counts=True)
    users = len(counts)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(users, np.full(users, 1 / users), size=resamples)
    return drawn.astype(np.int32)[:, number]


def paired_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles of the differences of two models' resamples ``(W,)``."""
    low, high = np.quantile(first - second, [0.025, 0.975])
    return float(low), float(high)


def resampled(metric: str, values: np.ndarray, label: np.ndarray | None, weight_Wn: np.ndarray) -> np.ndarray:
    """Return a metric of every resample, ``(W,)``.

    Args:
        metric: ``ndcg@k``, ``hr@k``, ``recall@k``, ``mrr@k`` of ranks; ``auc``, ``logloss``, ``mae``, ``rmse`` of
            scores.
        values: ``(n,)`` ranks or scores.
        label: ``(n,)``, for scores.
        weight_Wn: From :func:`user_weights`; one row of ones for the metric itself.

    Raises:
        ValueError: If the metric is none of these.
    """
    if metric == "auc":
        assert label is not None
        return _auc(values, label, weight_Wn)
    each = _each(metric, values, label)
    # In slices: all resamples at once would be converted to float64 together.
    parts = [weight_Wn[start : start + 100] for start in range(0, len(weight_Wn), 100)]
    mean = np.concatenate([(part @ each) / part.sum(1) for part in parts])
    return np.sqrt(mean) if metric == "rmse" else mean


def compare(
    models: dict[str, list[np.ndarray]],
    label: np.ndarray | None,
    user: np.ndarray,
    metric: str,
    against: Iterable[str],
    model: str = "model",
    resamples: int = RESAMPLES,
) -> list[Interval]:
    """Compare one model with others, users resampled alike for all.

    Args:
        models: By name, ``(n,)`` ranks or scores of each seed; the metric's mean over seeds is compared.
        label: ``(n,)``, for scores.
        user: ``(n,)``.
        metric: See :func:`resampled`.
        against: Names of the others.
        model: Name of the one.
        resamples: Draws, above 0.
    """
    weight_Wn = user_weights(user, resamples)
    whole = np.ones((1, len(user)), dtype=np.int32)

    def mean(name: str, weight: np.ndarray) -> np.ndarray:
        return np.mean([resampled(metric, values, label, weight) for values in models[name]], axis=0)

    own, own_whole = mean(model, weight_Wn), float(mean(model, whole)[0])
    intervals = []
    for name in against:
        low, high = paired_interval(own, mean(name, weight_Wn))
        intervals.append(Interval(model, name, metric, own_whole - float(mean(name, whole)[0]), low, high))
    return intervals


def format_intervals(intervals: list[Interval]) -> str:
    """Lay intervals out as text, a line each.

    Example:
        >>> print(format_intervals([Interval("model", "recency", "ndcg@10", 0.01, 0.004, 0.0161)]))
        model - recency    ndcg@10  +0.0100  [+0.0040, +0.0161]
    """
    width = max(len(f"{each.model} - {each.other}") for each in intervals) + 4
    return "\n".join(
        f"{f'{each.model} - {each.other}'.ljust(width)}{each.metric}  {each.difference:+.4f}  "
        f"[{each.low:+.4f}, {each.high:+.4f}]"
        for each in intervals
    )


def write_intervals(path: Path, intervals: list[Interval]) -> None:
    """Write a CSV file, under a temporary name first."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "other", "metric", "difference", "low", "high"])
        for each in intervals:
            writer.writerow([each.model, each.other, each.metric, each.difference, each.low, each.high])
    part.replace(path)


def _each(metric: str, values: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    kind, _, k = metric.partition("@")
    ranked: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ndcg": lambda rank: 1 / np.log2(rank + 1.0),
        "mrr": lambda rank: 1 / rank,
        "hr": np.ones_like,
        "recall": np.ones_like,
    }
    if k.isdecimal() and kind in ranked:
        rank = values.astype(np.float64)
        return np.where(rank <= int(k), ranked[kind](rank), 0.0)
    if label is not None and metric in ("mae", "rmse", "logloss"):
        if metric == "logloss":
            chance = np.clip(values.astype(np.float64), 1e-7, 1 - 1e-7)
            return -np.where(label > 0.5, np.log(chance), np.log1p(-chance))
        error = np.abs(values.astype(np.float64) - label)
        return error if metric == "mae" else error**2
    raise ValueError(f"metric must be one of ranks or scores, such as ndcg@10 or auc, got {metric!r}")


def _auc(score: np.ndarray, label: np.ndarray, weight_Wn: np.ndarray) -> np.ndarray:
    """Weighted AUC of every resample: pairs of a positive above a negative, ties one half."""
    order = np.argsort(score, kind="stable")
    _, group = np.unique(score[order], return_inverse=True)
    positive = label[order] > 0.5
    starts = np.flatnonzero(np.r_[True, np.diff(group) > 0])
    values = np.empty(len(weight_Wn))
    for number, weight in enumerate(weight_Wn):
        own = weight[order].astype(np.float64)
        above = np.add.reduceat(np.where(positive, own, 0.0), starts)
        below = np.add.reduceat(np.where(positive, 0.0, own), starts)
        pairs = (above * (np.cumsum(below) - below / 2)).sum()
        total = above.sum() * below.sum()
        values[number] = pairs / total if total else np.nan
    return values
