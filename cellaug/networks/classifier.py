"""The classifiers by which augmented training sets are judged (Section 4.7)."""

from collections.abc import Iterable, Iterator
from typing import Any

from cellaug.networks.describe import described
from cellaug.networks.extractor import blood_extractor

import keras
import numpy as np
from keras import Input, KerasTensor, Model, Sequential, layers


@described
def xception(size: int, classes: int) -> Model:
    """Chollet's Xception from random weights: images, enlarged to 71 px if smaller, to logits."""
    x = image = Input((size, size, 3), name="image")
    side = max(size, 71)  # keras.applications asks for it
    if size < side:
        x = layers.Resizing(side, side, name="enlarge")(x)
    body = keras.applications.Xception(False, None, input_shape=(side, side, 3))
    x = layers.GlobalAveragePooling2D(name="features")(body(x))
    logits = layers.Dense(classes, dtype="float32", name="class")(x)
    return Model(image, logits, name="xception")


@described
def compact_xception(size: int, classes: int, width: int = 24) -> Model:
    """A small Xception for 32 to 128 px: images to class logits.

    The plan of the large one: two plain convolutions, residual blocks that halve the side, one at
    one size, a mean over the image; from `width` to twelve times as many channels. The plain
    convolutions halve the side too, since large maps take most of the time on a CPU.
    """

    def norm(x: KerasTensor) -> KerasTensor:
        return layers.BatchNormalization(momentum=0.9)(x)

    def separable(x: KerasTensor, channels: int) -> KerasTensor:
        x = layers.SeparableConv2D(channels, 3, padding="same", use_bias=False)(x)
        return norm(x)

    x = image = Input((size, size, 3), name="image")
    for k in (1, 2):
        x = layers.Conv2D(k * width, 3, 2, "same", use_bias=False, name=f"stem_{k}")(x)
        x = layers.ReLU()(norm(x))
    for channels in (4 * width, 8 * width):
        narrow = layers.Conv2D(channels, 1, strides=2, padding="same", use_bias=False)
        shortcut = norm(narrow(x))
        x = separable(layers.ReLU()(x), channels)
        x = separable(layers.ReLU()(x), channels)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = layers.Add()([x, shortcut])
    shortcut = x
    x = separable(layers.ReLU()(x), 8 * width)
    x = separable(layers.ReLU()(x), 8 * width)
    x = layers.Add()([x, shortcut])
    x = layers.ReLU()(separable(x, 12 * width))
    x = layers.GlobalAveragePooling2D(name="features")(x)
    logits = layers.Dense(classes, dtype="float32", name="class")(x)
    return Model(image, logits, name="compact")


@described
def residual(size: int, classes: int, width: int = 24, norm: str = "batch") -> Model:
    """The small residual network of `blood_extractor`: images to class logits.

    `norm` is "batch" or "group": means over a batch belong to one laboratory (Wu & He 2018).
    ValueError for another. The layer "features" gives 128 numbers for each image.
    """
    if norm not in ("batch", "group"):
        raise ValueError(f"norm '{norm}': expected batch or group")
    body = blood_extractor(classes, size, width, one_laboratory=norm == "batch")
    return Model(body.inputs[0], body.outputs[1], name="residual")


def classical_augmentation(seed: int) -> Sequential:
    """Random flips, turns by any angle and zooms by up to a tenth; active in training only.

    The thesis has turns and zooms (Section 5.4). What they leave empty is filled by reflection.
    """
    flip = layers.RandomFlip("horizontal_and_vertical", seed=seed)
    turn = layers.RandomRotation(0.5, fill_mode="reflect", seed=seed + 1)
    zoom = layers.RandomZoom(0.1, fill_mode="reflect", seed=seed + 2)
    return Sequential([flip, turn, zoom], name="classical_augmentation")


def classifier(
    kind: str, size: int, classes: int, augment: bool = False, seed: int = 0, **choices: Any
) -> Model:
    """A fresh classifier, not compiled: images (N, size, size, 3) in [-1, 1] to class logits.

    `kind` is "xception", "compact" or "residual", which takes further `choices`; `augment` puts
    `classical_augmentation` in front. `seed` becomes Keras's global seed. Raises ValueError for
    another kind.
    """
    builders = {"xception": xception, "compact": compact_xception, "residual": residual}
    if kind not in builders:
        raise ValueError(f"classifier '{kind}': expected one of {', '.join(builders)}")
    keras.utils.set_random_seed(seed)
    body = builders[kind](size, classes, **choices)
    if not augment:
        return body
    image = Input((size, size, 3), name="image")
    return Model(image, body(classical_augmentation(seed)(image)), name=f"augmented_{body.name}")


def recalibrate(model: Model, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Set BatchNorm's running averages to exact means over batches of images; weights stay.

    `batches` are float32 images (B, S, S, 3) in [-1, 1], as in training. After few steps a running
    average is still near its initial value, so a network that has learned everything predicts at
    random (Wu & Johnson 2021, "precise BatchNorm", arXiv 2105.07576). Returns the class numbers
    (N,) that the model gives in training mode. Raises ValueError for no batch.
    """
    norms = [x for x in _parts(model) if isinstance(x, layers.BatchNormalization)]
    momenta, seen, answers = [norm.momentum for norm in norms], 0, []
    for images in batches:
        for norm in norms:  # the first batch replaces the old average
            norm.momentum = seen / (seen + len(images))
        seen += len(images)
        logits = keras.ops.convert_to_numpy(model(images, training=True))
        answers.append(logits.argmax(1))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return np.concatenate(answers)


def _parts(layer: keras.Layer) -> Iterator[keras.Layer]:
    """A layer and all those inside it."""
    yield layer
    for part in getattr(layer, "layers", ()):
        yield from _parts(part)
