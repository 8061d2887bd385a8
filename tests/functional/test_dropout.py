import pytest
import torch

from lightning_mvrec.functional.dropout import Dropout, ReluDropout, dropout, relu_dropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("size", [100_000, 99_997])
def test_drops_the_asked_share_and_keeps_the_mean(probability, size):
    torch.manual_seed(0)
    result = dropout(torch.ones(size), probability)
    kept = result[result != 0]
    assert 1 - len(kept) / size == pytest.approx(probability, abs=0.01)
    assert kept.unique().tolist() == pytest.approx([1 / (1 - probability)], rel=1e-3)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(400_000), 0.5) != 0).double()
    for distance in (1, 2, 3, 4):  # four elements share one random number
        correlation = torch.corrcoef(torch.stack([kept[:-distance], kept[distance:]]))[0, 1]
        assert abs(correlation.item()) < 0.01


def test_gradient_passes_where_the_value_passed():
    x = torch.ones(10, 3, requires_grad=True)
    result = dropout(x, 0.5)
    result.sum().backward()
    assert torch.equal(x.grad, result.detach())


def test_two_bytes_an_element_are_kept_for_the_backward_pass():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda x: x):
        dropout(torch.ones(1000, requires_grad=True), 0.5)
    assert sum(kept) == 2000


def test_the_seed_decides():
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(dropout(torch.ones(50), 0.5))
    assert torch.equal(*results)


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (1,), (3, 5)])
def test_any_shape_and_layout(shape):
    assert dropout(torch.ones(shape), 0.3).shape == shape
    assert dropout(torch.ones(4, 6).T, 0.3).shape == (6, 4)


def test_evaluation_and_probability_zero_pass_through():
    x = torch.ones(5)
    assert dropout(x, 0.5, training=False) is x
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_a_probability_out_of_range_is_refused(probability):
    with pytest.raises(ValueError, match=rf"probability must be in \[0, 1\), got {probability}"):
        Dropout(probability)
    with pytest.raises(ValueError, match=rf"probability must be in \[0, 1\), got {probability}"):
        dropout(torch.ones(1), probability)


def test_relu_and_dropout_in_one_are_the_two_in_turn():
    x = torch.randn(40, 30)
    results = []
    for apply in (lambda x: relu_dropout(x, 0.3), lambda x: dropout(torch.relu(x), 0.3)):
        torch.manual_seed(0)
        leaf = x.clone().requires_grad_()
        result = apply(leaf)
        result.backward(torch.linspace(-1, 1, 30).expand(40, 30))
        results.append((result.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_relu_and_dropout_in_one_keep_their_result_alone():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda x: x):
        result = relu_dropout(torch.ones(1000, requires_grad=True), 0.5)
    assert [tensor.data_ptr() for tensor in kept] == [result.data_ptr()]


def test_without_dropout_relu_remains():
    x = torch.tensor([-1.0, 2.0])
    for result in (relu_dropout(x, 0.5, training=False), ReluDropout(0.0)(x), ReluDropout(0.5).eval()(x)):
        assert result.tolist() == [0.0, 2.0]
