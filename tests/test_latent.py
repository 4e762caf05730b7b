"""Walks, perturbations and reconstructions in the latent space."""

from cellaug import latent
from cellaug.data.images import to_float
from cellaug.training import generate_images, use_xla

import keras
import numpy as np
import pytest
from keras import layers
from processes import python

LATENT = 3


def toy_generator() -> keras.Model:
    """A fixed linear map and tanh, behind a batch normalisation that shifts by a running mean."""
    given = keras.Input((LATENT,))
    x = layers.BatchNormalization(name="norm")(given)
    x = layers.Dense(2 * 2 * 3, activation="tanh", name="map")(x)
    generator = keras.Model(given, layers.Reshape((2, 2, 3))(x), name="toy")
    rng = np.random.default_rng(0)
    generator.get_layer("map").set_weights([rng.normal(0, 0.5, (LATENT, 12)), np.zeros(12)])
    generator.get_layer("norm").moving_mean.assign(np.array([0.3, -0.2, 0.1]))
    return generator


def latents(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, LATENT)).astype("float32")


def test_interpolate_is_eq_40():
    z1, z2 = np.array([0.0, 2.0, -1.0]), np.array([4.0, 2.0, 1.0])
    walk = latent.interpolate(z1, z2, steps=4)
    expected = [[0, 2, -1], [1, 2, -0.5], [2, 2, 0], [3, 2, 0.5], [4, 2, 1]]
    np.testing.assert_allclose(walk, expected)
    assert latent.interpolate(z1, z2).shape == (9, 3)  # eight steps, as in the thesis


def test_interpolate_refuses():
    with pytest.raises(ValueError, match="steps 0: expected at least 1"):
        latent.interpolate(np.zeros(3), np.ones(3), 0)
    with pytest.raises(ValueError, match=r"two vectors of one length, found \(3,\) and \(2,\)"):
        latent.interpolate(np.zeros(3), np.ones(2))


def test_perturb_is_eq_42():
    z = np.linspace(-1, 1, 100)
    near = latent.perturb(z, 0.04, 2000, np.random.default_rng(0))
    assert near.shape == (2000, 100)
    noise = near - z
    assert noise.mean() == pytest.approx(0, abs=0.002)
    assert noise.var() == pytest.approx(0.04, rel=0.01)
    # elements are independent: the covariance is the identity times 0.04
    covariance = np.cov(noise, rowvar=False)
    assert np.abs(covariance - 0.04 * np.eye(100)).max() < 0.006
    again = latent.perturb(z, 0.04, 2000, np.random.default_rng(0))
    np.testing.assert_array_equal(near, again)
    still = latent.perturb(z, 0.0, 2, np.random.default_rng(0))
    np.testing.assert_array_equal(still, np.stack([z, z]))


def test_perturb_refuses():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="variance -1: expected 0 or more"):
        latent.perturb(np.zeros(3), -1, 2, rng)
    with pytest.raises(ValueError, match=r"one latent vector, found an array of shape \(2, 3\)"):
        latent.perturb(np.zeros((2, 3)), 1, 2, rng)


def test_autoencoder_trains_the_encoder_through_a_frozen_generator():
    keras.utils.set_random_seed(0)
    generator = toy_generator()
    image = keras.Input((2, 2, 3))
    encoder = keras.Model(image, layers.Dense(LATENT)(layers.Flatten()(image)))
    model = latent.autoencoder(encoder, generator)
    images = to_float(generate_images(generator, latents(32)))
    reconstructed = np.asarray(generator(encoder(images), training=False))
    np.testing.assert_allclose(np.asarray(model(images, training=True)), reconstructed, atol=1e-6)
    before = [w.copy() for w in (*encoder.get_weights(), *generator.get_weights())]
    model.compile(keras.optimizers.Adam(0.02), loss="mae", jit_compile=use_xla())
    first = model.evaluate(images, images, verbose=0)
    assert first == pytest.approx(np.abs(images - reconstructed).mean(), rel=1e-5)
    model.fit(images, images, batch_size=32, epochs=60, verbose=0)
    assert model.evaluate(images, images, verbose=0) < first / 3
    after = [*encoder.get_weights(), *generator.get_weights()]
    moved = [bool((a != b).any()) for a, b in zip(before, after, strict=True)]
    assert moved == [True] * 2 + [False] * 6
    assert generator.trainable
    # the copy inside is as still as the original: model and original agree on the new encoder
    reconstructed = np.asarray(generator(encoder(images), training=False))
    np.testing.assert_allclose(np.asarray(model(images)), reconstructed, atol=1e-6)


