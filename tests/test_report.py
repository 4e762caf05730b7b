"""The book is built from tiny executed chapters and opened in a browser without network."""

import base64
import html
import json
import re
import struct
import zlib
from pathlib import Path

from cellaug import explorer
from cellaug.book import chapter, report
from cellaug.book.report import BANNER, CHANGED, build_html, facts_page, results_page
from cellaug.errors import BookError, ReportError
from cellaug.evaluation import expert_page

import browser
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup
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
ARMS, F1 = ("AC-GAN", "original"), ("weighted_f1", "macro_f1")
CHANGE = {  # the second is of a time when two seeds got an interval
    "weighted_f1": {"mean": 0.0123, "low": -0.01, "high": 0.0346, "n": 3},
    "macro_f1": {"mean": -0.02, "low": -0.021, "high": -0.019, "n": 2},
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
        "display_data",
        {"image/png": png(1500, 200), "text/plain": "<Figure size 40x20>"},
        metadata={"image/png": {"alt": "A box. It is grey.", "width": 720, "height": 96}},
    )
    figure = {"caption": "Real cells as a grey box, see [Eq. 39](#eq-39).", "name": name}
    metadata = {"mystnb": {"figure": figure}, "tags": ["hide-input"]}
    return new_code_cell(
        "draw_me()", execution_count=3, outputs=[picture], metadata=metadata, id="figure"
    )


