import numpy as np
import pytest
from hypothesis import given, settings

from lightning_mvrec.data.filters import AllTargets
from lightning_mvrec.data.histories import build_history
from lightning_mvrec.data.split import (
    GivenPairs,
    GlobalTimeSplit,
    KFold,
    LeaveOneOut,
    PerUserTimeSplit,
    RandomSplit,
    gather_candidates,
)
from tests.data.frames import logs


def assign(frames, split, targets=(1,)):
    histories = [
        build_history(*(frame[column].to_numpy() for column in ("user", "item", "time")), {}, num_users=5)
        for frame in frames.values()
    ]
    candidates = gather_candidates(histories, AllTargets().eligible(histories, list(targets)))
    return histories, candidates, split.assign(histories, candidates)


@settings(max_examples=40, deadline=None)
@given(logs())
def test_global_time_learns_nothing_from_the_first_evaluation_moment_on(frames):
    histories, candidates, result = assign(frames, GlobalTimeSplit(0.2, 0.2))
    for earlier, later in ((0, 1), (0, 2), (1, 2)):
        before, after = candidates.time[result.target == earlier], candidates.time[result.target == later]
        assert not len(before) or not len(after) or before.max() < after.min()
    if (result.target > 0).any():
        first = candidates.time[result.target > 0].min()
        for history, stage in zip(histories, result.events, strict=True):
            assert (history.time[stage == 0] < first).all()
            assert (history.time[stage > 0] >= first).all()


def test_global_time_takes_the_asked_shares_where_times_differ():
    rng = np.random.default_rng(0)
    histories = [build_history(rng.integers(0, 5, 100), rng.integers(0, 9, 100), rng.permutation(100), {}, 5)]
    candidates = gather_candidates(histories, AllTargets().eligible(histories, [0]))
    result = GlobalTimeSplit(0.1, 0.2).assign(histories, candidates)
    assert np.bincount(result.target).tolist() == [70, 10, 20]


@settings(max_examples=40, deadline=None)
@given(logs())
def test_leave_one_out_tests_the_last_and_validates_the_one_before(frames):
    _, candidates, result = assign(frames, LeaveOneOut(min_targets=3))
    for user in range(5):
        stages = result.target[candidates.user == user].tolist()
        expected = [0] * len(stages) if len(stages) < 3 else [0] * (len(stages) - 2) + [1, 2]
        assert stages == expected


@settings(max_examples=40, deadline=None)
@given(logs())
def test_leave_one_out_trains_on_no_event_from_a_users_validation_target_on(frames):
    histories, candidates, result = assign(frames, LeaveOneOut(min_targets=1))
    for user in range(5):
        evaluated = np.flatnonzero((candidates.user == user) & (result.target > 0))
        first = candidates.time[evaluated].min() if len(evaluated) else None
        for number, (history, stage) in enumerate(zip(histories, result.events, strict=True)):
            times = history.time[(history.user == user) & (stage == 0)]
            if first is None:
                assert len(times) == (history.user == user).sum()
            elif number == 1:
                assert (times <= first).all()
            else:
                assert (times < first).all()


def test_per_user_time_takes_each_users_share_from_the_end():
    user = np.repeat([0, 1], [10, 4])
    histories = [build_history(user, user, np.arange(14), {}, 2)]
    candidates = gather_candidates(histories, AllTargets().eligible(histories, [0]))
    result = PerUserTimeSplit(val=0.1, test=0.25).assign(histories, candidates)
    assert result.target.tolist() == [0] * 7 + [1, 2, 2] + [0] * 3 + [2]


def test_given_pairs_validate_on_each_users_last_target_and_rank_every_item_of_an_event():
    user = np.array([0, 0, 1])
    histories = [build_history(user, np.array([5, 6, 7]), np.arange(3), {}, 2)]
    candidates = gather_candidates(histories, AllTargets().eligible(histories, [0]))
    result = GivenPairs().assign(histories, candidates)
    assert result.target.tolist() == [0, 1, 1]
    assert result.events[0].tolist() == [0, 1, 1]
    assert result.catalogue[0].all()


def test_random_split_takes_the_asked_shares_and_says_that_it_leaks():
    histories = [build_history(np.arange(100) % 5, np.arange(100), np.arange(100), {}, 5)]
    candidates = gather_candidates(histories, AllTargets().eligible(histories, [0]))
    result = RandomSplit(0.1, 0.2, seed=3).assign(histories, candidates)
    assert np.bincount(result.target).tolist() == [70, 10, 20]
    assert "LEAKS" in result.note
    assert (result.target == RandomSplit(0.1, 0.2, seed=3).assign(histories, candidates).target).all()
    assert (result.target != RandomSplit(0.1, 0.2, seed=4).assign(histories, candidates).target).any()


def test_folds_test_every_target_exactly_once():
    histories = [build_history(np.arange(23) % 5, np.arange(23), np.arange(23), {}, 5)]
    candidates = gather_candidates(histories, AllTargets().eligible(histories, [0]))
    tested = sum((KFold(4, fold, val=0.0).assign(histories, candidates).target == 2).astype(int) for fold in range(4))
    assert tested.tolist() == [1] * 23


def test_an_evaluation_target_of_another_view_at_the_same_moment_is_no_training_event():
    # A click and a purchase in the same second, both targets: the purchase tests and is not learned from.
    histories = [
        build_history(np.array([0, 0]), np.array([1, 2]), np.array([1, 5]), {}, 1),
        build_history(np.array([0]), np.array([2]), np.array([5]), {}, 1),
    ]
    candidates = gather_candidates(histories, AllTargets().eligible(histories, [0, 1]))
    result = LeaveOneOut(min_targets=1).assign(histories, candidates)
    assert candidates.view[result.target == 2].tolist() == [1]
    assert [stage.tolist() for stage in result.events] == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GlobalTimeSplit(-0.1, 0.1), "val must be a share"),
        (lambda: PerUserTimeSplit(0.5, 0.5), r"val \+ test must be below 1"),
        (lambda: LeaveOneOut(0), "min_targets must be at least 1"),
        (lambda: KFold(1), "folds must be at least 2"),
        (lambda: KFold(3, 3), r"fold must be in \[0, 3\)"),
    ],
)
def test_a_wrong_argument_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
