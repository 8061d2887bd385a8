"""What a run leaves for people: a table on the screen, ``results.csv`` and a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

COLUMNS = ("model", "split", "metric", "value", "seed")


@dataclass(frozen=True)
class Result:
    """One figure: which model, on which split, under which seed (None where no seed plays a part)."""

    model: str
    split: str
    metric: str
    value: float
    seed: int | None = None


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write ``results.csv``, under a temporary name first."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for result in results:
            seed = "" if result.seed is None else result.seed
            writer.writerow([result.model, result.split, result.metric, repr(float(result.value)), seed])
    part.replace(path)


def read_results(path: Path) -> list[Result]:
    """Read what :func:`write_results` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Result(
                model=row["model"],
                split=row["split"],
                metric=row["metric"],
                value=float(row["value"]),
                seed=int(row["seed"]) if row["seed"] else None,
            )
            for row in csv.DictReader(file)
        ]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (0 for a single value)."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def format_table(results: Sequence[Result], split: str, sort_by: str, largest_first: bool = True) -> str:
    """Lay out one split as text: a line a model, a column a metric, means over seeds (± standard deviation).

    Args:
        results: Figures of any number of models, splits and seeds.
        split: The split to show.
        sort_by: The metric that orders the lines.
        largest_first: Whether the best is the largest.

    Example:
        >>> rows = [Result("model", "test", "auc", 0.8, 0), Result("popularity", "test", "auc", 0.6)]
        >>> print(format_table(rows, "test", "auc"))
        test                 auc
        model             0.8000
        popularity        0.6000
    """
    cells: dict[str, dict[str, list[float]]] = {}
    metrics: list[str] = []
    for result in results:
        if result.split != split:
            continue
        if result.metric not in metrics:
            metrics.append(result.metric)
        cells.setdefault(result.model, {}).setdefault(result.metric, []).append(result.value)
    if not cells:
        return f"{split}: no results"
    summary = {
        model: {metric: mean_and_spread(values) for metric, values in by_metric.items()}
        for model, by_metric in cells.items()
    }
    seeds = any(len(values) > 1 for by_metric in cells.values() for values in by_metric.values())
    sign = -1 if largest_first else 1

    def key(model: str) -> float:
        value = summary[model].get(sort_by, (math.nan, 0.0))[0]
        return math.inf if math.isnan(value) else sign * value

    name_width = max(14, *(len(model) for model in cells)) + 2
    width = 16 if seeds else 8
    lines = ["".join([split.ljust(name_width), *(metric.rjust(max(width, len(metric) + 2)) for metric in metrics)])]
    for model in sorted(cells, key=key):
        line = model.ljust(name_width)
        for metric in metrics:
            text = ""
            if metric in summary[model]:
                mean, spread = summary[model][metric]
                many = len(cells[model][metric]) > 1
                text = f"{mean:.4f} ± {spread:.4f}" if many else f"{mean:.4f}" + " " * (9 if seeds else 0)
            line += text.rjust(max(width, len(metric) + 2))
        lines.append(line.rstrip())
    return "\n".join(lines)


def draw_run(path: Path, history: Sequence[dict[str, float]], weights: dict[str, float], metric: str) -> None:
    """Draw a run: its learning curve, and the mean weight of each view on the test split.

    Args:
        path: PNG file to write.
        history: One dictionary of logged values an epoch.
        weights: Mean weight by view; an empty one leaves the second panel out.
        metric: The validation metric to draw beside the training loss.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2 if weights else 1, figsize=(10 if weights else 6, 3.6), squeeze=False)
    loss_axis = axes[0][0]
    loss = [(i + 1, epoch["train/loss"]) for i, epoch in enumerate(history) if "train/loss" in epoch]
    if loss:
        loss_axis.plot(*zip(*loss, strict=True), color="tab:gray", marker=".", label="training loss")
    loss_axis.set_xlabel("epoch")
    loss_axis.set_ylabel("training loss")
    curve = [(i + 1, epoch[f"val/{metric}"]) for i, epoch in enumerate(history) if f"val/{metric}" in epoch]
    if curve:
        metric_axis = loss_axis.twinx()
        metric_axis.plot(*zip(*curve, strict=True), color="tab:blue", marker=".")
        metric_axis.set_ylabel(f"validation {metric}", color="tab:blue")
    loss_axis.set_title("Learning curve")
    if weights:
        axes[0][1].barh(list(weights), list(weights.values()), color="tab:orange")
        axes[0][1].invert_yaxis()
        axes[0][1].set_xlabel("mean weight on the test split")
        axes[0][1].set_title("View weights")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_comparison(path: Path, results: Sequence[Result], split: str, metric: str, largest_first: bool = True) -> None:
    """Draw one metric of all models as bars, with the standard deviation over seeds."""
    plt = _pyplot()
    values: dict[str, list[float]] = {}
    for result in results:
        if result.split == split and result.metric == metric:
            values.setdefault(result.model, []).append(result.value)
    ordered = sorted(values, key=lambda model: fmean(values[model]), reverse=not largest_first)
    summary = [mean_and_spread(values[model]) for model in ordered]
    colours = ["tab:blue" if m == "model" else "tab:orange" if m.startswith("view:") else "tab:gray" for m in ordered]
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.32 * len(ordered)))
    axis.barh(ordered, [mean for mean, _ in summary], xerr=[spread for _, spread in summary], color=colours)
    axis.set_xlabel(f"{split} {metric}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
