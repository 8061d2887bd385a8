"""What was prepared, as text a person can check."""

from __future__ import annotations

from lightning_mvrec.data.events import CleanView
from lightning_mvrec.data.split import Assignment
from lightning_mvrec.schema import Schema


def summarise(
    schema: Schema, clean: dict[str, CleanView], assignment: Assignment, counts: dict[str, dict[str, int]]
) -> str:
    """Return events, users and items per view, what was cleaned, and the sizes of the stages."""
    lines = [f"{schema.num_users - 1:,} users, {schema.num_items - 1:,} items in the catalogue"]
    for name, view in clean.items():
        line = f"view {name}: {len(view.user):,} events, {len(set(view.user)):,} users, {len(set(view.item)):,} items"
        if view.removed:
            line += f"; {view.removed:,} duplicates removed"
        for field, number in view.missing.items():
            line += f"; {field}: {number:,} missing, filled and marked"
        lines.append(line)
    lines.append(f"split: {assignment.note}")
    for stage, count in counts.items():
        line = f"{stage}: {count['targets']:,} targets of {count['users']:,} users"
        if count["unknown"]:
            line += f"; {count['unknown']:,} outside the catalogue: misses for every model"
        lines.append(line)
    return "\n".join(lines)
