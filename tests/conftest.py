"""Imported before any test: the package sets what TensorFlow reads when it is loaded."""

import cellaug

import pytest

assert cellaug.__version__


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, and in order, what two processes must not do at once.

    The chapters read each other's results under build/smoke, which the tests of the command line
    write too; everything else is divided by file.
    """
    for item in items:
        file = item.path.name
        smoke = file.endswith(".ipynb") or file == "test_book.py"
        item.add_marker(pytest.mark.xdist_group("smoke" if smoke else file))
