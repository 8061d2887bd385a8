"""What replica groups cost on four processes, beside one group.

    python recipes/benchmarks/replicas.py

trains the module of ``strategy.py`` in interleaved rounds on four processes of one thread each: one group, updated in
the backward pass and in the step, and in two and four replica groups. It prints a table for bags and one for sequences.
On one machine this shows what groups cost in computing; what they save, exchanges between machines, it does not.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import loops
import torch
from cases import table
from rounds import Variant, interleave
from strategy import machine
from tqdm import tqdm
from workloads import Workload

PROCESSES = 4
SETTINGS = {
    "one group": {},
    "one group, updated in the step": {"update_in_step": True},
    "2 replica groups": {"replica_groups": 2},
    "4 replica groups": {"replica_groups": 4},
}


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="rounds that count")
    parser.add_argument("--steps", type=int, default=10, help="steps in a round")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), flush=True)
    pooled = Workload("pooled", "uniform", "equal", options.rows)
    with tqdm(total=2 * len(SETTINGS) * options.rounds, disable=None) as bar:
        for load, kind in ((pooled, "pooled"), (replace(pooled, lookups="sequence"), "collection")):
            # A variant stands still while others run, which must not be taken for a hang.
            variants = [
                Variant(name, loops.ours(load, kind, failure_timeout=None, **settings))
                for name, settings in SETTINGS.items()
            ]
            found = interleave(variants, PROCESSES, options.rounds, options.steps, bar)
            tqdm.write("\n".join(table(load.lookups, PROCESSES, found)))


if __name__ == "__main__":
    main()
