"""What used to end in a message that helps nobody."""

import dataclasses
import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchrec import KeyedJaggedTensor
from torchrec.distributed.train_pipeline.runtime_forwards import PipelinedForward

from lightning_mvrec.strategies import SGD, Adagrad, RowWiseAdagrad, TorchRecStrategy, plain_module
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import InConfigureModel, InInit, batches, loader, trainer
from tests.strategies.test_clipping import Everything, assert_alike
from tests.strategies.test_guards import refusal


def empty():
    ids = KeyedJaggedTensor(
        ["history", "who"], torch.tensor([], dtype=torch.long), lengths=torch.tensor([], dtype=torch.long)
    )
    return {"ids": ids, "label": torch.zeros(0)}


def test_a_mean_over_nobody_names_the_batch():
    message = refusal(data=lambda: DataLoader([*batches(1), empty()], batch_size=None))
    assert "loss must be finite, got nan in epoch 0, batch 1" in message


@dataclasses.dataclass(frozen=True)
class Frozen:
    ids: KeyedJaggedTensor
    label: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Movable(Frozen):
    def to(self, device, **kwargs):
        return dataclasses.replace(self, ids=self.ids.to(device), label=self.label.to(device))


class Reading(InInit):
    def training_step(self, batch, batch_idx):
        return super().training_step({"ids": batch.ids, "label": batch.label}, batch_idx)


def test_a_frozen_dataclass_is_told_how_to_move():
    def data(kind):
        return lambda: DataLoader([kind(**batch) for batch in batches(2)], batch_size=None)

    message = refusal(module=Reading, data=data(Frozen))
    assert "frozen dataclass" in message
    assert "Give the dataclass a method `to(self, device, **kwargs)`" in message
    assert refusal(module=Reading, data=data(Movable)) is None


def test_a_batch_of_ids_alone_is_told_how_to_log():
    class Logging(InInit):
        size = None

        def training_step(self, batch, batch_idx):
            loss = super().forward({"ids": batch}).square().mean()
            self.log("loss", loss, on_epoch=True, batch_size=batch.stride() if self.size else None)
            return loss

    class Sized(Logging):
        size = True

    def data():
        return DataLoader([batch["ids"] for batch in batches(2)], batch_size=None)

    assert "self.log(..., batch_size=batch.stride())" in refusal(module=Logging, data=data)
    assert refusal(module=Sized, data=data) is None


class Configured(InConfigureModel):
    def __init__(self, dropout=0.0):
        super().__init__(dropout)
        self.save_hyperparameters()


@pytest.mark.parametrize("size", [1, 2])
def test_load_from_checkpoint_reads_a_directory_into_a_module_built_on_meta(tmp_path, size):
    def run():
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise"), folder=str(tmp_path))
        runner.fit(Configured(dropout=0.25), loader(2))
        runner.save_checkpoint(tmp_path / "run" / "last.ckpt")
        return plain_module(runner).state_dict()

    expected = run_ranks(run, size)[0]
    module = Configured.load_from_checkpoint(tmp_path / "run" / "last.ckpt")
    assert module.dropout.p == 0.25
    found = module.state_dict()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert torch.equal(value, expected[key]), key
    assert Configured.load_from_checkpoint(str(tmp_path / "run" / "last.ckpt"), dropout=0.5).dropout.p == 0.5
    with pytest.raises(ValueError, match=r"these inside it are: \['.*last\.ckpt'\]"):
        Configured.load_from_checkpoint(tmp_path / "run")


def test_load_from_checkpoint_does_not_leave_tables_without_values(tmp_path):
    def run():
        runner = trainer(TorchRecStrategy(SGD(lr=0.1)), folder=str(tmp_path))
        runner.fit(Configured(), loader(1))
        runner.save_checkpoint(tmp_path / "last.ckpt")

    run_ranks(run, 1)

    class More(Configured):
        def configure_model(self):
            super().configure_model()
            self.more = nn.Linear(1, 1, device="meta")

    with pytest.raises(ValueError, match=r"has no values for \['more.bias', 'more.weight'\]"):
        More.load_from_checkpoint(tmp_path / "last.ckpt", strict=False)
    assert "load_state_dict" not in vars(More)


def test_a_second_fit_goes_on_with_the_same_tables():
    def run(**plan):
        pl.seed_everything(3, verbose=False)
        module = Everything()
        for _ in range(2):
            trainer(TorchRecStrategy(SGD(lr=0.5), **plan)).fit(module, loader(3))
        return plain_module(module).state_dict()

    twice = run_ranks(lambda: run(sharding="row_wise"), 2)[0]
    assert_alike(twice, run_ranks(lambda: run(replicate="all"), 1)[0], 2e-6)


def test_steps_that_take_their_batches_themselves_are_refused():
    class Iterating(InInit):
        def training_step(self, dataloader_iter):
            return None

    class Validating(InInit):
        def validation_step(self, dataloader_iter):
            return None

    assert "Write training_step(self, batch, batch_idx)" in refusal(module=Iterating)
    assert "Write validation_step(self, batch, batch_idx)" in refusal(module=Validating, stage="validate")


def test_a_train_pipeline_in_the_module_is_refused():
    class Piped(InInit):
        def on_train_start(self):
            self.embeddings.forward = PipelinedForward.__new__(PipelinedForward)  # what a pipeline does

    message = refusal(module=Piped)
    assert "embeddings: a train pipeline of TorchRec has taken over its lookups" in message


def test_columns_of_pooled_values_keep_their_order():
    """Pooling, and table optimizers, decide which kernel a table lies in; not where its columns are."""

    def run(optimizers):
        pl.seed_everything(3, verbose=False)
        module = Everything()
        ids = KeyedJaggedTensor(["history", "reversed"], torch.arange(4), lengths=torch.ones(4, dtype=torch.long))
        expected = module.embeddings(ids)
        trainer(TorchRecStrategy(optimizers, sharding="row_wise")).fit(module, loader(0))
        found = module.embeddings(ids)
        assert found.keys() == expected.keys()
        assert torch.allclose(found.values(), expected.values())

    warnings.simplefilter("ignore")
    for optimizers in (
        SGD(lr=0.1),
        {"item": SGD(lr=0.1), "mean": Adagrad(lr=0.1), "event": SGD(lr=1.0), "user": SGD(lr=1.0)},
    ):
        run_ranks(run, 2, optimizers)
