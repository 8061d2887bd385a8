"""``mvrec <command>``: choose the command's module and hand it the other words; imports nothing heavy itself.

Each command is a file beside this one with ``main(argv) -> exit status``; ``fit``, ``validate``, ``test`` and
``predict`` share one. It is imported only when its command is given, so that the list of commands answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import lightning_mvrec

COMMANDS = {
    "doctor": "show what is installed and what does not fit; --install mends it",
    "prepare": "read, clean and split the data of a recipe once",
    "fit": "train a recipe, measure it on the test split beside its baselines",
    "validate": "measure a checkpoint on the validation split",
    "test": "measure a checkpoint on the test split",
    "predict": "rank the catalogue for users with a checkpoint",
    "compare": "train a recipe and each of its single views over several seeds; one table",
    "checkpoint": "inspect, consolidate or reshard a checkpoint directory",
}
SHARED = {"validate": "fit", "test": "fit", "predict": "fit", "fit": "fit"}
# Set to anything: an error of this package is shown with the lines that led to it.
TRACEBACK = "MVREC_TRACEBACK"
_STACK = ("torch", "torchrec", "fbgemm_gpu", "lightning", "torchmetrics", "tensordict", "pandas", "jsonargparse")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 a command line that is not understood.

    Example:
        >>> main(["fly"])
        2
    """
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # `mvrec ... | head`: nobody reads on; what is left must not be flushed into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"mvrec {lightning_mvrec.__version__}")
        return 0
    command, rest = words[0], words[1:]
    if command not in COMMANDS:
        print(f"mvrec: unknown command {command!r}; it has to be one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"lightning_mvrec.cli.{SHARED.get(command, command)}")
        status = module.main(command, rest) if command in SHARED else module.main(rest)
    except Exception as error:
        message = explain(error)
        if message is None or TRACEBACK in os.environ:
            raise
        print(f"mvrec {command}: {message}", file=sys.stderr)
        return 1
    return int(status or 0)


def explain(error: BaseException) -> str | None:
    """Return one clear message for an error that needs no traceback, or None for any other.

    Two kinds need none: an import that fails in the libraries below this package, and a refusal that this package
    raised itself, which names what to change or to install.
    """
    if _breaks_import(error):
        first = str(error).strip().split("\n")[0]
        return (
            f"cannot be started: {type(error).__name__}: {first}\n"
            "`mvrec doctor` shows what does not fit and the command that mends it."
        )
    refusal = isinstance(error, (ValueError, RuntimeError, OSError))
    # Python itself gives an import that failed the module's name.
    refusal = refusal or (isinstance(error, ImportError) and error.name is None)
    if refusal and _raised_here(error.__traceback__):
        return f"{error}\n({TRACEBACK}=1 shows where this was found.)"
    return None


def _breaks_import(error: BaseException) -> bool:
    """Whether a library below this package is missing or failed while it was being imported."""
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in _STACK:
        return True
    # A library that loads compiled code raises OSError or RuntimeError from its module's own lines.
    return isinstance(error, (ImportError, OSError, RuntimeError, AttributeError)) and any(
        frame.f_code.co_name == "<module>" and str(frame.f_globals.get("__name__", "")).partition(".")[0] in _STACK
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _raised_here(trace: TracebackType | None) -> bool:
    """Whether the innermost frame of a traceback lies in this package."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    return bool(files) and Path(files[-1]).is_relative_to(Path(lightning_mvrec.__file__).parent)


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: mvrec COMMAND [ARGUMENTS]\n\n"
        f"Multi-view recommenders on TorchRec's tables, trained with PyTorch Lightning.\n\n{commands}\n\n"
        "`mvrec COMMAND --help` lists what a command takes; `mvrec --version` prints the version."
    )


if __name__ == "__main__":
    sys.exit(main())
