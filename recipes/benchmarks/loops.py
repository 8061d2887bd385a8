"""The ways to train: by hand, under Lightning's own strategies, under ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, Strategy
from modules import EPS, LR, HandShardedModel, Model, PlainModel, TorchRecModel
from rounds import Rounds
from torch.nn.parallel import DistributedDataParallel
from workloads import Source, Workload

from lightning_mvrec.strategies import Adagrad, TorchRecStrategy

#: How a TorchRec module's ids are laid out -> name of the method of :class:`Source` that does it.
LAYOUTS = {"pooled": "jagged", "collection": "jagged", "distinct": "distinct"}


def raw(workload: Workload, kind: str) -> Callable[[Rounds], None]:
    """The loop by hand: sharded collections, DDP for the dense part, nothing else."""

    def train(rounds: Rounds) -> None:
        _feed(rounds, workload, LAYOUTS[kind])
        model = HandShardedModel(workload, kind)
        model.configure_model()
        optimizer = model.configure_optimizers()
        model.forward = model.training_step  # what DDP calls
        wrapped = DistributedDataParallel(model) if dist.get_world_size() > 1 else model
        for number, batch in enumerate(rounds):
            optimizer.zero_grad()
            wrapped(batch, number).backward()
            optimizer.step()

    return train


def lightning(workload: Workload, kind: str) -> Callable[[Rounds], None]:
    """The module of :func:`raw` under Lightning's own strategy."""

    def train(rounds: Rounds) -> None:
        _feed(rounds, workload, LAYOUTS[kind])
        _fit(HandShardedModel(workload, kind), rounds, _own())

    return train


def ours(workload: Workload, kind: str, **settings: Any) -> Callable[[Rounds], None]:
    """The plain module under TorchRecStrategy, with its default settings and those given."""

    def train(rounds: Rounds) -> None:
        _feed(rounds, workload, LAYOUTS[kind])
        strategy = TorchRecStrategy(Adagrad(lr=LR, eps=EPS), sharding="row_wise", **settings)
        _fit(TorchRecModel(workload, kind), rounds, strategy)

    return train


def embedding(workload: Workload, sparse: bool, fused: bool = False) -> Callable[[Rounds], None]:
    """``nn.Embedding`` under Lightning's own strategy.

    Args:
        workload: What is looked up.
        sparse: Whether the gradient holds the rows looked up only.
        fused: Whether Adagrad runs as one kernel; dense gradients only.
    """

    def train(rounds: Rounds) -> None:
        _feed(rounds, workload, "plain")
        _fit(PlainModel(workload, sparse, fused), rounds, _own())

    return train


def _feed(rounds: Rounds, workload: Workload, layout: str) -> None:
    source = Source(workload, dist.get_rank(), dist.get_world_size())
    rounds.draw = source.draw
    rounds.collate = getattr(source, layout)


def _own() -> Strategy | str:
    return DDPStrategy() if dist.get_world_size() > 1 else "auto"


def _fit(model: Model, rounds: Rounds, strategy: Strategy | str) -> None:
    warnings.simplefilter("ignore")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=strategy,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, rounds)
