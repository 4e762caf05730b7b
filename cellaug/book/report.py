"""The HTML book: the pages of ``book/``, the executed notebooks and two generated pages."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cellaug.book.chapter import CHAPTERS, DEMO, WORDS, pages, project_root, recorded_results
from cellaug.errors import ReportError
from cellaug.files import atomic_folder, write_json

import nbformat
import pandas as pd
import yaml

BANNER = f"{DEMO} Only results marked recorded or trained on PBC are about real blood."
CHANGED = "The chapters, or code that they use, have changed since this run was recorded."
RECORDED = """Runs of the chapters that were kept, as they were recorded. They are not of this
build; [](built_from.md) says what that was. [Chapter 6](06_discussion.ipynb) compares them with the
thesis, claim by claim."""
FOREST = """Change of F1 compared with training on the original images. Lines are 95 % intervals
over seeds; a mark without a line is of fewer than {few} seeds."""
EXPLORER = "explorer.html"  # a part of chapter 04's page and of the first one
EXPERT = [("02_vanilla_gan", "expert-test.html"), ("02_vanilla_gan", "expert-taste.html")]
EXPERT += [("04_latent_space", "which-class.html")]  # whole pages, and the chapters that make them


def build_html(build: Path, run: Mapping[str, Any], one_page: bool = False) -> Path:
    """Build the HTML book in ``<build>/html``, whole or not at all, and return its first page.

    `build` holds the executed notebooks, `run` is what `merge_metrics` returned. `one_page` puts
    all chapters on one page, for paper, in ``<build>/print``. Raises ReportError where Jupyter Book
    warns of anything, BookError for a recorded result that cannot be read.
    """
    from cellaug.book import front

    html = build.absolute() / ("print" if one_page else "html")
    generated = {"built_from.md": facts_page(run), "recorded_results.md": results_page()}
    config = yaml.safe_load((project_root() / "book" / "_config.yml").read_text(encoding="utf-8"))
    explorer = build / "artifacts" / CHAPTERS[3] / EXPLORER
    shown = f"```{{raw}} html\n:file: {EXPLORER}\n```" if explorer.is_file() else ""
    built = {"built": _built_line(run), "explorer": shown}
    config["parse"]["myst_substitutions"] = built | front.substitutions()
    if drawn := run["chapters"][CHAPTERS[0]]["phantom"]:
        config["html"]["announcement"] = BANNER
    generated["_config.yml"] = yaml.safe_dump(config)
    with TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        unused = shutil.ignore_patterns("_build", "results")
        shutil.copytree(project_root() / "book", source, ignore=unused)
        if shown:
            shutil.copyfile(explorer, source / EXPLORER)
        for name, text in generated.items():
            (source / name).write_text(text, encoding="utf-8")
        front.draw_cells(source / "_static")
        for profile, record in recorded_results().items():
            _write_record(source / "recorded", profile, record)
        pieces: dict[str, dict[str, Any]] = {}
        for name in pages():
            (source / name).parent.mkdir(exist_ok=True)
            notebook = nbformat.read(build / "notebooks" / f"{name}.ipynb", as_version=4)
            for cell in notebook.cells:
                _prepare(cell, WORDS[name in CHAPTERS and drawn])
            pieces[name] = _pieces(name, notebook)
            for file, piece in pieces[name].items():
                nbformat.write(piece, source / f"{file}.ipynb")
        _list_pieces(source / "_toc.yml", pieces)
        rendered = _render(source, "singlehtml" if one_page else "html")
        unused = shutil.ignore_patterns("a11y", "localization", "MathML", "SVG")
        with atomic_folder(html) as target:
            shutil.copytree(rendered, target, dirs_exist_ok=True)
            shutil.copyfile(target / "intro.html", target / "index.html")  # no mere redirection
            for page in (build / "artifacts" / chapter / name for chapter, name in EXPERT):
                if page.is_file():
                    shutil.copyfile(page, target / page.name)
            # Equations need no network.
            with resources.as_file(resources.files("jupyter_server_mathjax") / "static") as mathjax:
                shutil.copytree(mathjax, target / "_static" / "mathjax", ignore=unused)
    return html / "index.html"


def _pieces(name: str, notebook: Any) -> dict[str, Any]:
    """A notebook as pages by file name: a cell tagged "new-page" begins one with its heading."""
    found: dict[str, Any] = {}
    for cell in notebook.cells:
        if not found or "new-page" in cell.metadata.get("tags", ()):
            file = f"{name}_{len(found) + 1}" if found else name
            if found:
                cell.source = re.sub(r"\A## ", "# ", cell.source)
            page = found[file] = nbformat.from_dict(notebook | {"cells": []})
        page.cells.append(cell)
    return found


def _list_pieces(toc: Path, pieces: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the further pages of a chapter below its first one, in the list of pages."""
    listed = yaml.safe_load(toc.read_text(encoding="utf-8"))
    for entry in (entry for part in listed["parts"] for entry in part["chapters"]):
        others = list(pieces.get(entry["file"], ()))[1:]
        if others:
            entry["sections"] = [{"file": other} for other in others]
    toc.write_text(yaml.safe_dump(listed, sort_keys=False), encoding="utf-8")


