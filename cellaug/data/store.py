"""A store: images decoded once, cropped, resized and kept on disk as uint8.

A folder with

- `index.parquet`: one row an image (file, label, class, digest, side, group, shard, row), and in
  its metadata the size, class names and credit;
- shards `shard-00000.npy`, …: uint8 (n, size, size, 3); beside each `shard-00000.digests.npy`, the
  SHA-256 of the files that its rows come from, uint8 (n, 32).

NumPy, PyTorch, JAX and pandas read it without this package. Rows of one length at known places need
neither decompression nor a parser, so an image costs one read; the price is disk (12 KiB an image
at 64 pixels, 192 KiB at 256). Shards make an interrupted build lose no more than one of them, and
let a changed file cost one image. Images are found by the digest of their file, so one file is
stored once whatever its label.

The index is moved into place last and names every row that counts: what it does not name was left
by a build that was interrupted, and is used by the next one or removed.
"""

import hashlib
import json
import math
import os
import re
import shutil
import threading
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from cellaug.data.catalogue import REPORT_COLUMNS, Dataset, printable
from cellaug.data.errors import DataError
from cellaug.data.images import read_file, to_square
from cellaug.data.scan import cache_home

import numpy as np
import pandas as pd
from filelock import FileLock
from tqdm import tqdm

INDEX = "index.parquet"
SHARD_BYTES = 2**28
"""Of a full shard; what an interrupted build has to do again is less."""

_FORMAT = 1
_OURS = re.compile(r"shard-\d{5}(\.digests)?\.npy|shard-\d{5}\.part|index\.parquet(\.part)?|\.lock")
_SPARE_BYTES = 2**26  # of disk, that a build leaves free
_BLOCK = 16  # images that a thread decodes at a time
_KEEP = 0.5  # a shard of which less than this is in use is written anew without the rest


