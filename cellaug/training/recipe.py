"""The class-conditional recipe in one call, every choice an argument."""

from typing import Any

from cellaug.backend import accelerated
from cellaug.networks.conditional import conditional_discriminator, conditional_generator
from cellaug.training.adversarial import Adversarial
from cellaug.training.augment import DifferentiableAugmentation, Symmetries
from cellaug.training.losses import CrossEntropy, Relativistic, Wasserstein, WrongLabels
from cellaug.training.penalties import R1, UnitGradient

import keras

OBJECTIVES = ("relativistic", "cross-entropy", "wasserstein", "wasserstein-gp")
CRITIC_STEPS, CLIP = 5, 0.01  # of Arjovsky et al. (2017), the first for WGAN-GP too


def critic_steps(objective: str) -> int:
    """How many steps the discriminator takes for one of the generator in a game of `conditional`.

    A batch is dealt out among them.
    """
    return CRITIC_STEPS if objective.startswith("wasserstein") else 1


def conditional(
    size: int,
    classes: int,
    *,
    generator_depth: int = 256,
    discriminator_depth: int = 32,
    latent_dim: int = 100,
    kernel: int = 4,
    modulation: bool = True,
    resize: bool = True,
    narrowest: int = 1,
    projection: bool = True,
    deviation: str = "class",
    spectral: bool = False,
    objective: str = "relativistic",
    wrong_labels: float = 0.5,
    gamma: float = 0.02,
    penalty_every: int = 8,
    r2: bool = True,
    symmetries: bool = True,
    augmentation: float = 0.0,
    half_life: int = 10_000,
    ramp_up: float = 0.05,
    learning_rate: float = 2e-4,
    beta_1: float = 0.5,
    decay_steps: tuple[int, int] | None = None,
    mixed_precision: bool | None = None,
    seed: int = 0,
) -> Adversarial:
    """A class-conditional pair, compiled and ready for `fit` on balanced batches.

    The defaults are what small sets of cells favour at 64 px; for each choice the value that
    switches it off is named.

    Args:
        size: height and width of the images in pixels, a power of two of at least 16.
        classes: number of classes.
        generator_depth: channels at 4×4 pixels in the generator.
        discriminator_depth: channels after the discriminator's first convolution.
        latent_dim: length of a latent vector.
        kernel: height and width of the kernels at stride 2; the thesis's 5 does not fit it.
        modulation: latent vector and class scale and shift every layer of the generator, not the
            first alone.
        resize: a resize-convolution at the generator's end; False for a transposed one, which can
            leave a grid of period 2.
        narrowest: channels that the generator's layers have at least, all but the last.
        projection: projection head; False gives the class as planes beside the colours.
        deviation: minibatch deviation as a feature of the discriminator, among the images of one
            class ("class") or of all ("batch"); "none" for none.
        spectral: spectral normalisation of the discriminator.
        objective: "relativistic" (pairs of a real and a generated image), "cross-entropy"
            (non-saturating logistic), "wasserstein" (weights clipped) or "wasserstein-gp"; the last
            two take five discriminator steps for one of the generator, so that batches must be five
            times as large.
        wrong_labels: weight of `WrongLabels`, by which the discriminator learns that real images
            with a wrong label are not real; 0 for none. Not used without the projection head.
        gamma: γ of `R1`; 0 for none. Not used by the two Wasserstein games.
        penalty_every: on which steps R1 is computed; 1 for all.
        r2: the same penalty at generated images.
        symmetries: show each real image in one of its eight symmetries.
        augmentation: probability of each part of `DifferentiableAugmentation`; 0 for none.
        half_life: of the generator's moving average, in images; 0 for none.
        ramp_up: of that half-life, as a share of the images seen.
        learning_rate: of both Adams.
        beta_1: of both Adams; beta_2 is 0.99.
        decay_steps: the step of the generator from which both learning rates fall, along half a
            cosine, and the one at which they are zero; None for constant rates.
        mixed_precision: bfloat16 in the networks, float32 in weights, losses and penalty; None for
            where it pays, on an accelerator. On a processor `make bench-train` says what it saves.
        seed: of weights and of all that is drawn in training; Keras's global seed is set to it.

    Raises:
        ValueError: for another objective, and what the networks raise.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective '{objective}': expected one of {', '.join(OBJECTIVES)}")
    keras.utils.set_random_seed(seed)
    wrong_labels = wrong_labels if projection else 0.0
    before = keras.config.dtype_policy()
    if accelerated() if mixed_precision is None else mixed_precision:
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        generator = conditional_generator(
            size, generator_depth, latent_dim, classes, kernel, modulation, resize, narrowest
        )
        discriminator = conditional_discriminator(
            size,
            discriminator_depth,
            classes,
            kernel,
            projection,
            deviation,
            spectral,
            wrong_labels > 0,
        )
    finally:
        keras.config.set_dtype_policy(before)
    wasserstein = objective.startswith("wasserstein")
    penalty = R1(gamma, penalty_every, r2) if gamma and not wasserstein else None
    if objective == "wasserstein-gp":
        penalty = UnitGradient()
    losses = {"cross-entropy": CrossEntropy, "relativistic": Relativistic}
    source = losses.get(objective, Wasserstein)()
    game = Adversarial(
        generator,
        discriminator,
        WrongLabels(source, wrong_labels) if wrong_labels > 0 else source,
        latent_dim,
        seed,
        real_augmentation=Symmetries() if symmetries else None,
        augmentation=DifferentiableAugmentation(augmentation) if augmentation else None,
        penalty=penalty,
        half_life=half_life,
        ramp_up=ramp_up,
        d_steps=critic_steps(objective),
        clip=CLIP if objective == "wasserstein" else 0.0,
    )

    def rate(own_steps: int) -> Any:
        if decay_steps is None:
            return learning_rate
        first, last = (own_steps * step for step in decay_steps)
        # Keras's warm-up, from the rate to itself, keeps it constant until the fall begins.
        return keras.optimizers.schedules.CosineDecay(
            learning_rate, last - first, warmup_target=learning_rate, warmup_steps=first
        )

    game.compile(*(keras.optimizers.Adam(rate(k), beta_1, 0.99) for k in (1, game.d_steps)))
    return game
