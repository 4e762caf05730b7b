"""The networks: functions that build Keras models, with nothing compiled or trained."""

from cellaug.networks.acgan import acgan, trainable_table
from cellaug.networks.cgan import cgan_discriminator, cgan_generator
from cellaug.networks.classifier import (
    classical_augmentation,
    classifier,
    compact_xception,
    xception,
)
from cellaug.networks.conditional import conditional_discriminator, conditional_generator
from cellaug.networks.dcgan import discriminator, generator
from cellaug.networks.encoder import image_to_latent
from cellaug.networks.extractor import blood_extractor

import pandas as pd
from keras import Model

__all__ = [
    "acgan",
    "blood_extractor",
    "cgan_discriminator",
    "cgan_generator",
    "classical_augmentation",
    "classifier",
    "compact_xception",
    "conditional_discriminator",
    "conditional_generator",
    "discriminator",
    "generator",
    "image_to_latent",
    "layer_table",
    "trainable_table",
    "xception",
]


def layer_table(model: Model) -> pd.DataFrame:
    """One row per layer: its name, kind, output shape without the batch axis, parameters."""
    rows = [
        (layer.name, type(layer).__name__, tuple(layer.output.shape[1:]), layer.count_params())
        for layer in model.layers
    ]
    return pd.DataFrame(rows, columns=["layer", "kind", "output shape", "parameters"])
