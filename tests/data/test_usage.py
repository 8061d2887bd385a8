"""What the planner is told of features, against a count by hand."""

import numpy as np
import pytest

from lightning_mvrec.data.usage import measure_usage
from tests.training.buys import prepared_buys


def test_bags_and_ids_are_those_of_the_first_batches(tmp_path):
    data = prepared_buys(tmp_path, batch_size=8)
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    batches = [dataset[(0, number)] for number in range(3)]
    usage = measure_usage(dataset, batches=3)
    items = [batch.items["item_id"].lengths() for batch in batches]
    assert usage["item_id"] == (np.mean([len(each) for each in items]), 1.0)
    assert usage["user_id"] == (8.0, 1.0)
    genres = [batch.items["item_genre"].lengths().numpy() for batch in batches]
    assert usage["item_genre"][1] == pytest.approx(np.concatenate(genres).mean())


def test_the_data_module_offers_both_by_feature(tmp_path):
    data = prepared_buys(tmp_path, batch_size=8)
    data.setup("fit")
    assert data.bags_per_step()["user_id"] == 8.0
    assert set(data.pooling_factors()) == set(data.bags_per_step()) >= {"item_id", "user_id", "item_genre"}
