"""Losses and the two-player step by hand; runs that stop and go on; both backends."""

import importlib
import io
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from cellaug import files, networks
from cellaug.book import chapter as book
from cellaug.training import (
    Adversarial,
    AuxiliaryClassifier,
    CrossEntropy,
    Mismatch,
    SampleImages,
    checkpoint,
    fit,
    generate_images,
    load_samples,
    use_xla,
)
from cellaug.training import backends as backend
from cellaug.training.augment import DifferentiableAugmentation
from cellaug.training.checkpoint import Position, fingerprint, restore, save
from cellaug.training.progress import Progress, duration, nine_cells

import cv2
import keras
import numpy as np
import pytest
from keras import layers
from processes import python

LATENT = 4


class Images(keras.utils.PyDataset):
    """Random images in [-1, 1] with labels, in an order that depends on the epoch alone."""

    def __init__(self, count: int = 12, size: int = 4, batch: int = 4, targets: str = "labels"):
        super().__init__()
        rng = np.random.default_rng(5)
        self.images = rng.uniform(-1, 1, (count, size, size, 3)).astype("float32")
        self.labels = rng.integers(0, 3, count)
        self.batch = batch
        self.targets = targets
        self.seek(0)

    def seek(self, epoch, batch=0):
        self.epoch, self.first = epoch, batch

    def __len__(self):
        return -(-len(self.images) // self.batch) - self.first

    def __getitem__(self, index):
        index += self.first
        order = np.random.default_rng(self.epoch).permutation(len(self.images))
        chosen = order[index * self.batch : (index + 1) * self.batch]
        images = self.images[chosen]
        return images, images if self.targets == "images" else self.labels[chosen]

    def on_epoch_end(self):
        self.seek(self.epoch + 1)


def small_gan(seed: int = 0, dropout: float = 0.3, rate: float = 0.01) -> Adversarial:
    """Dense networks on 4×4 images: quick to compile, with running means, dropout and Adam."""
    keras.utils.set_random_seed(seed)
    latent = keras.Input((LATENT,))
    x = layers.BatchNormalization(momentum=0.9)(layers.Dense(8)(latent))
    x = layers.Dense(48, activation="tanh")(layers.LeakyReLU(0.2)(x))
    generator = keras.Model(latent, layers.Reshape((4, 4, 3))(x), name="generator")
    image = keras.Input((4, 4, 3))
    x = layers.Dropout(dropout)(layers.Dense(8, activation="tanh")(layers.Flatten()(image)))
    discriminator = keras.Model(image, layers.Dense(1)(x), name="discriminator")
    gan = Adversarial(generator, discriminator, CrossEntropy(), LATENT, seed=seed)
    gan.compile(keras.optimizers.Adam(rate, 0.5), keras.optimizers.Adam(rate, 0.5))
    return gan


def state(model: keras.Model) -> list[np.ndarray]:
    return [np.asarray(v) for v in checkpoint.variables_of(model)]


def probabilities(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


# Losses


REAL = np.array([[2.0], [-0.5], [0.3]])
FAKE = np.array([[-1.0], [0.7], [0.1]])


def value(d_real: np.ndarray, d_fake: np.ndarray) -> float:
    """V of Eq. 29 from the probabilities."""
    return np.log(d_real).mean() + np.log(1 - d_fake).mean()


def test_discriminator_minimises_minus_the_value_of_eq_29():
    loss = float(CrossEntropy().discriminator(REAL.astype("float32"), FAKE.astype("float32")))
    assert loss == pytest.approx(-value(probabilities(REAL), probabilities(FAKE)), rel=1e-6)


def test_generator_losses():
    d_fake = probabilities(FAKE)
    fake = FAKE.astype("float32")
    assert float(CrossEntropy().generator(fake)) == pytest.approx(-np.log(d_fake).mean(), rel=1e-6)
    literal = np.log(1 - d_fake).mean()  # Eq. 30
    saturating = CrossEntropy(saturating=True)
    assert float(saturating.generator(fake)) == pytest.approx(literal, rel=1e-6)


def test_eq_31_as_printed_is_eq_29_with_real_and_generated_changed_round():
    d_real, d_fake = probabilities(REAL), probabilities(FAKE)
    printed = np.log(1 - d_real).mean() + np.log(d_fake).mean()
    assert printed == pytest.approx(value(d_fake, d_real))
    # it falls with better answers, as the cross-entropy does, but without a bound
    for better in (1, 10, 30):
        sure = probabilities(REAL + better), probabilities(FAKE - better)
        assert np.log1p(-sure[0]).mean() + np.log(sure[1]).mean() < printed
        assert -np.log(sure[0]).mean() - np.log1p(-sure[1]).mean() > 0
        assert np.log1p(-sure[0]).mean() < -better


def test_losses_stay_finite_where_probabilities_round_to_0_and_1():
    sure = np.array([[200.0]], "float32")
    assert float(CrossEntropy().discriminator(-sure, sure)) == pytest.approx(400)
    assert float(CrossEntropy().generator(-sure)) == pytest.approx(200)
    assert float(CrossEntropy(saturating=True).generator(sure)) == pytest.approx(-200)


def test_auxiliary_classifier_is_eq_33():
    rng = np.random.default_rng(2)
    real_class, fake_class = rng.standard_normal((2, 3, 4))
    labels = np.array([0, 3, 1])

    def log_p(logits: np.ndarray) -> float:
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return np.log(p[np.arange(3), labels]).mean()

    source = value(probabilities(REAL), probabilities(FAKE))  # L_S
    real_out = [REAL.astype("float32"), real_class.astype("float32")]
    fake_out = [FAKE.astype("float32"), fake_class.astype("float32")]
    objective = AuxiliaryClassifier()
    expected = -(source + log_p(real_class) + log_p(fake_class))
    assert float(objective.discriminator(real_out, fake_out, labels)) == pytest.approx(expected)
    expected = -np.log(probabilities(FAKE)).mean() - log_p(fake_class)
    assert float(objective.generator(fake_out, labels)) == pytest.approx(expected)
    literal = AuxiliaryClassifier(saturating=True)
    expected = np.log(1 - probabilities(FAKE)).mean() - log_p(fake_class)
    assert float(literal.generator(fake_out, labels)) == pytest.approx(expected)


# The step


def linear_steps() -> dict[str, np.ndarray]:
    """Two steps of gradient descent of a linear pair, from known weights and latent vectors."""
    latent = keras.Input((2,))
    x = layers.Dense(3, use_bias=False)(latent)
    generator = keras.Model(latent, layers.Reshape((1, 1, 3))(x))
    image = keras.Input((1, 1, 3))
    discriminator = keras.Model(image, layers.Dense(1)(layers.Flatten()(image)))
    generator.set_weights([np.array([[0.5, -1.0, 0.2], [0.1, 0.4, -0.3]])])
    discriminator.set_weights([np.array([[0.3], [-0.2], [0.6]]), np.array([0.1])])
    gan = Adversarial(generator, discriminator, CrossEntropy(), 2, seed=7)
    gan.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.2))
    noise = keras.random.SeedGenerator(7)
    latents = [np.asarray(keras.random.normal((4, 2), seed=noise)) for _ in range(2)]
    images = np.random.default_rng(3).uniform(-1, 1, (8, 1, 1, 3)).astype("float32")
    log = gan.fit(images, np.zeros(8), batch_size=4, shuffle=False, verbose=0).history
    return {
        "latents": np.stack(latents),
        "images": images,
        "g": generator.get_weights()[0],
        "d": discriminator.get_weights()[0],
        "bias": discriminator.get_weights()[1],
        **{name: np.array(values) for name, values in log.items()},
    }


