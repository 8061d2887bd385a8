"""One sequence encoder a view, fused into one user state.

B users, K targets a user, T steps, R rows (one (user, target) pair each), M distinct items, V views, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.batch import MultiViewBatch
from lightning_mvrec.embeddings import EventEmbedding, ItemEmbedding, UserEmbedding
from lightning_mvrec.encoders.base import SequenceEncoder
from lightning_mvrec.functional.dropout import Dropout
from lightning_mvrec.functional.jagged import gather_padded, last_state, to_padded
from lightning_mvrec.functional.repeats import Repeats
from lightning_mvrec.fusion.base import Fusion, ViewState, ViewStates
from lightning_mvrec.models.base import ModelOutput, Recommender, target_rows
from lightning_mvrec.models.bias import BiasTerm
from lightning_mvrec.models.covisitation import CoVisitationTerm
from lightning_mvrec.models.repeat import RepeatTerm
from lightning_mvrec.models.scorers import DotScorer, Scorer
from lightning_mvrec.schema import Schema

USER_VIEW = "user"


class MultiViewRecommender(Recommender):
    """Encode each view of a user's behaviour, fuse the views, score items.

    Items of all views share one table; the user's own id and fields are a view of length one, named ``"user"``.

    Args:
        schema: What the prepared data consists of; recipes leave it out, the training module passes it.
        encoders: By view name, the encoder of each view that is read; a view not named here is ignored.
        fusion: Builds the fusion from the width and the names of the views.
        embedding_dim: Width ``D`` of tables, encoders and fusion; a multiple of 4, as the table kernels need.
        user: Whether the user's own vector is one of the views.
        views: Keep only these of the views (``"user"`` among them or not): for single-view models.
        times: Whether events carry features of their time (gap, hour, weekday), where the data has times.
        dropout: Probability of dropping an element of an event's vector, in ``[0, 1)``.
        scorer: Builds the score from the width; the dot product by default.
        item_fields: Item fields that are added to an item's vector; all by default, ``[]`` for none.
        content: Whether the frozen content vectors of items (``EventsDataModule(content=...)``) are added to their
            vectors through a linear map, where the data has them.
        normalize: Whether user states and item vectors are brought to length 1, so that scores are cosines; with a
            ``temperature`` well below 1.
        temperature: What user states, and so dot products, are divided by; above 0. Unlike a loss's own temperature it
            also counts where scores are compared with the logits of ``repeat``.
        repeat: Builds, from the width and the names of the behaviours, the term for items that come back; None: no such
            term. It needs a dot-product score.
        bias: Builds, from the schema, the term for the item's bias and the user's leaning, where targets have labels;
            None: no such term. If its view is not read, the item's bias remains.
        init_std: Standard deviation of the normal that the rows of tables are drawn from, above 0; None:
            ``1 / sqrt(embedding_dim)``, for vectors of length 1.
        covisits: Builds, from the names of the behaviours, the term for neighbours in the graph of co-visitation; None:
            no such term. It needs a dot-product score and ``EventsDataModule(covisits=CoVisits())``.

    Shape:
        - batch: see :class:`~lightning_mvrec.batch.MultiViewBatch`.
        - output: see :class:`~lightning_mvrec.models.base.ModelOutput`; view weights are ``(R, V)`` in the order of
          ``view_names``.

    Raises:
        ValueError: If a view is unknown, none is left, an encoder that is not causal meets several targets a user, or a
            fusion that looks at the candidate meets negatives.
    """

    def __init__(
        self,
        schema: Schema,
        encoders: dict[str, Callable[[int], SequenceEncoder]],
        fusion: Callable[[int, list[str]], Fusion],
        embedding_dim: int = 64,
        user: bool = True,
        views: list[str] | None = None,
        times: bool = False,
        dropout: float = 0.0,
        scorer: Callable[[int], Scorer] = DotScorer,
        item_fields: list[str] | None = None,
        temperature: float = 1.0,
        repeat: Callable[[int, list[str]], RepeatTerm] | None = None,
        content: bool = True,
        normalize: bool = False,
        bias: Callable[[Schema], BiasTerm] | None = None,
        init_std: float | None = None,
        covisits: Callable[[list[str]], CoVisitationTerm] | None = None,
    ) -> None:
        super().__init__()
        if embedding_dim < 4 or embedding_dim % 4:
            raise ValueError(f"embedding_dim must be a multiple of 4, got {embedding_dim}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.view_names = _choose_views(schema, list(encoders), user, views)
        behaviours = [name for name in self.view_names if name != USER_VIEW]
        self.encoders = nn.ModuleDict({_key(name): encoders[name](embedding_dim) for name in behaviours})
        bags = [name for name in behaviours if self.encoders[_key(name)].own_table]
        self.items = ItemEmbedding(
            schema, embedding_dim, fields=item_fields, bag_views=bags, content=content, init_std=init_std
        )
        self.users = UserEmbedding(schema, embedding_dim, init_std=init_std) if USER_VIEW in self.view_names else None
        self.events = nn.ModuleDict(
            {
                _key(name): EventEmbedding(embedding_dim, schema.view(name), times=times and schema.has_times)
                for name in behaviours
                if name not in bags
            }
        )
        self.fusion = fusion(embedding_dim, self.view_names)
        self.scorer = scorer(embedding_dim)
        self.dropout = Dropout(dropout)
        self.retrieval = self.scorer.retrieval and not self.fusion.target_aware
        for name, term in (("repeat", repeat), ("covisits", covisits)):
            if term is not None and not self.retrieval:
                raise ValueError(
                    f"{name} needs a dot-product score, got a scorer or a fusion that looks at the candidate"
                )
        if repeat is not None and covisits is not None:
            raise ValueError("covisits must be None where the model has a repeat term, got both")
        self.repeat = repeat(embedding_dim, behaviours) if repeat is not None and behaviours else None
        self.covisits = covisits(behaviours) if covisits is not None and behaviours else None
        self.num_views = len(schema.views)
        self.bias = bias(schema) if bias is not None else None
        self.temperature = temperature
        self.normalize = normalize
        self.view_index = {name: schema.view_names.index(name) for name in behaviours}

    def forward(self, batch: MultiViewBatch) -> ModelOutput:
        """Return user states, item vectors, the targets' scores and the view weights."""
        item_MD, bag_MD = self._items(batch.items, batch.content_MW)
        user_R, step_R = target_rows(batch)
        states = {}
        for name in self.view_names:
            if name == USER_VIEW:
                states[name] = self._user_state(batch, user_R)
            else:
                states[name] = self._view_state(name, batch, bag_MD.get(name, item_MD), user_R, step_R)
        # Not by indexing: its backward is several times slower on CPU.
        target_RD = functional.embedding(batch.target_BK[user_R, step_R], item_MD)
        if self.fusion.target_aware and (batch.negative is not None or batch.catalogue):
            raise ValueError(
                f"fusion {type(self.fusion).__name__} makes a user state for one candidate and would score negatives "
                "wrongly: set negatives to None (labelled targets), or take a fusion that does not see the candidate"
            )
        candidates_RCD = target_RD[:, None] if self.fusion.target_aware else None
        fused, weights_RV = self.fusion(ViewStates(states, user_R), candidates_RCD)
        user_RD = fused[:, 0] if self.fusion.target_aware else fused
        if self.normalize:
            user_RD = functional.normalize(user_RD, dim=-1)
        if self.temperature != 1:
            user_RD = user_RD / self.temperature
        repeats = None if self.repeat is None else self._repeats(batch, user_RD, item_MD, user_R, step_R)
        if self.covisits is not None:
            repeats = self._neighbours(self.covisits, batch, item_MD.shape[0], user_R, step_R)
        score_R = self.scorer(user_RD, target_RD)
        if self.bias is not None:
            score_R = score_R + self._bias(self.bias, batch, user_R, step_R)
        return ModelOutput(user_RD, item_MD, user_R, step_R, score_R, weights_RV, repeats)

    def item_vectors(self, items: KeyedJaggedTensor, content_MW: Tensor | None = None) -> Tensor:
        """Return ``(M, D)`` vectors of the items in a KJT such as ``MultiViewBatch.items``."""
        return self._items(items, content_MW)[0]

    def score(self, user: Tensor, item: Tensor) -> Tensor:
        """Score vectors ``(..., D)`` against vectors ``(..., D)``: ``(...)``."""
        return self.scorer(user, item)

    def _items(self, items: KeyedJaggedTensor, content_MW: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        item_MD, bag_MD = self.items(items, content_MW)
        return functional.normalize(item_MD, dim=-1) if self.normalize else item_MD, bag_MD

    def _view_state(
        self, name: str, batch: MultiViewBatch, item_MD: Tensor, user_R: Tensor, step_R: Tensor
    ) -> ViewState:
        """Encode one view and take its state just before each target."""
        encoder, view = cast(SequenceEncoder, self.encoders[_key(name)]), batch.views[name]
        if not encoder.causal and batch.target_BK.shape[1] > 1:
            raise ValueError(
                f"encoder {type(encoder).__name__} of view {name!r} is not causal and would see later targets: "
                f"a batch may hold one target a user, got {batch.target_BK.shape[1]}; set max_targets to 1"
            )
        x_BTD = gather_padded(item_MD, view.position_E, view.lengths_B)
        times_BT = to_padded(view.time_E, view.lengths_B)
        if _key(name) in self.events:
            fields_BT = {key: to_padded(value_E, view.lengths_B) for key, value_E in view.fields.items()}
            x_BTD = self.events[_key(name)](x_BTD, fields_BT, times_BT, view.lengths_B)
        asof_R = batch.asof_BKV[user_R, step_R, self.view_index[name]]
        h_BTD: Tensor | None = None
        if self._only_last(encoder, batch):
            # One target a user: a row's history is its user's up to the target, and only its end is looked at.
            state_RD = encoder.last(x_BTD if len(user_R) == len(x_BTD) else x_BTD[user_R], asof_R)
        else:
            h_BTD = encoder(self.dropout(x_BTD), view.lengths_B)
            state_RD = last_state(h_BTD, asof_R, user_R)
        present_R = asof_R > 0
        latest_R = last_state(times_BT[..., None], asof_R, user_R).squeeze(-1)
        age_R = (batch.time_BK[user_R, step_R] - latest_R) * present_R
        return ViewState(
            state_RD=state_RD,
            present_R=present_R,
            age_R=age_R.to(state_RD.dtype),
            asof_R=asof_R,
            steps_BTD=h_BTD,
            lengths_B=view.lengths_B,
            times_BT=times_BT,
        )

    def _only_last(self, encoder: SequenceEncoder, batch: MultiViewBatch) -> bool:
        """Whether nothing but the state before each user's only target is asked for: in evaluation, not in training."""
        evaluating = not self.training and not torch.is_grad_enabled()
        return evaluating and encoder.causal and not self.fusion.reads_steps and batch.target_BK.shape[1] == 1

    def _repeats(
        self, batch: MultiViewBatch, user_RD: Tensor, item_MD: Tensor, user_R: Tensor, step_R: Tensor
    ) -> Repeats:
        """The logits of the items that each row's user has met."""
        assert self.repeat is not None
        views = [batch.views[name] for name in self.view_index]
        return self.repeat(
            user_RD,
            item_MD,
            batch.time_BK[user_R, step_R],
            user_R,
            [view.position_E for view in views],
            [view.time_E for view in views],
            [view.lengths_B for view in views],
            [batch.asof_BKV[user_R, step_R, index] for index in self.view_index.values()],
        )

    def _neighbours(
        self, term: CoVisitationTerm, batch: MultiViewBatch, num_items: int, user_R: Tensor, step_R: Tensor
    ) -> Repeats:
        """The logits of the neighbours of each row's history."""
        if batch.links is None:
            raise ValueError(
                "a model with a covisits term needs batches with links, got one without: set `covisits` of the data "
                "module to CoVisits()"
            )
        row_of = torch.full((batch.target_BK.numel(),), -1, device=user_R.device)
        row_of[user_R * batch.target_BK.shape[1] + step_R] = torch.arange(len(user_R), device=user_R.device)
        index = list(self.view_index.values())
        return term(batch.links, row_of, len(user_R), index, self.num_views, num_items)

    def _bias(self, bias: BiasTerm, batch: MultiViewBatch, user_R: Tensor, step_R: Tensor) -> Tensor:
        """What item and user add to each target's score, whatever the views say."""
        if batch.negative is not None or batch.catalogue:
            raise ValueError(
                "bias is added to the scores of targets only, negatives would be scored without: set negatives to None "
                "(labelled targets), or leave `bias` out"
            )
        events = batch.views[bias.view] if bias.view in self.view_index else None
        asof_R = batch.asof_BKV[user_R, step_R, self.view_index.get(bias.view, 0)]
        target_R = batch.target_BK[user_R, step_R]
        return bias(bias.item_bias(batch.items), target_R, user_R, asof_R, events)

    def _user_state(self, batch: MultiViewBatch, user_R: Tensor) -> ViewState:
        """The user's own vector: a view of length one, always present."""
        assert self.users is not None
        user_BD = self.users(batch.users)
        one_R = torch.ones_like(user_R)
        one_B = torch.ones(user_BD.shape[0], dtype=torch.int64, device=user_BD.device)
        return ViewState(
            state_RD=functional.embedding(user_R, user_BD),
            present_R=one_R.bool(),
            age_R=torch.zeros(len(user_R), dtype=user_BD.dtype, device=user_BD.device),
            asof_R=one_R,
            steps_BTD=user_BD[:, None],
            lengths_B=one_B,
            times_BT=torch.zeros_like(one_B)[:, None],
        )


def _key(name: str) -> str:
    """Name of a view's module: ``nn.ModuleDict`` refuses names of its own attributes, such as ``train``."""
    return f"{name}_view"


def _choose_views(schema: Schema, encoded: list[str], user: bool, views: list[str] | None) -> list[str]:
    """Return the names of the views to read, in the schema's order, the user's own last."""
    unknown = [name for name in encoded if name not in schema.view_names]
    if unknown:
        raise ValueError(f"encoders must be named for the views of the data {schema.view_names}, got {unknown}")
    known = [name for name in schema.view_names if name in encoded] + [USER_VIEW] * user
    if views is None:
        chosen = known
    else:
        unknown = [name for name in views if name not in known]
        if unknown:
            raise ValueError(f"views must be among {known}, got {unknown}")
        chosen = [name for name in known if name in views]
    if not chosen:
        raise ValueError("a model must read at least one view: name one under encoders, or set user to true")
    return chosen
