"""A ``.npy`` file that grows: what ``np.save`` would have written of all pieces at once, byte for byte."""

from __future__ import annotations

import io
from pathlib import Path
from types import TracebackType

import numpy as np


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


class ArrayAppender:
    """Appends rows to an array on disk.

    The header is written when it is closed: until then the file is no array.

    Args:
        path: The file; its folder is made.
        dtype: Type of the array.
        tail: Shape of one row.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ArrayAppender(Path(folder) / "numbers.npy", np.int32) as file:
        ...         file.append(np.array([1, 2]))
        ...         file.append(np.array([3]))
        ...     np.load(Path(folder) / "numbers.npy")
        array([1, 2, 3], dtype=int32)
    """

    def __init__(self, path: Path, dtype: type | np.dtype, tail: tuple[int, ...] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.dtype = np.dtype(dtype)
        self.tail = tail
        self.rows = 0
        # numpy leaves room for the number of rows to grow, so that the length of the header does not depend on it.
        self._start = len(_header(self.dtype, (0, *tail)))
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._file.write(b"\0" * self._start)

    def append(self, rows: np.ndarray) -> None:
        """Write more rows; they are brought to the array's type."""
        if rows.shape[1:] != self.tail:
            raise ValueError(f"rows of {self.path.name} must have shape {self.tail}, got {rows.shape[1:]}")
        self._file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Write the header."""
        if self._file.closed:
            return
        header = _header(self.dtype, (self.rows, *self.tail))
        assert len(header) == self._start, (len(header), self._start)
        self._file.seek(0)
        self._file.write(header)
        self._file.close()

    def __enter__(self) -> ArrayAppender:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


class ArrayFile:
    """Reads and overwrites rows of an array on disk, a range at a time.

    Unlike a memory map it leaves no page of the file in the process, so that peak memory stays what is asked for.

    Args:
        path: A ``.npy`` file in C order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(file)
            self._start = file.tell()
        self._width = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return int(self.shape[0])

    def read(self, first: int, last: int) -> np.ndarray:
        """Return rows ``first:last``."""
        count = (last - first) * self._width // self.dtype.itemsize
        flat = np.fromfile(self.path, self.dtype, count, offset=self._start + first * self._width)
        return flat.reshape(last - first, *self.shape[1:])

    def write(self, first: int, rows: np.ndarray) -> None:
        """Overwrite rows from ``first`` on."""
        with open(self.path, "r+b") as file:
            file.seek(self._start + first * self._width)
            file.write(np.ascontiguousarray(rows, dtype=self.dtype).data)
