import numpy as np
import pytest

from lightning_mvrec.data.transforms import Identity, MinMax, Standardise, UserMean

VALUE = np.array([1.0, 5.0, np.nan, 3.0, 4.0, 8.0])
OFFSETS = np.array([0, 3, 6])
TRAIN = np.array([True, True, True, True, False, False])


@pytest.mark.parametrize("transform", [Identity(), Standardise(), MinMax(), UserMean()])
def test_nothing_of_later_stages_or_later_events_enters(transform):
    before = transform.apply(VALUE, OFFSETS, TRAIN)
    changed = VALUE.copy()
    changed[4:] = 1000.0  # the events of user 1 that are not training events
    after = transform.apply(changed, OFFSETS, TRAIN)
    assert np.isfinite(before).all()
    assert before[:4].tolist() == after[:4].tolist()


def test_standardise_uses_mean_and_deviation_of_the_training_events():
    mean, deviation = 3.0, np.std([1.0, 5.0, 3.0])
    expected = [
        (1 - mean) / deviation,
        (5 - mean) / deviation,
        0.0,
        0.0,
        (4 - mean) / deviation,
        (8 - mean) / deviation,
    ]
    assert Standardise().apply(VALUE, OFFSETS, TRAIN) == pytest.approx(expected)


def test_min_max_is_0_to_1_over_the_training_events():
    assert MinMax().apply(VALUE, OFFSETS, TRAIN).tolist() == [0.0, 1.0, 0.5, 0.5, 0.75, 1.75]


def test_user_mean_is_the_mean_of_the_users_earlier_events_pulled_to_the_global_one():
    mean, deviation, prior = 3.0, np.std([1.0, 5.0, 3.0]), 2.0
    expected = []
    for start, end in ((0, 3), (3, 6)):
        for place in range(start, end):
            earlier = [v for v in VALUE[start:place] if not np.isnan(v)]
            running = (sum(earlier) + prior * mean) / (len(earlier) + prior)
            expected.append(0.0 if np.isnan(VALUE[place]) else (VALUE[place] - running) / deviation)
    assert UserMean(prior).apply(VALUE, OFFSETS, TRAIN) == pytest.approx(expected)


@pytest.mark.parametrize("transform", [Identity(), Standardise(), MinMax(), UserMean()])
def test_a_constant_or_wholly_missing_field_stays_finite(transform):
    for value in (2.0, np.nan):
        assert np.isfinite(transform.apply(np.full(6, value), OFFSETS, TRAIN)).all()


def test_user_mean_needs_a_prior():
    with pytest.raises(ValueError, match="prior must be above 0"):
        UserMean(0.0)
