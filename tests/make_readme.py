"""Bring the README up to date: its answers, its picture of cells, its screenshot of the book."""

import os
import re
import sys
from pathlib import Path

from cellaug import figures
from cellaug.book import front
from cellaug.book.chapter import build_folder, project_root
from cellaug.files import write_atomically

import browser
import numpy as np

PICTURES = project_root() / "book" / "figures"
CELLS, BOOK = "one-vector.png", "first-page.png"
BLOCK = re.compile(r"(?s)(?<=<!-- results -->\n).*?(?=<!-- end of results -->)")


def answers(text: str) -> str:
    """The README's text with the answers that the recorded results give now."""
    if not BLOCK.search(text):
        raise SystemExit("README.md: no line '<!-- results -->', after which the answers stand")
    return BLOCK.sub(lambda _: f"\n{front.readme_block()}\n\n", text)


def draw_cells(file: Path) -> None:
    """Draw one latent vector as every class, with the names under the cells."""
    figures.use_style()
    cells = front.one_vector()
    fig = figures.image_grid(np.stack(list(cells.values())), 6, list(cells))
    fig.savefig(file, dpi=150)


def photograph(page: Path, file: Path) -> None:
    """Take a picture of a built book's first page, as far as a desktop shows it."""
    with browser.chromium() as chromium:
        visit = browser.Visit(chromium, page.parent, page.name, {"width": 1200, "height": 1000})
        visit.page.screenshot(path=file)
        visit.close()


if __name__ == "__main__":
    readme = project_root() / "README.md"
    write_atomically(readme, answers(readme.read_text("utf-8")).encode())
    draw_cells(PICTURES / CELLS)
    built = build_folder(os.environ.get("PROFILE", "demo")) / "html" / "index.html"
    if not built.is_file():
        sys.exit(f"{built} is not built: the screenshot {BOOK} stays as it is. 'make book' first")
    photograph(built, PICTURES / BOOK)
