"""The two-player training step, written once for TensorFlow and for JAX."""

from collections.abc import Callable, Sequence
from typing import Any

from cellaug.backend import use_xla
from cellaug.data.images import to_uint8
from cellaug.training.losses import probability

import keras
import numpy as np
from keras import KerasTensor, Model, ops


def differentiate(
    function: Callable[..., tuple[KerasTensor, Any]],
    variables: Sequence[keras.Variable],
    state: Sequence[keras.Variable],
    *inputs: KerasTensor,
) -> tuple[KerasTensor, Any, Callable[..., list[KerasTensor]]]:
    """A function's value and the way back to what it was computed from, on either backend.

    Args:
        function: given the inputs, returns a tensor and whatever else is wanted from inside.
        variables: those to differentiate by.
        state: all others that the function reads or updates: batch normalisation's running means,
            dropout's seeds, weights held fixed. JAX differentiates functions without side effects,
            so what the function does to these is handed out of it and put into them afterwards.
        inputs: tensors to differentiate by.

    Returns:
        What the function returned, and a function that takes a gradient by the tensor (1 unless
        given) to the gradients by the variables and the inputs. To be called once at most.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value, rest = function(*inputs)
        sources = [*(v.value for v in variables), *inputs]
        return value, rest, lambda by=None: tape.gradient(value, sources, output_gradients=by)
    import jax

    before = [v.value for v in state]

    def pure(values: list, inputs: tuple) -> tuple:
        mapping = [*zip(variables, values, strict=True), *zip(state, before, strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            value, rest = function(*inputs)
        return value, (rest, [scope.get_current_value(v) for v in state])

    value, back, (rest, after) = jax.vjp(pure, [v.value for v in variables], inputs, has_aux=True)
    for variable, old, new in zip(state, before, after, strict=True):
        if new is not old:
            variable.assign(new)

    def gradients(by: KerasTensor | None = None) -> list[KerasTensor]:
        own, others = back(ops.ones_like(value) if by is None else by)
        return [*own, *others]

    return value, rest, gradients


class Adversarial(Model):
    """A generator and a discriminator that `keras.Model.fit` trains against each other.

    One step is Algorithm 1 of Goodfellow et al. (2014): the discriminator takes a step on real and
    generated images, then the generator takes one against the improved discriminator, from the same
    latent vectors. All that is not in that algorithm is off unless asked for.

    A network with a second input is given labels there: the discriminator the labels of the real
    images, the generator the same ones. So generated classes are as frequent as those of the
    reader's batches; a balanced reader makes them equally frequent.

    Args:
        generator: latent vectors (N, latent_dim), or ``[latents, labels (N,)]``, to images in
            [-1, 1].
        discriminator: images, or ``[images, labels]``, to what the objective takes.
        objective: see `cellaug.training.losses`.
        latent_dim: length of a latent vector; each element is drawn from N(0, 1).
        seed: of all that is drawn in training: latent vectors, then what augmentation needs.
        real_augmentation: changes real images alone, such as `Symmetries`.
        augmentation: changes real and generated images alike, such as `DifferentiableAugmentation`.
        penalty: on the discriminator's gradient, such as `R1`; always computed in float32.
        half_life: of the generator's moving average, in images; 0 for none. An image seen so long
            ago counts half (Karras et al. 2018).
        ramp_up: the half-life is at most this share of all images seen so far, so that the first
            weights are soon forgotten.
        d_steps: discriminator steps for one of the generator. The reader's batches are dealt out
            among them, so they must be that many times as large.
        clip: after each of its steps, the discriminator's weights are cut to [-clip, clip], as for
            the plain `Wasserstein` game; 0 for none.
    """

    def __init__(
        self,
        generator: Model,
        discriminator: Model,
        objective: Any,
        latent_dim: int,
        seed: int,
        *,
        real_augmentation: Any = None,
        augmentation: Any = None,
        penalty: Any = None,
        half_life: int = 0,
        ramp_up: float = 0.05,
        d_steps: int = 1,
        clip: float = 0.0,
    ):
        super().__init__(name="adversarial")
        self.generator = generator
        self.discriminator = discriminator
        self.objective = objective
        self.latent_dim = latent_dim
        self.real_augmentation, self.augmentation = real_augmentation, augmentation
        self.penalty, self.d_steps, self.clip = penalty, d_steps, clip
        self.half_life, self.ramp_up = half_life, ramp_up
        self.noise = keras.random.SeedGenerator(seed)
        self.averaged: Model | None = None
        if half_life:
            self.averaged = keras.models.clone_model(generator)
            self.averaged.set_weights(generator.get_weights())
            self.averaged.trainable = False
        # In a function, so that Keras does not take the copy's weights for more of its own.
        self._critic = _in_float32(discriminator) if penalty is not None else None
        names = ["d_loss", "g_loss", "d_real", "d_fake"]
        if len(discriminator.outputs) == 2:
            names += ["c_real", "c_fake"]
        if penalty is not None:
            names.append("penalty")
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
    def trained_generator(self) -> Model:
        """The generator to use: the moving average where there is one, else the generator."""
        return self.generator if self.averaged is None else self.averaged

    @property
    def choices(self) -> dict[str, Any]:
        """What the game's outcome depends on besides networks, optimizers and data, as JSON has it.

        An object, such as a penalty, is the name of its class and what it was made with.
        """

        def plain(value: Any) -> Any:
            if not hasattr(value, "__dict__"):
                return value
            return {"": type(value).__name__, **{k: plain(v) for k, v in vars(value).items()}}

        names = ("objective", "real_augmentation", "augmentation", "penalty", "half_life")
        names = (*names, "ramp_up", "d_steps", "clip", "latent_dim")
        return {name: plain(getattr(self, name)) for name in names}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Means over the epoch so far.

        The losses ``d_loss`` and ``g_loss``; ``d_real`` and ``d_fake``, the mean probability of
        being real that the discriminator gives to real and to generated images; where there are
        class logits ``c_real`` and ``c_fake``, the share of images in whose label the auxiliary
        classifier agrees; where there is a penalty ``penalty``, what it adds to a step's loss in
        the mean (it is part of ``d_loss``).
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
        """One round on a batch, `d_steps` updates of one network and one of the other."""
        count = ops.shape(images)[0] // self.d_steps
        for k in range(self.d_steps):
            part = slice(k * count, (k + 1) * count)
            real, classes = images[part], labels[part]
            latents = keras.random.normal((count, self.latent_dim), seed=self.noise)
            if self.real_augmentation is not None:
                real = self.real_augmentation(real, self.real_augmentation.draw(count, self.noise))
            seen = self._augmented(count)
            # Both players look at the same generated images, so they are computed once.
            fake, generator_gradients = self._generated(latents, classes)
            d_loss, (real_out, fake_out, penalty) = self._discriminator_step(
                real, fake, classes, seen
            )
        g_loss = self._generator_step(real, fake, classes, seen, generator_gradients)
        self._average(ops.shape(images)[0])

        values = {
            "d_loss": d_loss,
            "g_loss": g_loss,
            "d_real": probability(real_out),
            "d_fake": probability(fake_out),
            "penalty": penalty,
        }
        if "c_real" in self.trackers:
            for name, out in (("c_real", real_out), ("c_fake", fake_out)):
                named = ops.cast(ops.argmax(out[1], axis=-1), "int32")
                values[name] = ops.cast(named == ops.cast(classes, "int32"), "float32")
        for name, tracker in self.trackers.items():
            tracker.update_state(values[name])
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    def _generated(
        self, latents: KerasTensor, labels: KerasTensor
    ) -> tuple[KerasTensor, Callable[..., list[KerasTensor]]]:
        """Images, and what takes a gradient by them to those by the generator's variables."""
        generator, variables = self.generator, self.generator.trainable_variables

        def images() -> tuple[KerasTensor, None]:
            return generator(inputs_of(generator, latents, labels), training=True), None

        fixed = without(generator.variables, variables)
        fake, _, gradients = differentiate(images, variables, fixed)
        return fake, gradients

    def _judged(self, images: KerasTensor, labels: KerasTensor) -> Any:
        return self.discriminator(inputs_of(self.discriminator, images, labels), training=True)

    def _augmented(self, count: Any) -> Callable[[KerasTensor], KerasTensor]:
        """What the discriminator sees of images, with one drawing of the augmentation."""
        if self.augmentation is None:
            return lambda images: images
        drawn = self.augmentation.draw(count, self.noise)
        return lambda images: self.augmentation(images, drawn)

    def _discriminator_step(
        self, real: KerasTensor, fake: KerasTensor, labels: KerasTensor, seen: Callable
    ) -> tuple[KerasTensor, Any]:
        variables = self.discriminator.trainable_variables
        step = ops.convert_to_tensor(self.d_optimizer.iterations)
        mix = None
        if self.penalty is not None:
            mix = keras.random.uniform((ops.shape(real)[0], 1, 1, 1), seed=self.noise)
        shown, fake = seen(real), seen(fake)

        def loss() -> tuple[KerasTensor, Any]:
            real_out, fake_out = self._judged(shown, labels), self._judged(fake, labels)
            value = self.objective.discriminator(real_out, fake_out, labels)
            penalty = self._penalty(step, shown, fake, labels, mix)
            return value + penalty, (real_out, fake_out, penalty)

        fixed = without(self.discriminator.variables, variables)
        value, rest, gradients = differentiate(loss, variables, fixed)
        self.d_optimizer.apply(gradients(), variables)
        if self.clip:
            for variable in variables:
                variable.assign(ops.clip(variable, -self.clip, self.clip))
        return value, rest

    def _generator_step(
        self,
        real: KerasTensor,
        fake: KerasTensor,
        labels: KerasTensor,
        seen: Callable,
        generator_gradients: Callable[..., list[KerasTensor]],
    ) -> KerasTensor:
        def loss(fake: KerasTensor) -> tuple[KerasTensor, None]:
            fake_out = self._judged(seen(fake), labels)
            paired = getattr(self.objective, "paired", False)
            real_out = self._judged(seen(real), labels) if paired else None
            return self.objective.generator(fake_out, labels, real_out), None

        value, _, gradients = differentiate(loss, [], self.discriminator.variables, fake)
        (by_image,) = gradients()
        self.optimizer.apply(generator_gradients(by_image), self.generator.trainable_variables)
        return value

    def _penalty(
        self,
        step: KerasTensor,
        real: KerasTensor,
        fake: KerasTensor,
        labels: KerasTensor,
        mix: KerasTensor | None,
    ) -> KerasTensor:
        """What the penalty adds to the loss of this step: zero on most of them if it is lazy."""
        if self.penalty is None:
            return ops.zeros(())
        every = self.penalty.every

        def value() -> KerasTensor:
            points = self.penalty.points(real, fake, mix)
            slopes = (gradient_at(images, labels, self._critic) for images in points)
            return every * sum(self.penalty.value(slope) for slope in slopes)

        if every == 1:
            return value()
        return ops.cond(step % every == 0, value, lambda: ops.zeros(()))

    def _average(self, count: Any) -> None:
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
        """`generate_images` with `trained_generator`."""
        return generate_images(self.trained_generator, latents, labels, batch_size)


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


