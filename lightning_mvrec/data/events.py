"""Check, clean and deduplicate the frames of a source. Every fault is one ValueError that names the place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lightning_mvrec.data._pandas import pd

RESERVED = ("user", "item", "time")


@dataclass
class CleanView:
    """The events of one view after cleaning, in the order of the rows.

    Args:
        user, item: Raw ids, all integers or all strings.
        time: int64 seconds, or the number of the event within its user.
        numeric: Raw float64 values by field, NaN where missing.
        categorical: Raw values by field, None where missing.
        removed: Exact duplicates removed.
        missing: Missing values by field.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    numeric: dict[str, np.ndarray] = field(default_factory=dict)
    categorical: dict[str, np.ndarray] = field(default_factory=dict)
    removed: int = 0
    missing: dict[str, int] = field(default_factory=dict)


def clean_view(
    name: str, frame: pd.DataFrame, alone: bool = True, deduplicate: bool = True, origin: str | None = None
) -> CleanView:
    """Check one view and bring it into arrays.

    Args:
        name: Name of the view, for messages.
        frame: Columns ``user``, ``item``, ``time`` and event fields.
        alone: Whether it is the only view: only then may ``time`` be absent.
        deduplicate: Whether events equal in user, item and time are kept once (the first row).
        origin: File it was read from, for messages.

    Raises:
        ValueError: If a column is missing, the view is empty, an id is missing or of the wrong type, or a time cannot
            be read: with view, row, column and value.

    Example:
        >>> frame = pd.DataFrame({"user": [1, 1], "item": [7, 7], "time": ["2020-01-01", "2020-01-01"]})
        >>> view = clean_view("click", frame)
        >>> view.time.tolist(), view.removed
        ([1577836800], 1)
    """
    where = f"view {name!r}" + (f" ({origin})" if origin else "")
    needed = ["user", "item"] if alone else list(RESERVED)
    absent = [column for column in needed if column not in frame.columns]
    if absent:
        raise ValueError(
            f"{where} must have columns {', '.join(needed)}: {', '.join(absent)} is missing, "
            f"it has {', '.join(map(str, frame.columns))}"
        )
    if not len(frame):
        raise ValueError(f"{where} must have at least one event, got an empty frame")
    user, item = clean_ids(where, "user", frame["user"]), clean_ids(where, "item", frame["item"])
    if "time" in frame.columns:
        time = clean_times(where, "time", frame["time"])
    else:
        time = pd.Series(user).groupby(user, sort=False).cumcount().to_numpy(dtype=np.int64)
    view = CleanView(user, item, time)
    for column in frame.columns:
        if column in RESERVED:
            continue
        values = frame[column]
        if kind_of(values) == "numeric":
            view.numeric[column] = values.to_numpy(dtype=np.float64, na_value=np.nan)
            missing = int(np.isnan(view.numeric[column]).sum())
        else:
            view.categorical[column] = values.astype(object).where(values.notna(), None).to_numpy(dtype=object)
            missing = int(values.isna().sum())
        if missing:
            view.missing[column] = missing
    return _deduplicated(view) if deduplicate else view


def _deduplicated(view: CleanView) -> CleanView:
    again = duplicated(view.user, view.item, view.time)
    if not again.any():
        return view
    keep = ~again
    return CleanView(
        view.user[keep],
        view.item[keep],
        view.time[keep],
        {name: value[keep] for name, value in view.numeric.items()},
        {name: value[keep] for name, value in view.categorical.items()},
        int(again.sum()),
        view.missing,
    )


