"""LightningModules as somebody writes them who has never heard of this package, and batches for them.

The global batch is the same for every number of ranks: a rank takes its consecutive part of the users.
"""

import tempfile
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from lightning_mvrec.strategies import TorchRecStrategy

ITEMS, USERS, DIM, BATCH = 50, 31, 8, 8


def collection(device: str = "cpu") -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        [
            EmbeddingBagConfig(num_embeddings=ITEMS, embedding_dim=DIM, name="item", feature_names=["history"]),
            EmbeddingBagConfig(num_embeddings=USERS, embedding_dim=DIM, name="user", feature_names=["who"]),
        ],
        device=torch.device(device),
    )


class InInit(pl.LightningModule):
    """Tables built in ``__init__``."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.build()
        self.dropout = nn.Dropout(dropout)
        self.losses: list[float] = []

    def build(self) -> None:
        self.embeddings = collection()
        self.tower = nn.Sequential(nn.Linear(2 * DIM, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, batch):
        return self.tower(self.dropout(self.embeddings(batch["ids"]).values())).squeeze(1)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.binary_cross_entropy_with_logits(self(batch), batch["label"])
        self.log("loss", loss, batch_size=len(batch["label"]))
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        loss = nn.functional.binary_cross_entropy_with_logits(self(batch), batch["label"])
        self.log("val_loss", loss, batch_size=len(batch["label"]), sync_dist=True)

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return self(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class InConfigureModel(InInit):
    """Tables built in ``configure_model``, on ``meta``: no rank ever holds a whole table."""

    def build(self) -> None:
        self.embeddings = None

    def configure_model(self) -> None:
        if self.embeddings is None:
            self.embeddings = collection("meta")
            self.tower = nn.Sequential(nn.Linear(2 * DIM, 16), nn.ReLU(), nn.Linear(16, 1))


def batches(steps: int = 6, seed: int = 1, uneven: bool = False, size: int = BATCH) -> list[dict[str, Any]]:
    """This rank's part of ``steps`` global batches; with ``uneven`` rank 0 takes three quarters of the users.

    Histories have 0 to 5 events; in the third batch no user of the second half has any.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(seed)
    made = []
    for step in range(steps):
        lengths = torch.randint(0, 6, (size,), generator=generator)
        if step == 2:
            lengths[size // 2 :] = 0
        values = torch.randint(0, ITEMS, (int(lengths.sum()),), generator=generator)
        user = torch.randint(0, USERS, (size,), generator=generator)
        label = torch.randint(0, 2, (size,), generator=generator).float()
        bounds = [0, size * 3 // 4, size] if uneven and world == 2 else [size * r // world for r in range(world + 1)]
        mine = slice(bounds[rank], bounds[rank + 1])
        first = int(lengths[: mine.start].sum())
        history = values[first : first + int(lengths[mine].sum())]
        made.append(
            {
                "ids": KeyedJaggedTensor(
                    ["history", "who"],
                    torch.cat([history, user[mine]]),
                    lengths=torch.cat([lengths[mine], torch.ones_like(user[mine])]),
                ),
                "label": label[mine],
            }
        )
    return made


def loader(*args: Any, **kwargs: Any) -> DataLoader:
    return DataLoader(batches(*args, **kwargs), batch_size=None)


def trainer(strategy: Any = None, folder: str | None = None, **kwargs: Any) -> pl.Trainer:
    """A quiet Trainer on all ranks."""
    warnings.simplefilter("ignore")
    defaults = {
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder or tempfile.mkdtemp(prefix="stranger-"),
    }
    return pl.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=strategy or TorchRecStrategy(),
        **{**defaults, **kwargs},
    )


def mean_over_ranks(losses: list[float]) -> list[float]:
    total = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).tolist()


class TablesOnly(InInit):
    """No dense parameters."""

    def build(self):
        super().build()
        self.tower = nn.Identity()

    def forward(self, batch):
        return self.embeddings(batch["ids"]).values().sum(dim=1)


class Together(torch.optim.Optimizer):
    """Two optimizers as one."""

    def __init__(self, first, second):
        self.members = (first, second)
        super().__init__(
            [weight for one in self.members for group in one.param_groups for weight in group["params"]], {}
        )

    def step(self, closure=None):
        loss = closure()
        for member in self.members:
            member.step()
        return loss
