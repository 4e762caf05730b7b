"""A plain conditional GAN on the DCGAN bodies (Mirza & Osindero 2014; Eq. 32, Section 4.5).

The thesis tried one and was not satisfied with its images; it does not say how it was built.
"""

from cellaug.networks.dcgan import discriminator_body, generator_body

from keras import Input, KerasTensor, Model, initializers, layers


def label_vector(label: KerasTensor, classes: int, width: int = 50) -> KerasTensor:
    """A learned vector (N, width) for each integer label (N,), drawn from N(0, 1) at first."""
    normal = initializers.RandomNormal(stddev=1.0)
    return layers.Embedding(classes, width, embeddings_initializer=normal, name="label_vector")(
        label
    )


def cgan_generator(size: int, depth: int, latent_dim: int, classes: int, kernel: int = 5) -> Model:
    """G(z|y) of Eq. 32: ``[latent (N, latent_dim), label (N,)]`` to images in [-1, 1].

    The label enters as a learned vector beside the latent one; the rest is
    `cellaug.networks.dcgan.generator`, whose arguments and errors these are.
    """
    latent = Input((latent_dim,), name="latent")
    label = Input((), dtype="int32", name="label")
    x = layers.Concatenate(name="latent_and_label")([latent, label_vector(label, classes)])
    return Model([latent, label], generator_body(x, size, depth, kernel), name="cgan_generator")


def cgan_discriminator(
    size: int, depth: int, classes: int, kernel: int = 5, dropout: float = 0.3
) -> Model:
    """D(x|y) of Eq. 32: ``[image (N, size, size, 3), label (N,)]`` to one logit each, (N, 1).

    The label enters as a learned vector of eight numbers, repeated at every pixel beside the three
    colours; the rest is `cellaug.networks.dcgan.discriminator`, whose arguments and errors these
    are.
    """
    width = 8
    image = Input((size, size, 3), name="image")
    label = Input((), dtype="int32", name="label")
    planes = layers.Reshape((1, 1, width), name="label_pixel")(label_vector(label, classes, width))
    planes = layers.UpSampling2D(size, name="label_planes")(planes)
    x = layers.Concatenate(name="image_and_label")([image, planes])
    features = discriminator_body(x, size, depth, kernel, dropout)
    logit = layers.Dense(1, dtype="float32", name="real_or_fake")(features)
    return Model([image, label], logit, name="cgan_discriminator")
