"""Several lookups of sharded tables in one optimizer step are one update: what one large batch would have done."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import nn
from torch.utils.data import DataLoader
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from lightning_mvrec.strategies import SGD, Adagrad, RowWiseAdagrad, TorchRecStrategy, plain_module
from lightning_mvrec.strategies.collected import concatenate
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


def test_weights_of_a_lookup_are_kept_in_order():
    first = KeyedJaggedTensor(
        ["a", "b"], torch.tensor([1, 2, 3]), torch.tensor([0.1, 0.2, 0.3]), lengths=torch.tensor([2, 1])
    )
    second = KeyedJaggedTensor(
        ["a", "b"], torch.tensor([4, 5]), torch.tensor([0.4, 0.5]), lengths=torch.tensor([0, 1, 1, 0])
    )
    both = concatenate([first, second])
    assert both.stride() == 3
    assert both.values().tolist() == [1, 2, 4, 3, 5]
    assert both.weights().tolist() == pytest.approx([0.1, 0.2, 0.4, 0.3, 0.5])
    assert both.lengths().tolist() == [2, 0, 1, 1, 1, 0]
