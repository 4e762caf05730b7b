"""The code behind a result: the files that a notebook runs, their commit, their text."""

import ast
import hashlib
import inspect
import re
import subprocess
import textwrap
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
_DOCSTRING = re.compile(r'(?m)(?<=:\n)( +)r?"""(?>(?s:.*?)""")\n\n?(?=\1\S)')


def code_of(notebook: Path) -> list[Path]:
    """A notebook's file, all of cellaug and the studies that it imports, and their data files.

    Imports inside functions count, except in `cellaug` itself and in `cellaug.book`.
    """
    found = [notebook]
    for path in found:  # the list grows on the way
        shallow = path.parent == PACKAGE / "book" or path == PACKAGE / "__init__.py"
        for first, *rest in _imports(path.read_text(encoding="utf-8"), shallow):
            # Studies lie beside the chapters, or beside the folder that the notebook is in.
            for home in [PACKAGE.parent] if first == PACKAGE.name else path.parents[:2]:
                place = home.joinpath(first, *rest)
                files = (place / "__init__.py", place.with_suffix(".py"))
                found += [file for file in files if file.is_file() and file not in found]
    beside = {file for path in found[1:] for file in path.parent.iterdir()}
    return found + sorted(file for file in beside if file.suffix in (".bin", ".html", ".yaml"))


@cache
def _imports(text: str, shallow: bool) -> list[tuple[str, ...]]:
    """The modules of cellaug and of the studies, and their parents, that a source text imports."""
    names = set()
    for node in ast.parse(text).body if shallow else ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = (name.split(".") for name in names if name.startswith((PACKAGE.name, "studies")))
    return sorted({tuple(part[:end]) for part in parts for end in range(1, len(part) + 1)})


def code_hash(paths: set[Path]) -> str:
    """A hash of files that ignores comments, a notebook's text and blank lines."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: path.parts[-2:]):
        code = re.sub(rb"(?m)^\s*(#.*)?(\n|\Z)", b"", path.read_bytes())
        digest.update(path.name.encode() + b"\n" + code)
    return digest.hexdigest()[:16]


def commit(folder: Path) -> str:
    """The git commit that is checked out in a folder, "-dirty" where files differ, or "unknown"."""
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    with suppress(OSError):  # git is not installed
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        return done.stdout.strip() or "unknown"
    return "unknown"


def show(*things: Any, docstring: bool = False) -> None:
    """Display the source of functions, classes or methods, with or without their docstrings."""
    from IPython.display import Markdown, display

    for thing in things:
        text = textwrap.dedent(inspect.getsource(thing))
        text = text if docstring else _DOCSTRING.sub("", text)
        head = f"# {thing.__module__}.{thing.__qualname__}"
        display(Markdown(f"````python\n{head}\n{text}````"))
