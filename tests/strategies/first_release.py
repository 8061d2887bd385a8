"""The run that wrote ``data/format1``: a fit of a few steps on 1 and on 2 ranks, saved inside its first epoch.

It was run once, with the code at cbf1378, and must stay as it is: ``python -m tests.strategies.first_release FOLDER``.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from lightning_mvrec.strategies import Adagrad, RowWiseAdagrad, TorchRecStrategy, plain_module
from tests.distributed.launch import run_ranks

#: Steps before the save, and in all; an epoch has 4.
BEFORE, STEPS = 3, 8
TABLES = {"item": (10, 4), "user": (6, 4), "tag": (5, 4)}


def bags(*names: str) -> EmbeddingBagCollection:
    configs = [
        EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=dim, feature_names=[name])
        for name, (rows, dim) in TABLES.items()
        if name in names
    ]
    return EmbeddingBagCollection(configs, device=torch.device("meta"))


class First(pl.LightningModule):
    """Two sharded tables with different optimizers, a replicated one, and a dense layer that follows a schedule."""

    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"name": "first"})
        self.sharded = None
        self.losses = []

    def configure_model(self):
        if self.sharded is None:
            self.sharded, self.replicated = bags("item", "user"), bags("tag")
            self.top = torch.nn.Linear(12, 1)

    def training_step(self, batch, batch_idx):
        ids, tags, label = batch
        bags = torch.cat([self.sharded(ids).values(), self.replicated(tags).values()], dim=1)
        loss = (self.top(bags).squeeze(1) - label).square().mean()
        self.losses.append(float(loss))
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5), "interval": "step"}]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = {"steps": self.global_step, "mean": torch.tensor([1.5])}


def batches():
    """This rank's part of 4 global batches of 4 users."""
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(7)
    made = []
    for _ in range(4):
        item, user, tag = (torch.randint(rows, (4, 2), generator=generator) for rows, _ in TABLES.values())
        label = torch.rand(4, generator=generator)
        mine = slice(4 * rank // world, 4 * (rank + 1) // world)
        twos = torch.full((len(label[mine]),), 2)
        ids = torch.cat([item[mine].flatten(), user[mine].flatten()])
        made.append(
            (
                KeyedJaggedTensor(["item", "user"], ids, lengths=torch.cat([twos, twos])),
                KeyedJaggedTensor(["tag"], tag[mine].flatten(), lengths=twos),
                label[mine],
            )
        )
    return made


class Position:
    """A loader that goes on where it was."""

    def __init__(self):
        self.batches, self.position = batches(), 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while self.position < len(self.batches):
            self.position += 1
            yield self.batches[self.position - 1]
        self.position = 0

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Keep(pl.Callback):
    """Save under a relative name, and remember what must be read."""

    def __init__(self, path):
        self.path, self.found = path, {}

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step == BEFORE:
            trainer.save_checkpoint(self.path)
            self.found = {key: value.tolist() for key, value in plain_module(module).state_dict().items()}

    def state_dict(self):
        return {"words": ["a", "b"], "number": 2}


def fit(resume=None, callbacks=(), steps=STEPS):
    """Return the module, its mean losses over ranks, and the trainer."""
    pl.seed_everything(11, verbose=False)
    module = First()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=TorchRecStrategy(
            {"item": Adagrad(lr=0.1), "user": RowWiseAdagrad(lr=0.2), "tag": Adagrad(lr=0.3)},
            sharding="row_wise",
            replicate=["replicated"],
        ),
        max_epochs=None,
        max_steps=steps,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tempfile.mkdtemp(prefix="first-"),
    )
    trainer.fit(module, Position(), ckpt_path=resume)
    losses = torch.tensor(module.losses, dtype=torch.float64)
    dist.all_reduce(losses)
    return module, (losses / dist.get_world_size()).tolist(), trainer


def make(path):
    """Write a checkpoint and return what must be read from it, and how the run went on."""
    keep = Keep(path)
    _, losses, _ = fit(callbacks=[keep])
    return {"weights": keep.found, "losses": losses[BEFORE:]}


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True)
    os.chdir(sys.argv[1])
    expected = {f"ranks{size}": run_ranks(make, size, f"ranks{size}.ckpt")[0] for size in (1, 2)}
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")
