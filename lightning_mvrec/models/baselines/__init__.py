"""Models to beat: popularity, recency, Markov chain, item-kNN, co-visitation."""

from lightning_mvrec.models.baselines.base import Baseline
from lightning_mvrec.models.baselines.biases import GlobalMean, ItemBias, UserItemBias
from lightning_mvrec.models.baselines.covisitation import CoVisitation
from lightning_mvrec.models.baselines.evaluate import evaluate_baselines
from lightning_mvrec.models.baselines.item_knn import ItemKNN
from lightning_mvrec.models.baselines.markov import MarkovChain
from lightning_mvrec.models.baselines.popularity import Popularity
from lightning_mvrec.models.baselines.recency import Recency

__all__ = [
    "Baseline",
    "CoVisitation",
    "GlobalMean",
    "ItemBias",
    "ItemKNN",
    "MarkovChain",
    "Popularity",
    "Recency",
    "UserItemBias",
    "evaluate_baselines",
]
