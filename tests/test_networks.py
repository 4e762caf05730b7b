"""The builders: shapes, parameter counts, what is frozen, and what reaches the output."""

import itertools

from cellaug import networks
from cellaug.networks.extractor import Detail

import cv2
import keras
import numpy as np
import pytest
from keras import layers


def pair(size: int = 16, depth: int = 8, latent_dim: int = 6) -> tuple[keras.Model, keras.Model]:
    keras.utils.set_random_seed(3)
    generator = networks.generator(size, depth, latent_dim)
    # running statistics away from 0 and 1, so that inference differs from training
    rng = np.random.default_rng(0)
    weights = [
        w if w.ndim > 1 else rng.uniform(0.5, 1.5, w.shape).astype("float32")
        for w in generator.get_weights()
    ]
    generator.set_weights(weights)
    return generator, networks.discriminator(size, depth)


def acgan(vanilla, classes, width=100, layers=3, last_activation="relu"):
    """The conditional pair of Section 4.5 around copies of a vanilla one."""
    return (
        networks.acgan_generator(vanilla[0], classes, width, layers, last_activation),
        networks.acgan_discriminator(vanilla[1], classes, width, layers),
    )


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype("float32")


def test_generator_of_the_thesis():
    generator = networks.generator()
    depths = [1024, 512, 256, 128, 64, 32]
    expected = 100 * 16 * 1024  # dense layer without bias
    expected += sum(25 * a * b for a, b in itertools.pairwise(depths))
    expected += sum(4 * d for d in depths)  # scale, shift, running mean and variance
    expected += 25 * 32 * 3 + 3
    assert generator.count_params() == expected == 19_108_067
    assert generator.input_shape == (None, 100)
    assert generator.output_shape == (None, 256, 256, 3)
    convolutions = [x for x in generator.layers if isinstance(x, layers.Conv2DTranspose)]
    assert [x.filters for x in convolutions] == [512, 256, 128, 64, 32, 3]
    assert all(x.kernel_size == (5, 5) and x.strides == (2, 2) for x in convolutions)
    kinds = [type(x).__name__ for x in generator.layers]
    assert kinds[-2:] == ["Conv2DTranspose", "Activation"]
    assert generator.layers[-1].activation is keras.activations.tanh
    assert kinds.count("BatchNormalization") == kinds.count("LeakyReLU") == 6
    slopes = [x.negative_slope for x in generator.layers if isinstance(x, layers.LeakyReLU)]
    assert slopes == pytest.approx([0.2] * 6)


def test_discriminator_of_the_thesis():
    discriminator = networks.discriminator()
    depths = [3, 64, 128, 256, 512, 1024, 2048]
    expected = sum(25 * a * b + b for a, b in itertools.pairwise(depths))
    expected += 4 * 4 * 2048 + 1
    assert discriminator.count_params() == expected == 69_878_401
    assert discriminator.input_shape == (None, 256, 256, 3)
    assert discriminator.output_shape == (None, 1)
    kinds = [type(x).__name__ for x in discriminator.layers]
    assert kinds == [
        "InputLayer",
        *["Conv2D", "LeakyReLU", "Dropout"] * 6,
        "Flatten",
        "Dense",
    ]
    dropouts = [x.rate for x in discriminator.layers if isinstance(x, layers.Dropout)]
    assert dropouts == [0.3] * 6
    # a logit, not a probability
    assert discriminator.layers[-1].activation is keras.activations.linear


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels", [1, 6, 8])
def test_dropout_by_bytes(dtype, channels):
    """77 of 256 bytes drop a value, each by itself; the mean stays; inference changes nothing."""
    layer = networks.dcgan.Dropout(0.3, seed=1, dtype=dtype)
    x = keras.ops.ones((64, 16, 16, channels), dtype)

    def values(training):
        return np.asarray(keras.ops.cast(layer(x, training=training), "float32"))

    first, second = values(True), values(True)
    assert set(np.unique(first)) == {0, float(keras.ops.cast(256 / 179, dtype))}
    count = first.size
    for got, expected in (((first == 0).mean(), 77 / 256), ((first == second).mean(), 0.5794)):
        assert got == pytest.approx(expected, abs=4 * (expected * (1 - expected) / count) ** 0.5)
    dropped = (first == 0).reshape(-1, channels)
    if channels == 8:  # the four bytes of a word are independent
        together = (dropped[:, 0] & dropped[:, 1]).mean()
        assert together == pytest.approx((77 / 256) ** 2, abs=4 * (0.09 / len(dropped)) ** 0.5)
    assert (values(False) == 1).all()
    again = networks.dcgan.Dropout.from_config(layer.get_config())
    assert again.rate == 0.3 and np.array_equal(
        np.asarray(keras.ops.cast(again(x, training=True), "float32")), first
    )
    none, nearly = networks.dcgan.Dropout(0.0), networks.dcgan.Dropout(1.0)
    assert (np.asarray(none(x, training=True)) == 1).all()
    assert (np.asarray(nearly(x, training=True)) == 0).mean() == pytest.approx(255 / 256, abs=0.01)