def first_chapter() -> list[nbformat.NotebookNode]:
    """Cells with all that a chapter may hold."""
    heads = "".join(f"<th>{head}</th>" for head in ("", "change", "said", "a_long_name"))
    heads += "<th>a_rather_long_name</th>" * 10
    row = "<tr><th>{}</th><td>{}</td><td>some</td><td>{}</td>" + "<td></td>" * 10 + "</tr>"
    body = row.format("first class", "-1.5 (-2.0 to -1.0)", "3") + row.format("b-2", "+12.0", "")
    body += row.format("third", "not measured", "")
    wide = f"<table border=1><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return [
        new_markdown_cell(
            "# The data\n\nThe scale is [Eq. 39](#eq-39), the game {eq}`eq-29`; see\n"
            "{numref}`fig-grey` and {cite:t}`acevedo2020`.\n"
            "The real<!-- run --> cells, what is real."
            " It fell by -3 points, `x-1` did not."
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


def write_artifacts(artifacts: Path) -> list[nbformat.NotebookNode]:
    """What chapters 02 and 04 leave for the book; returns cells of chapter 04 with an explorer."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 5, 16, 16, 3), dtype=np.uint8)
    cells = {f"class {number}": images for number, images in enumerate(noise)}
    folders = [artifacts / name for name in ("02_vanilla_gan", "04_latent_space")]
    for folder in folders:
        folder.mkdir(parents=True)
    first = dict(list(cells.items())[:11])
    (folders[1] / "explorer.html").write_text(explorer.html(first, steps=2, note="Not real."))
    (folders[1] / "which-class.html").write_text(expert_page.page(noise[0], classes=["a", "b"]))
    taste = expert_page.page(noise[1], answers=[True] * 5, more="expert-test.html")
    (folders[0] / "expert-taste.html").write_text(taste)
    (folders[0] / "expert-test.html").write_text(expert_page.page(noise[2]))
    shown = new_output("display_data", {"text/html": explorer.html(cells, steps=2)})
    return [new_markdown_cell("# Walk"), new_code_cell("walk", execution_count=1, outputs=[shown])]


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
            "05_classifier": {
                "arms": {arm: {key: {"mean": 0.9534} for key in F1} for arm in ARMS},
                "change_against_original": {ARMS[0]: CHANGE},
                "training_images": {"AC-GAN": 1500, "original": 1000},
                "test_images": 1234,
                "seeds": 3,
            },
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
    second = new_markdown_cell("## A second page\n\nText. In it.", metadata={"tags": ["new-page"]})
    parts = [new_markdown_cell("# Three\n\nText."), second]
    write_chapters(place / "notebooks", c03=parts, c04=write_artifacts(place / "artifacts"))
    page = build_html(place, RUN)
    assert page == place / "html" / "index.html"
    return place / "html"


@pytest.fixture(scope="module")
def chromium():
    """A running headless Chromium."""
    with browser.chromium() as running:
        yield running


EXPERT = {name for _, name in report.EXPERT}  # pages of another make


def pages(root: Path) -> list[str]:
    """All pages of a book by name."""
    found = (*root.glob("*.html"), *root.glob("record/*.html"))
    return sorted({str(path.relative_to(root)) for path in found} - EXPERT)


def test_every_page_works_offline(built, chromium):
    own = ("intro", "background", "references", "glossary", "api", "built_from", "search")
    expected = {f"{name}.html" for name in (*chapter.pages(), *own, "recorded_results")}
    assert expected <= set(pages(built))
    for name in pages(built):
        visit = browser.Visit(chromium, built, name, browser.DESKTOP)
        assert (visit.errors, visit.outside, visit.failed) == ([], [], []), name
        check_equations(visit, name)
        check_pictures(visit, name)
        assert not visit.barriers(), (name, visit.barriers())
        for screen in (browser.TABLET, browser.PHONE):
            visit.page.set_viewport_size(screen)
            assert visit.widest() <= screen["width"], name
            assert visit.smallest_letter() >= 9, name
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
        assert visit.widest() <= browser.PHONE["width"]
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


SEEN = """() => [...document.querySelectorAll('.cellaug-explorer canvas')].map(
    (canvas) => canvas.toDataURL())"""


@pytest.mark.parametrize("view", [browser.DESKTOP, browser.PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["index.html", "04_latent_space.html"])
def test_the_explorer_walks_offline(built, chromium, name, view):
    """With the arrow keys every picture changes, and back at the start all are as they were."""
    visit = browser.Visit(chromium, built, name, view, color_scheme="dark")
    page = visit.page
    page.wait_for_selector(".cellaug-explorer[data-ready]")
    slider = page.get_by_role("slider", name="Walk through latent space")
    classes = 12 if name.startswith("04") else 11
    first = page.evaluate(SEEN)
    assert len(set(first)) == classes
    assert slider.get_attribute("aria-valuetext") == "vector 1"
    slider.press("ArrowRight")
    second = page.evaluate(SEEN)
    assert all(one != other for one, other in zip(first, second, strict=True))
    words = "1/2 of the way from vector 1 to vector 2"
    assert slider.get_attribute("aria-valuetext") == words == page.inner_text(".at")
    slider.press("End")
    assert slider.get_attribute("aria-valuetext") == "vector 3"
    assert not set(page.evaluate(SEEN)) & {*first, *second}
    slider.press("Home")
    assert page.evaluate(SEEN) == first
    for number in range(classes):
        picture = page.get_by_role("img", name=f"class {number}, generated", exact=True)
        box = picture.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= view["width"] and box["width"] > 60
    assert float(slider.evaluate("e => parseFloat(getComputedStyle(e).height)")) >= 24
    assert (visit.errors, visit.outside, visit.failed) == ([], [], [])
    visit.close()


def test_the_expert_test_is_a_part_of_the_book(built, chromium):
    visit = browser.Visit(chromium, built, "index.html", browser.DESKTOP)
    for name, title in (
        ("expert-taste.html", "Real or generated?"),
        ("expert-test.html", "Real or generated?"),
        ("which-class.html", "Which class?"),
    ):
        visit.page.locator(f"article a[href='{name}']").first.click()
        visit.page.wait_for_url(f"**/{name}")
        assert visit.page.inner_text("h1") == title
        visit.page.go_back()
        visit.settle()
    assert (visit.errors, visit.outside, visit.failed) == ([], [], [])
    visit.close()


def test_search_works_offline(built, chromium):
    visit = browser.Visit(chromium, built, "search.html", browser.DESKTOP)
    visit.page.goto(f"{(built / 'search.html').as_uri()}?q=trace+checkerboard")
    hit = visit.page.locator("#search-results li").first
    assert hit.locator("a").inner_text() == "Transposed convolutions"
    assert "in Background" in hit.inner_text()  # the page, and below it a line with the word
    assert set(hit.locator("p mark").all_inner_texts()) >= {"trace", "checkerboard"}
    assert "a trace remains: the checkerboard of Odena" in hit.locator("p").inner_text()
    hit.locator("a").click()
    visit.page.wait_for_url("**/background_images.html#transposed-convolutions")
    visit.settle()
    for asked, words in (
        ("docstrings chapters", "The package"),
        ("xyzzy <b>", "No page has"),
        ("draw_me", "No page has"),  # folded code
    ):
        visit.page.goto(f"{(built / 'search.html').as_uri()}?q={asked}")
        assert words in visit.page.inner_text("#search-results")
    assert visit.errors == [] and visit.failed == []
    visit.close()


def test_tables_have_one_look(built, chromium):
    visit = browser.Visit(chromium, built, "01_data.html", browser.PHONE)
    cells = visit.page.evaluate(
        """[...document.querySelectorAll('article table :is(td, th)')].map(cell => {
            const style = getComputedStyle(cell);
            return [cell.innerText, style.textAlign, style.position, parseFloat(style.paddingLeft)];
        })"""
    )
    look = {text: rest for text, *rest in cells}
    numbers = ("−1.5 (−2.0\u00a0to\u00a0−1.0)", "change", "3")  # broken before the interval alone
    assert {look[text][0] for text in (*numbers, "not\u00a0measured")} == {"right"}
    assert look["some"][0] == look["said"][0] == look["b-2"][0] == "left"
    assert look["first class"][1] == "sticky" and look["some"][1] == "static"
    assert min(padding for *_, padding in look.values()) > 5
    box = visit.page.locator("article div.scroll").first
    box.focus()
    before = box.locator("tbody th").first.bounding_box()["x"]
    box.evaluate("box => { box.scrollLeft = 100; }")
    assert box.evaluate("box => box.scrollLeft") == 100
    assert box.locator("tbody th").first.bounding_box()["x"] == before
    visit.close()


def test_figures_have_alt_text_and_a_link_to_their_full_size(built, chromium):
    visit = browser.Visit(chromium, built, "01_data.html", browser.PHONE)
    link = visit.page.locator("figure#fig-grey a.image-reference")
    assert link.locator("img").get_attribute("alt") == "A box. It is grey."
    assert link.locator("img").bounding_box()["width"] == 720  # scrolls on a phone
    link.click()
    visit.page.wait_for_url("**/_images/*.png")
    assert visit.page.evaluate("document.images[0].naturalWidth") == 1500
    visit.close()


def test_phantoms_say_so_on_paper_and_are_called_drawn(built, chromium):
    visit = browser.Visit(chromium, built, "02_vanilla_gan.html", browser.DESKTOP)
    assert not visit.page.locator("article .banner").is_visible()
    visit.page.emulate_media(media="print")
    assert visit.page.locator("article .banner").inner_text() == BANNER
    visit.close()
    page = (built / "01_data.html").read_text()
    assert "The drawn cells, what is real." in page and "Drawn cells as a grey box" in page
    assert "It fell by −3 points" in page and ">x-1<" in page


def test_a_long_chapter_has_several_pages(built, chromium):
    """A cell tagged "new-page" begins a page of its own, listed below the chapter's first."""
    assert "<h1>A second page" in (built / "03_ac_gan_2.html").read_text()
    assert "A second page" not in visible_text(built / "03_ac_gan.html")
    visit = browser.Visit(chromium, built, "03_ac_gan.html", browser.DESKTOP)
    visit.page.locator("a.right-next").click()
    visit.page.wait_for_url("**/03_ac_gan_2.html")
    assert "In it." in visit.page.inner_text("article.bd-article")
    visit.close()


def visible_text(path: Path) -> str:
    """The words of a page's article."""
    return BeautifulSoup(path.read_text(), "html.parser").select_one("article").get_text(" ")


def test_references_have_links(built):
    entries = (BOOK / "references.bib").read_text().split("\n@")
    page = (built / "references.html").read_text()
    for entry in entries:
        for field in ("doi", "eprint", "url"):
            if found := re.search(rf"\b{field}\s+= \{{(.+)\}}", entry):
                assert re.search(rf'href="https?://[^"]*{re.escape(found[1])[-20:]}"', page), entry
    linked = sum(bool(re.search(r"\b(doi|eprint|url)\s+=", entry)) for entry in entries)
    assert linked >= len(entries) - 2  # one book and one workshop paper have no such number


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
    if name.startswith("background"):
        assert len(widths) == 2


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
    assert ["Eq. 29", "background_images.html#equation-eq-29"] in links
    assert ["Fig. 1.1", "#fig-grey"] in links
    assert page.inner_text("#equation-eq-39 > .eqno").startswith("(39)")
    assert page.inner_text("figure#fig-grey figcaption").startswith(
        "Fig. 1.1 Drawn cells as a grey box, see Eq. 39."
    )
    # Folded: the cell that draws. Open: all others, with the parameters of the run.
    assert page.locator("article details:not([open])").count() == 1
    assert "draw_me" not in page.inner_text("article.bd-article")
    assert "seed = 0" in page.inner_text("article.bd-article")
    assert page.inner_text("div.cell_output div.highlight-python").strip() == "a = 1"
    visit.close()


def test_the_package_is_described_from_its_docstrings(built, chromium):
    visit = browser.Visit(chromium, built, "api.html", browser.DESKTOP)
    visit.page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    text = visit.page.inner_text("article.bd-article")
    for name in ("open_dataset", "Reader", "generator", "Adversarial", "evaluate", "Chapter.fit"):
        assert visit.page.locator("strong", has_text=re.compile(f"^{name}$")).count(), name
    assert "def open_dataset(" in text and not re.search(r"class Chapter\b", text)
    assert "folder to write artifacts to" in text and "`" not in text
    visit.close()
    glossary = (built / "glossary.html").read_text()
    assert glossary.count("<dt") >= 30 and 'id="term-mode-collapse"' in glossary


def test_all_equations_of_the_thesis_once_and_in_order():
    text = "".join(
        (BOOK / f"{name}.md").read_text() for name in ("background", "background_images")
    )
    found = re.findall(r"\\tag\{(\w+)\}", text)
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

    def render(source: Path, builder: str) -> Path:
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
    assert "commit abc123, two \\| \\<cores\\>, 12 s" in page and CHANGED in page
    expected = {
        "data": "0123456789abcdef",
        "settings › gan epochs": "30",
        "seconds › 01 data": "12.3",
    }
    assert expected.items() <= rows(page).items()
    arms = re.findall(r"<tr>\s*<th>(.*?)</th>(.*?)</tr>", page.partition("dropdown")[0], re.DOTALL)
    cells = {arm: re.findall("<td>(.*?)</td>", row) for arm, row in arms}
    assert list(cells) == ["original", "AC-GAN"]
    assert cells["original"] == ["1,000", "95.3", "–", "95.3", "–"]
    assert cells["AC-GAN"][2::2] == ["+1.23 (−1.00 to +3.46)", "−2.00 (2 seeds, no interval)"]
    assert "3 seeds, 1,234 test images" in page
    record(recorded, code=chapter.chapters_hash())
    assert CHANGED not in results_page()


def test_a_recorded_run_is_half_a_page_with_its_json(built, chromium, recorded):
    (file,) = built.glob("_downloads/*/pbc.json")
    kept = json.loads((recorded / "pbc" / "metrics.json").read_text())
    assert json.loads(file.read_text())["chapters"] == kept["chapters"]
    visit = browser.Visit(chromium, built, "recorded_results.html", browser.PHONE)
    assert (
        visit.page.evaluate("document.documentElement.scrollHeight") < 3 * browser.PHONE["height"]
    )
    assert visit.page.locator("a.download").get_attribute("href").endswith("pbc.json")
    assert visit.page.locator("figure img").get_attribute("alt").startswith("Forest plot")
    visit.close()


def test_the_first_page_answers(built, chromium):
    visit = browser.Visit(chromium, built, "index.html", browser.PHONE)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= browser.PHONE["width"]
    assert visit.page.inner_text("article h1").rstrip("#").strip().endswith("?")
    names = visit.page.locator("div.one-vector figcaption").all_inner_texts()
    assert len(names) == 11 and names[0] == "promyelocyte"
    for name, picture in zip(names, visit.page.locator("div.one-vector img").all(), strict=True):
        assert picture.get_attribute("alt") == (
            f"Generated {name}: the one latent vector, drawn as this class."
        )
        assert picture.evaluate("i => i.naturalWidth") == 64
        assert picture.bounding_box()["width"] >= 64
    answers = visit.page.locator("table.answers tbody tr")
    assert answers.count() == 3
    assert "23 of 50 generated cells" in answers.nth(0).inner_text()
    # On a phone a row is a card that says what each of its cells is.
    before = "e => getComputedStyle(e, '::before').content"
    heads = [cell.evaluate(before) for cell in answers.nth(0).locator("td").all()]
    assert heads[1:] == ['"Thesis: "', '"On real cells: "', '"Answer: "']
    box = visit.page.locator(".admonition", has_text="Should I use it?").inner_text()
    assert all(reader in box for reader in ("laboratory", "student", "researcher", "diagnosis"))
    visit.close()


def test_results_must_be_readable(recorded):
    record(recorded)
    (recorded / "pbc" / "metrics.json").write_text("{")
    with pytest.raises(BookError, match=r"metrics\.json is not JSON"):
        results_page()
    (recorded / "pbc" / "metrics.json").unlink()
    assert "No run has been recorded" in results_page()
