"""Divide a set into training, validation and test images, the same way every time.

A user's own set is stratified: every class is divided in the same fractions, and a group (patient
or slide) is never divided. Published sets and the phantoms are divided by content alone.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellaug.data.dataset import Dataset, concat, relative
from cellaug.data.published import BY_NAME, DIGESTS
from cellaug.data.store import Store
from cellaug.errors import DataError

import numpy as np
import pandas as pd

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}
DISJOINT = {"generator": 0.35, "classifier": 0.35, "validation": 0.15, "test": 0.15}
"""The fractions of chapter 01's protocol 'disjoint', the thesis's."""
SEED = 1
"""The seed of a split where none is given: that of the chapters, the studies and `inspect`."""
SPLITS = "splits.parquet"
_KNOWN = 0.25  # of the digests of a set: then it holds published images, as the whole PBC has 0.6
_WORTH = 1e-3  # what moving a group must gain, in squared fractions of a class


def position(digest: str, class_name: str, seed: int) -> float:
    """Return an image's place in [0, 1): uniform over images, fixed for bytes, class and seed."""
    text = f"{seed}\t{class_name}\t{digest}".encode(errors="surrogateescape")
    # 53 bits are what a float holds exactly, so the result stays below 1.
    return (int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 11) / 2**53


def by_content(dataset: Dataset) -> bool:
    """Whether an image's split hangs on its content alone: sets opened by name, and PBC's images.

    The shipped weights have seen no test image of pbc-fine; with other names of classes, or groups,
    others are test images (see `Generator.seen`). A set holds PBC's images if a quarter of its real
    ones have known digests, in whatever folder they lie.
    """
    if dataset.credit and dataset.name in BY_NAME:
        return True
    real = as_published(dataset.table)[dataset.table["origin"] == "real"]
    firsts = [int(digest[:16], 16) for digest in real]
    return len(firsts) > 0 and np.isin(firsts, np.fromfile(DIGESTS, ">u8")).mean() >= _KNOWN


def as_published(table: pd.DataFrame) -> pd.Series:
    """Digests of the files as they were before `augment` resized them: these decide the split."""
    before = table.get("source_sha256", pd.Series("", table.index))
    return table["digest"].astype(object).where(~before.str.fullmatch(r"[0-9a-f]{64}"), before)


def split(
    dataset: Dataset, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, seed: int = SEED
) -> dict[str, Dataset]:
    """Divide `dataset` into named parts of the sizes `fractions`, which sum to 1.

    Every image and group has a `position`, which its bytes and class, or the group's name, and
    `seed` fix. Images without a group are put in this order within their class, which is cut at
    the fractions, so each part has one at least if there are enough. Groups begin where their
    positions put them; then they are moved, the one that gains most first, until the parts hold
    the fractions of every class, and the largest part the largest group of every class, if groups
    with several classes allow it. An image near a cut may change its part if others come or go, and
    so may a group: 5 % more images move about 1 % of the old ones, 5 % more groups (of about 100)
    a tenth of the old images, fewer if there are many groups.
    Sets that are divided `by_content` are cut at the positions themselves, and nothing ever moves.

    Published sides stay; images published for training are divided among the other parts.
    Generated images are only trained on, in "classifier", "train" or the first part. `DataError`
    for wrong fractions, a class without an image in a part, a published side that is no part, or
    generated images on one that is not for training.
    """
    values = fractions.values()
    if not values or min(values) <= 0 or not math.isclose(sum(values), 1, abs_tol=1e-9):
        raise DataError(f"fractions of a split must be positive and sum to 1: {dict(fractions)}")
    table = dataset.table
    sides = np.array(table["side"].replace("", "train"), object)
    held_out = sorted(set(sides) - {"train"})
    if strange := [side for side in held_out if side not in fractions]:
        both = f"{', '.join(strange)}, but the split has only {', '.join(fractions)}"
        raise DataError(f"{dataset.name} is published with the side {both}")
    made = (table["origin"] == "synthetic").to_numpy() & np.isin(sides, held_out)
    if made.any():
        what = f"{made.sum():,} generated images are published as {' and '.join(set(sides[made]))}"
        fix = "Only real cells can test: move them to train, or leave them out"
        raise DataError(f"{dataset.name}: {what}, such as {table['path'][made.argmax()]}. {fix}")
    divided = [name for name in fractions if name not in held_out]
    if divided:
        free = np.flatnonzero((sides == "train") & (table["origin"] == "real"))
        wanted = np.array([fractions[name] for name in divided])
        found = _divided(dataset.subset(free), wanted / wanted.sum(), seed)
        trained = next((name for name in ("classifier", "train") if name in divided), divided[0])
        sides[sides == "train"] = trained
        sides[free] = np.array(divided, object)[found]
    parts = {name: dataset.subset(sides == name) for name in fractions}
    for name, part in parts.items():
        for kind in dataset.counts().index[part.counts() == 0]:
            why, fix = _why_none(dataset, kind, name, divided)
            what = (
                f'so the split "{name}" ({100 * fractions[name]:.0f} %) would have no image of it'
            )
            raise DataError(f"{why}, {what}. {fix}")
    return parts


