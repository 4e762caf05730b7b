"""The package stays thin, its layers stay apart, its types are right."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import cellaug
from cellaug.book.chapter import notebook_file, pages, project_root

import jupytext
import pytest

PACKAGE = Path(cellaug.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def raw_lines(path):
    return len(path.read_text().splitlines())


def code_lines(text):
    """How many lines hold code: neither blank, nor a comment, nor part of a docstring."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() if ast.get_docstring(node):
                docstring = node.body[0]
                lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def test_code_lines_are_counted_without_words():
    text = '"""Words.\n\nMore."""\n\n# A comment.\ndef f(x):  # why\n    """F."""\n    return (\n'
    assert code_lines(text + '        x,\n        """kept""",\n    )\n') == 5


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_or_function_is_long(path):
    assert raw_lines(path) <= 480
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 60, node.name


def test_the_package_is_thin():
    # 8,000 and 5,600 for the six chapters; 2,950 and 2,250 read what laboratories really have;
    # 2,730 and 1,930 study augmentation and advise a laboratory; the rest is the book's
    # first page and verdicts, its explorer, its expert test, alt texts, and JupyterLab; 570 and
    # 400 train a generator, on many devices, and see fine detail.
    assert sum(map(raw_lines, MODULES)) <= 17_925
    assert sum(code_lines(path.read_text()) for path in MODULES) <= 12_835


def test_no_layer_imports_upward_and_no_modules_import_in_a_circle():
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as main; main()",
    ]
    done = subprocess.run(command, cwd=project_root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_types_of_package_and_studies_are_right():
    command = [sys.executable, "-m", "mypy"]
    done = subprocess.run(command, cwd=project_root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_code_of_the_chapters_fits_their_pages():
    """As `test_book.test_code_is_not_cut`, before anything is run."""
    for page in pages():
        for cell in jupytext.read(notebook_file(page)).cells:
            if cell.cell_type == "code" and "remove-cell" not in cell.metadata.get("tags", ()):
                long = [line for line in cell.source.splitlines() if len(line) > 88]
                assert not long, (page, long)
