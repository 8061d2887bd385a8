import math

import pytest
import torch

from lightning_mvrec.strategies import SGD, Adagrad, Adam, RowWiseAdagrad


def test_sgd_takes_a_step_against_the_gradient():
    weight = torch.tensor([[1.0, 2.0]])
    SGD(lr=0.5).update(weight, torch.tensor([[2.0, -4.0]]), {}, lr=0.5, step=1)
    assert weight.tolist() == [[1.0 - 0.5 * 2.0, 2.0 + 0.5 * 4.0]]


def test_adagrad_divides_by_the_root_of_all_squares_of_a_weight():
    optimizer, weight = Adagrad(lr=1.0, eps=0.5), torch.zeros(1, 1)
    state = optimizer.init_state(weight)
    for gradient in (3.0, 4.0):
        optimizer.update(weight, torch.tensor([[gradient]]), state, lr=1.0, step=1)
    assert weight.item() == pytest.approx(-3 / (3 + 0.5) - 4 / (math.sqrt(9 + 16) + 0.5))


def test_row_wise_adagrad_shares_the_mean_square_of_a_row():
    optimizer, weight = RowWiseAdagrad(lr=1.0, eps=0.0), torch.zeros(2, 2)
    state = optimizer.init_state(weight)
    optimizer.update(weight, torch.tensor([[1.0, 7.0], [3.0, 3.0]]), state, lr=1.0, step=1)
    assert state["sum"].tolist() == [(1 + 49) / 2, (9 + 9) / 2]
    assert weight.flatten().tolist() == pytest.approx([-1 / 5, -7 / 5, -3 / 3, -3 / 3])


def test_row_wise_adagrad_decays_the_touched_rows():
    optimizer, weight = RowWiseAdagrad(lr=0.1, weight_decay=0.5), torch.ones(2, 1)
    optimizer.update(weight, torch.tensor([[3.0], [0.0]]), optimizer.init_state(weight), lr=0.1, step=1)
    assert weight.flatten().tolist() == pytest.approx([1 - 0.1 * 0.5 * 1 - 0.1 * 3 / 3, 1.0])


def test_adam_moves_only_touched_rows_and_equals_torch_there():
    optimizer = Adam(lr=0.1, betas=(0.5, 0.75), weight_decay=0.01)
    weight = torch.randn(3, 2)
    still = weight[2].clone()
    state = optimizer.init_state(weight)
    theirs = torch.nn.Parameter(weight[:2].clone())
    reference = torch.optim.AdamW([theirs], lr=0.1, betas=(0.5, 0.75), weight_decay=0.01)
    for step in range(1, 5):
        gradient = torch.randn(3, 2)
        gradient[2] = 0
        optimizer.update(weight, gradient, state, lr=0.1, step=step)
        theirs.grad = gradient[:2].clone()
        reference.step()
    assert torch.allclose(weight[:2], theirs, atol=1e-5)
    assert torch.equal(weight[2], still)


def test_adam_keeps_the_moments_of_a_row_that_skips_a_step():
    optimizer, weight = Adam(lr=0.1, betas=(0.5, 0.5)), torch.ones(1, 1)
    state = optimizer.init_state(weight)
    optimizer.update(weight, torch.ones(1, 1), state, lr=0.1, step=1)
    optimizer.update(weight, torch.zeros(1, 1), state, lr=0.1, step=2)
    assert state["exp_avg"].item() == 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(lr=-1.0), "SGD: lr must be at least 0, got -1.0"),
        (lambda: SGD(lr=float("nan")), "SGD: lr must be at least 0, got nan"),
        (
            lambda: RowWiseAdagrad(lr=1.0, weight_decay=-1.0),
            "RowWiseAdagrad: weight_decay must be at least 0, got -1.0",
        ),
        (lambda: Adagrad(lr=1.0, eps=-1.0), "Adagrad: eps must be at least 0, got -1.0"),
        (lambda: Adam(lr=1.0, betas=(0.9, 1.0)), r"Adam: betas must be in \[0, 1\), got \(0.9, 1.0\)"),
        (lambda: Adam(lr=1.0, weight_decay=-0.1), "Adam: weight_decay must be at least 0, got -0.1"),
    ],
)
def test_a_value_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_arguments_of_a_kernel_are_a_new_dict_each_time():
    optimizer = RowWiseAdagrad(lr=0.1)
    optimizer.fused_kwargs()["learning_rate"] = 7.0  # TorchRec does such things
    assert optimizer.fused_kwargs()["learning_rate"] == 0.1
