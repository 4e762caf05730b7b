"""The feature space in which cells are compared: blood's own, shipped with the package."""

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from cellaug.augmentation import SHIPPED, load_weights
from cellaug.data.errors import DataError
from cellaug.data.images import check_images, fit_square, to_float

import numpy as np

if TYPE_CHECKING:
    import keras

NAME = "blood-extractor"
BATCH = 128


class Extractor:
    """Turns images of cells into features and class logits; `load_extractor` makes the shipped one.

    Args:
        model: images in [-1, 1] to ``[features, logits]``.
        card: ``class_names``, ``accuracy`` on the test split, and whatever else is known of it.
        digest: of the weights, hex.
    """

    def __init__(self, model: "keras.Model", card: dict[str, Any], digest: str):
        self.model = model
        self.card = card
        self.size: int = model.input_shape[1]
        self.class_names: tuple[str, ...] = tuple(card["class_names"])
        self.accuracy: float = card["accuracy"]
        self.digest = digest

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, 128) and logits (N, classes), float32, of uint8 images N×H×W×3.

        Images of another size are brought to the network's: averaged over areas, or enlarged. Every
        batch has the same shape, so what comes out does not depend on how many images there are.
        """
        images = check_images(images, "images")
        features = np.empty((len(images), self.model.output_shape[0][-1]), np.float32)
        logits = np.empty((len(images), len(self.class_names)), np.float32)
        batch = np.zeros((BATCH, self.size, self.size, 3), np.uint8)
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            for place, image in zip(batch, part, strict=False):
                place[...] = fit_square(image, self.size)
            answer = self.model.predict_on_batch(to_float(batch))
            end = start + len(part)
            features[start:end], logits[start:end] = (np.asarray(a)[: len(part)] for a in answer)
        return features, logits

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features alone."""
        return self(images)[0]


@cache
def load_extractor() -> Extractor:
    """The extractor that comes with the package.

    Its weights are arrays of numbers; no code is loaded with them. Raises `DataError` where they
    are missing or not those that the card names.
    """
    from cellaug.backend import use_xla
    from cellaug.networks import blood_extractor

    weights, card = SHIPPED / f"{NAME}.npz", SHIPPED / f"{NAME}.json"
    for path in (weights, card):
        if not path.is_file():
            raise DataError(f"{path} is missing: install cellaug again")
    facts = json.loads(card.read_text("utf-8"))
    model = blood_extractor(len(facts["class_names"]), facts["size"], facts["width"])
    load_weights(model, weights, facts["sha256"])
    model.jit_compile = use_xla()
    return Extractor(model, facts, facts["sha256"][:16])
