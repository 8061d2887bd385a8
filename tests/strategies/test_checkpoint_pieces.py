"""Blocks of a saved tensor are its rows, and no more than a block is in memory."""

import io
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards
from torch.distributed._shard.sharding_spec import ShardMetadata

from lightning_mvrec.strategies import checkpoint, checkpoint_pieces
from lightning_mvrec.strategies.checkpoint_pieces import blocks, read_into
from lightning_mvrec.strategies.checkpoint_reshard import reshard
from tests.distributed.launch import run_ranks

#: A table of 61 MB.
ROWS, DIM = 500_000, 32


def saved(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return stream


@pytest.mark.parametrize("block", [1, 50, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize(
    ("low", "high"), [((0, 0, 0), (7, 5, 2)), ((2, 0, 0), (5, 5, 2)), ((1, 3, 1), (7, 4, 2)), ((3, 0, 0), (3, 5, 2))]
)
@pytest.mark.parametrize("stored", ["in order", "transposed", "part of another"])
def test_every_rectangle_is_that_of_the_saved_tensor(monkeypatch, block, dtype, low, high, stored):
    monkeypatch.setattr(checkpoint_pieces, "BLOCK", block)
    value = torch.arange(70).reshape(7, 5, 2).to(dtype)
    if stored == "transposed":
        value = value.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    elif stored == "part of another":
        value = torch.cat([value, value, value])[7:14]
    place = tuple(slice(first, end) for first, end in zip(low, high, strict=True))
    target = torch.zeros_like(value[place])
    read_into(target, saved(value), low)
    assert torch.equal(target, value[place])


@pytest.mark.parametrize("value", [torch.tensor(3.5), torch.tensor([1.0, 2.0]), torch.zeros(0), torch.zeros(0, 4)])
def test_small_tensors_are_read(value):
    target = torch.full_like(value, -1)
    read_into(target, saved(value), [0] * value.dim())
    assert torch.equal(target, value)


def test_a_block_has_whole_rows_and_the_number_of_those_before_it(monkeypatch):
    monkeypatch.setattr(checkpoint_pieces, "BLOCK", 2 * 3 * 4 + 5)  # two rows of three numbers of four bytes, and some
    value = torch.arange(21.0).reshape(7, 3)
    found = [(first, block.tolist()) for first, block in blocks(saved(value), [1, 0], [5, 3])]
    assert found == [(0, value[1:3].tolist()), (2, value[3:5].tolist()), (4, value[5:6].tolist())]


@pytest.mark.parametrize("low", [(-1, 0), (6, 0), (0, 1)])
def test_a_rectangle_outside_is_refused(low):
    with pytest.raises(ValueError, match=r"are not in \(7, 3\)"):
        read_into(torch.zeros(2, 3), saved(torch.zeros(7, 3)), low)


def test_something_else_than_a_tensor_is_refused():
    with pytest.raises(ValueError, match="must be a tensor, got dict"):
        read_into(torch.zeros(2), saved({"a": 1}), [0])


def test_a_piece_is_checked_once_however_many_parts_of_it_are_read(tmp_path, monkeypatch):
    content = {"state_dict": {"w": torch.arange(12.0)}}
    run_ranks(lambda: checkpoint.write(tmp_path / "one.ckpt", content, {"w/s": torch.ones(12)}), 1)
    checked = []
    check = checkpoint_pieces.check_bytes
    monkeypatch.setattr(checkpoint_pieces, "check_bytes", lambda *args: checked.append(1) or check(*args))
    reshard(tmp_path / "one.ckpt", tmp_path / "four.ckpt", files=4)
    assert len(checked) == 2  # w and w/s
    shard = tmp_path / "one.ckpt" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes().replace(torch.ones(12).numpy().tobytes(), torch.zeros(12).numpy().tobytes()))
    with pytest.raises(ValueError, match=r"__0_0.distcp is damaged"):
        reshard(tmp_path / "one.ckpt", tmp_path / "again.ckpt", files=4)


def table(plan, value):
    size, rank = dist.get_world_size(), dist.get_rank()
    if plan == "replicated":
        return torch.full((ROWS, DIM), value)
    place = [ROWS * rank // size, 0], [ROWS // size, DIM]
    if plan == "column_wise":
        place = [0, DIM * rank // size], [ROWS, DIM // size]
    shard = Shard(torch.full(place[1], value), ShardMetadata(*place, f"rank:{rank}/cpu"))
    return init_from_local_shards([shard], ROWS, DIM)


def megabytes(name):
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process")
@pytest.mark.parametrize(("size", "plan"), [(1, "row_wise"), (2, "replicated"), (2, "column_wise"), (2, "row_wise")])
def test_a_rank_that_reads_its_rows_holds_no_whole_table_beside_them(tmp_path, size, plan):
    target = tmp_path / "table.ckpt"
    run_ranks(
        lambda: checkpoint.write(target, {"state_dict": {"w": table(plan, 1.0)}}, {"w/s": table(plan, 2.0)}), size
    )

    def read():
        weights, state = table("row_wise", 0.0), table("row_wise", 0.0)
        before = megabytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        checkpoint.read_weights(target, {"w": weights}, {"w/s": state})
        assert (weights.local_tensor() == 1).all()
        assert (state.local_tensor() == 2).all()
        return megabytes("VmHWM") - before

    whole = ROWS * DIM * 4 / 2**20
    peaks = run_ranks(read, 2)  # seen: 14 MB; torch's own reading: 63 to 125 MB
    assert max(peaks) < whole / 2
