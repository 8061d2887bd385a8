import pytest
import torch

from lightning_mvrec.encoders import DecayEncoder


def naive(x_TD, half_life_D):
    """Average every prefix, one step and one past event at a time."""
    result = torch.zeros_like(x_TD)
    for step in range(len(x_TD)):
        weights = [0.5 ** ((step - past) / half_life_D) for past in range(step + 1)]
        result[step] = sum(weight * x_TD[past] for past, weight in enumerate(weights)) / sum(weights)
    return result


@pytest.mark.parametrize("steps", [1, 5, 63, 64, 65, 130])
def test_equals_the_naive_definition_also_across_chunks(steps):
    torch.manual_seed(0)
    encoder = DecayEncoder(3).double()
    with torch.no_grad():
        encoder.log2_half_life.copy_(torch.tensor([-2.0, 1.0, 12.0]))  # 1/4, 2 and 4096 steps
    x_TD = torch.randn(steps, 3, dtype=torch.float64)
    expected = naive(x_TD, torch.tensor([0.25, 2.0, 4096.0], dtype=torch.float64))
    torch.testing.assert_close(encoder(x_TD[None], torch.tensor([steps]))[0], expected)


def test_gradients_equal_finite_differences_across_chunks(monkeypatch):
    monkeypatch.setattr("lightning_mvrec.encoders.decay.CHUNK", 3)
    torch.manual_seed(0)
    encoder = DecayEncoder(2, half_life=1.5).double()
    x_BTD = torch.randn(2, 7, 2, dtype=torch.float64, requires_grad=True)
    lengths_B = torch.tensor([7, 4])

    def run(x_BTD, log2_half_life):
        return torch.func.functional_call(encoder, {"log2_half_life": log2_half_life}, (x_BTD, lengths_B))

    assert torch.autograd.gradcheck(run, (x_BTD, encoder.log2_half_life))


@pytest.mark.parametrize("half_life", [1e-6, 1e9])
def test_extreme_half_lives_stay_finite(half_life):
    encoder = DecayEncoder(1, half_life=half_life)
    h_BTD = encoder(torch.tensor([4.0, 2.0]).repeat(1, 100)[..., None], torch.tensor([200]))
    h_BTD.sum().backward()
    # Nothing but the last event, or the plain mean.
    assert h_BTD[0, -1, 0].item() == pytest.approx(2.0 if half_life < 1 else 3.0)
    assert encoder.log2_half_life.grad.isfinite().all()


@pytest.mark.parametrize("half_life", [0.0, -1.0])
def test_a_half_life_of_nothing_is_refused(half_life):
    with pytest.raises(ValueError, match=f"half_life must be above 0 steps, got {half_life}"):
        DecayEncoder(4, half_life)
