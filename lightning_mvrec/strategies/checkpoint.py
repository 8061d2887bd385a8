"""Checkpoint directories, ``format: 1``: every rank writes its own shards.

    last.ckpt/
      .metadata, *.distcp   torch.distributed.checkpoint: weights under "model.", the tables' optimizer state under
                            "table_state/<table>/<state>", the same keys whether a table is sharded or replicated
      meta.pt               the rest of Lightning's checkpoint, random state of every rank, format

Nothing in them is unpickled beyond tensors and plain values: a checkpoint from elsewhere cannot run code.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

FORMAT = 1
META = "meta.pt"
#: Parts of Lightning's checkpoint that training can go on without.
_OPTIONAL = ("hyper_parameters", "datamodule_hyper_parameters", "hparams_name", "datamodule_hparams_name")
_SAFE_NUMPY = [
    np.core.multiarray.scalar if not hasattr(np, "_core") else np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "u4", "u8", "?")},
]
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
        if name in _SAFE_IN_METADATA.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a checkpoint's .metadata may not hold {module}.{name}")


class SafeReader(dcp.FileSystemReader):
    """Reads the tensors of a checkpoint directory; torch's own reader unpickles whatever ``.metadata`` says."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read ``.metadata`` through an allow-list.

        Raises:
            ValueError: If it holds anything but the description of tensors.
        """
        file = Path(self.path) / ".metadata"
        try:
            metadata = _MetadataUnpickler(io.BytesIO(file.read_bytes())).load()
        except FileNotFoundError:
            raise ValueError(f"{self.path} is not a checkpoint directory: {file.name} is missing") from None
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, TypeError) as error:
            raise ValueError(f"{file} cannot be read as a checkpoint's metadata: {error}") from error
        wrong = [key for key, value in metadata.state_dict_metadata.items() if type(value) is not TensorStorageMetadata]
        if wrong:  # anything else would be unpickled on reading
            raise ValueError(f"{file} must describe tensors only, got {wrong[:3]}")
        metadata.storage_meta.load_id = self.load_id
        return metadata


def write(
    path: str | os.PathLike[str],
    checkpoint: dict[str, Any],
    table_state: Mapping[str, Tensor | ShardedTensor],
) -> None:
    """Write a checkpoint directory; every rank calls it. An earlier one at ``path`` stays until this one is whole.

    Args:
        path: The directory.
        checkpoint: Lightning's checkpoint; the tensors of ``state_dict`` are written by all ranks together.
        table_state: ``<table>/<state>`` -> this rank's part of the tables' optimizer state.

    Raises:
        ValueError: If the checkpoint holds objects that could not be read back safely.
    """
    target = Path(path)
    state_dict = checkpoint.pop("state_dict", {})
    tensors = {key: value for key, value in state_dict.items() if isinstance(value, (Tensor, ShardedTensor))}
    checkpoint["state_dict"] = {key: value for key, value in state_dict.items() if key not in tensors}
    randoms: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(randoms, random_state())
    temporary = target.with_name(f".{target.name}.partial")
    payload: bytes = b""

    def prepare() -> None:
        nonlocal payload
        payload = _serialise({"format": FORMAT, "checkpoint": checkpoint, "random": randoms})
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    def finish() -> None:
        (temporary / META).write_bytes(payload)
        _replace(temporary, target)

    on_rank_zero(prepare)
    state = {"model": tensors, **{f"table_state/{key}": value for key, value in table_state.items()}}
    dcp.save(
        state,
        storage_writer=dcp.FileSystemWriter(temporary),
        # Buffers that DDP has not yet made equal again are rank 0's, as they will be.
        planner=dcp.DefaultSavePlanner(dedup_save_to_lowest_rank=True),
    )
    on_rank_zero(finish)


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Tell whether ``path`` is a checkpoint directory of ours."""
    return (Path(path) / META).is_file()


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the part of a checkpoint directory that is not sharded: ``checkpoint``, ``random``, ``format``.

    Raises:
        ValueError: If it is none, of a later format, or holds objects of classes that are not allowed.
    """
    file = Path(path) / META
    if not file.is_file():
        raise ValueError(f"{path} is not a checkpoint directory: {META} is missing")
    try:
        with torch.serialization.safe_globals(_SAFE_NUMPY):
            meta = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
        raise ValueError(f"{file}: format must be {FORMAT}, got {found}")
    return meta


def read_weights(
    path: str | os.PathLike[str],
    weights: Mapping[str, Tensor | ShardedTensor],
    table_state: Mapping[str, Tensor | ShardedTensor] | None = None,
    strict: bool = True,
    alone: bool = False,
) -> None:
    """Fill the tensors of ``weights`` (by name in the module) and ``table_state`` in place, whoever wrote which part.

    Args:
        path: The directory.
        weights: Tensors of a state dict.
        table_state: ``<table>/<state>`` -> state; None reads the weights only.
        strict: Whether names must be the same on both sides.
        alone: Whether this process reads for itself, without the other ranks.

    Raises:
        ValueError: If names are missing or unexpected, or a shape differs.
    """
    wanted = {f"model.{key}": value for key, value in weights.items()}
    saved = SafeReader(path).read_metadata().state_dict_metadata
    missing = sorted(set(wanted) - set(saved))
    surplus = sorted(key for key in set(saved) - set(wanted) if key.startswith("model."))
    if strict and (missing or surplus):
        raise ValueError(f"{path}: the module has other weights; missing {missing[:5]}, unexpected {surplus[:5]}")
    wanted = {key: value for key, value in wanted.items() if key in saved}
    for key, value in (table_state or {}).items():
        if f"table_state/{key}" not in saved:
            raise ValueError(f"{path} has no optimizer state {key!r}: the table was trained by another optimizer")
        wanted[f"table_state/{key}"] = value
    for key, value in wanted.items():
        found: Any = saved[key]  # a TensorStorageMetadata, the reader has seen to that
        if tuple(found.size) != tuple(value.size()):
            raise ValueError(f"{path}: {key} must be of shape {tuple(value.size())}, got {tuple(found.size)}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to load in a single process")
        dcp.load(wanted, storage_reader=SafeReader(path), no_dist=alone)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a checkpoint directory, a link to one, or a file."""
    target = Path(path)
    if target.is_symlink() or target.is_file():
        target.unlink()
    else:
        shutil.rmtree(target, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """Return the state of every random generator of this process, as plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002  the state of others
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set every random generator of this process."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002


def on_rank_zero(action: Any) -> None:
    """Call ``action`` on rank 0; if it raises there, raise everywhere instead of waiting for ever."""
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            action()
        except Exception as caught:
            error = caught
    said = [f"{type(error).__name__}: {error}" if error else None]
    dist.broadcast_object_list(said, 0)
    if error:
        raise error
    if said[0]:
        raise RuntimeError(f"rank 0 failed: {said[0]}")


def _serialise(meta: dict[str, Any]) -> bytes:
    """Return ``meta`` as bytes that can be read back safely; hyper-parameters that cannot are left out, and said so."""
    checkpoint = dict(meta["checkpoint"])
    for key in list(checkpoint):
        try:
            _round_trip(checkpoint[key])
        except Exception as error:
            if key not in _OPTIONAL:
                raise ValueError(
                    f"checkpoint[{key!r}] holds an object that cannot be read back safely; keep tensors and plain "
                    f"values in it, or allow its class by torch.serialization.add_safe_globals: {error}"
                ) from error
            rank_zero_warn(f"{key} are left out of the checkpoint: they hold more than plain values")
            del checkpoint[key]
    return _round_trip({**meta, "checkpoint": checkpoint})


def _round_trip(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    with torch.serialization.safe_globals(_SAFE_NUMPY):
        torch.load(buffer, weights_only=True)
    return buffer.getvalue()


def _replace(source: Path, target: Path) -> None:
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)
