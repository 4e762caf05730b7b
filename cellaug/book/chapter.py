"""Where a notebook of the book reads and writes, and what it records.

Chapters pass on only ``build/<profile>/artifacts/<chapter>/``; it appears with the last cell's end.
"""

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellaug.book.source import code_hash, code_of, commit
from cellaug.errors import BookError
from cellaug.files import atomic_folder, interactive, name_problem, write_json

import pandas as pd
import yaml

if TYPE_CHECKING:
    from cellaug.data import Dataset

CHAPTERS: tuple[str, ...] = ("01_data", "02_vanilla_gan", "03_ac_gan", "04_latent_space")
CHAPTERS += ("05_classifier", "06_discussion")
DEMO = 'Demo. The "cells" in this copy are computer drawings.'
WORDS = ("real", "drawn")  # what cells of a set are, and what phantoms are
VERSIONED = "cellaug keras tensorflow tensorflow-cpu jax numpy opencv-python scikit-learn".split()


def project_root() -> Path:
    """The nearest folder with ``notebooks/``, upward from here, else the clone; or `BookError`."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "notebooks" / f"{CHAPTERS[0]}.py").is_file():
            return folder
    raise BookError(f"no notebooks/ in {here} or above it: run this inside a clone of cellaug")


def notebook_file(name: str) -> Path:
    """The py:percent file of a notebook such as "01_data", "record/ladder" or "studies/ladder"."""
    return project_root() / "notebooks" / f"{name}.py"


def pages() -> tuple[str, ...]:
    """The notebooks that the book shows: the chapters, then the pages in ``notebooks/record/``."""
    record = sorted((project_root() / "notebooks" / "record").glob("*.py"))
    return (*CHAPTERS, *(f"record/{path.stem}" for path in record))


def build_folder(profile: str, book: bool = False) -> Path:
    """``build/<profile>`` of the project; CELLAUG_BUILD names another folder than ``build``.

    What is run in JupyterLab goes to ``build/lab/<profile>``, unless that of the `book` is asked
    for, so that it never replaces what the book shows.
    """
    if problem := name_problem(profile):
        what = f"the name of the profile, {profile!r}, {problem}"
        raise BookError(f"{what}. Give the file a name such as lab.yaml")
    build = project_root() / os.environ.get("CELLAUG_BUILD", "build")
    return build / "lab" / profile if interactive() and not book else build / profile


def declared_parameters(name: str) -> dict[str, Any]:
    """Names and defaults in a notebook's cell tagged ``parameters``; a chapter must have one."""
    import jupytext

    path = notebook_file(name)
    cells = [c for c in jupytext.read(path).cells if "parameters" in c.metadata.get("tags", ())]
    if not cells and name in CHAPTERS:
        raise BookError(f"{path.name} has no cell tagged 'parameters'")
    exec("\n".join(cell.source for cell in cells), {}, found := dict[str, Any]())
    return found


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        with suppress(metadata.PackageNotFoundError):
            found[name.removesuffix("-cpu")] = metadata.version(name)
    return found


def device() -> str:
    """The machine in words: processor, cores, and the accelerators that Keras sees."""
    from cellaug.training.backends import accelerators

    import keras

    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    processor = named[1] if named else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = ", ".join([processor, f"{cores} cores", *accelerators()])
    return f"{machine}, Keras on {keras.backend.backend()}"


