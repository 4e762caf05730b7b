"""Variants that only the ablation study trains: by hand and on both backends."""

from cellaug.training.checkpoint import fingerprint
from studies.variants import (
    CriticGAN,
    MinibatchDeviation,
    SpectralConv2D,
    SpectralDense,
    UnitGradient,
    Variant,
    Wasserstein,
)

import keras
import numpy as np
import pytest
import test_conditional
from test_conditional import (
    CLASSES,
    IMAGES,
    SIZE,
    SMALL,
    array,
    check_both_backends,
    check_rates,
    everything_on,
    linear_gan,
)

latents = test_conditional.latents  # a fixture

# Tracing lines takes a tenth of the time, and other tests cover what the package has of this.
pytestmark = pytest.mark.no_cover


def variant(seed: int, **options) -> CriticGAN:
    return everything_on(seed, Variant, **{"augmentation": 0.5} | options)


def spectral_discriminator() -> keras.Model:
    keras.utils.set_random_seed(0)
    return Variant(**SMALL, spectral=True).networks(SIZE, CLASSES)[1]


def test_deviation_by_hand():
    images = np.random.default_rng(0).normal(size=(8, 2, 2, 3)).astype("float32")
    labels = np.zeros(8, int)  # not used
    out = array(MinibatchDeviation(group=4)([images, labels]))
    assert out.shape == (8, 2, 2, 4)
    np.testing.assert_array_equal(out[..., :3], images)
    for k in range(2):  # images k, k + 2, k + 4, k + 6 are a group
        expected = images[k::2].std(axis=0).mean()
        np.testing.assert_allclose(out[k::2, ..., 3], expected, rtol=1e-5)
    whole = array(MinibatchDeviation(group=3)([images, labels]))
    np.testing.assert_allclose(whole[..., 3], images.std(axis=0).mean(), rtol=1e-5)
    same = np.repeat(images[:1], 4, axis=0)
    assert array(MinibatchDeviation()([same, labels]))[..., 3].max() < 1e-3


