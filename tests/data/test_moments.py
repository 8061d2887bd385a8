"""Moments that are added up are those of all values."""

import numpy as np
import pytest

from lightning_mvrec.data.moments import Moments, RunningMoments


@pytest.mark.parametrize("offset", [0.0, 1.6e9])
def test_pieces_of_any_size_give_the_same_bits_and_numpys_moments(offset):
    value = offset + np.random.default_rng(0).normal(size=200_003)
    whole = Moments.of(value)
    running = RunningMoments()
    for piece in np.array_split(value, 17):
        running.add(piece)
    assert running.result() == whole
    assert whole.mean == pytest.approx(value.mean(), rel=1e-12)
    assert whole.deviation == pytest.approx(value.std(), rel=1e-6)
    assert (whole.low, whole.high) == (value.min(), value.max())


def test_equal_values_have_a_deviation_of_1_and_none_are_harmless():
    assert Moments.of(np.full(5, 0.1)) == Moments(mean=0.1, deviation=1.0, low=0.1, high=0.1)
    assert Moments.of(np.zeros(0)) == Moments()
