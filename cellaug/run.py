"""Run chapters through papermill, in order, and only those that need it.

doit decides what needs it: a chapter is run again when its code, its parameters, its data, the
results of a chapter that it builds on, or recorded results or shipped weights that it shows have
changed since it last succeeded.
"""

import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any, TextIO

from cellaug.book import (
    CHAPTERS,
    BookError,
    build_folder,
    declared_parameters,
    merge_metrics,
    project_root,
    result_file,
    versions,
)

import yaml
from doit.dependency import Dependency, JsonDB
from doit.task import Task
from doit.tools import config_changed

# Which chapters' artifacts a chapter reads.
NEEDS = {
    "01_data": (),
    "02_vanilla_gan": ("01_data",),
    "03_ac_gan": ("01_data", "02_vanilla_gan"),
    "04_latent_space": ("01_data", "02_vanilla_gan"),
    "05_classifier": ("01_data", "03_ac_gan"),
    "06_discussion": CHAPTERS[:-1],
}

# Chapters that show cells or cards of the package's weights, or measure with its extractor.
SHOW_WEIGHTS = ("03_ac_gan",)

# Files under book/results that a chapter shows.
RECORDED = {
    "01_data": ("data-benchmark.json",),
    "02_vanilla_gan": ("train-benchmark.json",),
    "03_ac_gan": ("ladder-*", "weights-*"),
    "06_discussion": ("*/metrics.json", "ladder-*", "weights-*"),
}


# Nothing to read: white space, and what TensorFlow says on being loaded, whatever the log level.
_NOTHING = re.compile(r"(\s*\n|WARNING: All log messages before absl.*\n|[IW]\d{4} .*\n)*")


class ChapterFailed(Exception):
    """A cell of a chapter raised; the message names chapter, cell and error."""


def load_profile(source: str, settings: Iterable[str] = ()) -> tuple[str, dict[str, Any]]:
    """A profile's name and parameters.

    Args:
        source: the name of a file in ``notebooks/profiles`` without its ending, or the path of a
            YAML file of your own.
        settings: further ``key=value`` pairs, values as YAML has them.

    Raises:
        BookError: for an unknown profile, a file that is not a flat YAML mapping, a pair without
            ``=``, or a key that no chapter declares.

    """
    folder = project_root() / "notebooks" / "profiles"
    path = Path(source) if source.endswith((".yaml", ".yml")) else folder / f"{source}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise BookError(f"no profile '{source}': give one of {known}, or the path of a YAML file")
    try:
        profile = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise BookError(f"{path} is not YAML: {error}") from error
    if not isinstance(profile, dict):
        raise BookError(f"{path}: expected lines of the form 'key: value'")
    for pair in settings:
        key, equals, value = pair.partition("=")
        if not equals:
            raise BookError(f"--set {pair}: expected key=value")
        profile[key.strip()] = yaml.safe_load(value)
    profile["profile"] = path.stem

    declared = {chapter: declared_parameters(chapter) for chapter in CHAPTERS}
    known = {key: value for parameters in declared.values() for key, value in parameters.items()}
    unknown = sorted(set(profile) - set(known))
    if unknown:
        raise BookError(
            f"no chapter declares {', '.join(unknown)}: the keys are {', '.join(sorted(known))}"
        )
    for key, value in profile.items():
        if not isinstance(value, str | int | float | bool):
            raise BookError(f"{key}: expected a plain value, found {value!r}")
        default = known[key]
        fits = (
            isinstance(value, int | float) and not isinstance(value, bool)
            if isinstance(default, float)
            else type(value) is type(default)
        )
        if not fits:
            raise BookError(
                f"{key}: expected a value such as {default!r}, found {value!r} "
                f"({type(value).__name__}); numbers like 1e-5 are written 1.0e-5 in YAML"
            )
        if isinstance(default, float):
            profile[key] = float(value)
    return path.stem, profile


def chapter_parameters(chapter: str, profile: Mapping[str, Any]) -> dict[str, Any]:
    """The profile's values for the keys that this chapter declares."""
    return {key: profile[key] for key in declared_parameters(chapter) if key in profile}


def code_of(chapter: str) -> list[str]:
    """The chapter's file and every module of this package that it imports, directly or not."""
    package = Path(__file__).parent
    finder = ModuleFinder(path=[str(package.parent)])
    path = project_root() / "notebooks" / f"{chapter}.py"
    finder.run_script(str(path))
    modules = {module.__file__ for module in finder.modules.values() if module.__file__}
    return sorted({str(path), *(m for m in modules if Path(m).is_relative_to(package))})


