"""Labelled images in memory, real ones and generated ones, from wherever they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cellaug.augmentation import CARD, load_generator, shipped_generators
from cellaug.data import DataError, Dataset, open_dataset, read_image
from cellaug.data.catalogue import NAMES
from cellaug.data.images import check_images, decode, fit_square
from cellaug.data.manifest import MANIFEST, lists_origin

import numpy as np
import pandas as pd
from tqdm import tqdm


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory: uint8 RGB squares N×S×S×3, class numbers (N,), names of the classes.

    `labels` is None for generated images without classes. `name` and `files` (one per image, or
    none) say where they come from, `credit` whom to name, `notes` what to know about them.
    Raises ValueError where these do not fit together.
    """

    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    name: str = "images"
    files: tuple[str, ...] = ()
    credit: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        """Check that the parts belong together."""
        images = check_images(self.images, self.name)
        if not len(images) or images.shape[1] != images.shape[2]:
            raise ValueError(
                f"{self.name}: expected square images, at least one, but got {images.shape}"
            )
        if self.labels is not None:
            labels = np.asarray(self.labels)
            whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == (len(images),)
            if not whole or labels.min() < 0 or labels.max() >= len(self.class_names):
                raise ValueError(
                    f"{self.name}: labels must be {len(images)} whole numbers from 0 to "
                    f"{len(self.class_names) - 1}, one per image"
                )

    @staticmethod
    def read(dataset: Dataset, size: int) -> "LabelledImages":
        """All images of a dataset, brought to `size` pixels a side."""
        lost = dataset.outcomes()
        lost = lost[lost["outcome"] == "dropped"]
        notes = [
            f"{dataset.name}: {row.files:,} files are not counted ({row.reason})."
            for row in lost.itertuples()
        ]
        return LabelledImages(
            dataset.read(size),
            dataset.labels,
            dataset.class_names,
            dataset.name,
            tuple(dataset.table()["path"]),
            dataset.credit,
            tuple(notes),
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def of_class(self, name: str) -> np.ndarray:
        """Indices (n,) of the images of a class; none if there is no such class."""
        if self.labels is None or name not in self.class_names:
            return np.zeros(0, int)
        return np.flatnonzero(self.labels == self.class_names.index(name))

    def counts(self) -> dict[str, int]:
        """Images by class name; empty without classes."""
        if self.labels is None:
            return {}
        return {name: len(self.of_class(name)) for name in self.class_names}


def read_generated(
    source: str | Path,
    wanted: Mapping[str, int],
    size: int | None = None,
    count: int | None = None,
    seed: int = 0,
) -> LabelledImages:
    """Generated images from wherever they are.

    `source` is a generator directory, the output of `cellaug generate` or `cellaug augment` (of
    which the generated images count), or anything else that `open_dataset` opens.

    Args:
        source: see above.
        wanted: images by class name that a generator is to draw; classes that it does not know are
            left out. One without classes draws as many as these are in all.
        size: pixels a side; by default that of the generator, or of the first image.
        count: draw this many of each class instead.
        seed: of the drawn images; they are those of `cellaug generate` with the same seed.

    Raises:
        DataError: if there are no generated images, or the generator knows no class of `wanted`.
    """
    folder = Path(source).expanduser()
    if (folder / CARD).is_file() or (not folder.exists() and str(source) in shipped_generators()):
        return _drawn(folder, wanted, size, count, seed)
    table = _origins(folder)
    if table is not None:
        return _listed(folder, table[table["origin"] == "synthetic"], size)
    if not folder.exists() and str(source) not in ("phantom", *NAMES):
        raise DataError(
            f"{source}: no such folder or manifest. Give generated images, a generator directory, "
            f"or the name of a generator that comes with cellaug: {', '.join(shipped_generators())}"
        )
    dataset = open_dataset(source)
    if size is None:
        stored = dataset.store
        size = stored.size if stored else min(decode(dataset.paths[0])[0].shape[:2])
    return LabelledImages.read(dataset, size)


def refuse_generated(dataset: Dataset) -> None:
    """Raise DataError if a set that should be real holds generated images."""
    if lists_origin(dataset.root, "synthetic"):
        raise DataError(
            f"{dataset.root} holds generated images (see its {MANIFEST}): give real ones only, "
            "such as the set that it was made from"
        )


def _origins(folder: Path) -> pd.DataFrame | None:
    """The manifest of `cellaug generate` or `augment`, if there is one."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        table = pd.read_csv(folder / MANIFEST, dtype=str, keep_default_na=False)
    except ValueError:  # one of another kind, which is opened elsewhere
        return None
    return table if {"file", "label", "origin"} <= set(table) else None


def _drawn(
    folder: Path, wanted: Mapping[str, int], size: int | None, count: int | None, seed: int
) -> LabelledImages:
    generator = load_generator(folder)
    names = tuple(name for name in wanted if name in generator.class_names)
    if not generator.conditional:
        drawn = [generator.generate(None, count or sum(wanted.values()), seed)]
        labels = None
    elif not names:
        raise DataError(
            f"{folder}: the generator knows none of the classes {', '.join(wanted)}; its classes "
            f"are {', '.join(generator.class_names)}"
        )
    else:
        many = [count or wanted[name] for name in names]
        drawn = [
            generator.generate(name, number, (seed, generator.class_names.index(name)))
            for name, number in zip(
                tqdm(names, "generating", disable=None, leave=False), many, strict=True
            )
        ]
        labels = np.repeat(np.arange(len(names)), many)
    images = np.concatenate(drawn)
    if size is not None and size != generator.image_size:
        images = np.stack([fit_square(image, size) for image in images])
    note = f"{folder.name}: drawn by {generator.source} with seed {seed}."
    return LabelledImages(images, labels, names, folder.name, (), generator.credit, (note,))


def _listed(folder: Path, table: pd.DataFrame, size: int | None) -> LabelledImages:
    """The generated images that a manifest of `cellaug generate` or `augment` lists."""
    if table.empty:
        raise DataError(f"{folder / MANIFEST}: it lists no image of the origin synthetic")
    if size is None:
        size = min(decode(folder / table["file"].iloc[0])[0].shape[:2])
    images = np.stack([read_image(folder / file, size) for file in table["file"]])
    names = tuple(sorted(set(table["label"])))
    # what a generator without classes draws is called "cell"
    labels = None if names == ("cell",) else np.searchsorted(names, table["label"])
    return LabelledImages(images, labels, names, folder.name, tuple(table["file"]))
