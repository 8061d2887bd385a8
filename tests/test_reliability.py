"""Every fault that docs/reliability.md names has a test that exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_every_named_test_exists():
    functions: dict[str, set[str]] = {}
    for file, name in NAMED.findall(PAGE):
        if file not in functions:
            tree = ast.parse((ROOT / file).read_text())
            functions[file] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in functions[file], f"{file} has no {name}"


def test_every_row_has_a_test_or_says_that_nothing_was_measured():
    numbered = [row for row in rows() if row[0].isdigit()]
    assert [int(row[0]) for row in numbered] == list(range(1, 32))
    for row in rows():
        if row[0] in ("#", "fault", "what") or row[0].startswith("---"):
            continue
        assert NAMED.search(row[-1]) or "not measured" in row[-2], row
