"""What a data set consists of: its views, their fields and the sizes of its vocabularies.

A :class:`Schema` is written beside the prepared data as ``schema.yaml`` and is all a model needs to build its tables.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

FieldKind = Literal["categorical", "multi_hot", "numeric"]

_KINDS = ("categorical", "multi_hot", "numeric")


@dataclass(frozen=True)
class Field:
    """One attribute of an item, of a user, or of an event.

    Args:
        name: Column name; also the suffix of its table (``item_<name>``, ``user_<name>``, ``<view>_<name>``).
        kind: ``"categorical"`` (one row of a table each), ``"multi_hot"`` (any number of rows) or ``"numeric"``.
        size: Rows of its table, row 0 being "unknown"; 0 for a numeric field.
    """

    name: str
    kind: FieldKind
    size: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind of field {self.name!r} must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        if (self.kind == "numeric") != (self.size == 0):
            raise ValueError(f"size of field {self.name!r} ({self.kind}) must be 0 for numeric, above 0 otherwise")


@dataclass(frozen=True)
class View:
    """One way to read a user's behaviour: the events of one kind, oldest first.

    Args:
        name: Name of the view (``"click"``, ``"cart"``, ``"rating"``, ...).
        max_len: Most recent events that a model reads, above 0.
        fields: What each event carries besides item and time: ``numeric`` or ``categorical``.
    """

    name: str
    max_len: int = 50
    fields: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        if self.max_len < 1:
            raise ValueError(f"max_len of view {self.name!r} must be above 0 events, got {self.max_len}")


@dataclass(frozen=True)
class Schema:
    """Views, fields and table sizes of one prepared data set.

    Args:
        views: Behaviour views, in the order that every ``V`` axis follows.
        num_items: Rows of the item table; row 0 is "unknown", the catalogue is ``1 .. num_items - 1``.
        num_users: Rows of the user table; row 0 is "unknown".
        targets: Names of the views whose events are predicted.
        item_fields: Fields of items; multi-hot ones allowed.
        user_fields: Fields of users.
        has_times: Whether events have real timestamps in seconds; if not, times number each user's events.
        label: What a target's label means: ``"implicit"`` (the event happened), ``"binary"`` or ``"numeric"``.
        content_dim: Width ``W`` of the frozen content vectors of the items, 0 where there are none.
    """

    views: tuple[View, ...]
    num_items: int
    num_users: int
    targets: tuple[str, ...]
    item_fields: tuple[Field, ...] = ()
    user_fields: tuple[Field, ...] = ()
    has_times: bool = True
    label: Literal["implicit", "binary", "numeric"] = "implicit"
    content_dim: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.targets) - set(self.view_names)
        if unknown:
            raise ValueError(f"targets must be names of views {self.view_names}, got {sorted(unknown)}")

    @property
    def view_names(self) -> list[str]:
        """Names of the views, in order."""
        return [view.name for view in self.views]

    def view(self, name: str) -> View:
        """Return one view by name."""
        for view in self.views:
            if view.name == name:
                return view
        raise ValueError(f"view must be one of {self.view_names}, got {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values only."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Schema:
        """Build a schema from what :meth:`to_dict` gave."""
        values = dict(values)
        views = tuple(View(**{**view, "fields": _fields(view.get("fields", ()))}) for view in values.pop("views"))
        for key in ("item_fields", "user_fields"):
            values[key] = _fields(values.get(key, ()))
        values["targets"] = tuple(values["targets"])
        return cls(views=views, **values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``schema.yaml``, under a temporary name first."""
        import yaml

        path = Path(path)
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Schema:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If the file is not a schema.
        """
        import yaml

        text = Path(path).read_text(encoding="utf-8")
        try:
            return cls.from_dict(yaml.safe_load(text))
        except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a schema written by lightning_mvrec: {error}") from error


def _fields(values: Any) -> tuple[Field, ...]:
    return tuple(Field(**value) for value in values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
