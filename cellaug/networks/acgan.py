"""The thesis's auxiliary classifier GAN on a frozen, pre-trained pair (Section 4.5)."""

import math

from cellaug.networks.cgan import label_vector
from cellaug.networks.describe import described, frozen

import pandas as pd
from keras import Input, Model
from keras.layers import Concatenate, Dense


@described
def acgan_generator(
    generator: Model,
    classes: int,
    width: int = 100,
    layers: int = 3,
    last_activation: str = "relu",
) -> Model:
    """``[latents (N, d), labels (N,)]`` to images, through a frozen copy of a trained generator.

    New dense layers (at least one), `width` units in each but the last, map latent vector and a
    learned vector of the label to a latent vector (N, d) for the frozen generator. In the thesis
    all end in ReLU: no element of it can be negative, and only 2^-d of the latent space is used;
    ``last_activation="linear"`` removes that limit.
    """
    if layers < 1:
        raise ValueError(f"layers {layers}: expected at least 1")
    latent_dim = generator.input_shape[-1]
    latent = Input((latent_dim,), name="latent")
    label = Input((), dtype="int32", name="label")
    x = Concatenate(name="latent_and_label")([latent, label_vector(label, classes)])
    for k in range(1, layers):
        x = Dense(width, activation="relu", name=f"to_latent_{k}")(x)
    x = Dense(latent_dim, activation=last_activation, name=f"to_latent_{layers}")(x)
    image = frozen(generator, "frozen_generator")(x)
    return Model([latent, label], image, name="acgan_generator")


def acgan_discriminator(
    discriminator: Model, classes: int, width: int = 100, layers: int = 3
) -> Model:
    """Images to ``[real/fake logit (N, 1), class logits (N, classes)]``, on frozen convolutions.

    The convolutions, and the dropout between them, are a copy of a trained discriminator's, which
    ends in a dense layer. Two outputs are trained: that layer, real or generated, from its trained
    weights, and class logits after new dense layers of `width` units.
    """
    head = discriminator.layers[-1]
    if not isinstance(head, Dense):
        found = f"'{head.name}' ({type(head).__name__})"
        raise ValueError(f"discriminator ends in {found}: expected a Dense layer")
    image = Input(discriminator.input_shape[1:], name="image")
    trunk = Model(discriminator.inputs[0], head.input)
    features = frozen(trunk, "frozen_discriminator")(image)
    new_head = Dense(head.units, dtype="float32", name="real_or_fake")
    source = new_head(features)
    new_head.set_weights(head.get_weights())
    x = features
    for k in range(1, layers + 1):
        x = Dense(width, activation="relu", name=f"to_class_{k}")(x)
    logits = Dense(classes, dtype="float32", name="class")(x)
    return Model(image, [source, logits], name="acgan_discriminator")


def trainable_table(model: Model) -> pd.DataFrame:
    """One row per variable: its path, shape, number of parameters and whether training moves it."""
    trainable = {id(v) for v in model.trainable_variables}
    rows = [(v.path, tuple(v.shape), math.prod(v.shape), id(v) in trainable) for v in model.weights]
    return pd.DataFrame(rows, columns=["variable", "shape", "parameters", "trainable"])
