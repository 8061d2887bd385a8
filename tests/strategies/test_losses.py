"""A loss that is not finite stops the run before it reaches a table."""

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist

from lightning_mvrec.strategies import RowWiseAdagrad, TorchRecStrategy
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import InInit, loader, trainer


class Spoilt(InInit):
    """Its third loss on the last rank is not finite."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if batch_idx == 2 and dist.get_rank() == dist.get_world_size() - 1 else loss


def spoilt_fit(value, **arguments):
    pl.seed_everything(1, verbose=False)
    runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", **arguments))
    message = None
    try:
        runner.fit(Spoilt(value), loader())
    except ValueError as error:
        message = str(error)
    return message, torch.isfinite(runner.strategy.local_rows("item")[1]).all().item()


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_stops_all_ranks_before_tables_are_poisoned(size, value):
    messages = run_ranks(spoilt_fit, size, float(value))
    for message, finite in messages:
        assert f"got {value} in epoch 0, batch 2 on rank {size - 1}" in message
        assert message == messages[0][0]
        assert finite


def test_without_the_check_tables_are_poisoned():
    assert run_ranks(lambda: spoilt_fit(float("nan"), check_loss=False), 1) == [(None, False)]
