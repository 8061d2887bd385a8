"""A stranger's module trains the same on 1 and 2 ranks, on every plan, and as in TorchRec's own loop."""

import copy

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder, ShardedEmbeddingBagCollection
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.optim import RowWiseAdagrad as TorchRecRowWiseAdagrad
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from lightning_mvrec.strategies import SGD, Adagrad, RowWiseAdagrad, TorchRecStrategy
from tests.distributed.launch import RankError, run_ranks
from tests.strategies.stranger import InConfigureModel, InInit, TablesOnly, batches, loader, mean_over_ranks, trainer

BOTH = {"item": "row_wise", "user": "row_wise"}


def fit(kind, strategy, **data):
    pl.seed_everything(7)
    module = kind()
    trainer(strategy()).fit(module, loader(**data))
    return mean_over_ranks(module.losses)


@pytest.mark.parametrize("kind", [InInit, InConfigureModel])
def test_loss_curves_are_equal_on_one_and_two_ranks(kind):
    def strategy():
        return TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding=BOTH)

    one, two = (run_ranks(fit, size, kind, strategy)[0] for size in (1, 2))
    assert one == pytest.approx(two, abs=1e-6)
    assert one[0] != pytest.approx(one[-1], abs=1e-3)


@pytest.mark.parametrize("kind", [InInit, InConfigureModel])
def test_rank_zeros_weights_count_where_ranks_were_seeded_differently(kind):
    def run():
        pl.seed_everything(7 + dist.get_rank(), verbose=False)
        module = kind()
        trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise")).fit(module, loader())
        return mean_over_ranks(module.losses)

    assert run_ranks(run, 2)[0] == pytest.approx(run_ranks(run, 1)[0], abs=1e-6)


def hand_loop(steps):
    """What TorchRec's own documentation tells people to write."""
    pl.seed_everything(7)
    module = InInit()
    initial = copy.deepcopy(module.embeddings.state_dict())
    _apply_optimizer_in_backward(TorchRecRowWiseAdagrad, module.embeddings.parameters(), {"lr": 0.1, "eps": 1e-8})
    # Left to itself the planner replicates tables this small, which then train with another optimizer.
    table_wise = ParameterConstraints(sharding_types=["table_wise"])
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=dist.get_world_size(), compute_device="cpu"),
        constraints={"item": table_wise, "user": table_wise},
    )
    sharders = [EmbeddingBagCollectionSharder()]
    plan = planner.collective_plan(module, sharders, dist.group.WORLD)
    sharded = DistributedModelParallel(module, device=torch.device("cpu"), plan=plan, sharders=sharders)
    module.embeddings.load_state_dict(initial)  # sharding drops the weights that the tables had
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(sharded.named_parameters())),
        lambda weights: torch.optim.Adam(weights, lr=0.01),
    )
    optimizer = CombinedOptimizer([sharded.fused_optimizer, dense])
    losses = []
    for batch in batches(steps):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(sharded(batch), batch["label"])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return mean_over_ranks(losses)


@pytest.mark.parametrize("size", [1, 2])
def test_the_trainer_equals_a_hand_written_torchrec_loop(size):
    ours = run_ranks(fit, size, InInit, lambda: TorchRecStrategy(RowWiseAdagrad(lr=0.1)))[0]
    assert ours == pytest.approx(run_ranks(hand_loop, size, 6)[0], abs=1e-6)


@pytest.mark.parametrize("optimizer", [SGD(lr=1.0), Adagrad(lr=0.1), RowWiseAdagrad(lr=0.1, eps=1e-3)])
def test_row_wise_table_wise_and_replicated_train_alike(optimizer):
    kinds = [
        {"sharding": BOTH},
        {"sharding": {"item": "table_wise", "user": "table_wise"}},
        {"sharding": {"item": "row_wise", "user": "table_wise"}},
        {"replicate": "all"},
    ]
    curves = [run_ranks(fit, 2, InInit, lambda kind=kind: TorchRecStrategy(optimizer, **kind))[0] for kind in kinds]
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-6)


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise", "column_wise"])
def test_ranks_with_different_numbers_of_users_train_exactly(sharding):
    """The gradient of uneven ranks, weighted by their share, against a plain module that sees all users."""

    class Summed(InInit):
        def training_step(self, batch, batch_idx):
            loss = nn.functional.binary_cross_entropy_with_logits(self(batch), batch["label"], reduction="sum")
            self.losses.append(loss.item())
            return loss * dist.get_world_size() / 8  # DDP and TorchRec average over ranks

    def strategy():
        return TorchRecStrategy(Adagrad(lr=0.1), sharding={"item": sharding, "user": sharding})

    def run(uneven):
        pl.seed_everything(7)
        module = Summed()
        trainer(strategy()).fit(module, loader(uneven=uneven))
        return mean_over_ranks(module.losses)

    whole = run_ranks(run, 1, False)[0]
    parts = run_ranks(run, 2, True)[0]
    assert [2 * loss for loss in parts] == pytest.approx(whole, abs=1e-5)


