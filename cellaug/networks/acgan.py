"""The thesis's auxiliary classifier GAN on a frozen, pre-trained pair (Section 4.5)."""

import math

from cellaug.networks.cgan import label_vector

import pandas as pd
from keras import Input, Model, models
from keras.layers import Concatenate, Dense


def frozen(model: Model, name: str) -> Model:
    """A copy of a network with the same weights, none of them trainable.

    Its batch normalisation runs in inference mode, with the running mean and variance, also while
    something around it is trained. Its dropout, if it has any, stays active in training.
    """
    copy = models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.trainable = False
    copy.name = name
    return copy


def acgan(
    generator: Model,
    discriminator: Model,
    classes: int,
    width: int = 100,
    layers: int = 3,
    activation: str = "relu",
    last_activation: str = "relu",
) -> tuple[Model, Model]:
    """The conditional pair of Section 4.5, built around copies of a trained vanilla pair.

    The new generator takes latent vectors and class labels through three dense layers to the
    latent vectors that the frozen generator is asked for: it learns which part of the latent space
    holds which class. The new discriminator keeps the frozen convolutions and has two trainable
    outputs: the vanilla pair's real/fake unit, which starts from its trained weights, and the class
    logits after three dense layers (softmax is part of the loss, `AuxiliaryClassifier`).

    Our readings: the label enters as a learned vector beside the latent one; the last of the three
    layers in front of the generator has as many units as a latent vector, and as the thesis writes
    them all ends in ReLU. It can then only ask for latents without a negative element, one in
    2^100 of those that the generator was trained on; ``last_activation="linear"`` lifts that. The
    dropout between the frozen convolutions stays active in training, as it was when they were
    trained and as freezing a layer leaves it in Keras.

    Args:
        generator: trained, latent vectors (N, d) to images (N, size, size, 3).
        discriminator: trained, images to one logit, its last layer a `keras.layers.Dense`.
        classes: number of classes; labels are integers from 0 to classes - 1.
        width: units of each added layer (the layer before the generator has d).
        layers: how many layers to add in front of the generator and of the class logits.
        activation: of the added layers.
        last_activation: of the last added layer in front of the generator.

    Returns:
        The generator, ``[latent (N, d), label (N,)]`` to images, and the discriminator, images to
        ``[real/fake logit (N, 1), class logits (N, classes)]``. The given pair is not altered.

    Raises:
        ValueError: if ``layers`` is not positive or the discriminator does not end in a dense
            layer.
    """
    if layers < 1:
        raise ValueError(f"layers {layers}: expected at least 1")
    head = discriminator.layers[-1]
    if not isinstance(head, Dense):
        raise ValueError(
            f"discriminator ends in '{head.name}' ({type(head).__name__}): expected a Dense layer "
            "that gives the real/fake logit, as cellaug.networks.discriminator makes it"
        )

    latent_dim = generator.input_shape[-1]
    latent = Input((latent_dim,), name="latent")
    label = Input((), dtype="int32", name="label")
    x = Concatenate(name="latent_and_label")([latent, label_vector(label, classes)])
    for k in range(1, layers):
        x = Dense(width, activation=activation, name=f"to_latent_{k}")(x)
    x = Dense(latent_dim, activation=last_activation, name=f"to_latent_{layers}")(x)
    conditional = Model(
        [latent, label], frozen(generator, "frozen_generator")(x), name="acgan_generator"
    )

    image = Input(discriminator.input_shape[1:], name="image")
    trunk = Model(discriminator.inputs[0], head.input)
    features = frozen(trunk, "frozen_discriminator")(image)
    new_head = Dense(head.units, dtype="float32", name="real_or_fake")
    source = new_head(features)
    new_head.set_weights(head.get_weights())
    x = features
    for k in range(1, layers + 1):
        x = Dense(width, activation=activation, name=f"to_class_{k}")(x)
    logits = Dense(classes, dtype="float32", name="class")(x)
    return conditional, Model(image, [source, logits], name="acgan_discriminator")


def trainable_table(model: Model) -> pd.DataFrame:
    """One row per variable: its path, shape, number of parameters and whether training moves it."""
    trainable = {id(v) for v in model.trainable_variables}
    rows = [(v.path, tuple(v.shape), math.prod(v.shape), id(v) in trainable) for v in model.weights]
    return pd.DataFrame(rows, columns=["variable", "shape", "parameters", "trainable"])