def check_linear_steps(seen: dict[str, np.ndarray]) -> None:
    """The same by calculus: the discriminator first, then the generator against the new one."""
    g = np.array([[0.5, -1.0, 0.2], [0.1, 0.4, -0.3]])
    d, bias = np.array([[0.3], [-0.2], [0.6]]), 0.1
    log = []
    for step in range(2):
        z = seen["latents"][step]
        real, fake = seen["images"][4 * step : 4 * step + 4].reshape(4, 3), z @ g
        p_real, p_fake = probabilities(real @ d + bias), probabilities(fake @ d + bias)
        d_loss = -value(p_real, p_fake)
        d = d - 0.2 * (real.T @ (p_real - 1) + fake.T @ p_fake) / 4
        bias = bias - 0.2 * ((p_real - 1) + p_fake).mean()
        again = probabilities(fake @ d + bias)
        log.append((d_loss, -np.log(again).mean(), p_real.mean(), p_fake.mean()))
        g = g - 0.1 * z.T @ ((again - 1) @ d.T) / 4
    for name, expected in (("g", g), ("d", d), ("bias", [bias])):
        np.testing.assert_allclose(seen[name], expected, rtol=1e-5, atol=1e-6)
    for name, values in zip(
        ("d_loss", "g_loss", "d_real", "d_fake"), zip(*log, strict=True), strict=True
    ):
        np.testing.assert_allclose(seen[name], [np.mean(values)], rtol=1e-5)


