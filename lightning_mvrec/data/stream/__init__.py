"""Stores from events that do not fit in memory: an engine orders them, the rules run on some users at a time."""

from lightning_mvrec.data.stream.build import build_stream
from lightning_mvrec.data.stream.resume import prepare_beside

__all__ = ["build_stream", "prepare_beside"]
