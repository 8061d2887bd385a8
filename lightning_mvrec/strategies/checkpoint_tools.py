"""Look at a checkpoint directory, or make one plain file of it: one process, torch alone."""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata

from lightning_mvrec.strategies.checkpoint_read import (
    PLAN,
    STATE,
    WEIGHTS,
    SafeReader,
    load,
    read_meta,
    whole,
    without_numpy,
)

#: What only a fit that goes on needs, and what would go on wrongly without the tables' optimizer state.
_OF_A_FIT = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "MixedPrecision")
_TABLE = re.compile(r"(?:^|\.)(?:embedding_bags|embeddings)\.([^.]+)\.weight$")


@dataclass
class SavedTable:
    """One table of a checkpoint; what only the plan knows is None where a checkpoint has none.

    Args:
        name: The table.
        key: Its weight in the module's state dict.
        rows: Number of rows.
        dim: Width.
        dtype: Type of its weights.
        sharding: How it lay on the ranks.
        optimizer: How it was trained.
        state: Name of each optimizer state -> shape.
        bytes: Weights and optimizer state on disk.
    """

    name: str
    key: str
    rows: int
    dim: int
    dtype: str
    sharding: str | None
    optimizer: str | None
    state: dict[str, list[int]]
    bytes: int


@dataclass
class Description:
    """What a checkpoint directory holds.

    Args:
        path: The directory.
        format: Version of its layout.
        epoch: Epochs begun, as Lightning counts them.
        step: Optimizer steps done.
        world_size: Processes that wrote it.
        resumable: Whether a fit can go on from it: it has the optimizers' state.
        tables: Its tables.
        dense: Key of each other weight -> shape.
        other: What else Lightning and the module have put into it.
        files: Number of files.
        bytes: Size on disk.
    """

    path: str
    format: int
    epoch: int | None
    step: int | None
    world_size: int
    resumable: bool
    tables: list[SavedTable]
    dense: dict[str, list[int]]
    other: list[str]
    files: int
    bytes: int

    def __str__(self) -> str:
        ranks = "1 process" if self.world_size == 1 else f"{self.world_size} processes"
        kind = "a fit can go on from it" if self.resumable else "weights only"
        count = sum(math.prod(shape) for shape in self.dense.values())
        lines = [
            f"{self.path}: format {self.format}, epoch {self.epoch}, step {self.step}, written by {ranks}; {kind}",
            *_columns(self.tables),
            f"dense weights: {len(self.dense)} tensors, {count} numbers",
            *(f"  {key}  {'x'.join(map(str, shape)) or 'scalar'}" for key, shape in self.dense.items()),
            f"also: {', '.join(self.other) or 'nothing'}",
            f"on disk: {self.files} files, {self.bytes} bytes",
        ]
        return "\n".join(lines)


def describe(path: str | os.PathLike[str]) -> Description:
    """Read what a checkpoint directory holds, without its weights.

    Raises:
        ValueError: If it is no checkpoint of ours, or damaged.
    """
    folder = whole(path)
    meta = read_meta(folder)
    checkpoint = meta["checkpoint"]
    metadata = SafeReader(folder).read_metadata()
    plan = {line["table"]: line for line in read_plan(folder).get("tables", [])}
    tables, dense = [], {}
    for key, saved in sorted(metadata.state_dict_metadata.items()):
        if not key.startswith(WEIGHTS):
            continue
        found = _TABLE.search(key)
        if found is None or (plan and found[1] not in plan):
            dense[key.removeprefix(WEIGHTS)] = list(saved.size)  # type: ignore[union-attr]
        else:
            tables.append(_table(found[1], key, metadata, plan.get(found[1], {})))
    files = [file for file in folder.iterdir() if file.is_file()]
    return Description(
        path=str(path),
        format=meta["format"],
        epoch=checkpoint.get("epoch"),
        step=checkpoint.get("global_step"),
        world_size=len(meta["random"]),
        resumable="optimizer_states" in checkpoint,
        tables=tables,
        dense=dense,
        other=sorted(set(checkpoint) - {"epoch", "global_step", "state_dict"}),
        files=len(files),
        bytes=sum(file.stat().st_size for file in files),
    )


