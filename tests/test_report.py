"""The book is built from tiny executed chapters and opened in a browser without network."""

import base64
import html
import json
import re
import struct
import zlib
from pathlib import Path

from cellaug.book import chapter, report
from cellaug.book.report import BANNER, CHANGED, build_html, facts_page, results_page
from cellaug.errors import BookError, ReportError

import browser
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

BOOK = Path(__file__).parents[1] / "book"
DATA = {
    "data_name": "phantom",
    "images": 3000,
    "phantom": True,
    "credit": "Drawn here. See https://example.org/licence for it.",
}
RUN = {
    "profile": "smoke",
    "date": "2026-01-02",
    "device": "two cores",
    "data": "fedcba9876543210",
    "settings": {"seed": 7},
    "versions": {"keras": "3.15.1"},
    "durations": {"01_data": 3700.4, "02_vanilla_gan": 23},
    "chapters": {"01_data": DATA},
}
REAL = RUN | {"chapters": {"01_data": DATA | {"phantom": False, "data_name": "pbc-fine"}}}


def png(width: int, height: int) -> str:
    """A grey picture as base64, made by hand so that no plotting library is needed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    rows = (b"\0" + b"\x80" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def figure_cell(name: str) -> nbformat.NotebookNode:
    """A cell whose output is one picture with a caption."""
    picture = new_output(
        "display_data", {"image/png": png(40, 20), "text/plain": "<Figure size 40x20>"}
    )
    figure = {"caption": "A grey box, see [Eq. 39](#eq-39).", "name": name}
    metadata = {"mystnb": {"figure": figure, "image": {"alt": "grey"}}, "tags": ["hide-input"]}
    return new_code_cell(
        "draw_me()", execution_count=3, outputs=[picture], metadata=metadata, id="figure"
    )


def first_chapter() -> list[nbformat.NotebookNode]:
    """Cells with all that a chapter may hold."""
    wide = "<table><tr>" + "<td>a_rather_long_name</td>" * 12 + "</tr></table>"
    return [
        new_markdown_cell(
            "# The data\n\nThe scale is [Eq. 39](#eq-39), the game {eq}`eq-29`; see\n"
            "{numref}`fig-grey` and {cite:t}`acevedo2020`."
        ),
        new_code_cell("seed = 0", execution_count=1, metadata={"tags": ["parameters"]}),
        new_code_cell(
            "# Parameters\nseed = 1",
            execution_count=2,
            metadata={"tags": ["injected-parameters"]},
        ),
        new_markdown_cell("$$\n\\hat p_i = \\frac{p_i - 127.5}{127.5} \\tag{39}\n$$"),
        figure_cell("fig-grey"),
        new_code_cell(
            "show(step)",
            execution_count=4,
            outputs=[new_output("display_data", {"text/markdown": "````python\na = 1\n````"})],
        ),
        new_code_cell(
            "table", execution_count=5, outputs=[new_output("display_data", {"text/html": wide})]
        ),
    ]


def write_chapters(folder: Path, **changed: list[nbformat.NotebookNode]) -> Path:
    """Write every notebook of the book; ``c01=cells`` replaces the cells of the first."""
    (folder / "record").mkdir(parents=True)
    for number, name in enumerate(chapter.pages(), 1):
        plain = [new_markdown_cell(f"# Title {number}\n\nText."), new_code_cell("")]
        cells = changed.get(f"c{number:02}", first_chapter() if number == 1 else plain)
        metadata = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
        nbformat.write(new_notebook(cells=cells, metadata=metadata), folder / f"{name}.ipynb")
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder of recorded results that every page reads in place of book/results."""
    place = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, "result_file", lambda name: place / name)
        yield place


def record(folder: Path, **more) -> Path:
    """Write one run's metrics.json and return the folder of all runs."""
    content = {
        "profile": "pbc",
        "date": "2026-02-03",
        "settings": {"gan_epochs": 30},
        "device": "two | <cores>",
        "data": "0123456789abcdef",
        "versions": {"keras": "3.15.1"},
        "durations": {"01_data": 12.3},
        "commit": "abc123",
        "chapters": {
            "02_vanilla_gan": {
                "d_loss": 1.23456,
                "history": [[1.0] * 3] * 40,
                "seeds": [1, 2],
                "expert": {
                    "recall": {"value": 0.88, "n": 50},
                    "specificity": {"value": 0.54, "n": 50},
                },
            },
            "05_classifier": {"one_pool": {"real": {"weighted_f1": {"mean": 0.9534}}}},
        },
    }
    (folder / "pbc").mkdir(parents=True, exist_ok=True)
    (folder / "pbc" / "metrics.json").write_text(json.dumps(content | more))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, recorded: Path) -> Path:
    """The folder of a book of phantom cells."""
    place = tmp_path_factory.mktemp("book")
    record(recorded)
    write_chapters(place / "notebooks")
    page = build_html(place, RUN)
    assert page == place / "html" / "index.html"
    return place / "html"


@pytest.fixture(scope="module")
def chromium():
    """A running headless Chromium."""
    with browser.chromium() as running:
        yield running


