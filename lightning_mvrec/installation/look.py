"""Look at a machine and a Python: versions without importing, imports in another process, so that a crash is seen."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

from lightning_mvrec.installation.trio import MALICIOUS, PROBES, Found

DISTRIBUTIONS = (
    "torch",
    "fbgemm-gpu",
    "fbgemm-gpu-cpu",
    "torchrec",
    "lightning",
    "pytorch-lightning",
    "torchmetrics",
    "pandas",
    "numpy",
    "lightning-mvrec",
)

_PROBE = r"""
import importlib, json, sys

def say(**facts):
    print("@mvrec " + json.dumps(facts), flush=True)

def kernel():
    import torch
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen)
    gpu = torch.cuda.is_available()
    where = (EmbeddingLocation.DEVICE, ComputeDevice.CUDA) if gpu else (EmbeddingLocation.HOST, ComputeDevice.CPU)
    table = SplitTableBatchedEmbeddingBagsCodegen([(4, 4, *where)], learning_rate=0.1)
    ids, offsets = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 3])
    table(*(x.cuda() if gpu else x for x in (ids, offsets))).sum().backward()

def torch_facts():
    import torch
    dist = torch.distributed
    say(cuda_available=torch.cuda.is_available(),
        gpu_names=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        gloo=dist.is_available() and dist.is_gloo_available(),
        nccl=dist.is_available() and dist.is_nccl_available())

for name in sys.argv[1:]:
    say(start=name)
    try:
        kernel() if name == "kernel" else importlib.import_module(name)
        if name == "torch":
            torch_facts()
        say(name=name, error="")
    except BaseException as error:
        reason = error.__cause__ or error  # torch hides why a library does not load behind its path
        say(name=name, error=f"{type(reason).__name__}: {reason}")
"""


def inspect() -> Found:
    """Return the versions of this Python's packages, which builds they are, and what the machine has."""
    found = Found(python_version=sys.version_info[:2], linux=sys.platform == "linux")
    importlib.invalidate_caches()
    for name in DISTRIBUTIONS:
        try:
            found.versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    match = re.search(r"^cuda[^=\n]*= *'([^']+)'", _text_in_package("torch", "version.py"), flags=re.MULTILINE)
    found.torch_cuda = match.group(1) if match else ""
    match = re.search(r'"variant": *"(\w+)"', _text_in_package("fbgemm_gpu", "docs/target.default.json.py"))
    found.fbgemm_files = match.group(1) if match else ""
    found.driver, found.gpus = _nvidia()
    return found


def _text_in_package(package: str, path: str) -> str:
    """Return the text of a file of an installed package, without importing it, or an empty text."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    file = Path(folders[0], path) if folders else None
    return file.read_text(errors="replace") if file is not None and file.is_file() else ""


def _nvidia() -> tuple[bool, int]:
    """Return whether the NVIDIA driver's library loads, and how many GPUs it reports."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False, 0
    count = ctypes.c_uint(0)
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return True, 0
    return True, count.value


def probe(found: Found, timeout: float = 300.0) -> None:
    """Try every import in another process and note in ``found`` what happened.

    After a crash or a timeout of one import, the ones behind it are tried in a new process.

    Args:
        found: What `inspect` returned; ``imports`` and ``facts`` are filled in.
        timeout: Seconds to wait for one process.
    """
    left = [name for name, owners in PROBES.items() if any(owner in found.versions for owner in owners)]
    # Importing a malicious release is what runs it.
    left = [name for name in left if found.versions.get(name) not in MALICIOUS.get(name, ())]
    while left:
        command = [found.python, "-c", _PROBE, *left]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
            output = run.stdout
            end = f"killed by signal {-run.returncode}" if run.returncode < 0 else f"exit status {run.returncode}"
        except subprocess.TimeoutExpired as expired:
            output = (expired.stdout or b"").decode(errors="replace")
            end = f"not finished after {timeout:.0f} s"
        started = left[0]
        for line in output.splitlines():
            if not line.startswith("@mvrec "):
                continue
            said = json.loads(line[len("@mvrec ") :])
            if "start" in said:
                started = said["start"]
            elif "name" in said:
                found.imports[said["name"]] = said["error"].strip().split("\n")[0]
            else:
                found.facts.update(said)
        if started not in found.imports:
            found.imports[started] = end
        left = [name for name in left if name not in found.imports]