def test_latent_encoder_of_the_thesis():
    encoder = networks.image_to_latent()
    discriminator_without_head = 69_878_401 - (4 * 4 * 2048 + 1)
    assert encoder.count_params() == discriminator_without_head + (4 * 4 * 2048 + 1) * 100
    assert encoder.output_shape == (None, 100)


@pytest.mark.parametrize("size", [0, 8, 48, 100])
def test_size_must_be_a_power_of_two(size):
    for build in (networks.generator, networks.discriminator, networks.image_to_latent):
        with pytest.raises(ValueError, match=f"image size {size}: expected a power of two"):
            build(size)


def test_depth_must_allow_the_halvings():
    with pytest.raises(ValueError, match="generator depth 20 at 64 px: expected a multiple of 8"):
        networks.generator(64, depth=20)


def test_smallest_size_and_kernel():
    generator = networks.generator(16, 4, 5, kernel=4)
    assert generator.output_shape == (None, 16, 16, 3)
    assert generator.get_layer("up_8").kernel.shape == (4, 4, 2, 4)


def test_acgan_trains_only_the_added_layers():
    vanilla = pair()
    generator, discriminator = acgan(vanilla, classes=19)
    table = networks.trainable_table(generator)
    added = 19 * 50 + (6 + 50) * 100 + 100 + 100 * 100 + 100 + 100 * 6 + 6
    assert table.loc[table.trainable, "parameters"].sum() == added
    assert table.loc[~table.trainable, "parameters"].sum() == vanilla[0].count_params()
    features = 4 * 4 * 16
    heads = (features + 1) + (features + 1) * 100 + 2 * (100 * 100 + 100) + 101 * 19
    table = networks.trainable_table(discriminator)
    assert table.loc[table.trainable, "parameters"].sum() == heads
    trainable = set(table.loc[table.trainable, "variable"].str.split("/").str[0])
    assert trainable == {"real_or_fake", "to_class_1", "to_class_2", "to_class_3", "class"}
    assert discriminator.output_shape == [(None, 1), (None, 19)]
    # the pair that was given is still all trainable
    assert vanilla[0].trainable and len(vanilla[0].trainable_variables) == 1 + 2 * 2 + 3
    assert vanilla[1].trainable and len(vanilla[1].trainable_variables) == 2 * 3


def test_acgan_at_the_thesis_settings():
    wide = keras.Sequential([keras.Input((256, 256, 3)), layers.Flatten(), layers.Dense(1)])
    generator, _ = acgan((networks.generator(), wide), classes=19)
    table = networks.trainable_table(generator)
    assert table.loc[table.trainable, "parameters"].sum() == 19 * 50 + 15_100 + 10_100 + 10_100
    assert table.loc[~table.trainable, "parameters"].sum() == 19_108_067


