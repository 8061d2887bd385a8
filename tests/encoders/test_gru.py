import warnings

import pytest
import torch

from lightning_mvrec.encoders import GRUEncoder


def test_equals_the_gate_equations():
    torch.manual_seed(0)
    encoder = GRUEncoder(3).eval()
    x_TD = torch.randn(5, 3)
    gru = encoder.gru
    (wr, wz, wn), (ur, uz, un) = gru.weight_ih_l0.chunk(3), gru.weight_hh_l0.chunk(3)
    (br, bz, bn), (cr, cz, cn) = gru.bias_ih_l0.chunk(3), gru.bias_hh_l0.chunk(3)
    state, states = torch.zeros(3), []
    for x in x_TD:
        reset = torch.sigmoid(wr @ x + br + ur @ state + cr)
        update = torch.sigmoid(wz @ x + bz + uz @ state + cz)
        new = torch.tanh(wn @ x + bn + reset * (un @ state + cn))
        state = (1 - update) * new + update * state
        states.append(encoder.project.weight @ state + encoder.project.bias)
    torch.testing.assert_close(encoder(x_TD[None], torch.tensor([5]))[0], torch.stack(states))


def test_one_layer_with_dropout_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GRUEncoder(4, layers=1, dropout=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"layers": 0}, "layers must be at least 1 layer, got 0"), ({"dropout": 1.5}, "dropout must be in")],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GRUEncoder(4, **arguments)
