"""Train and evaluate the same model with this package and with its peers, each in an environment of its own.

    python recipes/benchmarks/peers/run.py --data DIR --envs DIR

makes the environments that are missing below ``--envs`` (about 1.5 GB and some minutes each), then runs every side in
turn, round after round, on one thread, and prints a table and, as its last line, one JSON object with the ratios.
Speed, memory and quality come from the same runs, so a side trains until it has learned something; RecTools, which is
compared in speed and memory alone, trains one epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
OURS = "lightning-mvrec"
TORCH = "torch==2.13.0"
GOALS = {
    "train_cpu_ratio_l50": 0.45,
    "train_cpu_ratio_l200": 0.22,
    "peak_memory_ratio_l50": 0.6,
    "peak_memory_ratio_l200": 0.45,
    "eval_cpu_ratio_l50": 0.5,
}
"""The most that this package may need of what RePlay needs."""
QUALITY = {"ndcg_ratio_l50": 1.0, "ndcg_ratio_l200": 1.0}
"""The least that this package's NDCG@10 may be of RePlay's after the same epochs."""


@dataclass(frozen=True)
class Side:
    """One package of the comparison.

    Args:
        script: Its worker.
        packages: What its environment consists of; none for the environment that runs this script.
        only_speed: Whether one epoch is enough.
    """

    script: str
    packages: tuple[str, ...] = ()
    only_speed: bool = False


SIDES = {
    "RePlay": Side("replay_rec.py", ("replay-rec[torch]==0.22.0", TORCH)),
    OURS: Side("ours.py"),
    "RecTools": Side("rectools_sasrec.py", ("rectools[torch]==0.19.0", TORCH), only_speed=True),
}


def interpreter(name: str, side: Side, envs: Path) -> str:
    """Return the Python of a side's environment, made where it is missing."""
    if not side.packages:
        return sys.executable
    folder = envs / name.lower()
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.is_file():
        print(f"{name}: making {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *side.packages], check=True)
        done.write_text("\n".join(side.packages))
    return str(python)


def measure(name: str, python: str, file: Path, length: int, epochs: int, seed: int, work: Path) -> dict:
    """Run one worker and return what its last line says."""
    command = [python, "-W", "ignore", str(HERE / SIDES[name].script), "--file", str(file), "--work", str(work)]
    command += ["--length", str(length), "--epochs", str(epochs), "--seed", str(seed)]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS", "POLARS_MAX_THREADS"), "1")
    path = {"PYTHONPATH": str(ROOT)} if name == OURS else {}
    done = subprocess.run(command, env={**os.environ, **threads, **path}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def joined(runs: list[dict]) -> dict:
    """Return the medians over the epochs and rounds of one side at one length."""
    flat = {key: statistics.median(value for run in runs for value in run[key]) for key in ("train_cpu", "train_wall")}
    for key in ("eval_cpu", "eval_wall"):
        flat[key] = statistics.median(run[key][-1] for run in runs)
    flat["peak_mb"] = max(run["peak_mb"] for run in runs)
    flat["ndcg@10"] = statistics.mean(run["ndcg@10"] for run in runs)
    return flat


def epochs_of(name: str, epochs: int) -> int:
    """Return how many epochs a side trains."""
    return 1 if SIDES[name].only_speed else epochs


def table(results: dict[tuple[str, int], dict], epochs: dict[int, int]) -> str:
    """Lay the results out, one row a side and length."""
    lines = [
        "| length | package | CPU s an epoch | wall s an epoch | peak MB | CPU s of an evaluation | NDCG@10 after |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, length), value in sorted(results.items(), key=lambda entry: entry[0][1]):
        trained = epochs_of(name, epochs[length])
        quality = f"{value['ndcg@10']:.4f} ({trained} epoch{'s' * (trained > 1)})"
        lines.append(
            f"| {length} | {name} | {value['train_cpu']:.1f} | {value['train_wall']:.1f} | {value['peak_mb']:.0f} | "
            f"{value['eval_cpu']:.2f} | {quality} |"
        )
    return "\n".join(lines)


def ratios(results: dict[tuple[str, int], dict], lengths: list[int]) -> dict[str, float]:
    """Divide this package's figures by RePlay's."""
    found: dict[str, float] = {}
    for length in lengths:
        if ("RePlay", length) not in results or (OURS, length) not in results:
            continue
        ours, theirs = results[OURS, length], results["RePlay", length]
        found[f"train_cpu_ratio_l{length}"] = ours["train_cpu"] / theirs["train_cpu"]
        found[f"peak_memory_ratio_l{length}"] = ours["peak_mb"] / theirs["peak_mb"]
        found[f"eval_cpu_ratio_l{length}"] = ours["eval_cpu"] / theirs["eval_cpu"]
        found[f"ndcg_ratio_l{length}"] = ours["ndcg@10"] / theirs["ndcg@10"]
    return {key: round(value, 4) for key, value in found.items()}


def verdicts(values: dict[str, float]) -> str:
    """Say of each goal whether it is met."""
    words = {True: "met", False: "not met"}
    lines = [
        f"{name}: {values[name]:.2f}, wanted at most {goal}: {words[values[name] <= goal]}"
        for name, goal in GOALS.items()
        if name in values
    ]
    lines += [
        f"{name}: {values[name]:.3f}, wanted at least {goal}: {words[values[name] >= goal]}"
        for name, goal in QUALITY.items()
        if name in values
    ]
    return "\n".join(lines)


def find(root: Path) -> Path:
    """Return the sequence file below a data folder."""
    for path in (root / "ml-1m.txt", root / "ml-1m" / "ml-1m.txt"):
        if path.is_file():
            return path.resolve()
    raise SystemExit(f"--data must hold ml-1m.txt or ml-1m/ml-1m.txt, got {root}")


def main() -> None:
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with ml-1m.txt or ml-1m/ml-1m.txt")
    parser.add_argument(
        "--envs", type=Path, required=True, help="folder of the peers' environments, outside a checkout"
    )
    parser.add_argument("--peers", nargs="*", default=["RePlay", "RecTools"], choices=[*SIDES], help="whom to compare")
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 200])
    parser.add_argument("--epochs", nargs="+", type=int, default=[6, 4], help="epochs at each length")
    parser.add_argument("--rounds", type=int, default=1, help="each with a seed of its own, sides in turn")
    options = parser.parse_args()
    if len(options.epochs) != len(options.lengths):
        parser.error("--epochs must hold one number for each of --lengths")
    file, names = find(options.data), [name for name in SIDES if name in {OURS, *options.peers}]
    pythons = {name: interpreter(name, SIDES[name], options.envs.resolve()) for name in names}
    epochs = dict(zip(options.lengths, options.epochs, strict=True))
    runs: dict[tuple[str, int], list[dict]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.rounds):
            for length in options.lengths:
                work = Path(folder) / str(length)
                work.mkdir(exist_ok=True)
                for name in names:
                    run = measure(name, pythons[name], file, length, epochs_of(name, epochs[length]), seed, work)
                    runs.setdefault((name, length), []).append(run)
                    seconds = sum(run["train_cpu"]) / len(run["train_cpu"])
                    what = f"{seconds:.1f} CPU s an epoch, {run['peak_mb']:.0f} MB, NDCG@10 {run['ndcg@10']:.4f}"
                    print(f"round {seed + 1}, length {length}, {name}: {what}", flush=True)
    results = {key: joined(value) for key, value in runs.items()}
    versions = {name: run[0]["versions"] for (name, _), run in runs.items()}
    print("\n" + table(results, epochs) + f"\n\nversions: {versions}")
    values: dict[str, float] = ratios(results, options.lengths)
    for (name, length), value in results.items():
        values[f"ndcg@10_{name.lower()}_l{length}"] = round(value["ndcg@10"], 5)
    differences = [
        abs(run["ndcg@10 of RePlay's scores"] - theirs["ndcg@10"])
        for length in options.lengths
        for run, theirs in zip(runs[OURS, length], runs.get(("RePlay", length), []), strict=False)
        if "ndcg@10 of RePlay's scores" in run
    ]
    if differences:
        values["same_scores_ndcg_difference"] = round(max(differences), 7)
    print(verdicts(values))
    print(json.dumps(values))


if __name__ == "__main__":
    main()