def pages(root: Path) -> list[str]:
    """All pages of a book by name."""
    found = (*root.glob("*.html"), *root.glob("record/*.html"))
    return sorted(str(path.relative_to(root)) for path in found)


def test_every_page_works_offline(built, chromium):
    own = ("intro", "background", "references", "glossary", "api", "built_from", "search")
    expected = {f"{name}.html" for name in (*chapter.pages(), *own, "recorded_results")}
    assert expected <= set(pages(built))
    for name in pages(built):
        visit = browser.Visit(chromium, built, name, browser.DESKTOP)
        assert (visit.errors, visit.outside, visit.failed) == ([], [], []), name
        check_equations(visit, name)
        check_pictures(visit, name)
        visit.close()


def test_the_parameters_of_the_run_are_shown_after_the_defaults(built):
    page = (built / "01_data.html").read_text()
    shown = re.sub(r"<[^>]+>", "", page)
    defaults = shown.index("# Defaults; the values of this run follow.\nseed = 0")
    assert defaults < shown.index("# This run\nseed = 1")
    cells = re.findall(r'<div class="cell[^"]*tag_injected-parameters[^"]*"', page)
    assert len(cells) == 1 and "hide" not in cells[0]


def test_nothing_is_wider_than_a_phone(built, chromium):
    for name in ("01_data.html", "background.html", "recorded_results.html", "api.html"):
        visit = browser.Visit(chromium, built, name, browser.PHONE)
        assert visit.errors == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= browser.PHONE["width"]
        check_equations(visit, name)
        # An equation's number stands beside it, on the screen and not over it.
        overlaps = visit.page.evaluate(
            """[...document.querySelectorAll('div.math > .eqno')].filter(number => {
                const a = number.getBoundingClientRect();
                const b = number.parentElement.querySelector('.MathJax_Display')
                    .getBoundingClientRect();
                return a.left < b.right || a.right > innerWidth;
            }).length"""
        )
        assert overlaps == 0, name
        visit.close()


def test_list_of_pages_opens_on_a_phone(built, chromium):
    visit = browser.Visit(chromium, built, "intro.html", browser.PHONE)
    link = visit.page.locator(".bd-sidebar-primary a[href='01_data.html']")
    assert link.bounding_box()["x"] < 0
    visit.page.locator(".primary-toggle:visible").first.click()
    visit.page.wait_for_function(
        "document.querySelector('.bd-sidebar-primary').getBoundingClientRect().x >= 0"
    )
    link.click()
    visit.page.wait_for_url("**/01_data.html")
    visit.close()


def test_search_works_offline(built, chromium):
    visit = browser.Visit(chromium, built, "search.html", browser.DESKTOP)
    visit.page.goto(f"{(built / 'search.html').as_uri()}?q=checkerboard")
    visit.page.wait_for_selector("#search-results li a")
    assert "Background" in visit.page.inner_text("#search-results")
    assert visit.errors == []
    visit.close()


def check_equations(visit: browser.Visit, name: str) -> None:
    """Every formula has become visible, and no TeX is left to be read."""
    sources = visit.page.locator("div.math.notranslate, span.math.notranslate")
    boxes = visit.page.evaluate(
        """[...document.querySelectorAll('div.math.notranslate, span.math.notranslate')].map(e => {
            const m = e.querySelector('.MathJax');
            const box = m ? m.getBoundingClientRect() : {width: 0, height: 0};
            return Math.min(box.width, box.height);
        })"""
    )
    assert len(boxes) == sources.count()
    assert all(side > 1 for side in boxes), name
    assert visit.page.locator(".MathJax_Error, .merror, .noError").count() == 0, name
    if name not in ("genindex.html", "search.html"):
        text = visit.page.inner_text("article.bd-article")
        assert not re.search(r"\\[(\[a-zA-Z]|\$\$|\{eq\}|\{numref\}|\{cite", text), name


def check_pictures(visit: browser.Visit, name: str) -> None:
    """Every picture has been loaded."""
    widths = visit.page.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert all(width > 0 for width in widths), name
    if name == "background.html":
        assert len(widths) == 4


def test_banner_on_every_page_of_phantoms(built):
    for name in pages(built):
        assert BANNER in (built / name).read_text(), name


def test_chapter_as_rendered(built, chromium):
    visit = browser.Visit(chromium, built, "01_data.html", browser.DESKTOP)
    page = visit.page
    assert page.inner_text("article h1").startswith("1. The data")
    links = page.eval_on_selector_all(
        "article.bd-article a.reference",
        "all => all.map(a => [a.innerText, a.getAttribute('href')])",
    )
    assert ["Eq. 39", "#equation-eq-39"] in links
    assert ["Eq. 29", "background.html#equation-eq-29"] in links
    assert ["Fig. 1.1", "#fig-grey"] in links
    assert page.inner_text("#equation-eq-39 > .eqno").startswith("(39)")
    assert page.inner_text("figure#fig-grey figcaption").startswith(
        "Fig. 1.1 A grey box, see Eq. 39."
    )
    assert page.get_attribute("figure#fig-grey img", "alt") == "grey"
    # Folded: the cell that draws. Open: all others, with the parameters of the run.
    assert page.locator("details:not([open])").count() == 1
    assert "draw_me" not in page.inner_text("article.bd-article")
    assert "seed = 0" in page.inner_text("article.bd-article")
    assert page.inner_text("div.cell_output div.highlight-python").strip() == "a = 1"
    visit.close()


