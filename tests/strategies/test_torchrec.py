"""How the strategy is found and launched, and the parts of a module that are not bags."""

import os
import subprocess
import sys
import types

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchrec import EmbeddingBagCollection, EmbeddingCollection, EmbeddingConfig

from lightning_mvrec.strategies import SGD, Adagrad, RowWiseAdagrad, TorchRecStrategy, plain_module, register
from lightning_mvrec.strategies.tables import shards
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import DIM, ITEMS, InInit, loader, mean_over_ranks, trainer


def test_the_name_torchrec_is_known_to_the_trainer():
    register()
    register()
    runner = pl.Trainer(accelerator="cpu", devices=1, strategy="torchrec", logger=False)
    assert type(runner.strategy) is TorchRecStrategy


def test_pytorch_lightning_is_told_apart(monkeypatch):
    registry = dict.__new__(
        type("Registry", (dict,), {"register": lambda self, name, make, description: self.update({name: make})})
    )
    monkeypatch.setitem(sys.modules, "pytorch_lightning.strategies", types.SimpleNamespace(StrategyRegistry=registry))
    register()
    with pytest.raises(ImportError, match=r"import lightning\.pytorch as pl"):
        registry["torchrec"]()


def test_one_device_needs_no_launcher_and_works_in_a_notebook(monkeypatch):
    from lightning.pytorch.trainer.connectors import accelerator_connector

    monkeypatch.setattr(accelerator_connector, "_IS_INTERACTIVE", True)

    def run():
        runner = trainer(TorchRecStrategy(SGD(lr=0.1)))
        assert runner.strategy.launcher is None
        runner.fit(InInit(), loader(2))
        return runner.global_step

    assert run_ranks(run, 1) == [2]


def test_ddp_wraps_two_ranks_and_passes_its_arguments_on():
    class Unused(InInit):
        def build(self):
            super().build()
            self.unused = nn.Linear(2, 2)

    def run():
        kinds = []

        class Watching(Unused):
            def on_train_start(self):
                kinds.append(type(self.trainer.strategy.model))

        trainer(TorchRecStrategy(SGD(lr=0.1), find_unused_parameters=True)).fit(Watching(), loader(3))
        return kinds == [DistributedDataParallel]

    assert run_ranks(run, 2) == [True, True]


def test_dense_parameters_without_a_part_in_the_loss_are_told_the_way_out():
    class Skipping(InInit):
        def build(self):
            super().build()
            self.unused = nn.Linear(2, 2)

    def run(**settings):
        try:
            trainer(TorchRecStrategy(SGD(lr=0.1), **settings)).fit(Skipping(), loader(3))
        except RuntimeError as error:
            return str(error)
        return None

    for message in run_ranks(run, 2):
        assert "use TorchRecStrategy(find_unused_parameters=True)" in message
    assert run_ranks(lambda: run(find_unused_parameters=True), 2) == [None, None]


def test_setting_up_moves_no_weight_and_leaves_no_state():
    """TorchRec's own init_state() takes a step with a gradient of 0, which decays weights and counts."""

    class Decayed(InInit):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.5)

    def run(**plan):
        module = Decayed()
        before = {name: weight.clone() for name, weight in module.state_dict().items()}
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), **plan))
        runner.fit(module, loader(0))
        after = plain_module(runner).state_dict()
        assert all(torch.equal(after[name], weight) for name, weight in before.items())
        joined = runner.strategy.optimizers[0]
        assert not joined.dense.state
        state = [shard.tensor for value in joined.table_state().values() for shard in shards(value)]
        assert all(not values.any() for values in state)
        assert [group.steps for group in joined.groups] == [0]

    run_ranks(lambda: run(sharding="row_wise"), 2)
    run_ranks(lambda: run(replicate="all"), 1)


def test_without_table_optimizer_and_sharding_it_is_plain_ddp():
    def run(strategy):
        pl.seed_everything(1, verbose=False)
        module = InInit()
        trainer(TorchRecStrategy(replicate="all") if strategy == "torchrec" else strategy, gradient_clip_val=0.1).fit(
            module, loader()
        )
        return mean_over_ranks(module.losses)

    assert run_ranks(run, 2, "torchrec")[0] == run_ranks(run, 2, "ddp")[0]


