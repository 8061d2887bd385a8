"""The pages under docs/ run, link to what is there and name what exists.

A page's ```python blocks run from top to bottom in one fresh namespace, in a folder of their own. A block whose first
line is a comment with a file name (``# my_project.py``, ``# recipe.yaml``) is written to that file instead, so that
later blocks can import or read it; the tests of a file ``test_*.py`` are called. ``mvrec`` and ``python`` commands in
```bash blocks run, in their order, where what they read is such a file. ``<!-- notest: reason -->`` on the line above
a block leaves it out.
"""

import importlib
import inspect
import re
import runpy
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_mvrec.cli.main import COMMANDS, main
from tests.test_capabilities import find

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
README = ROOT / "README.md"  # its code and links have a test of their own, test_readme.py
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>[\w-]*)[^\n`]*$")
LIBRARIES = ("lightning_mvrec", "torch", "lightning")
NOTEST = re.compile(r"<!-- notest: (\S.*) -->")
FILE_NAME = re.compile(r"# ([\w./-]+\.(?:py|yaml|csv|md))$")


@dataclass
class Block:
    """One fenced block: its language, text, the page's line on which the text starts, and why it is not run."""

    language: str
    text: str
    line: int
    reason: str | None

    @property
    def file_name(self) -> str | None:
        """The file that the block stands for, if any."""
        match = FILE_NAME.match(self.text.partition("\n")[0])
        return match[1] if match else None


def read_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    blocks: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        match = FENCE.match(lines[number])
        number += 1
        if match is None:
            continue
        start = number
        while number < len(lines) and lines[number].strip() != match["fence"]:
            number += 1
        assert number < len(lines), f"the block that starts on line {start} has no end"
        body = [line.removeprefix(match["indent"]) for line in lines[start:number]]
        above = NOTEST.search(lines[start - 2]) if start >= 2 else None
        blocks.append(Block(match["language"], "\n".join(body) + "\n", start + 1, above[1] if above else None))
        number += 1
    return blocks


def without_blocks(text: str) -> str:
    """Return a page's prose, its fenced blocks blanked."""
    lines = text.splitlines()
    for block in read_blocks(text):
        first = block.line - 2
        for number in range(first, first + block.text.count("\n") + 2):
            lines[number] = ""
    return "\n".join(lines)


def write_files(blocks: list[Block], folder: Path) -> None:
    """Write the blocks that stand for files."""
    for block in blocks:
        if block.file_name is not None:
            path = folder / block.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder to work in, on the import path; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def pages_with(language: str) -> list[Path]:
    return [page for page in PAGES if any(b.language == language for b in read_blocks(page.read_text("utf-8")))]


@pytest.mark.parametrize("page", pages_with("python"), ids=named)
def test_the_python_of_a_page_runs(page, folder, monkeypatch):
    blocks = read_blocks(page.read_text(encoding="utf-8"))
    module = types.ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    write_files(blocks, folder)
    for block in blocks:
        if block.language == "python" and block.file_name is None and block.reason is None:
            # Blank lines in front, so that a traceback shows the page's own line numbers.
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), module.__dict__)
        elif block.file_name is not None and re.fullmatch(r"test_\w+\.py", block.file_name):
            for name, function in vars(importlib.import_module(block.file_name.removesuffix(".py"))).items():
                if name.startswith("test_"):
                    function()


def commands_of(blocks: list[Block]) -> list[list[str]]:
    """Return the words of every ``mvrec`` or ``python`` command that reads a file of the page."""
    files = {block.file_name for block in blocks if block.file_name is not None}
    found = []
    for block in blocks:
        if block.language in ("bash", "sh", "shell", "console") and block.reason is None:
            for line in block.text.replace("\\\n", " ").splitlines():
                match = re.match(r"(?:\$ )?(?:\w+=\S+ )*((?:mvrec|python) .+)", line)
                if match and any(word in files for word in shlex.split(match[1])):
                    found.append(shlex.split(match[1]))
    return found


def pages_with_commands() -> list[Path]:
    return [page for page in PAGES if commands_of(read_blocks(page.read_text("utf-8")))]


@pytest.mark.parametrize("page", pages_with_commands(), ids=named)
def test_the_commands_of_a_page_run(page, folder, monkeypatch):
    blocks = read_blocks(page.read_text(encoding="utf-8"))
    write_files(blocks, folder)
    for program, *words in commands_of(blocks):
        if program == "python":
            runpy.run_path(words[0], run_name="__main__")
            continue
        # The command line and this variable are how a run talks to processes that it starts.
        monkeypatch.setattr(sys, "argv", ["mvrec", *words])
        monkeypatch.delenv("MVREC_RUN_DIR", raising=False)
        assert main(words) == 0


def class_paths(value: Any, modules: tuple[str, ...] = ()) -> list[tuple[str, list[str]]]:
    """Return every class path of a parsed recipe with the names of its arguments."""
    found = []
    if isinstance(value, dict):
        if "class_path" in value:
            found.append((value["class_path"], list(value.get("init_args") or {})))
        value = [each for key, each in value.items() if key != "class_path"]
    if isinstance(value, list):
        for each in value:
            found += class_paths(each, modules)
    elif isinstance(value, str) and re.fullmatch(rf"({'|'.join([*LIBRARIES, *modules])})(\.\w+)+", value):
        found.append((value, []))
    return found


@pytest.mark.parametrize("page", pages_with("yaml"), ids=named)
def test_classes_and_arguments_in_the_yaml_of_a_page_exist(page, folder):
    blocks = read_blocks(page.read_text(encoding="utf-8"))
    write_files(blocks, folder)
    modules = tuple(Path(block.file_name).stem for block in blocks if block.file_name is not None)
    for block in blocks:
        if block.language != "yaml" or block.reason is not None:
            continue
        for path, arguments in class_paths(yaml.safe_load(block.text), modules):
            parameters = inspect.signature(find(path)).parameters
            free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
            unknown = [] if free else [name for name in arguments if name not in parameters]
            assert not unknown, f"line {block.line}: {path} has no argument {unknown}"


def slug(heading: str) -> str:
    """Return the anchor of a heading, as Markdown renderers make it."""
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {slug(line.lstrip("#")) for line in without_blocks(text).splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_relative_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"`[^`\n]*`", "", without_blocks(text))
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link} of {named(page)} leads nowhere"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{link} of {named(page)} has no such heading"


@pytest.mark.parametrize("page", [README, *PAGES], ids=named)
def test_names_in_the_text_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/.-])lightning_mvrec(?:\.\w+)+(?![\w/])", text):
        find(path.removesuffix(".py"))
    for command in re.findall(r"`(?:[^`\n]* )?mvrec ([a-z]\w*)[^`\n]*`", text) + re.findall(
        r"^mvrec ([a-z]\w*)", text, re.MULTILINE
    ):
        assert command in COMMANDS, f"mvrec {command}"
    files = r"(?<![\w/.-])(recipes/[\w./-]*\.(?:yaml|md)|(?:docs|tests|lightning_mvrec)/[\w./-]*\.(?:md|py|svg))"
    for file in re.findall(files, text):
        assert (ROOT / file).exists(), f"{file} of {named(page)} is not there"


