"""Divide a dataset by content: the part that an image falls into depends on the image alone."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cellaug.data.dataset import Dataset, concat, relative
from cellaug.data.store import Store
from cellaug.errors import DataError

import numpy as np

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}
SPLITS = "splits.parquet"


def position(digest: str, class_name: str, seed: int) -> float:
    """Return an image's place in [0, 1): uniform over images, fixed for bytes, class and seed."""
    text = f"{seed}\t{class_name}\t{digest}".encode(errors="surrogateescape")
    # 53 bits are what a float holds exactly, so the result stays below 1.
    return (int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 11) / 2**53


def split(
    dataset: Dataset, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, seed: int = 0
) -> dict[str, Dataset]:
    """Divide `dataset` into named parts of about the sizes `fractions`, which sum to 1.

    The part of an image depends on its bytes, class name and `seed` alone, whatever other images
    come or go, or if it has a group (patient or slide) on the group's name and `seed`. Published
    sides stay; images published for training are divided among the other parts. `DataError` for
    wrong fractions, a class without an image in a part, or a published side that is no part.
    """
    values = fractions.values()
    if not values or min(values) <= 0 or not math.isclose(sum(values), 1, abs_tol=1e-9):
        raise DataError(f"fractions of a split must be positive and sum to 1: {dict(fractions)}")
    sides = dataset.table["side"].replace("", "train").to_numpy(object)
    held_out = sorted(set(sides) - {"train"})
    if strange := [side for side in held_out if side not in fractions]:
        both = f"{', '.join(strange)}, but the split has only {', '.join(fractions)}"
        raise DataError(f"{dataset.name} is published with the side {both}")
    if divided := [name for name in fractions if name not in held_out]:
        rows = dataset.table[["digest", "class", "group"]].itertuples(index=False, name=None)
        places = [position(g, "a group", seed) if g else position(d, k, seed) for d, k, g in rows]
        bounds = np.cumsum([fractions[name] for name in divided])
        found = np.searchsorted(bounds[:-1] / bounds[-1], places, side="right")
        sides = np.where(sides == "train", np.array(divided, object)[found], sides)
    parts = {name: dataset.subset(sides == name) for name in fractions}
    for name, part in parts.items():
        for kind, count in dataset.counts()[part.counts() == 0].items():
            lacking = f'class "{kind}" ({count} images) would have no image in the split "{name}"'
            fix = "Add images, or choose other fractions or another seed"
            raise DataError(f"{lacking} ({fractions[name]:.0%}). {fix}")
    return parts


def save_splits(parts: Mapping[str, Dataset], folder: str | Path) -> Path:
    """Write a set's parts to `splits.parquet` in `folder`, which may move with a store in it."""
    folder = Path(folder)
    whole = concat(list(parts.values()))
    names = np.repeat(list(parts), [len(part) for part in parts.values()])
    store = None if whole.store is None else relative(whole.store.folder, folder.resolve())
    table = whole.table.assign(part=names.astype(object))
    replace(whole, table=table).save(folder / SPLITS, parts=list(parts), store=store)
    return folder / SPLITS


def load_splits(folder: str | Path) -> dict[str, Dataset]:
    """Read what `save_splits` wrote; `DataError` if the file or an image it names is gone."""
    file = Path(folder) / SPLITS
    try:
        whole, facts = Dataset.load(file)
        names = facts["parts"]
    except Exception as error:  # whatever the readers of damaged files raise
        raise DataError(f"{file}: cannot be read ({error}); divide the images again") from error
    if facts["store"] is not None:
        whole = replace(whole, store=Store(Path(folder) / facts["store"]))
    elif gone := next((path for path in whole.paths if not path.exists()), None):
        raise DataError(f"{gone}: named in {file}, but gone; divide the images again")
    part = whole.table.pop("part")
    return {name: whole.subset(part == name) for name in names}
