"""A store: images decoded once, cropped, resized and kept on disk as uint8.

A folder with `index.parquet`, one row per image (see `Dataset.table`; `adler32` is the checksum of
its pixels), and `images-….npy`, uint8 (n, size, size, 3): its row k is the image of the k-th
distinct digest of the index. One read at a known offset fetches an image. The index is moved into
place last: until then the old store is used.
"""

import hashlib
import os
import re
import weakref
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cellaug.data.dataset import Dataset
from cellaug.data.images import read_image
from cellaug.errors import DataError
from cellaug.files import cache_home, inside, progress, require_room

import numpy as np
import pandas as pd
from filelock import FileLock

INDEX, SUM = "index.parquet", "adler32"  # SUM: the column of the pixels' checksums
_FORMAT = 3
_OURS = re.compile(r"(images|shard)-\w+(\.digests)?\.(npy|part)|\.?index\.parquet(.*part)?|\.lock")
_SPARE_BYTES = 2**26  # of disk, that a build leaves free
_AT_ONCE = 256  # images that are decoded before they are written


class Store:
    """A store's `images`, uint8 (n, size, size, 3), row by row of `digests`; else `DataError`."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).resolve()
        try:
            cells, facts = Dataset.load(self.folder / INDEX)
            self.size: int = facts["size"]
            once = cells.table.drop_duplicates("digest")
            self.digests, self.sums = pd.Index(once["digest"]), once[SUM].tolist()
            self._dataset = replace(cells, table=cells.table.drop(columns=SUM))
            self.file = inside(self.folder, facts["array"])
            self.images = np.load(self.file, mmap_mode="r")
            found = facts["format"], self.images.dtype, self.images.shape
            if found != (_FORMAT, np.uint8, (len(self.digests), self.size, self.size, 3)):
                raise ValueError("it holds {1} {2} in format {0}".format(*found))
        except Exception as error:  # whatever the readers of damaged files raise
            build = "Build it with `cellaug store DATA --size PIXELS --out FOLDER`"
            raise DataError(f"{self.folder}: no complete store here ({error}). {build}") from error
        self._open = os.open(self.file, os.O_RDONLY)
        weakref.finalize(self, os.close, self._open)

    def __len__(self) -> int:
        """Return the number of images of the set that was stored."""
        return len(self._dataset)

    def find(self, digests: Sequence[str]) -> np.ndarray:
        """Return the rows (N,) of `images` with these digests; `DataError` if some are missing."""
        rows = self.digests.get_indexer(list(digests))
        if missing := int((rows < 0).sum()):
            what = f"{missing:,} of {len(rows):,} images are not in this store"
            raise DataError(f"{self.folder}: {what}: added or changed since. Build it again")
        return rows

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read rows (n,) into `out`, uint8 (n, size, size, 3); `DataError` if they are damaged."""
        at_an_offset = hasattr(os, "preadv")  # not on Windows
        for row, image in zip(rows.tolist(), out, strict=True):
            if at_an_offset:
                # Not from the mapped array, whose pages would count as memory of this process.
                start = self.images.offset + row * image.nbytes
                whole = os.preadv(self._open, [image], start) == image.nbytes
            else:
                image[:], whole = self.images[row], True
            if not whole or zlib.adler32(image) != self.sums[row]:
                fix = f"Delete {self.folder} and build the store again"
                raise DataError(f"{self.file}: the pixels of image {row} are damaged. {fix}")

    def dataset(self) -> Dataset:
        """Return the dataset that was stored, read from here; its files may be gone."""
        return replace(self._dataset, store=self)


def stored(dataset: Dataset, size: int, folder: str | Path | None = None) -> Dataset:
    """Return this dataset with its images decoded once into a store, new or brought up to date.

    Store a set before dividing it: its parts share the store, of `size` pixels a side, in `folder`
    (the cache by default). `DataError` without room, in a folder of other files, or if one changed.
    """
    if size < 1:
        raise DataError(f"size of a store: expected pixels from 1 on, found {size}")
    if folder is None:
        place = hashlib.sha256(os.fsencode(dataset.root)).hexdigest()[:12]
        folder = cache_home() / "stores" / f"{dataset.name}-{size}-{place}"
    folder = Path(folder).expanduser().resolve()
    strange = [path.name for path in folder.glob("*") if not _OURS.fullmatch(path.name)]
    if strange or folder.is_file():
        what = f"holds {strange[0]}" if strange else "is a file"
        raise DataError(f"{folder}: is no store (it {what}); give a new or empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for part in folder.glob("*.part"):  # of a build that was killed
            part.unlink()
        old = None
        with suppress(DataError):  # none, or a damaged one, which is made again
            old = Store(folder)
        if old and old.size != size:
            what = f"holds images of {old.size} pixels, not {size}; give another folder"
            raise DataError(f"{folder}: {what}")
        files = dict(zip(dataset.digests, dataset.paths, strict=True))
        name = f"images-{hashlib.sha256(''.join(files).encode()).hexdigest()[:16]}.npy"
        if old and old.file.name == name:
            sums = dict(zip(old.digests, old.sums, strict=True))
        else:
            sums = _write_array(folder / name, files, size, old)
        table = dataset.table.assign(**{SUM: dataset.table["digest"].map(sums)})
        replace(dataset, table=table).save(folder / INDEX, format=_FORMAT, size=size, array=name)
        for path in folder.glob("*"):
            if path.name not in (name, INDEX, ".lock"):
                path.unlink()
    return replace(dataset, store=Store(folder))


def _write_array(
    target: Path, files: dict[str, Path], size: int, old: Store | None
) -> dict[str, int]:
    """Write the images of these files, by digest, to one array; take old ones from a store.

    Returns the checksums of their pixels, by digest.
    """
    needed = len(files) * size * size * 3 + _SPARE_BYTES
    require_room(target.parent, needed, "the store")

    def pixels(digest: str) -> memoryview:
        image = old.images[rows[digest]].data if old and digest in rows else None
        if old is None or image is None or zlib.adler32(image) != old.sums[rows[digest]]:
            image = read_image(files[digest], size, digest).data
        sums[digest] = zlib.adler32(image)
        return image

    sums: dict[str, int] = {}
    rows = {digest: row for row, digest in enumerate(old.digests)} if old else {}
    part, digests = target.with_suffix(".part"), list(files)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), size, size, 3)}
    starts = range(0, len(files), _AT_ONCE)
    try:
        with part.open("wb") as file, ThreadPoolExecutor() as pool:
            np.lib.format.write_array_header_1_0(file, header)
            for start in progress(starts, f"storing at {size} px", unit_scale=_AT_ONCE):
                file.writelines(pool.map(pixels, digests[start : start + _AT_ONCE]))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return sums
