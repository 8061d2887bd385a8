"""Updates of sharded tables that wait for the optimizer step.

A fused kernel updates its tables in the backward pass of every lookup. Where several lookups belong to one optimizer
step, or where something is to happen to the gradient before it is used (clipping), the kernel's output is cut off from
it: the backward pass then ends at the kernel, on the rank that owns the rows, and leaves there what the kernel would
have received. The step hands all of it over at once. No row has changed in between, so this is exactly the step that
one large batch would have made, for every optimizer and plan.

F features, B bags of one lookup, N ids, U distinct rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import PoolingMode
from torch import Tensor

#: Rows given to a kernel at once where each needs a bag of its own: bounds what the other tables' empty bags take.
CHUNK_ROWS = 4096


@dataclass
class Lookup:
    """What a kernel was asked, and what became of its answer: ``given`` stands for ``output`` in the user's graph."""

    ids_N: Tensor
    offsets: Tensor
    weights_N: Tensor | None
    output: Tensor
    given: Tensor
    lr: float


class HeldKernel:
    """One fused kernel of this rank, whose updates can wait.

    Args:
        path: Path of its collection, for messages.
        kernel: fbgemm's kernel; its forward hook is put on here.
        trained: Whether its tables are trained; those of a frozen one stay as they are.
    """

    def __init__(self, path: str, kernel: Any, trained: bool) -> None:
        self.path = path
        self.kernel = kernel
        self.trained = trained
        #: Whether the lookups that come now wait.
        self.hold = False
        self._waiting: list[Lookup] = []
        self._largest: float | None = None
        self._features = len(kernel.feature_table_map)
        self._columns = kernel.D_offsets.tolist()
        kernel.register_forward_hook(self._cut, with_kwargs=True)

    def __len__(self) -> int:
        return len(self._waiting)

    def forget(self) -> None:
        """Drop everything, as a new fit does."""
        self._waiting, self._largest = [], None

    def clear_gradients(self) -> None:
        """Forget the gradients that have arrived, not the lookups: theirs may be on the way."""
        for lookup in self._waiting:
            lookup.given.grad = None

    @torch.no_grad()
    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply all gradients that have arrived."""
        for lookup in self._arrived():
            assert lookup.given.grad is not None
            lookup.given.grad.mul_(factor.to(lookup.given.device))

    def limit_gradients(self, largest: float) -> None:
        """Let the next update move every element of a row's summed gradient into ``[-largest, largest]``."""
        self._largest = largest

    @torch.no_grad()
    def square_norm(self) -> Tensor:
        """Return the sum of squares of the gradient of this rank's rows, each summed over all ids that mean it."""
        total = torch.zeros((), dtype=torch.float64, device=self.kernel.D_offsets.device)
        if self.trained:
            for _, _, gradient_UD in self._rows(self._arrived()):
                total += gradient_UD.float().square().sum()
        return total

    def update(self, prepare: Callable[[], object]) -> None:
        """Update the tables once for all that waits. Ranks need not agree.

        Args:
            prepare: Called before each look of the kernel at its settings (learning rate, number of steps).
        """
        waiting, largest = self._arrived(), self._largest
        self.forget()
        if not waiting or not self.trained:
            return
        with torch.enable_grad():
            if largest is not None:
                self._update_rows(waiting, largest, prepare)
            elif len(waiting) == 1 and waiting[0].lr == self.kernel.get_learning_rate():
                torch.autograd.backward(waiting[0].output, waiting[0].given.grad)
            else:
                prepare()
                self._update_lookups(waiting)

    def _arrived(self) -> list[Lookup]:
        return [lookup for lookup in self._waiting if lookup.given.grad is not None]

    def _cut(self, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if not self.hold or not output.requires_grad:
            return None
        if kwargs.get("batch_size_per_feature_per_rank") is not None:
            raise ValueError(
                f"{self.path}: clipped or accumulated gradients need features with one number of bags each; "
                "leave stride_per_key_per_rank out of the KeyedJaggedTensor"
            )
        given = output.detach().requires_grad_()
        self._waiting.append(
            Lookup(
                kwargs["indices"],
                kwargs["offsets"],
                kwargs.get("per_sample_weights"),
                output,
                given,
                kernel.get_learning_rate(),
            )
        )
        return given

    def _update_lookups(self, waiting: Sequence[Lookup]) -> None:
        """Run the kernel on all lookups as one: a feature has the first one's bags, then the second's."""
        pooled = self.kernel.pooling_mode != PoolingMode.NONE
        ids, weights, gradients = [], [], []
        for feature in range(self._features):
            for lookup in waiting:
                part, _ = self._part(lookup, feature)
                ids.append(lookup.ids_N[part])
                if lookup.weights_N is not None:
                    weights.append(lookup.weights_N[part])
                if not pooled:
                    gradients.append(_gradient(lookup)[part])
        if pooled:
            gradients = [_gradient(lookup) for lookup in waiting]
        lengths_FB = [lookup.offsets.diff().view(self._features, -1) for lookup in waiting]
        output = self.kernel.forward(
            indices=torch.cat(ids),
            offsets=_offsets(torch.cat(lengths_FB, dim=1).flatten()),
            per_sample_weights=torch.cat(weights) if weights else None,
        )
        torch.autograd.backward(output, torch.cat(gradients).to(output.dtype))

    def _update_rows(self, waiting: Sequence[Lookup], largest: float, prepare: Callable[[], object]) -> None:
        """Run the kernel on the distinct rows, each looked up once, with its summed and limited gradient."""
        found = [(feature, ids, grad.clamp(-largest, largest)) for feature, ids, grad in self._rows(waiting)]
        if self.kernel.pooling_mode == PoolingMode.NONE:
            self._backward(found, prepare)
            return
        for first in range(0, max((len(ids) for _, ids, _ in found), default=0), CHUNK_ROWS):
            part = slice(first, first + CHUNK_ROWS)
            self._backward([(feature, ids[part], grad[part]) for feature, ids, grad in found], prepare)

    def _backward(self, rows: Sequence[tuple[int, Tensor, Tensor]], prepare: Callable[[], object]) -> None:
        pooled = self.kernel.pooling_mode != PoolingMode.NONE
        most = max(len(ids) for _, ids, _ in rows)
        device, dtype = rows[0][1].device, rows[0][1].dtype
        lengths_FB = torch.zeros(self._features, most, dtype=dtype, device=device)
        for feature, ids_U, _ in rows:
            lengths_FB[feature, : len(ids_U)] = 1
        prepare()
        output = self.kernel.forward(
            indices=torch.cat([ids_U for _, ids_U, _ in rows]), offsets=_offsets(lengths_FB.flatten())
        )
        if pooled:
            gradient = torch.zeros_like(output)
            for feature, ids_U, gradient_UD in rows:
                columns = slice(self._columns[feature], self._columns[feature + 1])
                gradient[: len(ids_U), columns] = gradient_UD
        else:
            gradient = torch.cat([gradient_UD for _, _, gradient_UD in rows])
        torch.autograd.backward(output, gradient.to(output.dtype))

    def _part(self, lookup: Lookup, feature: int) -> tuple[slice, Tensor]:
        """Return where a feature's ids are in a lookup, and the ends of its bags."""
        bags = (len(lookup.offsets) - 1) // self._features
        offsets = lookup.offsets[feature * bags : (feature + 1) * bags + 1]
        return slice(int(offsets[0]), int(offsets[-1])), offsets

    @torch.no_grad()
    def _rows(self, lookups: Sequence[Lookup]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield for each table its first feature, the distinct rows ``(U,)`` and their gradient ``(U, D)``."""
        pooled = self.kernel.pooling_mode != PoolingMode.NONE
        tables: dict[int, list[int]] = {}
        for feature, table in enumerate(self.kernel.feature_table_map):
            tables.setdefault(table, []).append(feature)
        for features in tables.values():
            ids: list[Tensor] = []
            sources: list[Tensor] = []
            factors: list[Tensor] = []
            gradients: list[Tensor] = []
            first = 0
            for lookup in lookups:
                for feature in features:
                    part, offsets = self._part(lookup, feature)
                    if not pooled:
                        source_N = torch.arange(part.stop - part.start, device=offsets.device)
                        gradients.append(_gradient(lookup)[part])
                    else:
                        lengths_B = offsets.diff()
                        source_N = torch.repeat_interleave(lengths_B)
                        factor_N = torch.ones(len(source_N), device=offsets.device)
                        if lookup.weights_N is not None:
                            factor_N = lookup.weights_N[part].float()
                        if self.kernel.pooling_mode == PoolingMode.MEAN:
                            factor_N = factor_N / lengths_B[source_N]
                        factors.append(factor_N)
                        gradients.append(
                            _gradient(lookup)[:, self._columns[feature] : self._columns[feature + 1]].float()
                        )
                    ids.append(lookup.ids_N[part])
                    sources.append(source_N + first)
                    first += len(gradients[-1])
            if any(len(some) for some in ids):
                weights_N = torch.cat(factors) if pooled else None
                yield features[0], *_sum_by_row(torch.cat(ids), torch.cat(sources), torch.cat(gradients), weights_N)


def _sum_by_row(ids_N: Tensor, source_N: Tensor, gradient_SD: Tensor, weight_N: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the distinct ids and, for each, the weighted sum of the gradients that its occurrences point at."""
    sorted_N, order_N = torch.sort(ids_N)
    rows_U, count_U = torch.unique_consecutive(sorted_N, return_counts=True)
    summed_UD = torch.nn.functional.embedding_bag(
        source_N[order_N],
        gradient_SD,
        count_U.cumsum(0) - count_U,
        mode="sum",
        per_sample_weights=None if weight_N is None else weight_N[order_N].to(gradient_SD.dtype),
    )
    return rows_U, summed_UD


def _offsets(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def _gradient(lookup: Lookup) -> Tensor:
    assert lookup.given.grad is not None
    return lookup.given.grad