def constant_latents(shape, seed=None):
    return keras.ops.convert_to_tensor(
        np.random.default_rng(1).standard_normal((4, *shape[1:])), "float32"
    )


def convolutional_steps(start: Path) -> list[np.ndarray]:
    """Three steps of a real pair without dropout, from given weights and latent vectors."""
    generator, discriminator = (
        networks.generator(16, 4, LATENT),
        networks.discriminator(16, 4, dropout=0.0),
    )
    with np.load(start) as file:
        generator.set_weights([file[f"g{i}"] for i in range(len(generator.weights))])
        discriminator.set_weights([file[f"d{i}"] for i in range(len(discriminator.weights))])
    gan = Adversarial(generator, discriminator, CrossEntropy(), LATENT, seed=0)
    # Adam's epsilon keeps rounding in near-zero gradients from deciding the sign of a step.
    gan.compile(*(keras.optimizers.Adam(1e-3, 0.5, epsilon=1e-4) for _ in range(2)))
    reader = Images(size=16)
    original = keras.random.normal
    keras.random.normal = constant_latents
    try:
        gan.fit(reader, shuffle=False, verbose=0)
    finally:
        keras.random.normal = original
    steps = [np.asarray(o.iterations) for o in (gan.optimizer, gan.d_optimizer)]
    moments = [np.asarray(o.variables[2]) for o in (gan.optimizer, gan.d_optimizer)]
    return [*generator.get_weights(), *discriminator.get_weights(), *moments, *steps]


