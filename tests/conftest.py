"""Imported before any test: the package sets what TensorFlow reads when it is loaded."""

import os
import runpy
from pathlib import Path

import cellaug

import pytest

STARTUP = Path(__file__).with_name("startup")  # see the file in it
runpy.run_path(str(STARTUP / "sitecustomize.py"))
# The kernels of nbval import the studies, as those of `cellaug run` do.
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
places = [str(STARTUP), str(NOTEBOOKS), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(places)

assert cellaug.__version__

# These take longest. They begin first, so that the processes of `make test` end together.
# xdist gives each process two at once: the second of those with most to do is a short one.
LONGEST = ["test_book.py", "test_study_augmentation.py", "test_study.py", "test_size.py"]
LONGEST += ["test_variants.py", "test_conditional.py", "test_run.py", "test_training.py"]
LONGEST += ["test_lab.py", "test_scale.py", "test_fidelity.py", "test_augmentation.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: [name not in item.nodeid for name in LONGEST])
