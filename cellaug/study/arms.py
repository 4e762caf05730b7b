"""What a classifier is trained on: the real images of a scarcity, and what an arm adds to them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cellaug.data import Dataset
from cellaug.data.images import to_float
from cellaug.errors import DataError
from cellaug.networks import classical_augmentation

import keras
import numpy as np
from keras import Sequential, layers

MIX = 0.2
"""MixUp's α (Zhang et al. 2018), the value of the paper for ImageNet."""


def draw_subset(cells: Dataset, subset: Mapping[str, Any], seed: int) -> tuple[Dataset, Dataset]:
    """The real images of a scarcity, and the training images that it leaves.

    `subset` has one of `images`, of every class or of the classes in `scarce` alone, and `share`,
    a fraction of every class; neither takes all. Images are drawn by `seed` in one order for each
    class, so that those of a smaller number are among those of a larger. `DataError` for a class
    that is unknown, and for one with fewer images than asked for.
    """
    rng = np.random.default_rng([seed, 7])
    chosen, names = [], list(cells.class_names)
    scarce = subset.get("scarce", names)
    if unknown := sorted(set(scarce) - set(names)):
        raise DataError(f"no class {', '.join(unknown)}: there are {', '.join(names)}")
    for number, name in enumerate(names):
        rows = rng.permutation(np.flatnonzero(cells.labels == number))
        count = len(rows)
        if "share" in subset:
            count = round(subset["share"] * count)
        elif "images" in subset and name in scarce:
            count = subset["images"]
        if not 0 < count <= len(rows):
            raise DataError(f"class {name} has {len(rows)} training images, not {count}")
        chosen.append(rows[:count])
    taken = np.zeros(len(cells), bool)
    taken[np.concatenate(chosen)] = True
    return cells.subset(taken), cells.subset(~taken)


def extra_counts(counts: np.ndarray, ratio: float | str) -> np.ndarray:
    """Extra images of each class: `ratio` of its real ones, or "fill" up to the largest class."""
    if ratio == "fill":
        return counts.max() - counts
    return np.round(counts * float(ratio)).astype(int)


