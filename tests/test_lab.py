"""JupyterLab as `cellaug lab` starts it: chapters read like the book and stay as they are."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from cellaug.book import lab
from cellaug.book.chapter import CHAPTERS, notebook_file, pages, project_root

import jupytext
import pytest
from browser import chromium

AUTOSAVE = 3
"""Seconds between two saves; two minutes unless a user says otherwise."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real server over a copy of the chapters, under git: its folder, address and token."""
    root = tmp_path_factory.mktemp("lab")
    unused = shutil.ignore_patterns("00_start.md", ".ipynb_checkpoints", "__pycache__")
    for part in ("notebooks", "book"):
        shutil.copytree(project_root() / part, root / part, ignore=unused)
    shutil.copyfile(project_root() / ".gitignore", root / ".gitignore")
    for words in ("init", "add .", "-c user.name=a -c user.email=a@b.c commit --quiet -m all"):
        git(root, *words.split())
    saving = root / "build/settings/@jupyterlab/docmanager-extension"
    saving.mkdir(parents=True)
    (saving / "plugin.jupyterlab-settings").write_text(json.dumps({"autosaveInterval": AUTOSAVE}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex()
    command = [sys.executable, "-m", "cellaug.cli", "lab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", f"--IdentityProvider.token={token}"]
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(root / "build/config"),
        "JUPYTER_DATA_DIR": str(root / "build/data"),
        "JUPYTER_RUNTIME_DIR": str(root / "build/runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(root / "build/settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(root / "build/workspaces"),
    }
    with (root / "build/log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                ask(address, token, "/api/status")
                break
            except OSError:
                assert process.poll() is None, (root / "build/log").read_text()
                time.sleep(0.5)
        yield root, address, token
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # it waits for a kernel that still imports TensorFlow
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def git(root, *words):
    """What git says in a folder."""
    command = ["git", *words]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def ask(address, token, path, body=None):
    """GET, or PUT where there is a body, as JSON."""
    request = urllib.request.Request(address + path, method="PUT" if body else "GET")
    request.add_header("Authorization", f"token {token}")
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(request, data, timeout=20) as answer:
        return json.load(answer)


@pytest.fixture
def page(server):
    """The first page, as it opens; no address but the server's may be asked for."""
    _, address, token = server
    outside = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.on(
            "request",
            lambda r: r.url.startswith((address, "data:", "blob:")) or outside.append(r.url),
        )
        page.goto(f"{address}/?token={token}")
        page.locator(".jp-MarkdownViewer h1", has_text="Start here").wait_for(timeout=90_000)
        yield page
        assert outside == []
        assert page.locator(".jp-Dialog").count() == 0  # nothing asks which kernel
        assert page.locator(".Toastify__toast").count() == 0  # no news


def open_chapter(page, name, heading):
    """Open a chapter by a double click; returns its panel, whose kernel has started by itself."""
    page.locator(".jp-DirListing-item", has_text=name).dblclick()
    panel = page.locator(".jp-NotebookPanel:visible")
    panel.locator("h1", has_text=heading).wait_for(timeout=60_000)
    panel.locator(".jp-Toolbar-kernelName", has_text="Python 3").wait_for(timeout=60_000)
    return panel


def saved(path, before):
    """Wait until JupyterLab has saved a file by itself, after a time of modification."""
    for _ in range(900):  # a busy machine takes its time
        if path.stat().st_mtime_ns > before:
            return
        time.sleep(0.2)
    raise AssertionError(f"{path.name} was not saved by itself")


@pytest.mark.parametrize("name", pages())
def test_the_form_of_a_notebook_survives_a_round_trip(name):
    path = notebook_file(name)
    config = jupytext.config.load_jupytext_config(str(path))
    notebook = jupytext.read(path, config=config)
    # What JupyterLab adds on opening, which differs between versions.
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (some version)"}
    notebook.metadata["language_info"] |= {"version": "3.99", "pygments_lexer": "ipython3"}
    notebook.cells[-1].metadata["jupyter"] = {"source_hidden": True}
    assert jupytext.writes(notebook, fmt="py:percent", config=config) == path.read_text()


def test_saving_changes_the_file_and_nothing_else(server):
    root, address, token = server
    path = root / "notebooks/02_vanilla_gan.py"
    before = path.read_text()
    model = ask(address, token, "/api/contents/02_vanilla_gan.py?type=notebook&content=1")
    assert model["type"] == "notebook"
    cells = model["content"]["cells"]
    (parameters,) = (c for c in cells if "parameters" in c["metadata"].get("tags", ()))
    assert "gan_epochs = 25" in parameters["source"]
    parameters["source"] = parameters["source"].replace("gan_epochs = 25", "gan_epochs = 26")
    body = {"type": "notebook", "format": "json", "content": model["content"]}
    ask(address, token, "/api/contents/02_vanilla_gan.py", body)
    assert path.read_text() == before.replace("gan_epochs = 25", "gan_epochs = 26")
    path.write_text(before)
    assert git(root, "status", "--porcelain") == ""


def test_a_chapter_is_opened_run_changed_and_saved(server, page):
    root, path = server[0], server[0] / "notebooks/01_data.py"
    opened = path.stat().st_mtime_ns
    panel = open_chapter(page, "01_data.py", "Data")
    cells = panel.locator(".jp-CodeCell")
    saved(path, opened)
    assert git(root, "status", "--porcelain") == ""

    cells.nth(0).locator(".cm-line", has_text="phantom_images").click()
    page.keyboard.press("End")
    for key in ("Backspace",) * 4:
        page.keyboard.press(key)
    page.keyboard.insert_text("1000")
    typed = time.time_ns()  # it may be saved while the cells run
    figure = cells.filter(has_text="class_distribution")
    while figure.locator(".jp-InputPrompt").inner_text() == "[ ]:":
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(200)
    panel.locator(".cellaug-caption", has_text="Fig. 1.1 Images of each class").wait_for(
        timeout=120_000
    )
    assert panel.locator("[data-mime-type*=stderr]").all_inner_texts() == []
    # The import is folded, the parameters are not.
    assert cells.nth(0).locator(".jp-InputPlaceholder").count() == 0
    assert cells.nth(1).locator(".jp-InputPlaceholder").count() == 1

    saved(path, typed)
    changed = git(root, "diff", "--unified=0").splitlines()
    assert [line for line in changed if re.match(r"[-+](?![-+])", line)] == [
        "-phantom_images = 3000",
        "+phantom_images = 1000",
    ]
    assert git(root, "status", "--porcelain") == " M notebooks/01_data.py\n"
    assert (root / "build/lab/demo/artifacts").is_dir() and not (root / "build/demo").exists()


def test_references_are_readable_in_jupyterlab(server, page):
    page.locator(".jp-MarkdownViewer a", has_text="Vanilla GAN").click()
    panel = page.locator(".jp-NotebookPanel:visible")
    text = panel.locator(".jp-RenderedMarkdown", has_text="The networks compete over")
    text.wait_for(timeout=60_000)
    assert "of Eq. 29. The discriminator" in text.inner_text()
    assert "[Goodfellow et al. 2014]" in text.inner_text() and "{" not in text.inner_text()
    text.locator("a", has_text="Eq. 29").click()
    text.locator(".cellaug-equation mjx-container").wait_for(timeout=30_000)
    term = panel.locator(".cellaug-term", has_text="latent vector").first
    assert term.get_attribute("title").startswith("The random numbers from which")
    panel.locator("a", has_text="benchmarks").click()
    page.locator(".jp-NotebookPanel:visible h1", has_text="Benchmarks").wait_for(timeout=60_000)


def test_a_run_on_drawings_says_so_in_jupyterlab(server, page):
    root, _, _ = server
    first = root / "build/lab/demo/artifacts/01_data/metrics.json"
    first.parent.mkdir(parents=True, exist_ok=True)
    first.write_text(json.dumps({"settings": {"data": "phantom"}}))
    before = (root / "notebooks/02_vanilla_gan.py").read_text()
    panel = open_chapter(page, "02_vanilla_gan.py", "Vanilla GAN")
    assert panel.get_by_text("an expert test with real and generated").count() == 1
    cells = panel.locator(".jp-CodeCell")
    cells.nth(0).locator(".cm-line", has_text="gan_epochs").click()
    for _ in range(2):
        page.keyboard.press("Shift+Enter")
    panel.get_by_text("are computer drawings.").wait_for(timeout=120_000)
    named = panel.locator(".cellaug-run")
    named.first.wait_for(timeout=10_000)
    assert set(named.all_text_contents()) == {"drawn"}
    assert named.count() == before.count("real<!-- run -->")
    assert panel.get_by_text("an expert test with drawn and generated").count() == 1
    assert (root / "notebooks/02_vanilla_gan.py").read_text() == before


def test_every_reference_of_a_chapter_is_known():
    """What a chapter cites, links or calls by its term stands in what JupyterLab gets."""
    known = lab.book_facts()
    used = 0
    for name in pages():
        for role, text in re.findall(r"\{(\w+)\}`([^`]+)`", notebook_file(name).read_text("utf-8")):
            target = re.sub(r".*<(.*)>", r"\1", text)
            used += 1
            if role == "term":
                assert known["terms"][target.lower()], text
            elif role == "cite":
                assert all(known["citations"][key]["text"] for key in target.split(",")), text
            elif role == "eq":
                assert known["equations"][target.removeprefix("eq-")], text
    assert used > 20
    assert known["citations"]["radford2016"]["text"] == "Radford et al. 2016"
    assert known["citations"]["mirza2014"]["text"] == "Mirza and Osindero 2014"
    assert known["pages"]["record/ladder"] == {
        "title": "Ablation study",
        "file": "record/ladder.py",
    }


def test_the_first_page_has_order_needs_and_measured_minutes(monkeypatch, tmp_path):
    monkeypatch.setenv("CELLAUG_BUILD", str(tmp_path))
    assert "has not been run here yet" in lab.start_page()
    record = tmp_path / "demo/metrics.json"
    record.parent.mkdir()
    durations = {"01_data": 59.0, "02_vanilla_gan": 600.0}
    record.write_text(json.dumps({"durations": durations}))
    table = [line.split(" | ") for line in lab.start_page().splitlines() if line.startswith("| ")]
    assert table[0][:3] == ["| chapter", "reads from", "minutes here"]
    assert [row[2].strip(" |") for row in table[2:]] == ["< 1", "10", "–", "–", "–", "–"]
    assert table[4][0] == "| [03 AC-GAN](03_ac_gan.py)" and table[4][1] == "01, 02"
    for name in CHAPTERS:
        (tmp_path / "demo/artifacts" / name).mkdir(parents=True)
        (tmp_path / "demo/artifacts" / name / "metrics.json").touch()
    assert "Every chapter can be opened first" in lab.start_page()


COLLECT = """() => {
  window.drawn = new Set();
  setInterval(() => document.querySelectorAll(".jp-OutputArea img").forEach(
    (image) => window.drawn.add(image.src)), 20);
}"""
"""Keeps every picture that a notebook shows, also those that are replaced."""


def run_until(page, path, done):
    """Run cell after cell, as a reader does with Shift+Enter, until `done` says so."""
    page.keyboard.press("Escape")
    last = str(len(jupytext.read(path).cells) - 1)
    active = page.locator(".jp-NotebookPanel:visible .jp-Cell.jp-mod-active")
    for _ in range(100):
        if done():
            return
        # Shift+Enter in the last cell would add an empty one.
        at_end = active.get_attribute("data-windowed-list-index") == last
        page.keyboard.press("Control+Enter" if at_end else "Shift+Enter")
        page.wait_for_timeout(200)
        page.locator("#jp-main-statusbar", has_text="Idle").wait_for(timeout=300_000)
    raise AssertionError("the chapter ended before that")


def test_chapters_are_worked_through_as_a_reader_would(server, page):
    """A GAN is trained, the expert test answered, the explorer moved; git shows what was typed."""
    root = server[0]
    words = "run --chapter 01 --profile demo --set phantom_images=256 --set phantom_classes=2"
    subprocess.run(
        [sys.executable, "-m", "cellaug.cli", *words.split()],
        env=os.environ | {"CELLAUG_BUILD": str(root / "build/lab")},
        check=True,
        capture_output=True,
    )
    page.evaluate(COLLECT)
    path = root / "notebooks/02_vanilla_gan.py"
    panel = open_chapter(page, path.name, "Vanilla GAN")
    panel.locator(".jp-CodeCell .cm-line", has_text="gan_epochs = 25").click()
    page.keyboard.press("End")
    for key in ("Backspace",) * 2:
        page.keyboard.press(key)
    page.keyboard.insert_text("3")
    run_until(page, path, panel.get_by_text("vanilla GAN: 3 epochs, ").count)
    assert len(page.evaluate("[...window.drawn]")) >= 3  # redrawn after every epoch

    # Beside the page R would make a raw cell, and D twice delete a cell: here they are its keys.
    run_until(page, path, panel.locator("iframe").count)
    frame = panel.frame_locator("iframe")
    frame.get_by_role("button", name="Start").click()
    for key in ("d", "1", "Enter", "r", "d"):
        page.keyboard.press(key)
    assert frame.locator("#real").get_attribute("aria-pressed") == "true"
    assert panel.locator(".jp-RawCell").count() == 0
    panel.locator(".jp-MarkdownCell", has_text="Until a person has answered").click()
    finished = root / "build/lab/demo/artifacts/02_vanilla_gan/metrics.json"
    run_until(page, path, finished.is_file)
    ended = time.time_ns()
    assert panel.locator("[data-mime-type*=stderr]").all_inner_texts() == []
    saved(path, ended)
    changed = git(root, "diff", "--unified=0", str(path)).splitlines()
    assert [line for line in changed if re.match(r"[-+](?![-+])", line)] == [
        "-gan_epochs = 25",
        "+gan_epochs = 3",
    ]

    path = root / "notebooks/04_latent_space.py"
    opened = path.stat().st_mtime_ns
    panel = open_chapter(page, path.name, "Latent space")
    run_until(page, path, page.locator(".widget-slider").count)
    cell = page.locator(".jp-OutputArea img[alt='monocyte']")
    cell.wait_for(timeout=180_000)  # TensorFlow has to be loaded
    large = page.locator(".jp-OutputArea img[alt^='generated ']")
    seen = {(cell.get_attribute("src"), large.get_attribute("src"))}

    def new_pictures():
        """Wait for a pair of pictures that was not seen before."""
        page.wait_for_function(
            """seen => !seen.includes(["monocyte", "generated "].map((name) =>
                document.querySelector(`.jp-OutputArea img[alt^="${name}"]`).src).join(" "))""",
            arg=[" ".join(pair) for pair in seen],
            timeout=30_000,
        )
        seen.add((cell.get_attribute("src"), large.get_attribute("src")))

    for name in ("Seed", "Scale", "Walk"):
        row = page.locator(".widget-slider", has_text=name)
        row.locator("[role=slider]").press("ArrowRight")
        new_pictures()
    page.locator(".widget-dropdown select").select_option("basophil")
    new_pictures()
    assert len(seen) == 5 and len({one for one, _ in seen}) == 4
    assert page.locator(".jp-OutputArea img[alt='generated basophil']").is_visible()
    beside = page.locator(".widget-checkbox", has_text="nearest real training cell")
    beside.locator("input").check()
    there = "img[alt='nearest real training cell']"  # with PBC at hand, else a sentence
    missing = "text=the training cells are not on this machine"
    page.locator(there if os.environ.get("CELLAUG_DATA") else missing).wait_for(timeout=120_000)
    saved(path, opened)
    assert git(root, "diff", str(path)) == ""
    assert panel.locator("[data-mime-type*=stderr]").all_inner_texts() == []
