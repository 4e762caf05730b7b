"""Run the book's notebooks through papermill, in order, and only those that need it.

doit finds what has changed since: code, parameters, data, weights, recorded and earlier results.
"""

import hashlib
import io
import json
import os
import platform
import re
import shutil
import sys
import time
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TextIO

from cellaug.book import chapter as book
from cellaug.book import check
from cellaug.book.chapter import CHAPTERS, build_folder, declared_parameters, pages
from cellaug.book.source import PACKAGE, code_of
from cellaug.errors import BookError, ChapterFailed, DataError
from cellaug.files import MinuteLines

import pandas as pd
import yaml
from doit.control import TaskControl
from doit.dependency import Dependency, JsonDB
from doit.reporter import ZeroReporter
from doit.runner import Runner
from doit.task import Task
from filelock import FileLock, Timeout

# Which chapters' artifacts a chapter reads. Pages on record read none.
NEEDS = {"02_vanilla_gan": CHAPTERS[:1], "06_discussion": CHAPTERS[:-1]}
NEEDS |= {"03_ac_gan": CHAPTERS[:2], "04_latent_space": CHAPTERS[:2]}
NEEDS |= {"05_classifier": ("01_data", "03_ac_gan")}
# Which files of book/results and which shipped weights a notebook shows or draws with.
RESULTS = {"06_discussion": ["*/metrics.json", "ladder-*", "weights-*", "augmentation/pbc/*"]}
RESULTS |= {"record/augmentation": ["augmentation/pbc/*"]}
RESULTS |= {"record/ladder": ["ladder-*"], "record/weights": ["weights-*", "broken-*"]}
RESULTS |= {key: ["*-benchmark.json"] for key in ("record/benchmarks", "record/scale")}
# Chapter 05 also draws recorded runs, but is not trained again for them; 06 draws the same figure.
WEIGHTS = ("03_ac_gan", "04_latent_space", "05_classifier", "record/expert", "record/weights")
# White space, and what TensorFlow says on being loaded, whatever the log level.
_NOTHING = re.compile(r"(\s*\n|WARNING: All log messages before absl.*\n|[IW]\d{4} .*\n)*")

DIED = "the kernel died, most often for want of memory. Close other programs, or take a smaller "
DIED += "image_size, batch size or depth. The next run resumes from the last checkpoint. "
DIED += "The notebook up to there:"

Values = dict[str, Any]  # of a notebook's parameters or results


