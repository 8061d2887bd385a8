import pandas as pd
import pytest

from lightning_mvrec.data.sources import FrameSource, WithStream

FAV = pd.DataFrame({"user": [1, 2], "item": [5, 6], "time": [30, 10]})
BUY = pd.DataFrame({"user": [1], "item": [5], "time": [20]})


def stream(**changes):
    return WithStream(FrameSource({"fav": FAV, "buy": BUY}), **changes).load(None)


def test_the_stream_holds_every_event_with_its_behaviour():
    raw = stream()
    assert list(raw.views) == ["fav", "buy", "stream"]
    assert sorted(raw.views["stream"].itertuples(index=False, name=None)) == [
        (1, 5, 20, "buy"),
        (1, 5, 30, "fav"),
        (2, 6, 10, "fav"),
    ]


def test_only_the_named_views_are_merged():
    assert set(stream(views=["buy"], name="bought").views["bought"]["behavior"]) == {"buy"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": ["cart"]}, r"views must be among \['fav', 'buy'\], got \['cart'\]"),
        ({"name": "fav"}, "name must be that of no view"),
    ],
)
def test_wrong_names_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        stream(**changes)


def test_views_without_times_have_no_common_order():
    source = FrameSource({"fav": FAV.drop(columns="time")}, has_times=False)
    with pytest.raises(ValueError, match="source must have times"):
        WithStream(source).load(None)
