import pytest
import torch

from lightning_mvrec.functional import take_rows


def naive(x_MD, index):
    extended = torch.cat([x_MD, x_MD.new_zeros(1, x_MD.shape[1])])
    return torch.stack([extended[number] for number in index.flatten().tolist()]).view(*index.shape, -1)


@pytest.mark.parametrize("last", [4, 5], ids=["only rows", "with none"])
@pytest.mark.parametrize("train", [True, False])
def test_equals_taking_one_row_at_a_time(last, train):
    x = torch.randn(5, 3, requires_grad=train)
    index = torch.randint(0, last + 1, (4, 6), generator=torch.Generator().manual_seed(1))
    assert (index == 5).any() == (last == 5)
    assert torch.equal(take_rows(x, index), naive(x, index))


@pytest.mark.parametrize("last", [4, 5], ids=["only rows", "with none"])
def test_the_gradient_is_that_of_taking_one_row_at_a_time(last):
    x = torch.randn(5, 3, requires_grad=True)
    index = torch.randint(0, last + 1, (4, 6), generator=torch.Generator().manual_seed(2))
    grad = torch.randn(4, 6, 3)
    (mine,) = torch.autograd.grad(take_rows(x, index), x, grad)
    (theirs,) = torch.autograd.grad(naive(x, index), x, grad)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_types_are_kept(dtype):
    x = torch.ones(2, 4, dtype=dtype, requires_grad=True)
    rows = take_rows(x, torch.tensor([0, 0, 2, 1]))
    (grad,) = torch.autograd.grad(rows.sum(), x)
    assert rows.dtype == grad.dtype == dtype
    assert grad[:, 0].tolist() == [2.0, 1.0]


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 3)])
def test_without_rows_or_without_numbers_the_graph_is_whole(shape):
    for rows in (0, 2):
        x = torch.ones(rows, 4, requires_grad=True)
        found = take_rows(x, torch.full(shape, rows))
        assert found.shape == (*shape, 4)
        assert not found.any()
        (grad,) = torch.autograd.grad(found.sum(), x)
        assert grad.shape == x.shape
        assert not grad.any()


def test_a_gradient_that_is_not_contiguous_is_read_rightly():
    x = torch.randn(3, 4, requires_grad=True)
    index = torch.tensor([[0, 1], [2, 0]])
    grad = torch.randn(4, 2, 2).permute(1, 2, 0)
    (mine,) = torch.autograd.grad(take_rows(x, index), x, grad)
    torch.testing.assert_close(mine[0], grad[0, 0] + grad[1, 1])
