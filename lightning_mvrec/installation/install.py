"""Bring the trio and everything else into a Python, or into a virtual environment made for it; say each step."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from lightning_mvrec.installation.look import inspect
from lightning_mvrec.installation.trio import (
    DEFAULT_TRIO,
    FBGEMM,
    MALICIOUS,
    TRIOS,
    choose_device,
    choose_trio,
    minor,
    trio_commands,
)

# A user may name an index that has a smaller (CPU) or another (CUDA) build of torch than the default one.
TORCH_INDEX = "MVREC_TORCH_INDEX"
STAMP = "mvrec-setup.json"


def install(device: str, trio: str | None, project: str, groups: list[str], dry: bool) -> None:
    """Bring the trio and everything else into this Python.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        trio: A key of ``TRIOS``; None keeps the installed torch's, else takes the default.
        project: A checkout to install as editable, or ``""``.
        groups: Dependency groups of the checkout to install as well.
        dry: Print the commands and run none.

    Raises:
        SystemExit: If a command fails; the message names it.
    """
    found = inspect()
    device = choose_device(found) if device == "auto" else device
    trio = trio or choose_trio(found)
    machine = f"{found.gpus} GPU(s) found" if found.gpus else "no NVIDIA GPU found"
    parts = f"torch {trio}, the {device} build of its fbgemm, and its torchrec"
    say(f"{machine}: {parts}, into {sys.prefix}")
    if minor(found.versions.get("torch", trio)) != trio:
        say("between two steps pip may speak of an ERROR and of dependency conflicts; the table at the end counts")
    if trio != DEFAULT_TRIO:
        say(
            f"the package itself goes on asking for torch {DEFAULT_TRIO}: `pip check` says so, and whatever installs "
            f"lightning-mvrec with its dependencies brings that back; `mvrec doctor --install --trio {trio}` mends it"
        )
    pip = [found.python, "-m", "pip"]
    if importlib.util.find_spec("pip") is None:
        _run([[found.python, "-m", "ensurepip", "--upgrade"]], dry)
    bad = [name for name, versions in MALICIOUS.items() if found.versions.get(name) in versions]
    _run([[*pip, "uninstall", "-y", name] for name in bad], dry)
    _run(trio_commands(found, device, trio, os.environ.get(TORCH_INDEX, "")), dry)
    if project:
        _run([[*pip, "install", "--no-deps", "--editable", project]], dry)
    # torch is named again so that no other package can move it. Pip would warn that torchrec misses the fbgemm-gpu and
    # the old torchmetrics that it asks for: it does not need them.
    rest = [f"torch=={TRIOS[trio]['torch']}", *other_requirements()]
    wanted = [part for group in groups for part in ("--group", f"{Path(project, 'pyproject.toml')}:{group}")]
    _run([[*pip, "install", "--no-warn-conflicts", *rest, *wanted]], dry)


def other_requirements() -> list[str]:
    """Return what lightning-mvrec and torchrec require beside the trio, from their installed metadata."""
    importlib.invalidate_caches()
    needed: list[str] = []
    for name in ("lightning-mvrec", "torchrec"):
        try:
            needed += importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
    return without_trio(needed)


def without_trio(requirements: list[str]) -> list[str]:
    """Drop the trio, extras, and torchrec's pin of torchmetrics from a list of requirements.

    Example:
        >>> without_trio(["torch>=2.13,<2.14", "fbgemm-gpu", "tqdm", "torchmetrics==1.0.3", 'iopath; extra == "x"'])
        ['tqdm']
    """
    kept = []
    for line in requirements:
        match = re.match(r"[\w.-]+", line)
        name = match.group().lower().replace("_", "-") if match else ""
        # torchrec pins torchmetrics 1.0.3 for torchrec.metrics alone, which this package does not use.
        if name in {"torch", "torchrec", *FBGEMM.values()} or "extra ==" in line or line.startswith("torchmetrics=="):
            continue
        kept.append(line)
    return kept


def install_into_venv(
    folder: Path, device: str, trio: str | None, project: str, groups: list[str], dry: bool = False
) -> int:
    """Make a virtual environment if it is absent and install into it; do nothing where a stamp says it is done.

    Returns:
        The exit status: 0 when the environment is ready.
    """
    device = choose_device(inspect()) if device == "auto" else device
    stamp, key = folder / STAMP, setup_key(project, device, trio or "")
    done = json.loads(stamp.read_text()) if stamp.is_file() else {}
    if done.get("key") == key:  # keep what another target has installed before
        groups = sorted({*groups, *done["groups"]})
    if done == {"key": key, "groups": groups}:
        say(f"{folder} is up to date ({device})")
        return 0
    python = _make_venv(folder, dry)
    doctor = [python, str(Path(__file__).parents[1] / "doctor.py"), "--install", "--device", device]
    doctor += ["--project", str(Path(project).resolve())] if project else []
    doctor += ["--trio", trio] if trio else []
    doctor += [part for group in groups for part in ("--group", group)]
    say(shlex.join(doctor))
    status = 0 if dry else subprocess.call(doctor)
    if status == 0 and not dry:
        stamp.write_text(json.dumps({"key": key, "groups": groups}))
        say(f"{folder} is ready")
    return status


def setup_key(project: str, device: str, trio: str) -> str:
    """Return a digest of all that a set-up depends on; a stamp with the same one need not be done again."""
    digest = hashlib.sha256(f"{sys.version} {device} {trio} {os.environ.get(TORCH_INDEX, '')}".encode())
    files = sorted(Path(__file__).parent.glob("*.py"))
    for file in [*files, *([Path(project, "pyproject.toml")] if project else [])]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _make_venv(folder: Path, dry: bool) -> str:
    """Create a virtual environment with a recent pip unless a sound one is there; return its interpreter."""
    python = str(folder.resolve() / "bin" / "python")
    if not _is_sound(folder, python):
        say(f"making the virtual environment {folder}")
        # What is there is cleared only if it is an environment: one of another Python, or one left half made.
        clear = ["--clear"] if (folder / "pyvenv.cfg").is_file() else []
        make = [sys.executable, "-m", "venv", *clear, str(folder)]
        if importlib.util.find_spec("ensurepip") is None:  # Debian without python3-venv
            pip_into = [sys.executable, "-m", "pip", "--python", python, "install", "pip"]
            _run([[*make, "--without-pip"], pip_into], dry)
        else:
            _run([make], dry)
    _run([[python, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25.1"]], dry)  # --group came with 25.1
    return python


def _is_sound(folder: Path, python: str) -> bool:
    """Whether a folder is a virtual environment of this Python's version with a pip that runs."""
    config = folder / "pyvenv.cfg"
    version = r"^version *= *{}\.{}\b".format(*sys.version_info[:2])
    same = config.is_file() and re.search(version, config.read_text(), flags=re.MULTILINE) is not None
    return (
        same
        and Path(python).exists()
        and subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0
    )


def say(text: str) -> None:
    """Print one line of progress."""
    print(f"[mvrec] {text}", flush=True)


def _run(commands: list[list[str]], dry: bool) -> None:
    """Run commands in order, each shown first; stop with a message at the first that fails."""
    for command in commands:
        say(shlex.join(command))
        if not dry and subprocess.call(command) != 0:
            raise SystemExit(f"[mvrec] this command failed, see above: {shlex.join(command)}")
