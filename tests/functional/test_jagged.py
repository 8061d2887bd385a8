import pytest
import torch

from lightning_mvrec.functional.jagged import gather_padded, last_state, padded_index, to_padded

CASES = [[2, 0, 3], [1], [0, 0], [], [4, 4]]


def naive(values, lengths, steps):
    rows, start = [], 0
    for length in lengths:
        row = list(values[start : start + length])
        rows.append(row + [0 * values[0]] * (steps - length) if len(values) else [])
        start += length
    return rows


@pytest.mark.parametrize("lengths", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_padding_equals_a_naive_loop(lengths, dtype):
    values_E = torch.arange(1, sum(lengths) + 1).to(dtype)
    padded = to_padded(values_E, torch.tensor(lengths, dtype=torch.int64))
    assert padded.dtype == dtype
    assert padded.shape == (len(lengths), max(lengths, default=0))
    if padded.numel():
        expected = naive(values_E.tolist(), lengths, max(lengths))
        assert padded.to(torch.int64).tolist() == [[int(value) for value in row] for row in expected]


def test_values_keep_their_trailing_shape_and_a_given_number_of_steps_is_used():
    padded = to_padded(torch.ones(3, 2, 5), torch.tensor([1, 2]), num_steps=4)
    assert padded.shape == (2, 4, 2, 5)
    assert padded.sum().item() == 3 * 2 * 5


@pytest.mark.parametrize("lengths", CASES)
def test_gathering_equals_indexing_then_padding_with_its_gradient(lengths):
    torch.manual_seed(0)
    item_MD = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    position_E, lengths_B = torch.randint(0, 5, (sum(lengths),)), torch.tensor(lengths, dtype=torch.int64)
    results = []
    for padded in (
        gather_padded(item_MD, position_E, lengths_B),
        to_padded(item_MD[position_E], lengths_B),
    ):
        item_MD.grad = None
        (padded.sin().sum() + 0 * item_MD.sum()).backward()
        results.append((padded.detach(), item_MD.grad))
    torch.testing.assert_close(*results)


def test_without_events_the_gradient_still_reaches_the_items():
    item_MD = torch.randn(2, 3, requires_grad=True)
    gather_padded(item_MD, torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0])).sum().backward()
    assert (item_MD.grad == 0).all()


@pytest.mark.parametrize("num_events", [2, 4])
def test_lengths_that_do_not_fit_the_values_are_refused(num_events):
    with pytest.raises(ValueError, match=f"lengths_B must sum up to the number of values, {num_events}, got 3"):
        padded_index(torch.tensor([2, 1]), num_events)


def test_last_state_is_the_state_after_asof_steps():
    h_BTD = torch.arange(1.0, 13.0).reshape(2, 3, 2)
    asof_R, user_R = torch.tensor([0, 1, 3, 2, 0]), torch.tensor([0, 0, 0, 1, 1])
    expected = torch.stack([torch.zeros(2), h_BTD[0, 0], h_BTD[0, 2], h_BTD[1, 1], torch.zeros(2)])
    assert torch.equal(last_state(h_BTD, asof_R, user_R), expected)


@pytest.mark.parametrize(("users", "steps", "rows"), [(2, 0, 3), (0, 0, 0), (2, 3, 0)])
def test_last_state_of_nothing_is_zero_with_a_gradient(users, steps, rows):
    h_BTD = torch.randn(users, steps, 4, requires_grad=True)
    zeros_R = torch.zeros(rows, dtype=torch.int64)
    state_RD = last_state(h_BTD, zeros_R, zeros_R)
    assert torch.equal(state_RD, torch.zeros(rows, 4))
    state_RD.sum().backward()
    assert h_BTD.grad.shape == h_BTD.shape
