"""The training step of a GAN, written once for TensorFlow and for JAX."""

from collections.abc import Callable
from typing import Any, NamedTuple

from cellaug.data.images import to_uint8
from cellaug.networks.describe import frozen
from cellaug.training.backends import differentiate, gradient_at, run_step, use_xla

import keras
import numpy as np
from keras import KerasTensor as Tensor
from keras import Model, ops
from keras.optimizers import Optimizer


class Batch(NamedTuple):
    """Real images (N, H, W, 3), their labels (N,), and generated images with the same labels."""

    real: Tensor
    labels: Tensor
    fake: Tensor
    backward: Callable[..., list[Tensor]]  # from a gradient by `fake` to the generator's weights


class Adversarial(Model):
    """A generator and a discriminator that `keras.Model.fit` trains against each other.

    One step is Algorithm 1 of Goodfellow et al. (2014); all that is not in it is off unless asked
    for. A network with a second input gets the labels of the real images there.

    Args:
        generator: latent vectors (N, latent_dim), or ``[latents, labels]``, to images in [-1, 1].
        discriminator: images, or ``[images, labels]``, to the outputs that the objective takes.
        objective: see `cellaug.training.losses`.
        latent_dim: length of a latent vector, drawn from N(0, 1).
        seed: of everything that is drawn in training.
        real_augmentation: changes real images alone, such as `Symmetries`.
        augmentation: changes real and generated images alike.
        penalty: on the discriminator's gradient, such as `R1`; always computed in float32.
        half_life: of the generator's moving average, in images; 0 for none (Karras et al. 2018).
        ramp_up: maximum of the half-life, as a fraction of all images seen so far.
    """

    d_steps = 1  # of the discriminator for one of the generator

    def __init__(
        self, generator: Model, discriminator: Model, objective: Any, latent_dim: int, seed: int, *,
        real_augmentation: Any = None, augmentation: Any = None, penalty: Any = None,
        half_life: int = 0, ramp_up: float = 0.05,
    ):  # fmt: skip
        super().__init__(name="adversarial")
        self.generator, self.discriminator = generator, discriminator
        self.objective, self.penalty, self.latent_dim = objective, penalty, latent_dim
        self.real_augmentation, self.augmentation = real_augmentation, augmentation
        self.half_life, self.ramp_up = half_life, ramp_up
        self.noise = keras.random.SeedGenerator(seed)
        self.averaged = frozen(generator, generator.name) if half_life else None
        # In a function, so that Keras does not take the copy's weights for more of its own.
        self._critic: Any = None if penalty is None else _in_float32(discriminator)
        names = ["d_loss", "g_loss", "d_real", "d_fake"]
        names += ["c_real", "c_fake"] if len(discriminator.outputs) == 2 else []
        names += [] if penalty is None else ["penalty"]
        self.trackers = {name: keras.metrics.Mean(name) for name in names}
        self.d_optimizer: Any = None
        self.built = True  # otherwise fit on JAX tries to call the model

    def compile(self, g_optimizer: Optimizer, d_optimizer: Optimizer) -> None:
        """Set the optimizers of the generator and of the discriminator."""
        super().compile(optimizer=g_optimizer, jit_compile=use_xla())
        self.d_optimizer = d_optimizer
        g_optimizer.build(self.generator.trainable_variables)
        d_optimizer.build(self.discriminator.trainable_variables)

    @property
    def trained_generator(self) -> Model:
        """The generator to use: the moving average where there is one, else the generator."""
        return self.generator if self.averaged is None else self.averaged

    @property
    def choices(self) -> dict[str, Any]:
        """All that the result depends on besides networks, optimizers and data; plain values."""

        def plain(value: Any) -> Any:
            if not hasattr(value, "__dict__"):
                return value
            return {"": type(value).__name__, **{k: plain(v) for k, v in vars(value).items()}}

        names = ("objective", "real_augmentation", "augmentation", "penalty", "half_life")
        return {name: plain(getattr(self, name)) for name in (*names, "ramp_up", "latent_dim")}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Means over the epoch: losses, D(x) of real and fake images, accuracies (c_), penalty."""
        return list(self.trackers.values())

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """Keras's own, and the second optimizer's state, which Keras would drop on JAX."""
        own = super().non_trainable_variables
        return own if self.d_optimizer is None else own + list(self.d_optimizer.variables)

    def train_step(self, *given: Any) -> Any:
        """Keras calls this with a batch."""
        return run_step(self, self.step, *given)

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Train the discriminator, then the generator, on images (N, H, W, 3), labels (N,)."""
        batch = self.draw(images, labels)
        d_loss, (real_out, fake_out, penalty) = self.discriminator_step(batch)
        g_loss = self.generator_step(batch)
        self.average(ops.shape(images)[0])
        values = {"d_loss": d_loss, "g_loss": g_loss, "penalty": penalty}
        for kind, out in (("real", real_out), ("fake", fake_out)):
            values[f"d_{kind}"] = ops.sigmoid(out[0] if isinstance(out, list | tuple) else out)
            if "c_real" in self.trackers:
                named = ops.cast(ops.argmax(out[1], axis=-1), "int32")
                values[f"c_{kind}"] = ops.cast(named == ops.cast(labels, "int32"), "float32")
        for name, tracker in self.trackers.items():
            tracker.update_state(values[name])
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    def draw(self, images: Tensor, labels: Tensor) -> Batch:
        """Draw latent vectors z and generate G(z), once for both networks' steps."""
        count = ops.shape(images)[0]
        latents = keras.random.normal((count, self.latent_dim), seed=self.noise)
        if change := self.real_augmentation:
            images = change(images, change.draw(count, self.noise))
        drawn = self.augmentation.draw(count, self.noise) if self.augmentation else None

        def seen(images: Tensor) -> Tensor:
            return self.augmentation(images, drawn) if self.augmentation else images

        def generated() -> tuple[Tensor, None]:
            fake = self.generator(inputs_of(self.generator, latents, labels), training=True)
            return seen(fake), None

        weights = self.generator.trainable_variables
        fake, _, backward = differentiate(generated, weights, self.generator.variables)
        return Batch(seen(images), labels, fake, backward)

    def judge(self, images: Tensor, labels: Tensor) -> Any:
        """The discriminator's output in training."""
        return self.discriminator(inputs_of(self.discriminator, images, labels), training=True)

    def discriminator_step(self, batch: Batch) -> tuple[Tensor, tuple]:
        """Descend L_D; its value, and the outputs for real and generated images and the penalty."""
        real, labels, fake, _ = batch
        penalty = self._penalty(real, fake, labels)

        def loss() -> tuple[Tensor, tuple]:
            real_out, fake_out = self.judge(real, labels), self.judge(fake, labels)
            extra = penalty()
            value = self.objective.discriminator(real_out, fake_out, labels) + extra
            return value, (real_out, fake_out, extra)

        weights = self.discriminator.trainable_variables
        every = self.discriminator.variables
        value, outputs, gradients = differentiate(loss, weights, every)
        self.d_optimizer.apply(gradients(), weights)
        return value, outputs

    def generator_step(self, batch: Batch) -> Tensor:
        """Descend L_G by the generator's weights; returns its value."""

        def loss(fake: Tensor) -> tuple[Tensor, None]:
            fake_out = self.judge(fake, batch.labels)
            paired = getattr(self.objective, "paired", False)
            real_out = self.judge(batch.real, batch.labels) if paired else None
            return self.objective.generator(fake_out, batch.labels, real_out), None

        every = self.discriminator.variables
        value, _, gradients = differentiate(loss, [], every, batch.fake)
        (by_image,) = gradients()
        self.optimizer.apply(batch.backward(by_image), self.generator.trainable_variables)
        return value

    def _penalty(self, real: Tensor, fake: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        """The penalty's contribution to this step's loss: zero on most steps if it is lazy."""
        penalty = self.penalty
        if penalty is None:
            return lambda: ops.zeros(())
        step = ops.convert_to_tensor(self.d_optimizer.iterations)
        mix = keras.random.uniform((ops.shape(real)[0], 1, 1, 1), seed=self.noise)

        def value() -> Tensor:
            points = penalty.points(real, fake, mix)
            slopes = (gradient_at(images, labels, self._critic) for images in points)
            return penalty.every * sum(penalty.value(slope) for slope in slopes)

        if penalty.every == 1:
            return value
        return lambda: ops.cond(step % penalty.every == 0, value, lambda: ops.zeros(()))

    def average(self, count: Any) -> None:
        """Move the averaged generator towards the generator, `count` images further."""
        if self.averaged is None:
            return
        count = ops.cast(count, "float32")
        seen = count * ops.cast(self.optimizer.iterations, "float32")
        half_life = ops.minimum(float(self.half_life), self.ramp_up * seen)
        kept = 0.5 ** (count / half_life)
        for mean, variable in zip(self.averaged.variables, self.generator.variables, strict=True):
            if "float" in mean.dtype:
                mean.assign(variable + kept * (mean - variable))

    def generate(self, latents: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        """`generate_images` with `trained_generator`."""
        return generate_images(self.trained_generator, latents, labels)


def generate_images(
    generator: Model, latents: np.ndarray, labels: np.ndarray | None = None, batch_size: int = 64
) -> np.ndarray:
    """Images (N, H, W, 3) uint8, in inference mode, from latent vectors (N, d) and labels (N,).

    Raises ValueError if labels are missing, superfluous or not as many as latent vectors.
    """
    wanted = len(generator.inputs) == 2
    if wanted != (labels is not None):
        takes = "latents and labels: give labels" if wanted else "latents alone: give no labels"
        raise ValueError(f"generator '{generator.name}' takes {takes}")
    if labels is not None and len(labels) != len(latents):
        raise ValueError(f"{len(latents)} latent vectors but {len(labels)} labels")
    images = np.empty((len(latents), *generator.output_shape[1:]), "uint8")
    for start in range(0, len(latents), batch_size):
        part = slice(start, start + batch_size)
        z = np.asarray(latents[part], "float32")
        y = None if labels is None else np.asarray(labels[part], "int32")
        made = generator(inputs_of(generator, z, y), training=False)
        images[part] = to_uint8(ops.convert_to_numpy(made))
    return images


def _in_float32(discriminator: Model) -> Callable[[Tensor, Tensor], Tensor]:
    """Logits without dropout; squares of their gradients lose too much in sixteen bits."""

    def plain(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

    mixed = any(layer.compute_dtype != "float32" for layer in discriminator.layers)
    twin = keras.models.clone_model(discriminator, clone_function=plain) if mixed else None

    def critic(images: Tensor, labels: Tensor) -> Tensor:
        inputs = inputs_of(discriminator, images, labels)
        if twin is None:
            out = discriminator(inputs, training=False)
        else:
            groups = (discriminator.trainable_variables, discriminator.non_trainable_variables)
            values = ([ops.convert_to_tensor(v) for v in group] for group in groups)
            out, _ = twin.stateless_call(*values, inputs, training=False)
        return out[0] if isinstance(out, list | tuple) else out

    return critic


def inputs_of(network: Model, first: Tensor, labels: Tensor) -> Any:
    """The inputs to call a network with: labels go with the first if it has a second."""
    return [first, labels] if len(network.inputs) == 2 else first
