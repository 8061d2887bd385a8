"""The module that all variants train, apart from how it looks its vectors up.

B users, E events, T steps of the longest history, D width, M distinct ids.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.optim import _apply_optimizer_in_backward as apply_optimizer_in_backward
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, PoolingType
from torchrec.distributed.embedding import EmbeddingCollectionSharder  # noqa: TID251  (the loop by hand)
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder  # noqa: TID251
from torchrec.distributed.sharding_plan import (  # noqa: TID251
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv, ShardingType  # noqa: TID251
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from workloads import FEATURE, Workload

from lightning_mvrec.functional import take_rows

LR, EPS = 0.05, 1e-8
TABLE = "item"


class Model(pl.LightningModule):
    """Score users by the weighted mean of their histories' vectors: one table, and a small dense part.

    For sequences every step of a history has a trained weight, so that the order of events counts and each needs its
    own vector. The dense part is small on purpose: it is the same for all, and a large one would hide differences.
    """

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.workload = workload
        torch.manual_seed(0)
        self.step_T1 = nn.Parameter(torch.ones(workload.longest, 1)) if workload.lookups == "sequence" else None
        self.tower = nn.Sequential(nn.Linear(workload.dim, 64), nn.ReLU(), nn.Linear(64, 1))

    def look_up(self, batch: dict[str, Any]) -> Tensor:
        """Return ``(E, D)``, a vector for each event, or ``(B, D)``, their mean for each user."""
        raise TypeError(f"{type(self).__name__} must define look_up(batch)")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss."""
        found = self.look_up(batch)
        if found.shape[0] != len(batch["label"]):
            found = mean_BD(found, batch["length"], self.workload, self.step_T1)
        score_B = self.tower(found).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(score_B, batch["label"])
        self.report(loss, len(score_B))
        return loss

    def report(self, loss: Tensor, users: int) -> None:
        """Log the loss, as every module does; there is nobody to log to in a loop by hand."""
        if self._trainer is not None:
            self.log("loss", loss, batch_size=users)

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return what the dense optimizer trains."""
        return list(self.parameters())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return element-wise Adagrad."""
        return torch.optim.Adagrad(self.dense_parameters(), lr=LR, eps=EPS)


def mean_BD(x_ED: Tensor, length_B: Tensor, workload: Workload, step_T1: Tensor | None) -> Tensor:
    """Return the mean over each user's events, weighted by their step if there are weights."""
    if workload.lengths == "equal":
        x_BTD = x_ED.view(-1, workload.length, workload.dim)
        return (x_BTD if step_T1 is None else x_BTD * step_T1).mean(1)
    offsets = torch.zeros(len(length_B) + 1, dtype=torch.int64)
    torch.cumsum(length_B, 0, out=offsets[1:])
    x_BTD = torch.ops.fbgemm.jagged_to_padded_dense(x_ED, [offsets], [workload.longest], 0.0)
    total_BD = (x_BTD if step_T1 is None else x_BTD * step_T1).sum(1)
    return total_BD / length_B[:, None]


class PlainModel(Model):
    """``nn.Embedding``, the whole of it on every rank, followed by a mean."""

    def __init__(self, workload: Workload, sparse: bool, fused: bool) -> None:
        super().__init__(workload)
        self.table = nn.Embedding(workload.rows, workload.dim, sparse=sparse)
        self.fused = fused

    def look_up(self, batch: dict[str, Any]) -> Tensor:
        """Look every event up."""
        x_ED = self.table(batch["ids"])
        if self.workload.lookups == "pooled":
            return mean_BD(x_ED, batch["length"], self.workload, None)
        return x_ED

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adagrad, in torch's fused form where asked for, which has no sparse gradients."""
        return torch.optim.Adagrad(self.parameters(), lr=LR, eps=EPS, fused=self.fused)