def test_the_package_is_described_from_its_docstrings(built, chromium):
    visit = browser.Visit(chromium, built, "api.html", browser.DESKTOP)
    text = visit.page.inner_text("article.bd-article")
    for name in ("open_dataset", "Reader", "generator", "Adversarial", "evaluate", "Chapter.fit"):
        assert visit.page.locator("strong", has_text=re.compile(f"^{name}$")).count(), name
    assert "def open_dataset(" in text and not re.search(r"class Chapter\b", text)
    assert "folder to write artifacts to" in text and "`" not in text
    visit.close()
    glossary = (built / "glossary.html").read_text()
    assert glossary.count("<dt") >= 30 and 'id="term-mode-collapse"' in glossary


def test_all_equations_of_the_thesis_once_and_in_order():
    found = re.findall(r"\\tag\{(\w+)\}", (BOOK / "background.md").read_text())
    assert found == [str(number) for number in range(1, 39)]


def test_no_address_is_loaded_from_elsewhere(built):
    for path in built.rglob("*.html"):
        text = path.read_text()
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"([^\"]*)\"", text)
        assert not [a for a in loaded if re.match(r"(https?:)?//", a)], path.name
        assert not re.search(r"binder|thebe|plausible|require\.js|cdn\.", text), path.name


def test_a_warning_is_an_error_and_the_old_book_stays(tmp_path):
    target = tmp_path / "html"
    target.mkdir()
    (target / "old.html").write_text("old")
    undefined = [new_markdown_cell("# One\n\nSee {eq}`eq-99`.")]
    write_chapters(tmp_path / "notebooks", c02=undefined)
    with pytest.raises(ReportError, match=r"02_vanilla_gan.*eq-99"):
        build_html(tmp_path, RUN)
    assert [path.name for path in target.iterdir()] == ["old.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["html", "notebooks"]


def test_real_cells_have_no_banner_and_replace_the_old_book(tmp_path, monkeypatch):
    monkeypatch.setattr(chapter, "result_file", lambda name: tmp_path / "none" / name)
    sources = {}

    def render(source: Path) -> Path:
        sources.update({path.name: path.read_text() for path in source.glob("*.*")})
        (source / "html").mkdir(parents=True)
        (source / "html" / "intro.html").write_text("new")
        return source / "html"

    monkeypatch.setattr(report, "_render", render)
    target = tmp_path / "html"
    target.mkdir()
    (target / "old.html").write_text("old")
    write_chapters(tmp_path / "notebooks")
    build_html(tmp_path, REAL)
    assert not [name for name, text in sources.items() if BANNER in text]
    built = " ".join(sources["_config.yml"].split())
    words = "run of 2026-01-02 under the profile *smoke* on *pbc-fine* (3,000 images)."
    assert words in built
    assert "No run has been recorded" in sources["recorded_results.md"]
    assert sorted(path.name for path in target.iterdir()) == ["_static", "index.html", "intro.html"]
    assert (target / "index.html").read_text() == "new"


def rows(page: str) -> dict[str, str]:
    """The rows of all tables of a page."""
    found = re.findall(r"<th>(.*?)</th>\s*<td>(.*?)</td>", page)
    return {html.unescape(name): html.unescape(value) for name, value in found}


def test_facts_page():
    page = facts_page(RUN)
    expected = {
        "duration": "01:02:03",
        "settings › seed": "7",
        "seconds › 02 vanilla gan": "23",
        "versions › keras": "3.15.1",
    }
    assert expected.items() <= rows(page).items()
    assert "Drawn here. See <https://example.org/licence> for it." in page
    assert BANNER in page
    assert BANNER not in facts_page(REAL)


def test_results_page(recorded):
    record(recorded)
    page = results_page()
    assert "Made by commit abc123." in page and CHANGED in page
    expected = {
        "profile": "pbc",
        "date": "2026-02-03",
        "data": "0123456789abcdef",
        "device": "two | <cores>",
        "d loss": "1.235",
        "history": "(40 values, not shown)",
        "seeds": "[1, 2]",
        "expert › specificity › n": "50",
        "one pool › real › weighted f1 › mean": "0.9534",
        "settings › gan epochs": "30",
        "seconds › 01 data": "12.3",
    }
    assert expected.items() <= rows(page).items()
    record(recorded, code=chapter.chapters_hash())
    assert CHANGED not in results_page()


def test_results_must_be_readable(recorded):
    record(recorded)
    (recorded / "pbc" / "metrics.json").write_text("{")
    with pytest.raises(BookError, match=r"metrics\.json is not JSON"):
        results_page()
    (recorded / "pbc" / "metrics.json").unlink()
    assert "No run has been recorded" in results_page()
