"""The small network whose features cells are compared by."""

from cellaug.networks.dcgan import SLOPE

import keras
import numpy as np
from keras import Input, KerasTensor, Model, layers, ops

GROUPS = 8  # of channels; means of a batch would belong to one laboratory (Wu & He 2018)


@keras.saving.register_keras_serializable("cellaug")
class Detail(layers.Layer):
    """What a binomial filter of 7×7 pixels takes from an image (N, H, W, C), eight times as strong.

    Granules, chromatin and nets of dots are a few grey levels high, and edges many.
    """

    def call(self, images: KerasTensor) -> KerasTensor:
        """The fine detail, of the same shape."""
        row = np.array([1, 6, 15, 20, 15, 6, 1]) / 64
        kernel = -np.outer(row, row)
        kernel[3, 3] += 1
        kernel = np.tile(8 * kernel[:, :, None, None], (1, 1, images.shape[-1], 1))
        edges = ops.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="symmetric")
        return ops.depthwise_conv(edges, ops.cast(kernel, images.dtype))


def blood_extractor(
    classes: int,
    size: int = 64,
    width: int = 32,
    one_laboratory: bool = False,
    detail: bool = False,
) -> Model:
    """Images (N, size, size, 3) in [-1, 1] to ``[features (N, 128), class logits (N, classes)]``.

    A small residual network (He et al. 2016): four stages that halve the side, with `width` to six
    times as many channels, a residual block in each but the first, a mean over the image. For cells
    of `one_laboratory` it has batch normalisation, which learns faster than that of groups.
    With `detail` it is shown the fine detail of an image beside it, see `Detail`.
    """

    def convolution(x: KerasTensor, channels: int, kernel: int, stride: int) -> KerasTensor:
        x = layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False)(x)
        if one_laboratory:
            return layers.BatchNormalization(momentum=0.9)(x)
        return layers.GroupNormalization(GROUPS)(x)

    def active(x: KerasTensor) -> KerasTensor:
        return layers.LeakyReLU(SLOPE)(x)

    image = Input((size, size, 3), name="image")
    shown = layers.Concatenate()([image, Detail()(image)]) if detail else image
    x = active(convolution(shown, width, 4, 2))
    for channels in (2 * width, 4 * width, 6 * width):
        x = active(convolution(x, channels, 3, 2))
        inner = active(convolution(x, channels, 3, 1))
        x = active(layers.Add()([x, convolution(inner, channels, 3, 1)]))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    features = layers.Dense(128, dtype="float32", name="features")(x)
    logits = layers.Dense(classes, dtype="float32", name="class")(active(features))
    return Model(image, [features, logits], name="blood_extractor")
