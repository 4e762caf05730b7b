"""Walks, reconstructions and perturbations in the latent space (Section 4.6)."""

from cellaug.data.images import to_float
from cellaug.networks.acgan import frozen
from cellaug.training.adversarial import generate_images, use_xla

import keras
import numpy as np
from keras import Model


def interpolate(z1: np.ndarray, z2: np.ndarray, steps: int = 8) -> np.ndarray:
    """The straight walk of Eq. 40, z_k = z1 + (z2 - z1) k / n for k = 0 ... n.

    Args:
        z1: where it begins, (d,).
        z2: where it ends, (d,).
        steps: n; the thesis walks in eight.

    Returns:
        (steps + 1, d), both ends included.

    Raises:
        ValueError: if ``steps`` is not positive or the vectors are not two of one length.
    """
    z1, z2 = np.asarray(z1), np.asarray(z2)
    if z1.ndim != 1 or z1.shape != z2.shape:
        raise ValueError(f"expected two vectors of one length, found {z1.shape} and {z2.shape}")
    if steps < 1:
        raise ValueError(f"steps {steps}: expected at least 1")
    return z1 + (z2 - z1) * (np.arange(steps + 1) / steps)[:, None]


def perturb(z: np.ndarray, variance: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """The neighbours of Eq. 42, z + ε with ε from N(0, variance · I): (count, d).

    Args:
        z: a latent vector (d,).
        variance: σ² of every element; the thesis shows 0.04, that is σ = 0.2.
        count: how many.
        rng: where the noise comes from.

    Raises:
        ValueError: if the variance is negative or ``z`` is not a vector.
    """
    z = np.asarray(z)
    if z.ndim != 1:
        raise ValueError(f"expected one latent vector, found an array of shape {z.shape}")
    if variance < 0:
        raise ValueError(f"variance {variance}: expected 0 or more")
    return z + np.sqrt(variance) * rng.standard_normal((count, len(z)))


def autoencoder(encoder: Model, generator: Model) -> Model:
    """Images to their reconstructions G(E(x)), for training the encoder E by Eq. 41's L1 norm.

    Compile it with ``loss="mae"`` and fit it with a reader that has ``targets="images"``. The
    encoder is the given one, so training moves it; the generator is a frozen copy in inference
    mode.
    """
    decode = frozen(generator, "frozen_generator")
    return Model(encoder.inputs[0], decode(encoder.output), name="autoencoder")


def optimise(
    generator: Model,
    images: np.ndarray,
    steps: int = 300,
    learning_rate: float = 0.05,
    seed: int = 0,
    start: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Solve Eq. 41 image by image: the latent vectors whose images lie nearest in the L1 norm.

    Adam moves the latent vectors, all at once and independently of each other, while the generator
    stays frozen in inference mode. What it finds is a local minimum: try several seeds, or start
    from what an encoder gives. Where it has not come nearer than it started, the start is kept.

    Args:
        generator: latent vectors (N, d) to images in [-1, 1].
        images: uint8 (N, size, size, 3).
        steps: of Adam.
        learning_rate: of Adam at first, in units of the latent space's standard deviation; it falls
            to zero along half a cosine.
        seed: of the N(0, 1) start.
        start: where to begin instead, (N, d).

    Returns:
        The latent vectors (N, d) float32, and the mean |I - G(z)| over all images before each step,
        (steps,), in grey levels.

    Raises:
        ValueError: if the images are not uint8, or shapes do not fit.
    """
    latent_dim = generator.input_shape[-1]
    if images.dtype != np.uint8 or images.shape[1:] != generator.output_shape[1:]:
        raise ValueError(
            f"expected uint8 images {generator.output_shape[1:]}, "
            f"found {images.dtype} {images.shape[1:]}"
        )
    shape = (len(images), latent_dim)
    if start is None:
        start = np.random.default_rng(seed).standard_normal(shape)
    if np.shape(start) != shape:
        raise ValueError(f"start {np.shape(start)}: expected {shape}")

    index = keras.Input((), dtype="int32", name="index")
    table = keras.layers.Embedding(*shape, name="latents")
    search = Model(index, frozen(generator, "frozen_generator")(table(index)))
    start = np.asarray(start, "float32")
    table.set_weights([start])
    # The gradient of one element is small: a share of the mean over all pixels of all images. An
    # epsilon of Adam's usual size would slow it down the more images there are.
    rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    adam = keras.optimizers.Adam(rate, epsilon=1e-12)
    search.compile(adam, loss="mae", jit_compile=use_xla())
    indices, targets = np.arange(len(images)), to_float(images)
    losses = []
    for _ in range(steps):
        search.reset_metrics()
        losses.append(search.train_on_batch(indices, targets))
    end = table.get_weights()[0]
    errors = [reconstruction_error(images, generate_images(generator, z)) for z in (start, end)]
    nearer = errors[1] < errors[0]
    return np.where(nearer[:, None], end, start), np.array(losses) * 127.5


def reconstruction_error(images_a: np.ndarray, images_b: np.ndarray) -> np.ndarray:
    """The mean absolute difference of each pair of uint8 images, in grey levels (0 to 255): (N,).

    Raises:
        ValueError: if the arrays are not uint8 of one shape.
    """
    for images in (images_a, images_b):
        if images.dtype != np.uint8:
            raise ValueError(f"expected uint8 images, found {images.dtype}")
    if images_a.shape != images_b.shape:
        raise ValueError(f"expected one shape, found {images_a.shape} and {images_b.shape}")
    return np.abs(images_a.astype("int16") - images_b).mean(axis=(1, 2, 3))
