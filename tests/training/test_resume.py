"""Stopped after an epoch and resumed: the same losses as the uninterrupted run, bit for bit."""

from functools import partial

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_mvrec import MultiViewModule, MultiViewRecommender, TorchRecStrategy
from lightning_mvrec.encoders import AttentionEncoder, GRUEncoder
from lightning_mvrec.fusion import GateFusion
from lightning_mvrec.losses import SampledSoftmaxLoss
from lightning_mvrec.strategies import Adagrad
from tests.distributed.launch import run_ranks
from tests.training.buys import prepared_buys


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


def train(folder, epochs, devices=1, resume=None, dropout=0.3, steps=-1):
    torch.manual_seed(7)
    data = prepared_buys(folder, batch_size=16)
    model = partial(
        MultiViewRecommender,
        encoders={"click": partial(GRUEncoder, dropout=dropout), "cart": partial(AttentionEncoder, dropout=dropout)},
        fusion=partial(GateFusion, dropout=dropout),
        embedding_dim=16,
        dropout=dropout,
        times=True,
    )
    losses = Losses()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=TorchRecStrategy(table_optimizer=Adagrad(lr=0.1), sharding="row_wise"),
        max_epochs=epochs,
        max_steps=steps,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[losses, ModelCheckpoint(dirpath=folder / "checkpoints", filename="{epoch}", save_top_k=-1)],
    )
    trainer.fit(MultiViewModule(model, SampledSoftmaxLoss()), datamodule=data, ckpt_path=resume)
    return losses.values


def stop_and_go(folder, devices):
    straight = train(folder / "straight", 3, devices)
    train(folder / "stopped", 1, devices)
    resumed = train(folder / "stopped", 3, devices, resume=folder / "stopped" / "checkpoints" / "epoch=0.ckpt")
    return straight, resumed


def test_one_process_resumes_bit_for_bit(tmp_path):
    straight, resumed = run_ranks(lambda: stop_and_go(tmp_path, 1), 1, timeout=120)[0]
    assert resumed == straight[len(straight) // 3 :]
    assert len(set(straight)) == len(straight)


def test_two_processes_resume_bit_for_bit(tmp_path):
    for straight, resumed in run_ranks(lambda: stop_and_go(tmp_path, 2), 2, timeout=120):
        assert resumed == straight[len(straight) // 3 :]


def test_two_processes_lose_as_one_does_at_the_same_global_batch(tmp_path):
    alone = run_ranks(lambda: train(tmp_path / "one", 20, 1, dropout=0.0, steps=50), 1, timeout=120)[0]
    shared = run_ranks(lambda: train(tmp_path / "two", 20, 2, dropout=0.0, steps=50), 2, timeout=120)
    # A rank's loss is its part of the global sum over the mean weight of a rank: the mean over ranks is the loss.
    mean = [(first + second) / 2 for first, second in zip(*shared, strict=True)]
    assert len(alone) == 50
    assert mean == pytest.approx(alone, abs=1e-5)