@dataclass(frozen=True)
class Stock:
    """Images to train on, uint8 (N, S, S, 3), with class numbers (N,): real ones and extra ones."""

    real: np.ndarray
    labels: np.ndarray
    extra: np.ndarray
    extra_labels: np.ndarray

    def batches(
        self, size: int, seed: int, classes: int, sampling: str, share: float | None = None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Endless batches: uint8 images (size, S, S, 3), class numbers, loss weights (size,).

        Real images come in the same order whatever is added to them, and extra images take the same
        places in the batches whatever they show: these depend on `seed` and the numbers alone. An
        image is an extra one in proportion to their number, or, in classes that have some, with the
        probability `share`.
        """
        places = np.random.default_rng([seed, 1])
        weights = class_weights(self.labels, classes)
        if sampling != "weighted":
            weights = np.ones(classes)
        fraction = len(self.extra) / (len(self.extra) + len(self.real))
        balanced = sampling == "balanced"
        real = _Turns(self.labels, (seed, 2), balanced)
        extra = _Turns(self.extra_labels, (seed, 3), False)
        while True:
            images = np.empty((size, *self.real.shape[1:]), np.uint8)
            labels = np.empty(size, np.int64)
            for k, drawn in enumerate(places.random(size)):
                if share is None or not balanced:
                    added, kind = drawn < (fraction if share is None else share), None
                else:
                    kind = real.next_class()
                    added = drawn < share and kind in extra.of_class
                row = (extra if added else real).next(kind)
                images[k] = self.extra[row] if added else self.real[row]
                labels[k] = self.extra_labels[row] if added else self.labels[row]
            yield images, labels, weights[labels].astype(np.float32)


class _Turns:
    """Gives the places of images, all in turn in a random order, of all classes or of one."""

    def __init__(self, labels: np.ndarray, seed: tuple[int, int], balanced: bool):
        def turn(rows: np.ndarray, *number: int) -> Iterator[int]:
            return _in_turn(rows, np.random.default_rng([*seed, *number]))

        kinds = np.unique(labels)
        self.of_class = {int(k): turn(np.flatnonzero(labels == k), 0, k) for k in kinds}
        self.classes = turn(kinds, 1)
        self.all = turn(np.arange(len(labels)), 2)
        self.balanced = balanced

    def next_class(self) -> int:
        """The next class, all equally often."""
        return int(next(self.classes))

    def next(self, kind: int | None) -> int:
        """The next image of a class; of None, as the sampling has it."""
        if kind is None and self.balanced:
            kind = self.next_class()
        return int(next(self.all if kind is None else self.of_class[kind]))


def _in_turn(rows: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    while len(rows):
        yield from rng.permutation(rows)


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Weights (classes,) by which every class counts alike in the mean loss, as in scikit-learn."""
    counts = np.bincount(labels, minlength=classes)
    return len(labels) / (np.maximum(counts, 1) * (counts > 0).sum())


def duplicates(cells: Dataset, images: np.ndarray, counts: np.ndarray, seed: int) -> tuple:
    """So many more copies of each class's real images, all in turn, and their class numbers."""
    rng = np.random.default_rng([seed, 4])
    turns = [_in_turn(np.flatnonzero(cells.labels == k), rng) for k in range(len(counts))]
    rows = np.array([next(turns[k]) for k, n in enumerate(counts) for _ in range(n)], int)
    return images[rows], cells.labels[rows]


def others(rest: Dataset, counts: np.ndarray, size: int, seed: int) -> tuple:
    """So many other real images of each class, or as many as there are, and their class numbers."""
    rng = np.random.default_rng([seed, 5])
    found = [rng.permutation(np.flatnonzero(rest.labels == k))[:n] for k, n in enumerate(counts)]
    chosen = rest.subset(np.concatenate(found))
    return chosen.read(size), chosen.labels


def augmentation(kind: str, seed: int) -> Sequential | None:
    """Layers that change images (N, H, H, 3) in [-1, 1] in training; None for "none" and "mixup".

    "classical": flips, turns by any angle, zooms by up to a tenth, and moderate brightness (±10 %),
    contrast and saturation (±20 %); hue is left alone, since strong changes of it make results on
    other laboratories' cells worse. "randaugment": Cubuk et al. (2020) as Keras has it, two changes
    of magnitude 0.5 or so. The layers that change colours get values in [0, 1], which they need.
    """
    if kind in ("none", "mixup"):
        return None
    to_unit, back = layers.Rescaling(0.5, 0.5), layers.Rescaling(2.0, -1.0)
    if kind == "randaugment":
        change = [layers.RandAugment((0, 1), num_ops=2, factor=0.5, seed=seed)]
    else:
        jitter = layers.RandomColorJitter(
            (0, 1), brightness_factor=0.1, contrast_factor=0.2, saturation_factor=(0.4, 0.6),
            seed=seed + 3,
        )  # fmt: skip
        change = [*classical_augmentation(seed).layers, jitter]
    return Sequential([to_unit, *change, back], name=kind)


class Mixed:
    """Mixes a batch with itself, images and one-hot labels alike, as Keras's MixUp does."""

    def __init__(self, seed: int):
        self.layer = layers.MixUp(MIX, seed=seed)

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Float images (N, H, H, 3) and one-hot labels (N, C), mixed."""
        given = {"images": images, "labels": labels}
        mixed = self.layer(given, training=True)
        return tuple(keras.ops.convert_to_numpy(mixed[key]) for key in ("images", "labels"))


def feed(
    batches: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: int, mix: Mixed | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Batches as the network takes them: images in [-1, 1], one-hot labels, weights."""
    for images, labels, weights in batches:
        given = to_float(images), np.eye(classes, dtype=np.float32)[labels]
        yield (*(mix(*given) if mix else given), weights)
