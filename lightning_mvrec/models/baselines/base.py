"""What every baseline promises.

n targets, I item-table rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from lightning_mvrec.schema import Schema

if TYPE_CHECKING:
    from lightning_mvrec.data.store import Store, Targets


class Baseline:
    """A model without gradients: counts, neighbours or factors.

    It learns from training events only (stage 0 of the store: a validation target is history for the test, but never a
    fitted count) and reads, for each target, the histories as of that target. Leaving out seen items is the
    evaluation's work.

    Args:
        name: How results call it.

    Attributes:
        rates: Whether it predicts labels (:meth:`predict`) instead of ranking the catalogue (:meth:`score`).
    """

    rates: bool = False

    def __init__(self, name: str) -> None:
        self.name = name

    def fit(self, store: Store) -> Baseline:
        """Learn from the training events and return itself."""
        return self

    def score(self, store: Store, targets: Targets, rows: np.ndarray) -> np.ndarray | sparse.csr_array:
        """Score every item-table row for some targets.

        Args:
            store: The prepared data.
            targets: All targets of a stage.
            rows: ``(n,)`` numbers of the targets.

        Returns:
            ``(n, I)``, higher being better; equal scores are ordered by popularity. Sparse where most scores are 0 and
            the others are above 0; ``(I,)`` where they are the same for every target.
        """
        raise TypeError(f"{type(self).__name__} cannot rank the catalogue")

    def predict(self, store: Store, targets: Targets) -> np.ndarray:
        """Return ``(n,)`` predicted labels: for binary ones, their probability (as a sum of means, not clipped)."""
        raise TypeError(f"{type(self).__name__} cannot predict labels")


def chosen_views(schema: Schema, views: list[str] | None) -> list[int]:
    """Return the indices of named views; all of them for None.

    Raises:
        ValueError: If a name is not that of a view, or no name is given.
    """
    if views is None:
        return list(range(len(schema.views)))
    if not views:
        raise ValueError(f"views must name at least one of {schema.view_names}, got none")
    unknown = set(views) - set(schema.view_names)
    if unknown:
        raise ValueError(f"views must be names of views {schema.view_names}, got {sorted(unknown)}")
    return [schema.view_names.index(name) for name in views]
