"""Frozen vectors of items, made from what the item file says of them: nothing but item text is read.

M items, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lightning_mvrec.data._pandas import pd
from lightning_mvrec.data.events import clean_ids
from lightning_mvrec.data.sources.base import RawData
from lightning_mvrec.data.vocab import Vocabulary


class Content:
    """Makes one frozen vector an item while data is prepared.

    Attributes:
        width: Width ``W`` of the vectors.
    """

    width: int

    def vectors(self, items: pd.DataFrame) -> np.ndarray:
        """Return ``(M, W)`` float32, one row for each row of the item file."""
        raise TypeError(f"{type(self).__name__} must define vectors(items)")


class TextVectors(Content):
    """TF-IDF of the words and pairs of words of item texts, reduced by a truncated SVD.

    Rows have length 1; an item without a known word is 0. Where there are fewer words than ``width``, the last columns
    are 0. Needs scikit-learn: the extra ``text``.

    Args:
        columns: Columns of the item file that are read: texts, or lists of names (categories), each name read as text.
        width: Width ``W``, above 0.
        pairs: Whether pairs of neighbouring words count as terms of their own.
        min_items: Items that a term must occur in, above 0.
        seed: Seed of the randomised SVD.

    Raises:
        ValueError: If an argument is out of its range, the item file lacks a column, or no term is left.
        ModuleNotFoundError: If scikit-learn is not installed; names the extra.

    Example:
        >>> items = pd.DataFrame({"item": [4, 7, 9], "title": ["red lip stick", "red lip gloss", None]})
        >>> vector_MW = TextVectors(["title"], width=2, min_items=1).vectors(items)
        >>> vector_MW.shape, vector_MW[2].tolist(), round(float((vector_MW[0] ** 2).sum()), 3)
        ((3, 2), [0.0, 0.0], 1.0)
    """

    def __init__(
        self, columns: list[str], width: int = 128, pairs: bool = True, min_items: int = 2, seed: int = 0
    ) -> None:
        if not columns:
            raise ValueError("columns must name at least one column of the item file, got none")
        for name, value in (("width", width), ("min_items", min_items)):
            if value < 1:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.columns = list(columns)
        self.width = width
        self.pairs = pairs
        self.min_items = min_items
        self.seed = seed

    def vectors(self, items: pd.DataFrame) -> np.ndarray:
        """Return ``(M, W)`` float32, one row for each row of the item file."""
        unknown = [name for name in self.columns if name not in items.columns]
        if unknown:
            raise ValueError(f"columns must be columns of the item file {list(items.columns)}, got {unknown}")
        try:
            from sklearn.decomposition import TruncatedSVD
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "TextVectors needs the package of the extra 'text': pip install 'scikit-learn>=1.4'"
            ) from error
        texts = [" ".join(map(_text, values)) for values in zip(*(items[name] for name in self.columns), strict=True)]
        vectorizer = TfidfVectorizer(
            ngram_range=(1, 2 if self.pairs else 1),
            # Rows count, and no more rows can be asked for than there are.
            min_df=min(self.min_items, len(texts)),
            sublinear_tf=True,
            stop_words="english",
            dtype=np.float64,
        )
        try:
            term_MT = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise ValueError(
                f"columns {self.columns} must hold words that at least {self.min_items} items have (min_items), "
                f"got none: {error}"
            ) from error
        width = min(self.width, *term_MT.shape)
        vector_MW = np.zeros((len(texts), self.width), dtype=np.float64)
        # A single term is its own reduction; TruncatedSVD refuses a matrix of one column.
        vector_MW[:, :width] = (
            TruncatedSVD(width, random_state=self.seed).fit_transform(term_MT)
            if term_MT.shape[1] > 1
            else term_MT.toarray()
        )
        length_M1 = np.linalg.norm(vector_MW, axis=1, keepdims=True)
        known_M1 = length_M1 > 1e-9
        return (vector_MW * known_M1 / np.where(known_M1, length_M1, 1)).astype(np.float32)


def content_by_row(content: Content, raw: RawData, rows: Vocabulary) -> np.ndarray:
    """Return ``(num_items, W)`` float32 by item row; row 0, and items that the item file lacks, are 0."""
    assert raw.items is not None  # check_settings refuses content without an item file
    vector_MW = content.vectors(raw.items)
    out_IW: np.ndarray = np.zeros((len(rows), content.width), dtype=np.float32)
    out_IW[rows.rows(clean_ids("items", "item", raw.items["item"]))] = vector_MW
    out_IW[0] = 0
    return out_IW


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable) and not isinstance(value, (bytes, dict)):
        names: Sequence[Any] = list(value)
        return " ".join(str(name) for name in names if name is not None)
    return "" if value is None or value != value else str(value)
