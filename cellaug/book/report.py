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

from cellaug.book.chapter import CHAPTERS, pages, project_root, recorded_results
from cellaug.errors import ReportError
from cellaug.files import atomic_folder

import nbformat
import pandas as pd
import yaml

BANNER = 'Demo. The "cells" in this copy are computer drawings. '
BANNER += "Only results marked recorded or trained on PBC are about real blood."
CHANGED = "The chapters, or code that they use, have changed since this run was recorded."
RECORDED = "Runs that were kept, as they were recorded: the settings, the machine, the results. "
RECORDED += "They are not of this build; [](built_from.md) says what this build was."


def build_html(build: Path, run: Mapping[str, Any]) -> Path:
    """Build the HTML book in ``<build>/html``, whole or not at all, and return its first page.

    `build` holds the executed notebooks, `run` is what `merge_metrics` returned. Raises ReportError
    where Jupyter Book warns of anything, BookError for a recorded result that cannot be read.
    """
    html = build.absolute() / "html"
    generated = {"built_from.md": facts_page(run), "recorded_results.md": results_page()}
    config = yaml.safe_load((project_root() / "book" / "_config.yml").read_text(encoding="utf-8"))
    config["parse"]["myst_substitutions"] = {"built": _built_line(run)}
    if run["chapters"][CHAPTERS[0]]["phantom"]:
        config["html"]["announcement"] = BANNER
    generated["_config.yml"] = yaml.safe_dump(config)
    with TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        unused = shutil.ignore_patterns("_build", "results")
        shutil.copytree(project_root() / "book", source, ignore=unused)
        for name, text in generated.items():
            (source / name).write_text(text, encoding="utf-8")
        for name in pages():
            (source / name).parent.mkdir(exist_ok=True)
            notebook = nbformat.read(build / "notebooks" / f"{name}.ipynb", as_version=4)
            for cell in notebook.cells:
                tags = cell.metadata.get("tags", ())
                if "parameters" in tags:
                    cell.source = f"# Defaults; the values of this run follow.\n{cell.source}"
                elif "injected-parameters" in tags:
                    cell.source = cell.source.replace("# Parameters", "# This run", 1)
            nbformat.write(notebook, source / f"{name}.ipynb")
        rendered = _render(source)
        unused = shutil.ignore_patterns("a11y", "localization", "MathML", "SVG")
        with atomic_folder(html) as target:
            shutil.copytree(rendered, target, dirs_exist_ok=True)
            shutil.copyfile(target / "intro.html", target / "index.html")  # no mere redirection
            # Equations need no network.
            with resources.as_file(resources.files("jupyter_server_mathjax") / "static") as mathjax:
                shutil.copytree(mathjax, target / "_static" / "mathjax", ignore=unused)
    return html / "index.html"


def _render(source: Path) -> Path:
    """Let Jupyter Book render a folder, every warning an error; returns the folder of its pages."""
    # jupyter_book cannot be run with -m; this is what its console script does.
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(source), "-W", "--keep-going", "-n"]
    environment = {**os.environ, "PYTHONUTF8": "1", "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr).replace(f"{source}/", "")
    # -W alone lets some warnings slip through.
    found = [line for line in log.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL):", line)]
    if done.returncode or found:
        reasons = "\n".join(dict.fromkeys(found)) or log[-4000:]
        raise ReportError(f"Jupyter Book did not build the book cleanly:\n{reasons}")
    return source / "_build" / "html"


def facts_page(run: Mapping[str, Any]) -> str:
    """The page "Built from" as Markdown: on what this copy's run stands."""
    data = run["chapters"][CHAPTERS[0]]
    parts = ["# Built from", _built_line(run), _plain(data["credit"])]
    parts += [f":::{{warning}}\n{BANNER}\n:::"] if data["phantom"] else []
    return "\n\n".join([*parts, *_circumstances(run)]) + "\n"


def results_page() -> str:
    """The page "Recorded results" as Markdown: what was set, on what it ran, what came out."""
    records, parts = recorded_results(), ["# Recorded results"]
    parts += [RECORDED if records else "No run has been recorded with this copy of the book."]
    for profile, record in records.items():
        parts += [f"## {_plain(profile)}", f"Made by commit {_plain(record['commit'])}."]
        parts += [f":::{{warning}}\n{CHANGED}\n:::"] if record["changed"] else []
        parts += _circumstances(record)
        for chapter, metrics in record["chapters"].items():
            parts += [f"### {_plain(chapter).replace('_', ' ')}", _table(metrics)]
    return "\n\n".join(parts) + "\n"


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
