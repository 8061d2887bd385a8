import cmath
import math

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_mvrec.encoders import AttentionEncoder


def turned(vector, step):
    """One head's vector at one step, as complex numbers times ``exp(1j * angle)``."""
    half = len(vector) // 2
    angles = [step * 10_000 ** (-2 * i / len(vector)) for i in range(half)]
    numbers = [complex(vector[i], vector[i + half]) * cmath.exp(1j * angle) for i, angle in enumerate(angles)]
    return torch.tensor([number.real for number in numbers] + [number.imag for number in numbers])


def naive_block(block, h_TD, heads, position="learned", activation=torch.relu):
    """One block, one step and one head at a time."""
    steps, dim = h_TD.shape
    width = dim // heads
    q, k, v = block.qkv(functional.layer_norm(h_TD, (dim,))).chunk(3, dim=1)
    mixed = torch.zeros(steps, dim)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for step in range(steps):
            if position == "rotary":
                query, keys = turned(q[step, part], step), [turned(k[past, part], past) for past in range(step + 1)]
            else:
                query, keys = q[step, part], [k[past, part] for past in range(step + 1)]
            logits = torch.stack([query @ key for key in keys]) / math.sqrt(width)
            mixed[step, part] = logits.softmax(0) @ v[: step + 1, part]
    h_TD = h_TD + block.out(mixed)
    hidden = activation(block.network[0](functional.layer_norm(h_TD, (dim,))))
    return h_TD + block.network[-1](hidden)


def exact_gelu(x):
    """``x`` times the chance that a standard normal number is below it."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("position", ["learned", "rotary", "none"])
@pytest.mark.parametrize("heads", [1, 2])
def test_equals_a_naive_loop(heads, position, activation):
    torch.manual_seed(0)
    encoder = AttentionEncoder(
        4, layers=2, heads=heads, hidden_dim=6, max_len=9, position=position, activation=activation
    ).eval()
    for block in encoder.blocks:
        for linear in (block.qkv, block.out, block.network[0], block.network[-1]):
            torch.nn.init.normal_(linear.weight)
    x_TD = torch.randn(5, 4)
    h_TD = x_TD * 2  # sqrt(4)
    if position == "learned":
        h_TD = h_TD + encoder.position[:5]
    with torch.no_grad():
        for block in encoder.blocks:
            h_TD = naive_block(block, h_TD, heads, position, {"relu": torch.relu, "gelu": exact_gelu}[activation])
        torch.testing.assert_close(encoder(x_TD[None], torch.tensor([5]))[0], functional.layer_norm(h_TD, (4,)))


@pytest.mark.parametrize("position", ["learned", "rotary", "none"])
def test_users_taken_in_parts_have_the_same_last_states(position, monkeypatch):
    torch.manual_seed(0)
    encoder = AttentionEncoder(8, heads=2, position=position).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x_BTD, lengths_B = torch.randn(5, 6, 8), torch.tensor([6, 2, 0, 5, 1])
    whole = encoder.last(x_BTD, lengths_B)
    monkeypatch.setattr("lightning_mvrec.encoders.attention.CPU_STEPS", 12)  # two users at a time
    torch.testing.assert_close(encoder.last(x_BTD, lengths_B), whole)


@pytest.mark.parametrize("position", ["learned", "rotary", "none"])
def test_the_fused_kernel_takes_every_kind_of_position(position):
    encoder = AttentionEncoder(8, heads=2, position=position)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where the kernel cannot serve
        encoder(torch.randn(2, 5, 8, requires_grad=True), torch.tensor([5, 2])).sum().backward()


@pytest.mark.parametrize("position", ["rotary", "none"])
def test_without_a_table_of_positions_no_history_is_too_long(position):
    encoder = AttentionEncoder(4, max_len=3, position=position)
    assert encoder(torch.zeros(1, 9, 4), torch.tensor([9])).shape == (1, 9, 4)
    assert "position" not in dict(encoder.named_parameters())


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_order_matters(position):
    torch.manual_seed(0)
    encoder = AttentionEncoder(8, position=position).eval()
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
        ({"heads": 8, "position": "rotary"}, "embedding_dim / heads must be even with rotary positions, got 8 and 8"),
        ({"position": "sine"}, r"position must be one of \['learned', 'rotary', 'none'\], got 'sine'"),
        ({"activation": "elu"}, r"activation must be one of \['relu', 'gelu'\], got 'elu'"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AttentionEncoder(8, **arguments)
