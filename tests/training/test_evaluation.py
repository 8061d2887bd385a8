import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lightning_mvrec.encoders import DecayEncoder
from lightning_mvrec.fusion import GateFusion
from lightning_mvrec.models import MLPScorer, MultiViewRecommender, RepeatTerm
from lightning_mvrec.training.evaluation import PointwiseEvaluation, RankingEvaluation
from tests.batches import SCHEMA, item_kjt, make_batch
from tests.distributed.launch import run_ranks

USERS = [1, 2, 3, 4, 5]
CLICK = [[(1, 10), (2, 20)], [(4, 15)], [], [(3, 5), (3, 6), (9, 7)], [(11, 1)]]
RATE = [[(5, 5, 1.0)], [], [(6, 2, 3.0)], [], [(7, 1, 2.0)]]
TARGET = [[(7, 40)], [(8, 50)], [(3, 10)], [(11, 10)], [(0, 10)]]
SEEN = [[1, 2], [4], [], [3, 9], [11]]


def build(repeat=None):
    torch.manual_seed(0)
    settings = {"encoders": {"click": DecayEncoder}, "fusion": GateFusion, "embedding_dim": 8, "repeat": repeat}
    return MultiViewRecommender(SCHEMA, **settings).eval()


def part(rows):
    batch = make_batch(*[[each[row] for row in rows] for each in (USERS, CLICK, RATE, TARGET)])
    batch.seen_row = torch.tensor([item for row in rows for item in SEEN[row]], dtype=torch.int64)
    batch.seen_lengths_B = torch.tensor([len(SEEN[row]) for row in rows])
    batch.example_B = torch.tensor(rows)
    return batch


def catalogue(rows):
    return item_kjt(rows.tolist()), None


def measure(parts, evaluation=None, repeat=None):
    model, evaluation = build(repeat), evaluation or RankingEvaluation(k=[2, 5], coverage=True, chunk=3)
    evaluation.start(model, SCHEMA, catalogue, torch.device("cpu"))
    with torch.no_grad():
        for rows in parts:
            batch = part(rows)
            evaluation.update(model, batch, model(batch))
    return {name: float(value) for name, value in evaluation.compute().items()}


def naive(k, repeat=None):
    """Rank by a loop over the catalogue."""
    model = build(repeat)
    gains = []
    with torch.no_grad():
        item_ID = model.item_vectors(item_kjt(list(range(SCHEMA.num_items))))
        for row in range(5):
            output = model(part([row]))
            target = TARGET[row][0][0]
            scores = (item_ID @ output.user_RD[0]).tolist()
            if output.repeats is not None:
                rows = part([row]).item_row_M[output.repeats.item_S].tolist()
                for item, logit in zip(rows, output.repeats.logit_S.tolist(), strict=True):
                    scores[item] = float(np.logaddexp(scores[item], logit))
            others = [i for i in range(1, SCHEMA.num_items) if i != target and i not in SEEN[row]]
            rank = 1 + sum(scores[i] >= scores[target] for i in others)
            gains.append(0.0 if target == 0 or rank > k else 1 / np.log2(rank + 1))
    return np.mean(gains)


@pytest.mark.parametrize("repeat", [None, RepeatTerm])
def test_ranks_equal_a_loop_over_the_catalogue(repeat):
    values = measure([[0, 1, 2], [3, 4]], repeat=repeat)
    for k in (2, 5):
        assert values[f"ndcg@{k}"] == pytest.approx(naive(k, repeat), abs=1e-6)
    assert 0 < values["ndcg@5"] < 1


@pytest.mark.parametrize("repeat", [None, RepeatTerm])
def test_two_ranks_with_uneven_rows_equal_one(repeat):
    alone = measure([[0, 1, 2], [3, 4]], repeat=repeat)
    ranks = [[[0, 1], [4]], [[2], [3]]]
    shared = run_ranks(lambda: measure(ranks[dist.get_rank()], repeat=repeat), 2)
    assert shared[0] == shared[1]
    assert shared[0] == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize("repeat", [None, RepeatTerm])
