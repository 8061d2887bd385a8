"""Training and evaluation with Lightning."""

from lightning_mvrec.training.callbacks import EpochHistory
from lightning_mvrec.training.evaluation import Evaluation, PointwiseEvaluation, RankingEvaluation
from lightning_mvrec.training.module import MultiViewModule

__all__ = ["EpochHistory", "Evaluation", "MultiViewModule", "PointwiseEvaluation", "RankingEvaluation"]
