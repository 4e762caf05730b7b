"""What a chapter needs of its surroundings: where to read, where to write, what to record.

Every chapter reads the artifacts of earlier chapters and writes its own, its figures of merit in
``metrics.json`` among them, under ``build/<profile>/artifacts/<chapter>/``. Nothing else passes
between chapters. What a chapter writes appears there only once its last cell has run.
"""

import ast
import json
import logging
import os
import platform
import shutil
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from cellaug.data.images import write_atomically

CHAPTERS = (
    "01_data",
    "02_vanilla_gan",
    "03_ac_gan",
    "04_latent_space",
    "05_classifier",
    "06_discussion",
)


class BookError(Exception):
    """A complaint about profiles, chapters or their order that a user can act on."""


def project_root() -> Path:
    """The folder that holds ``notebooks/``: the nearest above the working directory, or the clone.

    Raises:
        BookError: where neither holds the chapters.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[1]):
        if (folder / "notebooks" / f"{CHAPTERS[0]}.py").is_file():
            return folder
    raise BookError(
        f"no notebooks/{CHAPTERS[0]}.py in {here} or above it: run this inside a clone of cellaug"
    )


def build_folder(profile: str) -> Path:
    """``build/<profile>`` of the project; CELLAUG_BUILD names another folder than ``build``."""
    return project_root() / os.environ.get("CELLAUG_BUILD", "build") / profile


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a temporary name and move it into place."""
    text = json.dumps(content, indent=1, sort_keys=True, default=_plain) + "\n"
    write_atomically(path, text.encode())


def _plain(value: Any) -> Any:
    """NumPy and pandas values as JSON has them."""
    for convert in ("to_dict", "tolist", "item"):
        if hasattr(value, convert):
            return getattr(value, convert)()
    if isinstance(value, Path):
        return value.name
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def declared_parameters(chapter: str) -> dict[str, Any]:
    """The names and default values in a chapter's cell tagged ``parameters``.

    Raises:
        BookError: where the chapter has no such cell, or a default is not a plain literal.
    """
    import jupytext

    path = project_root() / "notebooks" / f"{chapter}.py"
    for cell in jupytext.read(path).cells:
        if "parameters" in cell.metadata.get("tags", ()):
            break
    else:
        raise BookError(f"{path.name} has no cell tagged 'parameters'")
    found = {}
    for statement in ast.parse(cell.source).body:
        try:
            (target,) = statement.targets
            found[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError) as error:
            raise BookError(
                f"{path.name}: '{ast.unparse(statement)}' in the parameters cell is not of the "
                "form name = literal"
            ) from error
    return found


