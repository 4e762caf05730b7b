"""JupyterLab as `make lab` starts it: a chapter opens as a notebook, saved back to its .py."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from cellaug.book.chapter import notebook_file, pages, project_root

import jupytext
import pytest
from browser import chromium


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A real server over a copy of the chapters: its folder, its address and its token."""
    root = tmp_path_factory.mktemp("lab")
    shutil.copytree(project_root() / "notebooks", root / "notebooks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex()
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root"]
    command += ["--notebook-dir=notebooks", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--IdentityProvider.token={token}"]
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(root / "config"),
        "JUPYTER_DATA_DIR": str(root / "data"),
        "JUPYTER_RUNTIME_DIR": str(root / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(root / "workspaces"),
    }
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                ask(address, token, "/api/status")
                break
            except OSError:
                assert process.poll() is None, (root / "log").read_text()
                time.sleep(0.5)
        yield root / "notebooks", address, token
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:  # it waits for a kernel that still imports TensorFlow
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(address, token, path, body=None):
    """GET, or PUT where there is a body, as JSON."""
    request = urllib.request.Request(address + path, method="PUT" if body else "GET")
    request.add_header("Authorization", f"token {token}")
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(request, data, timeout=20) as answer:
        return json.load(answer)


@pytest.mark.parametrize("name", pages())
def test_the_form_of_a_notebook_survives_a_round_trip(name):
    path = notebook_file(name)
    config = jupytext.config.load_jupytext_config(str(path))
    notebook = jupytext.read(path, config=config)
    assert jupytext.writes(notebook, fmt="py:percent", config=config) == path.read_text()


def test_saving_changes_the_file_and_nothing_else(server):
    folder, address, token = server
    path = folder / "02_vanilla_gan.py"
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
    assert not list(folder.glob("*.ipynb"))


def test_a_double_click_opens_a_notebook(server):
    _, address, token = server
    with chromium() as browser:
        page = browser.new_page()
        page.goto(f"{address}/lab?token={token}")
        item = page.locator(".jp-DirListing-item", has_text="01_data.py")
        item.wait_for(timeout=90_000)
        item.dblclick()
        page.locator(".jp-NotebookPanel h1", has_text="Data").wait_for(timeout=60_000)
        # Cells are drawn as the browser finds time for them.
        page.locator(".jp-NotebookPanel .jp-CodeCell").nth(3).wait_for(
            state="attached", timeout=60_000
        )


EXPLORER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %%
from cellaug import explorer, load_generator

explorer.live(load_generator("pbc-fine-64"))
"""


def test_the_explorer_s_pictures_follow_its_sliders(server):
    """The widgets of chapter 04, with a kernel behind them."""
    folder, address, token = server
    (folder / "explore.py").write_text(EXPLORER)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.goto(f"{address}/lab?token={token}")
        item = page.locator(".jp-DirListing-item", has_text="explore.py")
        item.wait_for(timeout=90_000)
        item.dblclick()
        page.locator(".jp-CodeCell .cm-content").first.click(timeout=60_000)
        page.locator("#jp-main-statusbar", has_text="Idle").wait_for(timeout=60_000)
        page.keyboard.press("Control+Enter")
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

        for name in ("Seed", "Truncation", "Walk"):
            row = page.locator(".widget-slider", has_text=name)
            row.locator("[role=slider]").press("ArrowRight")
            new_pictures()
        page.locator(".widget-dropdown select").select_option("basophil")
        new_pictures()
        assert len(seen) == 5 and len({one for one, _ in seen}) == 4
        assert page.locator(".jp-OutputArea img[alt='generated basophil']").is_visible()
