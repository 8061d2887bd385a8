import torch
import torch.distributed as dist

from lightning_mvrec.training.gather import gather_rows, sum_over_ranks
from tests.distributed.launch import run_ranks


def test_one_process_keeps_its_rows():
    (rows,), own = gather_rows(torch.arange(3))
    assert rows.tolist() == [0, 1, 2]
    assert own == slice(0, 3)


def test_uneven_ranks_see_all_rows_and_know_their_own():
    def gather():
        rank = dist.get_rank()
        count = [3, 0, 1][rank]
        (number, wide), own = gather_rows(torch.arange(count) + 10 * rank, torch.full((count, 2), float(rank)))
        return number.tolist(), wide[:, 1].tolist(), number[own].tolist(), int(sum_over_ranks(torch.tensor(rank)))

    for rank, (number, wide, own, total) in enumerate(run_ranks(gather, 3)):
        assert number == [0, 1, 2, 20]
        assert wide == [0, 0, 0, 2]
        assert own == [[0, 1, 2], [], [20]][rank]
        assert total == 0 + 1 + 2
