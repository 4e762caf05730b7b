"""Imported before any test: the package sets what TensorFlow reads when it is loaded."""

import cellaug

assert cellaug.__version__
