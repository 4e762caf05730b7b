"""The directive ``{api}``: what a module of cellaug offers, from its source text.

Nothing is imported, so that no library can print warnings into the build. A module's public names
are those in its ``__all__``, else those that it imports from its own modules, and the functions and
classes that it defines without an underscore.
"""

import ast
import re
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx

SECTIONS = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):\s*$")
Definition = ast.FunctionDef | ast.ClassDef


def source(module: str) -> tuple[ast.Module, list[str]]:
    """A module's syntax tree and the lines of its file."""
    name, *rest = module.split(".")
    place = Path(find_spec(name).submodule_search_locations[0]).joinpath(*rest)
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    return ast.parse(text), text.splitlines()


def definition(module: str, name: str) -> tuple[Definition, list[str]] | None:
    """Where a name is defined, here or in the module that it is imported from."""
    tree, lines = source(module)
    for node in tree.body:
        if isinstance(node, Definition) and node.name == name:
            return node, lines
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cellaug"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition(node.module, alias.name)
    return None


def public(module: str) -> list[str]:
    """The names that a module offers."""
    tree, _ = source(module)
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    names = [node.name for node in tree.body if isinstance(node, Definition)]
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{module}."):
            names += [alias.name for alias in node.names]
    return sorted(name for name in names if not name.startswith("_"))


def markdown(name: str, node: Definition, lines: list[str]) -> list[str]:
    """A definition as Markdown: its head as it is written, its docstring, its public methods."""
    head = node
    if isinstance(node, ast.ClassDef):
        inner = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        head = next((n for n in inner if n.name == "__init__"), node)
    signature = lines[head.lineno - 1 : head.body[0].lineno - 1]
    signature = [line[head.col_offset :] for line in signature if line.strip()]
    if isinstance(node, ast.ClassDef) and head is node:
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
        signature = [lines[node.lineno - 1][node.col_offset :]]
        signature += [line for n in fields for line in lines[n.lineno - 1 : n.end_lineno]]
    words = ast.get_docstring(node) or ""
    text = ["```python", *signature, "```", "", *docstring(words)]
    if isinstance(node, ast.ClassDef):
        for method in inner:
            if not method.name.startswith("_") and ast.get_docstring(method):
                inside = markdown(f"{name}.{method.name}", method, lines)
                text += [f"**{name}.{method.name}**", "", *inside]
    return text


def folded(name: str, node: Definition, lines: list[str]) -> list[str]:
    """A definition that opens on a click, under its name and the first sentence about it."""
    first = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    sentence = plain(
        re.split(r"(?<=[.:;])(?<!Eq[.])(?<!Fig[.])(?<!al[.])(?<![.]{3}) ", first)[0].rstrip(".:;")
    )
    return [f":::::{{dropdown}} **{name}** {sentence}", *markdown(name, node, lines), ":::::", ""]


def docstring(text: str) -> list[str]:
    """A docstring in Google's style as Markdown."""
    found, entry = [], False
    text = re.sub(r"`+[^`]+`+", lambda span: " ".join(span[0].split()), text)  # kept on one line
    for line in text.splitlines():
        section = SECTIONS.match(line)
        entry = bool(section) or (entry and (not line.strip() or line.startswith(" ")))
        if section:
            found += ["", f"*{section[1]}*", ""]
        elif entry and line.startswith("    ") and line[4:5].strip():
            name, colon, rest = line.strip().partition(": ")
            named = colon and re.fullmatch(r"[\w.,* ]+", name)
            found += [f"- `{name}`: {plain(rest)}" if named else f"- {plain(line.strip())}"]
        else:
            found += [plain(line.strip()) if not entry else f"  {plain(line.strip())}".rstrip()]
    return [*found, ""]


def plain(text: str) -> str:
    """Text in which only code spans keep a meaning in Markdown."""
    parts = re.split(r"(`+[^`]+`+)", text)
    parts[::2] = [re.sub(r"([\\`*_{}\[\]<>$|#~^&+=-])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


class Api(Directive):
    """``{api} cellaug.data``: the functions and classes of that module."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the Markdown of every public name."""
        module = self.arguments[0]
        lines = []
        for name in public(module):
            if found := definition(module, name):
                lines += folded(name, *found)
        box = nodes.container()
        self.state.nested_parse(StringList(lines, module), self.content_offset, box)
        return box.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.add_directive("api", Api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