def load_profile(
    source: str, settings: Iterable[str] = (), study: str = "", data: bool = False
) -> tuple[str, Values]:
    """A profile's name and parameters; `BookError` names everything that no notebook can use.

    `source`, a file in ``notebooks/profiles`` without its ending, or the path of a YAML file, may
    give keys of all studies; ``key=value`` `settings` only those of `study`, "studies/ladder". The
    path of one's own data becomes absolute: from the file's folder, else from this one. With `data`
    the set is opened, too, if a chapter has to run (`check.data_problems`).
    """
    folder = book.project_root() / "notebooks"
    own = source.endswith((".yaml", ".yml"))
    path = Path(source) if own else folder / "profiles" / f"{source}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in folder.glob("profiles/*.yaml")))
        raise BookError(f"no profile '{source}': give one of {names}, or the path of a YAML file")
    try:
        profile = _yaml(path.read_text("utf-8-sig"), str(path)) or {}
    except UnicodeDecodeError as error:
        raise BookError(f"{path} is not UTF-8 ({error}): save it as a text in UTF-8") from error
    if not isinstance(profile, dict):
        raise BookError(f"{path}: expected lines of the form 'key: value'")
    known = ChainMap(*map(declared_parameters, filter(None, (*pages(), study))))
    studies = (f"studies/{file.stem}" for file in folder.glob("studies/*.py"))
    every = ChainMap(*known.maps, *map(declared_parameters, studies))
    accepted = {*known, *(set(profile) & set(every))}
    typed = dict(map(setting, settings))
    name, places = path.stem, [Path.cwd()] if "data" in typed else [path.parent, Path.cwd()]
    if not study and typed.get("data", (usual := profile.get("data"))) != usual:
        name += "-" + re.sub(r"[^\w.-]+", "-", Path(str(typed["data"])).name)
    profile, problems = profile | typed, []
    if unknown := ", ".join(sorted(set(profile) - accepted)):
        problems = [f"no chapter declares {unknown}: the keys are {', '.join(sorted(known))}"]
    right = {key: profile[key] for key in profile if key in every}
    for key, value in list(right.items()):
        if type(value) is int and type(every[key]) is float:
            profile[key] = right[key] = float(value)
        elif type(value) is not type(every[key]):
            found = f"found {value!r}; numbers like 1e-5 are written 1.0e-5 in YAML"
            problems.append(f"{key}: expected a value such as {every[key]!r}, {found}")
            del right[key]
    problems += check.wrong_values(right if study else {**known, **right})
    if "data" in right:
        try:
            profile["data"] = check.own_data(right["data"], places)
            name = name if study else _own_name(name, profile["data"])
        except DataError as error:
            problems.append(str(error))
    profile["profile"] = name
    if data and not problems and set(CHAPTERS) & set(outdated(name, profile)):
        problems = check.data_problems({**known, **profile}, build_folder(name))
    if problems:
        several = f"{path} and --set: {len(problems)} problems\n  " * (len(problems) > 1)
        raise BookError(several + "\n  ".join(problems))
    return name, profile


def _own_name(name: str, data: str) -> str:
    """The name of a run on these data, with a hash of their place if another set has it already."""
    other = f"{name}-{hashlib.sha256(data.encode()).hexdigest()[:6]}"
    file = build_folder(name) / "artifacts" / CHAPTERS[0] / "metrics.json"
    settings = json.loads(file.read_text())["settings"] if file.is_file() else {}
    return other if settings.get("data", data) != data or build_folder(other).is_dir() else name


def setting(pair: str) -> tuple[str, Any]:
    """The key and the value, as YAML has it, of ``--set key=value``; BookError without both."""
    key, equals, value = pair.partition("=")
    if not equals:
        raise BookError(f"--set {pair}: expected key=value")
    return key.strip(), _yaml(value, f"--set {pair}")


def _yaml(text: str, place: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BookError(f"{place} is not YAML: {error}") from error


def notebook_parameters(name: str, profile: Mapping[str, Any]) -> dict[str, Any]:
    """The profile's values for the keys that this notebook declares."""
    return {key: profile[key] for key in declared_parameters(name) if key in profile}


def data_state(profile: Mapping[str, Any]) -> str:
    """A hash over the images that the profile's set lists, not over other files; "" if drawn."""
    from cellaug.data import open_dataset
    from cellaug.data.dataset import COLUMNS

    source = profile.get("data", declared_parameters(CHAPTERS[0])["data"])
    if source == "phantom":
        return ""
    told = [*COLUMNS, "source_sha256"]  # other columns decide nothing
    rows = open_dataset(source).table.reindex(columns=told).astype(object).to_numpy().tolist()
    return hashlib.sha256(ascii(rows).encode()).hexdigest()


def state_of(name: str, profile: Mapping[str, Any]) -> str:
    """A hash over all that a notebook depends on, but for the results of earlier chapters."""
    files = code_of(book.notebook_file(name))
    for pattern in RESULTS.get(name, ()):
        files += book.result_file("").glob(pattern)
    files += (PACKAGE / "weights").rglob("*.[nj]*") if name in WEIGHTS else []
    # JAX may come with the test packages, and matters only where it computes.
    used = book.versions()
    if os.environ.get("KERAS_BACKEND") != "jax":
        used.pop("jax", None)
    found: list[Any] = [notebook_parameters(name, profile), used]
    found += [data_state(profile)] if name == CHAPTERS[0] else []
    found += sorted((path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _found(file: Path, times: bool) -> Any:
    """What a chapter's record holds, with or without the `times` that it took; None without one."""

    def timeless(pairs: list[tuple[str, Any]]) -> Values:
        return {k: v for k, v in pairs if times or not ("second" in k or k == "date")}

    return json.loads(file.read_text(), object_pairs_hook=timeless) if file.is_file() else None


def _task(name: str, profile: Mapping[str, Any], known: Dependency, force: bool = False) -> Task:
    """A notebook in doit's terms: what it needs comes first, and what it depends on is its state.

    That is its own state with those of the chapters that it reads, and what these found. The
    discussion shows how long they took, too.
    """
    artifacts = build_folder(profile["profile"]) / "artifacts"
    needs = NEEDS.get(name, ())

    def current(task: Task, values: Mapping[str, Any]) -> bool:
        read = [_found(artifacts / each / "metrics.json", name == CHAPTERS[-1]) for each in needs]
        states = [known.get_values(each).get("state") for each in needs]
        # before the run, so that a change during it counts
        content = json.dumps([state_of(name, profile), states, read])
        state = hashlib.sha256(content.encode()).hexdigest()
        task.value_savers.append(lambda: {"state": state})
        return values.get("state") == state and not force

    made = [str(artifacts.with_name("notebooks") / f"{name}.ipynb")]
    made += [str(artifacts / name / "metrics.json")] if name in CHAPTERS else []
    return Task(name, None, task_dep=needs, targets=made, uptodate=[current], meta=profile)


class _Runner(Runner):
    """doit's runner with papermill as the action; says what happens, as it happens."""

    def select_task(self, node: Any, tasks_dict: Mapping[str, Task]) -> bool:
        selected = super().select_task(node, tasks_dict)
        if node.run_status == "up-to-date":
            print(f"{node.task.name}: nothing has changed, kept as it is", flush=True)
        return selected

    def execute_task(self, task: Task) -> None:
        self.dep_manager.remove(task.name)  # a run that is killed leaves no success behind,
        self.dep_manager.backend.dump()  # but those of the notebooks before it
        started = time.monotonic()
        print(f"{task.name}: running", flush=True)
        execute(task.name, task.meta)
        print(f"{task.name}: done in {time.monotonic() - started:.0f} s", flush=True)


def chosen(chapters: Sequence[str]) -> list[str]:
    """The notebooks that are asked for by name or number; `BookError` for another."""
    asked: list[str] = []
    for text in chapters or pages():
        asked += (found := [page for page in pages() if text in (page, page[:2], page[1:2])])
        if not found:
            raise BookError(f"no chapter '{text}': there are {', '.join(pages())}")
    return asked


def run(name: str, profile: Values, chapters: Sequence[str] = (), force: bool = False) -> Values:
    """Run a profile's notebooks, and those that they need, and return what `merge_metrics` does.

    `chapters` are names such as "record/ladder" or numbers such as "03", none for all of them;
    `force` runs these even where nothing has changed. ChapterFailed ends the run; BookError where
    another run of the same name is under way.
    """
    asked = chosen(chapters)
    (file := build_folder(name) / ".doit.json").parent.mkdir(parents=True, exist_ok=True)
    with _alone(file.parent):
        known = Dependency(JsonDB, str(file))
        tasks = [_task(page, profile, known, force and page in asked) for page in pages()]
        control = TaskControl(tasks)
        control.process(asked)
        runner = _Runner(known, ZeroReporter(sys.stdout, {}))
        runner.run_all(control.task_dispatcher())
        return book.merge_metrics(name)


@contextmanager
def _alone(build: Path) -> Iterator[None]:
    """Let one process at a time run into a folder; `BookError`, saying which, for a second."""
    lock, owner = FileLock(build / ".lock"), build / ".running"
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        who = owner.read_text() if owner.exists() else "another process"
        fix = "wait until it has ended, or give this run another profile file"
        raise BookError(f"{build} is being written by a run of {who}: {fix}") from error
    owner.write_text(f"process {os.getpid()} on {platform.node()}")
    try:
        yield
    finally:
        owner.unlink()
        lock.release()


def outdated(name: str, profile: Mapping[str, Any]) -> list[str]:
    """The notebooks that `run` would run, but for those that only wait for another."""
    file = build_folder(name) / ".doit.json"
    if not file.is_file():  # also where the data are not there
        return list(pages())
    known = Dependency(JsonDB, str(file))
    tasks = [_task(page, profile, known) for page in pages()]
    return [t.name for t in tasks if known.get_status(t, None).status != "up-to-date"]


def execute(name: str, profile: Mapping[str, Any]) -> Path:
    """Execute a notebook; it appears, whole, in ``build/<profile>``, under ``failed/`` if it fails.

    Raises ChapterFailed where a cell raises or the kernel dies.
    """
    import jupytext
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    build = build_folder(profile["profile"])
    final, failed = (build / kind / f"{name}.ipynb" for kind in ("notebooks", "failed"))
    running = build / "running" / name / "running.ipynb"
    for path in (final, running):
        path.parent.mkdir(parents=True, exist_ok=True)
    failed.unlink(missing_ok=True)
    notebook = jupytext.read(book.notebook_file(name))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    # Notebooks import the studies beside them.
    places = [book.project_root() / "notebooks", *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(map(str, places)))
    # Of a progress line only its last state stays.
    options = {"progress_bar": False, "cwd": book.project_root(), "coalesce_streams": True}
    try:
        with _quiet(running.with_suffix(".log")) as terminal:
            if terminal.isatty():
                options["progress_bar"] = {"file": terminal, "leave": False, "desc": name}
                options["stdout_file"] = _LastLine(terminal)
            else:
                options["stdout_file"] = MinuteLines(terminal, f"{name}: ")
            given = notebook_parameters(name, profile)
            executed = papermill.execute_notebook(notebook, running, given, **options)
    except (papermill.PapermillExecutionError, DeadKernelError) as error:
        failed.parent.mkdir(parents=True, exist_ok=True)
        running.replace(failed)
        if isinstance(error, DeadKernelError):
            raise ChapterFailed(f"chapter {name}: {DIED}\n{failed}") from error
        cell, begins = error.exec_count or error.cell_index, error.source.strip().split("\n")[0]
        words = f"chapter {name} failed in cell {cell}, which begins\n    {begins}\n{error.ename}: "
        words += f"{error.evalue}\nThe notebook up to there, with the traceback: {failed}"
        raise ChapterFailed(words) from error
    _tidy(executed)
    nbformat.write(executed, running)
    running.replace(final)
    shutil.rmtree(running.parent)
    return final


def run_study(name: str, values: Mapping[str, Any]) -> str:
    """Execute a study; returns what its last cell printed. DataError for refused data, options."""
    import nbformat

    try:
        outputs = nbformat.read(execute(name, values), as_version=4).cells[-1].outputs
    except ChapterFailed as failed:
        cause: Any = failed.__cause__
        if getattr(cause, "ename", "") in (
            "BookError",
            "DataError",
            "FileNotFoundError",
            "PermissionError",
        ):
            raise DataError(cause.evalue) from failed
        raise
    return "".join(out.text for out in outputs if out.output_type == "stream").strip()


class _LastLine(io.TextIOBase):
    """Shows the latest line written to it in place on a terminal."""

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal

    def write(self, text: str) -> int:
        if line := re.split(r"[\r\n]", text.strip())[-1]:
            shown = line[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{shown}", end="", file=self.terminal, flush=True)
        return len(text)


@contextmanager
def _quiet(log: Path) -> Iterator[TextIO]:
    """Send what a kernel's libraries say on loading into a file; yields the real standard error."""
    with os.fdopen(os.dup(2), "w") as terminal, log.open("w") as file, redirect_stderr(terminal):
        os.dup2(file.fileno(), 2)
        try:
            yield terminal
        finally:
            terminal.write("\r\x1b[K" if terminal.isatty() else "")
            os.dup2(terminal.fileno(), 2)


def _tidy(notebook: Any) -> None:
    """Drop what libraries say on loading and papermill's paths and times, in place."""
    for key in ("papermill", "widgets"):  # a form is of use only to a running kernel
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if not _NOTHING.fullmatch(o.get("text", "-"))]


def require_current(name: str, profile: Mapping[str, Any], command: str = "cellaug run") -> None:
    """Raise `BookError` unless every notebook was run with the present code, data and settings.

    It names the `command` that runs them.
    """
    if late := ", ".join(outdated(name, profile)):
        reason = "not run with the present code, data and settings"
        raise BookError(f"{late} {reason}: '{command}' first")


def summary(merged: Mapping[str, Any], command: str, late: Sequence[str] = ()) -> str:
    """For the terminal: durations, the result of chapter 05, where it is, how to go on.

    `late` are the notebooks that have still to be run, `command` the one that builds the report.
    """
    took = merged["durations"] | {"all": sum(merged["durations"].values())}
    lines = [f"{chapter:<18}{seconds:8.0f} s" for chapter, seconds in took.items()]
    found = merged["chapters"].get("05_classifier", {})
    if (arms := found.get("arms")) and "05_classifier" not in late:
        lines += ["", f"{'weighted F1, %':<22}{'mean':>6}  change in points (95 % interval)"]
        for arm, scores in arms.items():
            line = f"{arm:<22}{100 * scores['weighted_f1']['mean']:6.1f}"
            if change := found["change_against_original"].get(arm):
                mean, low, high = (change["weighted_f1"][key] for key in ("mean", "low", "high"))
                line += f"  {100 * mean:+.1f} "
                few = "(too few seeds for an interval)"
                line += few if low is None else f"({100 * low:+.1f} to {100 * high:+.1f})"
            lines.append(line)
    lines += ["", f"executed notebooks: {build_folder(merged['profile']) / 'notebooks'}"]
    rest = f"still to be run: {', '.join(late)}" if late else f"the report: {command}"
    return "\n".join([*lines, rest])


def parameters_help() -> str:
    """All keys of a profile with their default values and the chapters that declare them."""
    declared = [(chapter[:2], declared_parameters(chapter).items()) for chapter in CHAPTERS]
    rows = [(key, json.dumps(value), number) for number, found in declared for key, value in found]
    table = pd.DataFrame(rows, columns=["key", "default", "chapters"])
    return table.groupby("key").agg({"default": "first", "chapters": " ".join}).to_string()
