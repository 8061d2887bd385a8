"""Settings that would train something else than they say, refused with the way out.

They only concern sharded tables: their kernels update them in the backward pass, and nothing but accumulation and
clipping of what Lightning does between backward pass and optimizer step reaches them.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn
from torchrec.distributed.train_pipeline.runtime_forwards import BaseForward


def check_trainer(trainer: pl.Trainer, sharded: Sequence[str]) -> None:
    """Raise for Trainer settings that sharded tables would not follow.

    Args:
        trainer: The trainer.
        sharded: Names of the sharded tables; without any, everything is allowed.

    Raises:
        ValueError: With the setting, the tables and the way out.
    """
    if not sharded:
        return
    names = f"the sharded tables {list(sharded)}"
    _check_precision(trainer.precision_plugin, names)
    for hook in ("training_step", "validation_step", "test_step", "predict_step"):
        if is_param_in_hook_signature(getattr(trainer.lightning_module, hook), "dataloader_iter", explicit=True):
            raise ValueError(
                f"{hook}(self, dataloader_iter) takes batches out of Lightning's hands: it would lose the last ones of "
                f"an epoch and count no steps, and {names} would not be guarded. Write {hook}(self, batch, batch_idx)"
            )
    if trainer.lightning_module._compiler_ctx is not None:
        raise ValueError(
            f"torch.compile of the whole module cannot follow {names}; compile its dense parts instead: "
            "self.tower = torch.compile(self.tower)"
        )
    if trainer.state.fn != TrainerFn.FITTING:
        return
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, (StochasticWeightAveraging, WeightAveraging)):
            raise ValueError(
                f"{type(callback).__name__} copies the module, which {names} do not allow; leave it out, or "
                'replicate the tables: TorchRecStrategy(replicate="all")'
            )


def check_pipeline(path: str, collection: nn.Module) -> None:
    """Raise if a train pipeline of TorchRec has taken over the lookups of a collection.

    Raises:
        RuntimeError: With the collection and the way out.
    """
    if isinstance(vars(collection).get("forward"), BaseForward):
        raise RuntimeError(
            f"{path}: a train pipeline of TorchRec has taken over its lookups. With Lightning it would lose the "
            "batches in flight at the end of an epoch, count no steps, and evaluate training batches. Leave it out and "
            "look up in training_step(self, batch, batch_idx): Lightning calls it once for each batch"
        )


def _check_precision(plugin: Precision, names: str) -> None:
    scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
    if scaled:
        raise ValueError(
            f'precision="16-mixed" scales the loss, and {names} would receive the scaled gradient; '
            'use precision="bf16-mixed" or "32-true"'
        )
    if type(plugin) is not Precision and not (isinstance(plugin, MixedPrecision) and plugin.precision == "bf16-mixed"):
        raise ValueError(
            f"precision={plugin.precision!r}: {names} return float32 whatever the rest of the module uses; "
            'use precision="bf16-mixed" or "32-true"'
        )
