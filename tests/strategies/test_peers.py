"""Peers give each other the gradients of their rows: the next update is that of all, the same on each."""

import pytest
import torch.distributed as dist

from lightning_mvrec.strategies.peers import share
from lightning_mvrec.strategies.replicas import Replicas, make_replicas
from tests.distributed.launch import run_ranks
from tests.strategies.test_held import held_kernel, look_up


@pytest.mark.parametrize("mode", ["SUM", "NONE"])
def test_an_update_is_the_mean_over_peers_of_the_gradients_of_each_row(mode):
    """Two tables of 5 rows; rank 0 looks up twice, rank 1 once, the second table on rank 0 only."""

    def run():
        replicas = make_replicas(2)
        assert replicas.size == 1
        kernel, held = held_kernel(mode, 4, 4, replicated=True)
        if dist.get_rank() == 0:
            look_up(kernel, [1, 2, 4], None, [1, 1, 1, 0]).sum().backward()
            (look_up(kernel, [1, 3], None, [1, 0, 1, 0]) * 10).sum().backward()
        else:
            (look_up(kernel, [2, 0], None, [1, 1, 0, 0]) * 100).sum().backward()
        share([held], replicas)
        norm = held.square_norm().item()
        share([held], replicas)  # clipping has done so before a step
        held.update(lambda: None)
        share([held], replicas)
        held.update(lambda: None)  # nothing is left for another step
        return norm, [weight[:, 0].tolist() for weight in kernel.split_embedding_weights()]

    one, two = [100 / 2, (1 + 10) / 2, (1 + 100) / 2, 0, 0], [0, 0, 0, 10 / 2, 1 / 2]
    for norm, (first, second) in run_ranks(run, 2):
        assert first == pytest.approx([-value for value in one])
        assert second == pytest.approx([-value for value in two])
        assert norm == pytest.approx(4 * sum(value**2 for value in [*one, *two]))


def test_cleared_gradients_are_those_of_peers_too():
    def run():
        replicas = make_replicas(2)
        kernel, held = held_kernel("SUM", 4, replicated=True)
        look_up(kernel, [1], None, [1]).sum().backward()
        share([held], replicas)
        held.clear_gradients()
        share([held], replicas)
        held.update(lambda: None)
        return [weight.any().item() for weight in kernel.split_embedding_weights()]

    assert run_ranks(run, 2) == [[False], [False]]


def test_groups_are_consecutive_ranks_and_must_be_equal():
    def run():
        with pytest.raises(ValueError, match="replica_groups must divide the number of ranks, got 3 groups of 4 ranks"):
            make_replicas(3)
        made = make_replicas(2)
        assert isinstance(made, Replicas)
        return dist.get_process_group_ranks(made.group), dist.get_process_group_ranks(made.peers), made.mine(5)

    assert run_ranks(run, 4) == [
        ([0, 1], [0, 2], (0, 2)),
        ([0, 1], [1, 3], (0, 2)),
        ([2, 3], [0, 2], (2, 5)),
        ([2, 3], [1, 3], (2, 5)),
    ]