def plan(dataset: Dataset) -> dict[str, Any]:
    """How `split` divides a set by default, as words and numbers."""
    published = sorted(set(dataset.table["side"]) - {"", "train"})
    grouped = dataset.table["group"] != ""
    unit = "patient or slide" if grouped.any() else "image"
    unit += ", and by image where none is known" if grouped.any() and not grouped.all() else ""
    facts: dict[str, Any] = {"seed": SEED, "fractions": dict(DEFAULT_FRACTIONS), "by": unit}
    return facts | {"published": published, "stratified": not by_content(dataset)}


def sides_of_groups(table: pd.DataFrame) -> pd.Series:
    """The sides on which each known group (index) is, of a table with columns group and side."""
    known = table[(table["group"] != "") & (table["side"] != "")]
    return known.groupby("group", observed=True)["side"].unique()


def measurable(parts: Mapping[str, Dataset]) -> pd.DataFrame:
    """What the test images of each class can measure.

    Columns, by class: images of the part "test"; groups (patients or slides) in all parts, 0 if
    some are unknown, and those tested, in "test"; low and high, the exact 95 % interval (Clopper &
    Pearson 1934) that a recall of 0.9 has with so few images, NaN with none.
    """
    from scipy.stats import binomtest  # here: it takes half a second

    whole = pd.concat([part.table for part in parts.values()])
    by_class = whole[whole["origin"] == "real"].groupby("class", observed=False)["group"]
    groups = by_class.nunique().where(~by_class.agg(lambda names: (names == "").any()), 0)
    images = tested = groups * 0
    if "test" in parts:
        images = parts["test"].counts()
        tested = parts["test"].table.groupby("class", observed=False)["group"].nunique()
    found = pd.DataFrame({"images": images, "groups": groups.astype(int), "tested": tested})
    for kind, count in images[images > 0].items():
        interval = binomtest(round(0.9 * count), int(count)).proportion_ci()
        found.loc[kind, ["low", "high"]] = interval.low, interval.high
    return found.reindex(columns=["images", "groups", "tested", "low", "high"])


def _divided(cells: Dataset, shares: np.ndarray, seed: int) -> np.ndarray:
    """The part of each image, as numbers (N,) into `shares`."""
    table = cells.table
    digests = as_published(table)
    rows = zip(digests, table["class"], table["group"], strict=True)
    places = [position(g, "a group", seed) if g else position(d, k, seed) for d, k, g in rows]
    found = np.searchsorted(np.cumsum(shares)[:-1], places, side="right")
    if not by_content(cells):
        table = table.assign(place=places)
        alone = table[table["group"] == ""]
        for _, of_class in alone.groupby("class", observed=True)["place"]:
            found[of_class.index] = _by_rank(of_class.to_numpy(), shares)
        if len(grouped := table[table["group"] != ""]):
            found[grouped.index] = _by_group(grouped, shares)
    return found


