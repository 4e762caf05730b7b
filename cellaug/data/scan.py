"""Look at every file once: hash it, decode it, and remember the outcome.

The outcome is kept per file (path, size, time of change) in an index under the cache home, so that
the second opening of a folder reads no image.
"""

import hashlib
import json
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from cellaug.data.errors import DataError
from cellaug.data.images import decode, write_atomically

import cv2
from tqdm import tqdm

_HUSHING = threading.Lock()  # two at once would save each other's silence
_FORMAT = f"1, OpenCV {cv2.__version__}"


class Record(NamedTuple):
    """What a look at one file gave; `problem` is empty for a usable image."""

    size: int
    mtime_ns: int
    digest: str
    height: int
    width: int
    notes: tuple[str, ...]
    problem: str


def cache_home() -> Path:
    """Where cellaug keeps what it can make again: `$CELLAUG_CACHE`, else `~/.cache/cellaug`."""
    named = os.environ.get("CELLAUG_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "cellaug"


def scan(root: Path, names: Sequence[str]) -> list[Record]:
    """Look at the files `names` (relative to `root`), in that order, reading only new ones."""
    root = root.resolve()
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    index_file = cache_home() / "index" / f"{place}.json"
    known = _load_index(index_file)
    fresh = [name for name in names if not _unchanged(root / name, known.get(name))]
    if fresh:
        with _hushed() as terminal, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            looked = pool.map(lambda name: _look(root / name), fresh)
            # delay, disable=None: only a person at a terminal who waits sees the bar
            shown = {"file": terminal, "leave": False, "delay": 2, "disable": None}
            bar = tqdm(looked, "reading images", len(fresh), **shown)
            known |= dict(zip(fresh, bar, strict=True))
    if fresh or len(known) != len(names):
        _save_index(index_file, {name: known[name] for name in names})
    return [known[name] for name in names]


@contextmanager
def _hushed() -> Iterator[TextIO]:
    """Silence standard error but for the stream that is yielded.

    libjpeg and libpng write a line on a bad file straight to the process's standard error, without
    its name; the report names it.
    """
    with _HUSHING:
        sys.stderr.flush()
        saved = os.dup(2)
        try:
            with Path(os.devnull).open("w") as nowhere, os.fdopen(os.dup(saved), "w") as terminal:
                os.dup2(nowhere.fileno(), 2)
                yield terminal
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _unchanged(path: Path, record: Record | None) -> bool:
    if record is None:
        return False
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (record.size, record.mtime_ns)


def _look(path: Path) -> Record:
    try:
        stat = path.stat()
        data = path.read_bytes()
    except OSError as error:
        return Record(-1, -1, "", 0, 0, (), f"cannot be read ({error.strerror})")
    digest = hashlib.sha256(data).hexdigest()
    try:
        image, notes = decode(data)
    except DataError as error:
        return Record(stat.st_size, stat.st_mtime_ns, digest, 0, 0, (), str(error))
    height, width = image.shape[:2]
    return Record(stat.st_size, stat.st_mtime_ns, digest, height, width, tuple(notes), "")


def _load_index(path: Path) -> dict[str, Record]:
    try:
        stored = json.loads(path.read_text())
        if stored["format"] != _FORMAT:
            return {}
        return {
            name: Record(*row[:5], tuple(row[5]), row[6]) for name, row in stored["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return {}  # no index, or a damaged one: the files are looked at again


def _save_index(path: Path, records: dict[str, Record]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"format": _FORMAT, "files": records}).encode())
    except OSError as error:
        warnings.warn(
            f"{path}: the index of images cannot be kept ({error.strerror}), so they are read "
            "again next time; set CELLAUG_CACHE to a folder that can be written",
            stacklevel=2,
        )
