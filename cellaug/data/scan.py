"""Look at every file once: hash it, decode it, and remember the outcome in an index in the cache.

A second opening reads only new or changed files; an interrupted one continues where it was.
"""

import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TextIO

from cellaug.data.images import decode, generated_by, read_file
from cellaug.errors import DataError
from cellaug.files import cache_home, progress, write_atomically
from cellaug.quiet import kept_quiet

import cv2
import pandas as pd
import PIL
import simplejpeg

FIELDS = ["size", "mtime_ns", "digest", "height", "width", "notes", "problem", "generated"]
DECODERS = "; ".join(f"{m.__name__} {m.__version__}" for m in (cv2, PIL, simplejpeg))
_FORMAT = f"5; {DECODERS}"
_HUSHING = threading.Lock()  # two at once would save each other's silence
_THREADS = min(8, os.cpu_count() or 1)
_SAVE_EVERY = 30.0  # seconds


def scan(root: Path, names: Sequence[str]) -> pd.DataFrame:
    """Look at the files `names` (relative to `root`), reading only new or changed ones.

    Returns a row per name: `FIELDS`, that is size (bytes), mtime_ns, digest (SHA-256), height,
    width (pixels), notes (on conversions), problem ("" for a usable image) and generated, what
    `generated_by` says, as JSON ("" for nothing).
    """
    root = root.resolve()
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    index = cache_home() / "index" / f"{place}.json"
    try:
        stored = json.loads(index.read_text())
        before = dict(stored["files"]) if stored["format"] == _FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        before = {}  # no index, or a damaged one: the files are looked at again
    # Another manifest in this folder may name the rest, but not what is gone.
    wanted = set(names)
    known = {n: r for n, r in before.items() if n in wanted or os.path.lexists(root / n)}
    try:
        _look_at(root, names, known, index)
    finally:
        try:
            if known != before:
                _save(index, known)
        except OSError as error:
            what = f"{index}: the index of images cannot be kept ({error.strerror})"
            fix = "set CELLAUG_CACHE to a folder that can be written, or all are read each time"
            warnings.warn(f"{what}; {fix}", stacklevel=2)
    table = pd.DataFrame([known[name] for name in names], columns=FIELDS, dtype=object)
    return table.astype({"height": int, "width": int})


def _look_at(root: Path, names: Sequence[str], known: dict[str, list], index: Path) -> None:
    def as_known(name: str) -> bool:
        try:
            status = os.stat(f"{root}/{name}")  # noqa: PTH116 - three times as fast as Path
        except (OSError, ValueError):  # ValueError: a NUL in a manifest's path
            return False
        return known.get(name, [])[:2] == [status.st_size, status.st_mtime_ns]

    with ThreadPool(_THREADS) as pool:  # a network drive takes its time for each
        same = pool.map(as_known, names, 512)
        fresh = [name for name, flag in zip(names, same, strict=True) if not flag]
        saved = time.monotonic()
        with _hushed() if fresh else nullcontext() as terminal:
            looked = pool.imap(lambda name: _look(root / name), fresh)
            bar = progress(looked, "reading images", total=len(fresh), file=terminal)
            for name, record in zip(fresh, bar, strict=True):
                known[name] = record
                if time.monotonic() - saved > _SAVE_EVERY:
                    with suppress(OSError):  # the last attempt reports it
                        _save(index, known)
                    saved = time.monotonic()


@contextmanager
def _hushed() -> Iterator[TextIO]:
    """Silence standard error, where libraries write about bad files; yield what is not silenced."""
    with _HUSHING, warnings.catch_warnings(), kept_quiet() as terminal:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield terminal


def _look(path: Path) -> list:
    record: list = [-1, -1, ""]
    try:
        data, status = read_file(path)
        record = [status.st_size, status.st_mtime_ns, hashlib.sha256(data).hexdigest()]
        image, notes = decode(data, path.name)
    except DataError as error:
        return [*record, 0, 0, "", str(error), ""]
    made = generated_by(data)
    said = "" if made is None else json.dumps(made)
    return [*record, *image.shape[:2], "; ".join(notes), "", said]


def _save(index: Path, known: dict[str, list]) -> None:
    index.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(index, json.dumps({"format": _FORMAT, "files": known}).encode())
