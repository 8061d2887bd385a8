"""Coverage counts distinct catalogue items within the cut-off."""

import pytest
import torch

from lightning_mvrec.metrics import Coverage


def test_only_the_first_k_items_of_weighted_lists_count():
    metric = Coverage(num_items=11, k=2)
    metric.update(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([1.0, 0.0]))
    metric.update(torch.tensor([[2, 7, 8]]))
    assert metric.compute().item() == 3 / 10


def test_row_0_is_no_item():
    metric = Coverage(num_items=3, k=5)
    metric.update(torch.tensor([[1, 0, 0]]))
    assert metric.compute().item() == 1 / 2


def test_no_list_is_0():
    metric = Coverage(num_items=3)
    metric.update(torch.zeros(0, 10, dtype=torch.int64))
    assert metric.compute().item() == 0


def test_a_row_outside_the_table_is_refused():
    with pytest.raises(ValueError, match=r"rows in \[0, 3\), got rows from 1 to 3"):
        Coverage(num_items=3).update(torch.tensor([[1, 3]]))
