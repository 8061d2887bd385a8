"""Each setting that would silently train something else is refused, with setting, table and way out."""

import os
from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from lightning_mvrec.strategies import SGD, Adam, RowWiseAdagrad, TorchRecStrategy
from tests.distributed.launch import RankError, run_ranks
from tests.strategies.stranger import InConfigureModel, InInit, loader, trainer


def refusal(strategy=None, module=InInit, stage="fit", data=None, **settings):
    """The message with which a Trainer refuses."""

    def run():
        runner = trainer(strategy or TorchRecStrategy(RowWiseAdagrad(lr=0.1)), **settings)
        try:
            getattr(runner, stage)(module(), data() if data else loader(2))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    return run_ranks(run, 1)[0]


def test_replicated_tables_are_clipped_with_the_dense_part_by_their_common_norm():
    class Plain(InInit):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    def run():
        module = Plain()
        before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        runner = trainer(TorchRecStrategy(SGD(lr=1.0), replicate="all"), gradient_clip_val=0.01)
        runner.fit(module, loader(1))
        changes = [(weight.detach() - before[name]).flatten() for name, weight in module.named_parameters()]
        return torch.cat(changes).norm().item()

    assert run_ranks(run, 1)[0] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_precisions_that_tables_do_not_have(precision):
    assert f"precision='{precision}'" in refusal(precision=precision)


def test_a_gradient_scaler():
    from lightning.pytorch.plugins.precision import MixedPrecision

    plugin = MixedPrecision("16-mixed", "cuda", scaler=torch.amp.GradScaler("cpu"))
    assert "scaled gradient" in refusal(plugins=[plugin])


def test_bf16_mixed_trains():
    assert refusal(precision="bf16-mixed") is None


def test_callbacks_that_copy_the_module():
    for callback in (StochasticWeightAveraging(0.1), WeightAveraging(), EMAWeightAveraging()):
        message = refusal(callbacks=[callback])
        assert f"{type(callback).__name__} copies the module, which the sharded tables ['item', 'user']" in message
        assert 'TorchRecStrategy(replicate="all")' in message


def test_a_checkpoint_io_that_would_not_be_asked():
    assert "AsyncCheckpointIO would not be asked" in refusal(plugins=[AsyncCheckpointIO()])


def test_a_compiled_module():
    assert "torch.compile of the whole module" in refusal(module=lambda: torch.compile(InInit()))


def test_no_table_optimizer_shows_the_lines_to_add():
    message = refusal(TorchRecStrategy())
    assert "no table optimizer for ['item', 'user']" in message
    assert "def configure_table_optimizers(self):" in message
    assert "TorchRecStrategy(table_optimizer=RowWiseAdagrad(lr=0.05))" in message


def test_a_sharded_table_with_an_optimizer_that_has_no_kernel():
    message = refusal(TorchRecStrategy({"item": Adam(lr=0.1), "user": SGD(lr=0.1)}))
    assert "table 'item' is sharded, and TorchRec has no fused Adam on cpu" in message
    assert "replicate=['embeddings']" in message


class Twice(InInit):
    def training_step(self, batch, batch_idx):
        self.embeddings(batch["ids"])
        return super().training_step(batch, batch_idx)


def test_a_second_lookup_in_a_training_step():
    message = refusal(module=Twice)
    assert "embeddings: looked up twice in one training step" in message
    assert "['item', 'user']" in message
    assert refusal(TorchRecStrategy(RowWiseAdagrad(lr=0.1), replicate="all"), module=Twice) is None


def test_lookups_without_gradient_or_outside_training_are_free():
    class Looking(InInit):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self.embeddings(batch["ids"])
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.embeddings(batch["ids"])
            super().validation_step(batch, batch_idx)

    assert refusal(module=Looking) is None
    assert refusal(module=Looking, stage="validate") is None


