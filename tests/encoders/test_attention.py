import math

import pytest
import torch
from torch.nn import functional

from lightning_mvrec.encoders import AttentionEncoder


def naive_block(block, h_TD, heads):
    """One block, one step and one head at a time."""
    steps, dim = h_TD.shape
    width = dim // heads
    q, k, v = block.qkv(functional.layer_norm(h_TD, (dim,))).chunk(3, dim=1)
    mixed = torch.zeros(steps, dim)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for step in range(steps):
            logits = torch.stack([q[step, part] @ k[past, part] for past in range(step + 1)]) / math.sqrt(width)
            mixed[step, part] = logits.softmax(0) @ v[: step + 1, part]
    h_TD = h_TD + block.out(mixed)
    hidden = block.network[0](functional.layer_norm(h_TD, (dim,))).relu()
    return h_TD + block.network[-1](hidden)


@pytest.mark.parametrize("heads", [1, 2])
def test_equals_a_naive_loop(heads):
    torch.manual_seed(0)
    encoder = AttentionEncoder(4, layers=2, heads=heads, hidden_dim=6, max_len=9).eval()
    for block in encoder.blocks:
        for linear in (block.qkv, block.out, block.network[0], block.network[-1]):
            torch.nn.init.normal_(linear.weight)
    x_TD = torch.randn(5, 4)
    h_TD = x_TD * 2 + encoder.position[:5]  # sqrt(4)
    for block in encoder.blocks:
        h_TD = naive_block(block, h_TD, heads)
    torch.testing.assert_close(encoder(x_TD[None], torch.tensor([5]))[0], functional.layer_norm(h_TD, (4,)))


def test_order_matters():
    torch.manual_seed(0)
    encoder = AttentionEncoder(8).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter)
    x_BTD = torch.randn(1, 4, 8)
    swapped = x_BTD[:, [1, 0, 2, 3]]
    length = torch.tensor([4])
    assert not torch.allclose(encoder(x_BTD, length)[:, -1], encoder(swapped, length)[:, -1], atol=1e-3)


def test_a_history_above_max_len_is_refused():
    encoder = AttentionEncoder(4, max_len=3)
    assert encoder(torch.zeros(1, 3, 4), torch.tensor([3])).shape == (1, 3, 4)
    with pytest.raises(ValueError, match="a history must have at most max_len=3 events, got 4"):
        encoder(torch.zeros(1, 4, 4), torch.tensor([4]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 3}, "embedding_dim must be a multiple of heads, got 8 and 3"),
        ({"heads": 0}, "heads must be at least 1 head, got 0"),
        ({"layers": 0}, "layers must be at least 1 block, got 0"),
        ({"max_len": 0}, "max_len must be at least 1 event, got 0"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1 channel, got 0"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttentionEncoder(8, **arguments)
