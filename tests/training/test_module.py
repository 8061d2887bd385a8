from functools import partial

import pytest

from lightning_mvrec.encoders import BagEncoder, DecayEncoder
from lightning_mvrec.fusion import GateFusion
from lightning_mvrec.losses import BPRLoss, FullSoftmaxLoss
from lightning_mvrec.models import MultiViewRecommender, RepeatTerm
from lightning_mvrec.strategies import Adagrad
from lightning_mvrec.training import MultiViewModule
from tests.batches import SCHEMA, make_batch

ENCODERS = {"click": DecayEncoder, "rate": BagEncoder}


def build(table_optimizer, views=None):
    model = partial(MultiViewRecommender, encoders=ENCODERS, fusion=GateFusion, embedding_dim=8, views=views)
    module = MultiViewModule(model, FullSoftmaxLoss(), table_optimizer=table_optimizer, schema=SCHEMA)
    module.configure_model()
    return module


def test_tables_of_a_view_that_is_not_read_are_passed_over():
    chosen = {"item_id": Adagrad(0.1), "user_id": Adagrad(0.2), "bag_rate": Adagrad(0.3)}
    assert build(chosen).configure_table_optimizers() == chosen
    assert build(chosen, views=["click"]).configure_table_optimizers() == {"item_id": Adagrad(0.1)}


def test_a_table_that_the_data_cannot_need_is_named():
    with pytest.raises(ValueError, match=r"table_optimizer must name tables .* got \['item_ids'\]"):
        build({"item_ids": Adagrad(0.1)}).configure_table_optimizers()


def test_one_optimizer_is_for_all_tables():
    assert build(Adagrad(0.1)).configure_table_optimizers() == Adagrad(0.1)


def test_the_model_is_built_once_and_needs_a_schema():
    module = build(None)
    first = module.model
    module.configure_model()
    assert module.model is first
    module = MultiViewModule(module.build_model, FullSoftmaxLoss())
    module._trainer = type("T", (), {"datamodule": None})()
    with pytest.raises(ValueError, match="schema must be known"):
        module.configure_model()


def test_a_loss_that_leaves_the_repeat_term_untrained_is_refused():
    model = partial(MultiViewRecommender, encoders={"click": DecayEncoder}, fusion=GateFusion, repeat=RepeatTerm)
    module = MultiViewModule(model, BPRLoss(), schema=SCHEMA)
    module.configure_model()
    batch = make_batch([1], [[(1, 10)]], [[]], [[(2, 20)]], negative=[3])
    with pytest.raises(ValueError, match="BPRLoss does not read the logits of the model's `repeat` term"):
        module.training_step(batch, 0)
