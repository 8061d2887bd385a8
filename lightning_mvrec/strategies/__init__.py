"""The plugin: TorchRec's sharded tables in Lightning. It imports nothing else of the package."""

from lightning_mvrec.strategies.optimizers import SGD, Adagrad, Adam, RowWiseAdagrad, TableOptimizer
from lightning_mvrec.strategies.plain import plain_module
from lightning_mvrec.strategies.registry import register
from lightning_mvrec.strategies.report import PlanReport
from lightning_mvrec.strategies.torchrec import TorchRecStrategy

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "PlanReport",
    "RowWiseAdagrad",
    "TableOptimizer",
    "TorchRecStrategy",
    "plain_module",
    "register",
]

register()