def test_manual_optimization_may_look_up_again_after_a_step():
    class Manual(InInit):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for _ in range(2):
                loss = self(batch).square().mean()
                self.optimizers().zero_grad()
                self.manual_backward(loss)
                self.optimizers().step()

    class Careless(Manual):
        def training_step(self, batch, batch_idx):
            self.manual_backward((self(batch) - self(batch)).sum())

    def build(kind):
        def make():
            module = kind()
            module.automatic_optimization = False
            return module

        return make

    assert refusal(module=build(Manual)) is None
    assert "looked up twice" in refusal(module=build(Careless))


def bad_batch(feature, value):
    values = {"history": 3, "who": 4, feature: value}
    ids = KeyedJaggedTensor(
        ["history", "who"], torch.tensor([values["history"], values["who"]]), lengths=torch.tensor([1, 1])
    )
    return [{"ids": ids, "label": torch.ones(1)}]


@pytest.mark.parametrize("replicate", [(), "all"])
@pytest.mark.parametrize(("feature", "table", "limit"), [("history", "item", 50), ("who", "user", 31)])
def test_an_id_outside_its_table(replicate, feature, table, limit):
    for value in (limit, -1):
        message = refusal(
            TorchRecStrategy(RowWiseAdagrad(lr=0.1), replicate=replicate),
            data=lambda value=value: torch.utils.data.DataLoader(bad_batch(feature, value), batch_size=None),
        )
        assert f"table '{table}', feature '{feature}': ids must be in [0, {limit}), got {value} on rank 0" in message


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_an_id_outside_its_table_ends_all_ranks(sharding):
    def run():
        kinds = {"item": sharding, "user": sharding}
        strategy = TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding=kinds, failure_timeout=600.0)  # none hangs
        value = 50 if torch.distributed.get_rank() == 1 else 0
        trainer(strategy).fit(InInit(), torch.utils.data.DataLoader(bad_batch("history", value), batch_size=None))

    with pytest.raises(RankError, match=r"feature 'history': ids must be in \[0, 50\), got 50 on rank 1") as told:
        run_ranks(run, 2)
    assert "did not end within" not in str(told.value)
    if sharding == "row_wise":  # where ranks agree on bags they also agree on this
        assert "another rank has an id outside its table" in str(told.value)


def test_ids_are_not_looked_at_where_that_is_switched_off():
    strategy = TorchRecStrategy(RowWiseAdagrad(lr=0.1), check_ids=False)
    assert (
        refusal(strategy, data=lambda: torch.utils.data.DataLoader(bad_batch("history", 50), batch_size=None)) is None
    )


def test_a_subclass_of_a_collection_is_not_thrown_away():
    class Fancy(EmbeddingBagCollection):
        pass

    class Module(InInit):
        def build(self):
            super().build()
            self.embeddings = Fancy(self.embeddings.embedding_bag_configs())

    assert "Fancy is a subclass that sharding would throw away" in refusal(module=Module)
    assert refusal(TorchRecStrategy(SGD(lr=0.1), replicate=["embeddings"]), module=Module) is None


def test_a_table_name_that_occurs_twice():
    class Module(InInit):
        def build(self):
            super().build()
            self.more = EmbeddingBagCollection([EmbeddingBagConfig(num_embeddings=3, embedding_dim=4, name="user")])

    assert "table names must be unique in a module, got 'user' in 'embeddings' and 'more'" in refusal(module=Module)


def test_a_frozen_sharded_table_stays_frozen():
    class Frozen(InInit):
        def build(self):
            super().build()
            self.embeddings.embedding_bags["item"].weight.requires_grad_(False)

    def run():
        pl.seed_everything(1, verbose=False)
        module = Frozen()
        before = {name: weight.clone() for name, weight in module.embeddings.state_dict().items()}
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1)))
        runner.fit(module, loader())
        after = {table: runner.strategy.local_rows(table)[1] for table in ("item", "user")}
        assert torch.equal(after["item"], before["embedding_bags.item.weight"])
        assert not torch.equal(after["user"], before["embedding_bags.user.weight"])

    run_ranks(run, 1)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


