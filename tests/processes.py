"""Test code in a process of its own, where Keras can have another backend."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
PLACES = TESTS / "startup", TESTS, TESTS.parent, TESTS.parent / "notebooks"
COMPILED = tempfile.TemporaryDirectory()  # what JAX compiled, for the next process
QUICK = " ".join((
    "--xla_backend_optimization_level=1", "--xla_cpu_use_fusion_emitters=false",
    "--xla_llvm_disable_expensive_passes=true",
))  # fmt: skip
"""XLA's flags with which JAX compiles in half the time; steps of small networks are as fast."""


def python(code: str, backend: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code that may import the test modules; its output is captured as text."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            **({"XLA_FLAGS": QUICK} if backend == "jax" else {}),
            "PYTHONPATH": os.pathsep.join(map(str, PLACES)),
            "JAX_COMPILATION_CACHE_DIR": COMPILED.name,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **environment,
        },
        capture_output=True,
        text=True,
    )
