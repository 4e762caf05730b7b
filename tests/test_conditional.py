"""The conditional recipe: every switch by hand, both backends alike, and runs that are killed."""

import os
import signal
from dataclasses import replace
from itertools import product
from pathlib import Path

from cellaug import files, networks
from cellaug.data import Dataset, open_dataset
from cellaug.data.phantom import phantom
from cellaug.data.reader import Reader
from cellaug.evaluation.collapse import Diversity
from cellaug.networks.conditional import ClassDeviation, LowPass, Modulation
from cellaug.networks.dcgan import Even
from cellaug.training import (
    R1,
    Adversarial,
    CrossEntropy,
    Recipe,
    Relativistic,
    Symmetries,
    WrongLabels,
    fit,
)
from cellaug.training.backends import gradient_at
from cellaug.training.checkpoint import fingerprint, variables_of

import keras
import numpy as np
import pytest
from keras import layers, ops
from processes import python
from scipy import signal as filters

SIZE, LATENT, CLASSES = 16, 6, 3


def array(x) -> np.ndarray:
    return ops.convert_to_numpy(x)


def pair(**options):
    return (
        networks.conditional_generator(SIZE, 8, LATENT, CLASSES),
        networks.conditional_discriminator(SIZE, 4, CLASSES, **options),
    )


SMALL = {"generator_depth": 8, "discriminator_depth": 4, "latent_dim": LATENT}


def everything_on(seed: int, recipe: type[Recipe] = Recipe, **options) -> Adversarial:
    """The recipe, small, with all that keeps state or draws numbers, at rates that fall."""
    choices = {
        "gamma": 0.1,
        "penalty_every": 2,
        "half_life": 40,
        "learning_rate": 1e-3,
        "decay": 0.75,
        "seed": seed,
    }
    return recipe(**SMALL | choices | options).build(SIZE, CLASSES, steps=12)


def plain_gan(seed: int) -> Adversarial:
    """The same networks with nothing else: quick to compile."""
    keras.utils.set_random_seed(seed)
    gan = Adversarial(*pair(), CrossEntropy(), LATENT, seed)
    gan.compile(*(keras.optimizers.Adam(1e-3) for _ in range(2)))
    return gan


# Layers and networks


def test_class_deviation_by_hand():
    images = np.random.default_rng(0).normal(size=(7, 2, 2, 3)).astype("float32")
    labels = np.array([0, 2, 0, 2, 2, 3, 0])  # none of class 1, one of class 3
    out = array(ClassDeviation(4)([images, labels]))
    np.testing.assert_array_equal(out[..., :3], images)
    for k in (0, 2):
        expected = images[labels == k].std(axis=0).mean()
        np.testing.assert_allclose(out[labels == k][..., 3], expected, rtol=1e-4)
    assert out[5, ..., 3].max() < 1e-3
    # classes far apart, each one image
    collapsed = images[labels]
    assert array(ClassDeviation(4)([collapsed, labels]))[..., 3].max() < 1e-3


def test_the_generator_narrows_no_further_than_asked():
    channels = {
        narrowest: [
            layer.output.shape[-1]
            for layer in networks.conditional_generator(64, 64, narrowest=narrowest).layers
            if isinstance(layer, keras.layers.Conv2DTranspose | keras.layers.Conv2D)
        ]
        for narrowest in (1, 24)
    }
    assert channels == {1: [32, 16, 8, 3], 24: [32, 24, 24, 3]}


def test_with_image_norm_a_single_image_cannot_be_too_large():
    """A longer latent vector makes all activations larger, but not those of normalised images."""
    latents, labels = np.random.default_rng(0).normal(size=(4, LATENT)), np.arange(4) % CLASSES
    deviations = []
    for chosen in (False, True):
        model = networks.conditional_generator(SIZE, 16, LATENT, CLASSES, image_norm=chosen)
        layer = model.get_layer("image_8" if chosen else "norm_8")
        inside = keras.Model(model.inputs, layer.output)
        deviations.append(np.std(inside([100 * latents, labels], training=False), axis=(1, 2, 3)))
        deviations.append(np.std(inside([latents, labels], training=False), axis=(1, 2, 3)))
    assert (deviations[0] > 10 * deviations[1]).all()
    np.testing.assert_allclose(deviations[2:], 1, atol=0.1)


