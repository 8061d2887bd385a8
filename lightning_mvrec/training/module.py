"""The LightningModule around any recommender of the package.

B users, K targets a user, R rows (one (user, target) pair each), V views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from lightning_mvrec.batch import MultiViewBatch
from lightning_mvrec.losses.base import Loss
from lightning_mvrec.models.base import ModelOutput, Recommender
from lightning_mvrec.schema import Schema
from lightning_mvrec.strategies import TableOptimizer
from lightning_mvrec.training.callbacks import show_resumed_epoch
from lightning_mvrec.training.evaluation import Evaluation, PointwiseEvaluation, RankingEvaluation
from lightning_mvrec.training.view_weights import ViewWeights


class MultiViewModule(L.LightningModule):
    """Train and evaluate a recommender on :class:`~lightning_mvrec.batch.MultiViewBatch` batches.

    The model is built in ``configure_model`` from the schema of the prepared data, so that no size is typed twice.

    Args:
        model: Builds the model from a schema.
        loss: What to minimise.
        optimizer: Builds the optimizer of the dense parameters, and of every table that no table optimizer trains.
        scheduler: Builds a learning-rate schedule of that optimizer, stepped once an epoch; None for a constant rate.
        table_optimizer: Optimizer of the embedding tables, one for all or by table name, read by
            ``TorchRecStrategy``. None leaves it to the strategy's own argument.
        evaluation: How validation and test are measured; by default a ranking of the whole catalogue for implicit
            feedback, else AUC and log-loss (binary labels) or MAE and RMSE (numeric ones).
        schema: The data's schema; by default that of the trainer's data module.

    Example:
        >>> from functools import partial
        >>> from lightning_mvrec.encoders import DecayEncoder
        >>> from lightning_mvrec.fusion import GateFusion
        >>> from lightning_mvrec.losses import FullSoftmaxLoss
        >>> from lightning_mvrec.models import MultiViewRecommender
        >>> model = partial(MultiViewRecommender, encoders={"click": DecayEncoder}, fusion=GateFusion)
        >>> module = MultiViewModule(model, FullSoftmaxLoss())
    """

    def __init__(
        self,
        model: Callable[[Schema], Recommender],
        loss: Loss,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.Adam,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        table_optimizer: TableOptimizer | dict[str, TableOptimizer] | None = None,
        evaluation: Evaluation | None = None,
        schema: Schema | None = None,
    ) -> None:
        super().__init__()
        self.build_model = model
        self.loss = loss
        self.build_optimizer = optimizer
        self.build_scheduler = scheduler
        self.table_optimizer = table_optimizer
        self.schema = schema
        self._evaluation = evaluation
        self.model: Recommender | None = None
        self.evaluations = nn.ModuleDict()

    def configure_model(self) -> None:
        """Build the model, once, from the data's schema."""
        if self.model is not None:
            return
        if self.schema is None:
            self.schema = getattr(getattr(self.trainer, "datamodule", None), "schema", None)
        if self.schema is None:
            raise ValueError(
                "schema must be known before the model can be built: fit with an EventsDataModule, or pass "
                "MultiViewModule(schema=...)"
            )
        self.model = self.build_model(self.schema)
        evaluation = self._evaluation or _default_evaluation(self.schema)
        for stage in ("val", "test"):
            self.evaluations[stage] = deepcopy(evaluation)
            self.evaluations[f"{stage}_weights"] = ViewWeights(self.model.view_names)

    def configure_optimizers(self) -> Any:
        """Build the dense optimizer and its schedule."""
        optimizer = self.build_optimizer(self.parameters())
        if self.build_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.build_scheduler(optimizer)}

    def configure_table_optimizers(self) -> TableOptimizer | dict[str, TableOptimizer] | None:
        """Tell ``TorchRecStrategy`` how to train the tables: those of a dictionary that the model has.

        A single-view model has no table of a view it does not read, and its recipe may name it all the same.

        Raises:
            ValueError: If a name is that of no table which the data could need.
        """
        if not isinstance(self.table_optimizer, dict):
            return self.table_optimizer
        schema, model = self.schema, self.model
        assert schema is not None
        assert model is not None
        possible = {"item_id", "item_bias", "user_id", *(f"bag_{view.name}" for view in schema.views)}
        possible |= {f"item_{field.name}" for field in schema.item_fields}
        possible |= {f"user_{field.name}" for field in schema.user_fields}
        if unknown := sorted(set(self.table_optimizer) - possible):
            raise ValueError(f"table_optimizer must name tables of the data {sorted(possible)}, got {unknown}")
        present = {config.name for part in model.modules() for config in _table_configs(part)}
        return {name: optimizer for name, optimizer in self.table_optimizer.items() if name in present}

    def on_train_start(self) -> None:
        """Show where a run resumes."""
        show_resumed_epoch(self.trainer, self)

    def forward(self, batch: MultiViewBatch) -> ModelOutput:
        """Run the model over a batch."""
        assert self.model is not None
        return self.model(batch)

    def training_step(self, batch: MultiViewBatch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        output = self(batch)
        if output.repeats is not None and not self.loss.reads_repeats:
            raise ValueError(
                f"loss {type(self.loss).__name__} does not read the logits of the model's `repeat` term and would "
                "leave it untrained: use FullSoftmaxLoss or SampledSoftmaxLoss, or leave `repeat` out"
            )
        loss = self.loss(self.model.loss_input(batch, output))  # type: ignore[union-attr]
        self.log(
            "train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=batch.batch_size, sync_dist=True
        )
        return loss

    def on_validation_epoch_start(self) -> None:
        """Prepare the evaluation of a validation pass."""
        self._start("val")

    def on_test_epoch_start(self) -> None:
        """Prepare the evaluation of a test pass."""
        self._start("test")

    def validation_step(self, batch: MultiViewBatch, batch_idx: int) -> None:
        """Measure one batch."""
        self._measure("val", batch)

    def test_step(self, batch: MultiViewBatch, batch_idx: int) -> None:
        """Measure one batch."""
        self._measure("test", batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of a validation pass."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of a test pass."""
        self._finish("test")

    def on_predict_epoch_start(self) -> None:
        """Prepare the catalogue for recommendations."""
        self._start("test")

    def predict_step(self, batch: MultiViewBatch, batch_idx: int) -> dict[str, Tensor]:
        """Return what the evaluation says of each example: its best items, or the score of its target."""
        assert batch.example_B is not None
        # What comes next has no target yet, and so no weight; every real example is asked for all the same.
        batch.weight_BK[:, 0] = torch.maximum(batch.weight_BK[:, 0], (batch.example_B >= 0).float())
        return self.evaluations["test"].predict(self.model, batch, self(batch))  # type: ignore[operator]

    def _start(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        features = (
            datamodule.collator().item_inputs if datamodule is not None and hasattr(datamodule, "collator") else None
        )
        self.evaluations[stage].start(self.model, self.schema, features, self.device)  # type: ignore[operator]

    def _measure(self, stage: str, batch: MultiViewBatch) -> None:
        output = self(batch)
        if self.schema.label != "implicit":  # type: ignore[union-attr]
            # Targets with labels are all that such a loss needs; a ranking loss would need the training's negatives.
            loss = self.loss(self.model.loss_input(batch, output))  # type: ignore[union-attr]
            rows = max(1, round(batch.total_weight))
            self.log(f"{stage}/loss", loss, on_epoch=True, batch_size=rows, sync_dist=True)
        self.evaluations[stage].update(self.model, batch, output)  # type: ignore[operator]
        self.evaluations[f"{stage}_weights"].update(output.weights_RV)  # type: ignore[operator]

    def _finish(self, stage: str) -> None:
        values = {**self.evaluations[stage].compute(), **self.evaluations[f"{stage}_weights"].compute()}  # type: ignore[operator]
        # The metrics have reduced over the ranks already: a mean of equal values, which Lightning would miss otherwise.
        self.log_dict({f"{stage}/{name}": value for name, value in values.items()}, sync_dist=True)
        self.evaluations[stage].reset()  # type: ignore[operator]
        self.evaluations[f"{stage}_weights"].reset()  # type: ignore[operator]


def _table_configs(part: nn.Module) -> list[Any]:
    """The tables of a TorchRec collection of bags; none of any other module."""
    return list(part.embedding_bag_configs()) if isinstance(part, EmbeddingBagCollection) else []


def _default_evaluation(schema: Schema) -> Evaluation:
    if schema.label == "implicit":
        return RankingEvaluation()
    return PointwiseEvaluation(binary=schema.label == "binary")
