"""The folder a run writes into: one a run, the same for all its processes."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

CONFIG = "config.yaml"
_SHARED = "MVREC_RUN_DIR"


def choose_run_dir(run_dir: str | None, config_paths: list[str]) -> Path:
    """Return ``run_dir``, or a new ``runs/<recipe>/<date and time>``.

    The name is handed to processes that this one starts (one a device) through the environment, so that all of them
    agree on it.

    Raises:
        ValueError: If ``run_dir`` holds a run already.
    """
    if run_dir is not None:
        # The other processes may come here when the first one has written its configuration.
        if _is_first_process() and (Path(run_dir) / CONFIG).exists():
            raise ValueError(
                f"run_dir must be a folder without a run, {run_dir} holds the {CONFIG} of one; name another folder, "
                "or none for a new one under runs/"
            )
        return Path(run_dir)
    shared = os.environ.get(_SHARED)
    if shared is not None and os.environ.get("LOCAL_RANK", "0") != "0":
        return Path(shared)
    name = _recipe_name(Path(config_paths[0])) if config_paths else "run"
    base = Path("runs") / name / datetime.now().strftime("%Y%m%d-%H%M%S")
    chosen = unused(base)
    os.environ[_SHARED] = str(chosen)
    return chosen


def unused(folder: Path) -> Path:
    """Return the folder's path, with a number behind it where it is taken."""
    chosen, number = folder, 1
    while chosen.exists():
        number += 1
        chosen = folder.with_name(f"{folder.name}-{number}")
    return chosen


def _is_first_process() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def _recipe_name(path: Path) -> str:
    """Return the name of a recipe; that of a run's ``config.yaml`` is the recipe that the run was of.

    Example:
        >>> _recipe_name(Path("recipes/taobao/multi_behavior.yaml"))
        'taobao-multi_behavior'
        >>> _recipe_name(Path("runs/quickstart/20261124-101500/config.yaml"))
        'quickstart'
    """
    folder = path.parent.name
    if path.name == CONFIG and path.parent.parent.name:
        return path.parent.parent.name
    return f"{folder}-{path.stem}" if folder not in ("", ".", "recipes") else path.stem


def config_paths(argv: list[str]) -> list[str]:
    """Return the values of every ``--config`` / ``-c`` of a command line, in order.

    Example:
        >>> config_paths(["--config", "a.yaml", "--trainer.max_epochs", "3", "--config=b.yaml"])
        ['a.yaml', 'b.yaml']
    """
    paths = []
    for index, word in enumerate(argv):
        if word in ("--config", "-c") and index + 1 < len(argv):
            paths.append(argv[index + 1])
        elif word.startswith("--config="):
            paths.append(word.partition("=")[2])
    return paths
