"""JupyterLab for the chapters: its settings, its first page, and what it must know of the book."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cellaug.book.chapter import (
    CHAPTERS,
    build_folder,
    notebook_file,
    pages,
    project_root,
    recorded_results,
)
from cellaug.book.run import NEEDS
from cellaug.files import write_atomically

START = "00_start.md"
"""The first page, in ``notebooks/``; made anew at each start, so git does not keep it."""

SETTINGS = {
    "@jupyterlab/docmanager-extension:plugin": {
        "defaultViewers": {"python": "Jupytext Notebook", "markdown": "Markdown Preview"}
    },
    "@jupyterlab/notebook-extension:tracker": {"autoStartDefaultKernel": True},
    "@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"},
}
"""A .py file opens as a notebook, at once with Python, the first page as text; no news."""


def start(options: Sequence[str]) -> None:
    """Run JupyterLab in ``notebooks/`` until it is stopped; `options` are its own, of its command.

    Settings and the extension ``lab.js`` are in a temporary folder, so that nothing is installed.
    """
    from jupyterlab.labapp import LabApp

    folder = project_root() / "notebooks"
    write_atomically(folder / START, start_page().encode())
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        write_extension(place / "labextensions" / "cellaug")
        (place / "labconfig").mkdir()
        settings = place / "labconfig" / "default_setting_overrides.json"
        settings.write_text(json.dumps(SETTINGS))
        for name, first in {
            "JUPYTER_PATH": place, "JUPYTER_CONFIG_PATH": place, "PYTHONPATH": folder,
        }.items():  # fmt: skip
            os.environ[name] = os.pathsep.join([str(first), *filter(None, [os.environ.get(name)])])
        usual = [f"--ServerApp.root_dir={folder}", f"--LabApp.default_url=/lab/tree/{START}"]
        usual += ["--KernelSpecManager.allowed_kernelspecs=python3"]  # that of this environment
        usual += ["--LanguageServerManager.autodetect=False"]  # it lists all that are missing
        # A container often has no other user than root.
        LabApp.launch_instance([*usual, "--allow-root", *options])


def write_extension(folder: Path) -> None:
    """Write the prebuilt extension that JupyterLab loads: ``lab.js`` and what it knows."""
    (folder / "static").mkdir(parents=True)
    script = resources.files("cellaug.book").joinpath("lab.js").read_bytes()
    (folder / "static" / "lab.js").write_bytes(script)
    (folder / "static" / "book.json").write_text(json.dumps(book_facts()))
    build = {"load": "static/lab.js", "extension": "./extension"}
    about = {"name": "cellaug", "version": "0", "jupyterlab": {"extension": True, "_build": build}}
    (folder / "package.json").write_text(json.dumps(about))


def book_facts() -> dict[str, dict[str, Any]]:
    """What the chapters' references stand for: figures, citations, equations, terms, pages."""
    texts = {path.stem: path.read_text("utf-8") for path in (project_root() / "book").glob("*.md")}
    notebooks = {name: notebook_file(name).read_text("utf-8") for name in pages()}
    named = {name: {"title": title(text), "file": ""} for name, text in texts.items()}
    named |= {
        name: {"title": title(text), "file": f"{name}.py"} for name, text in notebooks.items()
    }
    # Pages that are generated with the HTML.
    named |= {"recorded_results": {"title": "Recorded results", "file": ""}}
    named |= {"built_from": {"title": "Built from", "file": ""}}
    return {
        "figures": figure_numbers(),
        "citations": citations(project_root() / "book" / "references.bib"),
        "equations": equations([*texts.values(), *notebooks.values()]),
        "terms": terms(texts["glossary"]),
        "pages": named,
    }


def title(text: str) -> str:
    """The first heading of a page in Markdown or of a chapter."""
    found = re.search(r"(?m)^# # (.+)", text) or re.search(r"(?m)^# (.+)", text)
    return found[1] if found else ""


def figure_numbers() -> dict[str, str]:
    """The numbers that the HTML book gives to the chapters' figures, by their names."""
    import jupytext

    found = {}
    for chapter in CHAPTERS:
        cells = jupytext.read(notebook_file(chapter)).cells
        figures = filter(None, (cell.metadata.get("mystnb", {}).get("figure") for cell in cells))
        for number, figure in enumerate(figures, 1):
            found[figure["name"]] = f"Fig. {int(chapter[:2])}.{number}"
    return found


