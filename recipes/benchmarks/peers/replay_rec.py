"""RePlay: SasRec with its full cross-entropy, parquet loader and metrics callback, as its documentation joins them."""

from importlib.metadata import version
from pathlib import Path

import lightning as L
import measure
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from replay.data import FeatureHint, FeatureSource, FeatureType
from replay.data.nn import TensorFeatureInfo, TensorFeatureSource, TensorSchema
from replay.data.nn.parquet import ParquetModule
from replay.nn.lightning import LightningModule
from replay.nn.lightning.callback import ComputeMetricsCallback
from replay.nn.lightning.optimizer import OptimizerFactory
from replay.nn.lightning.postprocessor import SeenItemsFilter
from replay.nn.sequential import SasRec
from replay.nn.transform.template import make_default_sasrec_transforms


def write(path: Path, columns: dict[str, list]) -> str:
    """Write a parquet file and return its path."""
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    return str(path)


def main() -> None:
    """Train, evaluate, report."""
    options = measure.begin(L.seed_everything)
    torch.set_num_threads(1)
    sequences, num_items = measure.histories(options.file)
    train, target = measure.split(sequences)
    users = list(range(len(train)))
    work = Path(options.work)
    train_path = write(work / "train.parquet", {"user_id": users, "item_id": train})
    truth = [np.array([item]) for item in target]
    columns = {"user_id": users, "item_id": train, "ground_truth": truth, "seen_ids": train}
    validate_path = write(work / "validate.parquet", columns)

    feature = TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        embedding_dim=measure.WIDTH,
        padding_value=num_items,
        cardinality=num_items,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")],
    )
    schema = TensorSchema([feature])
    most_seen = max(map(len, train))
    data = ParquetModule(
        batch_size={"train": measure.BATCH, "validate": measure.EVAL_BATCH},
        metadata={
            "train": {"user_id": {}, "item_id": {"shape": options.length + 1, "padding": num_items}},
            "validate": {
                "user_id": {},
                "item_id": {"shape": options.length, "padding": num_items},
                "ground_truth": {"shape": 1, "padding": -1},
                "seen_ids": {"shape": most_seen, "padding": -2},
            },
        },
        transforms=make_default_sasrec_transforms(schema),
        train_path=train_path,
        validate_path=validate_path,
    )
    model = SasRec.from_params(schema, measure.WIDTH, measure.HEADS, measure.BLOCKS, options.length, measure.DROPOUT)
    module = LightningModule(model, OptimizerFactory("adam", measure.RATE, betas=measure.BETAS))
    training, evaluation = measure.Clock(), measure.Clock()
    callback = ComputeMetricsCallback(["ndcg"], [10], [SeenItemsFilter(num_items)], num_items, verbose=False)
    trainer = L.Trainer(
        **measure.trainer_settings(options.epochs, options.work),
        callbacks=[measure.clocked(L.Callback, training)],
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    peak = measure.peak_megabytes()
    judge = L.Trainer(**measure.trainer_settings(1, options.work), callbacks=[callback])
    with evaluation.lap():
        (values,) = judge.validate(module, datamodule=data, verbose=False)
    export(module, data, work / "scores.npz", train, target)
    measure.report(
        training, peak, evaluation, values["ndcg@10"], {"replay-rec": version("replay-rec"), "torch": version("torch")}
    )


@torch.no_grad()
def export(
    module: L.LightningModule, data: ParquetModule, path: Path, train: list[np.ndarray], target: np.ndarray
) -> None:
    """Keep the states and item vectors that the model scores with, for the other side to rank by."""
    module.eval()
    states, users = [], []
    for batch in data.val_dataloader():
        batch = data.compiled_transforms["validate"](batch)
        states.append(module(batch)["hidden_states"][0][:, -1])
        users.append(batch["user_id"])
    order = torch.cat(users).argsort()
    np.savez(
        path,
        user=torch.cat(states)[order].numpy(),
        item=module.model.body.embedder.get_item_weights(None).numpy(),
        target=target,
        seen=np.concatenate(train),
        seen_lengths=np.array([len(items) for items in train]),
    )


if __name__ == "__main__":
    main()
