"""Sequence encoders: one view's history in, a state after each of its events out."""

from lightning_mvrec.encoders.attention import AttentionEncoder
from lightning_mvrec.encoders.bag import BagEncoder, MLPEncoder
from lightning_mvrec.encoders.base import SequenceEncoder
from lightning_mvrec.encoders.cnn import CNNEncoder
from lightning_mvrec.encoders.decay import DecayEncoder
from lightning_mvrec.encoders.gru import GRUEncoder
from lightning_mvrec.encoders.running_mean import RunningMeanEncoder

__all__ = [
    "AttentionEncoder",
    "BagEncoder",
    "CNNEncoder",
    "DecayEncoder",
    "GRUEncoder",
    "MLPEncoder",
    "RunningMeanEncoder",
    "SequenceEncoder",
]
