"""Changes of images on the device, before a discriminator sees them."""

from typing import Any

import keras
from keras import KerasTensor, ops


class Symmetries:
    """One of a smear's eight symmetries for each image: flips and quarter turns.

    A smear has no up and no left: it makes eight real images (N, H, H, C) of every one.
    """

    def draw(self, count: Any, seed: keras.random.SeedGenerator) -> KerasTensor:
        """Three bits for each image (3, N, 1, 1, 1): transpose, upside down, left to right."""
        return keras.random.uniform((3, count, 1, 1, 1), seed=seed) < 0.5

    def __call__(self, images: KerasTensor, bits: KerasTensor) -> KerasTensor:
        """The images, each turned or mirrored as drawn."""
        images = ops.where(bits[0], ops.transpose(images, (0, 2, 1, 3)), images)
        images = ops.where(bits[1], ops.flip(images, 1), images)
        return ops.where(bits[2], ops.flip(images, 2), images)


class DifferentiableAugmentation:
    """Symmetries, small shifts and colour changes of real and generated images alike.

    The generator is trained through them (Zhao et al. 2020). Each is applied with a probability
    below one, so that the changes do not appear in generated images (Karras et al. 2020).

    Args:
        probability: that an image gets each of them, 0–1.
        shift: maximum shift as a fraction of the side; borders are repeated.
        brightness: maximum added to all values, which lie in [-1, 1].
        contrast: maximum relative change of the distance from the image's mean.
    """

    def __init__(
        self,
        probability: float = 0.4,
        shift: float = 0.1,
        brightness: float = 0.2,
        contrast: float = 0.2,
    ):
        self.probability, self.shift = probability, shift
        self.brightness, self.contrast = brightness, contrast
        self.symmetries = Symmetries()

    def draw(self, count: Any, seed: keras.random.SeedGenerator) -> list[KerasTensor]:
        """Bits of the symmetries, shifts (N, 2) and colour changes (2, N, 1, 1, 1)."""

        def chosen(shape: tuple) -> KerasTensor:
            return keras.random.uniform(shape, seed=seed) < self.probability

        bits = self.symmetries.draw(count, seed) & chosen((1, count, 1, 1, 1))
        shifts = keras.random.uniform((count, 2), -self.shift, self.shift, seed=seed)
        colours = keras.random.uniform((2, count, 1, 1, 1), -1, 1, seed=seed)
        shifts = ops.where(chosen((count, 1)), shifts, 0.0)
        return [bits, shifts, ops.where(chosen((2, count, 1, 1, 1)), colours, 0.0)]

    def __call__(self, images: KerasTensor, drawn: list[KerasTensor]) -> KerasTensor:
        """The images (N, H, W, C) in [-1, 1], augmented; colours may leave the range."""
        bits, shifts, colours = drawn
        images = self.symmetries(images, bits)
        images = ops.einsum("nij,njwc->niwc", _shifting(shifts[:, 0], images.shape[1]), images)
        images = ops.einsum("nij,nhjc->nhic", _shifting(shifts[:, 1], images.shape[2]), images)
        mean = ops.mean(images, axis=(1, 2, 3), keepdims=True)
        images = mean + (images - mean) * (1 + self.contrast * colours[0])
        return images + self.brightness * colours[1]


def _shifting(fraction: KerasTensor, side: int) -> KerasTensor:
    """Matrices (N, side, side) that move rows by a fraction of the side, in whole pixels."""
    pixels = ops.cast(ops.round(fraction * side), "int32")
    source = ops.clip(ops.arange(side, dtype="int32")[None] + pixels[:, None], 0, side - 1)
    return ops.one_hot(source, side, dtype="float32")