def test_acgan_starts_from_the_vanilla_pair_and_leaves_it_alone():
    vanilla = pair()
    before = [w.copy() for network in vanilla for w in network.get_weights()]
    generator, discriminator = acgan(vanilla, classes=3)
    images = np.tanh(numbers(4, 16, 16, 3))
    np.testing.assert_allclose(
        np.asarray(discriminator(images, training=False)[0]),
        np.asarray(vanilla[1](images, training=False)),
        rtol=1e-5,
        atol=1e-6,
    )
    # the dropout between the frozen convolutions is still at work in training
    assert np.abs(discriminator(images, training=True)[0] - vanilla[1](images)).max() > 1e-4
    for network in (generator, discriminator):
        network.set_weights([w + 1 for w in network.get_weights()])
    after = [w for network in vanilla for w in network.get_weights()]
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_acgan_generator_is_the_frozen_one_behind_three_layers():
    vanilla, discriminator = pair()
    generator, _ = acgan((vanilla, discriminator), classes=3)
    latents, labels = numbers(5, 6), np.array([0, 1, 2, 0, 1], "int32")
    asked = keras.Model(generator.inputs, generator.get_layer("to_latent_3").output)
    z = np.asarray(asked([latents, labels]))
    assert (z >= 0).all() and (z > 0).any()
    running = [np.asarray(v) for v in generator.non_trainable_variables]
    images = np.asarray(generator([latents, labels], training=True))
    np.testing.assert_allclose(images, np.asarray(vanilla(z, training=False)), rtol=1e-4, atol=1e-5)
    assert np.abs(np.asarray(vanilla(z, training=True)) - images).max() > 0.01
    for variable, old in zip(generator.non_trainable_variables, running, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), old)


def test_acgan_with_a_linear_last_layer_asks_for_negative_latents_too():
    generator, _ = acgan(pair(), classes=3, last_activation="linear")
    asked = keras.Model(generator.inputs, generator.get_layer("to_latent_3").output)
    z = np.asarray(asked([numbers(5, 6), np.zeros(5, "int32")]))
    assert (z < 0).any() and (z > 0).any()
    hidden = keras.Model(generator.inputs, generator.get_layer("to_latent_2").output)
    assert (np.asarray(hidden([numbers(5, 6), np.zeros(5, "int32")])) >= 0).all()


def test_acgan_layers_and_width():
    generator, discriminator = acgan(pair(), classes=3, width=7, layers=2)
    assert [x.units for x in generator.layers if isinstance(x, layers.Dense)] == [7, 6]
    assert discriminator.get_layer("to_class_2").units == 7
    with pytest.raises(ValueError, match="layers 0: expected at least 1"):
        acgan(pair(), classes=3, layers=0)


def test_acgan_wants_a_discriminator_that_ends_in_a_dense_layer():
    generator, _ = pair()
    flat = keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(name="flat")])
    with pytest.raises(ValueError, match=r"ends in 'flat' \(Flatten\): expected a Dense layer"):
        acgan((generator, flat), classes=3)


def test_conditional_pair_listens_to_the_label():
    keras.utils.set_random_seed(0)
    generator = networks.cgan_generator(16, 8, 6, classes=3)
    discriminator = networks.cgan_discriminator(16, 8, classes=3)
    latents = np.repeat(numbers(1, 6), 3, axis=0)
    labels = np.arange(3, dtype="int32")
    images = np.asarray(generator([latents, labels], training=False))
    assert images.shape == (3, 16, 16, 3)
    assert all(np.abs(images[a] - images[b]).max() > 1e-4 for a, b in ((0, 1), (1, 2), (0, 2)))
    same = np.repeat(images[:1], 3, axis=0)
    logits = np.asarray(discriminator([same, labels], training=False))
    assert logits.shape == (3, 1) and len(np.unique(logits)) == 3
    # the label stands in front of the dense layer, and beside the colours of every pixel
    plain = networks.generator(16, 8, 6).count_params()
    assert generator.count_params() == plain + 3 * 50 + 50 * 4 * 4 * 8
    plain = networks.discriminator(16, 8).count_params()
    assert discriminator.count_params() == plain + 3 * 8 + 25 * 8 * 8


def test_xception_is_chollets():
    # 22,910,480 parameters with 1,000 classes is what keras.io lists for Xception
    model = networks.xception(71, 1000)
    assert model.count_params() == 22_910_480
    assert model.layers[-1].activation is keras.activations.linear
    assert model.get_layer("features").output.shape == (None, 2048)


def test_compact_xception_gives_logits():
    model = networks.compact_xception(32, 5, width=4)
    assert model.output_shape == (None, 5)
    assert model.layers[-1].activation is keras.activations.linear
    assert model.get_layer("features").output.shape == (None, 48)
    assert sum(isinstance(x, layers.SeparableConv2D) for x in model.layers) == 7


def test_classifier_weights_follow_the_seed():
    first, again, other = (networks.classifier("compact", 16, 3, seed=s) for s in (1, 1, 2))
    for a, b in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(
        (a != b).any() for a, b in zip(first.get_weights(), other.get_weights(), strict=True)
    )


