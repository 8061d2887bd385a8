"""A rank, or every rank, without a bag or without an id: the step is that of the unsharded tables, and nobody waits."""

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from lightning_mvrec.strategies import SGD, TorchRecStrategy, plain_module
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import trainer

ROWS, DIM = 12, 4
#: Lengths of the histories of each global batch's users, and for each number of ranks how many users each rank takes.
BATCHES = [[2, 1, 0, 3], [1, 2, 2, 1], [3, 0, 1, 1], [], [0, 0], [0, 0, 2, 2], [1, 1, 1, 1]]
TAKEN = {1: [[4], [4], [4], [0], [2], [4], [4]], 2: [[2, 2], [4, 0], [0, 4], [0, 0], [1, 1], [2, 2], [0, 4]]}


class Bags(pl.LightningModule):
    """Two tables; the loss is a sum over users, so that users and ranks without any add nothing."""

    def __init__(self):
        super().__init__()
        self.embeddings = self.collection()
        self.tower = nn.Linear(2 * DIM, 1)

    def collection(self):
        return EmbeddingBagCollection(
            [
                EmbeddingBagConfig(num_embeddings=ROWS, embedding_dim=DIM, name=name, feature_names=[feature])
                for name, feature in (("item", "history"), ("user", "who"))
            ]
        )

    def forward(self, ids):
        return self.tower(self.embeddings(ids).values()).squeeze(1)

    def training_step(self, ids, batch_idx):
        return self.loss(ids) * dist.get_world_size()  # DDP and TorchRec take the mean over ranks

    def loss(self, ids):
        scores = self(ids)
        assert len(scores) == ids.stride()
        return scores.square().sum()

    def validation_step(self, ids, batch_idx):
        assert self.loss(ids).isfinite()

    def configure_optimizers(self):
        return torch.optim.SGD(self.tower.parameters(), lr=0.05)


class Sequences(Bags):
    def collection(self):
        return EmbeddingCollection(
            tables=[
                EmbeddingConfig(num_embeddings=ROWS, embedding_dim=DIM, name=name, feature_names=[feature])
                for name, feature in (("item", "history"), ("user", "who"))
            ]
        )

    def forward(self, ids):
        found = self.embeddings(ids)
        sums = []
        for name in ("history", "who"):
            lengths = found[name].lengths()
            assert len(lengths) == ids.stride()
            user = torch.repeat_interleave(lengths)
            sums.append(torch.zeros(len(lengths), DIM).index_add(0, user, found[name].values()))
        return self.tower(torch.cat(sums, dim=1)).squeeze(1)


def whole_batches():
    """(history ids by user, user ids) of each global batch; in the fifth neither feature has an id."""
    made, event = [], 0
    for number, lengths in enumerate(BATCHES):
        users = []
        for user, length in enumerate(lengths):
            users.append(
                ([(7 * (event + i)) % ROWS for i in range(length)], [] if number == 4 else [(5 * user) % ROWS])
            )
            event += length
        made.append(users)
    return made


def kjt(users):
    ids = [[event for user in users for event in user[feature]] for feature in (0, 1)]
    lengths = [[len(user[feature]) for user in users] for feature in (0, 1)]
    return KeyedJaggedTensor(
        ["history", "who"],
        torch.tensor(ids[0] + ids[1], dtype=torch.int64),
        lengths=torch.tensor(lengths[0] + lengths[1], dtype=torch.int64),
    )


def reference(kind):
    """The unsharded module in a loop of its own; batches without a user or an id change nothing."""
    pl.seed_everything(4, verbose=False)
    module = kind()
    dense = torch.optim.SGD(module.tower.parameters(), lr=0.05)
    tables = torch.optim.SGD(module.embeddings.parameters(), lr=0.5)
    for users in whole_batches():
        if not users:
            continue
        dense.zero_grad()
        tables.zero_grad()
        module.loss(kjt(users)).backward()
        dense.step()
        tables.step()
    return module.state_dict()


def train(kind, **settings):
    pl.seed_everything(4, verbose=False)
    module, rank, size = kind(), dist.get_rank(), dist.get_world_size()
    mine = []
    for users, taken in zip(whole_batches(), TAKEN[size], strict=True):
        first = sum(taken[:rank])
        mine.append(kjt(users[first : first + taken[rank]]))
    clip = settings.pop("clip", None)
    runner = trainer(TorchRecStrategy(SGD(lr=0.5), **settings), gradient_clip_val=clip)
    runner.fit(module, DataLoader(mine, batch_size=None))
    assert runner.global_step == len(BATCHES)
    if not settings.get("update_in_step") and clip is None:
        runner.validate(module, DataLoader(mine, batch_size=None), verbose=False)
    return plain_module(runner).state_dict()


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise", "column_wise"])
@pytest.mark.parametrize("kind", [Bags, Sequences])
def test_ranks_and_batches_without_bags_or_ids_train_as_unsharded_tables(kind, sharding):
    expected = reference(kind)

    def run():
        settings = [{}, {"update_in_step": True}, {"clip": 1e6}]
        if dist.get_world_size() > 1:
            settings.append({"look_ahead": True})
        return [train(kind, sharding=sharding, **more) for more in settings]

    for size in (1, 2):
        for found in run_ranks(run, size)[0]:
            for key, value in expected.items():
                assert torch.allclose(found[key], value, rtol=0, atol=1e-6), (size, key)


def test_replicated_tables_train_alike():
    found, expected = run_ranks(lambda: train(Sequences, replicate="all"), 2)[0], reference(Sequences)
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=0, atol=1e-6), key
