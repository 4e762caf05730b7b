"""Import TensorFlow without what it writes on standard error."""

import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TextIO


@contextmanager
def kept_quiet() -> Iterator[TextIO]:
    """Drop what is written to standard error, also by C++, unless the block raises.

    Yields standard error as it was, for what is to be seen all the same.
    """
    with tempfile.TemporaryFile() as written, os.fdopen(os.dup(2), "w") as terminal:
        sys.stderr.flush()
        os.dup2(written.fileno(), 2)
        try:
            yield terminal
        except Exception:
            written.seek(0)
            terminal.buffer.write(written.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal.fileno(), 2)


class QuietTensorFlow:
    """A finder for `sys.meta_path`: TensorFlow is imported without its lines on standard error.

    They are written before it knows of TF_CPP_MIN_LOG_LEVEL. Later only its errors are heard.
    """

    def __init__(self) -> None:
        self.looking = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """TensorFlow's own spec, whose loader keeps quiet; None for other modules."""
        if name != "tensorflow" or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec and spec.loader:
            load = kept_quiet()(spec.loader.exec_module)

            def quiet(module: ModuleType) -> None:
                load(module)
                # It warns of every new network that predicts; there are many, on purpose.
                logging.getLogger("tensorflow").setLevel(logging.ERROR)

            setattr(spec.loader, "exec_module", quiet)  # noqa: B010 - mypy
        return spec