def data_state(profile: Mapping[str, Any]) -> str:
    """A hash over names, sizes and times of the files of the profile's data set ('' if drawn)."""
    from cellaug.data import locate

    source = profile.get("data", declared_parameters("01_data")["data"])
    if source == "phantom":
        return ""
    state = hashlib.sha256()
    place = locate(source)
    for folder, folders, files in os.walk(place.parent if place.is_file() else place):
        folders.sort()
        for name in sorted(files):
            # A broken link has no target to ask; what is wrong with it is the chapter's to say.
            stat = os.lstat(Path(folder) / name)
            state.update(f"{folder}/{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return state.hexdigest()


def chapter_task(chapter: str, profile: Mapping[str, Any]) -> Task:
    """What the chapter depends on and makes, in doit's terms."""
    build = build_folder(profile["profile"])
    inputs = [str(build / "artifacts" / need / "metrics.json") for need in NEEDS[chapter]]
    for shown in RECORDED.get(chapter, ()):
        inputs += [str(p) for p in sorted(result_file("").glob(shown))]
    if chapter in SHOW_WEIGHTS:
        shipped = Path(__file__).parent / "weights"
        inputs += [str(p) for p in sorted(shipped.rglob("*")) if p.suffix in (".npz", ".json")]
    config = {"parameters": chapter_parameters(chapter, profile), "versions": versions()}
    if chapter == CHAPTERS[0]:
        config["data"] = data_state(profile)
    task = Task(
        chapter,
        actions=None,
        file_dep=[*code_of(chapter), *inputs],
        targets=[
            str(build / "notebooks" / f"{chapter}.ipynb"),
            str(build / "artifacts" / chapter / "metrics.json"),
        ],
        uptodate=[config_changed(config)],
    )
    task.init_options()
    return task


def run(
    name: str, profile: Mapping[str, Any], chapters: Iterable[str] = (), force: bool = False
) -> dict[str, Any]:
    """Run a profile's chapters, those first that the asked ones need.

    Args:
        name: the profile's name.
        profile: its parameters, from `load_profile`.
        chapters: chapter names or their numbers, such as ``"03"``; all of them if empty.
        force: run the asked chapters even where nothing has changed.

    Returns:
        What `cellaug.book.merge_metrics` gathers at the end.

    Raises:
        BookError: for an unknown chapter.
        ChapterFailed: where a cell raises; later chapters are not run, nothing of it is kept.

    """
    asked = [_chapter(chapter) for chapter in chapters] or list(CHAPTERS)
    wanted = _with_needs(asked)
    build = build_folder(name)
    build.mkdir(parents=True, exist_ok=True)
    state = Dependency(JsonDB, str(build / ".doit.json"))
    try:
        for chapter in wanted:
            task = chapter_task(chapter, profile)
            current = state.get_status(task, None).status == "up-to-date"
            if current and not (force and chapter in asked):
                print(f"{chapter}: nothing has changed, kept as it is", flush=True)
                continue
            state.remove(chapter)
            state.backend.dump()
            started, code = time.monotonic(), _stamps(task)
            print(f"{chapter}: running", flush=True)
            execute(chapter, name, chapter_parameters(chapter, profile))
            took = f"{time.monotonic() - started:.0f} s"
            if _stamps(task) != code:
                # What ran is not what lies there now, so it must not count as up to date.
                print(f"{chapter}: done in {took}, but its code changed meanwhile", flush=True)
                continue
            task.save_extra_values()
            state.save_success(task)
            state.backend.dump()
            print(f"{chapter}: done in {took}", flush=True)
    finally:
        state.close()
    return merge_metrics(name)


def outdated(name: str, profile: Mapping[str, Any]) -> list[str]:
    """The chapters that `run` would run."""
    known = build_folder(name) / ".doit.json"
    if not known.is_file():
        return list(CHAPTERS)
    state = Dependency(JsonDB, str(known))
    try:
        tasks = [chapter_task(chapter, profile) for chapter in CHAPTERS]
        return [t.name for t in tasks if state.get_status(t, None).status != "up-to-date"]
    finally:
        state.close()


def _stamps(task: Task) -> dict[str, int]:
    return {path: Path(path).stat().st_mtime_ns for path in task.file_dep}


def _chapter(text: str) -> str:
    found = [c for c in CHAPTERS if text in (c, c[:2], c[1:2])]
    if not found:
        raise BookError(f"no chapter '{text}': there are {', '.join(CHAPTERS)}")
    return found[0]


def _with_needs(asked: Iterable[str]) -> list[str]:
    wanted, queue = set(), list(asked)
    while queue:
        chapter = queue.pop()
        wanted.add(chapter)
        queue.extend(NEEDS[chapter])
    return sorted(wanted)


def execute(chapter: str, name: str, parameters: Mapping[str, Any]) -> Path:
    """Execute one chapter with papermill; the executed notebook appears only if all of it ran.

    Raises:
        ChapterFailed: where a cell raises. The notebook up to there is kept under ``failed/``.

    """
    import jupytext
    import nbformat
    import papermill

    build = build_folder(name)
    final = build / "notebooks" / f"{chapter}.ipynb"
    failed = build / "failed" / f"{chapter}.ipynb"
    source = build / "running" / f"{chapter}.ipynb"
    running = source.with_name(f"{chapter}.running.ipynb")
    for path in (final, failed, source):
        path.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    notebook = jupytext.read(project_root() / "notebooks" / f"{chapter}.py")
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    nbformat.write(notebook, source)
    try:
        with chatter_into(source.with_suffix(".log")) as terminal:
            watched = terminal.isatty()
            papermill.execute_notebook(
                source,
                running,
                parameters=dict(parameters),
                cwd=project_root(),
                progress_bar={"file": terminal, "leave": False, "desc": chapter} if watched else {},
                stdout_file=LastLine(terminal) if watched else None,
                coalesce_streams=True,  # of a progress line only its last state stays
            )
    except papermill.PapermillExecutionError as error:
        running.replace(failed)
        raise ChapterFailed(
            f"chapter {chapter} failed in cell {error.exec_count or error.cell_index}, "
            f"which begins\n    {error.source.strip().splitlines()[0]}\n"
            f"{error.ename}: {error.evalue}\n"
            f"The notebook up to there, with the traceback: {failed}"
        ) from error
    executed = nbformat.read(running, as_version=4)
    tidy(executed)
    nbformat.write(executed, running)
    running.replace(final)
    shutil.rmtree(source.parent)
    return final


class LastLine(io.TextIOBase):
    """Shows the latest line written to it, in place, on a terminal; papermill's bar overwrites it.

    Args:
        terminal: what to write to.
    """

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal

    def write(self, text: str) -> int:
        """Show the last line of the text that is not blank."""
        lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
        if lines:
            width = shutil.get_terminal_size().columns - 1
            self.terminal.write(f"\r\x1b[K{lines[-1][:width]}")
            self.terminal.flush()
        return len(text)


@contextmanager
def chatter_into(log: Path) -> Iterator[TextIO]:
    """Send what a kernel and its libraries write to standard error into a file.

    TensorFlow speaks of the processor and of absent graphics cards before it can be told not to.
    Gives the real standard error, for progress.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with os.fdopen(os.dup(saved), "w") as terminal, log.open("w") as file:
            os.dup2(file.fileno(), 2)
            with redirect_stderr(terminal):
                yield terminal
            if terminal.isatty():
                terminal.write("\r\x1b[K")
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def tidy(notebook: Any) -> None:
    """Drop what is not worth reading of an executed notebook, in place.

    That is what libraries say on loading, blanks at the ends of lines, and papermill's record of
    file paths and times, which differ on every machine.
    """
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)  # a form is of use only to a running kernel
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if "outputs" in cell:
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = "\n".join(line.rstrip() for line in output.text.split("\n"))
            cell.outputs = [o for o in cell.outputs if not _NOTHING.fullmatch(o.get("text", "-"))]


def book_facts(name: str) -> dict[str, Any]:
    """What the cover page says of a run, from its ``metrics.json`` and chapter 01's record."""
    merged = merge_metrics(name)
    data = merged["chapters"]["01_data"]
    return {
        "profile": name,
        "data": data["data_name"],
        "data_hash": merged["data"],
        "images": data["images"],
        "credit": data["credit"],
        "phantom": data["phantom"],
        "seed": merged["settings"]["seed"],
        "date": merged["date"],
        "seconds": sum(merged["durations"].values()),
        "device": merged["device"],
        "versions": merged["versions"],
    }


def build_book(name: str, profile: Mapping[str, Any]) -> Path:
    """Render the executed chapters to ``build/<profile>/html``; returns the path of its index page.

    Raises:
        BookError: where a chapter has not been run, has failed, or is out of date.

    """
    from cellaug.report import build_html

    late = outdated(name, profile)
    if late:
        raise BookError(
            f"{', '.join(late)} not run with the present code, data and settings: "
            f"'cellaug run --profile {name}' first"
        )
    build = build_folder(name)
    return build_html(build / "notebooks", build / "html", book_facts(name), result_file(""))


def summary(merged: Mapping[str, Any]) -> str:
    """One line a chapter with its duration, for the terminal."""
    lines = [f"{chapter:<18}{seconds:8.0f} s" for chapter, seconds in merged["durations"].items()]
    return "\n".join([*lines, f"{'all':<18}{sum(merged['durations'].values()):8.0f} s"])


def parameters_help() -> str:
    """All keys of a profile with the chapters that declare them and their default values."""
    table: dict[str, tuple[Any, list[str]]] = {}
    for chapter in CHAPTERS:
        for key, value in declared_parameters(chapter).items():
            table.setdefault(key, (value, []))[1].append(chapter[:2])
    rows = (f"  {k:<24}{json.dumps(v):<14}{' '.join(c)}" for k, (v, c) in sorted(table.items()))
    return "\n".join(["  key                     default       chapters", *rows])