def test_modulation_by_hand():
    rng = np.random.default_rng(1)
    x, vector = rng.normal(size=(2, 3, 3, 4)), rng.normal(size=(2, 5))
    layer = Modulation()
    out = array(layer([x.astype("float32"), vector.astype("float32")]))
    scale, shift = (vector @ array(w) for w in (layer.scale, layer.shift))
    expected = x * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_projection_is_the_dot_product_with_the_class():
    _, discriminator = pair(deviation="none")
    images = np.random.default_rng(2).uniform(-1, 1, (4, SIZE, SIZE, 3)).astype("float32")
    layer = discriminator.get_layer
    inner = keras.Model(discriminator.input, [layer("features").output, discriminator.output])
    labels = np.array([0, 1, 2, 2])
    features, logits = (array(a) for a in inner([images, labels]))
    weights, bias = (array(w) for w in layer("real_or_fake").weights)
    directions = array(layer("class_directions").weights[0]).T
    expected = features @ weights[:, 0] + bias + (features * directions[labels]).sum(1)
    np.testing.assert_allclose(logits[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_logits_of_every_label_are_those_that_asking_for_it_gives():
    keras.utils.set_random_seed(3)
    _, discriminator = pair(deviation="none", every_label=True)
    images = np.random.default_rng(2).uniform(-1, 1, (4, SIZE, SIZE, 3)).astype("float32")
    _, every = discriminator([images, np.zeros(4, int)])
    assert np.ptp(array(every), axis=1).min() > 1e-4
    for label in range(CLASSES):
        logit, again = (array(x) for x in discriminator([images, np.full(4, label)]))
        np.testing.assert_allclose(array(every)[:, label], logit[:, 0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(array(every), again, rtol=1e-5, atol=1e-6)


def test_wrong_labels_by_hand():
    """Two images of three classes; own logits 1 and −2, those with wrong labels beside them."""
    every = np.array([[1.0, 3, 0], [0, -1, -2]], "float32")
    own, fake = np.array([[1.0], [-2]], "float32"), np.array([[0.5], [0]], "float32")
    objective = WrongLabels(Relativistic())
    expected = np.log1p(np.exp([0.5 - 1, 0 + 2])).mean()
    harder = np.log1p(np.exp([3 - 1, 0 - 1, 0 + 2, -1 + 2])).mean()
    given = ([own, every], [fake, every * 0], np.array([0, 2]))
    assert float(objective.discriminator(*given)) == pytest.approx(expected + harder, rel=1e-6)
    half = WrongLabels(Relativistic(), weight=0.5).discriminator(*given)
    assert float(half) == pytest.approx(expected + harder / 2, rel=1e-6)
    expected = np.log1p(np.exp([1 - 0.5, -2 - 0])).mean()
    found = objective.generator([fake, every], given[2], [own, every])
    assert float(found) == pytest.approx(expected, rel=1e-6)
    alone = WrongLabels(CrossEntropy())
    assert not alone.paired and objective.paired
    expected = np.log1p(np.exp([-0.5, 0])).mean()
    assert float(alone.generator([fake, every], given[2])) == pytest.approx(expected, rel=1e-6)


def test_every_switch_of_the_networks_changes_what_it_names():
    def names(**options):
        return {x.name for x in networks.conditional_discriminator(SIZE, 4, 3, **options).layers}

    full = names()
    assert {"deviation", "class_directions"} <= full
    assert full - names(deviation="none") == {"deviation"}
    kinds = [type(x) for x in networks.conditional_discriminator(SIZE, 4, 3).layers]
    assert ClassDeviation in kinds
    with pytest.raises(ValueError, match='deviation True: expected "class", "none" or a layer'):
        networks.conditional_discriminator(SIZE, 4, 3, deviation=True)
    assert "class_directions" not in names(projection=False)
    assert "label_planes" in names(projection=False)
    with pytest.raises(ValueError, match="every_label needs the projection head"):
        networks.conditional_discriminator(SIZE, 4, 3, projection=False, every_label=True)
    plain = networks.conditional_generator(SIZE, 8, LATENT, CLASSES, modulation=False)
    modulated = networks.conditional_generator(SIZE, 8, LATENT, CLASSES)
    assert not any(isinstance(x, Modulation) for x in plain.layers)
    assert sum(isinstance(x, Modulation) for x in modulated.layers) == 2
    # 4 fits stride 2, 5 does not: five by five kernels where asked for
    five = networks.conditional_generator(SIZE, 8, LATENT, CLASSES, kernel=5, resize=False)
    assert five.get_layer("up_16").kernel.shape[:2] == (5, 5)
    with pytest.raises(ValueError, match="generator depth 5 at 16 px: expected a multiple of 2"):
        networks.conditional_generator(SIZE, 5)


def test_a_resize_convolution_leaves_no_grid():
    """Where the layer before is even, all pixels away from the edge are the same."""
    keras.utils.set_random_seed(1)
    differ = []
    for resize in (False, True):
        model = networks.conditional_generator(SIZE, 8, LATENT, CLASSES, resize=resize)
        x = np.ones((1, SIZE // 2, SIZE // 2, 4), "float32")
        for layer in model.layers[-3 if resize else -2 :]:
            x = layer(x)
        differ.append(np.ptp(np.asarray(x)[0, 4:-4, 4:-4], axis=(0, 1)).max())
    assert differ[0] > 0.01 and differ[1] < 1e-6


def test_resize_convolutions_throughout_leave_no_grid():
    """Even images at 4×4 pixels stay even up to the image, away from the edge."""
    differ = {}
    for every in (False, True):
        keras.utils.set_random_seed(1)
        x = ones = keras.Input((4 * 16,))
        image = networks.dcgan.generator_body(
            x, 128, 64, 4, lambda x, side: layers.LeakyReLU(0.2)(x), True, 8, every
        )
        model = keras.Model(ones, image)
        even = np.broadcast_to(model.get_layer("project").kernel[:, :64], (64, 64))
        model.get_layer("project").kernel.assign(np.tile(even, (1, 16)))
        values = 100 * array(model(np.ones((1, 64))))[0, 56:72, 56:72]
        differ[every] = np.ptp(values, axis=(0, 1)).max() / np.abs(values).max()
    assert differ[False] > 0.01 and differ[True] < 1e-5


def test_even_kernels_keep_an_even_image_even_and_can_draw_grain():
    """By hand for one kernel; in training the constraint holds."""
    kernel = np.random.default_rng(0).normal(size=(4, 4, 2, 3)).astype("float32")
    even = np.asarray(Even()(kernel))
    places = [even[a::2, b::2].sum((0, 1)) for a in (0, 1) for b in (0, 1)]
    np.testing.assert_allclose(places, [kernel.sum((0, 1)) / 4] * 4, atol=1e-6)
    np.testing.assert_allclose(np.asarray(Even()(even)), even, atol=1e-6)
    differ = {}
    for x in (kernel, even):
        layer = keras.layers.Conv2DTranspose(2, 4, 2, "same", use_bias=False)
        layer.build((1, 9, 9, 3))
        layer.kernel.assign(x)
        for name, image in (("even", np.ones((1, 9, 9, 3))), ("one", np.eye(9)[None, :, :, None])):
            out = np.asarray(layer(np.broadcast_to(image, (1, 9, 9, 3))))[0, 4:-4, 4:-4]
            differ.setdefault(name, []).append(np.ptp(out, axis=(0, 1)).max())
    assert differ["even"][0] > 1 and differ["even"][1] < 1e-5 and min(differ["one"]) > 1

    recipe = Recipe(generator_depth=16, discriminator_depth=4, batch_size=8, even=True)
    gan = recipe.build(32, CLASSES)
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (16, 32, 32, 3)).astype("float32")
    before = np.array(gan.generator.get_layer("up_8").kernel)
    gan.fit(images, np.arange(16) % CLASSES, batch_size=8, epochs=2, verbose=0)
    kernel = np.asarray(gan.generator.get_layer("up_8").kernel)
    assert np.abs(kernel - before).max() > 1e-4
    np.testing.assert_allclose(np.asarray(Even()(kernel)), kernel, atol=1e-6)
    ends = networks.conditional_generator(32, 16, LATENT, CLASSES, resize=False, even=True)
    found = [x for x in ends.layers if isinstance(x, keras.layers.Conv2DTranspose)]
    assert len(found) == 3 and all(isinstance(x.kernel_constraint, Even) for x in found)
    with pytest.raises(ValueError, match="kernel 5: even needs one of 2, 4 or more pixels"):
        Recipe(kernel=5, even=True).build(32, CLASSES)


def test_the_filter_before_halving_is_the_binomial_one():
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype("float32")
    kernel = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    expected = np.stack([
        [filters.correlate2d(np.pad(image[..., c], ((1, 2), (1, 2))), kernel, "valid")
         for c in range(3)] for image in x
    ]).transpose(0, 2, 3, 1)  # fmt: skip
    np.testing.assert_allclose(array(LowPass()(x)), expected, atol=1e-6)
    checks = np.indices((16, 16)).sum(0) % 2 * 2.0 - 1  # what a stride of 2 would alias
    assert np.abs(array(LowPass()(checks[None, :, :, None]))[0, 2:-2, 2:-2]).max() < 1e-6
    plain, filtered = (
        networks.conditional_discriminator(SIZE, 4, 3, low_pass=given) for given in (False, True)
    )
    kinds = [type(layer) for layer in filtered.layers]
    assert kinds.count(LowPass) == 2 and LowPass not in [type(x) for x in plain.layers]
    assert [w.shape for w in plain.weights] == [w.shape for w in filtered.weights]


def test_the_networks_survive_saving(tmp_path):
    for network in (*pair(), pair(low_pass=True)[1]):
        network.save(tmp_path / "n.keras")
        again = keras.saving.load_model(tmp_path / "n.keras", safe_mode=True)
        inputs = [
            np.random.default_rng(0).normal(size=(4, *x.shape[1:])).astype("float32")
            for x in network.inputs[:1]
        ]
        labels = np.array([0, 1, 2, 0])
        np.testing.assert_array_equal(
            array(network([*inputs, labels])), array(again([*inputs, labels]))
        )


# Augmentation


def test_symmetries_are_the_eight_of_the_square():
    image = np.random.default_rng(3).normal(size=(4, 4, 3)).astype("float32")
    bits = np.array(list(product((False, True), repeat=3))).T.reshape(3, 8, 1, 1, 1)
    turned = array(Symmetries()(np.repeat(image[None], 8, 0), bits))
    expected = [np.rot90(x, k) for x in (image, image[:, ::-1]) for k in range(4)]
    for one in expected:
        assert sum(np.array_equal(one, x) for x in turned) == 1


def test_symmetries_are_drawn_evenly():
    bits = array(Symmetries().draw(4000, keras.random.SeedGenerator(0)))
    code = (bits.reshape(3, -1) * np.array([[4], [2], [1]])).sum(0)
    np.testing.assert_allclose(np.bincount(code) / 4000, np.full(8, 1 / 8), atol=0.03)


# Objectives, penalties, and the step


def test_relativistic_losses_by_hand():
    real, fake = np.array([[2.0], [-0.5]], "float32"), np.array([[-1.0], [0.7]], "float32")
    difference = np.array([-3.0, 1.2])
    expected = np.log1p(np.exp(difference)).mean()
    assert float(Relativistic().discriminator(real, fake)) == pytest.approx(expected, rel=1e-6)
    expected = np.log1p(np.exp(-difference)).mean()
    assert float(Relativistic().generator(fake, None, real)) == pytest.approx(expected, rel=1e-6)


class Linear:
    """Losses without a curve, E D(G(z)) - E D(x) and -E D(G(z)): easy to differentiate by hand."""

    def discriminator(self, real_out, fake_out, labels=None):
        return ops.mean(fake_out) - ops.mean(real_out)

    def generator(self, fake_out, labels=None, real_out=None):
        return -ops.mean(fake_out)


def linear_gan(penalty=None, objective=None, kind=Adversarial, **options) -> Adversarial:
    """D(x) = w·x and G(z) = v·z on images of one pixel, with plain gradient steps of 0.1."""
    latent, image = keras.Input((3,)), keras.Input((1, 1, 3))
    generator = keras.Model(
        latent, layers.Reshape((1, 1, 3))(layers.Dense(3, use_bias=False, name="v")(latent))
    )
    discriminator = keras.Model(
        image, layers.Dense(1, use_bias=False, name="w")(layers.Flatten()(image))
    )
    generator.set_weights([np.diag([1.0, 2.0, 3.0])])
    discriminator.set_weights([np.array([[0.3], [-0.4], [1.2]])])
    objective = objective or Linear()
    gan = kind(generator, discriminator, objective, 3, seed=0, penalty=penalty, **options)
    gan.compile(*(keras.optimizers.SGD(0.1) for _ in range(2)))
    return gan


@pytest.fixture
def latents(monkeypatch):
    """What is drawn, in place of random numbers: the same three latent vectors every time."""
    z = np.array([[1.0, 0, 0], [0, 1, 0], [0.5, -1, 2]], "float32")
    monkeypatch.setattr(
        keras.random, "normal", lambda shape, seed=None: ops.convert_to_tensor(z[: shape[0]])
    )
    return z


IMAGES = np.array([[1.0, 2, 3], [-1, 0, 1], [0.5, 0.5, -2]], "float32").reshape(3, 1, 1, 3)


def test_r1_by_calculus(latents):
    """Two steps: the penalty, γ/2 ‖w‖², counts on the first, threefold, and not on the second."""
    gamma, every = 0.2, 3
    gan = linear_gan(R1(gamma, every))
    w, v = np.array([0.3, -0.4, 1.2]), np.diag([1.0, 2.0, 3.0])
    for step in range(2):
        fake, real = (latents @ v).mean(0), IMAGES.reshape(3, 3).mean(0)
        slope = fake - real + (every * gamma * w if step == 0 else 0)
        penalty = every * gamma / 2 * (w @ w) if step == 0 else 0
        expected = w @ (fake - real) + penalty
        w = w - 0.1 * slope
        v = v + 0.1 * np.outer(latents.mean(0), w)
        gan.reset_metrics()
        logs = gan.train_on_batch(IMAGES, np.zeros(3, int), return_dict=True)
        assert logs["d_loss"] == pytest.approx(expected, rel=1e-5)
        assert logs["penalty"] == pytest.approx(penalty, rel=1e-5)
        np.testing.assert_allclose(gan.discriminator.get_weights()[0][:, 0], w, rtol=1e-5)
        np.testing.assert_allclose(gan.generator.get_weights()[0], v, rtol=1e-5)


def test_r2_is_the_same_at_generated_images():
    """D(x) = Σ w x², so that ∇D = 2 w x differs from image to image."""
    w = np.array([0.3, -0.4, 1.2])
    image = keras.Input((1, 1, 3))
    square = layers.Lambda(ops.square)(image)
    discriminator = keras.Model(image, layers.Dense(1, use_bias=False)(layers.Flatten()(square)))
    discriminator.set_weights([w[:, None]])
    penalty = R1(0.2, every=1, r2=True)
    fake, critic = IMAGES[::-1] * 2 + 1, lambda x, y: discriminator(x)
    points = penalty.points(ops.convert_to_tensor(IMAGES), ops.convert_to_tensor(fake), None)
    found = sum(float(penalty.value(gradient_at(x, None, critic))) for x in points)
    slopes = (np.square(2 * w * x.reshape(3, 3)).sum(1).mean() for x in (IMAGES, fake))
    assert found == pytest.approx(0.1 * sum(slopes), rel=1e-5)
    assert len(R1().points(IMAGES, fake, None)) == 1


def test_the_penalty_of_a_gan_with_r2_counts_twice_where_the_slope_is_the_same(latents):
    logs = [
        linear_gan(R1(0.2, 1, r2)).train_on_batch(IMAGES, np.zeros(3, int), return_dict=True)
        for r2 in (False, True)
    ]
    assert logs[1]["penalty"] == pytest.approx(2 * logs[0]["penalty"], rel=1e-5)


def test_relativistic_step_by_calculus(latents):
    gan = linear_gan(objective=Relativistic())
    w, v = np.array([0.3, -0.4, 1.2]), np.diag([1.0, 2.0, 3.0])
    real = IMAGES.reshape(3, 3)
    weight = 1 / (1 + np.exp(-(latents @ v - real) @ w))  # derivative of softplus
    w = w - 0.1 * (weight[:, None] * (latents @ v - real)).mean(0)
    weight = 1 / (1 + np.exp(-(real - latents @ v) @ w))
    v = v + 0.1 * np.einsum("n,ni,j->ij", weight, latents, w) / 3
    gan.train_on_batch(IMAGES, np.zeros(3, int))
    np.testing.assert_allclose(gan.discriminator.get_weights()[0][:, 0], w, rtol=1e-5)
    np.testing.assert_allclose(gan.generator.get_weights()[0], v, rtol=1e-5)


def test_moving_average_by_hand(latents):
    """Half-life 6 images, batches of 3: kept share 2^(−3/min(6, 0.5 · images so far))."""
    gan = linear_gan(half_life=6, ramp_up=0.5)
    mean = np.diag([1.0, 2.0, 3.0])
    for step in range(1, 7):
        gan.train_on_batch(IMAGES, np.zeros(3, int))
        kept = 0.5 ** (3 / min(6, 0.5 * 3 * step))
        mean = kept * mean + (1 - kept) * gan.generator.get_weights()[0]
        np.testing.assert_allclose(gan.averaged.get_weights()[0], mean, rtol=1e-5)
    assert gan.trained_generator is gan.averaged
    assert not gan.averaged.trainable_variables
    off = linear_gan()
    assert off.averaged is None and off.trained_generator is off.generator


def test_the_average_takes_running_statistics_along():
    gan = everything_on(0)
    images = np.random.default_rng(0).uniform(-1, 1, (8, SIZE, SIZE, 3)).astype("float32")
    gan.train_on_batch(images, np.arange(8) % CLASSES)
    for mean, variable in zip(gan.averaged.variables, gan.generator.variables, strict=True):
        if "moving_mean" in variable.path:
            assert 0 < np.abs(array(mean)).max() <= np.abs(array(variable)).max() * 1.0001


def check_rates(recipe: Recipe) -> None:
    """At first the rate to the last bit, half of it halfway down the cosine, then nothing."""
    gan = recipe.build(SIZE, CLASSES, steps=8)
    for optimizer, own_steps in ((gan.optimizer, 1), (gan.d_optimizer, gan.d_steps)):

        def rate(step, optimizer=optimizer, own_steps=own_steps):
            optimizer.iterations.assign(own_steps * step)
            return float(array(optimizer.learning_rate))

        assert [rate(step) for step in (0, 1, 4)] == [np.float32(3e-4)] * 3
        assert rate(6) == pytest.approx(1.5e-4) and rate(8) == rate(9) == 0
        assert rate(5) == pytest.approx(3e-4 * (1 + np.cos(np.pi / 4)) / 2)


def test_the_learning_rates_fall_together():
    recipe = Recipe(**SMALL, learning_rate=3e-4, decay=0.5)
    check_rates(recipe)
    with pytest.raises(ValueError, match="steps: a learning rate that changes needs"):
        recipe.build(SIZE, CLASSES)
    with pytest.raises(ValueError, match="objective 'x': expected one of relativistic, cross-entr"):
        Recipe(objective="x").build(SIZE, CLASSES)


def test_gradients_are_computed_in_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        keras.utils.set_random_seed(3)
        generator, discriminator = pair()
    finally:
        keras.config.set_dtype_policy(before)
    keras.utils.set_random_seed(3)
    _, plain = pair()
    plain.set_weights(discriminator.get_weights())
    gan = Adversarial(generator, discriminator, CrossEntropy(), LATENT, 0, penalty=R1(every=1))
    images = np.random.default_rng(0).uniform(-1, 1, (4, SIZE, SIZE, 3)).astype("float32")
    images, labels = ops.convert_to_tensor(images), ops.convert_to_tensor([0, 1, 2, 0])
    exact = array(gradient_at(images, labels, lambda x, y: plain([x, y])))
    np.testing.assert_allclose(
        array(gradient_at(images, labels, gan._critic)), exact, rtol=1e-4, atol=1e-7
    )
    rough = array(gradient_at(images, labels, lambda x, y: discriminator([x, y])))
    assert np.abs(rough - exact).max() > 1e-4 * np.abs(exact).max()
    # the copy's weights are not trained, saved or counted besides the discriminator's own
    counted = {id(v) for v in gan.variables}
    expected = {id(v) for v in [*generator.variables, *discriminator.variables]}
    assert len(counted) == len(expected) + 1  # and the random state
    gan.compile(*(keras.optimizers.Adam(1e-3) for _ in range(2)))
    logs = gan.train_on_batch(array(images), array(labels), return_dict=True)
    assert all(np.isfinite(v) for v in logs.values())


def in_mixed_precision() -> str:
    """Two steps of the recipe; what it generates then is of this type."""
    gan = everything_on(1, mixed_precision=True)
    assert keras.config.dtype_policy().name == "float32"
    layers = [*gan.generator.layers, *gan.discriminator.layers]
    assert sum(layer.compute_dtype == "bfloat16" for layer in layers) > len(layers) / 2
    assert {v.dtype for v in gan.trainable_variables} == {"float32"}
    images = np.random.default_rng(0).uniform(-1, 1, (8, SIZE, SIZE, 3)).astype("float32")
    for _ in range(2):
        logs = gan.train_on_batch(images, np.arange(8) % CLASSES, return_dict=True)
    assert all(np.isfinite(value) for value in logs.values()), logs
    return str(gan.generate(np.zeros((3, LATENT)), np.arange(3)).dtype)


@pytest.mark.no_cover  # tracing lines makes compiling slower by two thirds
def test_the_recipe_runs_in_mixed_precision():
    """On the other backend in `test_the_recipe_agrees_on_both_backends`."""
    assert in_mixed_precision() == "uint8"


# Collapse


def drawn_cells() -> Dataset:
    folder, _, _ = phantom(classes=CLASSES, images=72, size=SIZE, seed=3, imbalance=2)
    return open_dataset(folder)


@pytest.fixture(scope="module")
def cells() -> Dataset:
    return drawn_cells()


def test_diversity_is_logged_and_a_collapsed_run_is_stopped(cells, capsys):
    gan = plain_gan(1)
    real = cells.read(SIZE)
    reader = Reader(cells, SIZE, 24, seed=0, drop_last=True)
    watch = Diversity(real, cells.labels, images=4, floor=0.0)
    history = fit(gan, reader, 2, callbacks=[watch])
    images = gan.generate(watch.latents, watch.which)
    from cellaug.evaluation import diversity

    names = ["0", "1", "2"]
    expected = diversity(images, watch.which, names) / diversity(real, cells.labels, names)
    assert history["diversity"].iloc[-1] == pytest.approx(expected.mean(), rel=1e-6)
    assert len(history) == 2
    # a floor that nothing reaches: after the first epoch, two low ones on end
    gan = plain_gan(1)
    watch = Diversity(real, cells.labels, images=4, floor=50.0, patience=2, after=1)
    capsys.readouterr()
    history = fit(gan, reader, 9, callbacks=[watch])
    assert len(history) == 3
    text = capsys.readouterr().out
    assert "stopped after epoch 3: the generator has collapsed" in text and "as real ones" in text


@pytest.mark.no_cover
def test_a_run_that_was_stopped_stays_stopped(cells, tmp_path):
    reader = Reader(cells, SIZE, 24, seed=0, drop_last=True)

    def run():
        real = cells.read(SIZE)
        watch = Diversity(real, cells.labels, images=4, floor=50.0, patience=1, after=1)
        gan = plain_gan(1)
        return fit(gan, reader, 6, checkpoint=tmp_path / "run.npz", callbacks=[watch]), gan

    first, gan = run()
    again, other = run()
    assert len(first) == 2 and again.equals(first)
    for a, b in zip(variables_of(gan), variables_of(other), strict=True):
        np.testing.assert_array_equal(array(a), array(b))


def test_a_generator_without_classes_is_compared_over_all(cells):
    keras.utils.set_random_seed(0)
    gan = Adversarial(
        networks.generator(SIZE, 8, LATENT),
        networks.discriminator(SIZE, 4),
        CrossEntropy(),
        LATENT,
        0,
    )
    gan.compile(*(keras.optimizers.Adam(1e-3) for _ in range(2)))
    watch = Diversity(cells.read(SIZE), cells.labels, images=8)
    history = fit(gan, Reader(cells, SIZE, 24, drop_last=True), 1, callbacks=[watch])
    assert len(watch.latents) == 8 and 0 < history["diversity"].iloc[0] < 2


# Killed at any step


def run_to_the_end(folder: str, kill: str = "", count: int = 0) -> None:
    """Train with a checkpoint after every step; die by SIGKILL on the way if asked.

    The generator counts as collapsed from the first epoch on and is stopped after the third.

    Args:
        folder: for the checkpoint and, in the end, all there is to compare.
        kill: "step": after so many steps; "epoch": as one begins, not the first that is seen;
            "save": in the middle of writing a checkpoint, after so many.
        count: how many.
    """
    seen = dict.fromkeys(("step", "epoch", "save"), 0)

    def die(what: str) -> bool:
        seen[what] += 1
        return kill == what and seen[what] > count

    class Kill(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if die("step"):
                os.kill(os.getpid(), signal.SIGKILL)

        def on_epoch_begin(self, epoch, logs=None):
            if die("epoch"):
                os.kill(os.getpid(), signal.SIGKILL)

    whole = files.write_atomically

    def half(path, data):
        if die("save"):
            path.with_name(f".{path.name}.part").write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        whole(path, data)

    files.write_atomically = half
    cells = drawn_cells()
    reader = Reader(cells, SIZE, 24, seed=4, balance=True, drop_last=True)
    gan = everything_on(2)
    watch = Diversity(cells.read(SIZE), cells.labels, images=4, floor=50.0, after=0, patience=3)
    history = fit(
        gan,
        reader,
        9,
        checkpoint=Path(folder) / "run.npz",
        settings={"data": cells.fingerprint},
        callbacks=[watch, Kill()],
        save_seconds=0,
    )
    values = {f"{k:03d}": array(v) for k, v in enumerate(variables_of(gan))}
    table = history.drop(columns="seconds").to_numpy()
    np.savez(Path(folder) / "end.npz", history=table, **values)


def in_turn(runs: list[tuple[str, str, int]]) -> None:
    """Each run in a process of its own, forked from this one, which has imported what they need.

    Prints how each ended, and which of its files were there then.
    """
    for folder, kill, count in runs:
        if not (child := os.fork()):
            code = 1
            try:
                run_to_the_end(folder, kill, count)
                code = 0
            finally:
                os._exit(code)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        files = [name for name in ("run.npz", "end.npz") if Path(folder, name).is_file()]
        print("ended", ended, *files, flush=True)


@pytest.mark.parametrize(
    ("backend", "kills"),
    [
        ("tensorflow", [("step", 0), ("save", 1), ("epoch", 1)]),
        ("jax", [("step", 2), ("save", 3)]),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path, backend, kills):
    """Before the first step and in mid-epoch, between epochs, and while a checkpoint is written."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    runs = [(str(whole), "", 0), *((str(broken), *kill) for kill in kills), (str(broken), "", 0)]
    code = f"import test_conditional as t; t.in_turn({runs!r})"
    done = python(code, backend, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    killed, complete = f"ended {-signal.SIGKILL}", "ended 0 run.npz end.npz"
    ends = [killed if kill == ("step", 0) else f"{killed} run.npz" for kill in kills]
    found = [line for line in done.stdout.splitlines() if line.startswith("ended")]
    assert found == [complete, *ends, complete], done.stderr
    with np.load(whole / "end.npz") as a, np.load(broken / "end.npz") as b:
        assert set(a.files) == set(b.files) and len(a.files) > 50
        assert len(a["history"]) == 3
        for key in a.files:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def check_both_backends(folder: Path, module: str, calls: dict[str, Adversarial], also: str) -> str:
    """Three steps from the same weights and the same drawn numbers end with the same values.

    `calls` are expressions of `module` that build a GAN for the other backend, with this one's.
    Returns the value of another expression of `module` on the other backend.
    """
    places = [folder / str(number) for number in range(len(calls))]
    for place, gan in zip(places, calls.values(), strict=True):
        place.mkdir()
        start = [array(v) for v in floats_of(gan)]
        np.savez(place / "start.npz", **{f"{k:03d}": v for k, v in enumerate(start)})
    steps = [
        f"test_conditional.three_steps({str(place)!r}, {module}.{call})"
        for place, call in zip(places, calls, strict=True)
    ]
    code = "; ".join([f"import test_conditional, {module}", f"print({module}.{also})", *steps])
    other = "jax" if keras.backend.backend() == "tensorflow" else "tensorflow"
    done = python(code, other, JAX_DISABLE_MOST_OPTIMIZATIONS="1")
    assert done.returncode == 0, done.stderr
    drawing = keras.random.uniform, keras.random.normal
    try:
        for place, gan in zip(places, calls.values(), strict=True):
            three_steps(str(place), gan)
    finally:
        keras.random.uniform, keras.random.normal = drawing
    for place, call in zip(places, calls, strict=True):
        with np.load(place / "tensorflow.npz") as a, np.load(place / "jax.npz") as b:
            assert len(a.files) == len(b.files) > 30
            for key in a.files:
                words = f"{call}: {key}"
                np.testing.assert_allclose(a[key], b[key], rtol=2e-3, atol=2e-5, err_msg=words)
    return done.stdout.strip()


def test_the_recipe_agrees_on_both_backends(tmp_path):
    calls = {"everything_on(0)": everything_on(8)}
    kind = check_both_backends(tmp_path, "test_conditional", calls, "in_mixed_precision()")
    assert kind == "uint8"


def floats_of(gan: Adversarial) -> list[keras.Variable]:
    both = gan.generator.variables + gan.discriminator.variables
    return [v for v in both if "float" in v.dtype]


def three_steps(folder: str, gan: Adversarial) -> None:
    """The part of `check_both_backends` that each backend does."""
    rng, name = np.random.default_rng(0), keras.backend.backend()
    # Adam would turn the rounding of small gradients into whole steps, and so would large steps
    # against WGAN-GP's steep penalty.
    gan.compile(*(keras.optimizers.SGD(0.05 / gan.d_steps**2) for _ in range(2)))
    with np.load(Path(folder) / "start.npz") as file:
        values = [file[key] for key in sorted(file.files)]
    floats = floats_of(gan)
    for variable, value in zip(floats, values, strict=True):
        variable.assign(value)
    gan.averaged.set_weights(gan.generator.get_weights())

    def uniform(shape, minval=0.0, maxval=1.0, seed=None):
        drawn = np.random.default_rng(len(shape)).uniform(minval, maxval, tuple(map(int, shape)))
        return ops.convert_to_tensor(drawn.astype("float32"))

    def normal(shape, seed=None):
        drawn = np.random.default_rng(9).standard_normal(tuple(map(int, shape)))
        return ops.convert_to_tensor(drawn.astype("float32"))

    keras.random.uniform, keras.random.normal = uniform, normal
    count = 8 * gan.d_steps
    images = rng.uniform(-1, 1, (count, SIZE, SIZE, 3)).astype("float32")
    labels = np.arange(count) % CLASSES
    logs = []
    images, labels = ops.convert_to_tensor(images), ops.convert_to_tensor(labels)
    for _ in range(3):
        # On TensorFlow step by step, since the numbers above need the batch's size.
        step = gan.step if name == "tensorflow" else gan.train_on_batch
        gan.reset_metrics()
        step(images, labels)
        logs.append([float(tracker.result()) for tracker in gan.trackers.values()])
    found = [array(v) for v in floats] + [array(v) for v in gan.averaged.variables]
    np.savez(
        Path(folder) / f"{name}.npz",
        logs=np.array(logs),
        **{f"{k:03d}": v for k, v in enumerate(found)},
    )


def test_a_mismatch_names_the_setting_and_how_to_fix_it(cells, tmp_path):
    reader = Reader(cells, SIZE, 24, seed=0, drop_last=True)
    path = tmp_path / "run.npz"
    fit(plain_gan(1), reader, 1, checkpoint=path, settings={"gamma": 0.1, "seed": 1})
    with pytest.raises(ValueError, match=r"run\.npz is of a run that differs in: gamma\. Use its"):
        fit(plain_gan(1), reader, 2, checkpoint=path, settings={"gamma": 0.2, "seed": 1})
    # What the model shows of itself need not be given.
    recipe = Recipe(**SMALL, mixed_precision=False)

    def own(**changes) -> dict:
        return fingerprint(replace(recipe, **changes).build(SIZE, CLASSES), {})

    assert own() == own()
    changed = {
        "penalty": {"gamma": 0.3},
        "objective": {"wrong_labels": 0.25},
        "half_life": {"half_life": 7},
        "real_augmentation": {"symmetries": False},
        "optimizer": {"learning_rate": 1e-3},
        "layers": {"mixed_precision": True},
    }
    before = own()
    for key, choice in changed.items():
        other = own(**choice)
        differ = {name for name in before | other if before.get(name) != other.get(name)}
        assert differ == {key} | ({"d_optimizer"} if key == "optimizer" else set())
