"""One adapter per published layout."""

from lightning_mvrec.data.sources.base import RawData, Source

__all__ = ["RawData", "Source"]
