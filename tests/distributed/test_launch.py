import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed.launch import RankError, run_ranks


def test_results_come_back_by_rank():
    def double(value):
        total = torch.tensor([float(value + dist.get_rank())])
        dist.all_reduce(total)
        return dist.get_rank(), total

    assert run_ranks(double, 2, 10) == [(0, torch.tensor([21.0])), (1, torch.tensor([21.0]))]


def test_an_exception_on_one_rank_is_raised_with_its_traceback():
    def fail():
        if dist.get_rank() == 1:
            raise KeyError("lost key")
        dist.barrier()

    with pytest.raises(RankError, match=r"rank 1 failed[\s\S]*lost key"):
        run_ranks(fail, 2)


def test_ranks_that_hang_are_killed():
    start = time.monotonic()
    with pytest.raises(RankError, match="did not end within 1 s"):
        run_ranks(lambda: time.sleep(60), 2, timeout=1)
    assert time.monotonic() - start < 50


def test_the_parent_stays_without_a_process_group():
    run_ranks(os.getpid, 1)
    assert not dist.is_initialized()
