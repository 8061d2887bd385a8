"""Which releases of torch, fbgemm-gpu and torchrec belong together, and what to do when they do not.

Everything here is a pure function over `Found`, so that each decision can be tested without installing anything.

Two quirks upstream make a plain ``pip install`` go wrong on a machine without a GPU: ``torchrec`` requires
``fbgemm-gpu``, whose CUDA build cannot be imported without the NVIDIA driver, and the CPU build of the same library
has another name but writes into the same folder. So torchrec goes in without its dependencies, one build of fbgemm is
chosen by looking at the machine, and the other one is removed first.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field

# The trios that work, by the minor version of torch. They are not to be mixed: fbgemm of one cannot be imported under
# torch of another, and which fbgemm a torchrec calls is tested upstream for its own release alone.
TRIOS = {
    "2.13": {"torch": "2.13.0", "fbgemm": "1.8.0", "torchrec": "1.8.0"},
    "2.14": {"torch": "2.14.1", "fbgemm": "1.9.0", "torchrec": "1.9.2"},
}
DEFAULT_TRIO = "2.13"
FBGEMM = {"cpu": "fbgemm-gpu-cpu", "cuda": "fbgemm-gpu"}
PYTHONS = ((3, 10), (3, 13))
LIGHTNING = "lightning>=2.6.1,!=2.6.2,!=2.6.3"
MALICIOUS = {"lightning": ("2.6.2", "2.6.3")}  # advisory GHSA-w37p-236h-pfx3
# What is imported to see whether it works -> the distributions that bring it. "kernel" is one training step of a
# fused table: a mixed trio may import and fail only there.
PROBES = {
    "torch": ("torch",),
    "fbgemm_gpu": ("fbgemm-gpu", "fbgemm-gpu-cpu"),
    "torchrec": ("torchrec",),
    "kernel": ("fbgemm-gpu", "fbgemm-gpu-cpu"),
    "lightning": ("lightning",),
    "torchmetrics": ("torchmetrics",),
    "pandas": ("pandas",),
}


@dataclass
class Found:
    """What was found on a machine and in one Python.

    Attributes:
        python: The interpreter, as it is written in commands.
        python_version: Its major and minor version.
        linux: Whether this is Linux; torchrec exists for nothing else.
        versions: Version of each installed distribution; absent ones have no entry.
        torch_cuda: CUDA version torch was built for, or ``""`` for a CPU build.
        fbgemm_files: ``"cpu"`` or ``"cuda"``: whose files lie in the folder both builds share; ``""`` if unknown.
        driver: Whether the NVIDIA driver's library loads.
        gpus: Number of GPUs that the driver reports.
        imports: For each key of ``PROBES`` that was tried, ``""`` if it works or its error.
        facts: What torch said: ``cuda_available``, ``gpu_names``, ``gloo``, ``nccl``.
    """

    python: str = sys.executable
    python_version: tuple[int, int] = (3, 11)
    linux: bool = True
    versions: dict[str, str] = field(default_factory=dict)
    torch_cuda: str = ""
    fbgemm_files: str = ""
    driver: bool = False
    gpus: int = 0
    imports: dict[str, str] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)


@dataclass
class Problem:
    """One thing that does not fit; ``broken`` is False for advice. ``mend`` holds command lines, in order."""

    text: str
    mend: list[list[str]]
    broken: bool = True


def minor(version: str) -> str:
    """Return the first two numbers of a version.

    Example:
        >>> minor("2.13.0+cpu")
        '2.13'
    """
    return ".".join(version.split("+")[0].split(".")[:2])


def choose_device(found: Found) -> str:
    """Return ``"cuda"`` where the NVIDIA driver reports a GPU, else ``"cpu"``."""
    return "cuda" if found.linux and found.driver and found.gpus > 0 else "cpu"


def choose_trio(found: Found) -> str:
    """Return the trio of the torch that is installed, else the default one."""
    installed = minor(found.versions.get("torch", ""))
    return installed if installed in TRIOS else DEFAULT_TRIO


def trio_commands(found: Found, device: str, trio: str, index: str = "") -> list[list[str]]:
    """Return the pip commands that bring one whole trio in for a device; none where all of it fits already.

    Args:
        found: The state to start from.
        device: ``"cpu"`` or ``"cuda"``.
        trio: A key of ``TRIOS``.
        index: Extra package index to look for torch on, or ``""``.

    Example:
        >>> bare = Found(python="python", versions={"torch": "2.13.0", "torchrec": "1.8.0"})
        >>> [" ".join(line) for line in trio_commands(bare, device="cpu", trio="2.13")]
        ['python -m pip install --no-deps --force-reinstall fbgemm-gpu-cpu==1.8.0']
    """
    pip, want, have = [found.python, "-m", "pip"], TRIOS[trio], found.versions
    commands = []
    # The CPU build of fbgemm also works on a CUDA build of torch; the other way round does not.
    if minor(have.get("torch", "")) != trio or (device == "cuda" and not found.torch_cuda):
        if "torch" in have:
            commands.append([*pip, "uninstall", "-y", "torch"])
        # `===` compares the text: a local "+cpu" build that pip's own configuration offers is then not 2.13.0.
        exactly = "===" if device == "cuda" and not index else "=="
        extra = ["--extra-index-url", index] if index else []
        commands.append([*pip, "install", *extra, f"torch{exactly}{want['torch']}"])
    if not found.linux:
        return commands
    name, other = FBGEMM[device], FBGEMM["cuda" if device == "cpu" else "cpu"]
    fits = minor(have.get(name, "")) == minor(want["fbgemm"])
    if other in have or not fits or found.fbgemm_files not in ("", device):
        gone = [build for build in FBGEMM.values() if build in have]
        if gone:
            commands.append([*pip, "uninstall", "-y", *gone])
        # Both builds own the same files: whichever is kept has to be written again after the other is gone.
        commands.append([*pip, "install", "--no-deps", "--force-reinstall", f"{name}=={want['fbgemm']}"])
    if minor(have.get("torchrec", "")) != minor(want["torchrec"]):
        commands.append([*pip, "install", "--no-deps", f"torchrec=={want['torchrec']}"])
    return commands


def diagnose(found: Found, index: str = "") -> list[Problem]:
    """Return everything that does not fit, each with the commands that mend it.

    Args:
        found: What was found, imports included.
        index: Extra package index that the commands should look for torch on, or ``""``.
    """
    pip, have, problems = [found.python, "-m", "pip"], found.versions, []
    if not PYTHONS[0] <= found.python_version <= PYTHONS[1]:
        text = "Python {}.{} is not supported: 3.10 to 3.13 are".format(*found.python_version)
        problems.append(Problem(text, [["python3.12", "-m", "venv", ".venv"]]))
    for name, versions in MALICIOUS.items():
        if have.get(name) in versions:
            text = f"{name} {have[name]} is a malicious release (GHSA-w37p-236h-pfx3); it was not imported here"
            mend = [[*pip, "uninstall", "-y", name], [*pip, "install", "--no-cache-dir", LIGHTNING]]
            problems.append(Problem(text, mend))
    problems += _diagnose_trio(found, index)
    if "lightning" not in have:
        problems.append(Problem("lightning is not installed", [[*pip, "install", LIGHTNING]]))
    elif have.get("pytorch-lightning", have["lightning"]) != have["lightning"]:
        text = (
            f"pytorch-lightning {have['pytorch-lightning']} lies beside lightning {have['lightning']}: they have two "
            "Strategy classes and two registries of names; import from `lightning` only"
        )
        if have["lightning"] not in MALICIOUS["lightning"]:
            mend = [[*pip, "install", f"pytorch-lightning=={have['lightning']}"]]
            problems.append(Problem(text, mend, broken=False))
    if "gloo" in found.facts and not found.facts["gloo"]:
        text = "this torch has no gloo: several processes on CPU cannot talk to each other"
        mend = [[*pip, "install", "--force-reinstall", f"torch=={TRIOS[choose_trio(found)]['torch']}"]]
        problems.append(Problem(text, mend, broken=False))
    if not any(problem.broken for problem in problems):  # a broken import is then news, else only a consequence
        problems += _diagnose_imports(found)
    return problems


def _diagnose_trio(found: Found, index: str) -> list[Problem]:
    """Say why torch, fbgemm and torchrec do not fit each other or the machine."""
    have, trio, device = found.versions, choose_trio(found), choose_device(found)
    want = TRIOS[trio]
    reasons = _mismatches(found, trio)
    if reasons:
        together = f"torch {trio}, fbgemm {minor(want['fbgemm'])} and torchrec {minor(want['torchrec'])}"
        reasons.append(f"{together} belong together")
    if found.linux:
        builds = [build for build in FBGEMM.values() if build in have]
        owner = "cuda" if builds == [FBGEMM["cuda"]] else "cpu"
        if not builds:
            reasons.append("neither fbgemm-gpu nor fbgemm-gpu-cpu is installed")
        elif len(builds) == 2:
            reasons.append("fbgemm-gpu and fbgemm-gpu-cpu are both installed and overwrite each other's files")
        elif found.fbgemm_files not in ("", owner):
            reasons.append(f"{builds[0]} is installed but its folder holds files of the {found.fbgemm_files} build")
        if FBGEMM["cuda"] in builds and not found.driver:
            reasons.append("fbgemm-gpu is the CUDA build, and this machine has no NVIDIA driver (libnvidia-ml.so.1)")
        elif FBGEMM["cuda"] in builds and "torch" in have and not found.torch_cuda:
            reasons.append(f"fbgemm-gpu is the CUDA build, and torch {have['torch']} is a CPU build")
        elif FBGEMM["cpu"] in builds and device == "cuda" and found.torch_cuda:
            reasons.append("fbgemm-gpu-cpu has no CUDA kernels, and this machine has a GPU that torch can use")
    mend = trio_commands(found, device, trio, index)
    if reasons:
        return [Problem("; ".join(reasons), mend)]
    if device == "cuda" and not found.torch_cuda:
        text = f"this machine has {found.gpus} GPU(s), and everything installed is built for CPU only"
        return [Problem(text, mend, broken=False)]
    if device == "cuda" and not found.facts.get("cuda_available", True):
        text = f"torch {have['torch']} (CUDA {found.torch_cuda}) sees no GPU: is the driver too old for that CUDA?"
        return [Problem(text, [["nvidia-smi"]])]
    return []


def _mismatches(found: Found, trio: str) -> list[str]:
    """Name each part of the trio that is absent or of another release."""
    have, want, reasons = found.versions, TRIOS[trio], []
    if "torch" not in have:
        reasons.append("torch is not installed")
    elif minor(have["torch"]) != trio:
        reasons.append(f"torch {have['torch']} has no torchrec that is known to work with it")
    if found.linux and "torchrec" not in have:
        reasons.append("torchrec is not installed")
    parts = {"torchrec": want["torchrec"], **dict.fromkeys(FBGEMM.values(), want["fbgemm"])}
    for name, version in parts.items():
        if found.linux and name in have and minor(have[name]) != minor(version):
            reasons.append(f"{name} {have[name]} does not fit torch {trio}")
    return reasons


def _diagnose_imports(found: Found) -> list[Problem]:
    """Say which import fails though every version fits."""
    problems = []
    for name, error in found.imports.items():
        if not error:
            continue
        missing = re.search(r"No module named '(\w+)", error)
        owner = next((dist for dist in PROBES[name] if dist in found.versions), name)
        if missing and missing.group(1) not in PROBES:
            wanted = [missing.group(1).replace("_", "-")]
        else:
            wanted = ["--no-deps", "--force-reinstall", f"{owner}=={found.versions.get(owner, '')}".rstrip("=")]
        what = "a training step of a fused table" if name == "kernel" else f"import {name}"
        problems.append(Problem(f"{what} fails: {error}", [[found.python, "-m", "pip", "install", *wanted]]))
    return problems