def test_predictions_of_two_ranks_equal_those_of_one(repeat):
    def predict(rows):
        model, evaluation = build(repeat), RankingEvaluation(k=[4])
        evaluation.start(model, SCHEMA, catalogue, torch.device("cpu"))
        with torch.no_grad():
            batch = part(rows)
            return evaluation.predict(model, batch, model(batch))

    alone = predict([0, 1, 2])
    shared = run_ranks(lambda: predict([0, 1] if dist.get_rank() == 0 else [2]), 2)
    assert torch.equal(torch.cat([each["item"] for each in shared]), alone["item"])
    assert not set(alone["item"][0].tolist()) & {0, *SEEN[0]}


def test_a_list_longer_than_the_catalogue_is_filled_with_row_0():
    model, evaluation = build(), RankingEvaluation(k=[30])
    evaluation.start(model, SCHEMA, catalogue, torch.device("cpu"))
    with torch.no_grad():
        items = evaluation.predict(model, part([0]), model(part([0])))["item"][0].tolist()
    assert sorted(items[:9]) == [i for i in range(1, 12) if i not in SEEN[0]]
    assert items[9:] == [0] * 21


def test_a_score_that_is_no_dot_product_is_refused():
    model = MultiViewRecommender(SCHEMA, encoders={}, fusion=GateFusion, embedding_dim=8, scorer=MLPScorer)
    with pytest.raises(ValueError, match="needs a dot-product score"):
        RankingEvaluation().start(model, SCHEMA, catalogue, torch.device("cpu"))


def test_labels_are_compared_over_both_ranks():
    def auc(rows):
        model, evaluation = build(), PointwiseEvaluation(binary=True)
        batch = part(rows)
        batch.label_BK[:, 0] = torch.tensor([row % 2 for row in rows], dtype=torch.float32)
        with torch.no_grad():
            evaluation.update(model, batch, model(batch))
        return float(evaluation.compute()["auc"])

    alone = auc([0, 1, 2, 3, 4])
    assert run_ranks(lambda: auc([0, 3, 4] if dist.get_rank() == 0 else [1, 2]), 2) == pytest.approx([alone, alone])


def test_with_a_threshold_labels_are_one_from_it_on():
    def auc(labels, threshold):
        model, evaluation = build(), PointwiseEvaluation(threshold=threshold)
        batch = part([0, 1, 2, 3, 4])
        batch.label_BK[:, 0] = torch.tensor(labels)
        with torch.no_grad():
            evaluation.update(model, batch, model(batch))
        values = {name: float(value) for name, value in evaluation.compute().items()}
        return values, evaluation.rows()["label"].tolist()

    assert auc([1.0, 4.0, 5.0, 3.0, 4.0], 4.0) == auc([0.0, 1.0, 1.0, 0.0, 1.0], None)


def test_a_threshold_for_numbers_is_refused():
    with pytest.raises(ValueError, match=r"threshold must be None where labels are not binary, got 4\.0"):
        PointwiseEvaluation(binary=False, threshold=4.0)


def test_an_evaluation_can_be_copied_for_each_stage():
    first, second = RankingEvaluation(), copy.deepcopy(RankingEvaluation())
    assert first.names == second.names == ["ndcg@10", "hr@10", "recall@10", "mrr@10"]


def test_the_rows_of_two_ranks_are_those_of_one_in_the_order_of_the_examples():
    def rows(parts):
        model, evaluation = build(), RankingEvaluation(k=[2])
        evaluation.start(model, SCHEMA, catalogue, torch.device("cpu"))
        with torch.no_grad():
            for each in parts:
                batch = part(each)
                evaluation.update(model, batch, model(batch))
        evaluation.compute()
        evaluation.reset()
        return {name: value.tolist() for name, value in evaluation.rows().items()}

    alone = rows([[0, 1, 2], [3, 4]])
    assert alone["example"] == [0, 1, 2, 3, 4]
    ranks = [[[0, 1], [4]], [[2], [3]]]
    assert run_ranks(lambda: rows(ranks[dist.get_rank()]), 2) == [alone, alone]
