"""How long a save holds up the training, waited for and in the background.

python recipes/benchmarks/checkpoint.py --processes 2

The last line is one JSON object; times are medians over saves, or steps, in milliseconds.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from lightning_mvrec.strategies import Adagrad, TorchRecStrategy
from lightning_mvrec.strategies.checkpoint import is_checkpoint


class Bags(pl.LightningModule):
    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.config = EmbeddingBagConfig(name="item", num_embeddings=rows, embedding_dim=dim, feature_names=["history"])
        self.tables: EmbeddingBagCollection | None = None

    def configure_model(self) -> None:
        if self.tables is None:
            self.tables = EmbeddingBagCollection([self.config], device=torch.device("meta"))
            self.top = torch.nn.Linear(self.config.embedding_dim, 1)

    def training_step(self, ids: KeyedJaggedTensor, batch_idx: int) -> torch.Tensor:
        return self.top(self.tables(ids).values()).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Saves(pl.Callback):
    """Save, take the time until the call returns, and that of each step until the checkpoint is whole."""

    def __init__(self, folder: Path, saves: int, apart: int) -> None:
        self.folder, self.saves, self.apart = folder, saves, apart
        self.blocked: list[float] = []
        self.blocked_cpu: list[float] = []  # of the thread that trains: what other programs do does not change it
        self.steps: dict[bool, list[float]] = {False: [], True: []}  # while nothing is written, while something is
        self.whole: list[float] = []
        self.path: Path | None = None
        self.begun = self.step_begun = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
        self.step_begun = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        now = time.perf_counter()
        self.steps[self.path is not None].append(now - self.step_begun)
        if self.path is not None and is_checkpoint(self.path):
            self.whole.append(now - self.begun)
            trainer.strategy.remove_checkpoint(self.path)
            self.path = None
        if trainer.global_step % self.apart == 0 and len(self.blocked) < self.saves:
            self.path = self.folder / f"{trainer.global_step}.ckpt"
            trainer.strategy.barrier()
            self.begun, cpu = time.perf_counter(), time.thread_time()
            trainer.save_checkpoint(self.path)
            self.blocked.append(time.perf_counter() - self.begun)
            self.blocked_cpu.append(time.thread_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--saves", type=int, default=6, help="the first is not counted")
    parser.add_argument("--apart", type=int, default=150, help="steps between two saves")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary directory by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, ignore_cleanup_errors=True) as folder:
        waited, meanwhile = (measure(args, Path(folder), background) for background in (False, True))
    if waited and meanwhile:
        versions = {name: version(name) for name in ("torch", "torchrec", "lightning")}
        result = {
            "processes": args.processes,
            "rows": args.rows,
            "dim": args.dim,
            "waited": waited,
            "async": meanwhile,
            "blocked_async_over_waited": round(meanwhile["blocked"] / waited["blocked"], 3),
            "blocked_cpu_async_over_waited": round(meanwhile["blocked_cpu"] / waited["blocked_cpu"], 3),
            "versions": {"python": platform.python_version(), **versions},
        }
        print(json.dumps(result))


def measure(args: argparse.Namespace, folder: Path, background: bool) -> dict[str, float]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 50, (512,), generator=generator)
    batches = [
        KeyedJaggedTensor(["history"], ids, lengths=lengths)
        for ids in torch.randint(args.rows, (8, int(lengths.sum())), generator=generator)
    ] * (args.apart * (args.saves + 1) // 8)
    saves = Saves(folder, args.saves, args.apart)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=args.processes,
        strategy=TorchRecStrategy(Adagrad(lr=0.01), sharding="row_wise", async_save=background),
        max_epochs=1,
        callbacks=[saves],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.fit(Bags(args.rows, args.dim), DataLoader(batches, batch_size=None))
    if not trainer.is_global_zero:
        return {}
    times = {
        "blocked": saves.blocked[1:],
        "blocked_cpu": saves.blocked_cpu[1:],
        "whole": saves.whole[1:],
        "step": saves.steps[False],
        "step_while_writing": saves.steps[True],
    }
    found = {name: round(1e3 * statistics.median(taken), 2) for name, taken in times.items()}
    print(
        f"async_save={background}, {args.processes} processes: training held up {found['blocked']:.0f} ms "
        f"({found['blocked_cpu']:.0f} ms CPU), whole after {found['whole']:.0f} ms, a step {found['step']:.1f} ms, "
        f"while writing {found['step_while_writing']:.1f} ms",
        flush=True,
    )
    return found


if __name__ == "__main__":
    main()
