"""Variants of the conditional GAN that only the ablation study tries.

WGAN and WGAN-GP, spectral normalisation, and the minibatch deviation over all classes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from cellaug.training.gan import Adversarial, Batch
from cellaug.training.recipe import Recipe

import keras
from keras import KerasTensor, Model, initializers, layers, ops

CRITIC_STEPS, CLIP = 5, 0.01
"""The values of Arjovsky et al. (2017); the number of steps is used for WGAN-GP too."""


class CriticGAN(Adversarial):
    """`Adversarial` with several discriminator steps for each generator step (WGAN).

    A batch is divided among the `d_steps` steps. After each of them the discriminator's weights are
    clipped to [-clip, clip] (0 for no clipping).
    """

    def __init__(self, *given: Any, d_steps: int = 1, clip: float = 0.0, **options: Any):
        super().__init__(*given, **options)
        self.d_steps, self.clip = d_steps, clip

    @property
    def choices(self) -> dict[str, Any]:
        return super().choices | {"d_steps": self.d_steps, "clip": self.clip}

    def step(self, images: KerasTensor, labels: KerasTensor) -> dict[str, KerasTensor]:
        """Take the discriminator's steps, the last one together with the generator's."""
        count = ops.shape(images)[0] // self.d_steps
        for k in range(self.d_steps - 1):
            part = slice(k * count, (k + 1) * count)
            self.discriminator_step(self.draw(images[part], labels[part]))
        last = slice((self.d_steps - 1) * count, self.d_steps * count)
        return super().step(images[last], labels[last])

    def discriminator_step(self, batch: Batch) -> tuple[KerasTensor, tuple]:
        found = super().discriminator_step(batch)
        if self.clip:
            for variable in self.discriminator.trainable_variables:
                variable.assign(ops.clip(variable, -self.clip, self.clip))
        return found

    def average(self, count: Any) -> None:
        super().average(count * self.d_steps)


class Wasserstein:
    """The loss of Arjovsky et al. (2017); its discriminator is a critic f without a sigmoid.

        L_D = E[f(G(z))] - E[f(x)],  L_G = -E[f(G(z))]

    The gradient of f must be bounded: by `clip` of `CriticGAN`, as in the paper, or by
    `UnitGradient` (WGAN-GP).
    """

    def discriminator(
        self, real_out: KerasTensor, fake_out: KerasTensor, labels: Any = None
    ) -> KerasTensor:
        return ops.mean(fake_out) - ops.mean(real_out)

    def generator(
        self, fake_out: KerasTensor, labels: Any = None, real_out: Any = None
    ) -> KerasTensor:
        return -ops.mean(fake_out)


class UnitGradient:
    """λ · E(‖∇D(x)‖ − 1)² between real and generated images: WGAN-GP (Gulrajani et al. 2017).

    `weight` is λ; the penalty is computed on every `every`-th step.
    """

    def __init__(self, weight: float = 10.0, every: int = 1):
        self.weight, self.every = weight, every

    def points(self, real: KerasTensor, fake: KerasTensor, mix: KerasTensor) -> list[KerasTensor]:
        """Points between generated and real images; `mix` (N, 1, 1, 1) in [0, 1]."""
        return [fake + mix * (real - fake)]

    def value(self, gradients: KerasTensor) -> KerasTensor:
        """The penalty for gradients (N, H, W, C)."""
        norm = ops.sqrt(ops.sum(ops.square(gradients), axis=(1, 2, 3)) + 1e-12)
        return self.weight * ops.mean(ops.square(norm - 1))


class MinibatchDeviation(layers.Layer):
    """Appends a channel with the deviation within a group of images (Karras et al. 2018).

    Maps ``[x (N, H, W, C), labels]`` to (N, H, W, C + 1); the labels are not used. The standard
    deviation of every activation over `group` images is averaged to one number, in float32, which
    fills the new channel of all of them. The whole batch is one group if N is no multiple of it.
    """

    def __init__(self, group: int = 4, **options):
        super().__init__(**options)
        self.group = group

    def call(self, given: list) -> KerasTensor:
        inputs, _ = given
        count, height, width, channels = ops.shape(inputs)
        x = ops.cast(inputs, "float32")
        # Images i, i + N/g, i + 2N/g, ... are a group, as in the published code.
        if isinstance(count, int):
            group = self.group if count % self.group == 0 else count
        else:
            group = ops.where(count % self.group == 0, self.group, count)
        x = ops.reshape(x, (group, -1, height, width, channels))
        spread = ops.sqrt(ops.mean(ops.square(x - ops.mean(x, 0, keepdims=True)), 0) + 1e-8)
        value = ops.mean(spread, axis=(1, 2, 3), keepdims=True)
        plane = ops.tile(value, (group, height, width, 1))
        return ops.concatenate([inputs, ops.cast(plane, inputs.dtype)], axis=-1)

    def compute_output_shape(self, shapes: list) -> tuple:
        return (*shapes[0][:-1], shapes[0][-1] + 1)


class _Spectral(layers.Layer):
    """A kernel divided by its largest singular value (Miyato et al. 2018, Algorithm 1).

    Each call in training takes one step of the power method. Keras's `SpectralNormalization`
    overwrites the kernel during a call, so it depends on the backend whether the gradient passes
    through the division; here it always does, and the kernel itself is not changed.
    """

    kernel: Any
    bias: Any
    use_bias: bool
    activation: Any

    def add_weight(self, *shape: Any, **options: Any) -> keras.Variable:
        """Make weights that stay in float32 under mixed precision until they are normalised."""
        return super().add_weight(*shape, **options | {"autocast": False})

    def build(self, input_shape: tuple) -> None:
        """Make the kernel and the estimate of its first right singular vector (outputs,)."""
        super().build(input_shape)
        self.direction = self.add_weight(
            (self.kernel.shape[-1],),
            initializers.RandomNormal(stddev=1.0),
            trainable=False,
            name="direction",
        )

    def _normalised(self, training: bool) -> KerasTensor:
        """W / σ with σ = vᵀWu, computed in float32; u and v are constants of the gradient."""
        kernel = ops.convert_to_tensor(self.kernel)
        matrix = ops.reshape(kernel, (-1, kernel.shape[-1]))
        fixed = ops.stop_gradient(matrix)
        left = _unit(ops.matmul(fixed, self.direction))
        right = _unit(ops.matmul(left, fixed))
        if training:
            self.direction.assign(right)
        sigma = ops.matmul(left, ops.matmul(matrix, right))
        return ops.cast(kernel / ops.maximum(sigma, 1e-12), self.compute_dtype)

    def _finished(self, outputs: KerasTensor) -> KerasTensor:
        if self.use_bias:
            outputs = outputs + ops.cast(self.bias, outputs.dtype)
        return outputs if self.activation is None else self.activation(outputs)


def _unit(vector: KerasTensor) -> KerasTensor:
    return vector / ops.maximum(ops.norm(vector), 1e-12)


class SpectralConv2D(_Spectral, layers.Conv2D):
    """`keras.layers.Conv2D`, channels last, with a spectrally normalised kernel."""

    def call(self, inputs: KerasTensor, training: bool = False) -> KerasTensor:
        return self._finished(self.convolution_op(inputs, self._normalised(training)))


class SpectralDense(_Spectral, layers.Dense):
    """`keras.layers.Dense` with a spectrally normalised kernel."""

    def call(self, inputs: KerasTensor, training: bool = False) -> KerasTensor:
        return self._finished(ops.matmul(inputs, self._normalised(training)))


@dataclass(frozen=True)
class Variant(Recipe):
    """A recipe with the choices that only the ablation study tries.

    Attributes:
        deviation: also "batch", over all images of a batch.
        objective: also "wasserstein" (clipped weights) and "wasserstein-gp". Both take five
            discriminator steps for each generator step, so batches are five times as large, and
            do not use R1.
        spectral: spectral normalisation of the discriminator.
    """

    spectral: bool = False

    gan: ClassVar[type[Adversarial]] = CriticGAN
    objectives: ClassVar[dict[str, type]] = {
        **Recipe.objectives,
        "wasserstein": Wasserstein,
        "wasserstein-gp": Wasserstein,
    }

    @property
    def d_steps(self) -> int:
        """Discriminator steps for each generator step; a batch is divided among them."""
        return CRITIC_STEPS if self.objective.startswith("wasserstein") else 1

    def networks(self, size: int, classes: int, **options: Any) -> tuple[Model, Model]:
        if self.spectral:
            options |= {"convolution": SpectralConv2D, "dense": SpectralDense}
        if self.deviation == "batch":
            options["deviation"] = MinibatchDeviation(name="deviation")
        return super().networks(size, classes, **options)

    def parts(self) -> dict[str, Any]:
        found = super().parts() | {"d_steps": self.d_steps}
        if self.objective == "wasserstein":
            found |= {"penalty": None, "clip": CLIP}
        if self.objective == "wasserstein-gp":
            found["penalty"] = UnitGradient()
        return found
