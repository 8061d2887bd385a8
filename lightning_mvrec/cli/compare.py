"""``mvrec compare``: a recipe against its baselines and its own single views, over several seeds.

Every run is a process and a folder of its own; a run whose folder already has results is not run again, so that an
interrupted comparison goes on where it ended. What a run left that did not finish is kept under another name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lightning_mvrec.cli import intervals
from lightning_mvrec.cli.report import (
    Result,
    draw_comparison,
    format_table,
    mean_and_spread,
    read_results,
    write_results,
)
from lightning_mvrec.cli.run_folder import CONFIG, choose_run_dir, unused
from lightning_mvrec.cli.targets import FILE, STACKED, read_targets

FULL = "model"


def main(argv: list[str]) -> int:
    """Run the comparison and print its table; the exit status is that of the first run that failed."""
    parser = argparse.ArgumentParser(
        prog="mvrec compare",
        description="Train a recipe and each of its single views over several seeds; one table, CSV and picture.",
        epilog="Any other argument is handed to each `mvrec fit`, for example --data.root DIR.",
    )
    parser.add_argument("--config", "-c", action="append", required=True, help="a recipe; given again, later ones win")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated seeds (default: 0,1,2)")
    parser.add_argument("--views", help="comma-separated single views to train (default: every view of the model)")
    parser.add_argument("--without", action="store_true", help="also train the model without each of the views")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, sharing the cores (default: 1)")
    parser.add_argument("--run_dir", help="folder to write to; one of an earlier comparison is continued")
    arguments, rest = parser.parse_known_args(argv)
    seeds = _seeds(arguments.seeds)
    if arguments.jobs < 1:
        raise ValueError(f"jobs must be above 0, got {arguments.jobs}")
    folder = choose_run_dir(arguments.run_dir, arguments.config)
    # Each run has a folder of its own; it must not inherit this one's.
    os.environ.pop("MVREC_RUN_DIR", None)
    folder.mkdir(parents=True, exist_ok=True)
    words = [word for path in arguments.config for word in ("--config", path)] + rest

    # The first run prepares the data and says which views there are.
    _run(folder, FULL, seeds[0], words, arguments.jobs, quiet=False)
    summary = json.loads((_folder(folder, FULL, seeds[0]) / "summary.json").read_text(encoding="utf-8"))
    views = summary["views"] if arguments.views is None else arguments.views.split(",")
    known = summary["views"]
    singles = [f"view:{view}" for view in views] if len(known) > 1 else []
    if arguments.without and len(known) > 2:  # of two views, the model without one is the other alone
        singles += [f"without:{view}" for view in views]
    # Baselines do not depend on the seed: the first run has them, others only where they are added to the model.
    alone = [*words, "--baselines", "[]"]
    stacks = bool(summary.get("stack_weights"))
    if stacks:
        alone += ["--stack", "false"]
    tasks = [(name, seed) for seed in seeds for name in (FULL, *singles) if (name, seed) != (FULL, seeds[0])]
    with (
        ThreadPoolExecutor(arguments.jobs) as pool,
        tqdm(total=1 + len(tasks), initial=1, desc="runs", unit="run") as bar,
    ):
        futures = [
            pool.submit(
                _run,
                folder,
                name,
                seed,
                _words(words if stacks and name == FULL else alone, name, known),
                arguments.jobs,
            )
            for name, seed in tasks
        ]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

    results = _collect(folder, seeds, singles)
    write_results(folder / "results.csv", results)
    primary, largest_first = summary["primary"], summary["largest_first"]
    draw_comparison(folder / "comparison.png", results, "test", primary, largest_first)
    print()
    print(format_table(results, "test", primary, largest_first))
    print(f"\n{len(seeds)} seeds: {', '.join(map(str, seeds))}; mean ± standard deviation where a model was repeated")
    _print_margin(results, primary, largest_first)
    _print_intervals(folder, seeds, singles, primary)
    print(f"\n{folder}")
    return 0


def _words(words: list[str], name: str, views: list[str]) -> list[str]:
    """The command line of a run: all views, one alone, or all but one."""
    if name == FULL:
        return words
    kind, _, view = name.partition(":")
    chosen = [view] if kind == "view" else [other for other in views if other != view]
    return [*words, f"--model.model.views=[{','.join(chosen)}]"]


def _folder(folder: Path, name: str, seed: int) -> Path:
    return folder / f"{name.replace(':', '-')}-seed{seed}"


def _run(folder: Path, name: str, seed: int, words: list[str], jobs: int, quiet: bool = True) -> None:
    """Train once in a process of its own, its output in ``<run>.log`` (and on the screen unless quiet)."""
    own = _folder(folder, name, seed)
    log_path = own.with_name(own.name + ".log")
    if (own / "results.csv").exists():
        return
    if (own / CONFIG).exists():
        own.rename(unused(own.with_name(f"{own.name}-unfinished")))
    command = [sys.executable, "-m", "lightning_mvrec.cli.main", "fit", *words]
    command += ["--seed_everything", str(seed), "--run_dir", str(own)]
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ} if jobs > 1 else dict(os.environ)
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, errors="replace"
        )
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            log.write(line)
            lines = [*lines[-11:], line]
            if not quiet:
                sys.stdout.write(line)
        status = process.wait()
    if status != 0:
        tail = "".join(lines) if quiet else ""
        print(f"{tail}\nrun {own.name} ended with status {status}; its output is in {log_path}", file=sys.stderr)
        raise SystemExit(status if status > 0 else 1)


def _collect(folder: Path, seeds: list[int], singles: list[str]) -> list[Result]:
    """Join the runs: the model, ``view:<name>``, ``without:<name>`` and ``stacked``, and the baselines once."""
    results = []
    for seed in seeds:
        for name in (FULL, *singles):
            for result in read_results(_folder(folder, name, seed) / "results.csv"):
                if result.model == FULL:
                    results.append(Result(name, result.split, result.metric, result.value, seed))
                elif result.model == STACKED:
                    if name == FULL:
                        results.append(replace(result, seed=seed))
                elif seed == seeds[0] and name == FULL:
                    results.append(result)
    return results


def _print_margin(results: list[Result], metric: str, largest_first: bool) -> None:
    """Say how the model's mean on test stands to the single view and the baseline that validation puts first."""
    means, chosen_by = _means(results, "test", metric), _means(results, "val", metric)
    best = max if largest_first else min
    groups = {
        "best single view": [name for name in means if name.startswith("view:")],
        "best baseline": [name for name in means if name not in (FULL, STACKED) and ":" not in name],
    }
    for title, names in groups.items():
        if names and means.get(FULL) is not None:
            name = best(names, key=(chosen_by if all(name in chosen_by for name in names) else means).__getitem__)
            ratio = means[FULL] / means[name] if means[name] else float("inf")
            print(f"{metric}: {ratio:.3f} times the {title} ({name})")


