"""Several lookups of sharded tables in one optimizer step are one update: what one large batch would have done."""

import lightning.pytorch as pl
import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    PoolingMode,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.utils.data import DataLoader
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from lightning_mvrec.strategies import SGD, Adagrad, RowWiseAdagrad, TorchRecStrategy, plain_module
from lightning_mvrec.strategies.held import HeldKernel
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import DIM, InInit, batches, trainer

ROW_WISE = {"sharding": "row_wise"}
TABLE_WISE = {"sharding": "table_wise"}
REPLICATED = {"replicate": "all"}


class Mean(InInit):
    """Its loss is a mean over users, so the mean over two equal halves is that over the whole."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Sequence(Mean):
    def build(self):
        configs = [
            EmbeddingConfig(num_embeddings=50, embedding_dim=DIM, name="item", feature_names=["history"]),
            EmbeddingConfig(num_embeddings=31, embedding_dim=DIM, name="user", feature_names=["who"]),
        ]
        self.embeddings = EmbeddingCollection(tables=configs, device=torch.device("cpu"))
        self.tower = nn.Linear(2 * DIM, 1)

    def forward(self, batch):
        found = self.embeddings(batch["ids"])
        history = found["history"]
        sums = torch.segment_reduce(history.values(), "sum", lengths=history.lengths().long(), initial=0.0)
        return self.tower(torch.cat([sums, found["who"].values()], dim=1)).squeeze(1)


def in_parts(batch, parts):
    """The users of a batch in consecutive batches of equal size."""
    size = len(batch["label"]) // parts
    lengths = batch["ids"]["history"].lengths().tolist()
    history, who = batch["ids"]["history"].values(), batch["ids"]["who"].values()
    made = []
    for first in range(0, len(batch["label"]), size):
        mine = slice(first, first + size)
        start = sum(lengths[:first])
        values = history[start : start + sum(lengths[mine])]
        made.append(
            {
                "ids": KeyedJaggedTensor(
                    ["history", "who"],
                    torch.cat([values, who[mine]]),
                    lengths=torch.tensor(lengths[mine] + [1] * size),
                ),
                "label": batch["label"][mine],
            }
        )
    return made


def weights_after(kind, optimizer, plan, parts=1, steps=3, strategy=(), **settings):
    """All weights after ``steps`` optimizer steps, each over ``parts`` micro-batches."""
    pl.seed_everything(3, verbose=False)
    module = kind()
    data = [part for batch in batches(steps) for part in in_parts(batch, parts)]
    runner = trainer(TorchRecStrategy(optimizer, **plan, **dict(strategy)), **settings)
    runner.fit(module, DataLoader(data, batch_size=None))
    return plain_module(runner).state_dict()


def assert_alike(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key], value, atol=2e-6), key


@pytest.mark.parametrize("optimizer", [SGD(lr=0.5), Adagrad(lr=0.1), RowWiseAdagrad(lr=0.1)])
@pytest.mark.parametrize("plan", [ROW_WISE, TABLE_WISE, REPLICATED])
@pytest.mark.parametrize("kind", [Mean, Sequence])
def test_accumulated_batches_make_the_step_of_one_large_batch(kind, plan, optimizer):
    def run():
        whole = weights_after(kind, optimizer, plan)
        parts = weights_after(kind, optimizer, plan, parts=2, accumulate_grad_batches=2)
        assert_alike(parts, whole)
        return whole, weights_after(kind, optimizer, plan, parts=2)

    (whole, not_accumulated), _ = run_ranks(run, 2)
    key = next(key for key in whole if "item" in key)
    assert not torch.allclose(not_accumulated[key], whole[key], atol=1e-3)


def test_a_short_last_group_of_batches_is_not_lost_and_a_scheduler_may_change_the_number():
    def run(size):
        scheduler = GradientAccumulationScheduler({0: 1, 1: 4})
        return weights_after(
            Mean, Adagrad(lr=0.1), TABLE_WISE if size == 2 else REPLICATED, 1, 5, callbacks=[scheduler], max_epochs=2
        )

    assert_alike(run_ranks(run, 2, 2)[0], run_ranks(run, 1, 1)[0])


class Twice(Mean):
    def forward(self, batch):
        return super().forward(batch) + super().forward({**batch, "ids": other(batch["ids"])})


def other(ids):
    """The same users with other items."""
    values = ids.values().clone()
    events = int(ids["history"].lengths().sum())
    values[:events] = (values[:events] * 7 + 1) % 50
    return KeyedJaggedTensor(ids.keys(), values, lengths=ids.lengths())


@pytest.mark.parametrize("size", [1, 2])
def test_two_lookups_in_a_step_are_one_update(size):
    def run():
        sharded = weights_after(Twice, RowWiseAdagrad(lr=0.1), ROW_WISE, strategy={"update_in_step": True})
        assert_alike(sharded, weights_after(Twice, RowWiseAdagrad(lr=0.1), REPLICATED))

    run_ranks(run, size)


class Manual(Mean):
    """Accumulates by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = nn.functional.binary_cross_entropy_with_logits(self(batch), batch["label"])
        self.manual_backward(loss / 2)
        if batch_idx % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()


