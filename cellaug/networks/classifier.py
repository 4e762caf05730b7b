"""The classifiers that augmented training sets are judged by (Section 4.7)."""

import keras
from keras import Input, KerasTensor, Model, Sequential, layers

SMALLEST_XCEPTION = 71  # pixels; keras.applications asks for it


def xception(size: int, classes: int) -> Model:
    """Chollet's Xception from random weights, as the thesis uses it: images to class logits.

    Images of less than 71 px, which Xception does not take, are enlarged to 71 px inside the model
    (bilinear).
    """
    image = Input((size, size, 3), name="image")
    x = image
    if size < SMALLEST_XCEPTION:
        x = layers.Resizing(SMALLEST_XCEPTION, SMALLEST_XCEPTION, name="enlarge")(x)
    side = max(size, SMALLEST_XCEPTION)
    body = keras.applications.Xception(
        include_top=False, weights=None, input_shape=(side, side, 3), pooling="avg"
    )
    logits = layers.Dense(classes, dtype="float32", name="class")(body(x))
    return Model(image, logits, name="xception")


def compact_xception(size: int, classes: int, width: int = 24) -> Model:
    """A small Xception for 32 to 128 px: images to class logits.

    The same plan as the large one: two plain convolutions, an entry flow of residual blocks that
    halve the side, a middle flow at one size, an exit to a mean over the image; separable
    convolutions with batch normalisation throughout. Both plain convolutions halve the side, since
    normalising and pooling large maps takes most of the time on a CPU.

    Args:
        size: height and width of the images in pixels.
        classes: number of classes.
        width: channels of the first convolution; the last has twelve times as many.
    """

    def norm(x: KerasTensor) -> KerasTensor:
        return layers.BatchNormalization(momentum=0.9)(x)

    def separable(x: KerasTensor, channels: int) -> KerasTensor:
        return norm(layers.SeparableConv2D(channels, 3, padding="same", use_bias=False)(x))

    image = Input((size, size, 3), name="image")
    x = image
    for k in (1, 2):
        x = layers.Conv2D(k * width, 3, 2, "same", use_bias=False, name=f"stem_{k}")(x)
        x = layers.ReLU()(norm(x))
    for channels in (4 * width, 8 * width):
        shortcut = norm(layers.Conv2D(channels, 1, strides=2, padding="same", use_bias=False)(x))
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
    return Model(image, layers.Dense(classes, dtype="float32", name="class")(x), name="compact")


def classical_augmentation(seed: int) -> Sequential:
    """Random flips, turns by any angle and zooms by up to a tenth; active in training only.

    The thesis names rotating and zooming (Section 5.4); flips are added because a smear has no
    right way up. What a turn or a zoom leaves empty is filled by reflection.
    """
    return Sequential(
        [
            layers.RandomFlip("horizontal_and_vertical", seed=seed),
            layers.RandomRotation(0.5, fill_mode="reflect", seed=seed + 1),
            layers.RandomZoom(0.1, fill_mode="reflect", seed=seed + 2),
        ],
        name="classical_augmentation",
    )


def classifier(kind: str, size: int, classes: int, augment: bool = False, seed: int = 0) -> Model:
    """A fresh classifier, not compiled: images (N, size, size, 3) in [-1, 1] to class logits.

    Softmax is left to the loss: compile with
    ``keras.losses.SparseCategoricalCrossentropy(from_logits=True)``.

    Args:
        kind: "xception" or "compact".
        size: height and width of the images in pixels.
        classes: number of classes.
        augment: put `classical_augmentation` in front.
        seed: of the initial weights and of the augmentation; Keras's global seed is set to it.

    Raises:
        ValueError: for another kind.
    """
    builders = {"xception": xception, "compact": compact_xception}
    if kind not in builders:
        raise ValueError(f"classifier '{kind}': expected one of {', '.join(builders)}")
    keras.utils.set_random_seed(seed)
    body = builders[kind](size, classes)
    if not augment:
        return body
    image = Input((size, size, 3), name="image")
    return Model(image, body(classical_augmentation(seed)(image)), name=f"augmented_{body.name}")
