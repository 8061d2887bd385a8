"""Engines that prepare logs larger than memory; each needs a package that the rest of this library does not."""

from lightning_mvrec.data.engines.base import Block, Engine, Ids, Ordered, ViewColumns
from lightning_mvrec.data.engines.duck import DuckDB
from lightning_mvrec.data.engines.spark import Spark

__all__ = ["Block", "DuckDB", "Engine", "Ids", "Ordered", "Spark", "ViewColumns"]
