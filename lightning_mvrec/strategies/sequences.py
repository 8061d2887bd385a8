"""Sequence collections on CPU, with the same numbers in less time.

A sequence collection asks its kernel for a vector for each id. fbgemm has a backward pass of its own for that, which on
CPU takes several times as long as the one for sums over bags of ids; so every id becomes a bag of its own. Vectors of a
row-wise table come in the order of ranks and are put into that of ids. TorchRec's backward pass adds into zeros, though
each vector is there once: reading in the inverse order is enough.

F features of a kernel, N ids, M the most ids of a feature, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_common import PoolingMode
from torch import Tensor, nn
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbedding
from torchrec.distributed.dist_data import SequenceEmbeddingsAllToAll
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


def speed_up(collection: nn.Module) -> None:
    """Let a sharded sequence collection on CPU look ids up as bags of one. Bag collections stay as they are."""
    parts: list[nn.Module] = [*collection._lookups, *collection._output_dists]  # type: ignore[misc]
    for module in [module for part in parts for module in part.modules()]:
        if type(module) is BatchedFusedEmbedding and _has_bags(module):
            module.forward = _BagsOfOne(module)
        elif isinstance(module, SequenceEmbeddingsAllToAll):
            module.forward = _Permuted(module)


def _has_bags(kernel: BatchedFusedEmbedding) -> bool:
    """Whether sums over bags train as single ids do: on CPU they leave weight decay out, and they have one width."""
    return len({*kernel._local_cols}) == 1 and not kernel.emb_module.optimizer_args.weight_decay


class _BagsOfOne:
    """The forward pass of a kernel, by sums over one row each."""

    def __init__(self, kernel: BatchedFusedEmbedding) -> None:
        self._tables: Any = kernel.emb_module
        self._tables.pooling_mode = PoolingMode.SUM
        self._features = kernel.config.num_features()
        self._kernel = kernel

    def __call__(self, features: KeyedJaggedTensor) -> Tensor:
        counts = [features.values().numel()] if self._features == 1 else features.length_per_key()
        most = max(*counts, 1)
        found = self._tables(
            indices=features.values().to(self._kernel._embedding_table_index_type),
            offsets=bag_offsets(counts, most, features.device()).to(self._kernel._embedding_table_offset_type),
        )
        if counts == [most]:
            return found
        found_MFD = found.view(most, len(counts), -1)
        return torch.cat([found_MFD[:count, number] for number, count in enumerate(counts)])


def bag_offsets(counts: list[int], most: int, device: torch.device) -> Tensor:
    """Return where bags of one id begin and end, for each feature as many as the largest has, the last ones empty.

    Example:
        >>> bag_offsets([2, 1], 2, torch.device("cpu")).tolist()
        [0, 1, 2, 3, 3]
    """
    if all(count == most for count in counts):
        return torch.arange(len(counts) * most + 1, device=device)
    lengths_FM = torch.arange(most, device=device) < torch.tensor(counts, device=device)[:, None]
    return nn.functional.pad(lengths_FM.flatten().cumsum(0), (1, 0))


class _Permuted:
    """The exchange of vectors, with a permutation whose backward pass is a permutation."""

    def __init__(self, module: SequenceEmbeddingsAllToAll) -> None:
        self._module = module

    def __call__(
        self, local_embs: Tensor, *args: Any, unbucketize_permute_tensor: Tensor | None = None, **kwargs: Any
    ) -> Any:
        on_the_way = type(self._module).forward(self._module, local_embs, *args, **kwargs)
        if (place_N := unbucketize_permute_tensor) is not None:
            width = local_embs.shape[1]
            on_the_way.callbacks.append(lambda found: _Permute.apply(found.view(-1, width), place_N))
        return on_the_way


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, place_N: Tensor) -> Tensor:
        ctx.place_N = place_N
        return x_ND.index_select(0, place_N)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, torch.ops.fbgemm.invert_permute(ctx.place_N)), None
