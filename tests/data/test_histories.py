import numpy as np
from hypothesis import given, settings

from lightning_mvrec.data.histories import build_history, count_asof, ranges
from tests.data.frames import logs, sorted_events


@settings(max_examples=50, deadline=None)
@given(logs())
def test_asof_counts_earlier_rows_in_the_own_view_and_earlier_moments_in_others(frames):
    names = list(frames)
    histories = [
        build_history(*(frame[column].to_numpy() for column in ("user", "item", "time")), {}, num_users=5)
        for frame in frames.values()
    ]
    for number, (name, history) in enumerate(zip(names, histories, strict=True)):
        view = np.full(len(history.user), number)
        asof = count_asof(histories, history.user, history.time, view, history.index)
        row = 0
        for user in range(5):
            for time, own_row, item in sorted_events(frames, name, user):
                assert (history.item[row], history.time[row]) == (item, time)
                for other, other_name in enumerate(names):
                    events = sorted_events(frames, other_name, user)
                    if other == number:
                        expected = sum((t, r) < (time, own_row) for t, r, _ in events)
                    else:
                        expected = sum(t < time for t, _, _ in events)
                    assert asof[row, other] == expected
                row += 1


def test_ranges_of_nothing_are_empty():
    assert ranges(np.array([3, 5]), np.array([0, 0])).tolist() == []
    assert ranges(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)).tolist() == []


def test_times_of_any_size_do_not_overflow():
    far = 2**62
    history = build_history(np.array([0, 1, 1]), np.array([1, 2, 3]), np.array([-far, 0, far]), {}, num_users=2)
    asof = count_asof([history], np.array([1, 1]), np.array([far, far + 1]), np.array([-1, -1]), np.array([0, 0]))
    assert asof.tolist() == [[1], [2]]
