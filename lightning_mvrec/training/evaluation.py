"""How validation and test are measured, on item tables that lie whole or sharded.

B users, R rows (one (user, target) pair each), A rows of all ranks together, I items of one rank's slice of the
catalogue, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.batch import MultiViewBatch
from lightning_mvrec.functional import (
    Repeats,
    count_at_least,
    count_repeats,
    dot_scores,
    repeat_logit_of,
    to_ranks,
)
from lightning_mvrec.metrics import AUC, MAE, MRR, NDCG, RMSE, Coverage, HitRate, LogLoss, Recall
from lightning_mvrec.models.base import ModelOutput, Recommender
from lightning_mvrec.schema import Schema
from lightning_mvrec.training.gather import gather_rows, sum_over_ranks, world

Catalogue = Callable[[np.ndarray], tuple[KeyedJaggedTensor, Tensor | None]]
"""Item-table rows ``(M,)``, strictly increasing, to what a model makes their vectors of: KJT and content vectors."""


class Evaluation(nn.Module):
    """Measure a model over the batches of a validation or test pass.

    Every rank calls each method the same number of times; metrics are reduced over ranks in :meth:`compute`.

    Attributes:
        primary: The metric that a model is chosen by.
        largest_first: Whether the best value of ``primary`` is the largest.
        threshold: Labels are measured as 1 from this value on, else 0; None: as they are.
    """

    primary: str
    largest_first: bool = True
    threshold: float | None = None

    def __init__(self, metrics: dict[str, nn.Module]) -> None:
        super().__init__()
        self.metrics = nn.ModuleList(metrics.values())
        self.names = list(metrics)
        self._rows: dict[str, list[Tensor]] = {}

    def start(self, model: Recommender, schema: Schema, catalogue: Catalogue | None, device: torch.device) -> None:
        """Prepare a pass; the model's weights do not change until it ends."""
        self._rows = {}

    def update(self, model: Recommender, batch: MultiViewBatch, output: ModelOutput) -> None:
        """Measure one batch."""
        raise TypeError(f"{type(self).__name__} must define update(model, batch, output)")

    def predict(self, model: Recommender, batch: MultiViewBatch, output: ModelOutput) -> dict[str, Tensor]:
        """Return per-row predictions of one batch: ``example`` ``(R,)`` and what the model says of each."""
        raise TypeError(f"{type(self).__name__} must define predict(model, batch, output)")

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics over all ranks."""
        return {name: metric.compute() for name, metric in zip(self.names, self.metrics, strict=True)}  # type: ignore[operator]

    def rows(self) -> dict[str, Tensor]:
        """Return what the last pass measured of each target, on every rank alike; kept until the next pass starts.

        Returns:
            ``example`` and ``step``, int64 (which target), in ascending order; and ``rank``, or ``score`` and
            ``label``. Empty where nothing was measured.
        """
        if not self._rows:
            return {}
        joined, _ = gather_rows(*(torch.cat(parts) for parts in self._rows.values()))
        rows = dict(zip(self._rows, joined, strict=True))
        order = torch.argsort(rows["example"] * (int(rows["step"].max()) + 1 if len(joined[0]) else 1) + rows["step"])
        return {name: value[order].cpu() for name, value in rows.items()}

    def reset(self) -> None:
        """Forget the metrics of the pass."""
        for metric in self.metrics:
            metric.reset()  # type: ignore[operator]

    def _keep(self, batch: MultiViewBatch, output: ModelOutput, **values: Tensor) -> None:
        """Remember a batch's targets for :meth:`rows`: a few numbers each."""
        if batch.example_B is not None:
            which = {"example": batch.example_B[output.user_R], "step": output.step_R}
            for name, value in {**which, **values}.items():
                self._rows.setdefault(name, []).append(value.detach())


class PointwiseEvaluation(Evaluation):
    """Compare the score of every target with its label.

    Args:
        binary: Whether labels are 0 or 1 and scores are logits (AUC, log-loss) or numbers (RMSE, MAE).
        threshold: With ``binary``: labels are numbers, and 1 from this value on; None: they are 0 or 1 already.

    Raises:
        ValueError: If there is a threshold and ``binary`` is not set.
    """

    def __init__(self, binary: bool = True, threshold: float | None = None) -> None:
        if threshold is not None and not binary:
            raise ValueError(f"threshold must be None where labels are not binary, got {threshold}")
        super().__init__({"auc": AUC(), "logloss": LogLoss()} if binary else {"rmse": RMSE(), "mae": MAE()})
        self.binary = binary
        self.threshold = threshold
        self.primary, self.largest_first = ("auc", True) if binary else ("rmse", False)

    def update(self, model: Recommender, batch: MultiViewBatch, output: ModelOutput) -> None:
        """Measure one batch."""
        row = (output.user_R, output.step_R)
        score_R = output.score_R.sigmoid() if self.binary else output.score_R
        label_R = batch.label_BK[row]
        if self.threshold is not None:
            label_R = (label_R >= self.threshold).to(label_R.dtype)
        for metric in self.metrics:
            metric.update(score_R, label_R, batch.weight_BK[row])  # type: ignore[operator]
        self._keep(batch, output, score=score_R.float(), label=label_R)

    def predict(self, model: Recommender, batch: MultiViewBatch, output: ModelOutput) -> dict[str, Tensor]:
        """Return the score of each target: a probability where labels are binary."""
        score_R = output.score_R.sigmoid() if self.binary else output.score_R
        assert batch.example_B is not None
        return {
            "example": batch.example_B[output.user_R],
            "item": batch.item_row_M[batch.target_BK[output.user_R, output.step_R]],
            "score": score_R,
        }


