"""Blood cell data augmentation with generative adversarial networks.

Importing the package is cheap: TensorFlow, JAX, Jupyter and Matplotlib are imported by the
modules that use them, when they are used. It comes before TensorFlow in every file, because it
sets what TensorFlow reads when it is loaded.
"""

import os
from typing import Any

__version__ = "0.1.0"

# Without being told, TensorFlow uses oneDNN's convolutions only on processors with AVX-512, but
# they are faster than its own on the others too.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def __getattr__(name: str) -> Any:
    """``load_generator`` and ``load_discriminator``, imported when they are first asked for."""
    if name in ("load_generator", "load_discriminator"):
        from cellaug import augmentation

        return getattr(augmentation, name)
    raise AttributeError(f"module 'cellaug' has no attribute '{name}'")
