"""Metrics: thin torchmetrics classes over :mod:`lightning_mvrec.functional`, exact on several ranks."""

from lightning_mvrec.metrics.auc import AUC, GroupedAUC
from lightning_mvrec.metrics.coverage import Coverage
from lightning_mvrec.metrics.errors import MAE, RMSE, LogLoss
from lightning_mvrec.metrics.ranking import MRR, NDCG, HitRate, Recall

__all__ = ["AUC", "MAE", "MRR", "NDCG", "RMSE", "Coverage", "GroupedAUC", "HitRate", "LogLoss", "Recall"]