def _prepare(cell: Any, word: str) -> None:
    """Give a cell what the HTML needs: alt texts, widths, the `word` for the cells of the set.

    In a caption "real" means these cells, and in a text where ``<!-- run -->`` follows it.
    """
    tags = cell.metadata.get("tags", ())
    if "parameters" in tags:
        cell.source = f"# Defaults; the values of this run follow.\n{cell.source}"
    elif "injected-parameters" in tags:
        cell.source = cell.source.replace("# Parameters", "# This run", 1)
    if cell.cell_type == "markdown":
        cell.source = re.sub(r"\breal<!-- run -->", word, cell.source)
    for output in cell.get("outputs", ()):
        if html := output.get("data", {}).get("text/html"):  # one minus sign, a dash for nothing
            html = re.sub(r"<td>(NaN|&lt;NA&gt;)</td>", "<td>–</td>", html)
            output["data"]["text/html"] = re.sub(r"<td>-(?=[\d.])", "<td>−", html)
        if facts := output.get("metadata", {}).get("image/png", {}):
            # A width makes Sphinx link the image in full size, too.
            image = {"alt": facts.get("alt", ""), "width": f"{facts['width']}px"}
            cell.metadata.setdefault("mystnb", {})["image"] = image
    figure = cell.metadata.get("mystnb", {}).get("figure", {})
    if figure and not any("image/png" in out.get("data", {}) for out in cell.get("outputs", ())):
        figure = {}
        del cell.metadata["mystnb"]["figure"]  # no caption without a picture
    if "caption" in figure:
        figure["caption"] = re.sub(r"\breal\b", word, figure["caption"])
        figure["caption"] = re.sub(r"\bReal\b", word.capitalize(), figure["caption"])