class RankingEvaluation(Evaluation):
    """Rank each target among the whole catalogue.

    Each rank holds the vectors of its own slice of the catalogue and ranks the gathered users of all ranks against it;
    the counts are summed. No rank needs the whole item table. Items that the data module marks as seen are left out.

    Args:
        k: Cut-offs; the first one chooses the model.
        coverage: Whether to measure the share of the catalogue that the top ``max(k)`` lists reach (a top-k a batch).
        chunk: Items looked up at a time when a pass starts, above 0.

    Raises:
        ValueError: If the model's score is not a dot product, so that the catalogue cannot be ranked by it.
    """

    def __init__(self, k: list[int] | None = None, coverage: bool = False, chunk: int = 65536) -> None:
        self.k = k or [10]
        if min(self.k) < 1:
            raise ValueError(f"k must be above 0, got {min(self.k)}")
        if chunk < 1:
            raise ValueError(f"chunk must be above 0 items, got {chunk}")
        kinds = {"ndcg": NDCG, "hr": HitRate, "recall": Recall, "mrr": MRR}
        super().__init__({f"{name}@{k}": kind(k) for k in self.k for name, kind in kinds.items()})
        self.primary = f"ndcg@{self.k[0]}"
        self.chunk = chunk
        self.coverage = coverage
        self._covered: Coverage | None = None

    def start(self, model: Recommender, schema: Schema, catalogue: Catalogue | None, device: torch.device) -> None:
        """Look up this rank's slice of the catalogue."""
        super().start(model, schema, catalogue, device)
        if not model.retrieval:
            raise ValueError(
                f"evaluation RankingEvaluation needs a dot-product score, got {type(model).__name__} with another one: "
                "use DotScorer and a fusion that does not look at the candidate, or PointwiseEvaluation"
            )
        if catalogue is None:
            raise ValueError(
                "evaluation RankingEvaluation needs an EventsDataModule as the trainer's data, got another"
            )
        rank, size = world()
        per_rank = -(-schema.num_items // size)
        first, last = min(rank * per_rank, schema.num_items), min((rank + 1) * per_rank, schema.num_items)
        parts = []
        with torch.no_grad():
            # The same number of look-ups on every rank: each may be a collective.
            for offset in range(0, per_rank, self.chunk):
                rows = np.arange(first + offset, min(first + offset + self.chunk, last))
                wanted = rows if len(rows) else np.zeros(1, dtype=np.int64)
                items, content_MW = catalogue(wanted)
                content_MW = None if content_MW is None else content_MW.to(device)
                parts.append(model.item_vectors(items.to(device), content_MW)[: len(rows)])
        self._item_ID, self._first = torch.cat(parts), first
        if self.coverage and self._covered is None:
            self._covered = Coverage(schema.num_items, max(self.k)).to(device)

    def update(self, model: Recommender, batch: MultiViewBatch, output: ModelOutput) -> None:
        """Rank the targets of one batch."""
        user_AD, target_A, score_A, seen_row, seen_lengths_A, own, repeats = self._gather(batch, output)
        ahead_A = count_at_least(user_AD, self._item_ID, score_A, target_A, self._first, seen_row, seen_lengths_A)
        if repeats is not None:
            ahead_A += count_repeats(
                repeats, user_AD, self._item_ID, score_A, target_A, self._first, seen_row, seen_lengths_A
            )
        rank_R = to_ranks(sum_over_ranks(ahead_A), target_A)[own]
        weight_R = batch.weight_BK[output.user_R, output.step_R]
        for metric in self.metrics:
            metric.update(rank_R, weight_R)  # type: ignore[operator]
        self._keep(batch, output, rank=rank_R)
        if self._covered is not None:
            self._covered.update(self._top(user_AD, seen_row, seen_lengths_A, repeats)[0][own])

    def predict(self, model: Recommender, batch: MultiViewBatch, output: ModelOutput) -> dict[str, Tensor]:
        """Return the ``max(k)`` best items of each row, best first, and their scores."""
        user_AD, _, _, seen_row, seen_lengths_A, own, repeats = self._gather(batch, output)
        items_AK, scores_AK = self._top(user_AD, seen_row, seen_lengths_A, repeats)
        assert batch.example_B is not None
        return {"example": batch.example_B[output.user_R], "item": items_AK[own], "score": scores_AK[own]}

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics over all ranks."""
        values = super().compute()
        if self._covered is not None:
            values[f"coverage@{max(self.k)}"] = self._covered.compute()
        return values

    def reset(self) -> None:
        """Forget the pass and the catalogue."""
        super().reset()
        self._item_ID = torch.empty(0, 0)
        if self._covered is not None:
            self._covered.reset()

    def _gather(
        self, batch: MultiViewBatch, output: ModelOutput
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, slice, Repeats | None]:
        """Join the rows of all ranks: states, targets, scores, seen items, which rows are this rank's, and repeats."""
        position_R = batch.target_BK[output.user_R, output.step_R]
        score_R = dot_scores(output.user_RD, output.item_MD[position_R])
        repeats = output.repeats
        if repeats is not None:
            score_R = torch.logaddexp(score_R, repeat_logit_of(repeats, position_R).float())
            (item_S, logit_S), _ = gather_rows(batch.item_row_M[repeats.item_S].long(), repeats.logit_S)
            (lengths_A,), _ = gather_rows(repeats.lengths_R)
            repeats = Repeats(item_S, lengths_A, logit_S)
        seen_row, seen_lengths_R = _seen_of_rows(batch, output.user_R)
        joined, own = gather_rows(output.user_RD, batch.item_row_M[position_R].long(), score_R, seen_lengths_R)
        user_AD, target_A, score_A, seen_lengths_A = joined
        (seen_row,), _ = gather_rows(seen_row)
        return user_AD, target_A, score_A, seen_row, seen_lengths_A, own, repeats

    def _top(
        self, user_AD: Tensor, seen_row: Tensor, seen_lengths_A: Tensor, repeats: Repeats | None
    ) -> tuple[Tensor, Tensor]:
        """Return rows and scores ``(A, K)`` of the best items of the whole catalogue."""
        score_AI = user_AD @ self._item_ID.T
        last = self._first + self._item_ID.shape[0]
        if repeats is not None:
            here_S = (repeats.item_S >= self._first) & (repeats.item_S < last)
            place = repeats.row_S[here_S], repeats.item_S[here_S] - self._first
            score_AI[place] = torch.logaddexp(score_AI[place], repeats.logit_S[here_S].to(score_AI.dtype))
        user_S = torch.repeat_interleave(seen_lengths_A)
        here_S = (seen_row >= self._first) & (seen_row < last)
        score_AI[user_S[here_S], seen_row[here_S] - self._first] = -torch.inf
        if self._first == 0 and score_AI.shape[1]:
            score_AI[:, 0] = -torch.inf
        most = max(self.k)
        best_AK, index_AK = score_AI.topk(min(most, score_AI.shape[1]), dim=1)
        missing = most - best_AK.shape[1]
        best_AK = nn.functional.pad(best_AK, (0, missing), value=-torch.inf)
        row_AK = nn.functional.pad(index_AK + self._first, (0, missing))
        # Slices of all ranks side by side: (ranks * K) candidates a row, of which the best K stay.
        (best_KA, row_KA), _ = gather_rows(best_AK.T.contiguous(), row_AK.T.contiguous())
        best_AK, order_AK = best_KA.T.topk(most, dim=1)
        row_AK = row_KA.T.gather(1, order_AK)
        return row_AK.masked_fill(best_AK == -torch.inf, 0), best_AK


def _seen_of_rows(batch: MultiViewBatch, user_R: Tensor) -> tuple[Tensor, Tensor]:
    """Return the seen items of each row, jagged over rows."""
    if batch.seen_row is None or batch.seen_lengths_B is None:
        return user_R.new_zeros(0), torch.zeros_like(user_R)
    if batch.target_BK.shape[1] == 1 and len(user_R) == batch.batch_size:
        return batch.seen_row.long(), batch.seen_lengths_B.long()  # every user once, in order
    lengths_R = batch.seen_lengths_B.long()[user_R]
    first_B = batch.seen_lengths_B.long().cumsum(0) - batch.seen_lengths_B
    start_R = torch.repeat_interleave(first_B[user_R] - (lengths_R.cumsum(0) - lengths_R), lengths_R)
    index = torch.arange(len(start_R), device=start_R.device) + start_R
    return batch.seen_row.long()[index], lengths_R
