"""What a target's label is."""

from __future__ import annotations

from typing import Literal

import numpy as np


class Label:
    """Turns the fields of a target event into a number.

    Attributes:
        kind: ``"binary"`` or ``"numeric"``.
        field: The event field that is read.
    """

    kind: Literal["binary", "numeric"]
    field: str

    def values(self, raw: np.ndarray) -> np.ndarray:
        """Return float32 labels from the raw values of the field."""
        raise TypeError(f"{type(self).__name__} must define values(raw)")


class FieldLabel(Label):
    """A numeric event field as it is, or whether it reaches a threshold.

    Args:
        field: Event field of the target view, as in the source (before any normalisation).
        threshold: Label 1 from this value on, else 0; None keeps the value.

    Example:
        >>> FieldLabel("rating", threshold=4.0).values(np.array([3.0, 4.0])).tolist()
        [0.0, 1.0]
    """

    def __init__(self, field: str, threshold: float | None = None) -> None:
        self.field = field
        self.threshold = threshold
        self.kind = "numeric" if threshold is None else "binary"

    def values(self, raw: np.ndarray) -> np.ndarray:
        """Return the labels."""
        if self.threshold is None:
            return raw.astype(np.float32)
        return (raw >= self.threshold).astype(np.float32)
