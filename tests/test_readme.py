"""What the README shows runs, and what it names is there."""

import re
from pathlib import Path

import pytest
import yaml

from lightning_mvrec.cli.main import COMMANDS
from tests.test_docs import read_blocks

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [block for block in read_blocks(TEXT) if block.language == "python"]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"line {block.line}")
def test_a_python_block_runs_on_its_own(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile("\n" * (block.line - 1) + block.text, "README.md", "exec"), {"__name__": "readme"})
    assert not list(tmp_path.iterdir())  # nothing is left lying about


def test_there_is_a_block_for_the_plugin_and_one_for_the_parts():
    assert len(BLOCKS) == 2


def test_the_table_of_commands_is_the_list_of_commands():
    named = re.findall(r"`mvrec (\w+)`", "\n".join(line for line in TEXT.splitlines() if line.startswith("| `mvrec")))
    assert named == list(COMMANDS)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?<![\w./])(?:recipes|docs|\.ci)/[\w./]+", TEXT))))
def test_a_file_that_is_named_exists(path):
    assert (ROOT / path.rstrip(".")).exists()


def test_the_two_commands_are_targets_of_make():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"make ([\w-]+)", TEXT)) <= set(targets)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (ROOT / target).exists(), target


def test_every_page_has_its_place_in_the_documentation():
    def pages(nav):
        for entry in nav:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from pages(value) if isinstance(value, list) else [value]

    docs = ROOT / "docs"
    nav = yaml.safe_load((ROOT / ".ci" / "mkdocs.yml").read_text())["nav"]
    assert sorted(pages(nav)) == sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))
