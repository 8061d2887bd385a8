"""What is installed, what does not fit, and the command that mends it: ``mvrec doctor``.

Standard library only. It also runs as a file, before anything is installed: ``python lightning_mvrec/doctor.py``;
that is how ``make`` sets a checkout up.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

if not __package__:  # run as a file: find the package, and do not let its files pass for top-level modules
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lightning_mvrec.installation.install import TORCH_INDEX, install, install_into_venv
from lightning_mvrec.installation.look import DISTRIBUTIONS, inspect, probe
from lightning_mvrec.installation.trio import DEFAULT_TRIO, PROBES, TRIOS, Found, Problem, diagnose


def report(found: Found, problems: list[Problem]) -> str:
    """Return what was found as text: a table, then each problem with the commands that mend it."""
    version = found.versions.get("lightning-mvrec", "(run from its folder, not installed)")
    lines = [f"lightning-mvrec {version}", f"Python {platform.python_version()}: {found.python}", ""]
    lines.append(f"{'package':<18}{'version':<14}import")
    module = {owner: name for name, owners in PROBES.items() for owner in owners if name != "kernel"}
    for name in DISTRIBUTIONS[:-1]:
        version = found.versions.get(name, "-")
        tried = _outcome(found.imports.get(module.get(name, ""))) if name in found.versions and name in module else ""
        lines.append(f"{name:<18}{version:<14}{tried}".rstrip())
    lines += [
        "",
        f"{'machine':<18}{_machine(found)}",
        f"{'torch build':<18}{_torch_build(found)}",
        f"{'fused table':<18}{_outcome(found.imports.get('kernel'))}",
        f"{'torch.distributed':<18}gloo {_yes(found.facts.get('gloo'))}, nccl {_yes(found.facts.get('nccl'))}",
        "",
    ]
    for number, problem in enumerate(problems, 1):
        lines.append(f"{number}. {'' if problem.broken else 'Advice: '}{problem.text}")
        lines += [f"   {'mend:' if first else '     '} {shlex.join(line)}" for first, line in _firsts(problem.mend)]
    broken = sum(problem.broken for problem in problems)
    things = "1 thing is" if broken == 1 else f"{broken} things are"
    mending = f"{things} broken. The commands above mend it; `mvrec doctor --install` runs them."
    lines.append(mending if broken else "Everything fits.")
    return "\n".join(lines)


def _outcome(error: str | None) -> str:
    return "not tried" if error is None else f"FAILS: {error}" if error else "works"


def _yes(value: bool | None) -> str:
    return "unknown" if value is None else "yes" if value else "no"


def _machine(found: Found) -> str:
    names = ", ".join(found.facts.get("gpu_names", []))
    if found.gpus:
        return f"{found.gpus} GPU(s) {names}".rstrip()
    return f"CPU ({'NVIDIA driver, but no GPU' if found.driver else 'no NVIDIA driver'})"


def _torch_build(found: Found) -> str:
    return "-" if "torch" not in found.versions else f"CUDA {found.torch_cuda}" if found.torch_cuda else "CPU"


def _firsts(lines: list[list[str]]) -> list[tuple[bool, list[str]]]:
    return [(position == 0, line) for position, line in enumerate(lines)]


def main(argv: list[str] | None = None) -> int:
    """Check, or with ``--install`` mend; return the exit status: 0 if everything fits, 1 if something is broken."""
    parser = argparse.ArgumentParser(prog="mvrec doctor", description="Show what is installed and what does not fit.")
    parser.add_argument("--install", action="store_true", help="bring in the CPU or CUDA trio, whichever fits here")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: by the machine")
    parser.add_argument(
        "--trio", choices=tuple(TRIOS), help=f"torch release; default: the installed one's, else {DEFAULT_TRIO}"
    )
    parser.add_argument("--dry-run", action="store_true", help="with --install: only print the commands")
    parser.add_argument("--venv", metavar="DIR", help="with --install: into this virtual environment, made if absent")
    parser.add_argument("--project", metavar="DIR", default="", help="with --install: a checkout, installed editable")
    parser.add_argument("--group", action="append", default=[], help="with --project: its dependency group, repeatable")
    args = parser.parse_args(argv)
    if args.group and not args.project:
        parser.error("--group needs --project, the checkout whose pyproject.toml has the group")
    if args.install and args.venv:
        return install_into_venv(Path(args.venv), args.device, args.trio, args.project, args.group, args.dry_run)
    if args.install:
        install(args.device, args.trio, args.project, args.group, args.dry_run)
        # A new process: this one has looked at the packages as they were before.
        return 0 if args.dry_run else subprocess.call([sys.executable, __file__])
    found = inspect()
    probe(found)
    problems = diagnose(found, os.environ.get(TORCH_INDEX, ""))
    print(report(found, problems))
    return int(any(problem.broken for problem in problems))


if __name__ == "__main__":
    sys.exit(main())
