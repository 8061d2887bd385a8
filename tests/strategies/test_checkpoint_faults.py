"""A save that is killed or finds no space leaves the last good checkpoint; a damaged one is named, not half read."""

import errno
import os
import pickle
import re
import shutil
import signal
import sys
import threading
from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards
from torch.distributed._shard.sharding_spec import ShardMetadata

from lightning_mvrec.strategies import SGD, TorchRecStrategy, checkpoint
from lightning_mvrec.strategies.checkpoint_async import Saves
from tests.distributed.launch import RankError, run_ranks
from tests.strategies.stranger import InConfigureModel, InInit, loader, trainer


def save(folder, number):
    content = {"epoch": number, "state_dict": {"w": torch.full((4,), float(number))}}
    checkpoint.write(folder, content, {}, plan={"number": number})


def load(folder):
    """The number that was saved, the same in every part of the checkpoint."""
    weight = torch.zeros(4)
    checkpoint.read_weights(folder, {"w": weight}, alone=True)
    assert (weight == weight[0]).all()
    assert checkpoint.read_meta(folder)["checkpoint"]["epoch"] == weight[0]
    return int(weight[0])


class Fit:
    """What the writer of checkpoints wants to know of a Trainer."""

    callbacks = ()
    interrupted = False


def save_as_callbacks_do(folder, number, background):
    """Save under a new name, remove the one before and let a link lead to the new one, as ModelCheckpoint does."""
    saves = Saves(background, timedelta(seconds=60))
    saves.open(Fit())
    content = {"epoch": number, "state_dict": {"w": torch.full((4,), float(number))}}
    saves.write(folder.parent / f"{number}.ckpt", content, {}, {"number": number})
    saves.remove(folder.parent / f"{number - 1}.ckpt")
    saves.link(folder.parent / f"{number}.ckpt", folder)
    saves.close()


def die_at(folder, moment):
    """Kill this process just before its ``moment``-th file operation in the folder; return their present number."""
    count, lock = 0, threading.Lock()

    def hook(event, arguments):
        nonlocal count
        if event not in (
            "open",
            "os.rename",
            "os.symlink",
            "os.mkdir",
            "os.remove",
            "os.rmdir",
            "os.scandir",
            "ctypes.dlsym",
        ):
            return
        here = any(str(folder.parent) in str(argument) for argument in arguments[:2])
        if event != "ctypes.dlsym" and not here and not isinstance(arguments[0], int):
            return
        with lock:
            count += 1
            if count == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count


def save_and_die(folder, number, moment, how=save):
    """Save, and die at that moment; return the number of moments."""
    count = die_at(folder, moment)
    how(folder, number)
    return count()


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch, exchange):
    if not exchange:  # as on a file system that cannot exchange two names
        monkeypatch.setattr(checkpoint, "_exchange", lambda first, second: False)
    target = tmp_path / "last.ckpt"
    run_ranks(save, 1, target, 1)
    moments = run_ranks(save_and_die, 1, target, 2, 0)[0]
    assert moments > 10
    assert load(target) == 2
    seen = []
    for moment in range(1, moments + 1):
        for left in tmp_path.iterdir():
            shutil.rmtree(left)
        run_ranks(save, 1, target, 1)
        with pytest.raises(RankError, match="status -9"):
            run_ranks(save_and_die, 1, target, 2, moment)
        if exchange:
            assert target.is_dir()  # under its own name: `ckpt_path="last"` looks for it there
        seen.append(load(target))
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}
    run_ranks(save, 1, target, 3)  # what lies about does not disturb the next save
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["last.ckpt"]
    assert load(target) == 3


