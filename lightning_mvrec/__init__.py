"""TorchRec's sharded embedding tables in PyTorch Lightning, and multi-view recommenders built on them.

Importing this package imports nothing heavy: each public name is loaded when it is first used. The name ``"torchrec"``
for ``Trainer(strategy="torchrec")`` is known from then on, and at once where Lightning was imported before. An object,
``Trainer(strategy=TorchRecStrategy(...))``, always works.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_mvrec.batch import MultiViewBatch as MultiViewBatch
    from lightning_mvrec.data import EventsDataModule as EventsDataModule
    from lightning_mvrec.data import synthetic_events as synthetic_events
    from lightning_mvrec.models import MultiViewRecommender as MultiViewRecommender
    from lightning_mvrec.schema import Field as Field
    from lightning_mvrec.schema import Schema as Schema
    from lightning_mvrec.schema import View as View
    from lightning_mvrec.strategies import TorchRecStrategy as TorchRecStrategy
    from lightning_mvrec.training import MultiViewModule as MultiViewModule
    from lightning_mvrec.training import plain_module as plain_module

__version__ = "0.1.0"

_MODULES = {
    "EventsDataModule": "lightning_mvrec.data",
    "Field": "lightning_mvrec.schema",
    "MultiViewBatch": "lightning_mvrec.batch",
    "MultiViewModule": "lightning_mvrec.training",
    "MultiViewRecommender": "lightning_mvrec.models",
    "Schema": "lightning_mvrec.schema",
    "TorchRecStrategy": "lightning_mvrec.strategies",
    "View": "lightning_mvrec.schema",
    "plain_module": "lightning_mvrec.training",
    "synthetic_events": "lightning_mvrec.data",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with contextlib.suppress(ModuleNotFoundError):  # without Lightning the schema and the parts still work
        _register_strategy()
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name what can be imported, loaded or not."""
    return sorted({*globals(), *__all__})


def _make_strategy(**arguments: Any) -> TorchRecStrategy:
    """Build the strategy; torchrec is imported here, when a Trainer asks for it, and not before."""
    from lightning_mvrec.strategies import TorchRecStrategy

    return TorchRecStrategy(**arguments)


def _register_strategy() -> None:
    """Make ``Trainer(strategy="torchrec")`` known to Lightning, which has no entry point for strategies."""
    registry = importlib.import_module("lightning.pytorch.strategies").StrategyRegistry
    if "torchrec" in registry:
        return
    registry.register("torchrec", _make_strategy, description="TorchRec's sharded tables, DDP for the dense rest")
    if "pytorch_lightning" in sys.modules:
        warnings.warn(
            "pytorch_lightning is imported beside lightning. They are two libraries: a Trainer of pytorch_lightning "
            'refuses TorchRecStrategy and "torchrec" as an invalid strategy name. '
            "Use `from lightning.pytorch import Trainer` (or `import lightning as L`) everywhere",
            stacklevel=3,
        )


if "lightning" in sys.modules or "pytorch_lightning" in sys.modules:
    _register_strategy()
