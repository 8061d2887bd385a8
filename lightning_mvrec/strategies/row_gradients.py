"""The gradient of each row of a kernel's tables, summed over all ids of all held lookups that mean it.

F features, B bags of one lookup, N ids, S vectors that were returned, U distinct rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import PoolingMode
from torch import Tensor

from lightning_mvrec.strategies.row_sums import sum_by_row

#: A table's number in its kernel, distinct rows ``(U,)`` of it, and their gradients ``(U, D)``.
Rows = tuple[int, Tensor, Tensor]


@dataclass
class Lookup:
    """What a kernel was asked, and the gradient of its answer: ``(B, columns)``, without pooling ``(N, D)``."""

    ids_N: Tensor
    offsets: Tensor
    weights_N: Tensor | None
    features: int
    grad: Tensor | None = None

    @property
    def lengths_FB(self) -> Tensor:
        """Numbers of ids in the bags of each feature."""
        return self.offsets.diff().view(self.features, -1)

    @cached_property
    def parts(self) -> list[slice]:
        """Where the ids of each feature are. On CUDA the first look waits for the device."""
        ends = self.offsets[:: (len(self.offsets) - 1) // self.features].tolist()
        return [slice(first, end) for first, end in pairwise(ends)]

    @property
    def gradient(self) -> Tensor:
        """The gradient, which must have arrived."""
        assert self.grad is not None
        return self.grad


def join(lookups: Sequence[Lookup], pooled: bool) -> Lookup:
    """Return several lookups as one: a feature has the first one's bags, then the second's."""
    if len(lookups) == 1:
        return lookups[0]
    order = [(lookup, lookup.parts[feature]) for feature in range(lookups[0].features) for lookup in lookups]
    weights = [lookup.weights_N[part] for lookup, part in order if lookup.weights_N is not None]
    gradients = [lookup.gradient for lookup in lookups] if pooled else [lookup.gradient[part] for lookup, part in order]
    lengths = torch.cat([lookup.lengths_FB for lookup in lookups], dim=1).flatten()
    return Lookup(
        torch.cat([lookup.ids_N[part] for lookup, part in order]),
        torch.nn.functional.pad(lengths.cumsum(0), (1, 0)),
        torch.cat(weights) if weights else None,
        lookups[0].features,
        torch.cat(gradients),
    )


class Layout:
    """Which feature of a kernel reads which table, and which columns of its output.

    Args:
        kernel: fbgemm's kernel.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        #: First column of each feature, and the end of the last.
        self.columns: list[int] = kernel.D_offsets.tolist()
        #: Features of each table.
        self.tables: list[list[int]] = [[] for _ in {*kernel.feature_table_map}]
        for feature, table in enumerate(kernel.feature_table_map):
            self.tables[table].append(feature)

    @torch.no_grad()
    def rows(self, lookups: Sequence[Lookup]) -> Iterator[Rows]:
        """Yield the rows that lookups have asked for, by table; nothing for one without any."""
        mode = self._kernel.pooling_mode
        for table, features in enumerate(self.tables):
            ids: list[Tensor] = []
            sources: list[Tensor] = []
            factors: list[Tensor] = []
            gradients: list[Tensor] = []
            first = 0
            for lookup in lookups:
                for feature in features:
                    part = lookup.parts[feature]
                    count = part.stop - part.start
                    if mode == PoolingMode.NONE:
                        source_N = torch.arange(count, device=lookup.offsets.device)
                        gradients.append(lookup.gradient[part])
                    else:
                        lengths_B = lookup.lengths_FB[feature]
                        source_N = torch.repeat_interleave(lengths_B, output_size=count)
                        factor_N = torch.ones(count, device=lookup.offsets.device)
                        if lookup.weights_N is not None:
                            factor_N = lookup.weights_N[part].float()
                        if mode == PoolingMode.MEAN:
                            factor_N = factor_N / lengths_B[source_N]
                        factors.append(factor_N)
                        gradients.append(lookup.gradient[:, self.columns[feature] : self.columns[feature + 1]].float())
                    ids.append(lookup.ids_N[part])
                    sources.append(source_N + first)
                    first += len(gradients[-1])
            if any(len(some) for some in ids):
                weights_N = None if mode == PoolingMode.NONE else torch.cat(factors)
                for rows_U, gradient_UD in sum_by_row(
                    torch.cat(ids), torch.cat(sources), torch.cat(gradients), weights_N
                ):
                    yield table, rows_U, gradient_UD