class TorchRecModel(Model):
    """A TorchRec collection, unsharded: what a user of the strategy writes."""

    def __init__(self, workload: Workload, kind: str) -> None:
        super().__init__(workload)
        self.kind = kind
        self.collection: nn.Module | None = None

    def configure_model(self) -> None:
        """Describe the table; no memory is taken."""
        if self.collection is None:
            self.collection = collection(self.workload, self.kind)

    def look_up(self, batch: dict[str, Any]) -> Tensor:
        """Look the batch's KeyedJaggedTensor up."""
        return self.vectors(self.collection(batch["ids"]), batch)

    def vectors(self, output: Any, batch: dict[str, Any]) -> Tensor:
        """Return what the collection gave, in the order of events."""
        found = output[FEATURE]
        if self.kind == "collection":
            return found.values()
        return take_rows(found, batch["position"]) if self.kind == "distinct" else found

    def dense_parameters(self) -> list[nn.Parameter]:
        """Leave the table out: its kernel trains it, and Adagrad would take memory for it at once."""
        return [weight for name, weight in self.named_parameters() if not name.startswith("collection.")]


class HandShardedModel(TorchRecModel):
    """The same sharded by hand, in place, without any of the strategy's guards.

    Lightning's own strategies can train it: DDP is told to leave the table alone and replicates the dense part. They
    could neither save nor resume it, and every process must make as many steps as the others.
    """

    def configure_model(self) -> None:
        """Shard the table by rows and attach its optimizer, as TorchRec's own examples do; alone, keep it whole."""
        if self.collection is not None:
            return
        plain = collection(self.workload, self.kind)
        apply_optimizer_in_backward(torch.optim.Adagrad, plain.parameters(), {"lr": LR, "eps": EPS})
        sharder = CpuBags() if isinstance(plain, EmbeddingBagCollection) else EmbeddingCollectionSharder()
        world_size = dist.get_world_size()
        cpu = torch.device("cpu")
        kind = row_wise() if world_size > 1 else table_wise(rank=0)
        plan = construct_module_sharding_plan(plain, {TABLE: kind}, sharder, world_size, world_size, "cpu")
        env = ShardingEnv.from_process_group(dist.group.WORLD)
        self.collection = sharder.shard(plain, plan, env, cpu)
        for states in self.collection.fused_optimizer.state.values():
            for state in states.values():
                for shard in state.local_shards():
                    shard.tensor.zero_()  # touched now, not in the first steps that are timed
        names = [f"collection.{name}" for name, _ in self.collection.named_parameters()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, names)

    def look_up(self, batch: dict[str, Any]) -> Tensor:
        """Look up, with as many bags on every rank: a row-wise backward pass on gloo fails without."""
        ids: KeyedJaggedTensor = batch["ids"]
        bags = ids.stride()
        if self.kind == "distinct" and dist.get_world_size() > 1:
            most = torch.tensor(bags)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            lengths = nn.functional.pad(ids.lengths(), (0, int(most) - bags))
            padded = KeyedJaggedTensor([FEATURE], ids.values(), lengths=lengths, stride=int(most))
            output = self.collection(padded).wait()
            return self.vectors({FEATURE: output[FEATURE][:bags]}, batch)
        return self.vectors(self.collection(ids).wait(), batch)


class CpuBags(EmbeddingBagCollectionSharder):
    """TorchRec's sharder with row-wise sharding, which it has on CPU but does not offer there."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Return what the benchmark uses."""
        return [ShardingType.ROW_WISE.value, ShardingType.TABLE_WISE.value]


def collection(workload: Workload, kind: str) -> nn.Module:
    """Return the collection of one table, on ``meta``.

    Args:
        workload: Its size.
        kind: ``"pooled"``; for sequences ``"collection"`` (an EmbeddingCollection) or ``"distinct"`` (distinct ids as
            bags of one, as this package's own models do).
    """
    meta = torch.device("meta")
    size: dict[str, Any] = {"name": TABLE, "num_embeddings": workload.rows, "embedding_dim": workload.dim}
    if kind == "collection":
        return EmbeddingCollection(tables=[EmbeddingConfig(**size, feature_names=[FEATURE])], device=meta)
    pooling = PoolingType.MEAN if kind == "pooled" else PoolingType.SUM
    return EmbeddingBagCollection([EmbeddingBagConfig(**size, feature_names=[FEATURE], pooling=pooling)], device=meta)
