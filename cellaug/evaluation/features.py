"""The feature space in which cells are compared: blood's own, shipped with the package."""

import json
from functools import cache
from typing import TYPE_CHECKING, Any

from cellaug.data.images import check_images, fit_square, to_float
from cellaug.generators import SHIPPED, load_weights

import numpy as np

if TYPE_CHECKING:
    import keras

NAME, BATCH = "blood-extractor", 128


class Extractor:
    """Turns images of cells into features and class logits; `load_extractor` makes the shipped one.

    `model` maps images in [-1, 1] to both; `card` has at least `class_names` and `accuracy` (0–1).
    """

    def __init__(self, model: "keras.Model", card: dict[str, Any], digest: str):
        self.model, self.card, self.digest = model, card, digest
        self.size: int = model.input_shape[1]
        self.class_names: tuple[str, ...] = tuple(card["class_names"])
        self.accuracy: float = card["accuracy"]

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, 128) and logits (N, classes), float32, of uint8 images N×H×W×3, any size."""
        answers = []
        # every batch has one shape, so the results do not depend on the number of images
        batch = np.zeros((BATCH, self.size, self.size, 3), np.uint8)
        for start in range(0, len(check_images(images, "images")), BATCH):
            part = images[start : start + BATCH]
            batch[: len(part)] = [fit_square(image, self.size) for image in part]
            answer = self.model.predict_on_batch(to_float(batch))
            answers.append([np.asarray(values)[: len(part)] for values in answer])
        features, logits = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return features, logits


@cache
def load_extractor() -> Extractor:
    """The extractor of the package; `DataError` where its weights are not those of its card."""
    from cellaug.networks import blood_extractor
    from cellaug.training.backends import use_xla

    card = json.loads((SHIPPED / f"{NAME}.json").read_text("utf-8"))
    model = blood_extractor(len(card["class_names"]), card["size"], card["width"])
    load_weights(model, SHIPPED / f"{NAME}.npz", card["sha256"])
    model.jit_compile = use_xla()
    return Extractor(model, card, card["sha256"][:16])
