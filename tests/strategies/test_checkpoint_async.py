"""A checkpoint that is written beside the training is that of its step, or an error; callbacks see no half of one."""

import errno
import filecmp
import os
import pickle
import threading
import time
import warnings

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_mvrec.strategies import Adagrad, RowWiseAdagrad, TorchRecStrategy, checkpoint
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import InConfigureModel, loader, trainer

PLANS = {"row_wise": {"sharding": "row_wise"}, "replicated": {"replicate": "all"}}
WRITE = dcp.FileSystemWriter.write_data


def fit(keep, background, module=None, resume=None, epochs=2, plan="row_wise"):
    pl.seed_everything(3, verbose=False)
    module = module or InConfigureModel()
    strategy = TorchRecStrategy(Adagrad(lr=0.1), async_save=background, **PLANS[plan])
    callbacks = keep if isinstance(keep, list) else [keep]
    runner = trainer(strategy, max_epochs=epochs, enable_checkpointing=True, callbacks=callbacks)
    runner.fit(module, loader(), ckpt_path=resume)
    return module


def slow_writer(monkeypatch, seconds=0.15):
    def write(*args, **kwargs):
        time.sleep(seconds)
        return WRITE(*args, **kwargs)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", write)


def full_disk(monkeypatch, rank, saves):
    """Let writing fail on a rank from its ``saves``-th save on."""
    count = 0

    def write(*args, **kwargs):
        nonlocal count
        count += 1
        if dist.get_rank() == rank and count >= saves:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return WRITE(*args, **kwargs)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", write)


def tensors_of(metadata):
    described = pickle.loads(metadata.read_bytes())  # all but the name of this very save
    return described.state_dict_metadata, described.storage_data, described.planner_data


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("size", [1, 2])
def test_every_byte_is_that_of_a_save_that_training_waits_for(tmp_path, monkeypatch, size, plan):
    slow_writer(monkeypatch)  # so that tables are trained on before they are written
    folder = tmp_path / "run"  # callbacks' state names it

    def run(background):
        keep = ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1, filename="{step}")
        fit(keep, background, plan=plan)

    for background in (False, True):
        run_ranks(run, size, background)
        folder.rename(tmp_path / ("meanwhile" if background else "waited"))
    names = sorted(path.name for path in (tmp_path / "waited").iterdir())
    assert names == ["step=12.ckpt", "step=4.ckpt", "step=8.ckpt"]
    assert sorted(path.name for path in (tmp_path / "meanwhile").iterdir()) == names
    for name in names:
        one, other = tmp_path / "waited" / name, tmp_path / "meanwhile" / name
        files = sorted(path.name for path in one.iterdir())
        assert sorted(path.name for path in other.iterdir()) == files
        assert len([file for file in files if file.endswith(".distcp")]) == size
        content = [file for file in files if file != ".metadata"]
        assert filecmp.cmpfiles(one, other, content, shallow=False) == (content, [], [])
        assert tensors_of(one / ".metadata") == tensors_of(other / ".metadata")


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    later = threading.Event()

    def write(*args, **kwargs):
        assert later.wait(100), "training has waited"
        return WRITE(*args, **kwargs)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", write)

    class Watched(InConfigureModel):
        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == 4:
                assert not (tmp_path / "step=3.ckpt").exists()
                later.set()

    def run():
        keep = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_top_k=-1, filename="{step}")
        fit(keep, True, Watched(), epochs=1)

    run_ranks(run, 1)
    assert checkpoint.is_checkpoint(tmp_path / "step=6.ckpt")


@pytest.mark.parametrize("size", [1, 2])
def test_the_last_checkpoint_is_there_when_the_fit_ends(tmp_path, monkeypatch, size):
    slow_writer(monkeypatch, 0.5)

    def run():
        keep = ModelCheckpoint(tmp_path, save_last="link", filename="{epoch}")
        fit(keep, True, epochs=1)
        assert checkpoint.is_checkpoint(tmp_path / "last.ckpt")
        resumed = fit(ModelCheckpoint(tmp_path, save_last="link", filename="{epoch}"), True, None, "last")
        return len(resumed.losses)

    assert run_ranks(run, size) == [6] * size


