"""The HTML book: the pages of ``book/``, the six executed chapters and two generated pages.

``build_html`` puts everything into a temporary folder, lets Jupyter Book render it with execution
switched off and every warning an error, adds MathJax so that equations need no network, and moves
the finished book into place.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from cellaug.book import CHAPTERS, project_root

import nbformat
import yaml

BANNER = "Drawn phantom cells, not real ones: nothing on this page says anything about blood."
FACTS = ("profile", "data", "phantom", "date")  # the facts without which no page can be written
RECORD = ("profile", "date", "settings", "chapters")  # the same for a metrics.json
LONGEST_LIST = 8  # values of a list that are shown; a longer one is reduced to its length
WIDEST_TABLE = 7  # columns of a table made from a dictionary of dictionaries

_WIDGET = "application/vnd.jupyter.widget-view+json"
_WIDGET_NOTE = "*An interactive form stands here when the chapter is opened in JupyterLab.*"
_MATHJAX_PARTS = (  # what an HTML-CSS rendering of TeX can ask for; menus, speech, SVG stay behind
    "LICENSE",
    "MathJax.js",
    "config/TeX-AMS-MML_HTMLorMML-full.js",
    "extensions/HTML-CSS",
    "extensions/TeX",
    "fonts",
    "jax/element",
    "jax/input",
    "jax/output/HTML-CSS",
    "localization/en",
)


class ReportError(RuntimeError):
    """The book could not be built; the message lists what has to be mended."""


def build_html(notebooks: Path, html: Path, facts: Mapping[str, Any], results: Path) -> Path:
    """Build the HTML book and return its first page.

    Args:
        notebooks: folder with the six executed chapters, ``01_data.ipynb`` and so on.
        html: folder that becomes the book. An earlier book there is replaced, and only once the
            new one is complete.
        facts: what the book was built from, shown on the page "Built from". Needs ``profile``,
            ``data`` (the name of the image set), ``phantom`` (bool: a banner on every page says
            that the cells are drawn) and ``date``; everything else is shown in the order given.
        results: folder with recorded runs, ``<run>/metrics.json`` each, shown as recorded.

    Raises:
        ReportError: a chapter is missing, failed or was not run throughout; ``facts`` or a
            ``metrics.json`` lacks an entry or cannot be read; or Jupyter Book warned of anything.
        cellaug.book.BookError: the book's own pages are not found, see `project_root`.
    """
    html = Path(html).absolute()
    book = project_root() / "book"
    _require(facts, FACTS, "facts")
    pages = {"built_from.md": facts_page(facts), "recorded_results.md": results_page(results)}
    chapters = {name: _chapter(notebooks / f"{name}.ipynb") for name in CHAPTERS}

    html.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{html.name}-", dir=html.parent) as scratch:
        source = Path(scratch) / "source"
        shutil.copytree(book, source, ignore=shutil.ignore_patterns("_build", "results"))
        for name, text in pages.items():
            (source / name).write_text(text, encoding="utf-8")
        for name, notebook in chapters.items():
            nbformat.write(notebook, source / f"{name}.ipynb")
        config = yaml.safe_load((book / "_config.yml").read_text(encoding="utf-8"))
        config["parse"]["myst_substitutions"] = {"built": _built_line(facts)}
        if facts["phantom"]:
            config["html"]["announcement"] = BANNER
        (source / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
        built = _render(source, Path(scratch) / "out")
        _add_mathjax(built / "_static" / "mathjax")
        _replace(built, html)
    return html / "index.html"


def facts_page(facts: Mapping[str, Any]) -> str:
    """Return the page "Built from" as Markdown: plain facts in one table, nested ones in their own.

    A ``credit`` (licence and source of the images) stands above the table, ``seconds`` become the
    duration.
    """
    lines = ["# Built from", "", "What this copy of the book was computed from, and on what.", ""]
    if facts["phantom"]:
        lines += [f":::{{warning}}\n{BANNER}\n:::", ""]
    if facts.get("credit"):
        lines += [_cell(facts["credit"]), ""]
    plain = {key: value for key, value in facts.items() if not isinstance(value, Mapping)}
    plain.pop("credit", None)
    if "seconds" in plain:
        plain = {**plain, "duration": _duration(plain["seconds"])}
        del plain["seconds"]
    lines += _table(("", ""), [(_words(key), _value(value)) for key, value in plain.items()])
    for key, value in facts.items():
        if isinstance(value, Mapping):
            lines += [f"## {_title(key)}", ""]
            lines += _table(("", ""), [(name, _value(v)) for name, v in _flat(value)])
    return "\n".join(lines) + "\n"


def results_page(results: Path) -> str:
    """Return the page "Recorded results" as Markdown, one section for each ``*/metrics.json``.

    Nested values are flattened to rows, a dictionary of like dictionaries becomes a table of its
    own, and long lists are reduced to their length.

    Raises:
        ReportError: a file is not JSON or lacks ``profile, date, settings`` or ``chapters``.
    """
    records = {path.parent.name: _record(path) for path in sorted(results.glob("*/metrics.json"))}
    lines = ["# Recorded results", ""]
    if not records:
        return "\n".join([*lines, "No run has been recorded with this copy of the book.", ""])
    lines += [
        "Runs that were kept, as they were recorded: what was set, on what it ran, what came out. "
        "They are not of this build; [](built_from.md) says what this build was.",
        "",
    ]
    lines += _table(
        ("run", "profile", "date", "data", "device"),
        [
            (
                run,
                _value(record["profile"]),
                _value(record["date"]),
                _brief(record.get("data")),
                _brief(record.get("device")),
            )
            for run, record in records.items()
        ],
    )
    for run, record in records.items():
        lines += [f"## {_cell(run)}", ""]
        for chapter, metrics in record["chapters"].items():
            lines += [f"### {_title(chapter)}", "", *_metrics(metrics)]
        for key in ("settings", "data", "device", "versions", "durations"):
            value = record.get(key)
            if value:
                rows = _flat(value) if isinstance(value, Mapping) else [(key, value)]
                title = "Durations in seconds" if key == "durations" else _title(key)
                lines += [f"::::{{dropdown}} {title}"]
                lines += [*_table(("", ""), [(name, _value(v)) for name, v in rows]), "::::", ""]
    return "\n".join(lines) + "\n"


def _require(given: Mapping[str, Any], keys: tuple[str, ...], what: str) -> None:
    missing = [key for key in keys if key not in given]
    if missing:
        raise ReportError(f"{what}: no entry {', '.join(missing)}; needed are {', '.join(keys)}")


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("chapters", {}), dict):
        raise ReportError(f"{path}: expected an object whose entry chapters is an object too")
    _require(record, RECORD, str(path))
    return record


def _built_line(facts: Mapping[str, Any]) -> str:
    drawn = ", drawn cells and not real ones" if facts["phantom"] else ""
    profile, data, date = (_cell(facts[key]) for key in ("profile", "data", "date"))
    return f"This copy shows a run of {date} under the profile *{profile}* on *{data}*{drawn}."


# ---------------------------------------------------------------------------------- chapters


def _chapter(path: Path) -> nbformat.NotebookNode:
    """Read an executed chapter and put a note where it has a widget."""
    if not path.is_file():
        raise ReportError(f"{path} is missing: run the chapters before building the book")
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type != "code":
            continue
        tags = cell.metadata.setdefault("tags", [])
        if cell.source.strip() and cell.execution_count is None:
            raise ReportError(f"{path}: cell {number} was not run; run the whole chapter again")
        for output in cell.outputs:
            if output.output_type == "error":
                raise ReportError(f"{path}: cell {number} ended in {output.ename}: {output.evalue}")
            if _WIDGET in output.get("data", {}):
                output.data = nbformat.from_dict({"text/markdown": _WIDGET_NOTE})
        if "injected-parameters" in tags and "hide-input" not in tags:
            tags.append("hide-input")
    return notebook


# ----------------------------------------------------------------------------------- rendering


def _render(source: Path, out: Path) -> Path:
    # jupyter_book cannot be run with -m; this is what its console script does.
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(source), "--path-output", str(out), "-W", "--keep-going", "-n"]
    environment = {**os.environ, "PYTHONUTF8": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).replace(f"{source}/", "")
    # Warnings are errors (-W); the log is read as well because a warning must not slip through.
    found = [line for line in log.splitlines() if re.search(r"\b(WARNING|ERROR|CRITICAL):", line)]
    built = out / "_build" / "html"
    if done.returncode or found or not (built / "index.html").is_file():
        told = "\n".join(dict.fromkeys(found)) or log[-4000:]
        raise ReportError(f"Jupyter Book did not build the book cleanly:\n{told}")
    # Jupyter Book makes an index.html that only leads on to the cover; let it be the cover.
    shutil.copyfile(built / "intro.html", built / "index.html")
    return built


def _add_mathjax(target: Path) -> None:
    static = resources.files("jupyter_server_mathjax") / "static"
    with resources.as_file(static) as origin:
        for part in _MATHJAX_PARTS:
            place = target / part
            place.parent.mkdir(parents=True, exist_ok=True)
            if (origin / part).is_dir():
                shutil.copytree(origin / part, place)
            else:
                shutil.copy2(origin / part, place)


def _replace(new: Path, target: Path) -> None:
    """Put the folder ``new`` in the place of ``target``; the old one comes back if that fails."""
    if not target.exists():
        new.replace(target)
        return
    aside = new.with_name("old")
    target.replace(aside)
    try:
        new.replace(target)
    except OSError:
        aside.replace(target)
        raise


# -------------------------------------------------------------------------------- Markdown bits


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return a Markdown table in a box that scrolls sideways; an empty head is not shown."""
    lines = [
        ":::{div} scroll" + ("" if any(head) else " bare"),
        "| " + " | ".join(head) + " |",
        "|" + " --- |" * len(head),
    ]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return [*lines, ":::", ""]


