"""A class-conditional generator and discriminator whose kernels fit their stride."""

from cellaug.networks.cgan import label_vector, with_label_planes
from cellaug.networks.dcgan import MOMENTUM, SLOPE, activated, doublings, generator_body
from cellaug.networks.describe import described

import keras
import numpy as np
from keras import Input, KerasTensor, Model, initializers, layers, ops


@keras.saving.register_keras_serializable("cellaug")
class Modulation(layers.Layer):
    """Scales and shifts each channel by linear maps of a vector: x · (1 + W v) + V v.

    The affine part of conditional batch normalisation (Dumoulin et al. 2017; with the latent vector
    in v, self-modulation, Chen et al. 2019). Takes ``[x (N, H, W, C), v (N, d)]``.
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


@keras.saving.register_keras_serializable("cellaug")
class ClassDeviation(layers.Layer):
    """Appends one channel with the deviation within the image's class in the batch.

    The standard deviation of every activation over the class's images, averaged into one number:
    Karras et al.'s (2018) minibatch deviation, which over all classes would miss a generator with
    one image for each. Takes ``[x (N, H, W, C), labels (N,)]``, gives (N, H, W, C + 1), in float32.
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

    def get_config(self) -> dict:
        """The arguments that make the same layer."""
        return {**super().get_config(), "classes": self.classes}


@keras.saving.register_keras_serializable("cellaug")
class LowPass(layers.Layer):
    """The filter (1, 3, 3, 1) / 8 along rows and columns, before an image is halved.

    What a stride of 2 cannot show is taken out first (Zhang 2019; Karras et al. 2020). Takes and
    gives (N, H, W, C).
    """

    def call(self, x: KerasTensor) -> KerasTensor:
        """The filtered images."""
        row = np.array([1, 3, 3, 1]) / 8
        kernel = np.tile(np.outer(row, row)[:, :, None, None], (1, 1, x.shape[-1], 1))
        return ops.depthwise_conv(x, ops.cast(kernel, x.dtype), padding="same")


@described
def conditional_generator(
    size: int = 64,
    depth: int = 256,
    latent_dim: int = 100,
    classes: int = 11,
    kernel: int = 4,
    modulation: bool = True,
    resize: bool = True,
    narrowest: int = 1,
    resize_all: bool = False,
    even: bool = False,
    image_norm: bool = False,
) -> Model:
    """``[latents (N, latent_dim), labels (N,)]`` to images (N, size, size, 3) in [-1, 1].

    Built like `cellaug.networks.generator`; the class enters as a learned vector, as long as the
    latent one. With `modulation` both also scale and shift every layer. With `resize` a
    resize-convolution ends it (Odena et al. 2016), with `resize_all` every doubling is one, with
    `even` the kernels of the others are `cellaug.networks.dcgan.Even`. No layer but the last has
    fewer channels than `narrowest`, so that some are left where the detail of a large image is
    drawn. Batch normalisation leaves the size of a single image free, and it is large in broken
    cells: with `image_norm` every image gets mean 0 and deviation 1 after it.
    """
    latent = Input((latent_dim,), name="latent")
    label = Input((), dtype="int32", name="label")
    embedded = label_vector(label, classes, latent_dim)
    style = layers.Concatenate(name="latent_and_class")([latent, embedded])

    def modulated(x: KerasTensor, side: int) -> KerasTensor:
        norm = layers.BatchNormalization(
            -1, MOMENTUM, center=False, scale=False, name=f"norm_{side}"
        )
        x = norm(x)
        if image_norm:  # one group: all pixels and channels of an image
            look = {"center": False, "scale": False, "name": f"image_{side}"}
            x = layers.GroupNormalization(1, **look)(x)
        x = Modulation(name=f"modulate_{side}")([x, style])
        return layers.LeakyReLU(SLOPE, name=f"relu_{side}")(x)

    activate = modulated if modulation else activated
    ends = resize, narrowest, resize_all, even
    image = generator_body(style, size, depth, kernel, activate, *ends)
    return Model([latent, label], image, name="conditional_generator")


def conditional_discriminator(
    size: int = 64,
    depth: int = 32,
    classes: int = 11,
    kernel: int = 4,
    projection: bool = True,
    deviation: str | layers.Layer = "class",
    every_label: bool = False,
    bias: bool = True,
    low_pass: bool = False,
    convolution: type[layers.Layer] = layers.Conv2D,
    dense: type[layers.Layer] = layers.Dense,
) -> Model:
    """``[images (N, size, size, 3), labels (N,)]`` to one logit each, (N, 1).

    Convolutions of stride 2 down to 4×4 pixels, leaky ReLU, no normalisation and no dropout; one
    more convolution, a dense layer, and the head (`projection_logits`), or without `projection` the
    class beside the colours of every pixel. With `every_label` the logits with each of the labels
    (N, classes) are a second output, for `cellaug.training.WrongLabels`. `deviation` at 4×4 pixels
    is `ClassDeviation` ("class"), nothing ("none"), or a layer that takes ``[x, labels]``.
    `convolution` and `dense` are the kinds of the hidden layers. The last layer has no `bias` for a
    loss that compares two logits, where it cancels: only rounding would move it. With `low_pass` a
    `LowPass` stands before every halving.
    """
    if every_label and not projection:
        raise ValueError("every_label needs the projection head")
    if deviation not in ("class", "none") and not isinstance(deviation, layers.Layer):
        expected = 'expected "class", "none" or a layer'
        raise ValueError(f"deviation {deviation!r}: {expected}")
    image = Input((size, size, 3), name="image")
    label = Input((), dtype="int32", name="label")
    x = image if projection else with_label_planes(image, label, classes)
    for step in range(doublings(size)):
        side = size // 2 ** (step + 1)
        channels, name = depth * 2**step, f"down_{side}"
        x = LowPass(name=f"low_pass_{2 * side}")(x) if low_pass else x
        x = convolution(channels, kernel, 2, padding="same", name=name)(x)
        x = layers.LeakyReLU(SLOPE, name=f"relu_{side}")(x)
    width = x.shape[-1]
    if deviation == "class":
        x = ClassDeviation(classes, name="deviation")([x, label])
    elif isinstance(deviation, layers.Layer):
        x = deviation([x, label])
    x = convolution(width, 3, padding="same", name="mix")(x)
    x = layers.LeakyReLU(SLOPE, name="relu_mix")(x)
    x = dense(width, name="summary")(layers.Flatten(name="flat")(x))
    features = layers.LeakyReLU(SLOPE, name="features")(x)
    last = layers.Dense(1, use_bias=bias, dtype="float32", name="real_or_fake")
    logit = last(features)
    if projection:
        logit, every = projection_logits(features, logit, label, classes)
    out = [logit, every] if every_label else logit
    return Model([image, label], out, name="conditional_discriminator")


def projection_logits(
    features: KerasTensor, logit: KerasTensor, label: KerasTensor, classes: int
) -> tuple[KerasTensor, KerasTensor]:
    """The projection head of Miyato & Koyama (2018): w·φ(x) + b + e(y)·φ(x).

    From φ (N, d), w·φ + b (N, 1) and y (N,): the logit with y (N, 1), those with all labels (N, C).
    """
    normal = initializers.RandomNormal(stddev=features.shape[-1] ** -0.5)
    project = layers.Dense(classes, None, False, normal, dtype="float32", name="class_directions")
    every = layers.Add(dtype="float32", name="logits")([logit, project(features)])
    own = ops.one_hot(label, classes, dtype="float32")
    return layers.Dot(1, dtype="float32", name="logit")([every, own]), every