def versions() -> dict[str, str]:
    """The versions that results depend on."""
    names = ("cellaug", "keras", "tensorflow", "jax", "numpy", "opencv-python", "scikit-learn")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    """The machine in words: processor, cores, and the accelerators that Keras sees."""
    from cellaug.backend import accelerators

    import keras

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(s.split(":", 1)[1].strip() for s in lines if s.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = ", ".join([processor, f"{cores} cores", *accelerators()])
    return f"{machine}, Keras on {keras.backend.backend()}"


class Chapter:
    """One chapter being run.

    Args:
        name: the chapter's file name without its ending, one of `CHAPTERS`.
        namespace: the chapter's ``globals()``, from which its parameters are read: ``profile``
            names the folder under ``build/`` and ``seed`` seeds Keras, NumPy and Python.

    Attributes:
        parameters: the chapter's parameters with the values of this run.
        checkpoints: a folder that survives an interruption and goes when the chapter ends.
        out: the folder to write artifacts to; it takes its final place in `finish`.
    """

    def __init__(self, name: str, namespace: dict[str, Any]) -> None:
        import keras

        if name not in CHAPTERS:
            raise BookError(f"no chapter is called '{name}': there are {', '.join(CHAPTERS)}")
        self.name = name
        self.parameters = {key: namespace[key] for key in declared_parameters(name)}
        self.build = build_folder(self.parameters["profile"])
        self.checkpoints = self.build / "checkpoints" / name
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.out = self.build / "artifacts" / f".{name}.part"
        if self.out.exists():
            shutil.rmtree(self.out)
        self.out.mkdir(parents=True)
        self._started = time.monotonic()
        # TensorFlow warns of every new network that predicts; a chapter has many, on purpose.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        keras.utils.set_random_seed(self.parameters["seed"])

    def inputs(self, chapter: str) -> Path:
        """The artifacts of an earlier chapter.

        Raises:
            BookError: where that chapter has not been run under this profile.
        """
        folder = self.build / "artifacts" / chapter
        if not (folder / "metrics.json").is_file():
            profile = self.parameters["profile"]
            raise BookError(
                f"chapter {self.name} needs what {chapter} makes, and {chapter} has not been run "
                f"under the profile '{profile}': run it first, in JupyterLab or with "
                f"'cellaug run --profile {profile} --chapter {chapter[:2]}'"
            )
        return folder

    def splits(self) -> dict[str, Any]:
        """The datasets that chapter 01 made: training, generator, validation and test images."""
        from cellaug.data import load_splits

        return load_splits(self.inputs("01_data"))

    def finish(self, metrics: dict[str, Any], data: str = "") -> None:
        """Record the figures of merit and move the artifacts into place.

        Args:
            metrics: figures of merit; numbers, strings, and lists or dictionaries of them.
            data: the data hash, where the chapter knows it at first hand (chapter 01).
        """
        record = {
            "chapter": self.name,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "settings": self.parameters,
            "versions": versions(),
            "device": device(),
            "seconds": round(time.monotonic() - self._started, 1),
            "metrics": metrics,
        }
        if data:
            record["data"] = data
        write_json(self.out / "metrics.json", record)
        final = self.build / "artifacts" / self.name
        if final.exists():
            shutil.rmtree(final)
        self.out.rename(final)
        self.out = final
        shutil.rmtree(self.checkpoints)
        merge_metrics(self.parameters["profile"])


def merge_metrics(profile: str) -> dict[str, Any]:
    """Gather the chapters' records of one profile into ``build/<profile>/metrics.json``.

    Returns:
        ``profile, date, settings, versions, device, data, durations`` and ``chapters``, the last
        a mapping from chapter to its figures of merit. ``durations`` are in seconds.
    """
    merged: dict[str, Any] = {"profile": profile, "settings": {}, "durations": {}, "chapters": {}}
    for chapter in CHAPTERS:
        path = build_folder(profile) / "artifacts" / chapter / "metrics.json"
        if path.is_file():
            record = json.loads(path.read_text())
            merged["settings"] |= record["settings"]
            merged["durations"][chapter] = record["seconds"]
            merged["chapters"][chapter] = record["metrics"]
            merged |= {key: record[key] for key in ("date", "versions", "device")}
            merged |= {key: record[key] for key in ("data",) if key in record}
    write_json(build_folder(profile) / "metrics.json", merged)
    return merged


def recorded_results() -> dict[str, dict[str, Any]]:
    """The results kept under ``book/results``, by profile, as `merge_metrics` wrote them."""
    found = sorted(result_file("").glob("*/metrics.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in found}


def recorded_benchmark(name: str) -> dict[str, Any]:
    """What ``make bench-<name>`` measured when it was last recorded.

    Raises:
        BookError: where it has not been recorded.
    """
    return read_result(f"{name}-benchmark.json", f"make bench-{name}")


def result_file(name: str) -> Path:
    """Where a result of that file name is recorded: in ``book/results``, itself for no name."""
    return project_root() / "book" / "results" / name


def read_result(name: str, command: str) -> dict[str, Any]:
    """A recorded result, JSON, by its file name.

    Args:
        name: of the file in ``book/results``.
        command: what makes it, for the complaint.

    Raises:
        BookError: where it is missing.
    """
    if not result_file(name).is_file():
        raise BookError(f"{result_file(name)} is missing: '{command}' makes it")
    return json.loads(result_file(name).read_text())


def record_results(profile: str) -> Path:
    """Keep a finished run's ``metrics.json`` under ``book/results/<profile>/``.

    Raises:
        BookError: where a chapter has not been run under this profile.
    """
    merged = merge_metrics(profile)
    missing = [chapter for chapter in CHAPTERS if chapter not in merged["chapters"]]
    if missing:
        raise BookError(
            f"profile '{profile}' is not complete, {', '.join(missing)} missing: "
            f"'cellaug run --profile {profile}' first"
        )
    target = result_file(f"{profile}/metrics.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, merged)
    return target


def thesis() -> dict[str, dict[str, Any]]:
    """The thesis's figures by subject, from ``book/thesis.yaml``."""
    import yaml

    return yaml.safe_load((project_root() / "book" / "thesis.yaml").read_text())


def interactive() -> bool:
    """Whether a person sits before the notebook: true in JupyterLab, false under papermill."""
    return "JPY_SESSION_NAME" in os.environ
