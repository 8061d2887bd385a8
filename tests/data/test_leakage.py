import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lightning_mvrec.data import (
    AllTargets,
    GlobalTimeSplit,
    KFold,
    LeaveOneOut,
    NovelTargets,
    PerUserTimeSplit,
    RandomSplit,
    Store,
    SyntheticEvents,
    find_leaks,
    prepare,
)
from lightning_mvrec.data.sources import FrameSource
from tests.data.frames import logs

SPLITS = [GlobalTimeSplit(0.2, 0.2), PerUserTimeSplit(0.2, 0.2), LeaveOneOut(), RandomSplit(0.2, 0.2), KFold(3)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    logs(),
    st.sampled_from(SPLITS),
    st.sampled_from([AllTargets(), NovelTargets()]),
    st.sampled_from([["buy"], ["click", "buy"]]),
)
def test_no_split_puts_a_target_or_anything_later_into_a_history(tmp_path, frames, split, target_filter, targets):
    try:
        store = prepare(
            FrameSource(frames),
            targets=targets,
            split=split,
            target_filter=target_filter,
            store_dir=tmp_path,
            progress=False,
        )
    except ValueError as error:
        assume("leaves no training target" not in str(error))  # a log too small for this split
        raise
    assert find_leaks(store) == []


@pytest.fixture
def store(tmp_path):
    return prepare(SyntheticEvents(num_users=20, levels=3), targets=["buy"], store_dir=tmp_path, progress=False)


def overwrite(store, name, change):
    file = store.path / f"{name}.npy"
    np.save(file, change(np.load(file)))
    return Store(store.path)


def test_the_check_finds_histories_that_hold_their_target(store):
    leaky = overwrite(store, "targets/test/asof", lambda asof: asof + np.array([0, 0, 1]))
    assert any("not the event after their history" in leak for leak in find_leaks(leaky))


def test_the_check_finds_later_events_of_other_views(store):
    leaky = overwrite(store, "targets/train/time", lambda time: time - 10**6)
    assert any("events of view 'click' that are not earlier" in leak for leak in find_leaks(leaky))


def test_the_check_finds_training_events_from_after_the_cut(store):
    leaky = overwrite(store, "views/cart/stage", np.zeros_like)
    assert any("training events of view 'cart' lie after" in leak for leak in find_leaks(leaky))