def test_classifier_augments_in_training_only():
    model = networks.classifier("compact", 16, 3, augment=True)
    plain = networks.classifier("compact", 16, 3, augment=False)
    images = np.tanh(numbers(4, 16, 16, 3))
    np.testing.assert_allclose(
        np.asarray(model(images, training=False)),
        np.asarray(plain(images, training=False)),
        rtol=1e-5,
        atol=1e-6,
    )
    turned = np.asarray(networks.classical_augmentation(0)(images, training=True))
    assert turned.shape == images.shape and np.abs(turned - images).max() > 0.1
    # reflection invents no values: a constant image stays what it is
    constant = np.full((2, 16, 16, 3), 0.5, "float32")
    turned = np.asarray(networks.classical_augmentation(0)(constant, training=True))
    np.testing.assert_allclose(turned, 0.5, atol=1e-4)


def test_recalibration_sets_running_averages_to_means_over_all_images():
    inner = keras.Sequential([keras.Input((4, 4, 3)), layers.BatchNormalization(momentum=0.9)])
    inner.add(layers.GlobalAveragePooling2D())
    model = keras.Sequential([keras.Input((4, 4, 3)), inner])  # a layer inside a layer counts
    norm = inner.layers[0]
    norm.set_weights([np.full(3, w, "float32") for w in (2, 5, 30, 40)])
    first, last = numbers(6, 4, 4, 3) + 1, 3 * numbers(2, 4, 4, 3) - 2
    answers = networks.recalibrate(model, iter([first, last]))
    gamma, beta, mean, variance = norm.get_weights()
    assert gamma.tolist() == [2, 2, 2] and beta.tolist() == [5, 5, 5] and norm.momentum == 0.9
    pooled = np.concatenate([first, last]).mean((0, 1, 2))
    np.testing.assert_allclose(mean, pooled, rtol=1e-5)
    within = (6 * first.var((0, 1, 2)) + 2 * last.var((0, 1, 2))) / 8  # each batch by its images
    np.testing.assert_allclose(variance, within, rtol=1e-4)
    scaled = [(x - x.mean((0, 1, 2))) / x.std((0, 1, 2)) for x in (first, last)]
    expected = np.concatenate([x.mean((1, 2)).argmax(1) for x in scaled])  # each by its own batch
    assert answers.tolist() == expected.tolist()


def test_unknown_classifier():
    with pytest.raises(ValueError, match="classifier 'resnet': expected one of xception, compact"):
        networks.classifier("resnet", 32, 3)


def test_layer_table():
    table = networks.layer_table(networks.generator(16, 8, 6)).set_index("layer")
    assert table.loc["up_8"].tolist() == ["Conv2DTranspose", (8, 8, 4), 25 * 8 * 4]
    assert table.loc["latent", "output shape"] == (6,)
    assert table["parameters"].sum() == networks.generator(16, 8, 6).count_params()


def test_networks_survive_saving(tmp_path):
    generator, discriminator = acgan(pair(), classes=3)
    images = np.tanh(numbers(4, 16, 16, 3))
    latents, labels = numbers(4, 6), np.array([0, 1, 2, 0], "int32")
    for network, given in ((generator, [latents, labels]), (discriminator, images)):
        network.save(tmp_path / "network.keras")
        loaded = keras.saving.load_model(tmp_path / "network.keras")
        for a, b in zip(
            keras.tree.flatten(network(given, training=False)),
            keras.tree.flatten(loaded(given, training=False)),
            strict=True,
        ):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        trainable = [v.path for v in loaded.trainable_variables]
        assert trainable == [v.path for v in network.trainable_variables]


def test_detail_is_what_a_binomial_filter_takes():
    """Eight times the image less OpenCV's filter of a row of Pascal's triangle; none in a plane."""
    image = np.random.default_rng(0).uniform(-1, 1, (16, 16, 3)).astype("float32")
    row = np.array([1, 6, 15, 20, 15, 6, 1]) / 64
    expected = 8 * (image - cv2.sepFilter2D(image, -1, row, row, borderType=cv2.BORDER_REFLECT))
    np.testing.assert_allclose(Detail()(image[None])[0], expected, atol=1e-5)
    assert np.abs(Detail()(np.full((1, 8, 8, 3), 0.7, "float32"))).max() < 1e-5
