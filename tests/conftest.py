"""Imported before any test: the package sets what TensorFlow reads when it is loaded."""

import os
from pathlib import Path

import cellaug

import pytest

# The kernels of nbval import the studies, as those of `cellaug run` do.
NOTEBOOKS = str(Path(__file__).parents[1] / "notebooks")
os.environ["PYTHONPATH"] = os.pathsep.join([NOTEBOOKS, os.environ.get("PYTHONPATH", "")])

assert cellaug.__version__

# These take longest. They begin first, so that the processes of `make test` end together.
LONGEST = ["test_study.py", "test_book.py", "test_conditional.py", "test_references.py"]
LONGEST += [
    "test_variants.py",
    "test_study_augmentation.py",
    "test_run.py",
    "test_training.py",
    "test_fidelity.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: [name not in item.nodeid for name in LONGEST])
