"""Prepare a generated log with this package and with its peers, and prepare ever larger logs in bounded memory.

    python recipes/benchmarks/prepare.py --envs DIR --work DIR

makes the peers' environments that are missing below ``--envs``, generates logs of 1, 20 and 100 million events below
``--work`` (3 GB; stores are removed again, the largest with what is sorted on disk takes 10 GB more), prepares them on
two cores and prints a table and, as its last line, one JSON object with the ratios. Peers read each column of the same
log from a file of its own, so that their time holds no decoding; this package reads parquet and writes its store.
Imports are not timed, but count for memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "peers"), str(HERE / "preparation")]

import generate  # noqa: E402 - these two lie in the folders above
import run as peers  # noqa: E402

WORKERS = HERE / "preparation"
CORES = 2


@dataclass(frozen=True)
class Side:
    """One way of preparing.

    Args:
        script: Its worker.
        package: Name of the package in the comparison of models, which has an environment.
        frames: Kind of frame that it is given.
    """

    script: str
    package: str
    frames: str = ""


OURS = Side("ours.py", peers.OURS)
PEERS = {
    "RecTools": Side("rectools_events.py", "RecTools"),
    "RePlay, pandas": Side("replay_events.py", "RePlay", "pandas"),
    "RePlay, Polars": Side("replay_events.py", "RePlay", "polars"),
}


def measure(side: Side, python: str, log: Path, work: Path, memory: str = "1GB", cap: int = 0) -> dict:
    """Run one worker on two cores and return what its last line says.

    Args:
        side: What runs.
        python: Interpreter of its environment.
        log: What it reads.
        work: Folder for its files, emptied before and afterwards.
        memory: What the engine may hold in memory.
        cap: Bytes of private memory that the process may have at most; 0: no limit.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command = [python, "-W", "ignore", str(WORKERS / side.script), "--log", str(log), "--work", str(work)]
    command += ["--memory", memory, "--threads", str(CORES), "--frames", side.frames]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "ARROW_NUM_THREADS", "POLARS_MAX_THREADS"), str(CORES))
    path = {"PYTHONPATH": str(peers.ROOT)} if side is OURS else {}

    def limit() -> None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
        if cap:
            resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))

    done = subprocess.run(
        command, env={**os.environ, **threads, **path}, capture_output=True, text=True, check=False, preexec_fn=limit
    )
    shutil.rmtree(work)
    if done.returncode:
        raise SystemExit(f"{side.script} failed:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {**found, "wall": sum(found["wall"].values()), "cpu": sum(found["cpu"].values()), "laps": found["wall"]}


def row(name: str, found: dict) -> str:
    """Lay one result out."""
    per_event = 1e6 * found["cpu"] / found["events"]
    return (
        f"| {found['events'] / 1e6:.0f} | {name} | {found['wall']:.1f} | {found['cpu']:.1f} | {per_event:.2f} | "
        f"{found['peak_mb']:.0f} |"
    )


def median(runs: list[dict]) -> dict:
    """Return the run whose CPU time is the middle one."""
    middle = statistics.median_low(run["cpu"] for run in runs)
    return next(run for run in runs if run["cpu"] == middle)


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", type=Path, required=True, help="folder of the peers' environments")
    parser.add_argument("--work", type=Path, required=True, help="folder of the logs and of the stores")
    parser.add_argument("--events", nargs="+", type=int, default=[1_000_000, 20_000_000, 100_000_000])
    parser.add_argument("--compare", type=int, default=20_000_000, help="events that the peers prepare")
    parser.add_argument("--peers", nargs="*", default=[*PEERS], choices=[*PEERS], help="whom to compare")
    parser.add_argument("--memory", default="1GB", help="what DuckDB may hold in memory")
    parser.add_argument(
        "--cap", type=float, default=0.0, help="GB of private memory of this package's process; 0: no limit"
    )
    parser.add_argument("--repeat", type=int, default=3, help="times that logs below 5 million events are prepared")
    options = parser.parse_args()
    work = options.work.resolve()
    pythons = {
        name: peers.interpreter(side.package, peers.SIDES[side.package], options.envs.resolve())
        for name, side in PEERS.items()
        if name in options.peers
    }
    lines = ["| million events | package | wall s | CPU s | CPU µs an event | peak MB |", "|---|---|---|---|---|---|"]
    versions: dict[str, str] = {}
    ours: dict[int, dict] = {}
    results: dict[str, dict] = {}
    for events in sorted({*options.events, *([options.compare] if pythons else [])}):
        log = generate.write_events(work / "logs", events)
        again = options.repeat if events < 5_000_000 else 1
        cap = int(options.cap * 1e9)
        runs = [measure(OURS, sys.executable, log, work / "run", options.memory, cap) for _ in range(again)]
        ours[events] = median(runs)
        versions |= ours[events]["versions"]
        lines.append(row(peers.OURS, ours[events]))
        print(lines[-1], flush=True)
    for name, python in pythons.items():
        columns = generate.write_columns(generate.write_events(work / "logs", options.compare))
        results[name] = measure(PEERS[name], python, columns, work / "run")
        versions |= results[name]["versions"]
        lines.append(row(name, results[name]))
        print(lines[-1], results[name]["laps"], flush=True)
    print("\n" + "\n".join(lines) + f"\n\nversions: {versions}")
    values = {"memory_limit": options.memory, "private_memory_cap_gb": options.cap}
    for name, found in results.items():
        short, mine = name.lower().replace(", ", "_"), ours[options.compare]
        values[f"wall_times_faster_than_{short}"] = round(found["wall"] / mine["wall"], 2)
        values[f"peak_memory_ratio_{short}"] = round(mine["peak_mb"] / found["peak_mb"], 3)
    least, most = min(ours), max(ours)
    cost = {events: found["cpu"] / events for events, found in ours.items()}
    values[f"cpu_per_event_{most // 1_000_000}m_over_{least // 1_000_000}m"] = round(cost[most] / cost[least], 3)
    values["peak_mb"] = {f"{events // 1_000_000}m": round(found["peak_mb"]) for events, found in ours.items()}
    values["store_gb"] = {f"{events // 1_000_000}m": round(found["bytes"] / 1e9, 2) for events, found in ours.items()}
    print(json.dumps(values))


if __name__ == "__main__":
    main()
