"""What an item is like to everybody, and how a user's labels have differed from that so far.

R rows (one (user, target) pair each), M distinct items of a batch, E events of one view, B users.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.batch import ViewBatch
from lightning_mvrec.embeddings.tables import look_up
from lightning_mvrec.schema import Schema

# The narrowest row that table kernels take.
_COLUMNS = 4


class BiasTerm(nn.Module):
    """Add the item's bias and the user's leaning to a score, where targets have labels.

    The baseline predictors of Koren, "Factorization Meets the Neighborhood" (KDD 2008), section 2.1, as of each target:
    ``b_i + sum_e (scale * value_e - b_e) / (n + shrink)`` over the user's ``n`` EARLIER events ``e`` of a view, with
    the value of one of its numeric fields (a rating, standardised) and the bias of its item. Vectors express both only
    in the long run; a new user's leaning is known after a few events. The biases are a table of their own,
    ``item_bias``, of one feature ``item_id``; scale and shrink are learned.

    Args:
        schema: What the prepared data consists of.
        view: View whose events tell a user's leaning.
        field: Numeric field of that view.
        shrink: Events without a leaning that are added at the start, above 0.
        scale: What a value counts for in units of the score, at the start.
        speed: How many times as far as one of its weights a bias moves in a step, above 0: optimizers such as Adam take
            steps of about the learning rate, short for a number that no product makes larger.

    Shape:
        - see :meth:`forward`.

    Raises:
        ValueError: If targets have no labels, the view or its numeric field is unknown, or an argument is not above 0.
    """

    def __init__(
        self, schema: Schema, view: str, field: str, shrink: float = 5.0, scale: float = 1.5, speed: float = 10.0
    ) -> None:
        super().__init__()
        if schema.label == "implicit":
            raise ValueError("bias needs targets with labels: set `label` of the data module, or leave `bias` out")
        numeric = [known.name for known in schema.view(view).fields if known.kind == "numeric"]
        if field not in numeric:
            raise ValueError(f"field must be a numeric field of view {view!r}, one of {numeric}, got {field!r}")
        for name, value in (("shrink", shrink), ("speed", speed)):
            if value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.view, self.field, self.speed = view, field, speed
        table = EmbeddingBagConfig(
            name="item_bias",
            embedding_dim=_COLUMNS,
            num_embeddings=schema.num_items,
            feature_names=["item_id"],
            init_fn=nn.init.zeros_,
        )
        self.tables = EmbeddingBagCollection(tables=[table])
        self.log_shrink = nn.Parameter(torch.tensor(float(shrink)).log())
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def item_bias(self, items: KeyedJaggedTensor) -> Tensor:
        """Return ``(M,)`` biases of the items in a KJT such as ``MultiViewBatch.items``."""
        row_MC = look_up(self.tables, items, {"item_bias": "item_id"})["item_bias"]
        return self.speed * row_MC.mean(dim=1)

    def forward(
        self, bias_M: Tensor, target_R: Tensor, user_R: Tensor, asof_R: Tensor, events: ViewBatch | None
    ) -> Tensor:
        """Return ``(R,)``, what is added to the score of each row's target.

        Args:
            bias_M: ``(M,)``, from :meth:`item_bias`.
            target_R: ``(R,)`` int64 positions of the targets among the items.
            user_R: ``(R,)`` int64, the user of each row.
            asof_R: ``(R,)`` int64, events of the view that precede each row's target.
            events: The view's events; None leaves the leaning out.
        """
        target_bias_R = bias_M[target_R]
        if events is None:
            return target_bias_R
        left_E = self.scale * events.fields[self.field] - bias_M[events.position_E]
        # A user's sum is the difference of two running sums over all users: in float32 a large batch would lose digits.
        until_E = functional.pad(left_E.double().cumsum(0), (1, 0))
        first_R = functional.pad(events.lengths_B.cumsum(0), (1, 0))[user_R]
        sum_R = (until_E[first_R + asof_R] - until_E[first_R]).to(left_E.dtype)
        return target_bias_R + sum_R / (asof_R + self.log_shrink.exp())
