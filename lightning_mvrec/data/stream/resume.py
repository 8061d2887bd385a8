"""A store is made beside its place and renamed; what a killed preparation left is gone on with."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from lightning_mvrec.data.engines.base import Engine
from lightning_mvrec.data.settings import Settings
from lightning_mvrec.data.store import MANIFEST
from lightning_mvrec.data.stream.build import build_stream


def prepare_beside(settings: Settings, root: str | None, engine: Engine, path: Path, progress: bool) -> None:
    """Make the store at ``path``, unless another process does: then wait for it.

    Args:
        settings: What was asked for.
        root: Folder of the source's files.
        engine: What sorts.
        path: Where the store goes.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If the data or the settings are faulty; nothing is left behind.
    """
    work = path.with_name(f"{path.name}.building")
    while not (path / MANIFEST).is_file():
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work) as mine:
            if not mine:
                continue  # the one that was waited for has finished, or given up: look again
            try:
                _build(settings, root, engine, path, work, progress)
            except ValueError:
                shutil.rmtree(work, ignore_errors=True)
                raise


def _build(settings: Settings, root: str | None, engine: Engine, path: Path, work: Path, progress: bool) -> None:
    store = work / "store"
    # The total is known when the engine has counted the events.
    with tqdm(total=None, desc=f"prepare {path.name}", disable=not progress, unit="event", unit_scale=True) as bar:
        build_stream(settings, root, engine, store, work / "temporary", bar)
    store.rename(path)
    shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold a lock on a folder; yields whether it is still the one at its place. A kill frees it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            mine = os.path.samestat(os.fstat(handle), os.stat(folder))
        except FileNotFoundError:
            mine = False
        yield mine
    finally:
        os.close(handle)
