"""Imported before any test: the package sets what TensorFlow reads when it is loaded."""

import os
from pathlib import Path

import cellaug

# The kernels of nbval import the studies, as those of `cellaug run` do.
NOTEBOOKS = str(Path(__file__).parents[1] / "notebooks")
os.environ["PYTHONPATH"] = os.pathsep.join([NOTEBOOKS, os.environ.get("PYTHONPATH", "")])

assert cellaug.__version__