@pytest.mark.parametrize("background", [False, True])
def test_a_kill_at_any_moment_leaves_the_link_to_the_last_leading_to_a_whole_checkpoint(tmp_path, background):
    link = tmp_path / "last.ckpt"

    def how(folder, number):
        save_as_callbacks_do(folder, number, background)

    run_ranks(how, 1, link, 1)
    moments = run_ranks(save_and_die, 1, link, 2, 0, how)[0]
    assert moments > 10
    assert load(link) == 2
    seen = []
    for moment in range(1, moments + 1):
        for left in tmp_path.iterdir():
            left.unlink() if left.is_symlink() else shutil.rmtree(left)
        run_ranks(how, 1, link, 1)
        with pytest.raises(RankError, match="status -9"):
            run_ranks(save_and_die, 1, link, 2, moment, how)
        assert link.exists()  # Lightning begins from the start where `last` leads nowhere
        seen.append(load(link))
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path, rank, background):
    link = tmp_path / "last.ckpt"

    def how(folder, number):
        save_as_callbacks_do(folder, number, background)

    def run(moment):
        return save_and_die(link, 2, moment if dist.get_rank() == rank else 0, how)

    run_ranks(how, 2, link, 1)
    moments = run_ranks(run, 2, 0)[rank]
    assert moments > (10 if rank == 0 else 0)
    seen = []
    for moment in range(1, moments + 1):
        for left in tmp_path.iterdir():
            left.unlink() if left.is_symlink() else shutil.rmtree(left)
        run_ranks(how, 2, link, 1)
        with pytest.raises(RankError, match=f"rank {rank} failed .status -9"):
            run_ranks(run, 2, moment)
        assert link.exists()
        seen.append(load(link))
    assert seen == sorted(seen)
    assert set(seen) == ({1, 2} if rank == 0 else {1})


def test_two_kills_in_a_row_leave_what_the_first_has_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_exchange", lambda first, second: False)
    target = tmp_path / "last.ckpt"
    run_ranks(save, 1, target, 1)

    def die_between_the_renames():
        rename = type(target).rename

        def once(self, to):
            rename(self, to)
            if self == target:
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(type(target), "rename", once)
        save(target, 2)

    with pytest.raises(RankError, match="status -9"):
        run_ranks(die_between_the_renames, 1)
    assert not target.exists()
    assert load(target) == 2
    for moment in range(1, 8):
        with pytest.raises(RankError, match="status -9"):
            run_ranks(save_and_die, 1, target, 3, moment)
        assert load(target) == 2
    run_ranks(save, 1, target, 4)
    assert load(target) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_kill_in_the_first_save_leaves_nothing_under_its_name(tmp_path):
    target = tmp_path / "first.ckpt"
    with pytest.raises(RankError):
        run_ranks(save_and_die, 1, target, 1, 5)
    assert not target.exists()
    assert not checkpoint.is_checkpoint(target)


def test_a_rank_that_is_killed_in_a_save_leaves_the_earlier_checkpoint(tmp_path):
    target = tmp_path / "last.ckpt"
    run_ranks(save, 2, target, 1)

    def run():
        if dist.get_rank() == 1:
            save_and_die(target, 2, 1)
        save(target, 2)

    with pytest.raises(RankError, match="rank 1 failed"):
        run_ranks(run, 2)
    assert load(target) == 1


@pytest.mark.parametrize("full", ["weights", "meta"])
def test_a_full_disk_is_an_error_on_every_rank_and_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, full):
    target = tmp_path / "last.ckpt"
    run_ranks(save, 2, target, 1)

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def run():
        if full == "meta":
            monkeypatch.setattr(checkpoint, "_write_file", no_space)
        elif dist.get_rank() == 1:
            monkeypatch.setattr(dcp.FileSystemWriter, "write_data", no_space)
        try:
            save(target, 2)
        except (OSError, RuntimeError) as error:
            return str(error)
        return None

    for message in run_ranks(run, 2):
        assert "No space left on device" in message
        assert full == "meta" or re.search(r"last.ckpt could not be saved: rank 1", message)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert load(target) == 1


@pytest.fixture
def good(tmp_path):
    target = tmp_path / "good.ckpt"
    run_ranks(save, 1, target, 1)
    return target