def duplicated(user: np.ndarray, item: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Return which events are equal in user, item and time to one before them.

    Example:
        >>> duplicated(np.array([1, 1, 2]), np.array([7, 7, 7]), np.array([5, 5, 5])).tolist()
        [False, True, False]
    """
    return pd.DataFrame({"user": user, "item": item, "time": time}).duplicated().to_numpy()


def kind_of(values: pd.Series) -> str:
    """Return ``"multi_hot"`` for lists, ``"numeric"`` for numbers and booleans, else ``"categorical"``."""
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return "numeric"
    if values.dtype == object:
        known = values.dropna()
        if len(known) and isinstance(known.iloc[0], (list, tuple, np.ndarray)):
            return "multi_hot"
    return "categorical"


def clean_ids(where: str, column: str, values: pd.Series) -> np.ndarray:
    """Return ids as int64 or as an object array of strings.

    Raises:
        ValueError: If an id is missing, or ids are neither all integers nor all strings.
    """
    missing = values.isna().to_numpy()
    if missing.any():
        row = values.index[np.flatnonzero(missing)[0]]
        raise ValueError(f"{where}, row {row}, column {column!r}: an id must not be missing ({missing.sum()} are)")
    if pd.api.types.is_bool_dtype(values):
        raise ValueError(f"{where}, column {column!r}: ids must be integers or strings, got booleans")
    if pd.api.types.is_integer_dtype(values):
        return values.to_numpy(dtype=np.int64)
    if pd.api.types.is_numeric_dtype(values):
        fraction = (values % 1 != 0).to_numpy()
        row = int(np.flatnonzero(fraction)[0]) if fraction.any() else 0
        raise ValueError(
            f"{where}, row {values.index[row]}, column {column!r}: ids must be integers or strings, got "
            f"{values.iloc[row]!r} "
            f"of type {values.dtype}"
        )
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(object)
    array = values.to_numpy(dtype=object)
    inferred = pd.api.types.infer_dtype(array, skipna=False)
    if inferred == "string":
        return array
    if inferred == "integer":
        return array.astype(np.int64)
    first = type(array[0])
    row = next((number for number, value in enumerate(array) if type(value) is not first), 0)
    raise ValueError(
        f"{where}, row {values.index[row]}, column {column!r}: ids must be all integers or all strings, got "
        f"{array[row]!r} ({type(array[row]).__name__}), the first is {array[0]!r}"
    )


def check_one_type(column: str, parts: dict[str, np.ndarray]) -> None:
    """Check that ids are all integers or all strings.

    Raises:
        ValueError: If they are not; names the places.
    """
    (first, expected), *rest = ((where, values.dtype) for where, values in parts.items())
    for where, dtype in rest:
        if dtype != expected:
            raise ValueError(
                f"ids of column {column!r} must be of one type: {_type(expected)} in {first}, {_type(dtype)} in {where}"
            )


def _type(dtype: np.dtype) -> str:
    return "strings" if dtype.kind == "O" else "integers"


def clean_times(where: str, column: str, values: pd.Series) -> np.ndarray:
    """Return int64 seconds since the epoch from numbers (seconds), datetimes or text that pandas can read.

    Raises:
        ValueError: If a value is missing or cannot be read; names the first.
    """

    def refuse(bad: np.ndarray) -> ValueError:
        row = int(np.flatnonzero(bad)[0])
        return ValueError(
            f"{where}, row {values.index[row]}, column {column!r}: cannot read {values.iloc[row]!r} as a time "
            f"(seconds since the epoch or a date); {int(bad.sum())} of {len(values)} cannot be read"
        )

    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        if pd.api.types.is_integer_dtype(values) and not values.isna().any():
            return values.to_numpy(dtype=np.int64)
        seconds = values.to_numpy(dtype=np.float64, na_value=np.nan)
        bad = ~np.isfinite(seconds)
        if bad.any():
            raise refuse(bad)
        return np.floor(seconds).astype(np.int64)
    if not pd.api.types.is_datetime64_any_dtype(values):
        number = pd.to_numeric(values, errors="coerce")
        if number.notna().all():
            return np.floor(number.to_numpy(dtype=np.float64)).astype(np.int64)
        parsed = pd.to_datetime(values, errors="coerce", utc=True, format="mixed")
    else:
        parsed = pd.to_datetime(values, utc=True)
    bad = parsed.isna().to_numpy()
    if bad.any():
        raise refuse(bad)
    return parsed.dt.tz_localize(None).to_numpy(dtype="datetime64[s]").astype(np.int64)


@dataclass
class EncodedField:
    """One item or user field by table row of its owner.

    Args:
        values: Table rows of the field, jagged over owners.
        offsets: ``(owners + 1,)``.
        kind: ``"categorical"`` or ``"multi_hot"``.
        known: Raw value by row of the field, None first.
    """

    values: np.ndarray
    offsets: np.ndarray
    kind: str
    known: list[Any]

    @property
    def size(self) -> int:
        """Rows of the field's table."""
        return len(self.known)


def encode_field(values: pd.Series, owner: np.ndarray, owners: int, bins: int = 10) -> EncodedField:
    """Turn a column of an item or user frame into table rows.

    Text becomes one row, a list any number of rows, a number the quantile bin it lies in (rows 1 to ``bins``). Owners
    without a value get row 0 (lists: no row).

    Args:
        values: ``(R,)`` the column.
        owner: ``(R,)`` table row of the owner; 0 is skipped.
        owners: Rows of the owners' table.
        bins: Bins of a numeric column.
    """
    keep = owner > 0
    values, owner = values[keep].reset_index(drop=True), owner[keep]
    kind = kind_of(values)
    if kind == "multi_hot":
        number = np.array([len(v) if isinstance(v, (list, tuple, np.ndarray)) else 0 for v in values], dtype=np.int64)
        flat = [str(x) for v in values if isinstance(v, (list, tuple, np.ndarray)) for x in v]
        known = sorted(set(flat))
        rows = pd.Index(known, dtype=object).get_indexer(pd.Index(flat, dtype=object)).astype(np.int64) + 1
        order = np.argsort(np.repeat(owner, number), kind="stable")
        offsets = np.zeros(owners + 1, dtype=np.int64)
        np.add.at(offsets, owner + 1, number)
        return EncodedField(rows[order], np.cumsum(offsets), "multi_hot", [None, *known])
    by_owner = np.zeros(owners, dtype=np.int64)
    if kind == "numeric":
        number = values.to_numpy(dtype=np.float64, na_value=np.nan)
        have = ~np.isnan(number)
        edges = np.unique(np.quantile(number[have], np.linspace(0, 1, bins + 1)[1:-1])) if have.any() else np.empty(0)
        by_owner[owner[have]] = np.searchsorted(edges, number[have], side="right") + 1
        known = [f"below {edge:g}" for edge in edges] + ([f"from {edges[-1]:g}"] if len(edges) else ["any"])
    else:
        have = values.notna().to_numpy()
        text = values[have].astype(str)
        known = sorted(set(text))
        by_owner[owner[have]] = pd.Index(known, dtype=object).get_indexer(pd.Index(text, dtype=object)) + 1
    return EncodedField(by_owner, np.arange(owners + 1, dtype=np.int64), "categorical", [None, *known])