def _means(results: list[Result], split: str, metric: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for result in results:
        if result.split == split and result.metric == metric:
            values.setdefault(result.model, []).append(result.value)
    return {name: mean_and_spread(each)[0] for name, each in values.items()}


def _print_intervals(folder: Path, seeds: list[int], singles: list[str], metric: str) -> None:
    """Print and keep what a paired bootstrap over users says of the model against everything else in the table."""
    models: dict[str, list[np.ndarray]] = {}
    first: dict[str, np.ndarray] = {}
    for seed in seeds:
        for name in (FULL, *singles):
            path = _folder(folder, name, seed) / FILE
            if not path.exists():
                return  # a comparison of runs made before targets were kept
            arrays = read_targets(path)
            models.setdefault(name, []).append(arrays[FULL])
            if name == FULL and STACKED in arrays:
                models.setdefault(STACKED, []).append(arrays[STACKED])
            if name == FULL and seed == seeds[0]:
                first = arrays
    for name, values in first.items():
        if name not in ("user", "label", FULL, STACKED):
            models[name] = [values]
    others = [name for name in models if name != FULL]
    if not others:
        return
    compared = intervals.compare(models, first.get("label"), first["user"], metric, others)
    intervals.write_intervals(folder / "intervals.csv", compared)
    print("\ndifference of the means over seeds on test, and its 95 % interval (paired bootstrap over users)")
    print(intervals.format_intervals(compared))


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be different whole numbers separated by commas, got {text!r}")
    return seeds
