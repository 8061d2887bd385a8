"""Reading checkpoint directories safely, with torch alone: nothing is unpickled but tensors and plain values."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zlib
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.futures import Future

from lightning_mvrec.strategies.checkpoint_pieces import Pieces, check_bytes, read_into

FORMAT = 1
META = "meta.pt"
METADATA = ".metadata"
PLAN = "plan.json"
#: What the keys of the modules' weights, and of the tables' optimizer state, begin with.
WEIGHTS, STATE = "model.", "table_state/"
SAFE_NUMPY = [
    np.core.multiarray.scalar if not hasattr(np, "_core") else np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u4", "u8", "?")},
]
_SEAL = b"\ncrc32 "
_SEALED = len(_SEAL) + 8
_SAFE_IN_METADATA = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "MetadataIndex",
        "TensorStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # how Python 3.11.0 to 3.11.3 writes a member of an enumeration
            return _member
        if name in _SAFE_IN_METADATA.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a checkpoint's .metadata may not hold {module}.{name}")


def _member(kind: Any, name: str) -> Any:
    """Return a member of an enumeration, and no other attribute of anything."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[name]
    raise pickle.UnpicklingError(f"a checkpoint's .metadata may not hold attribute {name!r} of {kind!r}")


class SafeReader(dcp.FileSystemReader):
    """Reads the tensors of a checkpoint directory.

    torch's own reader unpickles whatever ``.metadata`` says, and takes a tensor whose bytes have changed on the disk.
    """

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill this rank's tensors; what was saved is never in memory as a whole."""
        pieces = Pieces(self.path, self.storage_data)
        for item in plan.items:
            target = planner.resolve_tensor(item).detach()
            with pieces.open(item.storage_index) as saved:
                read_into(target, saved, item.storage_offsets)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read ``.metadata`` through an allow-list, and see that the files that it names are whole.

        Raises:
            ValueError: If it holds anything but the description of tensors, or a file is missing or too short.
        """
        file = Path(self.path) / METADATA
        try:
            metadata = _MetadataUnpickler(io.BytesIO(_unsealed(file.read_bytes()))).load()
            described, stored = metadata.state_dict_metadata, metadata.storage_data
        except FileNotFoundError:
            raise ValueError(f"{self.path} is not a checkpoint directory: {file.name} is missing") from None
        except Exception as error:  # a damaged pickle raises almost anything
            raise ValueError(f"{file} cannot be read as a checkpoint's metadata: {error}") from error
        wrong = [key for key, value in described.items() if type(value) is not TensorStorageMetadata]
        if wrong:  # anything else would be unpickled on reading
            raise ValueError(f"{file} must describe tensors only, got {wrong[:3]}")
        self._check_files(stored)
        metadata.storage_meta.load_id = self.load_id
        return metadata

    def _check_files(self, stored: Mapping[Any, Any]) -> None:
        needed: dict[str, int] = {}
        for part in stored.values():
            name = str(part.relative_path)
            if Path(name).name != name or name in ("", ".", ".."):
                raise ValueError(f"{self.path}: .metadata names {name!r}, a file outside of the checkpoint")
            needed[name] = max(needed.get(name, 0), part.offset + part.length)
        for name, size in needed.items():
            file = Path(self.path) / name
            if not file.is_file():
                raise ValueError(f"{self.path} is not whole: {name} is missing")
            if file.stat().st_size < size:
                raise ValueError(f"{file} is truncated: it has {file.stat().st_size} bytes, must have {size}")


def sealed(metadata: bytes) -> bytes:
    """Return the content of ``.metadata`` with its check sum behind it, where unpickling does not look."""
    return metadata + b"%s%08x" % (_SEAL, zlib.crc32(metadata))


def _unsealed(content: bytes) -> bytes:
    metadata, mark, total = content[:-_SEALED], content[-_SEALED:-8], content[-8:]
    if mark != _SEAL:  # the first release did not write any
        return content
    if total != b"%08x" % zlib.crc32(metadata):
        raise ValueError("a byte of it has changed")
    return metadata


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Tell whether ``path`` is a checkpoint directory of ours."""
    return (whole(path) / META).is_file()


def refuse_outer(path: str | os.PathLike[str]) -> None:
    """Refuse a directory that is no checkpoint but has some inside: somebody has given the folder of a run.

    Raises:
        ValueError: With what is inside.
    """
    if found := sorted(str(meta.parent) for meta in Path(path).rglob(META)):
        raise ValueError(f"{path} is not a checkpoint directory; these inside it are: {found[:5]}")


def partial(path: str | os.PathLike[str]) -> Path:
    """Return where a checkpoint is written before it is whole and gets its name."""
    target = Path(path)
    return target.with_name(f".{target.name}.partial")


def replaced(path: str | os.PathLike[str]) -> Path:
    """Return where an earlier checkpoint of the same name lies while it is being replaced."""
    target = Path(path)
    return target.with_name(f".{target.name}.old")


def whole(path: str | os.PathLike[str]) -> Path:
    """Return where the checkpoint of this name lies: beside it, if a save was killed just between two renames."""
    target = Path(path)
    if not os.path.lexists(target):
        for beside in (partial(target), replaced(target)):  # meta.pt comes last, so what has it is whole
            if (beside / META).is_file():
                return beside
    return target


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the part of a checkpoint directory that is not sharded: ``checkpoint``, ``random``, ``format``.

    Raises:
        ValueError: If it is none, of a later format, or holds objects of classes that are not allowed.
    """
    file = whole(path) / META
    if not file.is_file():
        raise ValueError(f"{path} is not a checkpoint directory: {META} is missing")
    try:
        with file.open("rb") as stream, torch.serialization.safe_globals(SAFE_NUMPY):
            check_bytes(stream, file)
            meta = torch.load(stream, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise ValueError(f"{file}: format must be {FORMAT}, got {found}")
    return meta


def load(path: str | os.PathLike[str], wanted: dict[str, Any], alone: bool) -> None:
    """Fill the tensors of ``wanted``, by their keys in the checkpoint.

    Raises:
        ValueError: If a file is damaged.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to load in a single process")
        try:
            dcp.load(wanted, storage_reader=SafeReader(whole(path)), no_dist=alone)
        except dcp.CheckpointException as error:  # a BaseException, which nobody expects
            raise ValueError(f"{path} cannot be read: {first_failure(error)}") from error


def first_failure(error: dcp.CheckpointException) -> str:
    """Return in one line which rank failed in reading or writing, and why."""
    rank, (cause, _) = min(error.failures.items(), key=lambda item: item[0])
    return f"rank {rank}: {type(cause).__name__}: {cause}"


def without_numpy(value: Any) -> Any:
    """Replace numpy's numbers, which ``weights_only=True`` refuses, by Python's."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: without_numpy(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(without_numpy(item) for item in value)
    return value
