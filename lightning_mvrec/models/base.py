"""What every model of the package promises to the training module.

B users, K targets a user, R rows (one (user, target) pair of weight above 0 each), M distinct items, V views, D width,
W width of content vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.batch import MultiViewBatch
from lightning_mvrec.functional.repeats import Repeats
from lightning_mvrec.losses.base import LossInput, dot


@dataclass
class ModelOutput:
    """One pass of a model over a batch.

    Args:
        user_RD: ``(R, D)`` user states, one a row.
        item_MD: ``(M, D)`` vectors of the batch's distinct items.
        user_R: ``(R,)`` int64, which user of the batch a row belongs to.
        step_R: ``(R,)`` int64, which of the user's targets it is.
        score_R: ``(R,)`` score of each row's target.
        weights_RV: ``(R, V)`` view weights in the order of the model's ``view_names``, or None.
        repeats: One more logit for every item of a row's past (positions into ``item_MD``), or None. A score is then
            ``log(exp(dot product) + exp(logit))``; ``score_R`` is the dot product alone.
    """

    user_RD: Tensor
    item_MD: Tensor
    user_R: Tensor
    step_R: Tensor
    score_R: Tensor
    weights_RV: Tensor | None = None
    repeats: Repeats | None = None


class Recommender(nn.Module):
    """A model that scores (user, item) pairs of a :class:`MultiViewBatch`.

    Attributes:
        retrieval: Whether the score is the dot product of user state and item vector, so that the whole catalogue can
            be ranked by a matrix product and searched by an index.
        view_names: Names of the views that the model reads, in the order of its view weights.
    """

    retrieval: bool = True
    view_names: list[str]

    def forward(self, batch: MultiViewBatch) -> ModelOutput:
        """Return user states, item vectors and the targets' scores."""
        raise TypeError(f"{type(self).__name__} must define forward(batch)")

    def item_vectors(self, items: KeyedJaggedTensor, content_MW: Tensor | None = None) -> Tensor:
        """Return ``(M, D)`` vectors of the items in a KJT such as ``MultiViewBatch.items``.

        Args:
            items: KJT of stride ``M``.
            content_MW: Their content vectors, such as ``MultiViewBatch.content_MW``, where the data has them.
        """
        raise TypeError(f"{type(self).__name__} must define item_vectors(items, content_MW)")

    def score(self, user: Tensor, item: Tensor) -> Tensor:
        """Score vectors ``(..., D)`` against vectors ``(..., D)``, broadcasting: ``(...)``."""
        return dot(user, item)

    def loss_input(self, batch: MultiViewBatch, output: ModelOutput) -> LossInput:
        """Join a batch and a pass over it into what a loss reads."""
        row = (output.user_R, output.step_R)
        negative, log_q_negative = batch.negative, batch.log_q_negative
        if negative is not None and negative.dim() == 3:
            negative = negative[row]
            log_q_negative = None if log_q_negative is None else log_q_negative[row]
        return LossInput(
            user_RD=output.user_RD,
            item_MD=output.item_MD,
            target_R=batch.target_BK[row],
            label_R=batch.label_BK[row],
            weight_R=batch.weight_BK[row],
            total_weight=batch.total_weight,
            negative=negative,
            log_q_negative=log_q_negative,
            log_q_R=None if batch.log_q_BK is None else batch.log_q_BK[row],
            catalogue=batch.catalogue,
            score=self.score,
            retrieval=self.retrieval,
            score_R=output.score_R,
            repeats=output.repeats,
        )


def target_rows(batch: MultiViewBatch) -> tuple[Tensor, Tensor]:
    """Return ``(user_R, step_R)`` of every target with a weight above 0, user by user in time order."""
    user_R, step_R = (batch.weight_BK > 0).nonzero(as_tuple=True)
    return user_R, step_R
