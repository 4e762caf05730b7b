"""The command line end to end: the smoke profile, its book in a browser, and the tools."""

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from cellaug import __version__, cli, load_generator
from cellaug.book import lab
from cellaug.book.chapter import CHAPTERS, build_folder, pages, project_root
from cellaug.book.report import EXPERT
from cellaug.data import load_splits, open_dataset

import browser
import cv2
import make_pdf
import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup

COMMAND = Path(sys.executable).with_name("cellaug")
GENERATOR = Path("artifacts", "03_ac_gan", "conditional")
REFERENCES = project_root() / "tests" / "reference"


def cellaug(*words, status=0):
    """Run the command as a user does; returns what it printed."""
    done = subprocess.run(
        [COMMAND, *map(str, words)], cwd=project_root(), capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def smoke():
    """The smoke profile, run and rendered; the folder that holds all of it."""
    cellaug("run", "--profile", "smoke")
    index = cellaug("book", "--profile", "smoke").strip()
    folder = build_folder("smoke")
    assert Path(index) == folder / "html" / "index.html"
    return folder


@pytest.fixture(scope="module")
def drawn():
    """The cells of the smoke profile as a folder with one subfolder per class."""
    return open_dataset("phantom", classes=4, images=320, size=48, seed=1)


def test_every_chapter_was_run_to_its_end(smoke):
    metrics = json.loads((smoke / "metrics.json").read_text())
    assert list(metrics["chapters"]) == list(CHAPTERS)
    assert set(metrics["durations"]) == set(CHAPTERS)
    assert metrics["settings"]["image_size"] == 32 and metrics["versions"]["cellaug"] == __version__
    assert metrics["data"] and metrics["device"] and metrics["date"]
    assert sum(metrics["durations"].values()) < 480  # other tests run beside it
    for chapter in pages():
        notebook = nbformat.read(smoke / "notebooks" / f"{chapter}.ipynb", as_version=4)
        outputs = [o for c in notebook.cells for o in c.get("outputs", ())]
        assert not any(o.output_type == "error" for o in outputs)
        assert not any(o.get("name") == "stderr" for o in outputs), chapter
        for out in (out for out in outputs if "image/png" in out.get("data", {})):
            png, facts = base64.b64decode(out.data["image/png"]), out.metadata["image/png"]
            assert int.from_bytes(png[16:20]) >= 2 * facts["width"], chapter  # in full size
    assert not list((smoke / "failed").rglob("*.ipynb"))
    assert not any(p.is_dir() for p in (smoke / "checkpoints").iterdir())


def test_figures_of_merit_are_what_the_artifacts_say(smoke):
    chapters = json.loads((smoke / "metrics.json").read_text())["chapters"]
    splits = load_splits(smoke / "artifacts/01_data")
    assert chapters["01_data"]["splits"] == {side: len(part) for side, part in splits.items()}
    classes = chapters["05_classifier"]
    assert classes["test_images"] == len(splits["test"])
    added = classes["training_images"]["AC-GAN"] - classes["training_images"]["original"]
    assert added == pytest.approx(0.5 * classes["training_images"]["original"], abs=4)


def test_figures_have_the_same_numbers_in_jupyterlab(smoke):
    numbers = lab.figure_numbers()
    assert len(numbers) > 20
    for name in CHAPTERS:
        parts = sorted((smoke / "html").glob(f"{name}*.html"))
        html = "".join(part.read_text("utf-8") for part in parts)
        found = re.findall(
            r'<span class="caption-number">(Fig[^<]+?) ?</span>.*?(fig-[\w-]+)"', html
        )
        mine = {n for n in numbers.values() if n.startswith(f"Fig. {int(name[:2])}.")}
        assert {number for number, _ in found} == mine
        assert all(numbers[figure] == number for number, figure in found)


def test_a_second_run_has_nothing_to_do(smoke):
    assert cellaug("run", "--profile", "smoke").count("nothing has changed") == len(pages())


def code(folder, page):
    notebook = nbformat.read(folder / f"{page}.ipynb", as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def compared(cell):
    """What nbval compares of a cell: all that it printed and showed but pictures."""
    if "nbval-check-output" not in cell.metadata.get("tags", ()):
        return []
    shown = [dict(out.data) for out in cell.outputs if "data" in out]
    printed = "".join(out.text for out in cell.outputs if out.output_type == "stream")
    return [printed, *({k: v for k, v in each.items() if k != "image/png"} for each in shown)]


@pytest.mark.parametrize("page", pages())
def test_the_run_gives_what_the_references_hold(smoke, page):
    references, found = code(REFERENCES, page), code(smoke / "notebooks", page)
    for reference, cell in zip(references, found, strict=True):
        assert cell.source == reference.source, "run: make references"
        assert compared(cell) == compared(reference), cell.source
    assert any(map(compared, found))


def test_nbval_finds_what_the_references_hold(smoke):
    """In the notebooks that train nothing, which `cellaug run` has not run in nbval's way."""
    quick = ["01_data", "06_discussion", "record/benchmarks"]
    build = project_root() / "build" / "references"
    shutil.rmtree(build, ignore_errors=True)
    shutil.copytree(smoke / "artifacts", build / smoke.name / "artifacts")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *(REFERENCES / f"{page}.ipynb" for page in quick)],
        cwd=project_root(), env=os.environ | {"CELLAUG_BUILD": str(build)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    cells = sum(len(code(REFERENCES, page)) for page in quick)
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) == cells


def html_pages(html):
    """The names of all pages of the book, those of long chapters' parts too."""
    found = sorted([*html.glob("*.html"), *html.glob("record/*.html")])
    others = {"genindex", "search", *(name.removesuffix(".html") for _, name in EXPERT)}
    return [str(p.relative_to(html))[:-5] for p in found if p.stem not in others]


def test_the_book_works_with_the_network_off(smoke):
    html = smoke / "html"
    assert {*pages(), "background", "glossary", "02_vanilla_gan_2"} < set(html_pages(html))
    with browser.chromium() as chromium:
        for name in html_pages(html):
            visit = browser.Visit(chromium, html, f"{name}.html", browser.DESKTOP)
            assert not visit.errors, (name, visit.errors)
            assert not visit.outside and not visit.failed, name
            text = visit.page.locator("article").inner_text()
            assert "computer drawings" in visit.page.locator("body").inner_text(), name
            source = "$" in text and name != "api"  # its code names variables of the shell
            assert not source and "\\frac" not in text and "|---|" not in text, name
            for picture in visit.page.locator("article img").all():
                assert picture.evaluate("i => i.complete && i.naturalWidth > 0"), name
                assert picture.is_visible(), name
            for equation in visit.page.locator("article div.math").all():
                assert equation.bounding_box()["height"] > 10, name
            assert not visit.barriers(), (name, visit.barriers())
            assert visit.screens() <= 10, (name, visit.screens())
            for screen in (browser.TABLET, browser.PHONE):
                visit.page.set_viewport_size(screen)
                assert visit.widest() <= screen["width"], name
                assert visit.smallest_letter() >= 9, name
            visit.close()


def test_tables_and_links_can_be_read_in_the_dark(smoke):
    chosen = "for (const key of ['mode', 'theme']) localStorage.setItem(key, 'dark')"
    with browser.chromium() as chromium:
        some = ("index", "02_vanilla_gan_3", "03_ac_gan_3", "05_classifier_2", "06_discussion")
        for name in (*some, "record/expert", "record/augmentation", "record/weights"):
            options = smoke / "html", f"{name}.html", browser.DESKTOP
            visit = browser.Visit(chromium, *options, lambda page: page.add_init_script(chosen))
            theme = visit.page.evaluate("document.documentElement.dataset.theme")
            assert theme == "dark" and visit.unseen() == [], (name, visit.unseen())
            assert not visit.barriers(), (name, visit.barriers())
            visit.close()


def test_every_picture_says_what_it_shows_and_no_table_is_empty(smoke):
    """An alt text never is a file's name, and tells more than the kind of the figure."""
    for name in html_pages(smoke / "html"):
        page = BeautifulSoup((smoke / "html" / f"{name}.html").read_text(), "html.parser")
        for picture in page.select("article figure img"):
            alt = picture.get("alt", "")
            assert len(alt) > 40 and re.search(r"[.;:] \S", alt), (name, alt)
        for picture in page.select("article img"):
            assert not re.match(r"\S*\.\w{3,4}\b|[0-9a-f]{32}", picture["alt"]), (name, picture)
        for table in page.select("article table"):
            assert table.select("tbody tr td"), (name, table)


def test_code_is_not_cut(smoke):
    """Code that the chapters show fits into the page's column."""
    for chapter in pages():
        notebook = nbformat.read(smoke / "notebooks" / f"{chapter}.ipynb", as_version=4)
        for cell in notebook.cells:
            if cell.cell_type != "code" or "remove-cell" in cell.metadata.get("tags", ()):
                continue
            shown = [out.data.get("text/markdown", "") for out in cell.outputs if "data" in out]
            code = [text for text in shown if text.startswith("````python")]
            long = [line for text in (cell.source, *code) for line in text.splitlines()]
            assert max(map(len, long), default=0) <= 88, (chapter, max(long, key=len))


def test_the_book_holds_every_figure(smoke):
    for chapter in pages():
        notebook = nbformat.read(smoke / "notebooks" / f"{chapter}.ipynb", as_version=4)
        captions = 0
        for cell in (c for c in notebook.cells if "mystnb" in c.metadata):
            (output,) = cell.outputs
            if chapter == "record/augmentation" and "text/markdown" in output.data:
                # Of a study that is not finished, or whose cells are not on this machine.
                said = output.data["text/markdown"]
                assert said.endswith(("runs that are finished.*", "cannot be shown here.*"))
                continue
            assert "image/png" in output.data
            captions += 1  # there is none without a picture
        parts = [smoke / "html" / f"{chapter}.html", *smoke.glob(f"html/{chapter}_?.html")]
        html = "".join(part.read_text() for part in parts)
        assert html.count("<figure") == captions == html.count("<figcaption"), chapter


def test_the_first_page_has_the_explorer_and_the_expert_test(smoke):
    explorer = (smoke / "artifacts/04_latent_space/explorer.html").read_text()
    assert len(explorer.encode()) < 400_000 and '"lymphocyte"' in explorer
    (sheet,) = re.findall(r'"data:image/webp;base64,[^"]*"', explorer)
    page = (smoke / "html/index.html").read_text()
    assert page.count(sheet) == 1
    for name in ("expert-test.html", "expert-taste.html", "which-class.html"):
        assert f'href="{name}"' in page
        html = (smoke / "html" / name).read_text()
        told = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])["answers"]
        assert (told is None) == (name == "expert-test.html")


