"""Divide a dataset by content: the side of an image depends on the image alone."""

import hashlib
import json
import math
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType

from cellaug.data.catalogue import REPORT_COLUMNS, Dataset, relative
from cellaug.data.errors import DataError
from cellaug.data.images import write_atomically
from cellaug.data.store import Store

import numpy as np
import pandas as pd

DEFAULT_FRACTIONS = MappingProxyType({"train": 0.7, "validation": 0.15, "test": 0.15})


def position(digest: str, class_name: str, seed: int) -> float:
    """Return an image's place in [0, 1): uniform over images, fixed for bytes, class and seed."""
    text = f"{seed}\t{class_name}\t{digest}".encode(errors="surrogateescape")
    # 53 bits are what a float holds exactly, so the result stays below 1.
    return (int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 11) / 2**53


def split(
    dataset: Dataset,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> dict[str, Dataset]:
    """Divide `dataset` into named parts of about the given sizes.

    The side of an image is a function of its bytes, its class name and `seed` alone: it keeps its
    side when other images come or go. Hence the sizes are met on average only. Images of one group
    (patient or slide) stay together: their side is a function of the group's name and `seed`.

    Where the dataset has published sides they stay: the parts named like one are that side, and
    the images published for training are divided among the others, such as the validation images
    of a set that is published with a test side only.

    `fractions` are positive and sum to 1. Raises `DataError` if they do not, if a class would have
    no image in a part, or if a published side is not among the parts.
    """
    values = list(fractions.values())
    if not values or min(values) <= 0 or not math.isclose(sum(values), 1, abs_tol=1e-9):
        raise DataError(f"fractions of a split must be positive and sum to 1: {dict(fractions)}")
    places = _places(dataset, seed)
    published = np.array(dataset.sides or ["train"] * len(dataset), object)
    held_out = sorted(set(published) - {"train"})
    if strange := [side for side in held_out if side not in fractions]:
        raise DataError(
            f"{dataset.name} is published with the side {', '.join(strange)}, but the split has "
            f"only {', '.join(fractions)}"
        )
    divided = [name for name in fractions if name not in held_out]
    bounds = np.array(list(accumulate(fractions[name] for name in divided)))
    sides = published.copy()
    inside = published == "train"
    if inside.any() and divided:
        found = np.searchsorted(bounds[:-1] / bounds[-1], places[inside], side="right")
        sides[inside] = np.array(divided, object)[found]
    parts = {}
    for name in fractions:
        parts[name] = dataset.subset(np.flatnonzero(sides == name))
        for class_name, count in parts[name].counts().items():
            if count == 0:
                whole = dataset.counts()[class_name]
                raise DataError(
                    f'class "{class_name}" ({whole} images) would have no image in the split '
                    f'"{name}" ({fractions[name]:.0%}). Add images, or choose other fractions or '
                    "another seed"
                )
    return parts


def _places(dataset: Dataset, seed: int) -> np.ndarray:
    """Return each image's place in [0, 1); one place for all of a group."""
    groups = dataset.groups or ("",) * len(dataset)
    rows = zip(dataset.digests, dataset.labels, groups, strict=True)
    return np.array(
        [
            position(group, "a group", seed)
            if group
            else position(digest, dataset.class_names[label], seed)
            for digest, label, group in rows
        ]
    )


def save_splits(parts: Mapping[str, Dataset], folder: str | Path) -> Path:
    """Write which image is in which part to `splits.json` in `folder`; return that file.

    The images themselves stay where they are; a store within `folder` may be moved along with it.
    """
    stored = {
        side: {
            "name": part.name,
            "root": str(part.root),
            "paths": part.table()["path"].tolist(),
            "labels": part.labels.tolist(),
            "class_names": part.class_names,
            "digests": part.digests,
            "report": part.report.to_numpy().tolist(),
            "credit": part.credit,
            "truth": None if part.truth is None else part.truth.to_dict("list"),
            "sides": part.sides,
            "groups": part.groups,
            "store": None
            if part.store is None
            else relative(part.store.folder, Path(folder).resolve()),
        }
        for side, part in parts.items()
    }
    file = Path(folder) / "splits.json"
    write_atomically(file, json.dumps(stored).encode())
    return file


def load_splits(folder: str | Path) -> dict[str, Dataset]:
    """Read what `save_splits` wrote.

    Raises `DataError` if there is no such file or an image it names is gone.
    """
    file = Path(folder) / "splits.json"
    try:
        stored = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); divide the images again") from error
    parts = {}
    stores = {row["store"] for row in stored.values() if row["store"]}
    opened = {store: Store(Path(folder) / store) for store in stores}
    for side, row in stored.items():
        root = Path(row["root"])
        paths = tuple(root / path for path in row["paths"])
        for path in () if row["store"] else paths:
            if not path.exists():
                raise DataError(f"{path}: named in {file}, but gone; divide the images again")
        parts[side] = Dataset(
            name=row["name"],
            root=root,
            paths=paths,
            labels=np.array(row["labels"], np.int64),
            class_names=tuple(row["class_names"]),
            digests=tuple(row["digests"]),
            report=pd.DataFrame(row["report"], columns=REPORT_COLUMNS, dtype=object),
            credit=row["credit"],
            truth=None if row["truth"] is None else pd.DataFrame(row["truth"]),
            sides=None if row["sides"] is None else tuple(row["sides"]),
            groups=None if row["groups"] is None else tuple(row["groups"]),
            store=opened.get(row["store"]),
        )
    return parts
