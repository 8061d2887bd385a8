"""What was measured of each test target, kept beside a run so that runs can be compared pair by pair.

n targets of the test split, in the order of the store.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FILE = "targets.npz"
#: Name of the weighted sum of a run's model and its baselines.
STACKED = "stacked"


def write_targets(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays of ``n`` numbers each, under a temporary name first.

    Args:
        path: The file.
        arrays: ``user`` (rows) and, by name of the model (``"model"`` and the baselines), ranks or scores; ``label``
            where there are scores.
    """
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    part.replace(path)


def read_targets(path: Path) -> dict[str, np.ndarray]:
    """Read what :func:`write_targets` wrote; nothing in the file is executed."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