def test_the_reference_model_says_what_was_corrected():
    text = inspect.getdoc(find("lightning_mvrec.models.MultiViewRepresentation")) or ""
    for fault in (
        "splits one of the three views",
        "``DataLoader``",
        "sizes of the vocabularies",
        "a loss that",
        "``(B, 1)``",
    ):
        assert fault in text, fault


PAGE = """# Some page

~~~python
# a/b.py
x = 1
~~~

<!-- notest: needs a GPU -->
```python
y = 2
```

- item

  ```yaml
  class_path: torch.optim.Adam
  init_args: {lr: 1}
  ```
"""


def test_blocks_are_found_with_their_lines():
    python, skipped, recipe = read_blocks(PAGE)
    assert (python.file_name, python.line, python.reason) == ("a/b.py", 4, None)
    assert (skipped.text, skipped.file_name, skipped.reason) == ("y = 2\n", None, "needs a GPU")
    assert class_paths(yaml.safe_load(recipe.text)) == [("torch.optim.Adam", ["lr"])]
    assert " ".join(without_blocks(PAGE).split()) == "# Some page <!-- notest: needs a GPU --> - item"


def test_a_block_without_an_end_is_noticed():
    with pytest.raises(AssertionError, match="line 1 has no end"):
        read_blocks("```python\nx = 1\n")


def test_class_paths_without_arguments_are_found():
    recipe = yaml.safe_load("model: {encoders: {click: lightning_mvrec.encoders.GRUEncoder}, title: some.thing}")
    assert class_paths(recipe) == [("lightning_mvrec.encoders.GRUEncoder", [])]