def gradient_at(
    images: KerasTensor, labels: KerasTensor, critic: Callable[[KerasTensor, KerasTensor], Any]
) -> KerasTensor:
    """∇D(x) at each image (N, H, W, C), in float32; can itself be differentiated."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(images)
            total = ops.sum(critic(images, labels))
        return tape.gradient(total, images)
    import jax

    return jax.grad(lambda x: ops.sum(critic(x, labels)))(images)


def _in_float32(discriminator: Model) -> Callable[[KerasTensor, KerasTensor], KerasTensor]:
    """The discriminator's logits without dropout, computed in float32 whatever its own policy is.

    Squares of gradients lose too much in sixteen bits.
    """
    twin = discriminator
    mixed = any(layer.compute_dtype != "float32" for layer in discriminator.layers)
    if mixed:

        def plain(layer: keras.Layer) -> keras.Layer:
            return type(layer).from_config({**layer.get_config(), "dtype": "float32"})

        twin = keras.models.clone_model(discriminator, clone_function=plain)

    def critic(images: KerasTensor, labels: KerasTensor) -> KerasTensor:
        inputs = inputs_of(discriminator, images, labels)
        if mixed:
            groups = (discriminator.trainable_variables, discriminator.non_trainable_variables)
            values = ([ops.convert_to_tensor(v) for v in group] for group in groups)
            out, _ = twin.stateless_call(*values, inputs, training=False)
        else:
            out = twin(inputs, training=False)
        return out[0] if isinstance(out, list | tuple) else out

    return critic


def inputs_of(network: Model, first: KerasTensor, labels: KerasTensor) -> Any:
    """What to call a network with: labels go with the first input if it has a second."""
    return [first, labels] if len(network.inputs) == 2 else first


def without(
    variables: Sequence[keras.Variable], left_out: Sequence[keras.Variable]
) -> list[keras.Variable]:
    """The variables that are not among those left out."""
    ids = {id(v) for v in left_out}
    return [v for v in variables if id(v) not in ids]
