"""Baselines are ranked as the definition says: ties by popularity, seen items out, misses counted."""

from math import log2

import numpy as np
import pytest
import torch
from scipy import sparse

from lightning_mvrec.functional import ranks
from lightning_mvrec.models.baselines import Baseline, Popularity, Recency, evaluate_baselines
from lightning_mvrec.models.baselines.sparse_ranks import sparse_ranks
from tests.models.baselines.fake_store import FakeStore


class Fixed(Baseline):
    """Scores given as a matrix, one row a target."""

    def __init__(self, score, name="fixed"):
        super().__init__(name)
        self.matrix = np.asarray(score, dtype=np.float64)

    def score(self, store, targets, rows):
        return self.matrix[rows]


@pytest.fixture
def store():
    # Popularity in training: item 1 three times, 2 twice, 3 once, 4 and 5 never.
    events = [(1, 1, 0), (1, 2, 1), (1, 3, 2), (1, 4, 3), (2, 1, 0), (2, 2, 1), (2, 5, 2), (3, 1, 0), (3, 3, 5)]
    targets = {"val": [(1, "buy", 3)], "test": [(2, "buy", 2), (3, "buy", 1)]}
    return FakeStore({"buy": events}, targets, num_users=4, num_items=6)


@pytest.mark.parametrize("seed", range(5))
def test_sparse_ranks_equal_dense_ranks(seed):
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 4, (50, 30)) * (rng.random((50, 30)) < 0.4)
    target, popularity = rng.integers(0, 30, 50), rng.integers(0, 5, 30)
    seen_owner = np.sort(rng.integers(0, 50, 200))
    seen_item = rng.integers(0, 30, 200)
    expected_B = ranks(
        torch.from_numpy(score),
        torch.from_numpy(target),
        torch.from_numpy(seen_item),
        torch.from_numpy(np.bincount(seen_owner, minlength=50)),
        torch.from_numpy(popularity),
    )
    rank_B = sparse_ranks(sparse.csr_array(score.astype(float)), target, seen_owner, seen_item, popularity)
    assert rank_B.tolist() == expected_B.tolist()


def test_equal_scores_are_ordered_by_popularity(store):
    # Two targets, items 5 and 3, in a matrix of equal scores: 5 stands after 1, 2, 3 and ties with 4; 3 after 1 and 2.
    values = evaluate_baselines(store, "test", [Fixed(np.zeros((2, 6)))], ["mrr@10"])
    assert values == [("fixed", "mrr@10", pytest.approx((1 / 5 + 1 / 3) / 2))]


def test_seen_items_are_left_out_and_the_target_is_not(store):
    values = evaluate_baselines(store, "test", [Popularity()], ["mrr@10", "ndcg@3"], filter_seen=["buy"])
    # User 2 has seen 1 and 2: item 5 stands after 3 and its tie 4. User 3 has seen 1: item 3 stands after 2.
    assert {name: value for _, name, value in values} == pytest.approx(
        {"mrr@10": (1 / 3 + 1 / 2) / 2, "ndcg@3": (1 / log2(4) + 1 / log2(3)) / 2}
    )


@pytest.mark.parametrize("max_elements", [1, 2**22])
def test_chunks_do_not_matter(store, max_elements):
    score = np.array([[0, 5, 4, 3, 2, 1.0], [9, 1, 2, 3, 4, 5]])
    names = ["hr@1", "recall@3", "ndcg@10", "mrr@10", "coverage@1"]
    values = evaluate_baselines(store, "test", [Fixed(score)], names, max_elements=max_elements)
    # Ranks 5 and 3; the lists of one item are [1] and [5].
    expected = [0, 1 / 2, (1 / log2(6) + 1 / log2(4)) / 2, (1 / 5 + 1 / 3) / 2, 2 / 5]
    assert [value for *_, value in values] == pytest.approx(expected)


def test_coverage_reads_the_lists_without_seen_items(store):
    # Popular and unseen: user 2 gets 3, user 3 gets 2.
    assert evaluate_baselines(store, "test", [Popularity()], ["coverage@1"], ["buy"])[0][2] == 2 / 5


def test_validation_targets_are_no_training_events(store):
    baseline = Popularity().fit(store)
    assert baseline.count.tolist() == [0, 3, 2, 1, 0, 0]


def test_names_without_a_value_give_no_row(store):
    assert evaluate_baselines(store, "val", [Recency()], ["loss", "auc", "ndcg"]) == []


def test_equal_names_are_refused(store):
    with pytest.raises(ValueError, match="must have different names"):
        evaluate_baselines(store, "val", [Popularity(), Popularity(["buy"])], ["hr@1"])


def test_a_target_outside_the_catalogue_is_a_miss():
    events = [(1, 1, 0), (1, 0, 1)]
    store = FakeStore({"buy": events}, {"test": [(1, "buy", 1)]}, num_users=2, num_items=3)
    for baseline in (Popularity(), Recency()):
        assert evaluate_baselines(store, "test", [baseline], ["hr@100"])[0][2] == 0


def test_no_baselines_show_no_bar(store, capsys):
    assert evaluate_baselines(store, "test", [], ["ndcg@10"], progress=True) == []
    assert capsys.readouterr().err == ""
