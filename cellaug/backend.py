"""What depends on the backend and the machine that Keras computes with."""

import keras


def use_xla() -> bool:
    """What to give as ``jit_compile`` to `keras.Model.compile`.

    True on JAX, which has nothing else. False on TensorFlow, where XLA makes these networks about
    four times slower on a CPU, and Keras would choose it.
    """
    return keras.backend.backend() == "jax"


def accelerated() -> bool:
    """Whether Keras computes on something else than a processor."""
    return any(not name.startswith("cpu") for name in keras.distribution.list_devices())
