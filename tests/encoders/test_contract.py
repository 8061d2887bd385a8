"""What every encoder promises, asked of each of them."""

import pytest
import torch

from lightning_mvrec.encoders import (
    AttentionEncoder,
    BagEncoder,
    CNNEncoder,
    DecayEncoder,
    GRUEncoder,
    MLPEncoder,
    RunningMeanEncoder,
)

D = 8
BUILD = {
    "attention": lambda: AttentionEncoder(D, heads=2, max_len=80),
    "attention-deep": lambda: AttentionEncoder(D, layers=3, hidden_dim=16, max_len=80, attention_dropout=0.3),
    "attention-rotary": lambda: AttentionEncoder(D, heads=2, position="rotary", activation="gelu"),
    "attention-unordered": lambda: AttentionEncoder(D, heads=2, position="none"),
    "bag": lambda: BagEncoder(D),
    "bag-mean": lambda: BagEncoder(D, normalize=True),
    "cnn": lambda: CNNEncoder(D),
    "cnn-deep": lambda: CNNEncoder(D, kernel_size=2, layers=3),
    "decay": lambda: DecayEncoder(D),
    "gru": lambda: GRUEncoder(D),
    "gru-deep": lambda: GRUEncoder(D, layers=2),
    "mlp": lambda: MLPEncoder(D, layers=2, hidden_dim=5),
    "running-mean": lambda: RunningMeanEncoder(D),
    "running-mean-cnn": lambda: RunningMeanEncoder(D, CNNEncoder),
}


@pytest.fixture(params=BUILD, name="encoder")
def _encoder(request):
    torch.manual_seed(0)
    encoder = BUILD[request.param]()
    for parameter in encoder.parameters():  # far from an initialisation that hides a path
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder


def history(users=4, steps=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x_BTD = torch.randn(users, steps, D, generator=generator)
    lengths_B = torch.tensor([steps, 3, 0, 1])[:users]
    return x_BTD, lengths_B


def test_a_later_step_never_changes_an_earlier_state(encoder):
    encoder.eval()
    x_BTD, _ = history()
    lengths_B = torch.full((4,), 7)
    before = encoder(x_BTD, lengths_B)
    for step in range(7):
        changed = x_BTD.clone()
        changed[:, step] += 5 * torch.arange(D)  # not a constant: a layer normalisation would not notice
        after = encoder(changed, lengths_B)
        torch.testing.assert_close(after[:, :step], before[:, :step], rtol=0, atol=1e-5)
        assert (after[:, step] - before[:, step]).abs().max() > 1e-3, "a state must see its own step"


def test_padding_values_have_no_effect_on_states_or_gradients(encoder):
    encoder.eval()
    x_BTD, lengths_B = history()
    pad_BT = torch.arange(7) >= lengths_B[:, None]
    results = []
    for filler in (0.0, 1e4):
        x = x_BTD.masked_fill(pad_BT[..., None], filler).requires_grad_()
        encoder.zero_grad()
        h = encoder(x, lengths_B)
        h.square().sum().backward()
        results.append((h.detach(), x.grad, [p.grad.clone() for p in encoder.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    assert (results[1][1][pad_BT] == 0).all()


def test_padded_steps_are_zero(encoder):
    x_BTD, lengths_B = history()
    h_BTD = encoder(x_BTD, lengths_B)
    assert (h_BTD[torch.arange(7) >= lengths_B[:, None]] == 0).all()
    assert h_BTD.shape == x_BTD.shape


def test_batch_order_and_company_have_no_effect(encoder):
    encoder.eval()
    x_BTD, lengths_B = history()
    together = encoder(x_BTD, lengths_B)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(encoder(x_BTD[order], lengths_B[order]), together[order])
    for user in range(4):
        length = int(lengths_B[user])
        alone = encoder(x_BTD[user : user + 1, :length], lengths_B[user : user + 1])
        torch.testing.assert_close(alone, together[user : user + 1, :length], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [[7, 3, 0, 1], [0, 0, 0, 0], [7, 7, 7, 7], [2, 1, 0, 1]])
@pytest.mark.parametrize("training", [False, True])
def test_the_last_state_is_that_of_all_states(encoder, lengths, training):
    x_BTD, _ = history()
    lengths_B = torch.tensor(lengths)
    encoder.train(training)
    torch.manual_seed(3)
    h_BTD = encoder(x_BTD, lengths_B)
    expected = [h_BTD[user, length - 1] if length else torch.zeros(D) for user, length in enumerate(lengths)]
    torch.manual_seed(3)
    torch.testing.assert_close(encoder.last(x_BTD, lengths_B), torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("users", "steps"), [(0, 5), (3, 0), (0, 0)])
def test_the_last_state_of_an_empty_batch_is_zero(encoder, users, steps):
    encoder.eval()
    state_BD = encoder.last(torch.zeros(users, steps, D), torch.zeros(users, dtype=torch.int64))
    assert state_BD.tolist() == [[0.0] * D] * users


@pytest.mark.parametrize(("users", "steps"), [(0, 5), (3, 0), (0, 0), (2, 4)])
def test_an_empty_batch_gives_every_parameter_a_gradient(encoder, users, steps):
    x_BTD = torch.zeros(users, steps, D, requires_grad=True)
    h_BTD = encoder(x_BTD, torch.zeros(users, dtype=torch.int64))
    assert h_BTD.shape == (users, steps, D)
    h_BTD.sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_gradients_are_finite_and_reach_every_parameter_in_training(encoder, scale):
    encoder.train()
    x_BTD, lengths_B = history()
    x_BTD = (scale * x_BTD).requires_grad_()
    encoder(x_BTD, lengths_B).square().sum().backward()
    assert x_BTD.grad.isfinite().all()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if scale == 1.0:
            assert (parameter.grad != 0).any(), name


def test_dropout_acts_in_training_only(encoder):
    x_BTD, lengths_B = history()
    encoder.eval()
    torch.testing.assert_close(encoder(x_BTD, lengths_B), encoder(x_BTD, lengths_B), rtol=0, atol=0)
    encoder.train()
    random = any(getattr(module, "probability", 0.0) > 0 for module in encoder.modules())
    assert torch.equal(encoder(x_BTD, lengths_B), encoder(x_BTD, lengths_B)) is not random


def test_a_history_of_int32_lengths_works_too(encoder):
    encoder.eval()
    x_BTD, lengths_B = history()
    torch.testing.assert_close(encoder(x_BTD, lengths_B.int()), encoder(x_BTD, lengths_B))
