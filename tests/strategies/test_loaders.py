import inspect

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset
from torchrec import KeyedJaggedTensor

from lightning_mvrec.strategies.loaders import copy_ids, even_out
from tests.distributed.launch import run_ranks

CPU = torch.device("cpu")


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


def numbers(known):
    """Rank 0 has 3 batches, rank 1 has 5."""
    count = 3 + 2 * dist.get_rank()
    evened = even_out(DataLoader(list(range(count)) if known else Stream(count), batch_size=None), CPU)
    return [list(evened), list(evened)]  # two epochs


@pytest.mark.parametrize("known", [True, False])
def test_training_ends_on_all_ranks_with_the_first(known):
    assert run_ranks(numbers, 2, known) == [[[0, 1, 2]] * 2] * 2


def test_even_loaders_are_left_alone():
    def run():
        loader = DataLoader(list(range(4)))
        return even_out(loader, CPU) is loader

    assert run_ranks(run, 2) == [True, True]


def test_even_streams_pass_whole():
    def run():
        return list(even_out(DataLoader(Stream(4), batch_size=None), CPU))

    assert run_ranks(run, 2) == [[0, 1, 2, 3]] * 2


def test_one_rank_is_left_alone():
    def run():
        loader = DataLoader(Stream(4))
        return even_out(loader, CPU) is loader

    assert run_ranks(run, 1) == [True]


def test_what_lightning_asks_a_loader_is_answered():
    def run():
        loader = DataLoader(list(range(3 + dist.get_rank())), batch_size=1)
        evened = even_out(loader, CPU)
        return len(evened), evened.batch_size, evened.sampler is loader.sampler

    assert run_ranks(run, 2) == [(3, 1, True)] * 2


def test_the_state_of_a_loader_is_still_found():
    from lightning.fabric.utilities.types import _Stateful

    class Counting:
        def state_dict(self):
            return {"read": 3}

        def load_state_dict(self, state_dict):
            self.loaded = state_dict

    def run():
        counting = Counting()
        evened = even_out(counting, CPU)
        evened.load_state_dict({"read": 5})
        found = isinstance(evened, _Stateful) and inspect.getattr_static(evened, "state_dict", None) is not None
        return found, evened.state_dict(), counting.loaded  # Python 3.12 does not look behind __getattr__

    assert run_ranks(run, 2) == [(True, {"read": 3}, {"read": 5})] * 2


def test_ids_are_moved_wherever_they_are():
    kjt = KeyedJaggedTensor(["a"], values=torch.tensor([1]), lengths=torch.tensor([1]))
    moved = copy_ids({"x": [kjt, 3], "y": (torch.ones(1), "text")}, torch.device("meta"))
    assert moved["x"][0].values().is_meta
    assert moved["x"][1] == 3
    assert not moved["y"][0].is_meta  # Lightning's to move
    assert moved["y"][1] == "text"
