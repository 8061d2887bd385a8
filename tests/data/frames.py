"""Small event logs for tests: users 0 to 4, items 10 to 16, many equal times."""

import pandas as pd
from hypothesis import strategies as st

from lightning_mvrec.data.sources import FrameSource


@st.composite
def logs(draw, views=("click", "buy"), largest=25):
    """Frames of every view, each with an event at least, in any order of time."""
    event = st.tuples(st.integers(0, 4), st.integers(10, 16), st.integers(0, 8))
    return {
        name: pd.DataFrame(
            draw(st.lists(event, min_size=3, max_size=largest)), columns=["user", "item", "time"]
        ).drop_duplicates(ignore_index=True)
        for name in views
    }


def source_of(frames, **settings):
    return FrameSource(frames, **settings)


def sorted_events(frames, name, user):
    """(time, row, item) of one user's events, oldest first: the definition of a history."""
    frame = frames[name]
    rows = frame.index[frame["user"] == user]
    return sorted((int(frame["time"][row]), int(row), int(frame["item"][row])) for row in rows)
