"""Tables lie in large pages where the system has them, and hold what they held."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from lightning_mvrec.strategies import Adagrad, pages
from lightning_mvrec.strategies.joined import kernels
from lightning_mvrec.strategies.pages import take_large_pages
from lightning_mvrec.strategies.sharding import shard_tables
from tests.distributed.launch import run_ranks

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
linux = pytest.mark.skipif(
    not SWITCH.is_file() or "[never]" in SWITCH.read_text(), reason="needs Linux with transparent huge pages"
)


def flags(tensor):
    """Flags that the system has noted for the middle of a tensor's memory; ``hg``: large pages are asked for."""
    place = tensor.data_ptr() + tensor.numel() * tensor.element_size() // 2
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            here = int(found[1], 16) <= place < int(found[2], 16)
        elif here and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


@linux
def test_a_large_tensor_asks_for_them_and_stays_as_it_is():
    tensor = torch.arange(2**21 + 3, dtype=torch.float32)[1:]
    assert "hg" not in flags(tensor)
    assert take_large_pages(tensor)
    assert "hg" in flags(tensor)
    assert torch.equal(tensor, torch.arange(1, 2**21 + 3, dtype=torch.float32))


@linux
def test_the_kernels_of_tables_and_their_state_ask_for_them():
    def run():
        module = torch.nn.Module()
        table = EmbeddingBagConfig(name="t", embedding_dim=32, num_embeddings=100_000, feature_names=["f"])
        module.bags = EmbeddingBagCollection([table], device=torch.device("meta"))
        made = shard_tables(module, torch.device("cpu"), dist.get_world_size(), Adagrad(lr=0.1), sharding="row_wise")
        kernel = next(iter(kernels(made.modules["bags"])))._emb_module
        return ["hg" in flags(tensor) for tensor in (kernel.weights_host, kernel.momentum1_host)]

    assert run_ranks(run, 2) == [[True, True]] * 2


def test_other_tensors_and_systems_are_left_alone(monkeypatch):
    large = torch.zeros(2**21)
    assert not take_large_pages(torch.zeros(2**19))
    assert not take_large_pages(large.view(2, -1).T)
    assert not take_large_pages(torch.zeros(2**21, device="meta"))
    monkeypatch.setattr(pages.sys, "platform", "darwin")
    assert not take_large_pages(large)