def test_a_truncated_shard_is_named(good):
    shard = next(good.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{shard.name} is truncated: it has \d+ bytes, must have"):
        load(good)


def test_a_missing_shard_is_named(good):
    shard = next(good.glob("*.distcp"))
    shard.unlink()
    with pytest.raises(ValueError, match=f"is not whole: {shard.name} is missing"):
        load(good)


def test_an_overwritten_shard_is_a_clear_error(good):
    shard = next(good.glob("*.distcp"))
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(ValueError, match=rf"{shard.name} is damaged"):
        load(good)


@pytest.mark.parametrize("file", ["__0_0.distcp", "meta.pt"])
def test_a_byte_that_has_changed_is_found(good, file):
    whole = (good / file).read_bytes()
    place = whole.find(torch.ones(4).numpy().tobytes() if file != "meta.pt" else b"epoch") + 3
    (good / file).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(ValueError, match=rf"{re.escape(file)} is damaged: a byte of .* has changed"):
        load(good)


def test_a_changed_byte_of_the_metadata_never_gives_other_weights(good):
    whole = (good / ".metadata").read_bytes()
    said = []
    for place in range(len(whole)):
        (good / ".metadata").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            assert load(good) == 1
        except ValueError as error:
            said.append(str(error))
    assert len(said) > len(whole) // 4
    assert all("good.ckpt" in message for message in said)


def test_a_missing_shard_of_one_rank_is_named(tmp_path):
    target = tmp_path / "two.ckpt"

    def write():
        part = torch.full((2,), 1.0)
        shards = [Shard(part, ShardMetadata([2 * dist.get_rank()], [2], f"rank:{dist.get_rank()}/cpu"))]
        checkpoint.write(target, {"epoch": 1, "state_dict": {"w": init_from_local_shards(shards, 4)}}, {})

    run_ranks(write, 2)
    assert load(target) == 1
    (target / "__1_0.distcp").unlink()
    with pytest.raises(ValueError, match=r"two.ckpt is not whole: __1_0.distcp is missing"):
        load(target)


def test_metadata_that_leads_out_of_the_directory_is_refused(good):
    metadata = pickle.loads((good / ".metadata").read_bytes())
    for part in metadata.storage_data.values():
        part.relative_path = "../other"
    (good / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="outside of the checkpoint"):
        load(good)


@pytest.mark.parametrize("content", ["nothing", "another program's", "sharded by another strategy"])
def test_a_foreign_directory_is_a_clear_error_of_the_trainer(tmp_path, content):
    target = tmp_path / "foreign.ckpt"
    target.mkdir()
    if content == "another program's":
        (target / "pytorch_model.bin").write_bytes(b"x")
    if content == "sharded by another strategy":  # Lightning's FSDP has files of the same names
        torch.save({"epoch": 1, "state_dict": {}}, target / "meta.pt")

    def run():
        with pytest.raises(ValueError, match=r"meta.pt is missing|meta.pt: format must be 1, got None"):
            trainer(TorchRecStrategy(SGD(lr=0.1))).test(InConfigureModel(), loader(2), ckpt_path=target, verbose=False)

    run_ranks(run, 1)


@pytest.mark.parametrize("content", ["Lightning's", "weights", "no checkpoint", "nothing"])
def test_a_foreign_file_is_a_clear_error_of_the_trainer(tmp_path, content):
    target = tmp_path / "foreign.ckpt"
    if content == "Lightning's":  # of the same module, trained by Lightning's own strategy
        pl_trainer = pl.Trainer(
            accelerator="cpu", max_steps=0, logger=False, enable_progress_bar=False, enable_model_summary=False
        )
        pl_trainer.fit(InInit(), [])
        pl_trainer.save_checkpoint(target)
    elif content == "weights":
        torch.save({"state_dict": {"other.weight": torch.zeros(2)}, "pytorch-lightning_version": "2.6.0"}, target)
    else:
        target.write_bytes(b"" if content == "nothing" else b"something else")

    def run():
        with pytest.raises((ValueError, RuntimeError), match=r"foreign.ckpt: ") as caught:
            trainer(TorchRecStrategy(SGD(lr=0.1))).fit(InInit(), loader(2), ckpt_path=target, weights_only=True)
        return str(caught.value)

    said = run_ranks(run, 1)[0]
    assert content != "Lightning's" or "written without TorchRecStrategy" in said
    assert content != "weights" or "other.weight" in said


def test_removing_is_never_seen_half_done(good, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "rmtree", lambda *args, **kwargs: None)  # killed before it begins
    checkpoint.remove(good)
    assert not good.exists()
    assert not checkpoint.is_checkpoint(good)
