"""Functions that build Keras models, with nothing compiled or trained.

Images are (N, size, size, 3) in [-1, 1], latent vectors (N, latent_dim), labels integers (N,) below
`classes`. `size`, in pixels, is a power of two of at least 16. `depth` is the channels of a
generator at 4×4 pixels, a multiple of size / 8 (Depth_G of Table 1), or of a discriminator after
its first convolution (Depth_D); ValueError for others. `kernel` is the height and width of the
kernels at stride 2: one that the stride does not divide, like the thesis's 5, overlaps unevenly,
the cause of the grid in Chapter 6 of the thesis (Odena et al. 2016). `dropout` is a fraction.
"""

from cellaug.networks.acgan import acgan_discriminator, acgan_generator, trainable_table
from cellaug.networks.cgan import cgan_discriminator, cgan_generator
from cellaug.networks.classifier import (
    classical_augmentation,
    classifier,
    compact_xception,
    recalibrate,
    residual,
    xception,
)
from cellaug.networks.conditional import conditional_discriminator, conditional_generator
from cellaug.networks.dcgan import discriminator, generator
from cellaug.networks.encoder import image_to_latent
from cellaug.networks.extractor import blood_extractor

import pandas as pd
from keras import Model


def layer_table(model: Model) -> pd.DataFrame:
    """One row per layer: its name, kind, output shape without the batch axis, parameters."""
    rows = [(x.name, type(x).__name__, x.output.shape[1:], x.count_params()) for x in model.layers]
    return pd.DataFrame(rows, columns=["layer", "kind", "output shape", "parameters"])
