"""The position of a loader: what is left of an epoch comes next, whatever workers have prepared."""

import pytest
import torch

from lightning_mvrec.data import UniformNegatives
from tests.data.test_datamodule import equal, module

BATCHES = 4  # 60 examples in batches of 16


def loader(folder, epoch=0, **settings):
    made = module(folder, negatives=UniformNegatives(num=4), **settings).train_dataloader()
    made.sampler.set_epoch(epoch)
    assert len(made) == BATCHES
    return made


def stopped(folder, after, epoch=0, **settings):
    """The state of a loader that has handed out some batches of an epoch, and those that it has not."""
    made = loader(folder, epoch, **settings)
    batches = iter(made)
    for _ in range(after):
        next(batches)
    return made.state_dict(), list(batches)


def resumed(folder, state, epoch=0, **settings):
    """What a new loader yields where Lightning makes the iterator before it names the epoch."""
    made = loader(folder, **settings)
    made.load_state_dict(state)
    batches = iter(made)
    made.sampler.set_epoch(epoch)
    return list(batches)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("after", [1, 3])
def test_the_rest_of_an_epoch_comes_next(tmp_path, workers, after):
    state, rest = stopped(tmp_path, after, epoch=3, num_workers=workers)
    found = resumed(tmp_path, state, epoch=3, num_workers=workers)
    assert state["batches"] == after
    assert len(found) == BATCHES - after
    assert all(equal(one, other) for one, other in zip(found, rest, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_after_a_resumed_one_is_whole_and_in_its_own_order(tmp_path, workers):
    state, _ = stopped(tmp_path, 2, num_workers=workers)
    made = loader(tmp_path, num_workers=workers)
    made.load_state_dict(state)
    assert len(list(made)) == BATCHES - 2
    made.sampler.set_epoch(1)
    straight = list(loader(tmp_path, epoch=1))
    assert all(equal(one, other) for one, other in zip(made, straight, strict=True))


@pytest.mark.parametrize("after", [2, BATCHES])
def test_a_position_in_another_epoch_is_not_used(tmp_path, after):
    # Lightning may end an epoch early (limit_train_batches): the next one is whole.
    state, _ = stopped(tmp_path, after, epoch=0)
    assert len(resumed(tmp_path, state, epoch=1)) == BATCHES


def test_a_finished_epoch_is_begun_again(tmp_path):
    state, rest = stopped(tmp_path, BATCHES)
    assert not rest
    assert len(resumed(tmp_path, state)) == BATCHES


def test_a_loaded_position_is_kept_until_a_batch_is_asked_for(tmp_path):
    state, _ = stopped(tmp_path, 2, epoch=5)
    made = loader(tmp_path)
    made.load_state_dict(state)
    batches = iter(made)
    made.sampler.set_epoch(5)
    assert made.state_dict() == state
    next(batches)
    assert made.state_dict() == {**state, "batches": 3}


def test_the_length_is_that_of_the_whole_epoch_after_a_resume(tmp_path):
    made = loader(tmp_path)
    made.load_state_dict(stopped(tmp_path, 3)[0])
    next(iter(made))
    assert len(made) == BATCHES


@pytest.mark.parametrize(("name", "value"), [("seed", 1), ("bucket_batches", 2)])
def test_another_order_inside_an_epoch_is_refused_and_after_it_is_not(tmp_path, name, value):
    state, _ = stopped(tmp_path, 2)
    with pytest.raises(ValueError, match=f"{name} must be {state[name]}, .* got {value}"):
        resumed(tmp_path, state, **{name: value})
    assert len(resumed(tmp_path, state, epoch=1, **{name: value})) == BATCHES


def test_the_state_of_another_loader_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without .*'batches'"):
        loader(tmp_path).load_state_dict({"epoch": 0})


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_draws_nothing_from_the_global_generator(tmp_path, workers):
    before = torch.get_rng_state()
    list(loader(tmp_path, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