class Unhurried(InConfigureModel):
    """Leaves the thread that writes time to fail before the next save, which would wait for it."""

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step > 120:
            time.sleep(0.2)


@pytest.mark.parametrize(("size", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_an_error_in_the_background_stops_all_ranks_at_a_step_and_keeps_the_last_good_one(
    tmp_path, monkeypatch, size, rank
):
    full_disk(monkeypatch, rank, saves=2)

    def run():
        keep = ModelCheckpoint(tmp_path, every_n_train_steps=60, save_last="link", filename="{step}")
        module = Unhurried()
        with pytest.raises(OSError, match=rf"written in the background.*rank {rank}: OSError.*No space left"):
            fit(keep, True, module, epochs=50)
        return len(module.losses)

    steps = run_ranks(run, size)
    assert len(set(steps)) == 1
    assert 120 <= steps[0] < 180  # the second save failed, the third was not waited for
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step=60.ckpt"]
    assert checkpoint.read_meta(tmp_path / "last.ckpt")["checkpoint"]["global_step"] == 60


def test_what_a_save_that_fails_was_to_replace_is_not_removed(tmp_path, monkeypatch):
    full_disk(monkeypatch, 0, saves=2)

    def run():
        with pytest.raises(OSError, match="No space left"):
            fit(ModelCheckpoint(tmp_path, filename="{epoch}"), True, epochs=5)

    run_ranks(run, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0.ckpt"]


def test_an_error_in_the_last_save_is_that_of_the_fit(tmp_path, monkeypatch):
    full_disk(monkeypatch, 1, saves=1)

    def run():
        keep = ModelCheckpoint(tmp_path, filename="{epoch}")
        with pytest.raises(OSError, match=r"rank 1: OSError.*No space left"):
            fit(keep, True, epochs=1)

    run_ranks(run, 2)
    assert not list(tmp_path.iterdir())


class Raises(InConfigureModel):
    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 3:
            raise KeyError("mine")


def test_a_run_that_ends_with_an_error_finishes_what_it_is_writing(tmp_path, monkeypatch):
    slow_writer(monkeypatch, 0.5)

    def run():
        with pytest.raises(KeyError, match="mine"):
            fit(ModelCheckpoint(tmp_path, every_n_train_steps=3, filename="{step}"), True, Raises())
        return checkpoint.read_meta(tmp_path / "step=3.ckpt")["checkpoint"]["global_step"]

    assert run_ranks(run, 2) == [3, 3]


def test_an_error_in_the_background_does_not_hide_the_one_that_ends_the_run(tmp_path, monkeypatch):
    def write(*args, **kwargs):
        time.sleep(0.5)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def run():
        heard = []
        monkeypatch.setattr(dcp.FileSystemWriter, "write_data", write)
        monkeypatch.setattr(warnings, "warn", lambda message, *args, **kwargs: heard.append(str(message)))
        with pytest.raises(KeyError, match="mine"):
            fit(ModelCheckpoint(tmp_path, every_n_train_steps=3, filename="{step}"), True, Raises())
        return [message for message in heard if "No space left" in message]

    assert [len(messages) for messages in run_ranks(run, 2)] == [1, 1]


class Worse(InConfigureModel):
    """Its first epoch is the best; looks, at every step, whether the link leads to a whole checkpoint."""

    def __init__(self, link):
        super().__init__()
        self.link = link
        self.seen = []

    def on_train_batch_start(self, batch, batch_idx):
        if dist.get_rank() == 0 and os.path.lexists(self.link):
            meta = checkpoint.read_meta(self.link)  # raises where there is none
            self.seen.append(meta["checkpoint"]["global_step"])

    def on_train_epoch_end(self):
        self.log("score", torch.tensor([1.0, 3.0, 2.0, 0.5, 4.0][self.current_epoch]), sync_dist=True)


@pytest.mark.parametrize("size", [1, 2])
def test_the_best_and_the_link_to_the_last_are_those_of_a_save_that_training_waits_for(tmp_path, monkeypatch, size):
    slow_writer(monkeypatch, 0.03)

    def run(folder, background):
        keep = ModelCheckpoint(folder, monitor="score", save_top_k=2, save_last="link", filename="{epoch}")
        module = Worse(folder / "last.ckpt")
        fit(keep, background, module, epochs=5)
        assert vars(keep).keys().isdisjoint({"file_exists", "_link_checkpoint"})
        return module.seen

    found = []
    for background in (False, True):
        folder = tmp_path / str(background)
        seen = run_ranks(run, size, folder, background)[0]
        assert len(seen) > 10
        found.append((sorted(path.name for path in folder.iterdir()), os.readlink(folder / "last.ckpt")))
    assert found[0] == found[1] == (["epoch=0.ckpt", "epoch=3.ckpt", "last.ckpt"], "epoch=3.ckpt")


@pytest.mark.parametrize("background", [False, True])
def test_a_linked_last_is_of_the_step_of_a_saved_one(tmp_path, background):
    def run(folder, last):
        keep = ModelCheckpoint(folder, monitor="score", save_top_k=1, save_last=last, filename="{epoch}")
        fit(keep, background, Worse(folder / "last.ckpt"), epochs=5)

    for name, last in [("saved", True), ("linked", "link")]:
        run_ranks(run, 1, tmp_path / name, last)
        names = sorted(path.name for path in (tmp_path / name).iterdir())
        assert names == ["epoch=3.ckpt", "last.ckpt"]  # scores 1, 3, 2, 0.5, 4: the lowest of epoch 3
        assert checkpoint.read_meta(tmp_path / name / "last.ckpt")["checkpoint"]["epoch"] == 3


def test_the_best_and_each_epochs_checkpoint_lie_side_by_side(tmp_path):
    def run():
        best = ModelCheckpoint(tmp_path / "best", monitor="score", filename="{epoch}")
        each = ModelCheckpoint(tmp_path / "each", save_last="link", filename="{epoch}")
        fit([best, each], True, Worse(tmp_path / "each" / "last.ckpt"), epochs=5)

    run_ranks(run, 1)
    names = {folder.name: sorted(path.name for path in folder.iterdir()) for folder in tmp_path.iterdir()}
    assert names == {"best": ["epoch=3.ckpt"], "each": ["epoch=4.ckpt", "last.ckpt"]}


def test_names_that_are_being_written_count_as_taken(tmp_path, monkeypatch):
    slow_writer(monkeypatch, 0.3)

    def run(folder, background):
        two = [ModelCheckpoint(folder, every_n_train_steps=4, mode=mode, filename="same") for mode in ("min", "max")]
        fit(two, background, epochs=1)  # six steps

    for background in (False, True):
        run_ranks(run, 1, tmp_path / str(background), background)
        names = sorted(path.name for path in (tmp_path / str(background)).iterdir())
        assert names == ["same-v1.ckpt", "same.ckpt"]


def test_what_a_link_leads_to_is_kept_until_the_link_leads_elsewhere(tmp_path):
    strategy = TorchRecStrategy(RowWiseAdagrad(lr=0.1))
    saves = strategy._saves
    for name in ("old.ckpt", "new.ckpt"):
        (tmp_path / name).mkdir()

    class Run:
        callbacks = ()
        interrupted = False

    saves.open(Run())
    saves.link(tmp_path / "old.ckpt", tmp_path / "last.ckpt")
    saves.remove(tmp_path / "old.ckpt")
    assert (tmp_path / "last.ckpt").is_dir()
    saves.link(tmp_path / "new.ckpt", tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "new.ckpt"]
    saves.close()
