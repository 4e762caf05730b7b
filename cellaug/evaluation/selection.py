"""Which generated cells to keep: those of the class that was asked for, no outliers, no copies."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cellaug.data import DataError, Dataset, split
from cellaug.data.copies import near_duplicates
from cellaug.data.images import to_float
from cellaug.data.measure import measure
from cellaug.evaluation.calibration import probabilities
from cellaug.evaluation.classifiers import (
    balanced,
    classification_report,
    predicted,
    require_better_than_guessing,
    train_classifier,
)
from cellaug.evaluation.colours import colour_statistics, unusual
from cellaug.evaluation.features import pixels

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

if TYPE_CHECKING:
    import keras

SURE, INSIDE = 0.1, 0.99
"""Quantiles over validation images: of the probability of the true class among those that are named
right, for the least that a kept image has; and of the distance to training images, for the most."""

NEIGHBOUR, FEWEST = 3, 10
"""The neighbour whose distance counts; fewer images of a class do not set a bound of their own."""

REASONS = {
    "class": "named as another class",
    "unsure": "the class is not sure enough",
    "outlier": "far from all training images",
    "colours": "colours that no training image has",
    "copy": "a near copy of a training image",
    "twin": "a near copy of another generated image",
}
"""Why an image is refused."""


@dataclass(frozen=True, eq=False)
class Selector:
    """Judges generated images; `learn_selector` makes one.

    `model` maps images in [-1, 1] to features and logits of `class_names`. `surest` is the least
    probability of the class asked for, by class; `farthest` the largest distance to training images
    in features of norm 1; `colours` (`colour_statistics`) and `thumbnails` are of training images.
    """

    model: "keras.Model"
    class_names: tuple[str, ...]
    neighbours: NearestNeighbors
    surest: np.ndarray
    farthest: float
    colours: np.ndarray
    thumbnails: np.ndarray

    def number(self, name: str) -> int:
        """The number of a class; DataError if the real images have none of this name."""
        if name not in self.class_names:
            known = ", ".join(self.class_names)
            raise DataError(f"the images to select by have no class {name}: there are {known}")
        return self.class_names.index(name)

    def judge(self, images: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
        """Judge uint8 images (N, S, S, 3) that were generated for class numbers (N,).

        Returns a row for each image: `kept`, `reason` (a key of `REASONS`, the first that applies,
        "" for kept ones), `probability` of the class asked for, and `distance`.
        """
        features, logits = embed(self.model, images)
        p = probabilities(logits)
        wanted, distance = p[np.arange(len(labels)), labels], distances(self.neighbours, features)
        reasons = np.full(len(labels), "", object)
        (odd,) = unusual(self.colours, [colour_statistics(images)], 1.0)
        reasons[odd] = "colours"
        reasons[distance > self.farthest] = "outlier"
        reasons[wanted < self.surest[labels]] = "unsure"
        reasons[p.argmax(1) != labels] = "class"
        left = np.flatnonzero(reasons == "")
        known = len(self.thumbnails)
        pairs = near_duplicates(np.concatenate([self.thumbnails, thumbnails(images[left])]))
        of_training = pairs[(pairs["first"] < known) & (pairs["second"] >= known)]
        twins = pairs[pairs["first"] >= known]
        reasons[left[twins["second"].to_numpy() - known]] = "twin"
        reasons[left[of_training["second"].to_numpy() - known]] = "copy"
        columns = {"kept": reasons == "", "reason": reasons}
        return pd.DataFrame(columns | {"probability": wanted, "distance": distance})

    def choose(self, images: np.ndarray, kind: int, count: int) -> tuple[np.ndarray, pd.DataFrame]:
        """The places of the first `count` images of class number `kind` that are kept, or fewer.

        Also the table of `judge`, up to the last image that had to be looked at.
        """
        found = self.judge(images, np.full(len(images), kind))
        kept = np.flatnonzero(found["kept"])[:count]
        looked = kept[-1] + 1 if len(kept) == count else len(found)
        return kept, found.head(looked).copy()


def learn_selector(classifier: "keras.Model", train: Dataset, validation: Dataset) -> Selector:
    """A selector from a classifier of real training images alone, and from real images in memory.

    `classifier` maps images in [-1, 1] to logits and has a layer "features". The bounds are
    quantiles over the validation images.
    """
    model, images = with_features(classifier), pixels(train)
    neighbours = neighbourhood(embed(model, images)[0])
    others, logits = embed(model, pixels(validation))
    p = probabilities(logits)
    right, wanted = p.argmax(1) == validation.labels, p.max(1)
    everyone = np.quantile(wanted[right], SURE) if right.any() else 0.0
    surest = np.full(p.shape[1], everyone)
    for kind in np.unique(validation.labels):
        own = wanted[right & (validation.labels == kind)]
        if len(own) >= FEWEST:
            surest[kind] = np.quantile(own, SURE)
    farthest = float(np.quantile(distances(neighbours, others), INSIDE))
    of_training = colour_statistics(images), thumbnails(images)
    return Selector(model, train.class_names, neighbours, surest, farthest, *of_training)


def selector_of(cells: Dataset, size: int, seed: int = 0, steps: int = 1200) -> Selector:
    """Learn a selector from a set's real training images; its validation images set the bounds.

    The classifier takes images of `size` pixels in balanced batches, in all symmetries of a smear.
    DataError where the set cannot be divided, or where the classifier is no better than guessing.
    """
    parts = split(cells.subset(cells.table["origin"] == "real"))
    train, validation = (parts[name].in_memory(size) for name in ("train", "validation"))
    names, batches = cells.class_names, balanced(pixels(train), train.labels, seed)
    model = train_classifier(
        batches, size, len(names), steps, kind="residual", seed=seed, title="selection"
    )
    report = classification_report(validation.labels, predicted(model, pixels(validation)), names)
    require_better_than_guessing(report, "the classifier to select by")
    return learn_selector(model, train, validation)


def with_features(classifier: "keras.Model") -> "keras.Model":
    """A classifier that gives its layer "features" as well: images to features and logits."""
    import keras

    shown = classifier.get_layer("features").output
    return keras.Model(classifier.inputs, [shown, classifier.output])


def neighbourhood(features: np.ndarray) -> NearestNeighbors:
    """A search for the nearest of the training images, of these features (N, d)."""
    return NearestNeighbors(n_neighbors=min(NEIGHBOUR, len(features))).fit(features)


def distances(neighbours: NearestNeighbors, features: np.ndarray) -> np.ndarray:
    """Distances (N,) of features (N, d) to the training images, to the `NEIGHBOUR`th of them."""
    return neighbours.kneighbors(features)[0][:, -1]


def embed(model: "keras.Model", images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of norm 1 and logits of uint8 images (N, S, S, 3)."""
    features, logits = model.predict(to_float(images), batch_size=128, verbose=0)
    features = np.asarray(features, float)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-9), np.asarray(logits, float)


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Grey thumbnails of uint8 images, as `near_duplicates` takes them."""
    return np.array([measure(image)[1] for image in images]).reshape(len(images), 32, 32)


def refused(judged: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """How many images were kept and refused, by class (index) and reason (columns)."""
    reasons = judged["reason"].replace("", "kept")
    table = pd.crosstab(np.asarray(labels), reasons.to_numpy())
    return table.reindex(columns=["kept", *REASONS], fill_value=0).rename_axis("class")