class Chapter:
    """One notebook of the book being run.

    Args:
        name: the file name without its ending, such as "01_data" or "record/ladder".
        namespace: the notebook's ``globals()``; of its parameters ``profile`` names the folder
            under ``build/`` and ``seed`` seeds Keras, NumPy and Python.

    `parameters` are the notebook's, with the values of this run. `checkpoints` is a folder that
    survives an interruption and goes when the chapter ends, `out` the folder to write artifacts to,
    which takes its final place in `finish`.
    """

    def __init__(self, name: str, namespace: Mapping[str, Any]) -> None:
        import keras

        if name not in pages():
            raise BookError(f"no chapter is called '{name}': there are {', '.join(pages())}")
        self.name = name
        self.parameters = {key: namespace[key] for key in declared_parameters(name)}
        self.build = build_folder(self.parameters["profile"])
        self.checkpoints = self.build / "checkpoints" / name
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.out = self.build / "artifacts" / f".{name}.part"
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        self._data: dict[str, str] = {}  # hashes of the data sets of earlier chapters, by chapter
        self._started = time.monotonic()
        pd.set_option("display.max_colwidth", None)  # reasons are read to their end
        keras.utils.set_random_seed(self.parameters["seed"])
        if interactive():
            self._say_what_is_drawn()

    def _say_what_is_drawn(self) -> None:
        """In JupyterLab, where no banner stands above the page: that the cells are no real ones.

        The metadata tell ``lab.js`` the word that texts and captions have for them.
        """
        from IPython.display import Markdown, display

        with suppress(BookError):  # chapter 01 has not been run, as will be said where it is needed
            if (word := self.real) != WORDS[0]:
                display(Markdown(f"**{DEMO}**"), metadata={"cellaug": {"word": word}})

    def inputs(self, chapter: str) -> Path:
        """The folder with an earlier chapter's artifacts; in JupyterLab one's own, else the book's.

        `BookError` where it has not been run, was run with another value of a parameter that both
        chapters have, or with other data than another one that this chapter reads.
        """
        builds = (self.build, build_folder(self.parameters["profile"], book=True))
        found = [build / "artifacts" / chapter for build in builds]
        folder = next((place for place in found if (place / "metrics.json").is_file()), None)
        if folder is None:
            first = f"run {chapter} first, in the notebook or with 'cellaug run --chapter'"
            raise BookError(f"{self.name} needs {chapter}, which has not been run here: {first}")
        record = json.loads((folder / "metrics.json").read_text())
        theirs = record["settings"]
        shared = (theirs.keys() & self.parameters.keys()) - {"memory_mb"}  # changes no result
        for key in sorted(shared):
            if theirs[key] != self.parameters[key]:
                both = (
                    f"{key} = {self.parameters[key]!r}, but {chapter} was run with {theirs[key]!r}"
                )
                raise BookError(f"{self.name} has {both}: run both chapters with the same value")
        for other, data in self._data.items():
            if data and record.get("data", data) != data:
                both = f"{other} and {chapter}, which were run with different data"
                raise BookError(f"{self.name} needs {both}: run {chapter} again, then this chapter")
        self._data[chapter] = record.get("data", "")
        return folder

    def splits(self) -> dict[str, "Dataset"]:
        """The datasets that chapter 01 made, by the split's name."""
        from cellaug.data import load_splits

        return load_splits(self.inputs(CHAPTERS[0]))

    def fit(self, model: Any, reader: Any, epochs: int, label: str, **options: Any) -> pd.DataFrame:
        """Train with `cellaug.training.fit`, resuming from the checkpoint of `label`, used once."""
        from cellaug.training import fit

        settings = self.parameters | {"data": reader.dataset.fingerprint, "label": label}
        options |= {"settings": settings, "restart": True, "label": label}
        options["checkpoint"] = self.checkpoints / label.replace(" ", "_")
        return fit(model, reader, epochs, **options)

    @property
    def real(self) -> str:
        """What figures and texts call the cells of the set: "real", or "drawn" for phantoms.

        `BookError` where chapter 01 has not been run.
        """
        settings = self.parameters
        if self.name in CHAPTERS[1:]:
            record = json.loads((self.inputs(CHAPTERS[0]) / "metrics.json").read_text())
            settings = record["settings"]
        return WORDS[settings.get("data") == "phantom"]

    @staticmethod
    def compare(rows: Mapping[str, tuple[Any, Any]]) -> pd.DataFrame:
        """A table of what the thesis found and what was found here, a row for each entry."""
        return pd.DataFrame.from_dict(dict(rows), orient="index", columns=["thesis", "here"])

    def finish(self, metrics: Mapping[str, Any], data: str = "") -> None:
        """Record the results and the hash of the data; move the artifacts into place.

        `data` is the hash, given by chapter 01; others have that of the chapters that they read.
        """
        seconds = round(time.monotonic() - self._started, 1)
        facts: dict[str, Any] = {"versions": versions(), "device": device(), "metrics": metrics}
        facts |= {"chapter": self.name, "seconds": seconds, "settings": self.parameters}
        data = data or next(filter(None, self._data.values()), "")
        facts |= {"date": f"{datetime.now(UTC):%Y-%m-%d}"} | ({"data": data} if data else {})
        write_json(self.out / "metrics.json", facts)
        final = self.build / "artifacts" / self.name
        with atomic_folder(final) as part:  # a kill loses nothing that was there
            self.out.replace(part)
        self.out = final
        shutil.rmtree(self.checkpoints)
        merge_metrics(self.parameters["profile"])


