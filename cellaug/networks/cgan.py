"""A plain conditional GAN on the DCGAN bodies (Mirza & Osindero 2014; Eq. 32, Section 4.5)."""

from cellaug.networks.dcgan import discriminator_body, generator_body
from cellaug.networks.describe import described

from keras import Input, KerasTensor, Model, initializers, layers


def label_vector(label: KerasTensor, classes: int, width: int = 50) -> KerasTensor:
    """A learned vector (N, width) for each integer label (N,), drawn from N(0, 1) at first."""
    normal = initializers.RandomNormal(stddev=1.0)
    return layers.Embedding(classes, width, normal, name="label_vector")(label)


def with_label_planes(image: KerasTensor, label: KerasTensor, classes: int) -> KerasTensor:
    """The image (N, H, H, 3) with eight learned numbers for its label at every pixel."""
    vector = label_vector(label, classes, 8)
    planes = layers.Reshape((1, 1, 8), name="label_pixel")(vector)
    planes = layers.UpSampling2D(image.shape[1], name="label_planes")(planes)
    return layers.Concatenate(name="image_and_label")([image, planes])


@described
def cgan_generator(size: int, depth: int, latent_dim: int, classes: int, kernel: int = 5) -> Model:
    """G(z|y) of Eq. 32: ``[latents, labels]`` to images: a learned vector of y beside z."""
    latent = Input((latent_dim,), name="latent")
    label = Input((), dtype="int32", name="label")
    x = layers.Concatenate(name="latent_and_label")([latent, label_vector(label, classes)])
    return Model([latent, label], generator_body(x, size, depth, kernel), name="cgan_generator")


def cgan_discriminator(
    size: int, depth: int, classes: int, kernel: int = 5, dropout: float = 0.3
) -> Model:
    """D(x|y) of Eq. 32: ``[images, labels]`` to logits (N, 1); y beside the colours of a pixel."""
    image = Input((size, size, 3), name="image")
    label = Input((), dtype="int32", name="label")
    x = with_label_planes(image, label, classes)
    features = discriminator_body(x, size, depth, kernel, dropout)
    logit = layers.Dense(1, dtype="float32", name="real_or_fake")(features)
    return Model([image, label], logit, name="cgan_discriminator")
