"""Interpolation, reconstruction and perturbation in the latent space (Section 4.6)."""

from itertools import pairwise

from cellaug.data.images import to_float
from cellaug.networks.describe import frozen
from cellaug.training.backends import use_xla
from cellaug.training.gan import generate_images, inputs_of

import keras
import numpy as np
from keras import Model


def interpolate(z1: np.ndarray, z2: np.ndarray, steps: int = 8) -> np.ndarray:
    """The straight line of Eq. 40, z_k = z1 + (z2 - z1) k / n for k = 0 ... n = `steps`.

    From two vectors (d,) to (steps + 1, d), with both ends.
    """
    z1, z2 = np.asarray(z1), np.asarray(z2)
    if z1.ndim != 1 or z1.shape != z2.shape:
        found = f"found {z1.shape} and {z2.shape}"
        raise ValueError(f"expected two vectors of one length, {found}")
    if steps < 1:
        raise ValueError(f"steps {steps}: expected at least 1")
    return z1 + (z2 - z1) * (np.arange(steps + 1) / steps)[:, None]


def path(stops: np.ndarray, steps: int = 8) -> np.ndarray:
    """The lines of `interpolate` from each of `stops` (n, d) to the next: a row for each step."""
    lines = [interpolate(*ends, steps) for ends in pairwise(stops)]
    return np.concatenate([*(line[:-1] for line in lines), stops[-1:]])


def perturb(z: np.ndarray, variance: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """The variations of Eq. 42, z + ε with ε from N(0, variance · I): (count, d) from z (d,).

    The thesis shows a variance of 0.04, that is σ = 0.2.
    """
    if np.ndim(z) != 1:
        raise ValueError(f"expected one latent vector, found an array of shape {np.shape(z)}")
    if variance < 0:
        raise ValueError(f"variance {variance}: expected 0 or more")
    return np.asarray(z) + np.sqrt(variance) * rng.standard_normal((count, len(z)))


def autoencoder(encoder: Model, generator: Model) -> Model:
    """Images to their reconstructions G(E(x)), for training the encoder E by Eq. 41's L1 norm.

    Compile it with ``loss="mae"`` and fit it with a reader that has ``targets="images"``; that
    trains the given encoder. The generator is a frozen copy.
    """
    decode = frozen(generator, "frozen_generator")
    return Model(encoder.inputs[0], decode(encoder.output), name="autoencoder")


def optimise(
    generator: Model, images: np.ndarray, steps: int = 300, learning_rate: float = 0.05,
    seed: int = 0, start: np.ndarray | None = None, labels: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Solve Eq. 41 image by image: the latent vectors whose images are nearest in the L1 norm.

    Adam, its rate falling to zero along half a cosine, finds local minima for `images`, uint8
    (N, size, size, 3): try several seeds of the N(0, 1) start, or `start` (N, d) from an encoder,
    which is kept where the result is not nearer. A conditional generator needs the images' `labels`
    (N,), class numbers. Returns the latent vectors (N, d), float32, and
    the mean |I - G(z)| in grey levels before each step, (steps,).
    """
    expected, found = ("uint8", generator.output_shape[1:]), (images.dtype, images.shape[1:])
    if expected != found:
        raise ValueError("expected {} images {}, found {} {}".format(*expected, *found))
    shape = (len(images), generator.inputs[0].shape[-1])
    first = np.random.default_rng(seed).standard_normal(shape) if start is None else start
    start = np.asarray(first, "float32")
    if start.shape != shape:
        raise ValueError(f"start {start.shape}: expected {shape}")
    index = keras.Input((), dtype="int32", name="index")
    table = keras.layers.Embedding(*shape, name="latents")
    label = keras.Input((), dtype="int32", name="label")
    copy, given = frozen(generator, "frozen_generator"), [index]
    if labels is not None:
        given.append(label)
    search = Model(given, copy(inputs_of(copy, table(index), label)))
    table.set_weights([start])
    # The loss is a mean over all images: with many, Adam's usual epsilon would slow it down.
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    adam = keras.optimizers.Adam(rate, epsilon=1e-12)
    search.compile(adam, loss="mae", jit_compile=use_xla())
    adam.build(search.trainable_variables)  # else the first step compiles twice
    indices = [np.arange(len(images))]
    if labels is not None:
        indices.append(np.asarray(labels, "int32"))
    targets, losses = to_float(images), []
    for _ in range(steps):
        search.reset_metrics()
        losses.append(search.train_on_batch(indices, targets))
    end = table.get_weights()[0]
    errors = [
        reconstruction_error(images, generate_images(generator, z, labels)) for z in (start, end)
    ]
    nearer = errors[1] < errors[0]
    return np.where(nearer[:, None], end, start), np.array(losses) * 127.5


def reconstruction_error(images_a: np.ndarray, images_b: np.ndarray) -> np.ndarray:
    """The mean absolute difference of each pair of uint8 images, (N,), in grey levels."""
    if others := {images_a.dtype, images_b.dtype} - {np.dtype("uint8")}:
        raise ValueError(f"expected uint8 images, found {others.pop()}")
    if images_a.shape != images_b.shape:
        raise ValueError(f"expected one shape, found {images_a.shape} and {images_b.shape}")
    return np.abs(images_a.astype("int16") - images_b).mean(axis=(1, 2, 3))
