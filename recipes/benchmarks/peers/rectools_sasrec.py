"""RecTools: SASRecModel with its softmax loss, ``fit`` and ``recommend``."""

from importlib.metadata import version

import measure
import numpy as np
import pandas as pd
import pytorch_lightning as pl  # noqa: TID251 - RecTools is written for this one
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet


def main() -> None:
    """Train, evaluate, report."""
    options = measure.begin(pl.seed_everything)
    torch.set_num_threads(1)
    sequences, _ = measure.histories(options.file)
    train, target = measure.split(sequences)
    length = np.array([len(items) for items in train])
    # The order within a user is all that the file says; days stand for it.
    step = np.concatenate([np.arange(number) for number in length])
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(train)), length),
            Columns.Item: np.concatenate(train),
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(step, unit="D"),
        }
    )
    dataset = Dataset.construct(frame)
    training, evaluation = measure.Clock(), measure.Clock()

    def trainer() -> pl.Trainer:
        return pl.Trainer(
            **measure.trainer_settings(options.epochs, options.work),
            callbacks=[measure.clocked(pl.Callback, training)],
        )

    model = SASRecModel(
        n_blocks=measure.BLOCKS,
        n_heads=measure.HEADS,
        n_factors=measure.WIDTH,
        dropout_rate=measure.DROPOUT,
        session_max_len=options.length,
        loss="softmax",
        lr=measure.RATE,
        batch_size=measure.BATCH,
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=trainer,
        recommend_batch_size=measure.EVAL_BATCH,
        recommend_torch_device="cpu",
    )
    model.fit(dataset)
    peak = measure.peak_megabytes()
    users = np.arange(len(train))
    with evaluation.lap():
        table = model.recommend(users, dataset, k=10, filter_viewed=True)
        lists = table.sort_values([Columns.User, Columns.Rank]).groupby(Columns.User)[Columns.Item].agg(list)
        quality = measure.ndcg([np.array(lists.get(user, [])) for user in users], target)
    measure.report(training, peak, evaluation, quality, {"rectools": version("rectools"), "torch": version("torch")})


if __name__ == "__main__":
    main()
