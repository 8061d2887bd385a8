"""Four ranks in two replica groups all end when one of them fails, with a message that names it.

Ranks 0 and 1 are a group, 2 and 3 the other; 0 and 2 hold the same rows, and so do 1 and 3. Of those that do not fail,
one waits for ids of the failed rank, one for gradients of rows, and one for neither.
"""

import re
import signal
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.distributed import test_faults as faults
from tests.distributed.launch import end_ranks, run_ranks
from tests.distributed.test_faults import (
    Faulty,
    Short,
    Skips,
    check_that_all_stopped_and_saved,
    get_killed,
    hang,
    kept_fit,
    lines,
    lose_key,
    losses,
    stopped_fit,
    strategy,
)
from tests.strategies.stranger import InInit, loader, trainer

RANKS = 4
GROUPS = {"replica_groups": 2}


class FaultyInOptimizer(Faulty):
    """Calls ``fault`` when its group is through with the fourth step, and the ranks of the same rows wait for it."""

    def training_step(self, batch, batch_idx):
        return InInit.training_step(self, batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        if self.global_step == 3 and dist.get_rank() == self.bad:
            self.fault()


def faulty_fit(fault, bad, kind=Faulty, ahead=False):
    trainer(strategy(**GROUPS, look_ahead=ahead)).fit(kind(fault, bad), loader())


@pytest.mark.parametrize("bad", [0, 3])
def test_a_rank_that_raises_is_named_by_the_others_with_its_error(bad):
    ends = end_ranks(faulty_fit, RANKS, lose_key, bad)
    assert [end.status for end in ends] == [1] * RANKS
    for rank, end in enumerate(ends):
        assert lines(end, rank) == [f"rank {bad} failed: KeyError: 'lost key' (epoch 0, batch 3: step)"]
        assert "gloo" not in end.log


@pytest.mark.parametrize(
    ("bad", "kind", "ahead"), [(0, Faulty, False), (3, Faulty, False), (2, Faulty, True), (3, FaultyInOptimizer, False)]
)
def test_a_killed_rank_is_named_by_all_others(bad, kind, ahead):
    ends = end_ranks(faulty_fit, RANKS, get_killed, bad, kind, ahead)
    for rank, end in enumerate(ends):
        if rank == bad:
            assert end.status == -signal.SIGKILL
        else:
            assert end.status == 1
            assert lines(end, rank)[0].startswith(f"rank {bad} is gone: its process was killed")
            assert "gloo" not in end.log


@pytest.mark.slow
@pytest.mark.parametrize("bad", range(RANKS))
@pytest.mark.parametrize(("kind", "where"), [(Faulty, "step"), (FaultyInOptimizer, "backward pass and optimizer")])
def test_a_rank_that_hangs_is_named_with_the_line_it_is_in(bad, kind, where):
    ends = end_ranks(faulty_fit, RANKS, hang, bad, kind)
    assert [end.status for end in ends] == [1] * RANKS
    for rank, end in enumerate(ends):
        said = lines(end, rank)[0]
        assert re.match(rf"rank {bad} hangs: no progress for \d+ s in epoch 0, batch 3: {where} ", said)
        assert f"{Path(faults.__file__).name}:" in said
        assert "in hang" in said
    assert "time.sleep(1000)" in ends[bad].log


@pytest.mark.parametrize("bad", [0, 3])
def test_a_skipped_lookup_is_named(bad):
    ends = end_ranks(lambda: trainer(strategy(**GROUPS)).fit(Skips(3, bad), loader()), RANKS)
    for rank, end in enumerate(ends):
        assert end.status == 1
        assert lines(end, rank)[0].startswith(f"rank {bad} skipped the lookup of 'embeddings' that rank ")


def test_a_loader_that_ends_before_its_length_is_named():
    for rank, end in enumerate(end_ranks(lambda: trainer(strategy(**GROUPS)).fit(InInit(), Short(2)), RANKS)):
        assert end.status == 1
        assert lines(end, rank)[0].startswith("rank 2 has no more batches, rank ")


@pytest.mark.parametrize(("bad", "check_loss"), [(0, False), (3, True)])
def test_sigterm_to_one_rank_stops_all_before_the_same_batch_and_they_save(tmp_path, bad, check_loss):
    ends = end_ranks(lambda: stopped_fit(tmp_path, bad, check_loss=check_loss, **GROUPS), RANKS)
    check_that_all_stopped_and_saved(ends, tmp_path, bad)


def test_a_run_resumed_after_a_kill_has_the_losses_of_one_without(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    plan = {**GROUPS, "find_unused_parameters": True}  # DDP would sum in another order from its second step on
    for folder in (whole, killed):
        folder.mkdir()
    run_ranks(kept_fit, RANKS, whole, None, 0, plan)
    ends = end_ranks(kept_fit, RANKS, killed, get_killed, 3, plan)
    assert all(end.status for end in ends)
    assert max(losses(killed, 0)) < 9
    run_ranks(kept_fit, RANKS, killed, None, 0, plan)
    for rank in range(RANKS):
        assert losses(killed, rank) == losses(whole, rank)
