"""Files of our own: the cache, output that appears whole or not at all, progress bars."""

import io
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PureWindowsPath
from typing import Any, TextIO, TypeVar

from cellaug.errors import DataError

import numpy as np
from joblib import Parallel, cpu_count, delayed
from tqdm import tqdm

T = TypeVar("T")
MINUTE = 60.0  # seconds between two lines in a log file
_MANY = 8  # parts for which it pays to start processes, which takes two seconds


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write bytes to a temporary name in the same folder, then move them into place."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:  # a full disk does not name the file
        if error.errno is not None:
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # on a disk that can only be read it is not there
            temporary.unlink(missing_ok=True)


def name_problem(name: str) -> str:
    """What keeps a relative path from being safe below any folder, on any system; "" if nothing."""
    path = PureWindowsPath(name)  # takes both / and \\ for separators
    problems = {
        "is empty": not path.parts,
        "is absolute or has a drive letter": bool(path.anchor),
        "leads out of its folder by '..'": ".." in path.parts,
        "contains a NUL character": "\0" in name,
        "is longer than the 255 bytes that a file name can have": any(
            len(part.encode("utf-8", "surrogatepass")) > 255 for part in path.parts
        ),
    }
    return next((problem for problem, true in problems.items() if true), "")


def inside(folder: Path, name: str) -> Path:
    """Return folder/name; `DataError` for a name that could lie elsewhere or cannot be a file's.

    These are names with a `name_problem`, and those that a link leads out of the folder.
    """
    if not (problem := name_problem(name)):
        with suppress(OSError, RuntimeError):  # a loop of links leads nowhere
            if (folder / name).resolve().is_relative_to(folder.resolve()):
                return folder / name
        problem = "is or passes a link that leads out of the folder"
    fix = "Expected a relative path that stays in it, such as lymphocyte/1.png"
    raise DataError(f"{folder}: the name {name[:99]!r} {problem}. {fix}")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it takes its place once the block has ended well."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(".part", f".{target.name}.", target.parent) as place:
            new, old = Path(place, "new"), Path(place, "old")
            new.mkdir()
            yield new
            if target.is_dir():
                target.replace(old)
            try:
                new.replace(target)
            finally:
                if old.exists() and not target.exists():  # the new one could not be moved
                    old.replace(target)
    except OSError as error:  # of the hidden folder, or a full disk's, which names no file
        hidden = error.filename is None or f"/.{target.name}." in str(error.filename)
        if error.errno is not None and hidden:
            error.filename = str(target)
        raise


def free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder, which may not be there yet."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free


def count(folder: str | Path) -> int:
    """The number of files below a folder; 0 for what is none."""
    return sum(len(names) for _, _, names in os.walk(folder))


def require_room(folder: Path, needed: int, words: str) -> None:
    """Raise `DataError` if the disk of a folder, to be made perhaps, lacks `needed` bytes."""
    if needed > (free := free_bytes(folder)):
        unit, name = (2**30, "GiB") if needed >= 2**30 else (2**20, "MiB")
        more, left = (f"{size / unit:.3g} {name}" for size in (needed, free))
        less = f"needs {more} more, but the disk has {left} left"
        raise DataError(f"{folder}: {words} {less}. Make room, or give a folder on another disk")


def new_folder(out: str | Path) -> Path:
    """The folder for a result; `DataError` if something would be overwritten in it."""
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        rule = "nothing is written into a folder that is not empty"
        raise DataError(f"{out} holds files already: {rule}. Choose a new one, or empty it")
    return out


def interactive() -> bool:
    """Whether a person sits before the notebook: true in JupyterLab, false under papermill."""
    return "JPY_SESSION_NAME" in os.environ


def in_kernel() -> bool:
    """Whether this is a notebook's process, whose standard output is no terminal and no file."""
    return type(sys.stdout).__module__.startswith("ipykernel")


class MinuteLines(io.TextIOBase):
    """Writes the latest of the lines that it is given to a log file, once a minute."""

    def __init__(self, log: TextIO, head: str = "") -> None:
        self.log, self.head, self.written = log, head, time.monotonic()

    def write(self, text: str) -> int:
        """Take text whose lines end with a carriage return or a newline."""
        line = re.split(r"[\r\n]+", re.sub(r"\x1b\[\w*", "", text).strip())[-1].strip()
        if line and time.monotonic() - self.written >= MINUTE:
            self.written = time.monotonic()
            print(self.head + line, file=self.log, flush=True)
        return len(text)


def progress(items: Iterable[T] | None = None, words: str = "", **options: Any) -> tqdm:
    """A bar on a terminal for what takes over two seconds; a line a minute in a log file."""
    file = options.pop("file", None) or sys.stderr
    usual: dict[str, Any] = {"leave": False, "delay": 2, "disable": in_kernel(), "file": file}
    if not file.isatty():
        usual |= {"delay": MINUTE, "mininterval": MINUTE, "file": MinuteLines(file)}
    return tqdm(items, words, **usual | options)


def in_parallel(
    work: Callable[[Any], T],
    parts: Iterable[Any],
    words: str,
    size: int,
    each: int,
    threads: bool = False,
) -> list[T]:
    """The results of `work` for each part, by one process per processor if there are many parts.

    `words`, the number of items, `size`, and of those in a part, `each`, are for a progress bar.
    `threads` instead of processes suit large arrays, which nothing has to copy then.
    """
    total = -(-size // each)
    jobs = cpu_count() if total >= _MANY else 1
    calls = (delayed(work)(part) for part in parts)
    prefer = "threads" if threads else "processes"
    results = Parallel(jobs, prefer=prefer, return_as="generator", max_nbytes=None)(calls)
    return list(progress(results, words, total=total, unit_scale=each))


def cache_home() -> Path:
    """The folder for files that can be made again: `$CELLAUG_CACHE`, else `~/.cache/cellaug`."""
    named = os.environ.get("CELLAUG_CACHE") or "~/.cache/cellaug"
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise DataError(f"{named}: {error} Set CELLAUG_CACHE to a folder") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(content, indent=1, sort_keys=True, default=_plain) + "\n"
    write_atomically(path, text.encode())


def _plain(value: Any) -> Any:
    """NumPy and pandas values as JSON has them."""
    if isinstance(value, Path):
        return value.name
    return value.to_dict() if hasattr(value, "to_dict") else value.tolist()


def require_same(file: Path, settings: Mapping[str, Any], write: bool = True) -> dict[str, Any]:
    """Write the settings of some work into a new folder, or check that it was begun with them.

    Returns what the file holds, which may be more. DataError if it was begun with others, or if
    the folder holds other files. Only where `write` is true anything is written.
    """
    text = json.loads(json.dumps(settings, default=_plain))
    known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if known and (differ := [key for key in text if known.get(key, text[key]) != text[key]]):
        what = "the images have" if {"hash", "data"} & {*differ} else f"{', '.join(differ)} has"
        what = "--images or --hours has" if differ == ["asked"] else what
        raise DataError(f"{file.parent} was begun before {what} changed: give another folder, or "
                        "remove it")  # fmt: skip
    if not known and file.parent.exists() and any(file.parent.iterdir()):
        raise DataError(f"{file.parent} holds other files: give a new folder")
    if write:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, known | text)
    return known | text


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """`numpy.savez`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(buffer := io.BytesIO(), allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def homes() -> list[Path]:
    """Folders that may hold public sets, in the order of the search."""
    named = os.environ.get("CELLAUG_DATA")
    return [*([Path(named).expanduser()] if named else []), cache_home()]