def interrupted_and_not(folder: Path) -> float:
    """The largest difference between a run of four epochs and one taken up again after two."""
    path = folder / "run.npz"

    class Keep(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                (folder / "half.npz").write_bytes(path.read_bytes())

    whole = small_gan()
    history = fit(whole, Images(), 4, checkpoint=path, callbacks=[Keep()], save_seconds=0)
    resumed = small_gan(seed=1)  # other weights and other seeds, all to be overwritten
    again = fit(resumed, Images(), 4, checkpoint=folder / "half.npz", save_seconds=0)
    assert list(history.index) == list(again.index) == [1, 2, 3, 4]
    columns = [name for name in history if name != "seconds"]
    np.testing.assert_array_equal(history[columns], again[columns])
    assert [int(np.asarray(o.iterations)) for o in (resumed.optimizer, resumed.d_optimizer)] == [
        12,
        12,
    ]
    return max(
        float(np.abs(a - b).max()) for a, b in zip(state(whole), state(resumed), strict=True)
    )


def on_the_other_backend(folder: str) -> None:
    """What `other_backend` has done in a process of its own."""
    path = Path(folder)
    weights = convolutional_steps(path / "start.npz")
    difference = interrupted_and_not(path)
    np.savez(
        path / "other.npz",
        difference=difference,
        **{f"weights{i}": w for i, w in enumerate(weights)},
        **{f"linear_{name}": v for name, v in linear_steps().items()},
    )


@pytest.fixture(scope="module")
def other_backend(tmp_path_factory):
    """The folder with the other backend's results and the weights that it started from."""
    folder = tmp_path_factory.mktemp("other")
    keras.utils.set_random_seed(11)
    pair = networks.generator(16, 4, LATENT), networks.discriminator(16, 4)
    np.savez(
        folder / "start.npz",
        **{f"g{i}": w for i, w in enumerate(pair[0].get_weights())},
        **{f"d{i}": w for i, w in enumerate(pair[1].get_weights())},
    )
    other = {"tensorflow": "jax", "jax": "tensorflow"}[keras.backend.backend()]
    command = f"import test_training; test_training.on_the_other_backend({str(folder)!r})"
    # Compiling takes most of the time here, and these networks are tiny.
    done = python(command, other, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert done.returncode == 0, done.stderr
    return folder


def test_step_by_calculus():
    check_linear_steps(linear_steps())


def test_step_by_calculus_on_the_other_backend(other_backend):
    with np.load(other_backend / "other.npz") as file:
        check_linear_steps(
            {k.removeprefix("linear_"): file[k] for k in file.files if k.startswith("linear_")}
        )


def test_backends_agree(other_backend):
    ours = convolutional_steps(other_backend / "start.npz")
    with np.load(other_backend / "start.npz") as file:
        start = [file[k] for k in file.files]
    with np.load(other_backend / "other.npz") as file:
        theirs = [file[f"weights{i}"] for i in range(len(ours))]
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5, err_msg=f"array {index}")
    moved = [np.abs(a - b).max() for a, b in zip(ours, start, strict=False)]
    assert min(moved) > 1e-4
    assert int(ours[-1]) == int(ours[-2]) == 3
    assert all(np.abs(moment).max() > 1e-6 for moment in ours[-4:-2])


def test_frozen_variables_do_not_move():
    keras.utils.set_random_seed(0)
    vanilla = networks.generator(16, 4, LATENT), networks.discriminator(16, 4)
    pair = networks.acgan_generator(vanilla[0], 3), networks.acgan_discriminator(vanilla[1], 3)
    gan = Adversarial(*pair, AuxiliaryClassifier(), LATENT, seed=0)
    gan.compile(keras.optimizers.Adam(0.01), keras.optimizers.Adam(0.01))
    weights = {v.path: v for network in pair for v in network.weights}
    trainable = {v.path for network in pair for v in network.trainable_variables}
    before = {path: np.array(v) for path, v in weights.items()}
    history = fit(gan, Images(size=16), 2)
    still = {path for path, v in weights.items() if (np.array(v) == before[path]).all()}
    assert still == set(weights) - trainable and len(trainable) == 7 + 10
    assert {"c_real", "c_fake", "d_loss", "g_loss", "d_real", "d_fake"} < set(history)
    assert history["c_real"].between(0, 1).all()


def test_agreement_with_the_label_is_a_share_of_images():
    """A discriminator that always names class 1 agrees with that class's share of the labels."""
    latent, label = keras.Input((2,)), keras.Input((), dtype="int32")
    x = layers.Concatenate()([latent, layers.Embedding(3, 2)(label)])
    generator = keras.Model([latent, label], layers.Reshape((1, 1, 3))(layers.Dense(3)(x)))
    image = keras.Input((1, 1, 3))
    flat = layers.Flatten()(image)
    heads = layers.Dense(1)(flat), layers.Dense(3, kernel_initializer="zeros", name="class")(flat)
    discriminator = keras.Model(image, heads)
    discriminator.get_layer("class").bias.assign([0.0, 5.0, 0.0])
    gan = Adversarial(generator, discriminator, AuxiliaryClassifier(), 2, seed=0)
    gan.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0))
    labels = np.array([1, 0, 1, 2, 1, 1, 0, 2])
    log = gan.fit(np.zeros((8, 1, 1, 3)), labels, batch_size=4, verbose=0).history
    assert log["c_real"] == log["c_fake"] == [0.5]


def test_xla_is_left_to_jax():
    assert use_xla() == (keras.backend.backend() == "jax")
    assert small_gan().jit_compile == use_xla()


# Generating


def test_generate_images():
    gan = small_gan()
    latents = np.random.default_rng(0).standard_normal((5, LATENT))
    images = generate_images(gan.generator, latents, batch_size=2)
    assert images.shape == (5, 4, 4, 3) and images.dtype == np.uint8
    raw = np.asarray(gan.generator(latents.astype("float32"), training=False))
    np.testing.assert_array_equal(images, np.rint(raw * 127.5 + 127.5).astype("uint8"))
    assert gan.generate(latents[:0]).shape == (0, 4, 4, 3)


