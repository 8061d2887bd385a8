"""Settings that would train something else than they say, refused with the way out.

They only concern sharded tables: their kernels update them in the backward pass, so that whatever Lightning does
between backward pass and optimizer step does not reach them.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.trainer.states import TrainerFn


def check_trainer(trainer: pl.Trainer, sharded: Sequence[str], clip_dense_only: bool) -> None:
    """Raise for Trainer settings that sharded tables would not follow.

    Args:
        trainer: The trainer.
        sharded: Names of the sharded tables; without any, everything is allowed.
        clip_dense_only: Whether gradient clipping is known to leave the tables out.

    Raises:
        ValueError: With the setting, the tables and the way out.
    """
    if not sharded:
        return
    names = f"the sharded tables {list(sharded)}"
    _check_precision(trainer.precision_plugin, names)
    if trainer.lightning_module._compiler_ctx is not None:
        raise ValueError(
            f"torch.compile of the whole module cannot follow {names}; compile its dense parts instead: "
            "self.tower = torch.compile(self.tower)"
        )
    if trainer.state.fn != TrainerFn.FITTING:
        return
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    if trainer.gradient_clip_val and not clip_dense_only:
        raise ValueError(
            f"gradient_clip_val={trainer.gradient_clip_val} would not reach {names}, only the dense parameters. "
            "If that is what you want, say TorchRecStrategy(clip_dense_only=True); to clip everything, replicate the "
            'tables and train them with the module\'s own optimizer: replicate="all" and no table optimizer'
        )
    for callback in callbacks:
        if isinstance(callback, (StochasticWeightAveraging, WeightAveraging)):
            raise ValueError(
                f"{type(callback).__name__} copies the module, which {names} do not allow; leave it out, or "
                'replicate the tables: TorchRecStrategy(replicate="all")'
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