def recover() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latent vectors found for images that the generator made, their errors, the history."""
    generator = toy_generator()
    images = generate_images(generator, latents(4))
    found, history = latent.optimise(generator, images, steps=300, learning_rate=0.1, seed=5)
    errors = latent.reconstruction_error(images, generate_images(generator, found))
    return found, errors, history


def check_recovery(found: np.ndarray, errors: np.ndarray, history: np.ndarray) -> None:
    assert found.shape == (4, LATENT) and found.dtype == np.float32
    assert history.shape == (300,)
    generator = toy_generator()
    images = to_float(generate_images(generator, latents(4)))
    start = np.random.default_rng(5).standard_normal((4, LATENT)).astype("float32")
    first = np.abs(images - np.asarray(generator(start, training=False))).mean() * 127.5
    assert history[0] == pytest.approx(first, rel=1e-4)
    # the images were made from latent vectors, so almost nothing is left of the difference
    assert history[0] > 20 and history[-1] < 0.5
    assert (errors <= 0.5).all()
    np.testing.assert_allclose(found, latents(4), atol=0.05)


def test_optimise_solves_eq_41():
    check_recovery(*recover())


def on_the_other_backend(path: str) -> None:
    found, errors, history = recover()
    np.savez(path, found=found, errors=errors, history=history)


def test_optimise_solves_eq_41_on_the_other_backend(tmp_path):
    other = {"tensorflow": "jax", "jax": "tensorflow"}[keras.backend.backend()]
    path = tmp_path / "found.npz"
    command = f"import test_latent; test_latent.on_the_other_backend({str(path)!r})"
    done = python(command, other)
    assert done.returncode == 0, done.stderr
    with np.load(path) as file:
        check_recovery(file["found"], file["errors"], file["history"])


def test_optimise_treats_each_image_alone():
    generator = toy_generator()
    images = generate_images(generator, latents(4))
    start = latents(4, seed=8)
    together, _ = latent.optimise(generator, images, 20, 0.1, start=start)
    alone, _ = latent.optimise(generator, images[2:3], 20, 0.1, start=start[2:3])
    np.testing.assert_allclose(together[2:3], alone, atol=1e-4)


def test_optimise_never_ends_farther_than_it_started():
    generator = toy_generator()
    images = generate_images(generator, latents(6))
    start = latents(6).copy()
    start[3:] += 0.2
    # steps this large overshoot from a start that is already right
    found, _ = latent.optimise(generator, images, 2, 3.0, start=start)
    np.testing.assert_array_equal(found[:3], start[:3])
    before = latent.reconstruction_error(images, generate_images(generator, start))
    after = latent.reconstruction_error(images, generate_images(generator, found))
    assert (after <= before).all()


def test_optimise_refuses():
    generator = toy_generator()
    images = generate_images(generator, latents(2))
    with pytest.raises(ValueError, match=r"expected uint8 images \(2, 2, 3\), found float32"):
        latent.optimise(generator, to_float(images), 1)
    with pytest.raises(ValueError, match=r"expected uint8 images \(2, 2, 3\), found uint8 \(1, 2"):
        latent.optimise(generator, images[:, :1], 1)
    with pytest.raises(ValueError, match=r"start \(3, 3\): expected \(2, 3\)"):
        latent.optimise(generator, images, 1, start=latents(3))


def test_reconstruction_error():
    a, b = np.zeros((2, 2, 2, 3), "uint8"), np.zeros((2, 2, 2, 3), "uint8")
    a[0, 0, 0], b[1] = [255, 10, 0], 200
    b[0, 0, 0, 1] = 250
    np.testing.assert_allclose(latent.reconstruction_error(a, b), [(255 + 240) / 12, 200])
    with pytest.raises(ValueError, match="expected uint8 images, found float32"):
        latent.reconstruction_error(a, b.astype("float32"))
    with pytest.raises(ValueError, match="expected one shape"):
        latent.reconstruction_error(a, b[:1])


def test_optimise_finds_cells_of_the_class_that_is_asked_for():
    """A generator whose classes lie far apart: only with its own label is an image found again."""
    given, label = keras.Input((LATENT,)), keras.Input((), dtype="int32")
    x = layers.Dense(12, use_bias=False, name="map")(given)
    x = layers.Add()([x, layers.Embedding(2, 12, name="class")(label)])
    image = layers.Reshape((2, 2, 3))(layers.Activation("tanh")(x))
    generator = keras.Model([given, label], image, name="toy_of_classes")
    rng = np.random.default_rng(0)
    generator.get_layer("map").set_weights([rng.normal(0, 0.3, (LATENT, 12))])
    generator.get_layer("class").set_weights([np.array([[0.8] * 12, [-0.8] * 12])])
    z, labels = latents(4), np.array([0, 1, 0, 1])
    images = generate_images(generator, z, labels)
    errors = []
    for asked in (labels, 1 - labels):
        found, _ = latent.optimise(generator, images, steps=400, labels=asked)
        made = generate_images(generator, found, asked)
        errors.append(latent.reconstruction_error(images, made))
    assert errors[0].max() < 3 and errors[1].min() > 15  # grey levels
