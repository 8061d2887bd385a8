"""Training and evaluation with Lightning."""

from lightning_mvrec.training.callbacks import EpochHistory
from lightning_mvrec.training.evaluation import Evaluation, PointwiseEvaluation, RankingEvaluation
from lightning_mvrec.training.module import MultiViewModule
from lightning_mvrec.training.run import plain_module

__all__ = ["EpochHistory", "Evaluation", "MultiViewModule", "PointwiseEvaluation", "RankingEvaluation", "plain_module"]
