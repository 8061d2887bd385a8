"""The name "torchrec" for ``Trainer(strategy=...)``."""

from __future__ import annotations

import sys
from typing import Any


def register() -> None:
    """Let ``Trainer(strategy="torchrec")`` find the strategy. Calling it again does nothing.

    ``pytorch_lightning`` is another package with a registry and strategies of its own, which does not take ours; where
    it has been imported, the name is registered there too, to say so.
    """
    from lightning.pytorch.strategies import StrategyRegistry

    from lightning_mvrec.strategies.load_from import teach_load_from_checkpoint

    teach_load_from_checkpoint()

    description = "TorchRec's sharded embedding tables, DDP for the rest"
    if "torchrec" not in StrategyRegistry:
        StrategyRegistry.register("torchrec", _make, description=description)
    other = sys.modules.get("pytorch_lightning.strategies")
    if other is not None and "torchrec" not in other.StrategyRegistry:
        other.StrategyRegistry.register("torchrec", _refuse, description=description)


def _make(**init_params: Any) -> Any:
    from lightning_mvrec.strategies.torchrec import TorchRecStrategy

    return TorchRecStrategy(**init_params)


def _refuse(**init_params: Any) -> Any:
    raise ImportError(
        'strategy="torchrec" belongs to `lightning`, this Trainer to `pytorch_lightning`: '
        "use `import lightning.pytorch as pl` in the place of `import pytorch_lightning as pl`"
    )
