"""The class-conditional pair whose kernels fit their stride.

What the field has learned since the thesis's recipe, each step an argument that can be switched
off: 4×4 kernels at stride 2, which overlap evenly, and a resize-convolution at the end (both Odena
et al. 2016); the class embedded and, with the latent vector, scaling and shifting every layer of
the generator (Miyato & Koyama 2018, Chen et al. 2019); a discriminator without normalisation, with
a projection head (Miyato & Koyama 2018) and the deviation within a batch as a feature (Karras et
al. 2018).
"""

from cellaug.networks.dcgan import MOMENTUM, SLOPE, activated, doublings, generator_body
from cellaug.networks.spectral import SpectralConv2D, SpectralDense

import keras
from keras import Input, KerasTensor, Model, initializers, layers, ops


@keras.saving.register_keras_serializable("cellaug")
class MinibatchDeviation(layers.Layer):
    """Appends one channel that says how varied the images of a batch are (Karras et al. 2018).

    The batch is dealt into groups of up to `group` images; within a group, the standard deviation
    of every activation is averaged into a single number, which all its images get, everywhere.
    A discriminator that sees it notices when a generator repeats itself. (N, H, W, C) to
    (N, H, W, C + 1), computed in float32.

    Args:
        group: images in a group. Where the batch is no multiple of it, the whole batch is one.
    """

    def __init__(self, group: int = 4, **options):
        super().__init__(**options)
        self.group = group

    def call(self, inputs: KerasTensor) -> KerasTensor:
        """Images (N, H, W, C) with the channel appended."""
        count, height, width, channels = ops.shape(inputs)
        x = ops.cast(inputs, "float32")
        # Images i, i + N/g, i + 2N/g, ... are a group, as in the published code.
        if isinstance(count, int):
            group = self.group if count % self.group == 0 else count
        else:
            group = ops.where(count % self.group == 0, self.group, count)
        x = ops.reshape(x, (group, -1, height, width, channels))
        spread = ops.sqrt(ops.mean(ops.square(x - ops.mean(x, 0, keepdims=True)), 0) + 1e-8)
        value = ops.mean(spread, axis=(1, 2, 3), keepdims=True)
        plane = ops.tile(value, (group, height, width, 1))
        return ops.concatenate([inputs, ops.cast(plane, inputs.dtype)], axis=-1)

    def compute_output_shape(self, shape: tuple) -> tuple:
        """One channel more."""
        return (*shape[:-1], shape[-1] + 1)

    def get_config(self) -> dict:
        """What the layer is made from."""
        return {**super().get_config(), "group": self.group}


@keras.saving.register_keras_serializable("cellaug")
class Modulation(layers.Layer):
    """Scales and shifts each channel by what a vector says: x · (1 + W v) + V v.

    Conditional batch normalisation without the normalisation (Dumoulin et al. 2017; with the latent
    vector in v, self-modulation, Chen et al. 2019). Takes ``[x (N, H, W, C), v (N, d)]``. Both
    matrices start near zero, so that at first it changes little.
    """

    def build(self, shapes: list) -> None:
        """Make the two matrices."""
        channels, width = shapes[0][-1], shapes[1][-1]
        near_zero = initializers.RandomNormal(stddev=0.02)
        self.scale = self.add_weight((width, channels), near_zero, name="scale")
        self.shift = self.add_weight((width, channels), near_zero, name="shift")

    def call(self, inputs: list) -> KerasTensor:
        """The scaled and shifted images."""
        x, vector = inputs
        scale, shift = (ops.matmul(vector, w)[:, None, None, :] for w in (self.scale, self.shift))
        return x * (1 + scale) + shift

    def compute_output_shape(self, shapes: list) -> tuple:
        """As the images."""
        return tuple(shapes[0])


