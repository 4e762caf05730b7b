"""The references, which nbval and `test_book.py` compare with, are of today and hold something."""

from cellaug.book.chapter import pages, project_root

import jupytext
import nbformat
import pytest

ROOT = project_root()


def code(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", ())


@pytest.mark.parametrize("chapter", pages())
def test_reference_is_of_the_present_chapter_and_was_run(chapter):
    reference = nbformat.read(ROOT / "tests" / "reference" / f"{chapter}.ipynb", as_version=4)
    present = jupytext.read(ROOT / "notebooks" / f"{chapter}.py")
    ran = [c for c in code(reference) if "injected-parameters" not in tags(c)]
    assert [c.source for c in ran] == [c.source for c in code(present)], "run: make references"
    # nbval passes over cells that have no execution count.
    assert all(c.execution_count for c in code(reference))


@pytest.mark.parametrize("chapter", pages())
def test_reference_has_something_to_compare(chapter):
    reference = nbformat.read(ROOT / "tests" / "reference" / f"{chapter}.ipynb", as_version=4)
    compared = [c for c in code(reference) if "nbval-check-output" in tags(c)]
    assert compared
    for cell in compared:
        assert cell.outputs, cell.source
        for output in cell.outputs:
            text = output.text if output.output_type == "stream" else output.data["text/plain"]
            assert text.strip(), cell.source


def test_references_hold_no_picture_and_no_path_of_a_machine():
    for path in (ROOT / "tests" / "reference").rglob("*.ipynb"):
        text = path.read_text()
        assert "image/png" not in text and str(ROOT) not in text
        assert path.stat().st_size < 200_000
