"""Changes of real images on the device, before a discriminator sees them."""

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
