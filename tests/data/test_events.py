import numpy as np
import pandas as pd
import pytest

from lightning_mvrec.data.events import clean_ids, clean_times, clean_view, encode_field


def frame(**columns):
    return pd.DataFrame({"user": [1, 2], "item": [5, 6], "time": [10, 20], **columns})


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (
            frame().drop(columns="item"),
            r"view 'click' \(log.csv\) must have .*: item is missing, it has user, time",
        ),
        (frame().drop(columns="time"), "time is missing"),
        (frame().iloc[:0], "must have at least one event"),
        (frame(time=["2020-01-01", "soon"]), r"row 1, column 'time': cannot read 'soon' as a time .*1 of 2"),
        (frame(time=[1.0, np.nan]), "row 1, column 'time': cannot read"),
        (frame(time=[pd.Timestamp(0), pd.NaT]), "row 1, column 'time': cannot read"),
        (frame(user=[1.5, 2.0]), "row 0, column 'user': ids must be integers or strings, got .*1.5"),
        (frame(item=["a", None]), "row 1, column 'item': an id must not be missing"),
        (frame(item=["a", 3]), "row 1, column 'item': ids must be all integers or all strings, got 3"),
        (frame(item=[True, False]), "column 'item': ids must be integers or strings, got booleans"),
        (frame(item=[[1], [2]]), "column 'item': ids must be all integers or all strings"),
    ],
)
def test_a_fault_names_view_file_row_column_and_value(faulty, message):
    with pytest.raises(ValueError, match=message):
        clean_view("click", faulty, alone=False, origin="log.csv")


def test_a_row_is_named_as_in_the_file_even_where_a_view_is_a_part_of_it():
    table = pd.DataFrame({"user": [1, 2, 3], "item": [1, 2, 3], "time": ["2020-01-01", "never", "x"]})
    with pytest.raises(ValueError, match=r"row 1, .*'never'"):
        clean_view("click", table[table["user"] > 1])


@pytest.mark.parametrize(
    "values",
    [
        [86400, 86401],
        [86400.0, 86401.9],
        ["86400", "86401"],
        ["1970-01-02", "1970-01-02 00:00:01"],
        ["1970-01-02T01:00:00+01:00", "1970-01-02T00:00:01Z"],
        pd.to_datetime(["1970-01-02 00:00:00.0", "1970-01-02 00:00:01.5"]),
        pd.to_datetime(["1970-01-02 00:00:00", "1970-01-02 00:00:01"], utc=True).tz_convert("Asia/Tokyo"),
    ],
)
def test_times_of_many_kinds_become_seconds(values):
    assert clean_times("view", "time", pd.Series(values)).tolist() == [86400, 86401]


@pytest.mark.parametrize("values", [[3, 4], pd.array([3, 4], dtype="Int64"), np.array([3, 4], dtype=object)])
def test_integer_ids_of_many_kinds_become_integers(values):
    ids = clean_ids("view", "user", pd.Series(values))
    assert ids.dtype == np.int64
    assert ids.tolist() == [3, 4]


@pytest.mark.parametrize("values", [["a", "b"], pd.array(["a", "b"], dtype="string"), pd.Categorical(["a", "b"])])
def test_text_ids_of_many_kinds_become_objects(values):
    ids = clean_ids("view", "user", pd.Series(values))
    assert ids.dtype == object
    assert ids.tolist() == ["a", "b"]


def test_events_without_times_are_numbered_by_user_in_row_order():
    view = clean_view("click", pd.DataFrame({"user": [1, 2, 1, 1], "item": [5, 5, 5, 6]}))
    assert view.time.tolist() == [0, 0, 1, 2]
    assert view.removed == 0


def test_equal_events_are_kept_once_with_the_fields_of_the_first():
    again = pd.DataFrame({"user": [1, 1, 1], "item": [5, 5, 5], "time": [3, 3, 4], "stars": [1.0, 2.0, 3.0]})
    view = clean_view("rating", again)
    assert (view.time.tolist(), view.numeric["stars"].tolist(), view.removed) == ([3, 4], [1.0, 3.0], 1)
    assert clean_view("rating", again, deduplicate=False).removed == 0


def test_missing_values_of_fields_are_kept_and_counted():
    view = clean_view("rating", frame(stars=[np.nan, 4.0], device=["phone", None], seen=[True, False]))
    assert view.missing == {"stars": 1, "device": 1}
    assert np.isnan(view.numeric["stars"][0])
    assert view.categorical["device"].tolist() == ["phone", None]
    assert view.numeric["seen"].tolist() == [1.0, 0.0]


def field_of(encoded, row):
    return [encoded.known[v] for v in encoded.values[encoded.offsets[row] : encoded.offsets[row + 1]]]


def test_lists_text_and_numbers_become_rows_of_their_owners():
    owner = np.array([3, 1, 0, 2])  # the third row's owner is not in the table
    genres = encode_field(pd.Series([["a", "b"], ["b"], ["never"], None]), owner, 4)
    assert [field_of(genres, row) for row in range(4)] == [[], ["b"], [], ["a", "b"]]
    assert (genres.kind, genres.size) == ("multi_hot", 3)
    brand = encode_field(pd.Series(["x", None, "never", "y"]), owner, 4)
    assert [field_of(brand, row) for row in range(4)] == [[None], [None], ["y"], ["x"]]
    price = encode_field(pd.Series([9.0, 1.0, 5.0, np.nan]), owner, 4, bins=2)
    assert [field_of(price, row) for row in range(4)] == [[None], ["below 5"], [None], ["from 5"]]


def test_bins_of_a_number_hold_about_equally_many():
    values = np.random.default_rng(0).exponential(size=1000)
    encoded = encode_field(pd.Series(values), np.arange(1000) + 1, 1001)
    assert encoded.size == 11
    assert np.bincount(encoded.values)[1:].tolist() == [100] * 10