def citations(path: Path) -> dict[str, dict[str, str]]:
    """For each key of a BibTeX file: authors and year, the title, and an address or ""."""
    from pybtex.database import parse_file
    from pybtex.richtext import Text

    found = {}
    for key, entry in parse_file(str(path)).entries.items():
        people = entry.persons.get("author") or entry.persons.get("editor") or []
        parts = (" ".join(who.prelast_names + who.last_names) for who in people)
        names = [str(Text.from_latex(part)) for part in parts]
        who = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
        address = entry.fields.get("url", "")
        if doi := entry.fields.get("doi"):
            address = f"https://doi.org/{doi}"
        elif eprint := entry.fields.get("eprint"):
            address = f"https://arxiv.org/abs/{eprint}"
        text = f"{who} {entry.fields.get('year', '')}".strip()
        heading = str(Text.from_latex(entry.fields["title"]))
        found[key] = {"text": text, "title": heading, "url": address}
    return found


def equations(texts: Sequence[str]) -> dict[str, str]:
    r"""The TeX of each equation with a ``\tag``, by its number."""
    plain = "\n".join(re.sub(r"(?m)^# ?", "", text) for text in texts)
    blocks = re.findall(r"\$\$((?:[^$]|\$(?!\$))+)\$\$", plain)
    tag = re.compile(r"\s*\\tag\{([0-9A-Za-z.]+)\}")
    return {found[1]: tag.sub("", text).strip() for text in blocks if (found := tag.search(text))}


def terms(glossary: str) -> dict[str, str]:
    """The glossary's definitions by term, in lower case."""
    found: dict[str, str] = {}
    for heads, body in re.findall(r"((?:^[^\s:#].*\n)+)((?:^  .*\n)+)", glossary, re.MULTILINE):
        words = re.sub(r"\{\w+\}`([^`<]*?)(?: *<[^>]*>)?`", r"\1", " ".join(body.split()))
        found |= {head.lower(): words for head in heads.splitlines()}
    return found


def start_page() -> str:
    """The first page in JupyterLab as Markdown: the chapters, what they need and how long."""
    measured = durations()
    heads = ["chapter", "reads from", *measured]
    rows = [heads, ["---"] * len(heads)]
    for name in CHAPTERS:
        needed = ", ".join(need[:2] for need in NEEDS.get(name, ())) or "no other"
        took = [minutes(times.get(name)) for times in measured.values()]
        number, text = name[:2], title(notebook_file(name).read_text("utf-8"))
        rows.append([f"[{number} {text}]({name}.py)", needed, *took])
    record = [name for name in pages() if name not in CHAPTERS]
    links = (f"[{title(notebook_file(n).read_text('utf-8'))}]({n}.py)" for n in record)
    words = {
        "table": "\n".join(f"| {' | '.join(row)} |" for row in rows),
        "record": ", ".join(links),
        "there": AT_HAND if is_built() else MISSING,
    }
    return PAGE.format(**words)


def minutes(seconds: float | None) -> str:
    """Seconds as a number of minutes for a table; a dash for none."""
    return "–" if seconds is None else f"{seconds / 60:.0f}" if seconds > 60 else "< 1"


def is_built() -> bool:
    """Whether the book's own chapters have been run under the profile of the parameter cells."""
    folder = build_folder("demo", book=True) / "artifacts"
    return all((folder / name / "metrics.json").is_file() for name in CHAPTERS)


def durations() -> dict[str, Mapping[str, float]]:
    """Seconds of each chapter: of the last run on this machine, and of the recorded ones."""
    found: dict[str, Mapping[str, float]] = {}
    here = build_folder("demo", book=True) / "metrics.json"
    if here.is_file():
        found["minutes here"] = json.loads(here.read_text())["durations"]
    for profile, run in recorded_results().items():
        machine = run["device"].split(", Keras")[0]
        found[f"minutes, `{profile}`, {machine}"] = run["durations"]
    return found


AT_HAND = """Every chapter can be opened first: the book has been run here, and a chapter reads
what it needs from that run, or from yours where you have run the earlier chapter yourself."""

MISSING = """The book has not been run here yet. Go through the chapters in order, since most read
what earlier ones have made; or run `cellaug run --profile demo` in a terminal, then open any."""

PAGE = """# Start here

Double-click a chapter at the left, or follow a link:

{table}

{there}

- Run a cell with **Shift + Enter**, all cells with *Run → Run All Cells*.
- The values of a chapter are in its cell *Parameters*. Change one and run the chapter again.
  The change is saved in the chapter's file; `git restore notebooks` takes back all changes.
- While a network trains you see nine of its cells and the losses after every epoch, and the time
  that is left. If you interrupt it, the next run of the cell goes on from the last checkpoint.
- What you run here is kept in `build/lab/`. The book's own results are never replaced.
- Cells that only prepare or draw are folded: click on their three dots.

What long runs found is on the pages on record: {record}.
"""
