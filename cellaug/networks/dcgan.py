"""The thesis's deep convolutional pair, after Radford et al. (DCGAN), Sections 4.3 and 4.4.

Our reading of its Figures 22 and 23: both networks meet at 4×4 pixels and change depth by a factor
of two at every step; layers before a batch normalisation have no bias, and its momentum of 0.9
settles in short runs; the slope is Radford's, the dropout rate that of TensorFlow's DCGAN tutorial.
"""

from collections.abc import Callable
from functools import partial

from cellaug.networks.describe import described

import keras
from keras import Input, KerasTensor, Model, layers, ops, random

SLOPE = 0.2
MOMENTUM = 0.9
SMALLEST = 4  # height and width in pixels at which the convolutions begin and end


@keras.saving.register_keras_serializable("cellaug")
class Dropout(layers.Dropout):
    """Dropout whose rate is rounded to 1/256: one random byte decides, not one random number.

    On a processor drawing is most of what dropout costs, and a random integer holds four bytes.
    """

    def call(self, x: KerasTensor, training: bool = False) -> KerasTensor:
        """The images (N, H, W, C), in training some values 0 and the others larger to match."""
        if not training or not (threshold := min(round(256 * self.rate), 255)):
            return x
        *places, channels = ops.shape(x)
        words = random.randint(
            (*places, -(-channels // 4)), -(2**31), 2**31 - 1, "int32", self.seed_generator
        )
        drawn = ops.view(words, "uint8")[..., :channels]
        kept = ops.cast(drawn >= threshold, x.dtype)
        return x * (kept * ops.cast(256 / (256 - threshold), x.dtype))


@keras.saving.register_keras_serializable("cellaug")
class Even(keras.constraints.Constraint):
    """Kernels (k, k, out, in) of stride 2, k even, whose taps have one sum at all four places.

    A transposed convolution then keeps an even image even, without the net that it draws otherwise,
    and can still draw grain, which a resize-convolution cannot (Sugawara, Shiota & Kiya 2018).
    """

    def __call__(self, kernel: KerasTensor) -> KerasTensor:
        """The nearest such kernels."""
        half = kernel.shape[0] // 2
        taps = ops.reshape(kernel, (half, 2, half, 2, *kernel.shape[2:]))
        sums = ops.sum(taps, axis=(0, 2), keepdims=True)
        surplus = (sums - ops.mean(sums, axis=(1, 3), keepdims=True)) / half**2
        return ops.reshape(taps - surplus, kernel.shape)


def doublings(size: int) -> int:
    """The number of steps of stride 2 between 4×4 pixels and an image of `size` pixels."""
    if size < 16 or size & (size - 1):
        raise ValueError(f"image size {size}: expected a power of two, 16 or more")
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
    resize_all: bool = False,
    even: bool = False,
) -> KerasTensor:
    """From a vector (N, d) to an image (N, size, size, 3) in [-1, 1].

    `activate` follows every layer but the last; it gets the side of its images in pixels. `resize`
    makes the last layer a bilinear enlargement and a 3×3 convolution, which treat all pixels alike;
    `resize_all` makes every doubling one. Bilinear enlargement is the filter (1, 3, 3, 1) of
    Karras et al. (2020), before a convolution instead of after it. With `even` the kernels of
    transposed convolutions are `Even`.
    """
    steps = doublings(size)
    if even and kernel % 2:
        raise ValueError(f"kernel {kernel}: even needs one of 2, 4 or more pixels")
    if depth % (whole := 2 ** (steps - 1)):
        expected = f"expected a multiple of {whole}"
        raise ValueError(f"generator depth {depth} at {size} px: {expected}")
    transposed = partial(
        layers.Conv2DTranspose, kernel_size=kernel, strides=2, padding="same",
        kernel_constraint=Even() if even else None,
    )  # fmt: skip
    x = layers.Dense(SMALLEST * SMALLEST * depth, use_bias=False, name="project")(x)
    x = layers.Reshape((SMALLEST, SMALLEST, depth), name="reshape")(x)
    x = activate(x, SMALLEST)
    for step in range(1, steps):
        side = SMALLEST * 2**step
        channels = max(depth // 2**step, narrowest)
        look = {"use_bias": False, "name": f"up_{side}"}
        if resize_all:
            x = layers.UpSampling2D(interpolation="bilinear", name=f"resize_{side}")(x)
            up = layers.Conv2D(channels, 3, padding="same", **look)
        else:
            up = transposed(channels, **look)
        x = activate(up(x), side)
    if resize or resize_all:
        x = layers.UpSampling2D(interpolation="bilinear", name=f"resize_{size}")(x)
        x = layers.Conv2D(3, 3, padding="same", name=f"up_{size}")(x)
    else:
        x = transposed(3, name=f"up_{size}")(x)
    return layers.Activation("tanh", dtype="float32", name="image")(x)


def discriminator_body(
    x: KerasTensor, size: int, depth: int, kernel: int, dropout: float
) -> KerasTensor:
    """From an image (N, size, size, channels) to features (N, 4·4·depth·size/8)."""
    for step in range(doublings(size)):
        side = size // 2 ** (step + 1)
        channels, name = depth * 2**step, f"down_{side}"
        x = layers.Conv2D(channels, kernel, 2, padding="same", name=name)(x)
        x = layers.LeakyReLU(SLOPE, name=f"relu_{side}")(x)
        x = Dropout(dropout, name=f"dropout_{side}")(x)
    return layers.Flatten(name="features")(x)


@described
def generator(size: int = 256, depth: int = 1024, latent_dim: int = 100, kernel: int = 5) -> Model:
    """The generator G of Section 4.4: latent vectors (N, latent_dim) to images in [-1, 1].

    A dense layer makes 4×4×depth numbers; transposed convolutions of stride 2 double the side and
    halve the depth, the last gives the colours through tanh. The others have batch normalisation
    and leaky ReLU (Section 4.3). The defaults are those of Table 1.
    """
    latent = Input((latent_dim,), name="latent")
    return Model(latent, generator_body(latent, size, depth, kernel), name="generator")


@described
def discriminator(size: int = 256, depth: int = 64, kernel: int = 5, dropout: float = 0.3) -> Model:
    """The discriminator D of Section 4.4: images (N, size, size, 3) to one logit each, (N, 1).

    Convolutions of stride 2 halve the side and double the depth down to 4×4 pixels, each followed
    by leaky ReLU and dropout. The thesis's D(x) is ``keras.ops.sigmoid`` of this output: that is
    part of the loss (`cellaug.training.CrossEntropy`), where it cannot round to 0 or 1.
    """
    image = Input((size, size, 3), name="image")
    features = discriminator_body(image, size, depth, kernel, dropout)
    logit = layers.Dense(1, dtype="float32", name="real_or_fake")(features)
    return Model(image, logit, name="discriminator")
