"""One hash for source files and settings: equal hash, equal store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mvrec.data._pandas import pd


def hash_file(path: Path, cache: Path | None = None) -> str:
    """Return a hash of a file's content.

    Args:
        path: The file.
        cache: JSON file that remembers hashes by path, size and modification time, so that every rank of a large run
            need not read large files again.
    """
    stat = path.stat()
    key = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    known: dict[str, str] = {}
    if cache is not None and cache.is_file():
        with contextlib.suppress(ValueError, OSError):
            known = json.loads(cache.read_text(encoding="utf-8"))
    if key in known:
        return known[key]
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_name(f"{cache.name}.{os.getpid()}")
        part.write_text(json.dumps({**known, key: digest.hexdigest()}), encoding="utf-8")
        part.replace(cache)
    return digest.hexdigest()


def describe(value: Any) -> Any:
    """Return class names and constructor values of an object, as plain Python values.

    Example:
        >>> from lightning_mvrec.data.split import LeaveOneOut
        >>> describe(LeaveOneOut(min_targets=2))
        ['lightning_mvrec.data.split.LeaveOneOut', {'min_targets': 2}]
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if "pandas" in sys.modules and isinstance(value, pd.DataFrame):  # without it there is no frame
        hashed = hashlib.blake2b(repr(list(value.columns)).encode(), digest_size=16)
        for column in value.columns:
            series = value[column]
            if series.dtype == object:
                series = series.map(repr)
            hashed.update(pd.util.hash_pandas_object(series, index=False).to_numpy().tobytes())
        return hashed.hexdigest()
    if isinstance(value, np.ndarray):
        return hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    return [f"{type(value).__module__}.{type(value).__qualname__}", describe(vars(value))]


def fingerprint(settings: Any, files: list[Path], cache: Path | None = None) -> str:
    """Return 16 hexadecimal digits for settings and the content of files."""
    content = [describe(settings), [[file.name, hash_file(file, cache)] for file in files]]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
