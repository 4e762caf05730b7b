"""Measure images: brightness, contrast, colour, sharpness, the background, and a thumbnail.

What was measured once is kept under the cache home, by the contents of the files.
"""

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cellaug.data.copies import THUMBNAIL, near_duplicates
from cellaug.data.dataset import Dataset
from cellaug.data.images import decode_same, fit_square
from cellaug.data.scan import DECODERS
from cellaug.files import cache_home, in_parallel, write_atomically

import cv2
import numpy as np
import pandas as pd

_BY = ("inspection.yaml", "measure.py", "copies.py", "images.py")
# Other code or decoders may find other values: then nothing is taken from the cache.
_RULES = b"".join(Path(__file__).with_name(name).read_bytes() for name in _BY) + DECODERS.encode()
_BLOCK = 128  # images measured at once
_SIDE = 256  # pixels, to which images are brought, so that their sharpness can be compared
_COLUMNS = ["values", "thumbnail"]


def measure(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure the central square of one image, uint8 RGB (H, W, 3).

    Returns nine values, width and height in pixels, brightness, contrast, colour, sharpness (units
    as in `inspection.MEASURES`) and the background's L*, a*, b* (the median of the brightest fifth
    of the border: bare glass on a smear), and a grey thumbnail, uint8 (32, 32).
    """
    side = min(image.shape[:2])
    near = _SIDE < side < 2 * _SIDE  # here averaging areas would take four times as long
    square = fit_square(image, side if near else _SIDE)
    square = cv2.resize(square, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR) if near else square
    sharpness = cv2.Laplacian(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var()
    small = cv2.resize(square, (64, 64), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    border = lab[np.pad(np.zeros((48, 48), bool), 8, constant_values=True)]
    bare = border[border[:, 0] >= np.quantile(border[:, 0], 0.8)]
    values = [*image.shape[1::-1], lightness.mean(), lightness.std(), chroma.mean(), sharpness]
    tiny = cv2.resize(small, (THUMBNAIL,) * 2, interpolation=cv2.INTER_AREA)
    return np.array([*values, *np.median(bare, axis=0)]), cv2.cvtColor(tiny, cv2.COLOR_RGB2GRAY)


def measured(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """`measure` of each image: the values, float64 (N, 9), and thumbnails, uint8 (N, 32, 32)."""
    store, digests = dataset.store, pd.Index(dataset.digests)
    file = _cached("measured", os.fsencode(f"{dataset.root.resolve()} {store and store.size}"))
    known = _read(file)
    fresh = np.flatnonzero(~digests.isin(known.index) & ~digests.duplicated())
    parts = (dataset.subset(fresh[i : i + _BLOCK]) for i in range(0, len(fresh), _BLOCK))
    images = (
        p.read(store.size) if store else (*zip(p.paths, p.digests, strict=True),) for p in parts
    )
    found = in_parallel(_measured, images, "measuring", len(fresh), _BLOCK)
    if found:
        rows = [row for part in found for row in part]
        known = pd.concat([known, pd.DataFrame(rows, digests[fresh], _COLUMNS)])
        _write(file, known)
    rows = known.loc[digests]
    thumbnails = np.frombuffer(b"".join(rows["thumbnail"]), np.uint8)
    return np.stack(rows["values"].to_list()), thumbnails.reshape(-1, THUMBNAIL, THUMBNAIL)


def _measured(images: Iterable[np.ndarray | tuple[Path, str]]) -> list[tuple[np.ndarray, bytes]]:
    decoded = (decode_same(*i) if isinstance(i, tuple) else i for i in images)
    return [(values, tiny.tobytes()) for values, tiny in map(measure, decoded)]


def near_pairs(thumbnails: np.ndarray) -> pd.DataFrame:
    """`near_duplicates`, which are searched only once for the same thumbnails."""
    file = _cached("near", thumbnails.tobytes())
    found = _read(file)
    if not len(found.columns):
        found = near_duplicates(thumbnails)
        _write(file, found)
    return found


def _cached(kind: str, content: bytes) -> Path:
    """The file of what was made from this content by these rules."""
    return cache_home() / kind / f"{hashlib.sha256(_RULES + content).hexdigest()[:32]}.parquet"


def _read(file: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError):  # none yet, or a damaged one
        return pd.DataFrame()


def _write(file: Path, table: pd.DataFrame) -> None:
    with suppress(OSError):  # it will be made again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, table.to_parquet())
