import pytest
import torch
from torch.nn import functional

from lightning_mvrec.encoders import CNNEncoder


def test_equals_dilated_conv1d_with_residuals():
    torch.manual_seed(0)
    encoder = CNNEncoder(4, kernel_size=3, layers=2).eval()
    x_BTD = torch.randn(2, 9, 4)
    h_BTD = x_BTD
    for layer in range(2):
        # Linear's input is [oldest, ..., newest] copies side by side: (D_out, W * D) -> conv's (D_out, D, W).
        weight = encoder.kernels[layer].weight.unflatten(1, (3, 4)).transpose(1, 2)
        normed = functional.layer_norm(h_BTD, (4,)).transpose(1, 2)
        padded = functional.pad(normed, (2 * 2**layer, 0))
        out = functional.conv1d(padded, weight, encoder.kernels[layer].bias, dilation=2**layer)
        h_BTD = h_BTD + out.relu().transpose(1, 2)
    torch.testing.assert_close(encoder(x_BTD, torch.tensor([9, 9])), h_BTD)


@pytest.mark.parametrize(("kernel_size", "layers", "reach"), [(3, 2, 7), (2, 3, 8), (1, 2, 1), (5, 1, 5)])
def test_reach_is_what_the_docstring_says(kernel_size, layers, reach):
    assert reach == 1 + (kernel_size - 1) * (2**layers - 1)
    torch.manual_seed(0)
    encoder = CNNEncoder(4, kernel_size, layers).eval()
    x_BTD = torch.randn(1, 12, 4, requires_grad=True)
    encoder(x_BTD, torch.tensor([12]))[0, -1].sum().backward()
    seen = (x_BTD.grad[0] != 0).any(dim=1)
    assert seen.nonzero().min().item() == 12 - reach
    assert not seen[: 12 - reach].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 0}, "kernel_size must be at least 1 event, got 0"),
        ({"layers": 0}, "layers must be at least 1 convolution, got 0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CNNEncoder(4, **arguments)
