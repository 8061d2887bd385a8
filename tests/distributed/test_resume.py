"""A run that was cut off after an epoch goes on bit for bit; a checkpoint is whole or not there."""

import random
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_mvrec.strategies import Adagrad, Adam, RowWiseAdagrad, TorchRecStrategy, plain_module
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import InConfigureModel, loader, trainer

PLANS = {
    "row_wise": {"sharding": {"item": "row_wise", "user": "row_wise"}},
    "table_wise": {"sharding": {"item": "table_wise", "user": "table_wise"}},
    "replicated": {"replicate": "all"},
}


class Noisy(InConfigureModel):
    """Uses every random generator there is."""

    def __init__(self):
        super().__init__(dropout=0.5)

    def training_step(self, batch, batch_idx):
        noise = float(np.random.rand()) + random.random() + float(torch.rand(()))  # noqa: NPY002
        loss = super().training_step(batch, batch_idx)
        self.losses[-1] += noise
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5), "interval": "step"},
        }


def strategy(plan, optimizer=None):
    return TorchRecStrategy(optimizer or RowWiseAdagrad(lr=0.1), **PLANS[plan])


def fit(folder, epochs, plan, resume=None, optimizer=None, seed=3):
    pl.seed_everything(seed + dist.get_rank(), verbose=False)  # each rank draws its own dropout
    module = Noisy()
    keep = ModelCheckpoint(dirpath=folder, save_top_k=-1, save_last=True, filename="{epoch}")
    runner = trainer(strategy(plan, optimizer), folder, max_epochs=epochs, enable_checkpointing=True, callbacks=[keep])
    runner.fit(module, loader(), loader(2), ckpt_path=resume)
    return module.losses


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("plan", PLANS)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, plan, size):
    whole = run_ranks(fit, size, tmp_path / "whole", 3, plan)
    resumed = run_ranks(fit, size, tmp_path / "resumed", 3, plan, tmp_path / "whole" / "epoch=0.ckpt")
    for rank in range(size):
        assert resumed[rank] == whole[rank][6:]
        assert resumed[rank] != whole[rank][:12]


def test_adam_on_a_replicated_table_resumes_bit_for_bit(tmp_path):
    whole = run_ranks(fit, 2, tmp_path / "whole", 2, "replicated", None, Adam(lr=0.1, weight_decay=0.1))
    resumed = run_ranks(
        fit, 2, tmp_path / "new", 2, "replicated", tmp_path / "whole" / "epoch=0.ckpt", Adam(lr=0.1, weight_decay=0.1)
    )
    assert resumed[0] == whole[0][6:]


def measure(path, plan, optimizer=None):
    module = InConfigureModel()
    runner = trainer(strategy(plan, optimizer))
    return runner.test(module, loader(4, seed=5), ckpt_path=path, verbose=False)[0]["val_loss"]


def test_a_checkpoint_is_read_on_other_numbers_of_ranks_and_other_plans(tmp_path):
    run_ranks(fit, 2, tmp_path, 1, "row_wise")
    losses = [
        run_ranks(measure, size, tmp_path / "last.ckpt", plan)[0]
        for size, plan in [(2, "row_wise"), (1, "row_wise"), (2, "table_wise"), (2, "replicated")]
    ]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-6)


@pytest.mark.parametrize("optimizer", [RowWiseAdagrad(lr=0.1), Adagrad(lr=0.1)])
def test_training_goes_on_with_the_tables_state_on_another_plan(tmp_path, optimizer):
    class Quiet(InConfigureModel):
        pass

    def go(folder, epochs, plan, resume):
        pl.seed_everything(3, verbose=False)
        module = Quiet()
        keep = ModelCheckpoint(dirpath=folder, save_top_k=-1, filename="{epoch}")
        runner = trainer(
            strategy(plan, optimizer), folder, max_epochs=epochs, enable_checkpointing=True, callbacks=[keep]
        )
        runner.fit(module, loader(), ckpt_path=resume)
        losses = torch.tensor(module.losses)
        dist.all_reduce(losses)
        return (losses / dist.get_world_size()).tolist()

    whole = run_ranks(go, 2, tmp_path / "a", 2, "row_wise", None)[0]
    for size, plan in [(1, "row_wise"), (2, "replicated"), (2, "table_wise")]:
        resumed = run_ranks(go, size, tmp_path / f"{plan}{size}", 2, plan, tmp_path / "a" / "epoch=0.ckpt")[0]
        assert resumed == pytest.approx(whole[6:], abs=1e-6)


