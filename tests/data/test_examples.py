import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_mvrec.data.examples import CoveringWindows, LastWindow, build_examples
from lightning_mvrec.data.store import Targets


def make_targets(asof_by_user):
    """Targets of users 1, 2, ...: a list of asof rows each."""
    user = np.repeat(np.arange(len(asof_by_user)) + 1, [len(rows) for rows in asof_by_user])
    asof = np.array([row for rows in asof_by_user for row in rows], dtype=np.int64)
    one = np.ones(len(user), dtype=np.float32)
    return Targets(user, user, np.arange(len(user)), one, one, np.zeros(len(user), dtype=np.int64), asof)


@st.composite
def growing(draw):
    """Users whose targets have seen more and more events of two views."""
    users = []
    for _ in range(draw(st.integers(1, 4))):
        steps = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=12))
        users.append(np.cumsum(steps, axis=0).tolist())
    return users


@settings(max_examples=60, deadline=None)
@given(growing(), st.integers(1, 6), st.integers(1, 8), st.integers(1, 8), st.floats(0, 1))
def test_covering_windows_hold_each_target_once_and_keep_its_context(users, most, long, short, context):
    targets, max_len_V = make_targets(users), np.array([long, short])
    examples = build_examples(targets, CoveringWindows(context), most, max_len_V)
    held = [t for first, count in zip(examples.first, examples.count, strict=True) for t in range(first, first + count)]
    assert sorted(held) == list(range(len(targets)))
    kept_V = np.maximum(np.ceil(context * max_len_V), 1)
    for first, count, length in zip(examples.first, examples.count, examples.length, strict=True):
        window = slice(first, first + count)
        assert 1 <= count <= most
        assert len(set(targets.user[window])) == 1
        last = targets.asof[first + count - 1]
        assert length == np.minimum(last, max_len_V).sum()
        begin = np.maximum(last - max_len_V, 0)
        for asof in targets.asof[window]:
            assert (np.maximum(asof - begin, 0) >= np.minimum(asof, np.minimum(kept_V, max_len_V)))[asof > 0].all() or (
                asof == last
            ).all()


def test_without_long_histories_windows_are_as_long_as_allowed():
    targets = make_targets([[[n, 0] for n in range(7)], [[0, 0]]])
    examples = build_examples(targets, CoveringWindows(), 3, np.array([50, 50]))
    assert list(zip(examples.first, examples.count, strict=True)) == [(0, 1), (1, 3), (4, 3), (7, 1)]


def test_the_last_window_ends_at_the_last_target():
    targets = make_targets([[[n, 0] for n in range(7)], [[0, 0]]])
    examples = build_examples(targets, LastWindow(), 3, np.array([50, 50]))
    assert list(zip(examples.first, examples.count, strict=True)) == [(4, 3), (7, 1)]


def test_a_busy_view_shortens_the_window_instead_of_looking_empty():
    # Ten clicks a purchase and 20 clicks read: before the last purchase lie clicks of two purchases.
    targets = make_targets([[[n, 10 * n] for n in range(1, 7)]])
    examples = build_examples(targets, CoveringWindows(context=0.5), 50, np.array([50, 20]))
    assert examples.count.tolist() == [2, 2, 2]
    # The whole 20 clicks for every target: together only where there are no more than 20.
    assert build_examples(targets, CoveringWindows(context=1.0), 50, np.array([50, 20])).count.tolist() == [
        2,
        1,
        1,
        1,
        1,
    ]


def test_weights_and_lengths_are_sums_over_the_window():
    targets = make_targets([[[1, 5], [2, 9], [3, 9]]])
    targets.weight[:] = [1.0, 0.5, 0.25]
    examples = build_examples(targets, LastWindow(), 2, np.array([2, 50]))
    assert examples.weight.tolist() == [0.5 + 0.25]
    assert examples.length.tolist() == [2 + 9]


@pytest.mark.parametrize("min_history", [0, 3])
@pytest.mark.parametrize("windows", [LastWindow(), CoveringWindows()])
def test_examples_do_not_depend_on_how_many_users_are_cut_at_a_time(monkeypatch, min_history, windows):
    users = [[[1, 0], [2, 0], [2, 4]], [[0, 1]], [[0, 1], [5, 1], [5, 2], [6, 2]], [[7, 7], [8, 8]]]
    targets, max_len_V = make_targets(users), np.array([4, 4])
    targets.weight[:] = np.arange(len(targets))
    whole = build_examples(targets, windows, 2, max_len_V, min_history)
    monkeypatch.setattr("lightning_mvrec.data.examples.BLOCK", 2)
    parts = build_examples(targets, windows, 2, max_len_V, min_history)
    for name in ("first", "count", "length", "weight"):
        assert getattr(parts, name).tolist() == getattr(whole, name).tolist()
    for first, count, weight in zip(parts.first, parts.count, parts.weight, strict=True):
        window = slice(first, first + count)
        assert parts.targets.weight[window].sum() == weight
        assert (parts.targets.asof[window].sum(1) >= min_history).all()


def test_targets_that_lie_side_by_side_are_not_copied():
    targets = make_targets([[[1, 0], [2, 0], [3, 0]], [[1, 0], [2, 0]]])
    assert build_examples(targets, CoveringWindows(), 9, np.array([9, 9]), min_history=2).targets is targets


def test_windows_that_use_few_targets_hold_these_alone():
    targets = make_targets([[[n, 0] for n in range(1, 9)], [[n, 5] for n in range(1, 4)]])
    examples = build_examples(targets, LastWindow(), 2, np.array([4, 4]))
    assert len(examples.targets) == 2 + 2
    used = [examples.targets.time[first : first + 2].tolist() for first in examples.first]
    assert used == [[6, 7], [9, 10]]


def test_many_targets_are_not_held_in_memory_however_few_they_are_of_all(monkeypatch):
    monkeypatch.setattr("lightning_mvrec.data.examples.HELD", 3)
    targets = make_targets([[[n, 0] for n in range(1, 9)], [[n, 5] for n in range(1, 4)]])
    assert build_examples(targets, LastWindow(), 2, np.array([4, 4])).targets is targets


def test_a_target_left_out_within_a_window_closes_the_gap():
    targets = make_targets([[[2, 0], [0, 1], [3, 0]]])  # one moment, two views: the second has seen less
    examples = build_examples(targets, LastWindow(), 9, np.array([9, 9]), min_history=2)
    assert examples.count.tolist() == [2]
    assert examples.targets.asof[examples.first[0] :][:2].tolist() == [[2, 0], [3, 0]]


def test_no_target_makes_no_example():
    targets = make_targets([[[1, 1]]])
    assert len(build_examples(targets, LastWindow(), 2, np.array([2, 2]), min_history=5)) == 0


@pytest.mark.parametrize("context", [-0.1, 1.5])
def test_context_outside_its_range_is_refused(context):
    with pytest.raises(ValueError, match="context must be a share"):
        CoveringWindows(context)
