"""Everything that depends on the backend (TensorFlow or JAX) or the machine."""

import resource
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import keras
from keras import KerasTensor as Tensor
from keras import Model, Variable, ops


def use_xla() -> bool:
    """``jit_compile``: True on JAX; on TensorFlow these networks are four times slower with XLA."""
    return keras.backend.backend() == "jax"


def accelerators() -> list[str]:
    """The devices that Keras computes on besides the processor, such as "NVIDIA H200"."""
    found = [name for name in keras.distribution.list_devices() if not name.startswith("cpu")]
    if not found:
        return []
    if keras.backend.backend() == "jax":
        import jax

        return [device.device_kind for device in jax.local_devices()]
    import tensorflow as tf

    cards = tf.config.list_physical_devices("GPU")
    details = map(tf.config.experimental.get_device_details, cards)
    return [each["device_name"] for each in details if "device_name" in each] or found


def leads() -> bool:
    """Whether this process is the first of those that train together: it alone writes files."""
    if keras.backend.backend() != "jax":
        return True
    import jax

    return jax.process_index() == 0


def peak_memory() -> int:
    """Most bytes taken so far, of an accelerator that tells it (on JAX), else of this process."""
    if keras.backend.backend() == "jax":
        import jax

        told = [device.memory_stats() or {} for device in jax.local_devices()]
        if most := max(stats.get("peak_bytes_in_use", 0) for stats in told):
            return most
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def differentiate(
    function: Callable[..., tuple[Tensor, Any]],
    variables: Sequence[Variable],
    state: Sequence[Variable],
    *inputs: Tensor,
) -> tuple[Tensor, Any, Callable[..., list[Tensor]]]:
    """A function's value and its gradients (reverse mode), on either backend.

    The function takes the inputs to a tensor and any other result; `state` is all that it reads or
    updates, such as dropout's seeds. Returns both results, and a function, to be called once, from
    a gradient by the tensor (1 unless given) to the gradients by the variables and the inputs.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value, rest = function(*inputs)
        sources = [*(v.value for v in variables), *inputs]
        return value, rest, lambda by=None: tape.gradient(value, sources, output_gradients=by)
    import jax

    state = without(state, variables)
    before = [v.value for v in state]

    def pure(values: list, inputs: tuple) -> tuple:
        mapping = [*zip(variables, values, strict=True), *zip(state, before, strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            value, rest = function(*inputs)
        return value, (rest, [scope.get_current_value(v) for v in state])

    aux: tuple[Any, list[Any]]
    value, back, aux = jax.vjp(pure, [v.value for v in variables], inputs, has_aux=True)
    for variable, old, new in zip(state, before, aux[1], strict=True):
        if new is not old:
            variable.assign(new)
    one = ops.ones_like(value)
    return value, aux[0], lambda by=one: [*chain(*back(by))]


def gradient_at(images: Tensor, labels: Tensor, critic: Callable[[Tensor, Tensor], Any]) -> Tensor:
    """∇D(x) at each image (N, H, W, C), in float32; can itself be differentiated."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(images)
            total = ops.sum(critic(images, labels))
        return tape.gradient(total, images)
    import jax

    return jax.grad(lambda x: ops.sum(critic(x, labels)))(images)


def without(variables: Sequence[Variable], left_out: Sequence[Variable]) -> list[Variable]:
    """The variables but those left out."""
    ids = {id(v) for v in left_out}
    return [v for v in variables if id(v) not in ids]


def run_step(model: Model, step: Callable[..., dict], *given: Any) -> Any:
    """Run ``step(images, labels)`` as Keras's `train_step`: (data) on TensorFlow, (state, data)."""
    images, labels, _ = keras.utils.unpack_x_y_sample_weight(given[-1])
    if keras.backend.backend() == "tensorflow":
        return step(images, labels)
    groups = [model.trainable_variables, model.non_trainable_variables]
    groups += [model.optimizer.variables, model.metrics_variables]
    mapping = zip(chain(*groups), chain(*given[0]), strict=True)
    with keras.StatelessScope(state_mapping=list(mapping)) as scope:
        logs = step(images, labels)
    return logs, tuple([scope.get_current_value(v) for v in group] for group in groups)


def unfilled(build: Callable[[], Model]) -> Model:
    """A network whose weights are set next: traced on JAX, which would take 5 s to draw them."""
    if keras.backend.backend() == "tensorflow":
        return build()
    import jax

    built: list[Model] = []
    jax.eval_shape(lambda: built.append(build()))
    (model,) = built
    for number, seed in enumerate(without(model.variables, model.weights)):
        seed.assign([number, 0])
    return model


def prompt(reader: keras.utils.PyDataset) -> Any:
    """A reader for `keras.Model.fit`, without TensorFlow's autotuner, which delays epochs' ends."""
    if keras.backend.backend() != "tensorflow":
        return reader
    import tensorflow as tf

    specs = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in reader[0])
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_generator(
        lambda: (reader[index] for index in range(len(reader))), output_signature=specs
    ).prefetch(1)
    return data.apply(tf.data.experimental.assert_cardinality(len(reader))).with_options(options)
