"""Blood cell data augmentation with generative adversarial networks.

It is imported before TensorFlow in every file, because it sets what TensorFlow reads when loaded.
"""

import os
import sys
from importlib import import_module
from typing import Any

from cellaug.quiet import QuietTensorFlow

__version__ = "0.1.0"

# Faster on all processors, but by itself TensorFlow uses oneDNN only on those with AVX-512.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "tensorflow" not in sys.modules:
    sys.meta_path.insert(0, QuietTensorFlow())


def __getattr__(name: str) -> Any:
    """``load_generator`` and others like it, imported when they are first asked for."""
    homes = {"load_generator": "generators", "load_discriminator": "generators"}
    if home := (homes | {"load_classifier": "classifiers"}).get(name):
        return getattr(import_module(f"cellaug.{home}"), name)
    raise AttributeError(f"module 'cellaug' has no attribute '{name}'")