def _metrics(metrics: Any) -> list[str]:
    """Return the tables of one chapter's figures of merit."""
    if not isinstance(metrics, Mapping):
        return _table(("", ""), [("value", _value(metrics))])
    tables = {key: value for key, value in metrics.items() if _is_table(value)}
    rest = {key: value for key, value in metrics.items() if key not in tables}
    lines = []
    if rest:
        lines += _table(("", ""), [(name, _value(value)) for name, value in _flat(rest)])
    for key, value in tables.items():
        columns = list(next(iter(value.values())))
        rows = [
            (_cell(name), *(_value(row[column]) for column in columns))
            for name, row in value.items()
        ]
        lines += _table((_words(key), *map(_words, columns)), rows)
    return lines


def _is_table(value: Any) -> bool:
    """Tell whether a value is a dictionary of at least two flat dictionaries with the same keys."""
    if not isinstance(value, Mapping) or len(value) < 2:
        return False
    rows = list(value.values())
    if not all(isinstance(row, Mapping) and row for row in rows):
        return False
    flat = not any(isinstance(cell, Mapping | list) for row in rows for cell in row.values())
    return flat and len(rows[0]) < WIDEST_TABLE and all(set(row) == set(rows[0]) for row in rows)


def _flat(value: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of nested dictionaries as (path in words, value)."""
    leaves = []
    for key, entry in value.items():
        name = f"{before} › {_words(key)}" if before else _words(key)
        leaves += _flat(entry, name) if isinstance(entry, Mapping) else [(name, entry)]
    return leaves


def _words(key: Any) -> str:
    return _cell(str(key).replace("_", " "))


def _title(key: Any) -> str:
    words = _words(key)
    return words[:1].upper() + words[1:]


def _brief(value: Any) -> str:
    """Return one cell for a value that may be nested: its ``name`` if it has one, or its parts."""
    if isinstance(value, Mapping):
        leaves = [str(v) for _, v in _flat(value)]
        return _cell(value.get("name") or ", ".join(leaves))
    return "" if value is None else _value(value)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours} h " if hours else "") + f"{minutes} min {seconds} s"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        if len(value) > LONGEST_LIST or any(isinstance(v, list | Mapping) for v in value):
            return f"*({_count(value):,} values, not shown)*"
        return ", ".join(_value(entry) for entry in value)
    return _cell(value)


def _count(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_count(entry) for entry in value.values())
    return sum(_count(entry) for entry in value) if isinstance(value, list | tuple) else 1


def _cell(value: Any) -> str:
    """Return text that Markdown shows as it is, with web addresses made into links."""
    parts = re.split(r"(https?://[^\s<>()\"']*[\w/])", " ".join(str(value).split()))
    escaped = [re.sub(r"([\\`*_{}\[\]<>$|#~^&])", r"\\\1", part) for part in parts]
    for index in range(1, len(parts), 2):
        escaped[index] = f"<{parts[index]}>"
    return "".join(escaped)