def test_cells_of_the_shipped_weights_are_shown_and_named_as_generated(smoke):
    """The figure holds eight cells of each of PBC's eleven classes, as the weights draw them."""
    notebook = nbformat.read(smoke / "notebooks" / "record" / "weights.ipynb", as_version=4)
    named = {c.metadata.get("mystnb", {}).get("figure", {}).get("name"): c for c in notebook.cells}
    cell = named["fig-shipped-cells"]
    caption = cell.metadata["mystnb"]["figure"]["caption"]
    assert caption.startswith("Generated cells") and "PBC (Acevedo et al. 2020" in caption
    png = base64.b64decode(cell.outputs[0].data["image/png"])
    figure = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    generator = load_generator("pbc-fine-64")
    drawn = generator.generate(generator.class_names, 8)

    def alike(image, side):
        enlarged = cv2.resize(image[..., ::-1], (side, side))
        return cv2.matchTemplate(figure, enlarged, cv2.TM_CCOEFF_NORMED).max()

    # Of every third class; all are enlarged as the first one is in the figure.
    side = max(range(120, 190), key=lambda side: alike(drawn[0], side))
    assert all(alike(image, side) > 0.95 for image in drawn[:: 8 * 3])


def test_generate(smoke, tmp_path):
    words = ["generate", "--generator", smoke / GENERATOR, "--label", "phantom eosinophil"]
    out, again = tmp_path / "out", tmp_path / "again"
    cellaug(*words, "--count", 3, "--seed", 5, "--out", out)
    cellaug(*words, "--count", 3, "--seed", 5, "--out", again)
    rows = list(csv.DictReader((out / "manifest.csv").open()))
    assert [(r["label"], r["seed"]) for r in rows] == [("phantom eosinophil", "5")] * 3
    images = [cv2.imread(str(out / row["path"])) for row in rows]
    assert all(image.shape == (32, 32, 3) for image in images)
    assert np.abs(images[0].astype(int) - images[1]).max() > 0
    for row in rows:
        assert (out / row["path"]).read_bytes() == (again / row["path"]).read_bytes()
    complaint = cellaug(
        "generate", "--generator", smoke / GENERATOR, "--label", "eosinophile",
        "--count", 1, "--out", tmp_path / "new", status=2,
    )  # fmt: skip
    assert "knows no class 'eosinophile'" in complaint and "phantom lymphocyte" in complaint
    assert "nothing-there" in cellaug(
        "generate", "--generator", "nothing-there", "--count", 1, "--out", tmp_path / "n", status=2
    )


