"""Models: what joins embeddings, encoders and fusion into scores."""

from lightning_mvrec.models.base import ModelOutput, Recommender
from lightning_mvrec.models.bias import BiasTerm
from lightning_mvrec.models.covisitation import CoVisitationTerm
from lightning_mvrec.models.multi_view import MultiViewRecommender
from lightning_mvrec.models.reference import MultiViewRepresentation
from lightning_mvrec.models.repeat import RepeatTerm
from lightning_mvrec.models.scorers import DotScorer, MLPScorer, Scorer
from lightning_mvrec.models.stacking import Stacking

__all__ = [
    "BiasTerm",
    "CoVisitationTerm",
    "DotScorer",
    "MLPScorer",
    "ModelOutput",
    "MultiViewRecommender",
    "MultiViewRepresentation",
    "Recommender",
    "RepeatTerm",
    "Scorer",
    "Stacking",
]