class Sequence(InInit):
    """An EmbeddingCollection: one vector an event, summed by hand."""

    def build(self):
        super().build()
        config = EmbeddingConfig(num_embeddings=ITEMS, embedding_dim=DIM, name="event", feature_names=["history"])
        self.sequence = EmbeddingCollection([config])

    def forward(self, batch):
        jagged = self.sequence(batch["ids"])["history"]
        user = torch.repeat_interleave(torch.arange(len(jagged.lengths())), jagged.lengths())
        total = torch.zeros(len(jagged.lengths()), DIM).index_add(0, user, jagged.values())
        return super().forward(batch) + total.sum(dim=1)


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise", "column_wise"])
def test_a_sequence_collection_trains_as_one_that_is_replicated(sharding):
    def run(**kwargs):
        pl.seed_everything(1, verbose=False)
        module = Sequence()
        trainer(TorchRecStrategy(Adagrad(lr=0.1), **kwargs)).fit(module, loader())
        return mean_over_ranks(module.losses)

    sharded = run_ranks(lambda: run(sharding={"event": sharding}), 2)[0]
    replicated = run_ranks(lambda: run(replicate=["sequence", "embeddings"]), 2)[0]
    assert sharded == pytest.approx(replicated, abs=1e-6)


def test_a_sequence_collection_comes_back_plain():
    def run():
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding={"event": "row_wise"}))
        runner.fit(Sequence(), loader(2))
        plain = plain_module(runner)
        assert type(plain.sequence) is EmbeddingCollection
        return plain.sequence.embeddings["event"].weight

    first, second = run_ranks(run, 2)
    assert torch.equal(first, second)


def test_tables_that_share_a_feature_keep_their_names():
    from torchrec import EmbeddingBagConfig

    class Shared(InInit):
        def build(self):
            super().build()
            self.tower = nn.Identity()
            configs = self.embeddings.embedding_bag_configs()
            more = EmbeddingBagConfig(num_embeddings=60, embedding_dim=DIM, name="more", feature_names=["history"])
            self.embeddings = EmbeddingBagCollection([*configs, more])

        def forward(self, batch):
            pooled = self.embeddings(batch["ids"])
            return (pooled["history@item"] + pooled["history@more"] + pooled["who"]).sum(dim=1)

    def run(kind):
        pl.seed_everything(1, verbose=False)
        module = Shared()
        sharding = dict.fromkeys(("item", "user", "more"), kind) if kind else {}
        strategy = TorchRecStrategy(Adagrad(lr=0.1), sharding=sharding, replicate=() if kind else "all")
        trainer(strategy).fit(module, loader())
        return mean_over_ranks(module.losses)

    curves = [run_ranks(run, 2, kind)[0] for kind in ("row_wise", "table_wise", None)]
    assert curves[0] == pytest.approx(curves[2], abs=1e-6)
    assert curves[1] == pytest.approx(curves[2], abs=1e-6)


def test_a_schedule_reaches_sharded_and_replicated_tables_alike():
    class Scheduled(InInit):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [1, 0.5, 0, 0, 0, 0, 0][step])
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def run(**kwargs):
        pl.seed_everything(1, verbose=False)
        module = Scheduled()
        runner = trainer(TorchRecStrategy(SGD(lr=1.0), **kwargs))
        rows = []
        module.on_train_batch_start = lambda *_: rows.append(runner.strategy.local_rows("user")[1].clone())
        runner.fit(module, loader())
        return rows

    for kwargs in ({"replicate": "all"}, {"sharding": {"user": "row_wise"}}):
        for rows in run_ranks(lambda kwargs=kwargs: run(**kwargs), 2):
            assert not torch.equal(rows[1], rows[2])
            assert torch.equal(rows[3], rows[5])  # the rate is 0 from the third step on
    for rows in run_ranks(lambda: run(schedule_tables=False), 1):
        assert not torch.equal(rows[3], rows[5])


def test_evaluation_does_not_use_inference_mode():
    """A table on CPU raises under it; on gloo Lightning leaves it out by itself, elsewhere it would not."""

    def run():
        runner = trainer(TorchRecStrategy(SGD(lr=0.1)))
        runner.test(InInit(), loader(1), verbose=False)
        return [loop.inference_mode for loop in (runner.validate_loop, runner.test_loop, runner.predict_loop)]

    assert run_ranks(run, 1) == [[False] * 3]


