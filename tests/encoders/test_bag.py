import pytest
import torch

from lightning_mvrec.encoders import BagEncoder, MLPEncoder, RunningMeanEncoder
from lightning_mvrec.encoders.base import SequenceEncoder

NUM_ITEMS, D = 9, 4


@pytest.fixture(name="bag")
def _bag():
    """A view's item table W, two users' histories (a repeat among them), and their padded rows of W."""
    torch.manual_seed(0)
    table = torch.randn(NUM_ITEMS, D)
    histories = [[3, 5, 3, 8], [1, 2]]
    x_BTD = torch.zeros(2, 4, D)
    for user, items in enumerate(histories):
        x_BTD[user, : len(items)] = table[items]
    return table, histories, x_BTD, torch.tensor([4, 2])


@pytest.mark.parametrize("normalize", [False, True])
def test_equals_multi_hot_times_matrix_at_every_prefix(bag, normalize):
    table, histories, x_BTD, lengths_B = bag
    h_BTD = BagEncoder(D, normalize)(x_BTD, lengths_B)
    for user, items in enumerate(histories):
        for step in range(len(items)):
            multi_hot = torch.zeros(NUM_ITEMS)
            for item in items[: step + 1]:
                multi_hot[item] += 1
            expected = multi_hot @ table / (step + 1 if normalize else 1)
            torch.testing.assert_close(h_BTD[user, step], expected)


def test_perceptron_reads_the_mean_of_the_bag(bag):
    table, histories, x_BTD, lengths_B = bag
    encoder = MLPEncoder(D).eval()
    h_BTD = encoder(x_BTD, lengths_B)
    first, last = encoder.network[0], encoder.network[-1]
    mean = table[histories[0][:3]].mean(0)
    expected = last.weight @ (first.weight @ mean + first.bias).clamp(min=0) + last.bias
    torch.testing.assert_close(h_BTD[0, 2], expected)


def test_bags_ask_for_a_table_of_their_own():
    assert BagEncoder(D).own_table
    assert MLPEncoder(D).own_table
    assert RunningMeanEncoder(D, BagEncoder).own_table
    assert not RunningMeanEncoder(D).own_table


class _Reversed(SequenceEncoder):
    causal = False

    def __init__(self, embedding_dim):
        super().__init__()

    def forward(self, x_BTD, lengths_B):
        return x_BTD.flip(1)


def test_running_mean_averages_the_inner_states_and_takes_over_their_promises(bag):
    _, _, x_BTD, _ = bag
    encoder = RunningMeanEncoder(D, _Reversed)
    assert not encoder.causal
    h_BTD = encoder(x_BTD, torch.tensor([4, 4]))
    torch.testing.assert_close(h_BTD[0, 1], (x_BTD[0, 3] + x_BTD[0, 2]) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, "layers must be at least 1 hidden layer, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1 channel, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLPEncoder(D, **arguments)