def _by_rank(places: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Cut the sorted positions at the fractions; each part has one if there are enough."""
    places, number = np.unique(places, return_inverse=True)  # copies have one position
    part = np.arange(1, len(shares))
    cuts = np.rint(np.cumsum(shares)[:-1] * len(places) + 1e-9).astype(int)
    cuts = np.maximum.accumulate(cuts - part) + part
    cuts = np.maximum(np.minimum(cuts, len(places) - len(shares) + part), part)
    return np.searchsorted(cuts, number, side="right")


def _by_group(table: pd.DataFrame, shares: np.ndarray) -> np.ndarray:
    """Move groups from where their positions put them until the classes have their fractions.

    The largest group of a class begins in the largest part, and leaves it only for a part that has
    none of a class.
    """
    group, names = pd.factorize(table["group"], sort=True)
    counts = np.zeros((len(names), len(table["class"].cat.categories)))
    np.add.at(counts, (group, table["class"].cat.codes), 1)
    counts = counts[:, counts.any(axis=0)]
    held = counts / counts.sum(axis=0)  # (groups, classes): fractions of each class
    has, number = (held > 0).astype(float), np.arange(len(held))
    enough = has.sum(axis=0) >= len(shares)  # classes that can be in every part
    places = table["place"].to_numpy()[np.unique(group, return_index=True)[1]]
    part = np.searchsorted(np.cumsum(shares)[:-1], places, side="right")
    leads = np.bincount(held.argmax(axis=0), enough, len(held))  # of how many it is the largest
    trained = np.isclose(shares, shares.max())
    part[(leads > 0) & ~trained[part]] = shares.argmax()
    for _ in range(2 * len(held)):  # far more than are ever moved
        inside = np.eye(len(shares))[part].T  # (parts, groups)
        over = held @ (inside @ held - shares[:, None]).T  # (groups, parts)
        gain = over[number, part][:, None] - over - (held**2).sum(axis=1, keepdims=True)
        many = inside @ has
        gain += has @ ((many == 0) & enough).T  # a part that has none of a class comes first
        gain -= (has * ((many == 1) & enough)[part]).sum(axis=1, keepdims=True)
        gain -= 0.9 * leads[:, None] * (trained[part][:, None] & ~trained)
        gain[number, part] = 0
        one, to = np.unravel_index(gain.argmax(), gain.shape)
        if gain[one, to] < _WORTH:
            break
        part[one] = to
    return part[group]


def _why_none(dataset: Dataset, kind: str, part: str, divided: list[str]) -> tuple[str, str]:
    """Why a part would have no image of a class, and what helps."""
    table = dataset.table[dataset.table["class"] == kind]
    real = table[table["origin"] == "real"]
    free = real[real["side"].isin(["", "train"])]
    images = f"{len(free)} images" + " published for training" * (len(free) < len(real))
    groups, parts = sorted(set(free["group"])), len(divided)
    if len(table) and not len(real):
        return f'all {len(table)} images of class "{kind}" are generated', "Add real images"
    if part not in divided:
        why = f'the published split puts the {len(real)} images of class "{kind}" elsewhere'
        return why, "Correct the column 'split' of the table, or remove it"
    if "" not in groups and 0 < len(groups) < parts:
        some = "one patient or slide" if len(groups) == 1 else f"{len(groups)} patients or slides"
        why = f'all {images} of class "{kind}" come from {some} ({", ".join(groups)})'
        fix = f"A group is never divided: add images of others, {parts} splits need as many"
        return why, f"{fix}. If these are no patients or slides, list the images in a table"
    fix = "Add images of it"
    if by_content(dataset):
        why = "the images of public sets and drawn cells are divided by their content alone"
        fix = f"{fix}: {why}, so that a small class can miss a part"
        if "" not in groups and groups:
            images += f" of {len(groups)} patients or slides"
            fix = f"{fix}, as can a class of few groups: add images of other patients or slides"
    fix = f"Add images: {parts} splits need as many" if len(free) < parts else fix
    return f'class "{kind}" has only {images}', fix


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
