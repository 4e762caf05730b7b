"""The conditional GAN with every choice in one place."""

from dataclasses import dataclass
from typing import Any, ClassVar

from cellaug.networks.conditional import conditional_discriminator, conditional_generator
from cellaug.training.augment import DifferentiableAugmentation, Symmetries
from cellaug.training.backends import accelerators
from cellaug.training.gan import Adversarial
from cellaug.training.losses import R1, CrossEntropy, Relativistic, WrongLabels

import keras
from keras import Model, ops
from keras.optimizers.schedules import CosineDecay, LearningRateSchedule


@keras.saving.register_keras_serializable("cellaug")
class RisingRate(LearningRateSchedule):
    """A learning rate that rises from 0 over the first steps, then is that of another schedule.

    A new discriminator knows nothing: its first gradients would spoil a trained generator.
    """

    def __init__(self, rate: Any, steps: int):
        self.rate, self.steps = rate, steps

    def __call__(self, step: Any) -> Any:
        """The rate at a step."""
        usual = self.rate(step) if callable(self.rate) else self.rate
        return usual * ops.minimum(ops.cast(step, "float32") / max(self.steps, 1), 1.0)

    def get_config(self) -> dict:
        """The arguments that make the same schedule."""
        return {"rate": self.rate, "steps": self.steps}


GENERATOR = {"depth": "generator_depth"} | {
    key: key for key in ("latent_dim", "kernel", "modulation", "resize", "narrowest", "resize_all",
                         "even", "image_norm")
}  # fmt: skip
"""What `conditional_generator` calls its options, and `Recipe` its choices."""


@dataclass(frozen=True)
class Recipe:
    """All choices of a class-conditional GAN; the defaults suit small sets of cells at 64 px."""

    generator_depth: int = 256  # channels at 4×4 pixels in the generator
    discriminator_depth: int = 32  # channels after the discriminator's first convolution
    latent_dim: int = 100  # length of a latent vector
    kernel: int = 4  # height and width of the kernels at stride 2; the thesis's 5 does not fit it
    modulation: bool = True  # latent vector and class scale and shift every layer of the generator
    resize: bool = True  # end the generator in a resize-convolution: no grid of period 2
    resize_all: bool = False  # resize-convolutions throughout: no grid of period 4 and more
    even: bool = False  # transposed convolutions without a net, which can draw grain
    image_norm: bool = False  # normalise each image by itself after batch normalisation
    low_pass: bool = False  # the discriminator filters images before it halves them
    narrowest: int = 1  # minimum of channels of the generator's layers, all but the last
    projection: bool = True  # projection head; False gives the class as planes beside the colours
    deviation: str = "class"  # a feature of the discriminator: ClassDeviation, or "none"
    objective: str = "relativistic"  # pairs of a real and a generated image, or "cross-entropy"
    wrong_labels: float = 0.5  # weight of WrongLabels, which needs projection; 0 for none
    gamma: float = 0.02  # γ of R1; 0 for none
    penalty_every: int = 8  # on which steps R1 is computed; 1 for all
    r2: bool = True  # the same penalty at generated images
    symmetries: bool = True  # show each real image in one of its eight symmetries
    augmentation: float = 0.0  # probability of each part of DifferentiableAugmentation; 0 for none
    half_life: int = 10_000  # of the generator's moving average, in images; 0 for none
    ramp_up: float = 0.05  # of that half-life, as a fraction of the images seen
    batch_size: int = 32  # real images in a step
    learning_rate: float = 2e-4  # of both Adams
    beta_1: float = 0.5  # of both Adams; beta_2 is 0.99
    rise: float = 0.0  # first fraction of the training: the generator's rate rises from zero
    decay: float = 0.0  # last fraction of the training: rates fall to zero along half a cosine
    mixed_precision: bool | None = None  # bfloat16 in the networks alone; None: on an accelerator
    seed: int = 0  # of weights and of all that is drawn in training; becomes Keras's global seed

    gan: ClassVar[type[Adversarial]] = Adversarial
    objectives: ClassVar[dict] = {"relativistic": Relativistic, "cross-entropy": CrossEntropy}

    @property
    def d_steps(self) -> int:
        """Discriminator steps for one of the generator, each on a batch of its own."""
        return 1

    def build(self, size: int, classes: int, steps: int | None = None) -> Adversarial:
        """Fresh networks, compiled and ready for `fit` on balanced batches; `size` is in pixels.

        `steps`, which time `rise` and `decay`, are all those of the generator. Raises ValueError
        for an unknown objective, a rise or decay without `steps`, a size or depth that the networks
        do not take.
        """
        if (self.decay or self.rise) and steps is None:
            raise ValueError("steps: a learning rate that changes needs the number of all steps")
        parts = self.parts()
        keras.utils.set_random_seed(self.seed)
        before, mixed = keras.config.dtype_policy(), self.mixed_precision
        if mixed or (mixed is None and accelerators()):
            keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            networks = self.networks(size, classes)
        finally:
            keras.config.set_dtype_policy(before)
        gan = self.gan(*networks, **parts)

        def adam(own_steps: int, rises: bool = False) -> keras.optimizers.Adam:
            rate: float | LearningRateSchedule = self.learning_rate
            if steps is not None and self.decay:
                first, last = own_steps * round((1 - self.decay) * steps), own_steps * steps
                # The warm-up from the rate to itself keeps it constant until the fall.
                rate = CosineDecay(rate, last - first, warmup_target=rate, warmup_steps=first)
            if rises and steps is not None and self.rise:
                rate = RisingRate(rate, round(self.rise * steps))
            return keras.optimizers.Adam(rate, self.beta_1, 0.99)

        gan.compile(adam(1, rises=True), adam(self.d_steps))
        return gan

    def networks(self, size: int, classes: int, **layers: Any) -> tuple[Model, Model]:
        """Generator and discriminator; `layers` are kinds of layers for the discriminator."""
        compares = getattr(self.objectives[self.objective], "paired", False)
        layers = {"bias": not compares, "every_label": self._asks_labels, **layers}
        layers = {"deviation": self.deviation, "low_pass": self.low_pass, **layers}
        own = {theirs: getattr(self, ours) for theirs, ours in GENERATOR.items()}
        generator = conditional_generator(size, classes=classes, **own)
        return generator, conditional_discriminator(
            size, self.discriminator_depth, classes, self.kernel, self.projection, **layers
        )

    def parts(self) -> dict[str, Any]:
        """The arguments of `Adversarial` besides the networks."""
        if self.objective not in self.objectives:
            expected = ", ".join(self.objectives)
            raise ValueError(f"objective '{self.objective}': expected one of {expected}")
        source = self.objectives[self.objective]()
        return {
            "objective": WrongLabels(source, self.wrong_labels) if self._asks_labels else source,
            "real_augmentation": Symmetries() if self.symmetries else None,
            "augmentation": (
                DifferentiableAugmentation(self.augmentation) if self.augmentation else None
            ),
            "penalty": R1(self.gamma, self.penalty_every, self.r2) if self.gamma else None,
            **{key: getattr(self, key) for key in ("latent_dim", "seed", "half_life", "ramp_up")},
        }

    @property
    def _asks_labels(self) -> bool:
        return self.projection and self.wrong_labels > 0
