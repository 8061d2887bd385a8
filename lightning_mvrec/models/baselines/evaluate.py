"""Measure baselines as models are measured: the same targets, seen items, metrics and ranks.

n targets of a chunk, I item-table rows, K items of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from tqdm import tqdm

from lightning_mvrec.functional import ranks
from lightning_mvrec.metrics import AUC, MAE, MRR, NDCG, RMSE, Coverage, GroupedAUC, HitRate, LogLoss, Recall
from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.events import histories
from lightning_mvrec.models.baselines.sparse_ranks import sparse_ranks

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets

_LISTS: dict[str, Callable[[int], Any]] = {"ndcg": NDCG, "hr": HitRate, "recall": Recall, "mrr": MRR}
_VALUES: dict[str, Callable[[], Any]] = {"auc": AUC, "logloss": LogLoss, "mae": MAE, "rmse": RMSE}


def evaluate_baselines(
    store: Store,
    stage: str,
    baselines: Sequence[Baseline],
    metrics: Sequence[str],
    filter_seen: Sequence[str] = (),
    progress: bool = False,
    max_elements: int = 2**22,
    keep: dict[str, np.ndarray] | None = None,
    threshold: float | None = None,
) -> list[tuple[str, str, float]]:
    """Fit baselines on a store's training events and measure them on the targets of a stage.

    Args:
        store: The prepared data.
        stage: ``"val"`` or ``"test"``.
        baselines: What to measure; each is fitted here.
        metrics: Names as in a model's results: ``"ndcg@10"``, ``"coverage@10"``, ``"auc"``, ... A name that a baseline
            has no value for (``"loss"``, or ``"rmse"`` of one that ranks) gives no row.
        filter_seen: Views whose items, as of the target, are left out of the ranking unless they are the target.
        progress: Whether to show a progress bar.
        max_elements: Scores held at a time, above 0.
        keep: Filled, by name of the baseline, with its rank of each target, or its score where it rates.
        threshold: Labels are 1 from this value on, else 0; a baseline that predicts the labels' own values then has an
            AUC but no log-loss. None: labels are taken as they are.

    Returns:
        ``(baseline's name, metric's name, value)``, baseline by baseline in the order of ``metrics``.

    Raises:
        ValueError: If two baselines have the same name.
    """
    names = [baseline.name for baseline in baselines]
    if len(set(names)) < len(names):
        raise ValueError(f"baselines must have different names, got {names}")
    targets = store.targets(stage)
    results = []
    bar = tqdm(baselines, disable=not (progress and baselines), unit="baseline")
    for baseline in bar:
        bar.set_description(f"{baseline.name} on {stage}")
        baseline.fit(store)
        if baseline.rates:
            values, each = _rate(baseline, store, targets, metrics, threshold)
        else:
            values, each = _rank(baseline, store, targets, metrics, list(filter_seen), max_elements)
        if keep is not None and values:
            keep[baseline.name] = each
        results += [(baseline.name, name, values[name]) for name in metrics if name in values]
    return results


def compare_scores(
    score: torch.Tensor, label: torch.Tensor, metrics: Sequence[str], weight: torch.Tensor | None = None
) -> dict[str, float]:
    """Measure ``(n,)`` scores against labels in this process alone; names that compare no such pair give no value."""
    values = {}
    for name in metrics:
        if name in _VALUES:
            metric = _alone(_VALUES[name]())
            metric.update(score, label, weight)
            values[name] = metric.compute().item()
    return values


def _alone(metric: Any) -> Any:
    """A metric of this process only: rank 0 measures baselines by itself, the others would be waited for in vain."""
    metric.distributed_available_fn = lambda: False
    return metric


def _rate(
    baseline: Baseline, store: Store, targets: Targets, metrics: Sequence[str], threshold: float | None
) -> tuple[dict[str, float], np.ndarray]:
    """Return the metrics and the score of each target."""
    score, label, weight = (
        torch.from_numpy(np.array(value)) for value in (baseline.predict(store, targets), targets.label, targets.weight)
    )
    if threshold is not None:
        label = (label >= threshold).to(label.dtype)
        metrics = [name for name in metrics if name != "logloss"]
    values = compare_scores(score, label, metrics, weight)
    if "gauc" in metrics:
        grouped = _alone(GroupedAUC())
        grouped.update(score, label, weight, group=torch.from_numpy(np.array(targets.user)))
        values["gauc"] = grouped.compute().item()
    return values, score.numpy()


def _rank(
    baseline: Baseline,
    store: Store,
    targets: Targets,
    metrics: Sequence[str],
    filter_seen: list[str],
    max_elements: int,
) -> tuple[dict[str, float], np.ndarray]:
    """Return the metrics and the rank of each target."""
    num_items = store.schema.num_items
    lists: dict[str, Any] = {}
    coverages: dict[str, Coverage] = {}
    for name in metrics:
        kind, at, k = name.partition("@")
        if at and k.isdecimal() and kind in _LISTS:
            lists[name] = _alone(_LISTS[kind](int(k)))
        elif at and k.isdecimal() and kind == "coverage":
            coverages[name] = _alone(Coverage(num_items, int(k)))
    every: list[np.ndarray] = []
    if not lists and not coverages:
        return {}, np.zeros(0, dtype=np.int64)
    popularity_I = torch.from_numpy(np.array(store.popularity))
    step = max(1, min(512, max_elements // num_items))
    for start in range(0, len(targets.user), step):
        rows = np.arange(start, min(start + step, len(targets.user)))
        score = baseline.score(store, targets, rows)
        target, weight_B = targets.item[rows], torch.from_numpy(targets.weight[rows])
        seen_owner, seen_item = _seen(store, targets, rows, filter_seen)
        if score.ndim == 1:
            # One order for everybody: no score, and a second key that holds the order.
            nothing = sparse.csr_array((len(rows), num_items))
            rank_B = sparse_ranks(nothing, target, seen_owner, seen_item, _joint_key(score, store.popularity))
        elif isinstance(score, np.ndarray):
            seen_lengths_B = torch.from_numpy(np.bincount(seen_owner, minlength=len(rows)))
            score_BI, target_B = torch.from_numpy(score), torch.from_numpy(target.astype(np.int64))
            rank_B = ranks(score_BI, target_B, torch.from_numpy(seen_item), seen_lengths_B, popularity_I)
        else:
            rank_B = sparse_ranks(score, target, seen_owner, seen_item, store.popularity)
        every.append(rank_B.numpy())
        for metric in lists.values():
            metric.update(rank_B, weight_B)
        if coverages:
            most = max(metric.k for metric in coverages.values())
            dense = score if isinstance(score, np.ndarray) else score.toarray()
            dense = np.broadcast_to(dense, (len(rows), num_items))
            top_BK = _top(dense, popularity_I, seen_owner, seen_item, most)
            for metric in coverages.values():
                metric.update(top_BK, weight_B)
    return {name: metric.compute().item() for name, metric in {**lists, **coverages}.items()}, np.concatenate(every)


def _seen(store: Store, targets: Targets, rows: np.ndarray, filter_seen: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return which row has seen what, row by row."""
    if not filter_seen:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    events = histories(store, targets, rows, filter_seen)
    return events.owner, events.item


