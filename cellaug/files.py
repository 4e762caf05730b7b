"""Files of our own: the cache, output that appears whole or not at all, progress bars."""

import io
import json
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cellaug.errors import DataError

import numpy as np
from tqdm import tqdm

T = TypeVar("T")


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write bytes to a temporary name in the same folder, then move them into place."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it takes its place once the block has ended well."""
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


def new_folder(out: str | Path) -> Path:
    """The folder for a result; `DataError` if something would be overwritten in it."""
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        rule = "nothing is written into a folder that is not empty"
        raise DataError(f"{out} holds files already: {rule}. Choose a new one, or empty it")
    return out


def progress(items: Iterable[T] | None = None, words: str = "", **options: Any) -> tqdm:
    """A progress bar on a terminal for what takes over two seconds; nothing elsewhere."""
    return tqdm(items, words, **{"leave": False, "delay": 2, "disable": None} | options)


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


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """`numpy.savez`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(buffer := io.BytesIO(), allow_pickle=True, **arrays)
    write_atomically(path, buffer.getvalue())


def homes() -> list[Path]:
    """Folders that may hold public sets, in the order of the search."""
    named = os.environ.get("CELLAUG_DATA")
    return [*([Path(named).expanduser()] if named else []), cache_home()]
