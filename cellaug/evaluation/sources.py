"""Read the images of an evaluation: generated ones from any source, refused among real ones."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cellaug.data import Dataset, open_dataset
from cellaug.data.images import decode
from cellaug.data.published import MANIFEST, NAMES
from cellaug.data.sets import lists_origin
from cellaug.errors import DataError
from cellaug.files import progress
from cellaug.generators import CARD, load_generator, shipped_generators

import numpy as np


def read_generated(
    source: str | Path,
    wanted: Mapping[str, int],
    size: int | None = None,
    count: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Generated images in memory, unlabelled if their generator knows no classes.

    `source` is a generator's folder or name, an output of `cellaug generate` or `augment` (only its
    generated images are read), or what `open_dataset` opens. A generator draws the images of
    `cellaug generate` with that seed: `wanted` by class name (without classes their sum), or
    `count` of each class. `size` is pixels a side, by default the generator's or the first image's.

    Raises DataError for no generated images, and a generator that knows no class of `wanted`.
    """
    folder = Path(source).expanduser()
    if (folder / CARD).is_file() or (not folder.exists() and str(source) in shipped_generators()):
        return _drawn(folder, wanted, size, count, seed)
    if not folder.exists() and str(source) not in ("phantom", *NAMES):
        known = f"the name of one that comes with cellaug: {', '.join(shipped_generators())}"
        give = f"Give generated images, a generator directory, or {known}"
        raise DataError(f"{source}: no such folder or manifest. {give}")
    if lists_origin(folder, "synthetic"):
        cells = replace(open_dataset(folder / MANIFEST), name=folder.name)
        cells = cells.subset(cells.table["origin"] == "synthetic")
    elif lists_origin(folder, "real"):
        raise DataError(f"{folder / MANIFEST}: it lists no image of the origin synthetic")
    else:
        cells = open_dataset(source)
    if size is None:
        size = cells.store.size if cells.store else min(decode(cells.paths[0])[0].shape[:2])
    return cells.in_memory(size)


def refuse_generated(dataset: Dataset) -> None:
    """Raise DataError if a set that should be real holds generated images."""
    if lists_origin(dataset.root, "synthetic") or (dataset.table["origin"] == "synthetic").any():
        give = "give real ones only, such as the set that it was made from"
        raise DataError(f"{dataset.root} holds generated images (see its {MANIFEST}): {give}")


def _drawn(
    folder: Path, wanted: Mapping[str, int], size: int | None, count: int | None, seed: int
) -> Dataset:
    generator = load_generator(folder)
    names = [name for name in wanted if name in generator.class_names]
    if not generator.conditional:
        images, labels = generator.generate(None, count or sum(wanted.values()), seed), None
    elif names:
        many = [count or wanted[name] for name in names]
        seeds = [(seed, generator.class_names.index(name)) for name in names]
        drawn = map(generator.generate, progress(names, "generating"), many, seeds)
        images, labels = np.concatenate(list(drawn)), np.repeat(np.arange(len(names)), many)
    else:
        none = f"the generator knows none of the classes {', '.join(wanted)}"
        raise DataError(f"{folder}: {none}; its classes are {', '.join(generator.class_names)}")
    more = {"credit": generator.credit, "origin": "synthetic"}
    cells = Dataset.of_images(images, labels, names, folder.name, **more)
    cells = cells.in_memory(size or generator.image_size)
    return replace(cells, table=cells.table.assign(generator=generator.source, seed=seed))
