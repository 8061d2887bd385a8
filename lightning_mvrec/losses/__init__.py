"""Losses: the rows of a batch as a model scored them in, a scalar out."""

from lightning_mvrec.losses.base import Loss, LossInput
from lightning_mvrec.losses.bce import BCELoss
from lightning_mvrec.losses.bpr import BPRLoss
from lightning_mvrec.losses.full_softmax import FullSoftmaxLoss
from lightning_mvrec.losses.l2 import L2Penalty
from lightning_mvrec.losses.mse import MSELoss
from lightning_mvrec.losses.ordinal import OrdinalLoss
from lightning_mvrec.losses.pairwise import PairwiseLoss
from lightning_mvrec.losses.sampled_softmax import SampledSoftmaxLoss

__all__ = [
    "BCELoss",
    "BPRLoss",
    "FullSoftmaxLoss",
    "L2Penalty",
    "Loss",
    "LossInput",
    "MSELoss",
    "OrdinalLoss",
    "PairwiseLoss",
    "SampledSoftmaxLoss",
]