def test_spectral_normalisation_bounds_every_kernel():
    """And leaves the kernel itself alone; out of training the estimate stays where it is."""
    discriminator = spectral_discriminator()
    inputs = [np.zeros((4, SIZE, SIZE, 3), "float32"), np.zeros(4, int)]
    before = [array(v) for v in discriminator.trainable_variables]
    for _ in range(50):
        discriminator(inputs, training=True)
    for old, new in zip(before, discriminator.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, array(new))
    seen = 0
    for layer in discriminator.layers:
        if isinstance(layer, SpectralConv2D | SpectralDense):
            kernel = array(layer.kernel).reshape(-1, layer.kernel.shape[-1])
            norm = np.linalg.norm(kernel, 2)
            found = array(layer._normalised(False)).reshape(kernel.shape)
            np.testing.assert_allclose(found, kernel / norm, rtol=0.02, atol=1e-4)
            seen += 1
    assert seen == 4
    state = [array(v) for v in discriminator.non_trainable_variables]
    discriminator(inputs, training=False)
    for old, new in zip(state, discriminator.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(old, array(new))


def test_unit_gradient_by_calculus(latents):
    """The gradient is w everywhere, so the penalty is λ (‖w‖ − 1)², wherever it is taken."""
    gan = linear_gan(UnitGradient(10.0), Wasserstein())
    w, v = np.array([0.3, -0.4, 1.2]), np.diag([1.0, 2.0, 3.0])
    norm = np.linalg.norm(w)
    slope = (latents @ v).mean(0) - IMAGES.reshape(3, 3).mean(0) + 20 * (norm - 1) * w / norm
    gan.train_on_batch(IMAGES, np.zeros(3, int))
    found = gan.discriminator.get_weights()[0][:, 0]
    np.testing.assert_allclose(found, w - 0.1 * slope, rtol=1e-5)


def test_unit_gradient_lies_between_real_and_generated():
    real, fake = np.ones((2, 1, 1, 3)), np.zeros((2, 1, 1, 3))
    mix = np.array([0.25, 1.0]).reshape(2, 1, 1, 1)
    (points,) = UnitGradient().points(real, fake, mix)
    np.testing.assert_array_equal(points[:, 0, 0, 0], [0.25, 1.0])


def test_clipping_and_several_steps_by_calculus(latents):
    """Three steps of the critic on a third of the batch each, then one of the generator."""
    gan = linear_gan(objective=Wasserstein(), kind=CriticGAN, clip=0.35, d_steps=3)
    w, v = np.array([0.3, -0.4, 1.2]), np.diag([1.0, 2.0, 3.0])
    for image in IMAGES.reshape(3, 3):
        w = np.clip(w - 0.1 * (latents[0] @ v - image), -0.35, 0.35)
    v = v + 0.1 * np.outer(latents[0], w)
    gan.train_on_batch(IMAGES, np.zeros(3, int))
    np.testing.assert_allclose(gan.discriminator.get_weights()[0][:, 0], w, rtol=1e-5)
    np.testing.assert_allclose(gan.generator.get_weights()[0], v, rtol=1e-5)


def test_each_choice_reaches_the_networks():
    kinds = [type(x).__name__ for x in spectral_discriminator().layers]
    assert kinds.count("SpectralConv2D") == 2 + 1 and kinds.count("SpectralDense") == 1
    assert "MinibatchDeviation" not in kinds and "ClassDeviation" in kinds
    batch = Variant(**SMALL, deviation="batch").networks(SIZE, CLASSES)[1].layers
    assert isinstance(batch[[x.name for x in batch].index("deviation")], MinibatchDeviation)


def test_wasserstein_losses_by_hand():
    real, fake = np.array([[2.0], [-0.5]], "float32"), np.array([[-1.0], [0.7]], "float32")
    assert float(Wasserstein().discriminator(real, fake)) == pytest.approx(-0.15 - 0.75, rel=1e-6)
    assert float(Wasserstein().generator(fake)) == pytest.approx(0.15, rel=1e-6)


def test_the_learning_rates_fall_together_over_several_critic_steps():
    check_rates(Variant(**SMALL, objective="wasserstein", learning_rate=3e-4, decay=0.5))


def test_variants_agree_on_both_backends(tmp_path):
    """Differentiable augmentation, spectral normalisation, WGAN-GP."""
    options = [{}, {"spectral": True, "gamma": 0.0}, {"objective": "wasserstein-gp"}]
    calls = {f"variant(0, **{choices!r})": variant(8, **choices) for choices in options}
    assert check_both_backends(tmp_path, "test_variants", calls, "spectral()") == "uint8"


def spectral() -> str:
    """A spectral kernel is not rounded before it is divided; the type of what is generated."""
    gan = variant(1, mixed_precision=True, spectral=True)
    images = np.random.default_rng(0).uniform(-1, 1, (8, SIZE, SIZE, 3)).astype("float32")
    labels = np.arange(8) % CLASSES
    logs = gan.train_on_batch(images, labels, return_dict=True)
    assert all(np.isfinite(value) for value in logs.values()), logs
    found, summary = [], gan.discriminator.get_layer("summary")
    normalised = summary._normalised
    summary._normalised = lambda training: (
        found.append(summary.kernel.dtype) or normalised(training)
    )
    gan.discriminator([images, labels])
    assert found == ["float32"] and summary.compute_dtype == "bfloat16"
    return str(gan.generate(np.zeros((3, SMALL["latent_dim"])), np.arange(3)).dtype)


def test_spectral_kernels_are_not_rounded_before_they_are_divided():
    """On the other backend in `test_variants_agree_on_both_backends`."""
    assert spectral() == "uint8"


def test_a_checkpoint_of_another_variant_is_refused():
    def own(**choices) -> dict:
        return fingerprint(Variant(**SMALL, **choices).build(SIZE, CLASSES), {})

    before = own()
    # The deviation over all classes has no weight of its own, and yet it is another GAN.
    for key, choice in {"augmentation": 0.2, "layers": None}.items():
        other = own(augmentation=choice) if choice else own(deviation="batch")
        assert {name for name in before if before[name] != other[name]} == {key}
