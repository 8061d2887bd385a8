"""The plugin: TorchRec's sharded tables in Lightning. It imports nothing else of the package.

Each public name is loaded when it is first used: looking at a checkpoint needs neither TorchRec nor Lightning.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from lightning_mvrec.strategies.registry import register

if TYPE_CHECKING:
    from lightning_mvrec.strategies.constraints import Exchanged as Exchanged
    from lightning_mvrec.strategies.constraints import Planner as Planner
    from lightning_mvrec.strategies.constraints import TableConstraint as TableConstraint
    from lightning_mvrec.strategies.optimizers import SGD as SGD
    from lightning_mvrec.strategies.optimizers import Adagrad as Adagrad
    from lightning_mvrec.strategies.optimizers import Adam as Adam
    from lightning_mvrec.strategies.optimizers import RowWiseAdagrad as RowWiseAdagrad
    from lightning_mvrec.strategies.optimizers import TableOptimizer as TableOptimizer
    from lightning_mvrec.strategies.plain import plain_module as plain_module
    from lightning_mvrec.strategies.quantize import quantize_tables as quantize_tables
    from lightning_mvrec.strategies.report import PlanReport as PlanReport
    from lightning_mvrec.strategies.torchrec import TorchRecStrategy as TorchRecStrategy

_MODULES = {
    "SGD": "optimizers",
    "Adagrad": "optimizers",
    "Adam": "optimizers",
    "Exchanged": "constraints",
    "PlanReport": "report",
    "Planner": "constraints",
    "RowWiseAdagrad": "optimizers",
    "TableConstraint": "constraints",
    "TableOptimizer": "optimizers",
    "TorchRecStrategy": "torchrec",
    "plain_module": "plain",
    "quantize_tables": "quantize",
}
__all__ = [*_MODULES, "register"]


def __getattr__(name: str) -> Any:
    """Load a public name at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


if "lightning" in sys.modules:
    register()