def test_an_earlier_checkpoint_survives_a_write_that_fails(tmp_path):
    class Broken(InConfigureModel):
        def on_save_checkpoint(self, checkpoint):
            if self.current_epoch == 1:
                checkpoint["mine"] = lambda: None

    def run():
        module = Broken()
        keep = ModelCheckpoint(dirpath=tmp_path, save_top_k=1, filename="only", enable_version_counter=False)
        runner = trainer(strategy("row_wise"), max_epochs=3, enable_checkpointing=True, callbacks=[keep])
        try:
            runner.fit(module, loader())
        except (ValueError, RuntimeError) as error:
            return str(error), sorted(path.name for path in tmp_path.iterdir())
        return None

    for message, names in run_ranks(run, 2):
        assert "checkpoint['mine']" in message
        assert names == ["only.ckpt"]
    assert run_ranks(measure, 1, tmp_path / "only.ckpt", "row_wise")


def test_model_checkpoint_keeps_the_best_and_a_link_to_the_last(tmp_path):
    class Worse(InConfigureModel):
        def on_train_epoch_end(self):
            self.log("score", torch.tensor(float(self.current_epoch)), sync_dist=True)

    def run():
        keep = ModelCheckpoint(
            dirpath=tmp_path, monitor="score", mode="min", save_top_k=2, save_last="link", filename="{epoch}"
        )
        module = Worse()
        runner = trainer(strategy("row_wise"), max_epochs=4, enable_checkpointing=True, callbacks=[keep])
        runner.fit(module, loader(2))
        best = runner.test(module, loader(2), ckpt_path="best", verbose=False)[0]["val_loss"]
        return best, Path(keep.best_model_path).name

    assert {name for _, name in run_ranks(run, 2)} == {"epoch=0.ckpt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt"]
    assert (tmp_path / "last.ckpt").is_symlink()


def test_plain_module_from_a_checkpoint_equals_the_trained_module(tmp_path):
    def run():
        fit(tmp_path, 1, "row_wise")
        return measure(tmp_path / "last.ckpt", "row_wise")

    trained = run_ranks(run, 2)[0]

    def alone():
        module = plain_module(tmp_path / "last.ckpt", InConfigureModel())
        assert not module.training
        with torch.no_grad():
            batches = list(loader(4, seed=5))
            losses = [
                torch.nn.functional.binary_cross_entropy_with_logits(module(batch), batch["label"]) for batch in batches
            ]
        return float(torch.stack(losses).mean())

    assert run_ranks(alone, 1)[0] == pytest.approx(trained, abs=1e-6)


def test_a_checkpoint_of_other_tables_is_refused_by_name(tmp_path):
    run_ranks(fit, 1, tmp_path, 1, "row_wise")

    class Grown(InConfigureModel):
        def configure_model(self):
            super().configure_model()
            config = self.embeddings.embedding_bag_configs()[0]
            config.num_embeddings += 1
            self.embeddings = type(self.embeddings)(
                self.embeddings.embedding_bag_configs(), device=torch.device("meta")
            )

    def run():
        runner = trainer(strategy("row_wise"))
        with pytest.raises(ValueError, match=r"embedding_bags.item.weight must be of shape \(51, 8\), got \(50, 8\)"):
            runner.test(Grown(), loader(2), ckpt_path=tmp_path / "last.ckpt", verbose=False)

    run_ranks(run, 1)
