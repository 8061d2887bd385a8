"""This package: the library's own path, from the prepared store through Lightning to the ranking evaluation."""

import multiprocessing
from functools import partial
from importlib.metadata import version
from pathlib import Path

import lightning as L
import measure
import numpy as np
import torch

import lightning_mvrec
from lightning_mvrec import EventsDataModule, MultiViewModule, TorchRecStrategy
from lightning_mvrec.data import FullCatalogue, LastWindow, LeaveOneOut
from lightning_mvrec.data.sources import MovieLens1MSequence
from lightning_mvrec.encoders import AttentionEncoder
from lightning_mvrec.functional import count_at_least, dot_scores, to_ranks
from lightning_mvrec.fusion import GateFusion
from lightning_mvrec.losses import FullSoftmaxLoss
from lightning_mvrec.metrics import NDCG
from lightning_mvrec.models import MultiViewRecommender


def main() -> None:
    """Train, evaluate, report."""
    options = measure.begin(L.seed_everything)
    torch.set_num_threads(1)
    data = EventsDataModule(
        source=MovieLens1MSequence(),
        root=str(Path(options.file).parent),
        targets=["rating"],
        split=LeaveOneOut(),
        store_dir=options.work,
        negatives=FullCatalogue(),
        windows=LastWindow(context=0),  # each user's last L + 1 items, as the others read them
        max_len=options.length,
        max_targets=options.length,
        min_history=1,
        batch_size=measure.BATCH,
        eval_batch_size=measure.EVAL_BATCH,
        filter_seen=["rating"],
        seed=options.seed,
    )
    # In a process of its own: the peers' files are prepared by other means, so neither side's preparation counts.
    preparation = multiprocessing.get_context("fork").Process(target=data.prepare_data)
    preparation.start()
    preparation.join()
    encoder = partial(
        AttentionEncoder, layers=measure.BLOCKS, heads=measure.HEADS, dropout=measure.DROPOUT, max_len=options.length
    )
    model = partial(
        MultiViewRecommender,
        encoders={"rating": encoder},
        fusion=partial(GateFusion, project=False),
        embedding_dim=measure.WIDTH,
        user=False,
        item_fields=[],
        init_std=0.02,  # RePlay draws its items with 0.024; ours start at length 1 otherwise, which learns later
    )
    module = MultiViewModule(model, FullSoftmaxLoss(), partial(torch.optim.Adam, lr=measure.RATE, betas=measure.BETAS))
    training, evaluation = measure.Clock(), measure.Clock()
    trainer = L.Trainer(
        **measure.trainer_settings(options.epochs, options.work),
        strategy=TorchRecStrategy(replicate="all"),
        callbacks=[measure.clocked(L.Callback, training)],
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    peak = measure.peak_megabytes()
    judge = L.Trainer(**measure.trainer_settings(1, options.work), strategy=TorchRecStrategy(replicate="all"))
    with evaluation.lap():
        (values,) = judge.validate(module, datamodule=data, verbose=False)
    versions = {"lightning-mvrec": lightning_mvrec.__version__, "torch": version("torch")}
    of_the_peer = rank_by(Path(options.work) / "scores.npz")
    measure.report(training, peak, evaluation, values["val/ndcg@10"], versions, **of_the_peer)


def rank_by(path: Path) -> dict[str, float]:
    """Rank by the states and item vectors that RePlay's model scored with, where it ran before."""
    if not path.is_file():
        return {}
    scores = {name: torch.from_numpy(np.asarray(values)) for name, values in np.load(path).items()}
    # Row 0 is nobody's item here: the peer's items move up by one.
    item_ID = torch.nn.functional.pad(scores["item"], (0, 0, 1, 0))
    target_B = scores["target"] + 1
    score_B = dot_scores(scores["user"], item_ID[target_B])
    ahead_B = count_at_least(
        scores["user"], item_ID, score_B, target_B, seen_row=scores["seen"] + 1, seen_lengths_B=scores["seen_lengths"]
    )
    metric = NDCG(10)
    metric.update(to_ranks(ahead_B, target_B))
    return {"ndcg@10 of RePlay's scores": float(metric.compute())}


if __name__ == "__main__":
    main()