def merge_metrics(profile: str) -> dict[str, Any]:
    """Gather a profile's records in ``build/<profile>/metrics.json``; durations are in seconds."""
    merged: dict[str, Any] = {"profile": profile, "settings": {}, "durations": {}, "chapters": {}}
    for chapter in CHAPTERS:
        path = build_folder(profile) / "artifacts" / chapter / "metrics.json"
        if path.is_file():
            record = json.loads(path.read_text())
            merged["settings"] |= record["settings"]
            merged["durations"][chapter] = record["seconds"]
            merged["chapters"][chapter] = record["metrics"]
            merged |= {k: record[k] for k in ("date", "versions", "device", "data") if k in record}
    write_json(build_folder(profile) / "metrics.json", merged)
    return merged


def result_file(name: str) -> Path:
    """Where a result of that file name is recorded: in ``book/results``, itself for no name."""
    return project_root() / "book" / "results" / name


def read_result(name: str, command: str) -> dict[str, Any]:
    """A recorded JSON result; `BookError`, with the command that makes it, if unreadable."""
    path = result_file(name)
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as error:
        reason = f"not JSON: {error}" if path.is_file() else "missing"
        raise BookError(f"{path} is {reason}: '{command}' makes it") from error


def recorded_benchmark(name: str) -> dict[str, Any]:
    """The result of ``make bench-<name>`` that was recorded last; `BookError` if there is none."""
    return read_result(f"{name}-benchmark.json", f"make bench-{name}")


def chapters_hash() -> str:
    """A hash over the code of all chapters and of what they import."""
    return code_hash({path for chapter in CHAPTERS for path in code_of(notebook_file(chapter))})


def recorded_results() -> dict[str, dict[str, Any]]:
    """The recorded runs by profile; ``changed`` where the code of the chapters has, since."""
    found = {}
    for path in sorted(result_file("").glob("*/metrics.json")):
        profile = path.parent.name
        record = read_result(f"{profile}/metrics.json", f"cellaug record --profile {profile}")
        record["changed"] = record.get("code") != chapters_hash()
        found[profile] = {"commit": "unknown"} | record
    return found


def record_results(profile: str) -> Path:
    """Keep the ``metrics.json`` of a finished run in ``book/results/<profile>/``.

    One's own data are named without their folder. `BookError` rather than replace a record of other
    data.
    """
    merged, name = merge_metrics(profile), f"{profile}/metrics.json"
    if isinstance(data := merged["settings"].get("data"), str):
        merged["settings"]["data"] = Path(data).name
    if (target := result_file(name)).is_file():
        kept = read_result(name, f"remove it; cellaug record --profile {profile}").get("data")
        if kept != merged.get("data"):
            both = f"data {kept}, but this run is of data {merged.get('data')}"
            fix = "Copy the profile to a file of another name, then run and record that file"
            raise BookError(f"{target} is the record of {both}: it is not replaced. {fix}")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, merged | {"commit": commit(project_root()), "code": chapters_hash()})
    return target


def thesis() -> dict[str, dict[str, Any]]:
    """The thesis's figures by subject, from ``book/thesis.yaml``."""
    return yaml.safe_load((project_root() / "book" / "thesis.yaml").read_text())