def _render(source: Path, builder: str) -> Path:
    """Let Jupyter Book render a folder, every warning an error; returns the folder of its pages."""
    # jupyter_book cannot be run with -m; this is what its console script does. -P: else a folder
    # called cellaug, in which somebody stands, is taken for the package.
    command = [sys.executable, "-P", "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(source), "-W", "--keep-going", "-n", "--builder", builder]
    environment = {**os.environ, "PYTHONUTF8": "1", "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).replace(f"{source}/", "")
    # -W alone lets some warnings slip through.
    found = [line for line in log.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL):", line)]
    if done.returncode or found:
        reasons = "\n".join(dict.fromkeys(found)) or log[-4000:]
        raise ReportError(f"Jupyter Book did not build the book cleanly:\n{reasons}")
    return source / "_build" / builder


def facts_page(run: Mapping[str, Any]) -> str:
    """The page "Built from" as Markdown: on what this copy's run stands."""
    data = run["chapters"][CHAPTERS[0]]
    parts = ["# Built from", _built_line(run), _plain(data["credit"])]
    parts += [f":::{{warning}}\n{BANNER}\n:::"] if data["phantom"] else []
    return "\n\n".join([*parts, *_circumstances(run)]) + "\n"


def results_page() -> str:
    """The page "Recorded results" as Markdown: of each run the changes of F1, and its settings."""
    records, parts = recorded_results(), ["# Recorded results"]
    parts += [RECORDED if records else "No run has been recorded with this copy of the book."]
    for profile, record in records.items():
        parts += [f"## {_plain(profile)}", _recorded_line(record)]
        parts += [f":::{{warning}}\n{CHANGED}\n:::"] if record["changed"] else []
        parts += _recorded_changes(profile, record["chapters"].get("05_classifier", {}))
        more = {"data": record["data"], "settings": record["settings"]}
        more |= {"versions": record["versions"], "seconds": record["durations"]}
        parts += [f"::::{{dropdown}} Settings, versions, durations\n{_table(more)}\n::::"]
        parts += [f"{{download}}`All results of this run as JSON <recorded/{profile}.json>`"]
    return "\n\n".join(parts) + "\n"


def _recorded_line(record: Mapping[str, Any]) -> str:
    """When, on what, with what and from which code a run was recorded."""
    data = record["chapters"].get(CHAPTERS[0], {})
    from cellaug.training.progress import duration

    cells = f"{_plain(data['data_name'])}, {data['images']:,} images" if data else "unknown images"
    made = f"commit {_plain(record['commit'][:7])}, {_plain(record['device'])}"
    seconds = sum(record["durations"].values())
    return f"*Recorded {record['date']} on {cells}: {made}, {duration(seconds)}.*"


def _recorded_changes(profile: str, found: Mapping[str, Any]) -> list[str]:
    """The arms of chapter 05 as a table, and the forest plot; nothing if the run has none."""
    from cellaug.evaluation.classifiers import FOR_AN_INTERVAL, points

    if not found:
        return []
    changes, rows = found["change_against_original"], {}
    for arm in sorted(found["arms"], key=lambda arm: (arm in changes, arm)):  # the original first
        scores = found["arms"][arm]
        rows[arm] = {"training images": f"{found['training_images'][arm]:,}"}
        for metric in ("weighted_f1", "macro_f1"):
            name = metric.replace("_f1", " F1")
            rows[arm][f"{name}, %"] = f"{100 * scores[metric]['mean']:.1f}"
            change = points(changes[arm][metric]) if arm in changes else "–"
            rows[arm][f"change of {name}, points"] = change
    table = pd.DataFrame(rows).T.to_html(border=0)
    said = f"Means over {found['seeds']} seeds, {found['test_images']:,} test images; changes in "
    said += "percentage points with 95 % intervals, paired by seed."
    alt = "Forest plot of changes of F1 by arm beside the thesis's: "
    alt += "; ".join(f"{arm}, weighted F1 {points(changes[arm]['weighted_f1'])}" for arm in rows
                     if arm in changes) + "."  # fmt: skip
    caption = FOREST.format(few=FOR_AN_INTERVAL)
    options = f":alt: {alt}\n:width: 100%\n:figclass: wide"
    figure = f":::{{figure}} recorded/{profile}.png\n{options}\n\n{caption}\n:::"
    return [f'<div class="scroll">\n{table}\n</div>', said, figure]


def _write_record(folder: Path, profile: str, record: Mapping[str, Any]) -> None:
    """Write what the page of recorded results shows beside its text: the JSON, the figure."""
    from cellaug import figures
    from cellaug.book.claims import thesis_change

    folder.mkdir(exist_ok=True)
    kept = {key: value for key, value in record.items() if key != "changed"}
    write_json(folder / f"{profile}.json", kept)
    if found := record["chapters"].get("05_classifier"):
        figures.use_style()
        sources = {
            "thesis": thesis_change(),
            f"recorded: {profile}": found["change_against_original"],
        }
        figures.forest(sources).savefig(folder / f"{profile}.png", dpi=200)


def _built_line(run: Mapping[str, Any]) -> str:
    data = run["chapters"][CHAPTERS[0]]
    drawn = ", drawn cells and not real ones" if data["phantom"] else ""
    what = f"*{_plain(data['data_name'])}* ({data['images']:,} images{drawn})"
    profile = _plain(run["profile"])
    return f"This copy shows a run of {run['date']} under the profile *{profile}* on {what}."


def _circumstances(run: Mapping[str, Any]) -> list[str]:
    """When, with what and on what a run was made, as Markdown."""
    seconds = round(sum(run["durations"].values()))
    facts = {key: run[key] for key in ("profile", "date", "data", "device")}
    facts |= {"duration": str(pd.Timedelta(seconds=seconds)).removeprefix("0 days ")}
    more = {"settings": run["settings"], "versions": run["versions"], "seconds": run["durations"]}
    return [_table(facts), f"::::{{dropdown}} Settings, versions, durations\n{_table(more)}\n::::"]


def _table(results: Mapping[str, Any]) -> str:
    """Nested results as a table in a box that scrolls sideways, one row for each number."""
    frame = pd.json_normalize(dict(results), sep=" › ").map(_short).T
    frame.index = frame.index.str.replace("_", " ")
    rows = frame.to_html(header=False, border=0, float_format="{:.4g}".format, na_rep="–")
    return f'<div class="scroll">\n{rows}\n</div>'


def _short(value: Any) -> Any:
    if isinstance(value, list) and len(value) > 8:
        return f"({len(value):,} values, not shown)"
    return float("nan") if value is None else value


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, with web addresses made into links."""
    parts = re.split(r"(https?://[^\s<>()\"']*[\w/])", " ".join(text.split()))
    parts[::2] = [re.sub(r"([\\`*_{}\[\]<>$|#~^&])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"<{part}>" for part in parts[1::2]]
    return "".join(parts)
