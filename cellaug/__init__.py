"""Blood cell data augmentation with generative adversarial networks.

Importing the package is cheap: TensorFlow, JAX, Jupyter and Matplotlib are imported by the
modules that use them, when they are used.
"""

__version__ = "0.1.0"
