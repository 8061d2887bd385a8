"""Command lines and recipes that are not understood: one message that names the place."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from lightning_mvrec.cli.main import TRACEBACK
from lightning_mvrec.cli.run_folder import config_paths

_NOT_ACCEPTED = re.compile(r"Option '([^']+)' is not accepted|does not accept option '([^']+)'|Key '([^']+)' is not")
# Lines of jsonargparse that repeat what was typed, or say which types were tried.
_NOISE = re.compile(r"^\s*(- Expected a <class 'NoneType'>|Given value|Does not validate|Subtypes:|Errors:)")
# What jsonargparse was reading when it refused: the argument, and inside of it the class.
_INSIDE = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"class_path '([^']+)':\s*$")
_NO_CLASS = re.compile(r"module '(lightning_mvrec[\w.]*)' has no attribute '(\w+)'")
_TRIED = re.compile(r"^Type .*?expects a function or a callable class: ?")


class RecipeParser(LightningArgumentParser):
    """A parser that refuses a misspelt key with its full path and the file it stands in."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation would let a misspelt option through.
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong and where, and exit with status 2; shows the lines that led to it to who asks."""
        if not self.exit_on_error:
            # jsonargparse makes parsers of this class for single values and goes on with another type when one refuses.
            super().error(message, ex)
        if TRACEBACK in os.environ:
            traceback.print_exception(ex) if ex else traceback.print_stack()
        command = f"mvrec {sys.argv[1]}" if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else "mvrec"
        print(f"{command}: {explain(message, sys.argv[1:])}", file=sys.stderr)
        print(f"`{command} --help` lists what is accepted.", file=sys.stderr)
        self.exit(2)


def explain(message: str, words: list[str]) -> str:
    """Say in a line or two what jsonargparse's message is about.

    Args:
        message: What jsonargparse says.
        words: The command line, in whose words and ``--config`` files a refused key is looked for.

    Example:
        >>> explain("Option 'model.wdth' is not accepted", ["fit", "--model.wdth=3"])
        'model.wdth (command line) is not a known key'
    """
    found = _NOT_ACCEPTED.search(message)
    if found is None and (absent := _NO_CLASS.search(message)):
        return _absent(absent[1], absent[2], words)
    if found is None:
        lines = [line.strip().lstrip("- ") for line in message.splitlines() if line.strip() and not _NOISE.match(line)]
        # What was tried in vain repeats the value; why it failed stands behind it.
        lines = [_TRIED.sub("", line).partition(" Got value: Namespace")[0] for line in lines]
        return "\n  ".join(line for line in lines if line)
    name = next(group for group in found.groups() if group)
    before = message[: found.start()]
    inside, of_class = _INSIDE.search(before), _CLASS.search(before)
    places = [
        f"{place} ({source})"
        for place, source, owner in _places(name.split(".")[-1], words)
        if (place.startswith(inside[1]) and place.endswith(name) if inside else place == name)
        and (of_class is None or owner in (None, of_class[1]))
    ] or [name]
    known = re.findall(r"'([A-Za-z_][A-Za-z_0-9]*)'", message.partition("Accepted")[2])
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{' and '.join(places)} is not a known key{hint}"


def _absent(module: str, name: str, words: list[str]) -> str:
    """Say of a class that a module of this package does not have where it is named, and which there are."""
    wanted = f"{module}.{name}"
    places = [f"{place} ({source})" for place, source, _ in _places("class_path", words, wanted)] or [
        "the command line"
    ]
    there = getattr(importlib.import_module(module), "__all__", [])
    close = difflib.get_close_matches(name, there, 1)
    hint = f"did you mean {close[0]!r}? There are" if close else "there are"
    return f"{' and '.join(places)}: there is no {wanted}; {hint} {', '.join(there)}"


def _places(key: str, words: list[str], value: str | None = None) -> Iterator[tuple[str, str, str | None]]:
    """Yield every place of a key: its dotted path, the file or the command line, and the class it is given to.

    With a ``value``, the places in files that have it.
    """
    for path in config_paths(words):
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError):
            continue
        for place, found, owner in _paths(content, key):
            if value in (None, found):
                yield place, path, owner
    for word in words:
        option = word.removeprefix("--").partition("=")[0]
        if value is None and word.startswith("--") and key in option.split("."):
            yield option, "command line", None


def _paths(content: Any, key: str, prefix: str = "", owner: str | None = None) -> Iterator[tuple[str, Any, str | None]]:
    """Yield every place of a key: its dotted path, its value, the ``class_path`` beside ``init_args`` that hold it."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, value in items:
        place = f"{prefix}.{name}" if prefix else str(name)
        if name == key:
            yield place, value, owner
        yield from _paths(value, key, place, content.get("class_path") if name == "init_args" else None)
