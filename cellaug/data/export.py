"""Write a set's images into folders of their classes, as they are or all of one size."""

import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

from cellaug.data.columns import OURS
from cellaug.data.dataset import Dataset
from cellaug.data.images import as_png, decode
from cellaug.errors import DataError
from cellaug.files import inside, name_problem, progress

import numpy as np
import pandas as pd
from PIL import Image

_ODD = r"[\\:]"  # in file names, what other systems take for a separator or a drive
_AT_ONCE = 64  # images


def export(dataset: Dataset, folder: Path, size: int | None = None) -> pd.DataFrame:
    """Write a set's images as `<class>/<file name>` into a folder; returns their manifest's rows.

    Without a size all are copied byte for byte. With one, in pixels, only those are that have it
    (square, 8-bit RGB); the others are cropped and resized as `Dataset.read` does it, and written
    as PNG. The rows have path, label, origin "real", split, group and all other columns of the set
    that are not empty, source (the path in the set) and, if any was resized, source_sha256 (the
    digest that such an image had). DataError for an image that has changed since the set was
    opened, and for a class name that is none for a folder.
    """
    table = dataset.table
    for label in table["class"].unique():
        if problem := name_problem(label) or "holds a slash" * bool(re.search(r"[/\\]", label)):
            raise DataError(f"the class name {label[:99]!r} {problem}: rename the class")
        inside(folder, label).mkdir()
    places: dict[str, str] = {}
    resized: list[str] = []
    rows = zip(dataset.paths, table["class"], table["digest"], _files(dataset, size), strict=True)
    for path, label, digest, (content, as_it_was) in progress(rows, "copying", total=len(table)):
        stem, suffix = re.sub(_ODD, "_", path.stem), path.suffix if as_it_was else ".png"
        name = f"{label}/{stem}{suffix}"
        if name.lower() in places:
            name = f"{label}/{stem}_{digest[:12]}{suffix}"
        places[name.lower()] = name
        resized.append("" if as_it_was else digest)
        inside(folder, name).write_bytes(content)
    real = {"path": places.values(), "label": table["class"].astype(object), "origin": "real"}
    known = table.drop(columns=["path", "class", "digest", "origin"], errors="ignore")
    known = known.loc[:, (known != "").any()].rename(columns={"side": "split"})
    known = known.rename(columns={name: f"{name} (manifest)" for name in OURS})
    known["source"] = table["path"]
    if any(resized):
        known["source_sha256"] = resized
    return pd.DataFrame(real).join(known)


def as_text(manifest: pd.DataFrame, size: int | str | None, drawn: int) -> str:
    """What became of a set, with generated images added, for a terminal.

    `size` is that of the order, in pixels a side or "original" for real images as they are, `drawn`
    that of the generator, which is taken for None.
    """
    counts = manifest.groupby(["label", "origin"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=["real", "synthetic"], fill_value=0)
    real = manifest[manifest["origin"] == "real"]
    resized = 0 if "source_sha256" not in real else int((real["source_sha256"] != "").sum())
    pixels = int(size or drawn) if size != "original" else drawn
    how = f"{resized:,} of {len(real):,} real images were resized; all have {pixels} pixels a side"
    if size == "original":
        how = "Real images keep their size, so their sharpness can tell them from generated ones"
    elif pixels > drawn:
        how += f". Generated ones were enlarged from {drawn}: their sharpness can give them away"
    lines = [counts.to_string(), how]
    if "split" in real:
        count = int(real["split"].isin(["", "train"]).sum())
        lines.append(f"Of the published split, the {count:,} training images count for the ratio")
    left = counts["real"][counts["synthetic"] == 0]
    if len(left):
        named = ", ".join(f"{name} ({count:,} real)" for name, count in left.items())
        lines.append(f"No generated images were added to: {named}")
    return "\n".join(lines)


def _files(dataset: Dataset, size: int | None) -> Iterator[tuple[bytes, bool]]:
    """Each image's file as it will be, and whether it is the one that it was."""
    held = dataset.store is not None and dataset.store.size == size
    for start in range(0, len(dataset), _AT_ONCE):
        part = dataset.subset(np.arange(start, min(start + _AT_ONCE, len(dataset))))
        files = [
            b"" if held and not path.exists() else _unchanged(path, digest)
            for path, digest in zip(part.paths, part.digests, strict=True)
        ]
        fits = np.array([size is None or _has_size(file, size) for file in files])
        images = iter(() if size is None else part.subset(~fits).read(size))
        for file, fit in zip(files, fits, strict=True):
            yield file if fit else as_png(next(images)), bool(fit)


def _unchanged(path: Path, digest: str) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(f"{path} changed since the data set was opened: open it again")
    return content


def _has_size(content: bytes, size: int) -> bool:
    """Whether a file, b"" if it is gone, is a square image of that size in 8-bit RGB."""
    if not content:
        return False
    with Image.open(io.BytesIO(content)) as header:
        same = header.size == (size, size) and header.mode == "RGB"
    return same and not decode(content)[1]