@pytest.mark.parametrize(("world_size", "sharding"), [(1, "row_wise"), (2, "row_wise"), (2, "table_wise")])
def test_a_function_with_its_own_backward_pass_trains_the_table_that_it_is_given(world_size, sharding):
    class Module(InConfigureModel):
        def forward(self, batch):
            found = self.embeddings(batch["ids"])
            return self.tower(torch.cat([Doubled.apply(found["history"]), found["who"]], dim=1)).squeeze(1)

    def run():
        pl.seed_everything(1, verbose=False)
        module = Module()
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding=sharding))
        runner.fit(module, loader(0))
        before = runner.strategy.local_rows("item")[1].clone()
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding=sharding))
        runner.fit(module, loader(2))
        return len(before), torch.equal(runner.strategy.local_rows("item")[1], before)

    assert all(not (rows and unmoved) for rows, unmoved in run_ranks(run, world_size))


def test_a_module_sharded_with_other_settings():
    def run():
        module = InInit()
        trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1))).fit(module, loader(2))
        with pytest.raises(ValueError, match=r"sharded already[\s\S]*plain_module"):
            trainer(TorchRecStrategy(SGD(lr=0.1))).fit(module, loader(2))

    run_ranks(run, 1)


def test_the_real_error_is_seen_when_configure_model_fails_on_meta():
    class Failing(InConfigureModel):
        def configure_model(self):
            super().configure_model()
            self.extra = nn.Linear(2, 2, device="meta")
            raise KeyError("the real one")

    assert "the real one" in refusal(module=Failing)


def test_uneven_ranks_end_together():
    def run(known):
        data = loader(3 + 2 * torch.distributed.get_rank())
        if not known:
            data = torch.utils.data.DataLoader(Stream(list(data)), batch_size=None)
        module = InInit()
        trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1))).fit(module, data)
        return len(module.losses)

    for known in (True, False):
        assert run_ranks(run, 2, known) == [3, 3]


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


def test_nothing_is_left_in_the_working_directory():
    before = set(os.listdir())
    refusal()
    assert set(os.listdir()) == before


def test_a_collection_that_gives_out_its_own_rows():
    from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
    from torchrec.modules.mc_modules import (
        DistanceLFU_EvictionPolicy,
        ManagedCollisionCollection,
        MCHManagedCollisionModule,
    )

    class Module(InInit):
        def build(self):
            super().build()
            bags = self.embeddings
            maps = {
                config.name: MCHManagedCollisionModule(
                    zch_size=config.num_embeddings,
                    device=torch.device("cpu"),
                    eviction_interval=2,
                    eviction_policy=DistanceLFU_EvictionPolicy(),
                )
                for config in bags.embedding_bag_configs()
            }
            mapping = ManagedCollisionCollection(maps, bags.embedding_bag_configs())
            self.embeddings = ManagedCollisionEmbeddingBagCollection(bags, mapping)

    assert "is inside a ManagedCollisionEmbeddingBagCollection" in refusal(module=Module)


def test_averaging_from_time_to_time():
    from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState

    with pytest.raises(ValueError, match="must not be a PostLocalSGDState"):
        TorchRecStrategy(ddp_comm_state=PostLocalSGDState(None, None, 10))


def test_a_module_without_collections_is_told_about():
    class Dense(InInit):
        def build(self):
            self.tower = nn.Linear(1, 1)

        def forward(self, batch):
            return self.tower(batch["label"][:, None]).squeeze(1)

    def run():
        runner = trainer(TorchRecStrategy())
        said = pytest.warns(UserWarning, match="found no EmbeddingBagCollection")
        with said if torch.distributed.get_rank() == 0 else nullcontext():
            runner.fit(Dense(), loader(2))
        return runner.global_step

    assert run_ranks(run, 2) == [2, 2]
