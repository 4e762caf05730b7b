"""Check a profile before its first chapter runs: its values, its data set, room on the disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from warnings import catch_warnings, warn

from cellaug.data import open_dataset, split
from cellaug.data.dataset import Dataset
from cellaug.data.published import NAMES
from cellaug.data.sets import OVERLOOKED
from cellaug.data.splits import DISJOINT, sides_of_groups
from cellaug.errors import DataError
from cellaug.files import free_bytes

import click

# What a key may be, by the end of its name.
BOUNDS: dict[str, click.ParamType] = {
    "seed": click.IntRange(0, 2**31),
    "phantom_classes": click.IntRange(2, 33),
    "phantom_images": click.IntRange(1, 1_000_000),
    "phantom_size": click.IntRange(16, 512),
    "image_size": click.Choice([2**k for k in range(4, 11)]),  # every layer doubles the side
    "protocol": click.Choice(("one pool", "disjoint")),
    "memory_mb": click.IntRange(0, 2**20),
    "latent_dim": click.IntRange(1, 2**14),
    "kernel": click.IntRange(1, 31),
    "variance": click.FloatRange(0, 100, min_open=True),
    "beta_1": click.FloatRange(0, 1, max_open=True),
    "learning_rate": click.FloatRange(0, 1, min_open=True),
    "classifier": click.Choice(("compact", "xception")),
    "ratio": click.FloatRange(0, 1000, min_open=True, max_open=True),
    "diversity_images": click.IntRange(2, 1_000_000),
    **dict.fromkeys(
        ("batch_size", "depth", "epochs", "images", "steps", "seeds"), click.IntRange(1, 10**9)
    ),
}
_SPARE_BYTES = 2**30  # of networks, checkpoints and notebooks


def wrong_values(values: Mapping[str, Any]) -> list[str]:
    """A sentence for each value that no chapter can use; types are right already."""
    found = {}
    for key, value in values.items():
        kind = next((kind for end, kind in BOUNDS.items() if key.endswith(end)), None)
        if kind and isinstance(value, int | float | str):
            try:
                kind.convert(value, None, None)
                if value != value:
                    raise click.BadParameter("nan is not a number.")
            except click.BadParameter as error:
                found[key] = f"{key}: {error.message}"
    size = values.get("image_size", 16)
    for key in {"generator_depth", "recipe_generator_depth"} & set(values) - set(found):
        if "image_size" not in found and values[key] % (size // 8):
            fix = f"expected a multiple of {size // 8} at image_size {size}, since every layer"
            found[key] = f"{key}: {values[key]} cannot be halved often enough; {fix} halves it."
    return [found[key] for key in sorted(found)]


def own_data(given: str, folders: Sequence[Path]) -> str:
    """The name of a known set as it is, else the absolute path below the first folder with it.

    Raises DataError, naming all places, where there is none.
    """
    if given in ("phantom", *NAMES):
        return given
    path = Path(given).expanduser()
    places = list(dict.fromkeys(folder.absolute() / path for folder in folders))
    if found := next((place for place in places if place.exists()), None):
        return str(found.resolve())
    known = f"Give phantom, {', '.join(NAMES)}, or the path of a folder or table"
    raise DataError(f"data: there is no {' and no '.join(map(str, places))}. {known}.")


def data_problems(values: Mapping[str, Any], build: Path) -> list[str]:
    """A sentence for each reason why the data set does not do for chapter 01 and those after it.

    It must open, every class must reach into every split, a batch must not be larger than the
    generator's training split, and the disk of the folder `build` must hold what a run writes.
    """
    drawing = {key: values[f"phantom_{key}"] for key in ("classes", "images", "size")}
    given = drawing | {"seed": values["seed"]} if values["data"] == "phantom" else {}
    disjoint = False
    try:
        with catch_warnings(action="ignore"):  # the report has them, and they are told below
            cells = open_dataset(values["data"], **given)
        parts = split(cells, seed=values["seed"])
        if disjoint := values["protocol"] == "disjoint":
            parts = split(cells, DISJOINT, values["seed"])
    except DataError as error:
        four = ". The protocol 'disjoint' needs four splits, 'one pool' only three"
        return [f"data: {error}{four * disjoint}"]
    unread = cells.report["reason"].str.startswith(OVERLOOKED)
    if unread.any():
        return [f"data: {why}." for why in cells.report["reason"][unread]]
    sides = sides_of_groups(cells.table)
    if torn := int((sides.map(len) > 1).sum()):
        what = f"{torn:,} of {len(sides):,} groups (patients or slides) are on several sides of the"
        fix = "correct it, or leave out the column or folders that give it"
        warn(f"{what} published split, so the scores will be too good: {fix}", stacklevel=2)
    training = next(iter(parts.values()))
    training = training.subset(training.table["origin"] == "real")
    whole = ("gan_batch_size", "ac_batch_size", "cgan_batch_size", "recipe_batch_size")
    found = [
        f"{key}: {values[key]} is more than the {len(training)} training images of the generator."
        for key in whole
        if values[key] > len(training)
    ]
    needed, free = _bytes(cells, training, values), free_bytes(build)
    if needed > free:
        fix = "Make room, name another folder with CELLAUG_BUILD, or take a smaller image_size"
        room = f"has {free / 2**30:.1f} GiB free, but a run needs about {needed / 2**30:.1f} GiB"
        found.append(f"disk: the one with {build} {room}. {fix}.")
    return found


def _bytes(cells: Dataset, training: Dataset, values: Mapping[str, Any]) -> int:
    """Roughly what a run writes: stores, and up to three augmented copies of the training split."""
    pixels = 3 * values["image_size"] ** 2
    files = sum(path.stat().st_size for path in training.paths if path.exists())
    copies = files + pixels * len(training) * (1 + 2 * values["ratio"])  # also as a store
    return int(pixels * len(cells) + 3 * copies) + _SPARE_BYTES
