"""Penalties on the discriminator's gradient with respect to images.

A penalty says at which batches of images the gradient is taken (`points`) and what it costs there
(`value`); the costs of several batches are added. It is computed on every `every`-th step only,
there multiplied by `every`, which costs less and does the same in the mean (lazy regularisation,
Karras et al. 2020). Gradients are float32 (N, H, W, C).
"""

from keras import KerasTensor, ops


class R1:
    """γ/2 · E‖∇D(x)‖² at real images, and with `r2` at generated ones too (Mescheder et al. 2018).

    Args:
        gamma: γ. For images in [-1, 1] of 64 px in batches of 64, about 0.01 to 0.1.
        every: on which steps.
        r2: add the same at generated images, as Huang et al. (2024) advise for paired objectives.
    """

    def __init__(self, gamma: float = 0.02, every: int = 8, r2: bool = False):
        self.gamma, self.every, self.r2 = gamma, every, r2

    def points(self, real: KerasTensor, fake: KerasTensor, mix: KerasTensor) -> list[KerasTensor]:
        """The real images, and with `r2` the generated ones."""
        return [real, fake] if self.r2 else [real]

    def value(self, gradients: KerasTensor) -> KerasTensor:
        """γ/2 times the mean squared norm."""
        return self.gamma / 2 * ops.mean(ops.sum(ops.square(gradients), axis=(1, 2, 3)))


class UnitGradient:
    """λ · E(‖∇D(x)‖ − 1)² between real and generated images: WGAN-GP (Gulrajani et al. 2017).

    Args:
        weight: λ.
        every: on which steps.
    """

    def __init__(self, weight: float = 10.0, every: int = 1):
        self.weight, self.every = weight, every

    def points(self, real: KerasTensor, fake: KerasTensor, mix: KerasTensor) -> list[KerasTensor]:
        """Points on the lines from generated to real images; ``mix`` (N, 1, 1, 1) in [0, 1]."""
        return [fake + mix * (real - fake)]

    def value(self, gradients: KerasTensor) -> KerasTensor:
        """λ times the mean squared distance of the norm from 1."""
        norm = ops.sqrt(ops.sum(ops.square(gradients), axis=(1, 2, 3)) + 1e-12)
        return self.weight * ops.mean(ops.square(norm - 1))
