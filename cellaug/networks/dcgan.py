"""The thesis's deep convolutional pair, after Radford et al. (DCGAN), Sections 4.3 and 4.4.

The thesis gives kernel 5×5, stride 2, depths 1024 and 64 (Table 1), where batch normalisation,
dropout and leaky ReLU stand, and tanh at the end. What it leaves to its Figures 22 and 23 is our
reading: both networks meet at 4×4 pixels and change depth by a factor of two at every step; the
slope 0.2 is Radford's; the dropout rate 0.3 is that of TensorFlow's DCGAN tutorial, whose names for
the settings ("buffer size") the thesis shares; layers before a batch normalisation have no bias;
weights start from Keras's default, Glorot's uniform distribution; and batch normalisation keeps a
running mean over about ten batches (momentum 0.9), so that short runs have settled statistics.
"""

from collections.abc import Callable

from keras import Input, KerasTensor, Model, layers

SLOPE = 0.2
MOMENTUM = 0.9
SMALLEST = 4  # height and width in pixels at which the convolutions begin and end


def doublings(size: int) -> int:
    """How many steps of stride 2 lie between 4×4 pixels and an image of ``size`` pixels.

    Raises:
        ValueError: unless ``size`` is a power of two of at least 16.
    """
    if size < 16 or size & (size - 1):
        raise ValueError(
            f"image size {size}: expected a power of two, 16 or more (16, 32, 64, ...)"
        )
    return (size // SMALLEST).bit_length() - 1


def activated(x: KerasTensor, side: int) -> KerasTensor:
    """Batch normalisation and leaky ReLU, as after every layer of the generator but the last."""
    x = layers.BatchNormalization(momentum=MOMENTUM, name=f"norm_{side}")(x)
    return layers.LeakyReLU(SLOPE, name=f"relu_{side}")(x)


def generator_body(
    x: KerasTensor,
    size: int,
    depth: int,
    kernel: int,
    activate: Callable[[KerasTensor, int], KerasTensor] = activated,
    resize: bool = False,
    narrowest: int = 1,
) -> KerasTensor:
    """From a vector (N, d) to an image (N, size, size, 3) in [-1, 1].

    `activate` follows every layer but the last; it is told the side of its images in pixels.
    `resize` makes the last layer a resize-convolution (Odena et al. 2016): bilinear enlargement and
    a 3×3 convolution, to which all pixels are alike, wherever they lie in the stride. No layer but
    the last has fewer channels than `narrowest`.

    Raises:
        ValueError: if ``depth`` cannot be halved as often as the size needs it.
    """
    steps = doublings(size)
    if depth % 2 ** (steps - 1):
        raise ValueError(
            f"generator depth {depth} at {size} px: expected a multiple of {2 ** (steps - 1)}, "
            "since every step halves the depth"
        )

    x = layers.Dense(SMALLEST * SMALLEST * depth, use_bias=False, name="project")(x)
    x = layers.Reshape((SMALLEST, SMALLEST, depth), name="reshape")(x)
    x = activate(x, SMALLEST)
    for step in range(1, steps):
        side = SMALLEST * 2**step
        channels = max(depth // 2**step, narrowest)
        x = layers.Conv2DTranspose(
            channels, kernel, strides=2, padding="same", use_bias=False, name=f"up_{side}"
        )(x)
        x = activate(x, side)
    if resize:
        x = layers.UpSampling2D(interpolation="bilinear", name=f"resize_{size}")(x)
        x = layers.Conv2D(3, 3, padding="same", name=f"up_{size}")(x)
    else:
        x = layers.Conv2DTranspose(3, kernel, strides=2, padding="same", name=f"up_{size}")(x)
    return layers.Activation("tanh", dtype="float32", name="image")(x)


def discriminator_body(
    x: KerasTensor, size: int, depth: int, kernel: int, dropout: float
) -> KerasTensor:
    """From an image (N, size, size, channels) to features (N, 4·4·depth·size/8)."""
    for step in range(doublings(size)):
        side = size // 2 ** (step + 1)
        x = layers.Conv2D(depth * 2**step, kernel, strides=2, padding="same", name=f"down_{side}")(
            x
        )
        x = layers.LeakyReLU(SLOPE, name=f"relu_{side}")(x)
        x = layers.Dropout(dropout, name=f"dropout_{side}")(x)
    return layers.Flatten(name="features")(x)


def generator(size: int = 256, depth: int = 1024, latent_dim: int = 100, kernel: int = 5) -> Model:
    """The generator G of Section 4.4: latent vectors (N, latent_dim) to images in [-1, 1].

    A dense layer makes 4×4×depth numbers; transposed convolutions of stride 2 double the side and
    halve the depth until the last gives the three colours through tanh. Every layer but the last is
    batch normalised and followed by leaky ReLU (Section 4.3; what else is our reading stands at the
    head of this module).

    Args:
        size: height and width of the images in pixels, a power of two of at least 16.
        depth: channels at 4×4 pixels, Depth_G of Table 1; a multiple of size / 8.
        latent_dim: length of a latent vector, Table 1.
        kernel: height and width of the kernels, Table 1. One that stride 2 does not divide, like 5,
            overlaps unevenly: the cause of the grid that Chapter 6 of the thesis sees
            (Odena et al. 2016); 4 does not.

    Raises:
        ValueError: for a size or a depth that cannot be halved as needed.
    """
    latent = Input((latent_dim,), name="latent")
    return Model(latent, generator_body(latent, size, depth, kernel), name="generator")


def discriminator(size: int = 256, depth: int = 64, kernel: int = 5, dropout: float = 0.3) -> Model:
    """The discriminator D of Section 4.4: images (N, size, size, 3) to one logit each, (N, 1).

    Convolutions of stride 2 halve the side and double the depth down to 4×4 pixels, each followed
    by leaky ReLU and dropout; one dense unit tells real (positive) from generated (negative). There
    is no batch normalisation. The thesis ends in a sigmoid; here the sigmoid is part of the loss
    (`cellaug.training.CrossEntropy`), where it cannot round to 0 or 1: ``keras.ops.sigmoid`` of
    this output is the thesis's D(x).

    Args:
        size: height and width of the images in pixels, a power of two of at least 16.
        depth: channels after the first convolution, Depth_D of Table 1.
        kernel: height and width of the kernels, Table 1.
        dropout: share of activations dropped in training.

    Raises:
        ValueError: for a size that is not a power of two of at least 16.
    """
    image = Input((size, size, 3), name="image")
    features = discriminator_body(image, size, depth, kernel, dropout)
    logit = layers.Dense(1, dtype="float32", name="real_or_fake")(features)
    return Model(image, logit, name="discriminator")