def test_learning_rates_of_tables_can_be_monitored(tmp_path):
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    class Scheduled(InInit):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    def run():
        logger = CSVLogger(tmp_path, name="", version="")
        runner = trainer(
            TorchRecStrategy(SGD(lr=0.2)), logger=logger, callbacks=[LearningRateMonitor()], log_every_n_steps=1
        )
        runner.fit(Scheduled(), loader(2))

    run_ranks(run, 1)
    assert "lr-Adam" in (tmp_path / "metrics.csv").read_text()
    assert (tmp_path / "plan.json").exists()  # beside the metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    "launch", [[sys.executable], [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]]
)
def test_two_processes_start_by_the_trainer_and_by_torchrun(tmp_path, launch):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, lightning.pytorch as pl, torch.distributed as dist\n"
        "import lightning_mvrec.strategies\n"
        "from lightning_mvrec.strategies import SGD\n"
        "from tests.strategies.stranger import InInit, loader\n"
        "class Mine(InInit):\n"
        "    def configure_table_optimizers(self):\n"
        "        return SGD(lr=0.1)\n"
        "    def train_dataloader(self):\n"
        "        return loader(2)\n"
        "if __name__ == '__main__':\n"
        "    runner = pl.Trainer(accelerator='cpu', devices=2, strategy='torchrec', max_epochs=1, logger=False,\n"
        "                        enable_checkpointing=False, default_root_dir=os.environ['HERE'])\n"
        "    runner.fit(Mine())\n"
        "    with open(os.path.join(os.environ['HERE'], f'rank{runner.global_rank}'), 'w') as file:\n"
        "        file.write(str(dist.get_world_size()))\n"
    )
    environment = {**os.environ, "HERE": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    subprocess.run([*launch, str(script)], check=True, env=environment, timeout=900)
    assert (tmp_path / "rank0").read_text() == "2"
    assert (tmp_path / "rank1").read_text() == "2"
    assert not (tmp_path / "plan.json").exists()  # without log and checkpoints nothing is kept


def test_a_module_of_torchrecs_own_zoo_trains():
    from torchrec.models.dlrm import DLRM

    from tests.strategies.stranger import collection

    class Zoo(InInit):
        def build(self):
            self.dlrm = DLRM(collection(), 3, dense_arch_layer_sizes=[8, DIM], over_arch_layer_sizes=[5, 1])

        def forward(self, batch):
            return self.dlrm(torch.ones(len(batch["label"]), 3), batch["ids"]).squeeze(1)

    def run(**plan):
        pl.seed_everything(1, verbose=False)
        module = Zoo()
        trainer(TorchRecStrategy(Adagrad(lr=0.1), **plan)).fit(module, loader())
        return mean_over_ranks(module.losses)

    sharded = run_ranks(lambda: run(sharding="row_wise"), 2)[0]
    assert sharded == pytest.approx(run_ranks(lambda: run(replicate="all"), 1)[0], abs=1e-6)


def test_weights_of_an_ordinary_lightning_checkpoint_are_read_into_shards(tmp_path):
    def run():
        pl.seed_everything(1, verbose=False)
        plain = trainer("ddp")
        module = InInit()
        plain.fit(module, loader(3))
        plain.save_checkpoint(tmp_path / "plain.ckpt")
        expected = plain.test(module, loader(2), verbose=False)[0]["val_loss"]
        ours = trainer(TorchRecStrategy(SGD(lr=0.1), sharding="row_wise"))
        found = ours.test(InInit(), loader(2), ckpt_path=tmp_path / "plain.ckpt", verbose=False)[0]["val_loss"]
        assert found == pytest.approx(expected, abs=1e-6)
        again = trainer(TorchRecStrategy(SGD(lr=0.1), sharding="row_wise"), max_epochs=2)
        with pytest.raises(ValueError, match="written without TorchRecStrategy"):
            again.fit(InInit(), loader(2), ckpt_path=tmp_path / "plain.ckpt")

    run_ranks(run, 2)
