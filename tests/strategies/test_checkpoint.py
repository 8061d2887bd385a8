"""A checkpoint from elsewhere cannot run code, and what is damaged is named."""

import os
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards

from lightning_mvrec.strategies import checkpoint
from tests.distributed.launch import run_ranks


class Harmful:
    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "a.ckpt"

    def write():
        content = {"epoch": 3, "state_dict": {"w": torch.arange(4.0), "extra": 7}, "score": np.float64(0.5)}
        checkpoint.write(folder, content, {"t/sum": torch.ones(2)})

    run_ranks(write, 1)
    return folder


def copy(good, folder):
    target = folder / "copy.ckpt"
    target.mkdir()
    for file in good.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_what_was_written_is_read(good):
    meta = checkpoint.read_meta(good)
    assert meta["format"] == 1
    assert meta["checkpoint"] == {"epoch": 3, "state_dict": {"extra": 7}, "score": 0.5}
    weight, total = torch.zeros(4), torch.zeros(2)
    checkpoint.read_weights(good, {"w": weight}, {"t/sum": total}, alone=True)
    assert weight.tolist() == [0, 1, 2, 3]
    assert total.tolist() == [1, 1]


def test_a_harmful_metadata_is_not_unpickled(good, tmp_path):
    target = copy(good, tmp_path)
    (target / ".metadata").write_bytes(pickle.dumps(Harmful(tmp_path / "harm")))
    with pytest.raises(ValueError, match=r"may not hold posix.mkdir"):
        checkpoint.read_weights(target, {"w": torch.zeros(4)}, alone=True)
    assert not (tmp_path / "harm").exists()


def test_a_checkpoint_written_by_an_early_python_3_11_is_read(good, tmp_path, monkeypatch):
    from torch.distributed.checkpoint import metadata

    def by_name(self, protocol):
        return getattr, (type(self), self.name)

    monkeypatch.setattr(metadata._MEM_FORMAT_ENCODING, "__reduce_ex__", by_name)
    target = copy(good, tmp_path)
    content = pickle.dumps(pickle.loads((good / ".metadata").read_bytes()))
    assert b"getattr" in content
    (target / ".metadata").write_bytes(content)
    weight = torch.zeros(4)
    checkpoint.read_weights(target, {"w": weight}, {"t/sum": torch.zeros(2)}, alone=True)
    assert weight.tolist() == [0, 1, 2, 3]


def test_no_other_attribute_is_taken_from_what_metadata_may_hold(good, tmp_path):
    from torch.distributed.checkpoint.metadata import Metadata

    class Attribute:
        def __reduce__(self):
            return getattr, (Metadata, "__init__")

    target = copy(good, tmp_path)
    (target / ".metadata").write_bytes(pickle.dumps(Attribute()))
    with pytest.raises(ValueError, match="may not hold attribute '__init__'"):
        checkpoint.read_weights(target, {"w": torch.zeros(4)}, alone=True)


def test_a_harmful_meta_is_not_unpickled(good, tmp_path):
    target = copy(good, tmp_path)
    torch.save({"format": 1, "checkpoint": Harmful(tmp_path / "harm")}, target / "meta.pt")
    with pytest.raises(ValueError, match=r"meta.pt cannot be read"):
        checkpoint.read_meta(target)
    assert not (tmp_path / "harm").exists()


def test_a_pickled_entry_in_the_place_of_a_tensor_is_refused(good, tmp_path):
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    target = copy(good, tmp_path)
    metadata = pickle.loads((good / ".metadata").read_bytes())
    metadata.state_dict_metadata["model.w"] = BytesStorageMetadata()
    (target / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match="BytesStorageMetadata"):
        checkpoint.read_weights(target, {"w": torch.zeros(4)}, alone=True)


@pytest.mark.parametrize("file", [".metadata", "meta.pt"])
def test_a_truncated_file_is_named(good, tmp_path, file):
    target = copy(good, tmp_path)
    content = (target / file).read_bytes()
    (target / file).write_bytes(content[: len(content) // 2])

    def read():
        checkpoint.read_meta(target)
        checkpoint.read_weights(target, {"w": torch.zeros(4)}, alone=True)

    with pytest.raises(ValueError, match=file):
        read()


def test_a_later_format_is_refused(good, tmp_path):
    target = copy(good, tmp_path)
    torch.save({"format": 2}, target / "meta.pt")
    with pytest.raises(ValueError, match="format must be 1, got 2"):
        checkpoint.read_meta(target)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"is not a checkpoint directory: meta.pt is missing"):
        checkpoint.read_meta(tmp_path)
    assert not checkpoint.is_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"w": torch.zeros(5)}, r"model.w must be of shape \(5,\), got \(4,\)"),
        ({"w": torch.zeros(4), "v": torch.zeros(1)}, r"missing \['model.v'\]"),
        ({}, r"unexpected \['model.w'\]"),
    ],
)
def test_weights_that_do_not_fit_are_named(good, weights, message):
    with pytest.raises(ValueError, match=message):
        checkpoint.read_weights(good, weights, alone=True)


def test_missing_optimizer_state_is_named(good):
    with pytest.raises(ValueError, match="no optimizer state 'u/sum'"):
        checkpoint.read_weights(good, {"w": torch.zeros(4)}, {"u/sum": torch.zeros(2)}, alone=True)


def test_hyper_parameters_that_are_not_plain_are_left_out(tmp_path):
    def write():
        with pytest.warns(UserWarning, match="hyper_parameters are left out"):
            checkpoint.write(tmp_path / "a.ckpt", {"hyper_parameters": {"f": open}, "epoch": 1}, {})
        assert checkpoint.read_meta(tmp_path / "a.ckpt")["checkpoint"] == {"epoch": 1, "state_dict": {}}

    run_ranks(write, 1)


def test_random_state_goes_back():
    import random

    state = checkpoint.random_state()
    first = (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002
    checkpoint.set_random_state(state)
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == first  # noqa: NPY002


def test_a_checkpoint_is_removed_but_not_what_a_link_points_to(good, tmp_path):
    target = copy(good, tmp_path)
    link = tmp_path / "last.ckpt"
    link.symlink_to(target)
    checkpoint.remove(link)
    assert not link.exists()
    assert target.exists()
    checkpoint.remove(target)
    assert not target.exists()


@pytest.mark.parametrize("steps", [(20, 20), (21, 20)])
def test_ranks_save_one_whole_checkpoint_or_none(tmp_path, steps):
    def write():
        rank = dist.get_rank()
        shards = [Shard.from_tensor_and_offsets(torch.full((2,), float(rank)), [2 * rank], rank)]
        content = {"global_step": steps[rank], "state_dict": {"w": init_from_local_shards(shards, 4)}}
        try:
            checkpoint.write(tmp_path / f"loss={rank}-step={steps[rank]}.ckpt", content, {})
        except RuntimeError as error:
            return str(error)

    said = run_ranks(write, 2)
    if len({*steps}) > 1:
        assert all("must be at the same step, got [21, 20] by rank" in text for text in said)
        assert list(tmp_path.iterdir()) == []
        return
    assert [path.name for path in tmp_path.iterdir()] == ["loss=0-step=20.ckpt"]  # a metric of each rank's own
    weight = torch.zeros(4)
    checkpoint.read_weights(tmp_path / "loss=0-step=20.ckpt", {"w": weight}, {}, alone=True)
    assert weight.tolist() == [0, 0, 1, 1]