@keras.saving.register_keras_serializable("cellaug")
class ClassDeviation(layers.Layer):
    """`MinibatchDeviation` among the images of one class; takes ``[x (N, H, W, C), labels (N,)]``.

    In a batch of many classes the deviation of all hides a generator that draws one and the same
    image for each. Here each image gets the deviation of its own class in the batch: the standard
    deviation of every activation over the class's images, averaged into a single number.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int, **options):
        super().__init__(**options)
        self.classes = classes

    def call(self, inputs: list) -> KerasTensor:
        """Images (N, H, W, C) with the channel appended."""
        images, labels = inputs
        x = ops.cast(images, "float32")
        member = ops.one_hot(ops.cast(labels, "int32"), self.classes, dtype="float32")
        share = member / ops.maximum(ops.sum(member, axis=0, keepdims=True), 1.0)

        def by_class(values: KerasTensor) -> KerasTensor:
            """The mean of each class, at each of its images."""
            means = ops.tensordot(share, values, axes=[[0], [0]])
            return ops.tensordot(member, means, axes=[[1], [0]])

        spread = ops.sqrt(by_class(ops.square(x - by_class(x))) + 1e-8)
        value = ops.mean(spread, axis=(1, 2, 3), keepdims=True)
        plane = ops.broadcast_to(value, (*ops.shape(images)[:-1], 1))
        return ops.concatenate([images, ops.cast(plane, images.dtype)], axis=-1)

    def compute_output_shape(self, shapes: list) -> tuple:
        """One channel more."""
        return (*shapes[0][:-1], shapes[0][-1] + 1)

    def get_config(self) -> dict:
        """What the layer is made from."""
        return {**super().get_config(), "classes": self.classes}


def conditional_generator(
    size: int = 64,
    depth: int = 256,
    latent_dim: int = 100,
    classes: int = 11,
    kernel: int = 4,
    modulation: bool = True,
    resize: bool = True,
    narrowest: int = 1,
) -> Model:
    """``[latents (N, latent_dim), labels (N,)]`` to images (N, size, size, 3) in [-1, 1].

    The plan is that of `cellaug.networks.dcgan.generator`: 4×4 pixels first, transposed
    convolutions of stride 2, the depth halved at every step, batch normalisation and leaky ReLU.

    Args:
        size: height and width of the images in pixels, a power of two of at least 16.
        depth: channels at 4×4 pixels, a multiple of size / 8.
        latent_dim: length of a latent vector; the class's embedding is as long.
        classes: number of classes.
        kernel: height and width of the kernels; 4 fits the stride, the thesis's 5 does not.
        modulation: let latent vector and class also scale and shift every layer (`Modulation`);
            without, they enter at the bottom only.
        resize: end in a resize-convolution; without, in a transposed one as everywhere else.
        narrowest: channels that every layer has at least, but the last: halved at every step of a
            large image, there would be few left where its detail is drawn.

    Raises:
        ValueError: for a size or a depth that cannot be halved as needed.
    """
    latent = Input((latent_dim,), name="latent")
    label = Input((), dtype="int32", name="label")
    normal = initializers.RandomNormal(stddev=1.0)
    embedded = layers.Embedding(classes, latent_dim, normal, name="class_embedding")(label)
    style = layers.Concatenate(name="latent_and_class")([latent, embedded])

    def modulated(x: KerasTensor, side: int) -> KerasTensor:
        x = layers.BatchNormalization(
            momentum=MOMENTUM, center=False, scale=False, name=f"norm_{side}"
        )(x)
        x = Modulation(name=f"modulate_{side}")([x, style])
        return layers.LeakyReLU(SLOPE, name=f"relu_{side}")(x)

    activate = modulated if modulation else activated
    image = generator_body(style, size, depth, kernel, activate, resize, narrowest)
    return Model([latent, label], image, name="conditional_generator")


def conditional_discriminator(
    size: int = 64,
    depth: int = 32,
    classes: int = 11,
    kernel: int = 4,
    projection: bool = True,
    deviation: str = "class",
    spectral: bool = False,
    every_label: bool = False,
) -> Model:
    """``[images (N, size, size, 3), labels (N,)]`` to one logit each, (N, 1).

    Convolutions of stride 2 down to 4×4 pixels, the depth doubled at every step, leaky ReLU, no
    normalisation and no dropout; one more convolution, and the head. With features φ(x) the logit
    is w·φ(x) + b + e(y)·φ(x), the projection of Miyato & Koyama (2018).

    Args:
        size: height and width of the images in pixels, a power of two of at least 16.
        depth: channels after the first convolution.
        classes: number of classes.
        kernel: height and width of the kernels at stride 2.
        projection: without it the class enters as planes beside the colours, as in
            `cellaug.networks.cgan_discriminator`.
        deviation: append `ClassDeviation` ("class") or `MinibatchDeviation` ("batch") at 4×4
            pixels, or nothing ("none").
        spectral: divide every kernel by its largest singular value (Miyato et al. 2018).
        every_label: give beside the logit those that the image would have with each of the labels
            (N, classes), for `cellaug.training.losses.WrongLabels`.

    Raises:
        ValueError: for a size that is not a power of two of at least 16, another deviation, or
            `every_label` without projection.
    """
    if every_label and not projection:
        raise ValueError("every_label needs the projection head")
    if deviation not in ("class", "batch", "none"):
        raise ValueError(f'deviation must be "class", "batch" or "none", not {deviation!r}')

    convolution = SpectralConv2D if spectral else layers.Conv2D
    dense = SpectralDense if spectral else layers.Dense

    image = Input((size, size, 3), name="image")
    label = Input((), dtype="int32", name="label")
    x = image
    if not projection:
        planes = layers.Embedding(classes, 8, initializers.RandomNormal(stddev=1.0), name="class")
        plane = layers.Reshape((1, 1, 8), name="class_pixel")(planes(label))
        plane = layers.UpSampling2D(size, name="class_planes")(plane)
        x = layers.Concatenate(name="image_and_class")([image, plane])
    for step in range(doublings(size)):
        side = size // 2 ** (step + 1)
        x = convolution(depth * 2**step, kernel, 2, padding="same", name=f"down_{side}")(x)
        x = layers.LeakyReLU(SLOPE, name=f"relu_{side}")(x)
    width = x.shape[-1]
    if deviation == "batch":
        x = MinibatchDeviation(name="deviation")(x)
    elif deviation == "class":
        x = ClassDeviation(classes, name="deviation")([x, label])
    x = convolution(width, 3, padding="same", name="mix")(x)
    x = layers.LeakyReLU(SLOPE, name="relu_mix")(x)
    x = dense(width, name="summary")(layers.Flatten(name="flat")(x))
    features = layers.LeakyReLU(SLOPE, name="features")(x)
    logit = layers.Dense(1, dtype="float32", name="real_or_fake")(features)
    if projection:
        near_zero = initializers.RandomNormal(stddev=width**-0.5)
        directions = layers.Dense(
            classes, None, False, near_zero, dtype="float32", name="class_directions"
        )(features)
        every = layers.Add(dtype="float32", name="logits")([logit, directions])
        own = ops.one_hot(label, classes, dtype="float32")
        logit = layers.Dot(1, dtype="float32", name="logit")([every, own])
    out = [logit, every] if every_label else logit
    return Model([image, label], out, name="conditional_discriminator")
