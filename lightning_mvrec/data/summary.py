"""What was prepared, as text a person can check."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_mvrec.data.events import CleanView
from lightning_mvrec.schema import Schema


@dataclass
class ViewCounts:
    """What became of the events of one view.

    Args:
        events: Events that are kept.
        users, items: Distinct ones among them.
        removed: Exact duplicates removed.
        missing: Missing values by field, before that.
    """

    events: int
    users: int
    items: int
    removed: int = 0
    missing: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, view: CleanView) -> ViewCounts:
        """Count a view in memory."""
        return cls(len(view.user), len(set(view.user)), len(set(view.item)), view.removed, view.missing)


def summarise(schema: Schema, views: dict[str, ViewCounts], note: str, counts: dict[str, dict[str, int]]) -> str:
    """Return events, users and items per view, what was cleaned, and the sizes of the stages."""
    lines = [f"{schema.num_users - 1:,} users, {schema.num_items - 1:,} items in the catalogue"]
    for name, view in views.items():
        line = f"view {name}: {view.events:,} events, {view.users:,} users, {view.items:,} items"
        if view.removed:
            line += f"; {view.removed:,} duplicates removed"
        for missing, number in view.missing.items():
            line += f"; {missing}: {number:,} missing, filled and marked"
        lines.append(line)
    lines.append(f"split: {note}")
    for stage, count in counts.items():
        line = f"{stage}: {count['targets']:,} targets of {count['users']:,} users"
        if count["unknown"]:
            line += f"; {count['unknown']:,} outside the catalogue: misses for every model"
        lines.append(line)
    return "\n".join(lines)