def test_a_rank_without_any_event_of_a_feature_trains_on():
    def run():
        third = batches(3)[2]["ids"]["history"]
        if dist.get_rank() == 1:
            assert third.values().numel() == 0
        pl.seed_everything(7)
        module = InInit()
        trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding=BOTH)).fit(module, loader(3))
        return module.losses

    assert all(torch.tensor(losses).isfinite().all() for losses in run_ranks(run, 2))


def test_the_module_is_sharded_once_for_all_stages():
    def run():
        module = InInit()
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding=BOTH))
        before = runner.validate(module, loader(2), verbose=False)[0]["val_loss"]
        sharded = module.embeddings
        assert isinstance(sharded, ShardedEmbeddingBagCollection)
        runner.fit(module, loader(6))
        after = runner.test(module, loader(2), verbose=False)[0]["val_loss"]
        predictions = runner.predict(module, loader(2))
        assert module.embeddings is sharded
        assert len(predictions) == 2
        runner.fit_loop.max_epochs = 2
        runner.fit(module, loader(6))
        assert module.embeddings is sharded
        again = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding=BOTH))
        assert again.test(module, loader(2), verbose=False)[0]["val_loss"] < after < before
        return len(module.losses)

    assert run_ranks(run, 2) == [12, 12]


@pytest.mark.parametrize("optimizer", [Adagrad(lr=0.1), RowWiseAdagrad(lr=0.1)])
def test_a_second_fit_starts_with_fresh_state_sharded_or_not(optimizer):
    def run(**plan):
        pl.seed_everything(7, verbose=False)
        module = InInit()
        for _ in range(2):
            trainer(TorchRecStrategy(optimizer, **plan)).fit(module, loader(4))
        return mean_over_ranks(module.losses)

    sharded = run_ranks(lambda: run(sharding="row_wise"), 2)[0]
    replicated = run_ranks(lambda: run(replicate="all"), 2)[0]
    assert sharded == pytest.approx(replicated, abs=1e-6)


class Tiny(InInit):
    """One table with a single row beside the others."""

    def build(self):
        super().build()
        self.one = EmbeddingBagCollection(
            [EmbeddingBagConfig(num_embeddings=1, embedding_dim=4, name="one", feature_names=["one"])]
        )

    def forward(self, batch):
        count = len(batch["label"])
        ones = torch.ones(count, dtype=torch.long)
        bias = self.one(KeyedJaggedTensor(["one"], torch.zeros(count, dtype=torch.long), lengths=ones)).values()
        return super().forward(batch) + bias.sum(dim=1)


def test_a_table_with_fewer_rows_than_ranks_stays_whole_on_one(tmp_path):
    def run(**plan):
        pl.seed_everything(7, verbose=False)
        module = Tiny()
        runner = trainer(TorchRecStrategy(Adagrad(lr=0.1), **plan))
        runner.fit(module, loader())
        return mean_over_ranks(module.losses), [table.sharding for table in runner.strategy.plan_report.tables]

    curve, kinds = run_ranks(lambda: run(sharding="row_wise"), 2)[0]
    assert kinds == ["row_wise", "row_wise", "table_wise"]
    assert curve == pytest.approx(run_ranks(lambda: run(replicate="all"), 2)[0][0], abs=1e-6)
    with pytest.raises(RankError, match=r"sharding\['one'\]='row_wise': 1 rows are too few to give every rank some"):
        run_ranks(lambda: run(sharding={"one": "row_wise"}), 2)


def test_buffers_of_dense_layers_follow_rank_zero():
    class Normed(InInit):
        def build(self):
            super().build()
            self.tower = nn.Sequential(nn.BatchNorm1d(16), *self.tower)

        def on_train_start(self):
            self.tower[0].running_mean.fill_(100.0 * dist.get_rank())

    def run():
        module = Normed()
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1)))
        runner.fit(module, loader(3))
        return runner.strategy.lightning_module_state_dict()["tower.0.running_mean"]

    for mean in run_ranks(run, 2):  # each rank adds its own last batch to what rank 0 gave it
        assert mean.abs().max() < 1


def test_a_module_of_tables_only_needs_no_ddp():
    curves = [run_ranks(fit, size, TablesOnly, lambda: TorchRecStrategy(SGD(lr=0.5)))[0] for size in (1, 2)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)
