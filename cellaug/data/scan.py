"""Look at every file once: hash it, decode it, and remember the outcome.

The outcome is kept per file (path, size, time of change) in an index under the cache home, so that
the second opening of a folder reads no image. A long first opening keeps it from time to time; one
that was interrupted goes on from there.
"""

import hashlib
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TextIO

from cellaug.data.errors import DataError
from cellaug.data.images import decode, read_file, write_atomically

import cv2
import PIL
import simplejpeg
from tqdm import tqdm

_HUSHING = threading.Lock()  # two at once would save each other's silence
_FORMAT = "; ".join(("2", *(f"{m.__name__} {m.__version__}" for m in (cv2, PIL, simplejpeg))))
_THREADS = min(8, os.cpu_count() or 1)
_AT_ONCE = 512  # files given to the threads at a time
_SAVE_EVERY = 30.0  # seconds


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
    """Where cellaug keeps what it can make again: `$CELLAUG_CACHE`, else `~/.cache/cellaug`.

    Raises `DataError` if that is below the home folder of a user who has none.
    """
    named = os.environ.get("CELLAUG_CACHE", "~/.cache/cellaug") or "~/.cache/cellaug"
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise DataError(f"{named}: {error} Set CELLAUG_CACHE to a folder") from error


def scan(root: Path, names: Sequence[str]) -> list[Record]:
    """Look at the files `names` (relative to `root`), in that order, reading only new ones."""
    root = root.resolve()
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    index_file = cache_home() / "index" / f"{place}.json"
    known = _load_index(index_file)
    fresh = _changed(root, names, known)
    # Another manifest in this folder may name the rest, but not what is gone.
    lost = [name for name in known.keys() - set(names) if not os.path.lexists(root / name)]
    for name in lost:
        del known[name]
    learnt = bool(lost)
    try:
        if fresh:
            saved = time.monotonic()
            with _hushed() as terminal, closing(_look_at(root, fresh, terminal)) as looked:
                for name, record in looked:
                    learnt |= known.get(name) != record
                    known[name] = record
                    if learnt and time.monotonic() - saved > _SAVE_EVERY:
                        with suppress(OSError):  # the last attempt says so
                            _save_index(index_file, known)
                        saved = time.monotonic()
    finally:
        if learnt:
            try:
                _save_index(index_file, known)
            except OSError as error:
                warnings.warn(
                    f"{index_file}: the index of images cannot be kept ({error.strerror}), so they "
                    "are read again next time; set CELLAUG_CACHE to a folder that can be written",
                    stacklevel=2,
                )
    return [known[name] for name in names]


def _parts(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE)]


def _changed(root: Path, names: Sequence[str], known: dict[str, Record]) -> list[str]:
    """The files that are not known as they stand."""
    folders = {name.rpartition("/")[0] for name in known.keys() & set(names)}
    with ThreadPoolExecutor(_THREADS) as pool:
        unchanged = set().union(*pool.map(lambda folder: _unchanged(root, folder, known), folders))
    return [name for name in names if name not in unchanged]


def _unchanged(root: Path, folder: str, known: dict[str, Record]) -> set[str]:
    """The files of one folder that are known as they stand."""
    unchanged = set()
    with suppress(OSError, ValueError), os.scandir(root / folder) as entries:
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            record = known.get(name)
            if record is None:
                continue
            try:
                stat = entry.stat()
            except OSError:
                continue
            if (stat.st_size, stat.st_mtime_ns) == (record.size, record.mtime_ns):
                unchanged.add(name)
    return unchanged


def _look_at(
    root: Path, names: Sequence[str], terminal: TextIO
) -> Generator[tuple[str, Record], None, None]:
    """Yield each file's name and record, in order."""
    # delay, disable=None: only a person at a terminal who waits sees the bar
    shown = {"file": terminal, "leave": False, "delay": 2, "disable": None}
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(desc="reading images", total=len(names), **shown) as bar,
    ):
        try:
            for part in _parts(names):  # all at once would take much memory and no interruption
                looked = pool.map(lambda name: _look(root / name), part)
                for name, record in zip(part, looked, strict=True):
                    yield name, record
                    bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _hushed() -> Iterator[TextIO]:
    """Silence standard error but for the stream that is yielded.

    libpng and libtiff write a line on a bad file straight to the process's standard error, and
    Pillow warns, without its name; the report names it.
    """
    with _HUSHING, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        sys.stderr.flush()
        saved = os.dup(2)
        try:
            with Path(os.devnull).open("w") as nowhere, os.fdopen(os.dup(saved), "w") as terminal:
                os.dup2(nowhere.fileno(), 2)
                yield terminal
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _look(path: Path) -> Record:
    try:
        data, stat = read_file(path)
    except DataError as error:
        return Record(-1, -1, "", 0, 0, (), str(error))
    digest = hashlib.sha256(data).hexdigest()
    try:
        image, notes = decode(data, path.name)
    except DataError as error:
        return Record(stat.st_size, stat.st_mtime_ns, digest, 0, 0, (), str(error))
    height, width = image.shape[:2]
    return Record(stat.st_size, stat.st_mtime_ns, digest, height, width, tuple(notes), "")


def _load_index(path: Path) -> dict[str, Record]:
    try:
        stored = json.loads(path.read_text())
        if stored["format"] != _FORMAT:
            return {}
        columns = stored["files"]
        columns["notes"] = [tuple(note.split("\n")) if note else () for note in columns["notes"]]
        records = map(Record, *(columns[field] for field in Record._fields))
        return dict(zip(columns["name"], records, strict=True))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # no index, or a damaged one: the files are looked at again


def _save_index(path: Path, records: dict[str, Record]) -> None:
    # Columns rather than rows: three times as fast to read.
    columns = {"name": list(records)}
    for place, field in enumerate(Record._fields):
        columns[field] = [record[place] for record in records.values()]
    columns["notes"] = ["\n".join(notes) for notes in columns["notes"]]
    stored = {"format": _FORMAT, "files": columns}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(stored).encode())