def test_generate_images_wants_labels_where_the_generator_does():
    with pytest.raises(ValueError, match="takes latents alone: give no labels"):
        small_gan().generate(np.zeros((2, LATENT)), np.zeros(2))
    conditional = networks.cgan_generator(16, 4, LATENT, 3)
    with pytest.raises(ValueError, match="'cgan_generator' takes latents and labels: give labels"):
        generate_images(conditional, np.zeros((2, LATENT)))
    with pytest.raises(ValueError, match="2 latent vectors but 3 labels"):
        generate_images(conditional, np.zeros((2, LATENT)), np.zeros(3))
    images = generate_images(conditional, np.zeros((3, LATENT)), np.array([0, 1, 0]), batch_size=2)
    np.testing.assert_array_equal(images[0], images[2])


# Runs that stop and go on


def test_a_resumed_run_ends_as_if_it_had_not_stopped(tmp_path):
    assert interrupted_and_not(tmp_path) == 0


def test_a_resumed_run_ends_as_if_it_had_not_stopped_on_the_other_backend(other_backend):
    with np.load(other_backend / "other.npz") as file:
        assert file["difference"] == 0


def test_a_killed_run_is_taken_up_again(tmp_path, capsys):
    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.epoch == 2 and batch == 1:
                raise KeyboardInterrupt

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

    path, settings = tmp_path / "run.npz", {"rate": 0.01, "data": "abc"}
    whole = small_gan()
    fit(whole, Images(), 3)
    with pytest.raises(KeyboardInterrupt):
        fit(
            small_gan(),
            Images(),
            3,
            checkpoint=path,
            settings=settings,
            save_seconds=0,
            callbacks=[Kill()],
        )
    resumed = small_gan(seed=9)
    history = fit(resumed, Images(), 3, checkpoint=path, settings=settings)
    assert len(history) == 3
    for a, b in zip(state(whole), state(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "again" not in capsys.readouterr().out
    # what is done is not done again
    done = small_gan(seed=9)
    again = fit(done, Images(), 3, checkpoint=path, settings=settings)
    assert again.equals(history) and capsys.readouterr().out == ""
    for a, b in zip(state(whole), state(done), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


def test_other_settings_start_anew_where_asked_and_say_so(tmp_path, capsys):
    path = tmp_path / "run.npz"
    fit(small_gan(), Images(), 2, checkpoint=path, settings={"rate": 0.01, "data": "a", "kind": 1})
    capsys.readouterr()
    gan = small_gan()
    history = fit(
        gan,
        Images(),
        1,
        checkpoint=path,
        settings={"rate": 0.02, "data": "a"},
        restart=True,
        label="vanilla GAN",
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "vanilla GAN: starting again, since the run kept in run.npz differs in kind, rate, epochs"
    )
    assert len(history) == 1
    reference = small_gan()
    fit(reference, Images(), 1)
    for a, b in zip(state(gan), state(reference), strict=True):
        np.testing.assert_array_equal(a, b)


def test_restore_refuses_another_run_and_leaves_the_model_alone(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    gan = small_gan()
    place = Position(3, 2, 0.5, [{"d_loss": 1.5}], [[0.1], [0.2]])
    save(path, gan, fingerprint(gan, {"numbers": (1, np.int64(2)), "path": path}), place)
    other = small_gan(seed=4)
    own = fingerprint(other, {"numbers": [1, 2], "path": path})
    before = state(other)
    with pytest.raises(Mismatch, match=r"run\.npz is of a run that differs in: numbers") as caught:
        restore(path, other, fingerprint(other, {"numbers": [1, 3], "path": path}), 5)
    assert caught.value.keys == ["numbers"]
    monkeypatch.setattr(checkpoint, "source_hash", lambda: "0" * 16)
    with pytest.raises(Mismatch) as caught:
        restore(path, other, fingerprint(other, {"numbers": [1, 2], "path": path}), 5)
    assert caught.value.keys == ["source"]
    monkeypatch.undo()
    for a, b in zip(before, state(other), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(Mismatch, match="differs in: epochs"):  # three are done, and a part
        restore(path, other, own, 3)
    assert restore(path, other, own, 5) == place
    for a, b in zip(state(gan), state(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_restore_of_something_else(tmp_path):
    path = tmp_path / "run.npz"
    for content in (b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.npz is not a checkpoint of cellaug: remove it"):
            restore(path, small_gan(), {}, 5)
    np.savez(path, a=1)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        fit(small_gan(), Images(), 1, checkpoint=path)


def test_settings_must_be_plain():
    with pytest.raises(TypeError, match=r"setting <object .*>: expected plain values"):
        fingerprint(small_gan(), {"what": object()})


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    save(path, small_gan(), {}, Position(1))
    before = path.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save(path, small_gan(), {}, Position(2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoints_are_not_written_more_often_than_asked(tmp_path, monkeypatch):
    saved = []

    def place(position):
        return position.epoch + position.batch / 10

    module = importlib.import_module("cellaug.training.fit")  # the name is also the function's
    monkeypatch.setattr(module, "save", lambda *given: saved.append(place(given[3])))
    fit(small_gan(), Images(), 3, checkpoint=tmp_path / "run.npz", save_seconds=1000)
    assert saved == [3]
    saved.clear()
    fit(small_gan(), Images(), 3, checkpoint=tmp_path / "run.npz", save_seconds=0)
    assert saved == [0.1, 0.2, 1, 1.1, 1.2, 2, 2.1, 2.2, 3]


def test_fit_trains_any_model_and_validates(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Flatten(), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], jit_compile=use_xla())
    history = fit(
        model, Images(), 2, checkpoint=tmp_path / "run.npz", validation=Images(), label="classifier"
    )
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy", "seconds"}
    assert history.index.name == "epoch" and list(history.index) == [1, 2]
    reader = Images()
    expected = model.evaluate(reader.images, reader.labels, verbose=0)[0]
    assert history.loc[2, "val_loss"] == pytest.approx(expected, rel=1e-5)


def test_an_epoch_ends_with_its_last_step():
    """Left on, tf.data's autotuner would hold 1.5 s back until 2.56 s after the epoch's start."""

    class Slow(Images):
        def __getitem__(self, index):
            time.sleep(0.05)
            return self.images[:4], self.labels[:4]

        def __len__(self):
            return 30

    reader = Slow()
    model = keras.Sequential([keras.Input((4, 4, 3)), layers.Flatten(), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, jit_compile=use_xla())
    fit(model, reader, 1)  # compiles the step
    took = []
    for _ in range(3):  # the machine may be busy with something else, but hardly three times
        start = time.monotonic()
        fit(model, reader, 1)
        took.append(time.monotonic() - start)
    assert 1.5 <= min(took) < 2.5


# What a run says


def test_non_finite_values_stop_training():
    reader = Images(count=40)

    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                order = np.random.default_rng(1).permutation(40)
                reader.images[order[8]] = np.nan  # in the third batch of the second epoch

    with pytest.raises(
        FloatingPointError, match=r"vanilla GAN: \w+ is nan in epoch 2, step 3\. Try a smaller"
    ):
        fit(small_gan(), reader, 3, label="vanilla GAN", callbacks=[Poison()])


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_steps_of_a_resumed_epoch_are_counted_from_its_start(tmp_path, bad):
    path = tmp_path / "run.npz"

    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if path.exists():  # after the first step
                if self.interrupt:
                    raise KeyboardInterrupt
                logs["d_real"] = bad

    callback = Break()
    for callback.interrupt, error, message in (
        (True, KeyboardInterrupt, ""),
        (False, FloatingPointError, f"encoder: d_real is {bad} in epoch 1, step 2"),
    ):
        options = {"checkpoint": path, "save_seconds": 0, "label": "encoder"}
        with pytest.raises(error, match=message):
            fit(small_gan(), Images(), 3, callbacks=[callback], **options)


def test_progress_ends_with_one_line(capsys):
    fit(small_gan(), Images(count=10), 2, label="vanilla GAN")
    written = capsys.readouterr().out
    line = r"vanilla GAN: 2 epochs, 20 images, \d+ s, d_loss [\d.]+, g_loss [\d.]+\n"
    assert re.fullmatch(line, written)


def run_of_three_epochs(monkeypatch, moments):
    """A `Progress` that is told of steps at these moments, and of the end of the run."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    place = Position(epoch=2, history=[{"seconds": 30.0}] * 2)
    progress = Progress("encoder", place, epochs=3, steps=5, images=100)
    for batch, (seconds, logs) in enumerate(moments):
        now[0], place.batch, place.seconds = 1000 + seconds, batch + 1, seconds
        progress.on_train_batch_end(batch, logs)
    place.history.append({"loss": 0.25, "accuracy": 0.9, "seconds": 2.0})
    place.epoch, place.batch, place.seconds = 3, 0, 0.0
    progress.on_train_end()


MOMENTS = [(0.0, {"loss": 0.12345}), (0.5, {"loss": 0.2}), (2.0, {"loss": 0.3, "d_real": 0.5})]
LAST = "encoder: 3 epochs, 300 images, 1 min 2 s, loss 0.25, accuracy 0.9"


def test_progress_is_a_bar_with_the_time_left_for_a_person(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run_of_three_epochs(monkeypatch, MOMENTS)
    first, second, last = capsys.readouterr().out.split("\r")
    assert first == "encoder: [##############......] 73 %, epoch 3 of 3, loss 0.123"
    # Two of the 15 steps in two seconds, with 20 images each; the first does not count.
    line = "encoder: [#################...] 87 %, epoch 3 of 3, 20 images/s, 2 s left, loss 0.3"
    assert second.rstrip() == line
    assert last.rstrip(" \n") == LAST and last.endswith("\n")


def test_progress_is_a_line_a_minute_in_a_log_file(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    run_of_three_epochs(monkeypatch, [(s, {"loss": s}) for s in (0.0, 59.0, 61.0, 90.0, 122.0)])
    first, second, last = capsys.readouterr().out.splitlines()
    assert "epoch 3 of 3" in first and first.endswith("left, loss 61")
    assert "100 %" in second and second.endswith("loss 122")
    assert last == LAST


def test_a_bar_in_a_log_file_is_a_line_a_minute(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(files, "MINUTE", 0.0)
    assert list(files.progress(range(3), "copying", file=log)) == [0, 1, 2]
    assert re.match(r"copying: +0%.*\n", log.getvalue()) and "\r" not in log.getvalue()
    monkeypatch.setattr(files, "MINUTE", 60.0)
    assert list(files.progress(range(3), "copying", file=(log := io.StringIO()))) == [0, 1, 2]
    assert log.getvalue() == ""


@pytest.fixture
def notebook(monkeypatch):
    """What a cell in JupyterLab shows: its displays by number, each with all of its states."""
    shown = []

    class Handle:
        def __init__(self, first):
            self.states = [first]
            shown.append(self.states)

        def update(self, state, **options):
            self.states.append(state)

    monkeypatch.setenv("JPY_SESSION_NAME", "02_vanilla_gan.py")
    monkeypatch.setattr("IPython.display.display", lambda first, **options: Handle(first))
    return shown


def test_in_jupyterlab_cells_and_losses_are_drawn_after_every_epoch(notebook, capsys):
    before = small_gan()
    history = fit(before, Images(count=10), 3, label="vanilla GAN")
    line, picture = notebook
    assert "[" in line[0]["text/plain"] and line[-1]["text/plain"].startswith(
        "vanilla GAN: 3 epochs"
    )
    pictures = [cv2.imdecode(np.frombuffer(each.data, "uint8"), 1) for each in picture]
    assert len(pictures) == 3 and pictures[0].shape[1] > 700
    assert capsys.readouterr().out == ""
    # Nobody looks: the same run.
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("JPY_SESSION_NAME")
        unseen = fit(small_gan(), Images(count=10), 3)
    assert unseen.drop(columns="seconds").equals(history.drop(columns="seconds"))


def test_nine_cells_are_of_nine_classes_and_the_same_each_time():
    gan = small_gan()
    cells = nine_cells(gan, None)
    assert cells.shape[0] == 9 and np.array_equal(cells, nine_cells(gan, None))
    assert nine_cells(keras.Sequential(), None) is None
    asked = []

    class Conditional:
        latent_dim, trained_generator = 5, SimpleNamespace(inputs=[0, 1])

        def generate(self, latents, labels):
            asked.append((latents.shape, labels.tolist()))

    nine_cells(Conditional(), SimpleNamespace(dataset=SimpleNamespace(class_names=list("abcd"))))
    assert asked == [((9, 5), [0, 1, 2, 3, 0, 1, 2, 3, 0])]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (312, "5 min 12 s"), (7205, "2 h 0 min 5 s")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_samples_are_taken_kept_and_cleared(tmp_path):
    latents = np.random.default_rng(0).standard_normal((2, LATENT))
    folder, path = tmp_path / "samples", tmp_path / "run.npz"

    def run(epochs: int) -> tuple[Adversarial, dict[int, np.ndarray]]:
        gan = small_gan()
        take = SampleImages(latents, epochs=[0, 1, 3], folder=folder)
        fit(gan, Images(), epochs, checkpoint=path, callbacks=[take], save_seconds=0)
        return gan, load_samples(folder)

    gan, samples = run(2)
    assert list(samples) == [0, 1]
    np.testing.assert_array_equal(samples[0], small_gan().generate(latents))
    first = samples[1]
    gan, samples = run(3)  # goes on after two epochs
    assert list(samples) == [0, 1, 3]
    np.testing.assert_array_equal(samples[1], first)
    np.testing.assert_array_equal(samples[3], gan.generate(latents))
    assert not (samples[3] == samples[0]).all()
    path.unlink()
    _, samples = run(1)  # from the beginning
    assert list(samples) == [0, 1]


def test_a_graphics_card_is_named(monkeypatch):
    """By its own name on TensorFlow, not as "gpu:0"; and a processor alone is no accelerator."""
    import tensorflow as tf

    assert backend.accelerators() == []
    bare = book.device()
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0", "gpu:0"])
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    details = {"GPU": {"device_name": "NVIDIA H200", "compute_capability": (9, 0)}}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details.get)
    assert backend.accelerators() == ["NVIDIA H200"]
    assert book.device() == bare.replace(" cores", " cores, NVIDIA H200")
    details["GPU"] = {}
    assert "gpu:0" in book.device()


def test_augmentation_with_probability_zero_does_nothing():
    images = np.random.default_rng(4).uniform(-1, 1, (8, 8, 8, 3)).astype("float32")
    off = DifferentiableAugmentation(0.0)
    drawn = off.draw(8, keras.random.SeedGenerator(1))
    np.testing.assert_allclose(np.asarray(off(images, drawn)), images, atol=1e-6)


def test_augmentation_applies_what_was_drawn():
    images = np.random.default_rng(5).uniform(-1, 1, (2, 10, 10, 3)).astype("float32")
    bits = np.zeros((3, 2, 1, 1, 1), bool)
    shifts = np.asarray([[0.2, 0], [0, -0.1]], "float32")  # two rows up; one column to the right
    colours = np.zeros((2, 2, 1, 1, 1), "float32")
    colours[0, 1], colours[1, 0] = -1, 0.5
    out = np.asarray(DifferentiableAugmentation(1.0)(images, [bits, shifts, colours]))
    first = np.concatenate([images[0, 2:], images[0, -1:], images[0, -1:]]) + 0.5 * 0.2
    np.testing.assert_allclose(out[0], first, atol=1e-5)
    second = np.concatenate([images[1, :, :1], images[1, :, :-1]], axis=1)
    np.testing.assert_allclose(out[1], second.mean() + (second - second.mean()) * 0.8, atol=1e-5)


def test_augmentation_acts_as_often_as_asked():
    images = np.random.default_rng(6).uniform(-1, 1, (600, 4, 4, 3)).astype("float32")
    half = DifferentiableAugmentation(0.5, shift=0.0)
    bits, _, colours = half.draw(600, keras.random.SeedGenerator(2))
    assert np.asarray(colours != 0).mean() == pytest.approx(0.5, abs=0.06)
    # one of eight symmetries changes nothing
    changed = np.asarray(bits).any(axis=0).mean()
    assert changed == pytest.approx(0.5 * 7 / 8, abs=0.06)
    assert (
        np.asarray(half(images, half.draw(600, keras.random.SeedGenerator(3)))).shape
        == images.shape
    )
