"""Start a conditional GAN from a generator that is trained already."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellaug.data.class_map import begun_as
from cellaug.errors import DataError
from cellaug.training.gan import Adversarial
from cellaug.training.recipe import GENERATOR, Recipe

import numpy as np
from keras import ops

if TYPE_CHECKING:
    from cellaug.generators import Generator

RISE = 0.05
"""The fraction of such a training in which the generator's learning rate rises to its value."""


def choices_of(source: "Generator", size: int) -> dict[str, Any]:
    """The choices of `Recipe` with which a generator like `source` is built.

    DataError for a generator of another kind or another size than `size` pixels.
    """
    card = source.card
    if card["builder"] != "conditional_generator":
        raise DataError(f"{source.folder}: only a conditional generator of cellaug's own recipe "
                        f"can be trained further, and this is {card['builder']}")  # fmt: skip
    if source.image_size != size:
        raise DataError(f"{source.folder} draws {source.image_size} pixels, not {size}: give that "
                        "image size, or another generator to start from")  # fmt: skip
    return {ours: card["options"][theirs] for theirs, ours in GENERATOR.items()
            if theirs in card["options"]}  # fmt: skip


def take_over(
    gan: Adversarial, source: "Generator", class_names: Sequence[str], class_map: Mapping[str, str]
) -> None:
    """Give a fresh GAN's generator, and its moving average, the weights of a trained one.

    A class starts as the class of `source` that `class_map` names for it, else as the one of its
    own name (`alike`), else, as a new one, from the mean of all. Transposed convolutions of
    `source` become resize-convolutions where the recipe has those (`resize_kernel`), or `Even`.
    DataError for a strange name in the map, or a recipe whose generator has other layers.
    """
    known, trained = list(source.class_names), source.model
    begun = begun_as(class_names, known, class_map).values()
    vectors = ops.convert_to_numpy(trained.get_layer("label_vector").weights[0])
    mean = vectors.mean(0)
    new = np.stack([vectors[known.index(x)] if x else mean for x in begun])
    values = []
    for mine, theirs in zip(gan.generator.weights, trained.weights, strict=True):
        value = new if "label_vector" in mine.path else ops.convert_to_numpy(theirs)
        shape = tuple(mine.shape)
        if value.ndim == 4 and value.shape[:2] == (4, 4) and shape[:2] == (3, 3):
            value = resize_kernel(value)
        if value.shape != shape:
            raise DataError(f"{source.folder}: its layer {mine.path} has the shape {value.shape}, "
                            f"not {shape}: leave the choices that make its generator as they "
                            "are")  # fmt: skip
        values.append(value if mine.constraint is None else mine.constraint(value))
    for network in filter(None, (gan.generator, gan.averaged)):
        network.set_weights(values)


def resize_kernel(kernel: np.ndarray) -> np.ndarray:
    """The convolution (3, 3, in, out) that, after a bilinear enlargement, comes nearest to another.

    That is a transposed convolution of stride 2 with `kernel` (4, 4, out, in), as Keras has it. The
    responses to a single pixel are brought close by least squares. What is lost is what differs
    between even and odd pixels, which a transposed convolution can draw, as a net of dots or not.
    """
    enlarged = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    responses = np.zeros((6, 6, 3, 3))
    for row, column in np.ndindex(3, 3):
        responses[row : row + 4, column : column + 4, row, column] = enlarged
    asked = np.pad(kernel, ((1, 1), (1, 1), (0, 0), (0, 0))).reshape(36, -1)
    found = np.linalg.lstsq(responses.reshape(36, 9), asked, rcond=None)[0]
    # A convolution of a network is a correlation: its kernel is the response turned round.
    return found.reshape(3, 3, *kernel.shape[2:])[::-1, ::-1].swapaxes(2, 3).astype(kernel.dtype)


def begin(
    recipe: Recipe, size: int, class_names: Sequence[str], steps: int,
    source: "Generator | None" = None, class_map: Mapping[str, str] | None = None,
) -> Adversarial:  # fmt: skip
    """A recipe's fresh GAN for a training of so many steps, with a source's weights if given.

    DataError for choices of which no network can be built.
    """
    try:
        gan = recipe.build(size, len(class_names), steps)
    except ValueError as error:
        raise DataError(f"this recipe cannot be built: {error}") from error
    if source:
        take_over(gan, source, class_names, class_map or {})
    return gan
