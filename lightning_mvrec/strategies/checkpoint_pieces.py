"""A saved tensor, checked and read a block of rows at a time.

torch reads a whole piece before it takes the rows that are wanted: a rank that goes on from a checkpoint of one process
would hold whole tables, and any rank its own shard twice.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.utils import _ReaderView

#: Bytes that are read at a time; a row is never divided.
BLOCK = 4 << 20


class _Part(_ReaderView):
    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        # torch's counts backwards from the end: its -22 is 22 bytes after it.
        return super().seek(self.len + offset) if whence == os.SEEK_END else super().seek(offset, whence)


class Pieces:
    """The saved tensors of a checkpoint directory; each is checked once, however many parts of it are read.

    Args:
        folder: The directory.
        stored: ``storage_data`` of its metadata.
    """

    def __init__(self, folder: str | os.PathLike[str], stored: Mapping[MetadataIndex, Any]) -> None:
        self._folder = Path(folder)
        self._stored = stored
        self._checked: set[MetadataIndex] = set()

    @contextmanager
    def open(self, index: MetadataIndex) -> Iterator[IO[bytes]]:
        """Open a saved tensor, and see that it is unchanged.

        Raises:
            ValueError: If a byte has changed.
        """
        place = self._stored[index]
        file = self._folder / place.relative_path
        with file.open("rb") as stream:
            part = cast(IO[bytes], _Part(cast(io.IOBase, stream), place.offset, place.length))
            if index not in self._checked:
                check_bytes(part, file)
                self._checked.add(index)
            yield part


def check_bytes(saved: IO[bytes], file: Path) -> None:
    """See that what ``torch.save`` has written is still the same; torch writes check sums, but does not look at them.

    Args:
        saved: A file, or the part of one that holds a tensor; left at its begin.
        file: Its name, for the message.

    Raises:
        ValueError: If a byte has changed.
    """
    saved.seek(0)
    try:
        with zipfile.ZipFile(saved) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if wrong is not None:
        raise ValueError(f"{file} is damaged: a byte of {wrong} has changed")
    saved.seek(0)


def blocks(saved: IO[bytes], offsets: Sequence[int], sizes: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield a rectangle of a saved tensor by blocks of rows, each with the number of rows before it.

    Args:
        saved: What ``torch.save`` has written.
        offsets: Where the rectangle begins, by dimension.
        sizes: Its size.

    Raises:
        ValueError: If it is no tensor, or has no such rectangle.
    """
    described: Any = torch.load(saved, map_location="meta", weights_only=True)  # reads no numbers
    if not isinstance(described, Tensor):
        raise ValueError(f"a saved tensor must be a tensor, got {type(described).__name__}")
    bounds = [*zip(offsets, sizes, described.shape, strict=True)]
    if any(first < 0 or first + size > there for first, size, there in bounds):
        raise ValueError(f"rows and columns {list(offsets)} + {list(sizes)} are not in {tuple(described.shape)}")
    begin = int(described.untyped_storage()._checkpoint_offset or 0)  # None where there are no numbers
    wanted = described[tuple(slice(first, first + size) for first, size, _ in bounds)]
    if not wanted.numel():
        return
    rows = wanted if wanted.dim() else wanted[None]
    width = rows.element_size()
    # A tensor that was saved transposed has no rows to be read one after the other: it is read whole.
    in_order = all(rows.stride(0) >= rows.stride(other) for other in range(1, rows.dim()))
    count = max(BLOCK // max(rows.stride(0) * width, 1), 1) if in_order else rows.shape[0]
    for first in range(0, rows.shape[0], count):
        block = rows[first : first + count]
        numbers = 1 + sum((size - 1) * stride for size, stride in zip(block.shape, block.stride(), strict=True))
        saved.seek(begin + int(block.storage_offset()) * width)
        content = bytearray(saved.read(numbers * width))
        value = torch.frombuffer(content, dtype=block.dtype).as_strided(block.shape, block.stride())
        yield first, value if wanted.dim() else value[0]


@torch.no_grad()
def read_into(target: Tensor, saved: IO[bytes], offsets: Sequence[int]) -> None:
    """Fill a tensor with the rectangle of a saved one that begins at ``offsets``.

    Raises:
        ValueError: If the saved one has no such rectangle.
    """
    for first, block in blocks(saved, offsets, target.shape):
        (target[first : first + len(block)] if target.dim() else target).copy_(block)
