"""Tables are clipped as Lightning clips ordinary ones: TorchRec's unsharded collections hold nn.EmbeddingBag."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)

from lightning_mvrec.strategies import SGD, Adagrad, RowWiseAdagrad, TorchRecStrategy, held, plain_module
from tests.distributed.launch import RankError, run_ranks
from tests.strategies.stranger import DIM, ITEMS, USERS, InInit, Together, batches, loader, trainer
from tests.strategies.test_held import in_parts

LIMIT = 0.05


class Everything(InInit):
    """A table that two features share, sum and mean pooling, sequences, and a small collection to be replicated."""

    table_lr = 0.5
    kind = torch.optim.SGD

    def build(self):
        self.embeddings = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(
                    num_embeddings=ITEMS, embedding_dim=DIM, name="item", feature_names=["history", "reversed"]
                ),
                EmbeddingBagConfig(
                    num_embeddings=ITEMS,
                    embedding_dim=2 * DIM,
                    name="mean",
                    feature_names=["history"],
                    pooling=PoolingType.MEAN,
                ),
            ],
            device=torch.device("cpu"),
        )
        self.sequence = EmbeddingCollection(
            [EmbeddingConfig(num_embeddings=ITEMS, embedding_dim=DIM, name="event", feature_names=["history"])],
            device=torch.device("cpu"),
        )
        self.small = EmbeddingBagCollection(
            [EmbeddingBagConfig(num_embeddings=USERS, embedding_dim=DIM, name="user", feature_names=["who"])],
            device=torch.device("cpu"),
        )
        self.tower = nn.Sequential(nn.Linear(6 * DIM, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, batch):
        events = batch["ids"]["history"]
        ids = KeyedJaggedTensor(
            ["history", "reversed"],
            torch.cat([events.values(), ITEMS - 1 - events.values()]),
            lengths=torch.cat([events.lengths(), events.lengths()]),
        )
        jagged = self.sequence(KeyedJaggedTensor(["history"], events.values(), lengths=events.lengths()))["history"]
        user = torch.repeat_interleave(jagged.lengths())
        sums = torch.zeros(len(jagged.lengths()), DIM).index_add(0, user, jagged.values())
        found = self.embeddings(ids)
        pooled = [found[name] for name in ("history@item", "reversed", "history@mean")]
        return self.tower(torch.cat([*pooled, sums, self.small(batch["ids"])["who"]], dim=1)).squeeze(1)

    def configure_optimizers(self):
        tables = [
            weight for path in ("embeddings", "sequence", "small") for weight in self.get_submodule(path).parameters()
        ]
        groups = [{"params": self.tower.parameters()}, {"params": tables, "lr": self.table_lr}]
        return self.kind(groups, lr=0.1)


class WithAdagrad(Everything):
    table_lr = 0.1

    def configure_optimizers(self):
        dense = torch.optim.SGD(self.tower.parameters(), lr=0.1)
        if not isinstance(self.trainer.strategy, TorchRecStrategy):
            tables = [w for path in ("embeddings", "sequence", "small") for w in self.get_submodule(path).parameters()]
            return [Together(dense, torch.optim.Adagrad(tables, lr=0.1, eps=1e-8))]
        return dense


def weights_after(kind, strategy, data=loader, **settings):
    pl.seed_everything(3, verbose=False)
    module = kind()
    runner = trainer(strategy, **settings)
    runner.fit(module, data(4))
    return plain_module(runner).state_dict()


def assert_alike(found, expected, tolerance=1e-6):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=0, atol=tolerance), (key, (found[key] - value).abs().max())


CASES = [(Everything, SGD(lr=0.5)), (WithAdagrad, Adagrad(lr=0.1))]


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize(("kind", "optimizer"), CASES)
def test_tables_are_clipped_as_unsharded_ones_on_one_and_two_ranks(kind, optimizer, algorithm):
    limit = {"norm": LIMIT, "value": 0.004}[algorithm]
    settings = {"gradient_clip_val": limit, "gradient_clip_algorithm": algorithm}

    def run(sharding):
        return weights_after(kind, TorchRecStrategy(optimizer, sharding=sharding, replicate=["small"]), **settings)

    expected, free = run_ranks(lambda: (weights_after(kind, "auto", **settings), weights_after(kind, "auto")), 1)[0]
    assert not torch.allclose(expected["tower.0.weight"], free["tower.0.weight"], atol=1e-4)
    for size, sharding in ((1, "table_wise"), (2, "row_wise"), (2, "table_wise"), (2, "column_wise")):
        assert_alike(run_ranks(run, size, sharding)[0], expected)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_accumulated_gradients_are_clipped_once(algorithm):
    settings = {"gradient_clip_val": {"norm": LIMIT, "value": 0.004}[algorithm], "gradient_clip_algorithm": algorithm}

    def parts(steps):
        return DataLoader([part for batch in batches(steps) for part in in_parts(batch, 2)], batch_size=None)

    def run(data, **more):
        strategy = TorchRecStrategy(SGD(lr=0.5), sharding="row_wise")
        return weights_after(Everything, strategy, data, **settings, **more)

    whole = run_ranks(run, 1, loader)[0]
    assert_alike(run_ranks(lambda: run(parts, accumulate_grad_batches=2), 2)[0], whole)


def test_rows_are_limited_in_chunks_too(monkeypatch):
    def run():
        strategy = TorchRecStrategy(SGD(lr=0.5), sharding="table_wise")
        return weights_after(Everything, strategy, gradient_clip_val=0.004, gradient_clip_algorithm="value")

    whole = run_ranks(run, 1)[0]
    monkeypatch.setattr(held, "CHUNK_ROWS", 7)
    assert_alike(run_ranks(run, 1)[0], whole)


class Weighted(InInit):
    """Each event counts by its place."""

    def build(self):
        config = EmbeddingBagConfig(num_embeddings=ITEMS, embedding_dim=DIM, name="item", feature_names=["history"])
        self.embeddings = EmbeddingBagCollection([config], is_weighted=True, device=torch.device("cpu"))
        self.tower = nn.Linear(DIM, 1)

    def forward(self, batch):
        events = batch["ids"]["history"]
        ids = KeyedJaggedTensor(
            ["history"], events.values(), 1 + torch.arange(len(events.values())) % 3 / 2, lengths=events.lengths()
        )
        return self.tower(self.embeddings(ids).values()).squeeze(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_weighted_bags_are_clipped_as_unsharded_ones(algorithm):
    settings = {"gradient_clip_val": 0.02, "gradient_clip_algorithm": algorithm}

    def run(strategy):
        return weights_after(Weighted, strategy, **settings)

    expected = run_ranks(run, 1, "auto")[0]
    assert_alike(run_ranks(run, 1, TorchRecStrategy(SGD(lr=0.1)))[0], expected)
    free = run_ranks(lambda: weights_after(Weighted, "auto"), 1)[0]
    assert not torch.allclose(free["tower.weight"], expected["tower.weight"], atol=1e-4)


class Broken(InInit):
    """The gradient of one rank's last table rows overflows, the loss does not."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.global_rank == self.trainer.world_size - 1 and batch_idx == 1:
            vectors = self.embeddings.held
            loss = loss + (vectors * 0).sqrt().sum()  # 0, with an infinite gradient times 0
        return loss

    def forward(self, batch):
        self.embeddings.held = self.embeddings(batch["ids"]).values()
        return self.tower(self.embeddings.held).squeeze(1)


