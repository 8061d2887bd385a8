"""Pure tensor functions; torch only."""

from lightning_mvrec.functional.auc import auc, grouped_auc
from lightning_mvrec.functional.counting import count_at_least, dot_scores
from lightning_mvrec.functional.errors import absolute_error, log_loss, squared_error
from lightning_mvrec.functional.hits import hit_rate, mrr, ndcg, recall
from lightning_mvrec.functional.jagged import gather_padded, last_state, padded_index, to_padded
from lightning_mvrec.functional.ranking import MISS, ranks, to_ranks
from lightning_mvrec.functional.repeats import Repeats, count_repeats, repeat_logit_of, repeat_mass
from lightning_mvrec.functional.rotary import rotate
from lightning_mvrec.functional.rows import take_rows

__all__ = [
    "MISS",
    "Repeats",
    "absolute_error",
    "auc",
    "count_at_least",
    "count_repeats",
    "dot_scores",
    "gather_padded",
    "grouped_auc",
    "hit_rate",
    "last_state",
    "log_loss",
    "mrr",
    "ndcg",
    "padded_index",
    "ranks",
    "recall",
    "repeat_logit_of",
    "repeat_mass",
    "rotate",
    "squared_error",
    "take_rows",
    "to_padded",
    "to_ranks",
]