def test_manual_optimization_may_accumulate_in_the_step():
    def run():
        plan = TABLE_WISE
        parts = weights_after(Manual, Adagrad(lr=0.1), plan, parts=2, strategy={"update_in_step": True})
        assert_alike(parts, weights_after(Mean, Adagrad(lr=0.1), plan))

    run_ranks(run, 1)


class Discarding(Manual):
    """Throws a gradient away before the one that counts."""

    def training_step(self, batch, batch_idx):
        loss = nn.functional.binary_cross_entropy_with_logits(self(batch), batch["label"])
        self.manual_backward(7 * loss, retain_graph=True)
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()
        self.optimizers().zero_grad()


def test_a_gradient_that_is_cleared_before_the_step_trains_nothing():
    def run():
        cleared = weights_after(Discarding, SGD(lr=0.5), TABLE_WISE, strategy={"update_in_step": True})
        assert_alike(cleared, weights_after(Mean, SGD(lr=0.5), TABLE_WISE))

    run_ranks(run, 1)


def test_manual_accumulation_is_refused_in_the_backward_pass():
    def run():
        with pytest.raises(RuntimeError, match=r"no optimizer has stepped[\s\S]*update_in_step=True"):
            weights_after(Manual, Adagrad(lr=0.1), TABLE_WISE, parts=2)

    run_ranks(run, 1)


def test_a_validation_between_accumulated_batches_trains_nothing():
    class Validated(Mean):
        def val_dataloader(self):
            return DataLoader(batches(2, seed=9), batch_size=None)

    def run():
        settings = {"parts": 2, "accumulate_grad_batches": 2}
        validated = weights_after(Validated, SGD(lr=0.5), ROW_WISE, val_check_interval=1, **settings)
        return assert_alike(validated, weights_after(Mean, SGD(lr=0.5), ROW_WISE, **settings))

    run_ranks(run, 2)


def look_up(kernel, ids, weights, lengths):
    offsets = torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    weights = None if weights is None else torch.tensor(weights)
    return kernel(indices=torch.tensor(ids, dtype=torch.long), offsets=offsets, per_sample_weights=weights)


def held_kernel(mode, *widths, **settings):
    """A kernel of tables of 5 rows that are 0, and what holds its updates."""
    kernel = SplitTableBatchedEmbeddingBagsCodegen(
        [(5, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for width in widths],
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=1.0,
        pooling_mode=PoolingMode[mode],
    )
    for weight in kernel.split_embedding_weights():
        weight.zero_()
    held = HeldKernel("here", kernel, trained=True, **settings)
    held.hold = True
    return kernel, held


@pytest.mark.parametrize("mode", ["SUM", "NONE"])
@pytest.mark.parametrize("limited", [False, True])
def test_a_step_whose_lookups_have_no_ids_changes_nothing(mode, limited):
    kernel, held = held_kernel(mode, 4, 4)
    for _ in range(2):
        look_up(kernel, [], None, [0, 0]).sum().backward()
    assert held.square_norm().item() == 0
    if limited:
        held.limit_gradients(0.1)
    held.update(lambda: None)
    assert len(held) == 0
    assert not any(weight.any() for weight in kernel.split_embedding_weights())


@pytest.mark.parametrize("mode", ["SUM", "MEAN"])
def test_lookups_of_several_sizes_keep_ids_weights_and_gradients_together(mode):
    """Two features of two tables, looked up as two bags and then as one, against the sum written out by hand."""
    kernel, held = held_kernel(mode, 4, 8)
    weighted = mode == "SUM"  # a mean with weights is not offered by torch either
    first = look_up(kernel, [1, 2, 3, 4, 4], [1.0, 2.0, 3.0, 4.0, 5.0] if weighted else None, [2, 1, 0, 2])
    second = look_up(kernel, [1, 0], [10.0, 20.0] if weighted else None, [1, 1])
    torch.autograd.backward([first.sum() + first[1].sum(), second.sum() * 3])  # bags get 1, 2 and 3
    if weighted:
        one = torch.tensor([0.0, 1 * 1 + 3 * 10.0, 1 * 2, 2 * 3, 0.0])
        two = torch.tensor([3 * 20.0, 0.0, 0.0, 0.0, 2 * (4 + 5)])
    else:
        one = torch.tensor([0.0, 1 / 2 + 3, 1 / 2, 2.0, 0.0])
        two = torch.tensor([3.0, 0.0, 0.0, 0.0, 2 * (1 / 2 + 1 / 2)])
    norm = 4 * one.square().sum() + 8 * two.square().sum()
    assert held.square_norm().item() == pytest.approx(norm.item())
    held.update(lambda: None)
    weights = kernel.split_embedding_weights()
    assert torch.allclose(weights[0], -one[:, None].expand(5, 4))
    assert torch.allclose(weights[1], -two[:, None].expand(5, 8))
