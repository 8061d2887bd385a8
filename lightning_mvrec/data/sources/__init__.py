"""One adapter per published layout."""

from lightning_mvrec.data.sources.base import RawData, Source
from lightning_mvrec.data.sources.movielens import MovieLens1M, MovieLens1MSequence, MovieLens100K
from lightning_mvrec.data.sources.retailrocket import RetailRocket
from lightning_mvrec.data.sources.sequences import AmazonSequences, SequenceFile
from lightning_mvrec.data.sources.stream import WithStream
from lightning_mvrec.data.sources.tables import FrameSource, LogSource, TableSource
from lightning_mvrec.data.sources.taobao import Taobao

__all__ = [
    "AmazonSequences",
    "FrameSource",
    "LogSource",
    "MovieLens1M",
    "MovieLens1MSequence",
    "MovieLens100K",
    "RawData",
    "RetailRocket",
    "SequenceFile",
    "Source",
    "TableSource",
    "Taobao",
    "WithStream",
]
