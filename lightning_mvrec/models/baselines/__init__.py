"""Models to beat: counts, neighbours and factors that rank the catalogue, means and factors that predict labels."""

from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.biased_factorization import BiasedFactorization
from lightning_mvrec.models.baselines.biases import GlobalMean, ItemBias, UserItemBias
from lightning_mvrec.models.baselines.covisitation import CoVisitation
from lightning_mvrec.models.baselines.evaluate import evaluate_baselines
from lightning_mvrec.models.baselines.item_knn import ItemKNN
from lightning_mvrec.models.baselines.markov import MarkovChain
from lightning_mvrec.models.baselines.matrix_factorization import MatrixFactorization
from lightning_mvrec.models.baselines.popularity import Popularity
from lightning_mvrec.models.baselines.rating_knn import RatingKNN
from lightning_mvrec.models.baselines.recency import Recency

__all__ = [
    "Baseline",
    "BiasedFactorization",
    "CoVisitation",
    "GlobalMean",
    "ItemBias",
    "ItemKNN",
    "MarkovChain",
    "MatrixFactorization",
    "Popularity",
    "RatingKNN",
    "Recency",
    "UserItemBias",
    "evaluate_baselines",
]
