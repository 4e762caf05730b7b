"""What a worker of the cluster does: it has the runs done in a process beside it.

Workers import nothing else of the study, so that they start at once.
"""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from cellaug.errors import DataError

RESULT = "run.json"
"""The file whose presence says that a run is finished."""

_HERE = threading.local()


def clear(folder: Path, name: str) -> None:
    """Remove what a worker that was killed left of a run: folders, checkpoints half written."""
    for left in folder.glob(f".*{name}.*.part"):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def apart(name: str, settings: dict, folder: str, needs: dict[str, str]) -> dict:
    """Do a run (`tasks.perform`) in a process beside this one; returns its record.

    Keras draws initial weights from Python's global seed, which a worker's other threads use too.
    The process does one run after another and ends when the worker does. Raises DataError where a
    run is refused, RuntimeError where it fails or its process is killed.
    """
    child: subprocess.Popen[str] | None = getattr(_HERE, "child", None)
    if child is None or child.poll() is not None:
        # -P: a folder called cellaug may lie where the study was started
        command = [sys.executable, "-P", "-m", "cellaug.study.tasks"]
        child = _HERE.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
    assert child.stdin and child.stdout
    job = {"name": name, "settings": settings, "folder": folder, "needs": needs}
    child.stdin.write(json.dumps(job) + "\n")
    child.stdin.flush()
    if not (line := child.stdout.readline()):
        raise RuntimeError(f"its process ended with status {child.wait()}")
    answer = json.loads(line)
    if "refused" in answer:
        raise DataError(answer["refused"])
    if "failed" in answer:
        raise RuntimeError(answer["failed"])
    return json.loads((Path(folder) / name / RESULT).read_text("utf-8"))
