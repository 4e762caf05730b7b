"""Python runs this first in every process of the tests that finds it on PYTHONPATH."""

import gc

# Nearly all that is made on loading or compiling stays: looking for garbage a hundred times less
# often makes loading TensorFlow a quarter faster.
gc.set_threshold(70_000, 20, 100)
