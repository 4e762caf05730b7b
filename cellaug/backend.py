"""What depends on the backend and the machine that Keras computes with."""

import keras


def use_xla() -> bool:
    """What to give as ``jit_compile`` to `keras.Model.compile`.

    True on JAX, which has nothing else. False on TensorFlow, where XLA makes these networks about
    four times slower on a CPU, and Keras would choose it.
    """
    return keras.backend.backend() == "jax"


def accelerators() -> list[str]:
    """What Keras computes on besides the processor, by name, such as "NVIDIA H200"."""
    found = [name for name in keras.distribution.list_devices() if not name.startswith("cpu")]
    if found and keras.backend.backend() == "jax":
        import jax

        return [device.device_kind for device in jax.local_devices()]
    if found:
        import tensorflow as tf

        cards = tf.config.list_physical_devices("GPU")
        details = map(tf.config.experimental.get_device_details, cards)
        return [each["device_name"] for each in details if "device_name" in each] or found
    return found


def accelerated() -> bool:
    """Whether Keras computes on something else than a processor."""
    return bool(accelerators())