def _joint_key(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return ``(I,)`` integers that order items by one key and then another; equal where both are."""
    order = np.lexsort((second, first))
    new = (np.diff(first[order]) > 0) | (np.diff(second[order]) > 0)
    key = np.zeros(len(order), dtype=np.int64)
    key[order[1:]] = np.cumsum(new)
    return key


def _top(
    score: np.ndarray, popularity_I: torch.Tensor, seen_owner: np.ndarray, seen_item: np.ndarray, k: int
) -> torch.Tensor:
    """Return the ``(n, K)`` best items, ties by popularity; row 0 where fewer are left."""
    # Columns in order of popularity, so that a stable sort of the scores keeps it among equals.
    order_I = popularity_I[1:].argsort(descending=True, stable=True) + 1
    score_BI = torch.from_numpy(score[:, order_I.numpy()])
    place_I = torch.zeros(len(popularity_I), dtype=torch.int64)
    place_I[order_I] = torch.arange(len(order_I))
    score_BI[torch.from_numpy(seen_owner), place_I[torch.from_numpy(seen_item)]] = -torch.inf
    best_BK, index_BK = score_BI.sort(dim=1, descending=True, stable=True)
    return order_I[index_BK[:, :k]].masked_fill(best_BK[:, :k] == -torch.inf, 0)
