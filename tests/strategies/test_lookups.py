"""The columns of a sharded bag collection's result lie where those of the unsharded one lie."""

import itertools

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from lightning_mvrec import TorchRecStrategy
from lightning_mvrec.strategies import SGD, Adagrad
from tests.distributed.launch import run_ranks

NAMES = ["first", "second", "third"]


def ids(users: int) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(NAMES, torch.arange(3 * users) % 7, lengths=torch.ones(3 * users, dtype=torch.int64))


class Read(pl.LightningModule):
    """Three tables of different widths, pooled by sum, mean and sum; a dense layer reads all columns at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        poolings = (PoolingType.SUM, PoolingType.MEAN, PoolingType.SUM)
        self.bags = EmbeddingBagCollection(
            [
                EmbeddingBagConfig(8, 4 * (number + 1), name, feature_names=[name], pooling=pooling)
                for number, (name, pooling) in enumerate(zip(NAMES, poolings, strict=True))
            ]
        )
        self.top = torch.nn.Linear(24, 1)

    def training_step(self, batch, batch_idx):
        return self.top(self.bags(batch).values()).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.top.parameters(), lr=0.1)


def columns(optimizer, sharding, folder):
    module, users = Read(), 3
    expected = module.bags(ids(users))
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=TorchRecStrategy(optimizer, sharding=sharding),
        max_epochs=1,
        default_root_dir=folder,
        limit_train_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader([ids(users)], batch_size=None))
    found = module.bags(ids(users))
    return list(found.keys()) == list(expected.keys()) and torch.allclose(found.values(), expected.values())


OPTIMIZERS = {"one": SGD(lr=0.1), "two": {"first": SGD(lr=0.1), "second": Adagrad(lr=0.1), "third": SGD(lr=0.2)}}


@pytest.mark.parametrize(("kind", "sharding"), itertools.product(OPTIMIZERS, ("row_wise", "table_wise", "column_wise")))
def test_columns_keep_their_places_under_every_plan(kind, sharding, tmp_path):
    assert run_ranks(lambda: columns(OPTIMIZERS[kind], sharding, tmp_path), 2) == [True, True]
