"""Raw id <-> table row. Row 0 is "unknown"; known ids take rows from 1 on."""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_mvrec.data._pandas import pd


class Vocabulary:
    """Rows of raw ids: ``ids[0]`` is None, ``ids[row]`` the raw id of ``row``.

    Rows are append-only: :meth:`extended` gives new ids the next rows and renumbers none.

    Args:
        ids: Distinct raw ids (all integers or all strings) for rows 1, 2, ...

    Raises:
        ValueError: If an id occurs twice.

    Example:
        >>> vocabulary = Vocabulary(["a", "b"])
        >>> vocabulary.rows(np.array(["b", "z"], dtype=object)).tolist()
        [2, 0]
    """

    def __init__(self, ids: Any) -> None:
        self._index = pd.Index(np.asarray(ids, dtype=object if len(ids) == 0 else None))
        if not self._index.is_unique:
            twice = self._index[self._index.duplicated()].tolist()[0]
            raise ValueError(f"ids must be distinct, got {twice!r} twice")

    def __len__(self) -> int:
        """Rows of a table, "unknown" included."""
        return len(self._index) + 1

    @property
    def ids(self) -> list[Any]:
        """Raw ids by row, None first."""
        return [None, *self._index.tolist()]

    def rows(self, ids: Any) -> np.ndarray:
        """Return the int64 row of each raw id, 0 where it is not known."""
        return self._index.get_indexer(pd.Index(ids)).astype(np.int64) + 1

    def extended(self, ids: Any) -> Vocabulary:
        """Return a vocabulary in which unseen ids take the next rows."""
        new = pd.unique(pd.Series(ids))
        new = new[self._index.get_indexer(pd.Index(new)) < 0]
        return Vocabulary([*self._index.tolist(), *list(new)])