class Store:
    """A store on disk, opened for reading.

    Attributes:
        folder: where it lies.
        size: side of the images, pixels.
        table: one row an image, see the module.

    Raises:
        DataError: if there is no complete store, or it is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).resolve()
        try:
            self.table = pd.read_parquet(self.folder / INDEX)
            facts = json.loads(self.table.attrs["cellaug"])
            if facts["format"] != _FORMAT:
                raise ValueError(f"format {facts['format']}, not {_FORMAT}")
        except FileNotFoundError:
            raise DataError(
                f"{self.folder}: no complete store here (no {INDEX}). Build it with "
                "`cellaug store DATA --size PIXELS --out FOLDER`"
            ) from None
        except Exception as error:  # whatever the reader of a damaged table raises
            raise DataError(f"{self.folder / INDEX}: damaged ({error}). Build it again") from error
        self.size: int = facts["size"]
        self._facts = facts
        self._bytes = self.size * self.size * 3
        self._shards = list(dict.fromkeys(self.table["shard"]))
        number = {shard: k for k, shard in enumerate(self._shards)}
        self._row_of = {digest: place for place, digest in enumerate(self.table["digest"])}
        self._shard = self.table["shard"].map(number).to_numpy(np.int64)
        self._reading = threading.Lock()
        self._files, starts = [], []
        weakref.finalize(self, _close, self._files)
        for shard in self._shards:
            file, _, start = _open_shard(self.folder / f"{shard}.npy", self.size)
            self._files.append(file)
            starts.append(start)
        rows = self.table["row"].to_numpy(np.int64)
        self._offset = np.array(starts, np.int64)[self._shard] + rows * self._bytes

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.table)

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether there is a complete store in the folder."""
        return (folder / INDEX).is_file()

    def find(self, digests: Sequence[str]) -> np.ndarray:
        """The places (N,) in the table of the images with these digests.

        Raises:
            DataError: if some are not in the store.
        """
        places = np.array([self._row_of.get(digest, -1) for digest in digests], np.int64)
        if missing := int((places < 0).sum()):
            raise DataError(
                f"{self.folder}: {missing:,} of {len(places):,} images are not in this store, so "
                "files were added or changed since it was built. Build it again"
            )
        return places

    def read(self, places: np.ndarray, out: np.ndarray) -> None:
        """Read the images at `places` (n,) of the table into `out`, uint8 (n, size, size, 3).

        Raises:
            DataError: if a shard has been cut short or cannot be read.
        """
        flat = memoryview(out.reshape(-1))
        wanted = zip(self._shard[places].tolist(), self._offset[places].tolist(), strict=True)
        for k, (shard, offset) in enumerate(wanted):
            view = flat[k * self._bytes : (k + 1) * self._bytes]
            if self._read_at(self._files[shard], view, offset) != self._bytes:
                name = self.folder / f"{self._shards[shard]}.npy"
                raise DataError(f"{name}: cut short. Build the store again")

    def dataset(self) -> Dataset:
        """The dataset that was stored; its images are read from here, its files may be gone."""
        facts, table = self._facts, self.table
        root = Path(facts["root"])
        return Dataset(
            name=facts["name"],
            root=root,
            paths=tuple(root / file for file in table["file"]),
            labels=table["label"].to_numpy(np.int64),
            class_names=tuple(facts["class_names"]),
            digests=tuple(table["digest"]),
            report=pd.DataFrame(facts["report"], columns=REPORT_COLUMNS, dtype=object),
            credit=facts["credit"],
            sides=tuple(table["side"]) if "side" in table else None,
            groups=tuple(table["group"]) if "group" in table else None,
            store=self,
        )

    def _read_at(self, file, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(file.fileno(), [view], offset)
        with self._reading:  # Windows has no reading at a place
            file.seek(offset)
            return file.readinto(view)


def default_folder(dataset: Dataset, size: int) -> Path:
    """Where a dataset's store lies unless another place is given: under the cache home."""
    place = hashlib.sha256(os.fsencode(dataset.root)).hexdigest()[:12]
    return cache_home() / "stores" / f"{dataset.name}-{size}-{place}"


def build_store(
    dataset: Dataset, size: int, folder: str | Path | None = None, shard_bytes: int = SHARD_BYTES
) -> Store:
    """Bring the store of a dataset up to date: decode what is not in it yet, forget what is gone.

    All cores decode. A build that was interrupted goes on where it was, whatever stopped it; until
    it is complete the store as it was before stays the one that is read.

    Args:
        dataset: with its files in place.
        size: side of the stored images, pixels.
        folder: is made if it is missing; see `default_folder`.
        shard_bytes: of a full shard.

    Returns:
        The complete store, open.

    Raises:
        DataError: if there is no room on the disk, the folder holds something else or images of
            another size, or a file has changed since the dataset was opened.
    """
    folder = default_folder(dataset, size) if folder is None else Path(folder).expanduser()
    folder = folder.resolve()
    if size < 1:
        raise DataError(f"size of a store: expected pixels from 1 on, found {size}")
    _check_place(folder, size)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        have = _shards(folder, size)
        stored = {
            digest: (name, k) for name, digests in have.items() for k, digest in enumerate(digests)
        }
        used = {name: 0 for name in have}
        for digest in set(dataset.digests) & stored.keys():
            used[stored[digest][0]] += 1
        worn = {name for name, count in used.items() if count < _KEEP * len(have[name])}
        moved = {d: place for d, place in stored.items() if place[0] in worn}
        fresh: dict[str, Path] = {}
        for digest, path in zip(dataset.digests, dataset.paths, strict=True):
            if digest not in stored or digest in moved:
                fresh.setdefault(digest, path)
        _check_room(folder, len(fresh) * size * size * 3)
        per_shard = max(1, shard_bytes // (size * size * 3))
        first = 1 + max([int(name.removeprefix("shard-")) for name in have], default=-1)
        digests = list(fresh)
        shown = {"unit": "images", "leave": False, "delay": 2, "disable": None}
        with (
            ThreadPoolExecutor(os.cpu_count() or 1) as pool,
            tqdm(desc=f"storing at {size} px", total=len(digests), **shown) as bar,
        ):
            for number, start in enumerate(range(0, len(digests), per_shard), first):
                name, part = f"shard-{number:05d}", digests[start : start + per_shard]
                blocks = [part[k : k + _BLOCK] for k in range(0, len(part), _BLOCK)]
                done = pool.map(
                    lambda block: np.stack(
                        [_pixels(folder, d, fresh[d], moved.get(d), size) for d in block]
                    ),
                    blocks,
                )
                with closing(done):  # so that nothing more is decoded once something is wrong
                    _write_shard(folder, name, part, size, done, bar)
                stored |= {digest: (name, k) for k, digest in enumerate(part)}
        _write_index(folder, dataset, size, stored)
        keep = {stored[digest][0] for digest in dataset.digests}
        for name in have.keys() - keep:
            for suffix in (".digests.npy", ".npy"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
    return Store(folder)


def _pixels(folder: Path, digest: str, path: Path, place, size: int) -> np.ndarray:
    if place is not None:
        return np.load(folder / f"{place[0]}.npy", mmap_mode="r")[place[1]]
    try:
        data, _ = read_file(path)
        if hashlib.sha256(data).hexdigest() != digest:
            raise DataError("has changed since the set was opened; open it again")
        return to_square(data, size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _write_shard(
    folder: Path, name: str, digests: list[str], size: int, blocks: Iterable, bar: tqdm
) -> None:
    """Write a shard and then its digests, each whole or not at all."""
    final = folder / f"{name}.npy"
    part = final.with_suffix(".part")
    with part.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(digests), size, size, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(block.data)
            bar.update(len(block))
    part.replace(final)
    rows = np.frombuffer(b"".join(map(bytes.fromhex, digests)), np.uint8).reshape(-1, 32)
    with part.open("wb") as file:
        np.save(file, rows)
    part.replace(folder / f"{name}.digests.npy")


def _write_index(folder: Path, dataset: Dataset, size: int, stored: dict) -> None:
    table = dataset.table().rename(columns={"path": "file"})
    table["file"] = [printable(file) for file in table["file"]]
    table["class"] = [printable(name) for name in table["class"]]
    table.insert(1, "label", dataset.labels)
    places = [stored[digest] for digest in dataset.digests]
    table["shard"] = [shard for shard, _ in places]
    table["row"] = [row for _, row in places]
    facts = {
        "format": _FORMAT,
        "size": size,
        "name": dataset.name,
        "root": str(dataset.root),
        "class_names": dataset.class_names,
        "credit": dataset.credit,
        "report": dataset.report.to_numpy().tolist(),
    }
    table.attrs = {"cellaug": json.dumps(facts)}
    part = folder / f"{INDEX}.part"
    table.to_parquet(part, index=False)
    part.replace(folder / INDEX)


def _shards(folder: Path, size: int) -> dict[str, list[str]]:
    """The digests of every whole shard, by its name; what an interrupted build left is removed."""
    for part in folder.glob("*.part"):
        part.unlink()
    found = {}
    for file in sorted(folder.glob("*.digests.npy")):
        name = file.name.removesuffix(".digests.npy")
        try:
            rows = np.load(file, allow_pickle=False)
            shard, count, _ = _open_shard(folder / f"{name}.npy", size)
            shard.close()
            if rows.shape != (count, 32):
                raise ValueError("damaged")
        except (OSError, ValueError):
            continue  # not in the result, so its images are decoded again
        found[name] = [row.tobytes().hex() for row in rows]
    for file in folder.glob("shard-*.npy"):
        if file.name.partition(".")[0] not in found:
            file.unlink()
    return found


def _open_shard(path: Path, size: int) -> tuple[BinaryIO, int, int]:
    """Open a shard: its file, the number of its images, and where they begin.

    Raises DataError unless it is whole.
    """
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Build the store again") from error
    try:
        shape, start = _header(file)
        expected = start + math.prod(shape)
        if shape[1:] != (size, size, 3) or os.fstat(file.fileno()).st_size != expected:
            raise DataError(f"{path}: damaged or cut short. Build the store again")
    except DataError:
        file.close()
        raise
    except ValueError as error:
        file.close()
        raise DataError(f"{path}: damaged ({error}). Build the store again") from error
    return file, shape[0], start


def _shape(path: Path) -> tuple[int, ...]:
    try:
        with path.open("rb") as file:
            return _header(file)[0]
    except (OSError, ValueError):
        return ()  # damaged


def _header(file) -> tuple[tuple[int, ...], int]:
    """Shape of the array in an open .npy file, and where its data begin."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
    if read is None:
        raise ValueError(f"version {version} of the .npy format")
    shape, fortran, dtype = read(file)
    if fortran or dtype != np.uint8:
        raise ValueError(f"{dtype} values, expected uint8")
    return shape, file.tell()


def _check_place(folder: Path, size: int) -> None:
    """Refuse a folder that holds anything but a store of this size, or what is left of one."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; give a folder for the store")
    strange = [path.name for path in folder.glob("*") if not _OURS.fullmatch(path.name)]
    if strange:
        raise DataError(
            f"{folder}: is no store (it holds {strange[0]}); give a new or empty folder"
        )
    for file in folder.glob("shard-*.npy"):
        shape = () if file.name.endswith(".digests.npy") else _shape(file)
        if len(shape) == 4 and shape[1] != size:
            raise DataError(
                f"{folder}: holds images of {shape[1]} pixels, not {size}; give another"
            )


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        raise DataError(
            f"{folder}: the store needs {(needed + _SPARE_BYTES) / 2**30:.1f} GiB more, but the "
            f"disk has {free / 2**30:.1f} GiB left. Make room, give another folder, or take fewer "
            "pixels"
        )


def _close(files: list) -> None:
    for file in files:
        file.close()
