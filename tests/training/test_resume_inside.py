"""Killed inside an epoch and resumed: the very next batch, and every loss as in the uninterrupted run."""

import os
import signal
from functools import partial

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar

from lightning_mvrec import MultiViewModule, MultiViewRecommender, TorchRecStrategy
from lightning_mvrec.data import LastWindow
from lightning_mvrec.encoders import GRUEncoder
from lightning_mvrec.fusion import GateFusion
from lightning_mvrec.losses import SampledSoftmaxLoss
from lightning_mvrec.strategies import Adagrad
from lightning_mvrec.training import EpochHistory
from tests.distributed.launch import RankError, run_ranks
from tests.training.buys import prepared_buys

EPOCHS, BATCHES = 3, 8  # 60 users, one example each, in batches of 8: the last one is not full
EVERY = 5  # steps between checkpoints
KILLED_BEFORE = 12  # steps done: in the second epoch, two steps after a checkpoint


class Record(Callback):
    """What Lightning and the loader say of every step; kills its process before a given one."""

    def __init__(self, kill_before):
        self.kill_before = kill_before
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.kill_before:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        place = (trainer.current_epoch, batch_idx, trainer.global_step, trainer.num_training_batches)
        examples = [example for example in batch.example_B.tolist() if example >= 0]
        self.steps.append((place, examples, outputs["loss"].item()))


class Bar(TQDMProgressBar):
    """A progress bar that says what it shows."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def on_train_batch_end(self, trainer, *arguments):
        super().on_train_batch_end(trainer, *arguments)
        bar = self.train_progress_bar
        self.shown.append((bar.desc.strip(": "), bar.n, bar.total))


def train(folder, devices=1, workers=0, dropout=0.3, resume=None, kill_before=None, callbacks=(), **settings):
    torch.manual_seed(7)
    data = prepared_buys(folder, batch_size=8, windows=LastWindow(), bucket_batches=2, num_workers=workers)
    model = partial(
        MultiViewRecommender,
        encoders={"click": partial(GRUEncoder, dropout=dropout)},
        fusion=partial(GateFusion, dropout=dropout),
        embedding_dim=16,
        dropout=dropout,
    )
    record = Record(kill_before)
    settings = {"enable_progress_bar": False, "limit_val_batches": 0, **settings}
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=TorchRecStrategy(table_optimizer=Adagrad(lr=0.1), sharding="row_wise"),
        max_epochs=EPOCHS,
        num_sanity_val_steps=0,
        logger=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[record, *callbacks, *(() if callbacks else (every_steps(folder),))],
        **settings,
    )
    trainer.fit(MultiViewModule(model, SampledSoftmaxLoss()), datamodule=data, ckpt_path=resume)
    return record.steps


def every_steps(folder):
    return ModelCheckpoint(folder / "kept", filename="{step}", every_n_train_steps=EVERY, save_top_k=-1)


def killed(folder, devices=1, **settings):
    """Train until every process is killed; return the last checkpoint."""
    with pytest.raises(RankError):
        run_ranks(lambda: train(folder, devices, kill_before=KILLED_BEFORE, **settings), devices, timeout=120)
    kept = sorted(path.name for path in (folder / "kept").iterdir())
    assert kept == ["step=10.ckpt", "step=5.ckpt"]
    return folder / "kept" / "step=10.ckpt"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_killed_run_goes_on_bit_for_bit_with_the_next_batch(tmp_path, devices, workers):
    last = killed(tmp_path, devices, workers=workers)
    # Workers may not matter either: the uninterrupted run has none.
    straight = run_ranks(lambda: train(tmp_path / "straight", devices), devices, timeout=120)
    resumed = run_ranks(lambda: train(tmp_path, devices, workers, resume=last), devices, timeout=120)
    for rank in range(devices):
        assert len(straight[rank]) == EPOCHS * BATCHES
        assert resumed[rank] == straight[rank][10:]
        assert len({loss for _, _, loss in straight[rank]}) == EPOCHS * BATCHES


def test_epochs_steps_and_batch_numbers_are_those_of_an_uninterrupted_run(tmp_path):
    last = killed(tmp_path)
    places = [place for place, _, _ in run_ranks(lambda: train(tmp_path, resume=last), 1, timeout=120)[0]]
    assert places == [(step // BATCHES, step % BATCHES, step + 1, BATCHES) for step in range(10, EPOCHS * BATCHES)]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_ranks_goes_on_with_the_same_global_batches(tmp_path, before, after):
    last = killed(tmp_path, before, dropout=0.0)
    straight = run_ranks(lambda: train(tmp_path / "straight", dropout=0.0), 1, timeout=120)[0]
    resumed = run_ranks(lambda: train(tmp_path, after, dropout=0.0, resume=last), after, timeout=120)
    steps = list(zip(*resumed, strict=True))
    assert len(steps) == EPOCHS * BATCHES - 10
    for ranks, (place, examples, loss) in zip(steps, straight[10:], strict=True):
        assert {mine[0] for mine in ranks} == {place}
        assert sorted(example for mine in ranks for example in mine[1]) == sorted(examples)
        assert sum(mine[2] for mine in ranks) / after == pytest.approx(loss, abs=1e-5)


def validated(folder, resume=None):
    """Validate every two steps, and keep a checkpoint before (after a step) and after (of what it measured)."""
    measured = ModelCheckpoint(folder / "measured", filename="{step}", monitor="val/ndcg@10", save_top_k=-1)
    every = ModelCheckpoint(folder / "kept", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    settings = {"val_check_interval": 2, "limit_val_batches": 1.0, "callbacks": [every, measured]}
    return train(folder, resume=resume, **settings)


@pytest.mark.parametrize("step", [10, 8], ids=["inside an epoch", "after its last batch"])
def test_validation_inside_an_epoch_changes_nothing(tmp_path, step):
    def runs():
        plain = train(tmp_path / "plain")
        straight = validated(tmp_path / "straight")
        after_step = validated(tmp_path / "one", tmp_path / "straight" / "kept" / f"step={step}.ckpt")
        after_validation = validated(tmp_path / "two", tmp_path / "straight" / "measured" / f"step={step}.ckpt")
        return plain, straight, after_step, after_validation

    plain, straight, after_step, after_validation = run_ranks(runs, 1, timeout=120)[0]
    assert straight == plain
    assert after_step == plain[step:]
    assert after_validation == plain[step:]


def test_the_time_of_an_epoch_counts_from_the_resume(tmp_path):
    last = killed(tmp_path)

    def resume():
        history = EpochHistory(show=False)
        train(tmp_path, resume=last, callbacks=[history])
        return history.epochs

    epochs = run_ranks(resume, 1, timeout=120)[0]
    assert all(0 < epoch["seconds"] < 60 for epoch in epochs)
