"""Ranks with different numbers of bags agree on one; those with the same need no exchange for that."""

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from lightning_mvrec.strategies import RowWiseAdagrad, TorchRecStrategy
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import trainer

ROWS = 10
WRONG = [ROWS]


class Looks(pl.LightningModule):
    """Looks ids up, round by round, in its only training step; notes what it found and how often ranks were asked."""

    def __init__(self, rounds):
        super().__init__()
        torch.manual_seed(0)
        self.table = EmbeddingBagCollection(
            [EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=ROWS, feature_names=["f"])]
        )
        self.whole = self.table.embedding_bags["t"].weight.detach().clone()
        self.rounds = rounds
        self.found, self.asked = [], 0

    def training_step(self, batch, batch_idx):
        reduce = dist.all_reduce

        def counted(*args, **kwargs):
            self.asked += 1
            return reduce(*args, **kwargs)

        dist.all_reduce = counted
        with torch.no_grad():
            for by_rank in self.rounds:
                before, mine = self.asked, by_rank[dist.get_rank()]
                self.found.append((self.look_up(mine), self.asked - before))
        dist.all_reduce = reduce
        return self.vectors([1, 2]).sum()

    def vectors(self, ids):
        values = torch.tensor(ids, dtype=torch.long)
        return self.table(KeyedJaggedTensor(["f"], values, lengths=torch.ones_like(values)))["f"]

    def look_up(self, ids):
        try:
            return torch.allclose(self.vectors(ids), self.whole[ids]) if ids else self.vectors(ids).shape == (0, 4)
        except ValueError as error:
            return str(error)

    def configure_optimizers(self):
        return None


def looked_up(rounds):
    """For each rank and round: whether it got its rows, or the message; and how many all-reduces it took."""

    def run():
        module = Looks(rounds)
        trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise")).fit(module, DataLoader([0]))
        return module.found

    return run_ranks(run, 2)


def of(*numbers):
    """As many different ids for each rank."""
    return [[(3 * rank + place) % ROWS for place in range(bags)] for rank, bags in enumerate(numbers)]


def test_ranks_that_are_even_do_not_ask_each_other():
    assert looked_up([of(3, 3), of(5, 5), of(2, 2)]) == [[(True, 0)] * 3] * 2


def test_ranks_ask_each_other_until_they_are_even():
    numbers = [(3, 3), (3, 5), (4, 1), (0, 2), (6, 6), (6, 6), (1, 1), (1, 1), (2, 2), (2, 2)]
    # The first even ones after others are asked too; one bag each may stand for a wrong id, so it is asked about.
    asked = [0, 1, 1, 1, 1, 0, 1, 1, 1, 0]
    assert looked_up([of(*pair) for pair in numbers]) == [[(True, times) for times in asked]] * 2


@pytest.mark.parametrize("before", [of(2, 2), of(2, 3)], ids=["even", "uneven"])
@pytest.mark.parametrize(
    "ids",
    [([1, 2, 3], [4, *WRONG]), ([1], WRONG), ([1, 2], WRONG), ([1], [2, *WRONG]), ([], WRONG), ([1, 2], [3, *WRONG])],
)
def test_an_id_outside_its_table_is_told_to_all_ranks(before, ids):
    first, second = looked_up([before, ids, of(2, 2)])
    assert [first[0][0], first[2][0], second[0][0], second[2][0]] == [True] * 4
    assert first[1][0] == "table: another rank has an id outside its table; its message says which"
    assert second[1][0] == "table 't', feature 'f': ids must be in [0, 10), got 10 on rank 1"