@pytest.mark.parametrize("size", [1, 2])
def test_a_norm_that_is_not_finite_stops_all_ranks_before_anything_is_poisoned(size):
    def run():
        module = Broken()
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise"), gradient_clip_val=1.0)
        with pytest.raises(ValueError, match=r"gradient norm must be finite, got nan in epoch 0, batch 1"):
            runner.fit(module, loader())
        return {name: bool(weight.isfinite().all()) for name, weight in plain_module(module).named_parameters()}

    for finite in run_ranks(run, size):
        assert all(finite.values()), finite


def test_dense_parameters_alone_are_clipped_where_that_is_meant():
    def run(sharding):
        before = torch.cat([weight.detach().flatten() for weight in seeded().tower.parameters()])
        strategy = TorchRecStrategy(SGD(lr=0.5), clip_dense_only=True, sharding=sharding)
        module = seeded()
        trainer(strategy, gradient_clip_val=0.01).fit(module, loader(1))
        after = torch.cat([weight.detach().flatten() for weight in module.tower.parameters()])
        tables = {name: weight for name, weight in plain_module(module).state_dict().items() if "tower" not in name}
        return (after - before).norm().item(), tables

    def seeded():
        pl.seed_everything(3, verbose=False)
        return Everything()

    free = run_ranks(lambda: weights_after_one(SGD(lr=0.5)), 1)[0]
    for moved, tables in run_ranks(run, 2, "row_wise"):
        assert moved == pytest.approx(0.1 * 0.01, rel=1e-3)  # lr * norm
        assert_alike(tables, {name: free[name] for name in tables})


def weights_after_one(optimizer):
    pl.seed_everything(3, verbose=False)
    module = Everything()
    runner = trainer(TorchRecStrategy(optimizer))
    runner.fit(module, loader(1))
    return plain_module(runner).state_dict()


class ByHand(Everything):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = nn.functional.binary_cross_entropy_with_logits(self(batch), batch["label"])
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=LIMIT, gradient_clip_algorithm="norm")
        optimizer.step()


def test_clipping_by_hand_needs_updates_in_the_step():
    def run(strategy):
        return weights_after(ByHand, strategy)

    expected = run_ranks(lambda: weights_after(Everything, "auto", gradient_clip_val=LIMIT), 1)[0]
    assert_alike(run_ranks(run, 2, TorchRecStrategy(SGD(lr=0.5), update_in_step=True))[0], expected)
    with pytest.raises(RankError, match=r"clip_gradients would not reach the sharded tables \['item', 'mean', 'event'"):
        run_ranks(run, 1, TorchRecStrategy(SGD(lr=0.5)))


def test_a_frozen_table_has_no_part_in_the_norm():
    class Frozen(Everything):
        def build(self):
            super().build()
            self.embeddings.embedding_bags["mean"].weight.requires_grad_(False)

    def run(strategy):
        return weights_after(Frozen, strategy, gradient_clip_val=LIMIT)

    expected = run_ranks(run, 1, "auto")[0]
    for sharding in ("row_wise", "table_wise"):
        assert_alike(run_ranks(run, 2, TorchRecStrategy(SGD(lr=0.5), sharding=sharding))[0], expected)
