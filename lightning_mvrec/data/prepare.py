"""Source -> store, once: written beside, then renamed, and found again by content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tqdm import tqdm

from lightning_mvrec.data.build import STEPS, build
from lightning_mvrec.data.content import Content
from lightning_mvrec.data.engines.base import Engine
from lightning_mvrec.data.filters import TargetFilter
from lightning_mvrec.data.fingerprint import fingerprint
from lightning_mvrec.data.labels import Label
from lightning_mvrec.data.settings import Settings, make_settings
from lightning_mvrec.data.sources.base import Source
from lightning_mvrec.data.split import Split
from lightning_mvrec.data.store import FORMAT, MANIFEST, Store, StoreWriter
from lightning_mvrec.data.stream import prepare_beside
from lightning_mvrec.data.transforms import Transform


def prepare(
    source: Source,
    root: str | None = None,
    *,
    targets: list[str],
    split: Split | None = None,
    target_filter: TargetFilter | None = None,
    label: Label | None = None,
    transforms: dict[str, Transform] | None = None,
    deduplicate: bool = True,
    content: Content | None = None,
    store_dir: str | os.PathLike[str] = ".mvrec",
    progress: bool = True,
    engine: Engine | None = None,
) -> Store:
    """Prepare a source, or find the store that the same files and settings gave before.

    Args:
        source: Where the events come from.
        root: Folder of the source's files.
        targets: Views whose events are predicted.
        split: What trains, validates and tests; a global time split 80/10/10 by default.
        target_filter: Which events of the target views may be targets; all by default.
        label: What a target's label is; None for implicit feedback.
        transforms: How numeric event fields are normalised, by ``"<field>"`` or ``"<view>.<field>"``; standardised by
            default. ``"time"`` (or ``"<view>.time"``) adds the event's time as a numeric field of that name.
        deduplicate: Whether events equal in user, item and time are kept once in each view.
        content: Makes a frozen vector of each item from its texts, kept in the store; None: no such vectors.
        store_dir: Folder of the stores; each is named by source and content.
        progress: Whether to show a progress bar.
        engine: What prepares events that do not fit in memory; None reads them into memory. The store is the same. If
            it is killed, the next call goes on with what was complete.

    Raises:
        ValueError: If the data or the settings are faulty; names the place. Earlier stores stay as they are.
        ImportError: If the engine's package is not installed; names the extra.
    """
    settings = make_settings(source, targets, split, target_filter, label, transforms, deduplicate, content)
    path = store_path(settings, root, store_dir)
    if (path / MANIFEST).is_file():
        return Store(path)
    if engine is not None:
        prepare_beside(settings, root, engine, path, progress)
        return Store(path)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with tqdm(total=STEPS, desc=f"prepare {path.name}", disable=not progress, unit="step") as bar:
            build(settings, root, StoreWriter(part), bar)
        try:
            part.rename(path)
        except OSError:
            # Another process finished the same store first: it holds the same bytes.
            if not (path / MANIFEST).is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Store(path)


def store_path(settings: Settings, root: str | None, store_dir: str | os.PathLike[str]) -> Path:
    """Return the folder of the store that these files and settings give."""
    folder = Path(store_dir)
    files = settings.source.files(root)
    digest = fingerprint([FORMAT, settings], files, folder / "hashes.json")
    return folder / f"{settings.source.folder or type(settings.source).__name__.lower()}-{digest}"
