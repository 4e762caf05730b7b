"""The two-player training step, written once for TensorFlow and for JAX."""

from collections.abc import Callable, Sequence
from typing import Any

from cellaug.data.images import to_uint8
from cellaug.training.losses import probability

import keras
import numpy as np
from keras import KerasTensor, Model, ops


def use_xla() -> bool:
    """What to give as ``jit_compile`` to `keras.Model.compile`.

    True on JAX, which has nothing else. False on TensorFlow, where XLA makes these networks about
    four times slower on a CPU, and Keras would choose it.
    """
    return keras.backend.backend() == "jax"


def descend(
    loss: Callable[[], tuple[KerasTensor, Any]],
    variables: Sequence[keras.Variable],
    state: Sequence[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
) -> tuple[KerasTensor, Any]:
    """One step of an optimizer down the gradient of a loss, on either backend.

    Args:
        loss: returns the loss and whatever else is wanted from inside.
        variables: those to move.
        state: all others that the loss reads or updates: batch normalisation's running means,
            dropout's seeds, weights held fixed. JAX differentiates functions without side effects,
            so what the loss does to these is handed out of it and put into them afterwards.
        optimizer: built for these variables.

    Returns:
        What ``loss`` returned, before the step.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value, rest = loss()
        gradients = tape.gradient(value, [v.value for v in variables])
    else:
        import jax

        before = [v.value for v in state]

        def pure(values: list) -> tuple:
            mapping = [*zip(variables, values, strict=True), *zip(state, before, strict=True)]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                value, rest = loss()
            return value, (rest, [scope.get_current_value(v) for v in state])

        (value, (rest, after)), gradients = jax.value_and_grad(pure, has_aux=True)(
            [v.value for v in variables]
        )
        for variable, old, new in zip(state, before, after, strict=True):
            if new is not old:
                variable.assign(new)
    optimizer.apply(gradients, variables)
    return value, rest


class Adversarial(Model):
    """A generator and a discriminator that `keras.Model.fit` trains against each other.

    One step is Algorithm 1 of Goodfellow et al. (2014) with one discriminator update for one
    generator update: the discriminator takes a step on real and generated images, then the
    generator takes one against the improved discriminator, from the same latent vectors.

    A network with a second input is given labels there: the discriminator the labels of the real
    images, the generator the same ones. So generated classes are as frequent as those of the
    reader's batches; a balanced reader makes them equally frequent.

    Args:
        generator: latent vectors (N, latent_dim), or ``[latents, labels (N,)]``, to images in
            [-1, 1].
        discriminator: images, or ``[images, labels]``, to what the objective takes.
        objective: see `cellaug.training.losses`.
        latent_dim: length of a latent vector; each element is drawn from N(0, 1).
        seed: of the latent vectors drawn in training.
    """

    def __init__(
        self, generator: Model, discriminator: Model, objective: Any, latent_dim: int, seed: int
    ):
        super().__init__(name="adversarial")
        self.generator = generator
        self.discriminator = discriminator
        self.objective = objective
        self.latent_dim = latent_dim
        self.noise = keras.random.SeedGenerator(seed)
        names = ["d_loss", "g_loss", "d_real", "d_fake"]
        if len(discriminator.outputs) == 2:
            names += ["c_real", "c_fake"]
        self.trackers = {name: keras.metrics.Mean(name) for name in names}
        self.d_optimizer: keras.optimizers.Optimizer | None = None
        # Both networks are built; without this, fit on JAX tries to call the model.
        self.built = True

    def compile(
        self, g_optimizer: keras.optimizers.Optimizer, d_optimizer: keras.optimizers.Optimizer
    ) -> None:
        """Set the optimizers of the generator and of the discriminator."""
        super().compile(optimizer=g_optimizer, jit_compile=use_xla())
        self.d_optimizer = d_optimizer
        g_optimizer.build(self.generator.trainable_variables)
        d_optimizer.build(self.discriminator.trainable_variables)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Means over the epoch so far.

        The losses ``d_loss`` and ``g_loss``; ``d_real`` and ``d_fake``, the mean probability of
        being real that the discriminator gives to real and to generated images; and where there
        are class logits ``c_real`` and ``c_fake``, the share of images in whose label the
        auxiliary classifier agrees.
        """
        return list(self.trackers.values())

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """Keras's own, and the state of the second optimizer.

        Through a step on JAX, Keras carries the state of one optimizer; the other's would be
        dropped after each step if it did not travel here.
        """
        own = super().non_trainable_variables
        return own if self.d_optimizer is None else own + list(self.d_optimizer.variables)

    def play(self, images: KerasTensor, labels: KerasTensor) -> dict[str, KerasTensor]:
        """One update of each network on a batch; returns the metrics."""
        generator, discriminator = self.generator, self.discriminator
        latents = keras.random.normal((ops.shape(images)[0], self.latent_dim), seed=self.noise)

        def generated() -> KerasTensor:
            return generator(inputs_of(generator, latents, labels), training=True)

        def judged(batch: KerasTensor) -> Any:
            return discriminator(inputs_of(discriminator, batch, labels), training=True)

        def discriminator_loss() -> tuple[KerasTensor, Any]:
            real_out, fake_out = judged(images), judged(ops.stop_gradient(generated()))
            return self.objective.discriminator(real_out, fake_out, labels), (real_out, fake_out)

        def generator_loss() -> tuple[KerasTensor, Any]:
            return self.objective.generator(judged(generated()), labels), None

        variables = generator.variables + discriminator.variables
        d_loss, (real_out, fake_out) = descend(
            discriminator_loss,
            discriminator.trainable_variables,
            without(variables, discriminator.trainable_variables),
            self.d_optimizer,
        )
        g_loss, _ = descend(
            generator_loss,
            generator.trainable_variables,
            without(variables, generator.trainable_variables),
            self.optimizer,
        )

        values = {
            "d_loss": d_loss,
            "g_loss": g_loss,
            "d_real": probability(real_out),
            "d_fake": probability(fake_out),
        }
        if "c_real" in self.trackers:
            for name, out in (("c_real", real_out), ("c_fake", fake_out)):
                named = ops.cast(ops.argmax(out[1], axis=-1), "int32")
                values[name] = ops.cast(named == ops.cast(labels, "int32"), "float32")
        for name, value in values.items():
            self.trackers[name].update_state(value)
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    def train_step(self, *args: Any) -> Any:
        """Keras calls this: ``(data)`` on TensorFlow, ``(state, data)`` on JAX."""
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        if keras.backend.backend() == "tensorflow":
            return self.play(images, labels)
        groups = (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        )
        state = args[0]
        mapping = [
            pair
            for variables, values in zip(groups, state, strict=True)
            for pair in zip(variables, values, strict=True)
        ]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logs = self.play(images, labels)
        return logs, tuple([scope.get_current_value(v) for v in group] for group in groups)

    def generate(
        self, latents: np.ndarray, labels: np.ndarray | None = None, batch_size: int = 64
    ) -> np.ndarray:
        """`generate_images` with this generator."""
        return generate_images(self.generator, latents, labels, batch_size)


def generate_images(
    generator: Model, latents: np.ndarray, labels: np.ndarray | None = None, batch_size: int = 64
) -> np.ndarray:
    """Images (N, H, W, 3) uint8 from latent vectors (N, d), in inference mode.

    Args:
        generator: its batch normalisation uses the running statistics.
        latents: one vector for each image.
        labels: integer labels (N,), for a generator that takes them.
        batch_size: how many images are made at once.

    Raises:
        ValueError: if labels are missing, superfluous or not as many as latent vectors.
    """
    wanted = len(generator.inputs) == 2
    if wanted != (labels is not None):
        raise ValueError(
            f"generator '{generator.name}' takes "
            + ("latents and labels: give labels" if wanted else "latents alone: give no labels")
        )
    if labels is not None and len(labels) != len(latents):
        raise ValueError(f"{len(latents)} latent vectors but {len(labels)} labels")
    latents = np.asarray(latents, "float32")
    images = [np.empty((0, *generator.output_shape[1:]), "uint8")]
    for start in range(0, len(latents), batch_size):
        part = slice(start, start + batch_size)
        given = latents[part]
        if labels is not None:
            given = [given, np.asarray(labels[part], "int32")]
        images.append(to_uint8(ops.convert_to_numpy(generator(given, training=False))))
    return np.concatenate(images)


def inputs_of(network: Model, first: KerasTensor, labels: KerasTensor) -> Any:
    """What to call a network with: labels go with the first input if it has a second."""
    return [first, labels] if len(network.inputs) == 2 else first


def without(
    variables: Sequence[keras.Variable], left_out: Sequence[keras.Variable]
) -> list[keras.Variable]:
    """The variables that are not among those left out."""
    ids = {id(v) for v in left_out}
    return [v for v in variables if id(v) not in ids]