def test_augment(smoke, drawn, tmp_path):
    before = {p: p.read_bytes() for p in drawn.paths}
    out = tmp_path / "augmented"
    cellaug("augment", drawn.root, "--generator", smoke / GENERATOR, "--ratio", 0.25, "--out", out)
    assert {p: p.read_bytes() for p in drawn.paths} == before
    rows = list(csv.DictReader((out / "manifest.csv").open()))
    for name, count in drawn.counts().items():
        of_class = [r for r in rows if r["label"] == name]
        assert sum(r["origin"] == "real" for r in of_class) == count
        assert sum(r["origin"] == "synthetic" for r in of_class) == -(-count // 4)
    assert len(open_dataset(out)) == len(rows)
    again = cellaug("augment", drawn.root, "--generator", smoke / GENERATOR, "--out", out, status=2)
    assert str(out) in again


def test_inspect(drawn, tmp_path):
    text = cellaug("inspect", drawn.root)
    assert f"{len(drawn)} images, 4 classes" in text and drawn.fingerprint in text
    assert "no such folder" in cellaug("inspect", tmp_path / "nowhere", status=2)
    (tmp_path / "cells" / "one").mkdir(parents=True)
    (tmp_path / "cells" / "one" / "a.jpg").write_bytes(b"")
    assert 'class "one" has no usable image' in cellaug("inspect", tmp_path / "cells", status=2)


def test_help_names_every_command():
    text = cellaug("--help")
    listed = text.partition("Commands:")[2].partition("Examples:")[0]
    commands = re.findall(r"^  ([a-z-]+)  ", listed, re.MULTILINE)
    expected = {"run", "book", "record", "fetch", "inspect", "generate", "augment", "evaluate"}
    expected |= {"predict", "advise", "train", "lab"}
    assert expected | {"store", "study", "expert-test", "expert-score"} == set(commands)
    for command in commands:
        assert "Usage: cellaug " + command in cellaug(command, "--help")
    assert "gan_learning_rate" in cellaug("run", "--keys")
    assert cellaug("--version").strip() == f"cellaug {__version__}"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "--profile", "nosuch"], "no profile 'nosuch'"),
        (["run", "--set", "colour=red"], "no chapter declares colour"),
        (["run", "--chapter", "9"], "no chapter '9'"),
        (["book", "--profile", "thesis"], "01_data"),
        (["generate", "--generator", "x", "--count", "0", "--out", "y"], "'--count': 0 is not"),
        (
            ["generate", "--generator", "x", "--count", "1", "--seed", "-1", "--out", "y"],
            "'--seed': -1 is not in the range x>=0",
        ),
        (["augment", "x", "--generator", "y", "--ratio", "-1", "--out", "z"], "0<x<1000"),
    ],
)
def test_complaints_say_what_to_do(words, complaint):
    assert complaint in cellaug(*words, status=2)


def test_the_whole_book_is_printed(smoke):
    """On A4 with an outline of all pages, and no address of this machine in its links."""
    assert cli.main(["book", "--profile", "smoke", "--one-page"]) == 0
    pdf = make_pdf.print_book(smoke).read_bytes()
    assert pdf.startswith(b"%PDF") and len(re.findall(rb"/Type\s*/Page\b", pdf)) > 100
    assert b"/Outlines" in pdf and b"/StructTreeRoot" in pdf
    assert b"https://doi.org/" in pdf and b"file://" not in pdf
    html = (smoke / "print" / "index.html").read_text()
    for page in (*pages(), "glossary", "references"):
        assert f'id="document-{page}"' in html
