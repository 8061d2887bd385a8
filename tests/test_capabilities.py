"""docs/capabilities.md keeps its word: what it names exists."""

import ast
import functools
import importlib
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lightning_mvrec.cli.main import COMMANDS, SHARED

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "capabilities.md"
ROWS = 55
# Where a dotted YAML key starts, and whose arguments come next; the longest match counts.
ROOTS = {
    "trainer": "lightning.pytorch.Trainer",
    "data": "lightning_mvrec.data.EventsDataModule",
    "model": "lightning_mvrec.training.MultiViewModule",
    "model.model": "lightning_mvrec.models.MultiViewRecommender",
}


@dataclass
class Line:
    """One line of the page; classes, keys and tests are the code spans of their cells."""

    row: str
    what: str
    names: list[str]
    keys: str
    tests: list[str]
    status: str


def read_page(text: str) -> list[Line]:
    """Return the lines of all tables, in order."""
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith("|") or re.match(r"\| *(row|-+) *\|", line):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        assert len(cells) == 6, f"line {number} must have 6 cells, got {len(cells)}: {line}"
        row, what, names, keys, tests, status = cells
        lines.append(Line(row, what, re.findall(r"`([^`]+)`", names), keys, re.findall(r"`([^`]+)`", tests), status))
    return lines


def find(path: str) -> Any:
    """Return the object at a dotted path, imported from as long a module as there is."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        module = ".".join(parts[:end])
        try:
            value = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise  # something else is missing
            continue
        return functools.reduce(getattr, parts[end:], value)
    raise ModuleNotFoundError(path)


def check_name(name: str) -> str | None:
    """Say what is wrong with a class path (from ``lightning_mvrec.`` on) or a command."""
    words = name.split()
    if words[0] == "mvrec":
        if len(words) < 2 or words[1] not in COMMANDS:
            return f"unknown command {name!r}"
        source = (ROOT / "lightning_mvrec" / "cli" / f"{SHARED.get(words[1], words[1])}.py").read_text(encoding="utf-8")
        unknown = [
            word
            for word in words[2:]
            if word.startswith("--") and f'"{word.removeprefix("--")}' not in source.replace('"--', '"')
        ]
        return f"{name!r}: {unknown} not in the command's file" if unknown else None
    try:
        find(f"lightning_mvrec.{name}")
    except (ModuleNotFoundError, AttributeError):
        return f"no lightning_mvrec.{name}"
    return None


def check_key(key: str, names: list[str]) -> str | None:
    """Say what is wrong with a YAML key (``key`` or ``key: value``) or the path of a recipe."""
    if key.endswith(".yaml"):
        return None if (ROOT / key).is_file() else f"no file {key}"
    dotted = key.partition(":")[0].strip()
    root = max((root for root in ROOTS if dotted.startswith(f"{root}.")), key=len, default=None)
    if root is not None:
        owners, argument = [ROOTS[root]], dotted.removeprefix(f"{root}.").partition(".")[0]
    else:
        owners, argument = [f"lightning_mvrec.{name}" for name in names if not name.startswith("mvrec ")], dotted
    for owner in owners:
        if argument in inspect.signature(find(owner)).parameters:
            return None
    return f"{argument!r} is no argument of {', '.join(owners) or 'anything named'}"


@functools.cache
def functions_of(path: Path) -> frozenset[str]:
    """Return the names of a test file's functions, methods as ``Class::method``; nothing is run."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return frozenset(names)


def check_test(test: str) -> str | None:
    """Say what is wrong with ``file::function`` under ``tests/``."""
    file, _, function = test.partition("::")
    path = ROOT / "tests" / file
    if not path.is_file():
        return f"no file tests/{file}"
    if not function.split("::")[-1].startswith("test_") or function not in functions_of(path):
        return f"no test {function!r} in tests/{file}"
    return None


def problems(line: Line) -> list[str]:
    """Return everything that is wrong with one line."""
    if line.status == "not yet":
        filled = line.names or line.keys or line.tests
        return [f"{line.row}: not yet, but a class, key or test is given"] if filled else []
    if line.status != "done":
        return [f"{line.row}: status must be done or not yet, got {line.status!r}"]
    empty = [name for name in ("names", "keys", "tests") if not getattr(line, name)]
    found = [f"done without {name}" for name in empty]
    found += [check_name(name) for name in line.names]  # type: ignore[misc]
    if not any(found):
        found += [check_key(key, line.names) for key in re.findall(r"`([^`]+)`", line.keys)]  # type: ignore[misc]
    found += [check_test(test) for test in line.tests]  # type: ignore[misc]
    return [f"{line.row}: {each}" for each in found if each]


LINES = read_page(PAGE.read_text(encoding="utf-8"))


def test_every_row_is_there_and_split_rows_are_lettered_in_order():
    letters: dict[int, str] = {}
    for line in LINES:
        match = re.fullmatch(r"(\d+)([a-z]?)", line.row)
        assert match, line.row
        letters[int(match[1])] = letters.get(int(match[1]), "") + (match[2] or "-")
    assert list(letters) == list(range(1, ROWS + 1))
    for number, found in letters.items():
        expected = "-" if len(found) == 1 else "abcdefghijklmnopqrstuvwxyz"[: len(found)]
        assert found == expected, f"row {number}: {found}"


def test_no_line_says_the_same_as_another():
    whats = [line.what for line in LINES]
    assert sorted(set(whats)) == sorted(whats)
    assert all(whats)


def test_what_the_page_names_exists():
    wrong = [problem for line in LINES for problem in problems(line)]
    assert not wrong, "\n".join(wrong)


GOOD = {
    "row": "8",
    "what": "CNN",
    "names": ["encoders.CNNEncoder"],
    "keys": "`kernel_size: 3`, `model.model.encoders`",
    "tests": ["test_capabilities.py::test_a_good_line_passes"],
    "status": "done",
}


def test_a_good_line_passes():
    assert problems(Line(**GOOD)) == []
    assert problems(Line("9", "x", [], "", [], "not yet")) == []


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["encoders.CNNEncodr"]},
        {"names": ["encodrs.CNNEncoder"]},
        {"names": ["mvrec fitt"]},
        {"names": ["mvrec compare --sedes 1"], "keys": "Python"},
        {"keys": "`kernelsize: 3`"},
        {"keys": "`model.model.encoder`"},
        {"keys": "`trainer.max_epoch: 3`"},
        {"keys": "`recipes/none.yaml`"},
        {"tests": ["test_capabilities.py::test_a_bad_line_passes"]},
        {"tests": ["test_capabilites.py::test_a_good_line_passes"]},
        {"tests": ["test_capabilities.py::problems"]},
        {"tests": []},
        {"names": []},
        {"keys": ""},
        {"status": "Done"},
        {"status": "not yet"},
    ],
)
def test_a_wrong_line_is_noticed(change):
    assert len(problems(Line(**{**GOOD, **change}))) == 1
