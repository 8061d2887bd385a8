"""What TorchRecStrategy costs, and what it saves, beside other ways to train the same module.

    python recipes/benchmarks/strategy.py

trains one module in turn, round after round, in one run: by a loop written by hand, under Lightning's own single-device
or DDP strategy, under TorchRecStrategy, and with ``nn.Embedding``, on one and two processes of one thread each. It
prints a table and, as its last line, one JSON object with the ratios. Needs 7 GB of memory. ``--quick`` shows
in a minute that all of it runs; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch
from cases import Results, Scale, ratios, sections, table
from rounds import interleave
from tqdm import tqdm

QUICK = Scale(rows=2_000, many_rows=20_000, batch=64, length=5)
PACKAGES = ("torch", "fbgemm-gpu-cpu", "torchrec", "lightning")


def machine() -> str:
    """Return versions and processor in words."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    cores = torch.multiprocessing.cpu_count()
    processor = found[1] if found else platform.processor()
    return ", ".join([*(f"{name} {version(name)}" for name in PACKAGES), f"{cores} cores of {processor}"])


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(sections(QUICK))
    parser.add_argument("--sections", nargs="+", default=names, choices=names, metavar="SECTION", help=f"of {names}")
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=12, help="rounds that count; more, and medians are steadier")
    parser.add_argument(
        "--steps",
        type=int,
        default=20,
        help="steps in a round; the first one finds the caches full of another variant's",
    )
    parser.add_argument("--quick", action="store_true", help="small tables, two rounds of two steps")
    options = parser.parse_args()
    scale, rounds, steps = (QUICK, 2, 2) if options.quick else (Scale(), options.rounds, options.steps)
    torch.set_num_threads(1)
    print(machine(), flush=True)
    chosen = {name: variants for name, variants in sections(scale).items() if name in options.sections}
    total = rounds * len(options.processes) * sum(len(variants) for variants in chosen.values())
    results: Results = {}
    with tqdm(total=total, disable=None) as bar:
        for name, variants in chosen.items():
            for processes in options.processes:
                found = results[name, processes] = interleave(variants, processes, rounds, steps, bar)
                tqdm.write("\n".join(table(name, processes, found)))
    print(json.dumps(ratios(results, scale)))


if __name__ == "__main__":
    main()