def read_plan(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the plan beside the weights; empty if the checkpoint has none.

    Raises:
        ValueError: If it is not JSON.
    """
    file = whole(path) / PLAN
    if not file.is_file():
        return {}
    try:
        plan = json.loads(file.read_text())
        if not isinstance(plan, dict) or not all("table" in line for line in plan.get("tables", [])):
            raise ValueError("not a plan")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    return plan


def consolidate(path: str | os.PathLike[str], out: str | os.PathLike[str], force: bool = False) -> list[str]:
    """Write the weights of a checkpoint directory, and what the module has put beside them, into one plain file.

    It is laid out as Lightning's own checkpoints are: ``torch.load(out, weights_only=True)["state_dict"]`` fits the
    unsharded module. A fit cannot go on from it, the optimizers' state is left out.

    Args:
        path: The directory.
        out: The file; it has this name only once it is whole.
        force: Whether to replace a file that is there.

    Returns:
        Entries that were left out because they would not load with ``weights_only=True``.

    Raises:
        ValueError: If ``out`` is there already, or ``path`` is no checkpoint of ours, or damaged.
    """
    target = Path(out)
    if target.is_dir():
        raise ValueError(f"{out} must be a file to be written, it is a directory")
    if os.path.lexists(target) and not force:
        raise ValueError(f"{out} is there already; give another name, or --force to replace it")
    checkpoint = read_meta(path)["checkpoint"]
    weights = _read_weights(path)
    made: dict[str, Any] = {}
    left_out = []
    for key, value in checkpoint.items():
        if key in _OF_A_FIT:
            continue
        made[key] = without_numpy(value)
        if not _loads_plainly(made[key]):
            left_out.append(key)
            del made[key]
    made["state_dict"] = {**weights, **made.get("state_dict", {})}
    temporary = target.with_name(f".{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as stream:
            torch.save(made, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return left_out


def read_whole(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a checkpoint directory as Lightning has its own: one dict, with whole tables in its ``state_dict``.

    Raises:
        ValueError: If it is no checkpoint of ours, or damaged.
    """
    checkpoint = read_meta(path)["checkpoint"]
    return {**checkpoint, "state_dict": {**_read_weights(path), **checkpoint.get("state_dict", {})}}


def _read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    saved = SafeReader(whole(path)).read_metadata().state_dict_metadata
    tensors = {
        key: torch.empty(item.size, dtype=item.properties.dtype)  # type: ignore[union-attr]
        for key, item in saved.items()
        if key.startswith(WEIGHTS)
    }
    load(path, tensors, alone=True)
    return {key.removeprefix(WEIGHTS): value for key, value in tensors.items()}


def _table(name: str, key: str, metadata: Metadata, plan: Mapping[str, Any]) -> SavedTable:
    weight: Any = metadata.state_dict_metadata[key]
    prefix = f"{STATE}{name}/"
    state: dict[str, Any] = {
        saved.removeprefix(prefix): item
        for saved, item in metadata.state_dict_metadata.items()
        if saved.startswith(prefix)
    }
    return SavedTable(
        name=name,
        key=key.removeprefix(WEIGHTS),
        rows=weight.size[0],
        dim=weight.size[1],
        dtype=str(weight.properties.dtype).removeprefix("torch."),
        sharding=plan.get("sharding"),
        optimizer=plan.get("optimizer"),
        state={saved: list(item.size) for saved, item in state.items()},
        bytes=sum(
            part.length
            for index, part in metadata.storage_data.items()
            if index.fqn == key or index.fqn.startswith(prefix)
        ),
    )


def _columns(tables: list[SavedTable]) -> list[str]:
    lines = [["table", "rows", "dim", "dtype", "sharding", "optimizer", "state", "bytes"]]
    for table in tables:
        state = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in table.state.items())
        numbers = [str(table.rows), str(table.dim), table.dtype, table.sharding or "?", table.optimizer or "?"]
        lines.append([table.name, *numbers, state or "none", str(table.bytes)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _loads_plainly(value: Any) -> bool:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except Exception:
        return False
    return True
