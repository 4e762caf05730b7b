"""Several devices, and several processes, that train one network together (Keras on JAX)."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from cellaug.errors import DataError

import keras

LAUNCHERS: Mapping[str, tuple[str, ...]] = {
    "SLURM": ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_MCA_orte_hnp_uri"),
    "Kubernetes": ("JOB_COMPLETION_INDEX", "KUBERNETES_SERVICE_HOST"),
}
"""What each sets in the processes that it starts. The first says how many there are; that of
Kubernetes says which of them a process is."""

SINGLE = "several processes train together only with Keras on JAX: set KERAS_BACKEND=jax"


@dataclass(frozen=True)
class Team:
    """The processes that train together, and which of them this is."""

    process: int = 0
    processes: int = 1
    devices: int = 1  # of all processes

    def share(self, batch_size: int) -> int:
        """The images of a batch that this process reads; DataError if they cannot be shared."""
        if batch_size % self.devices:
            raise DataError(f"batch_size={batch_size} cannot be shared by {self.devices} devices: "
                            "give a multiple of their number")  # fmt: skip
        return batch_size // self.processes


def launcher() -> str:
    """Which launcher started this process as one of several; "" for none."""
    for name, (first, *others) in LAUNCHERS.items():
        several = int(os.environ.get(first) or 1) > 1
        if name == "Kubernetes":  # how many there are, only that package can ask
            several = os.environ.get(first) != "0" or find_spec("kubernetes") is not None
        if several and all(key in os.environ for key in (first, *others)):
            return name
    return ""


def join(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Make this process one of several, before anything else is computed with Keras.

    Without arguments it is one if a launcher of `LAUNCHERS` says so, as `jax.distributed` finds it.
    `coordinator` is the address HOST:PORT of process 0. DataError for arguments that do not belong
    together, and for another backend than JAX.
    """
    given = [x is not None for x in (coordinator, processes, process)]
    if any(given) and not all(given):
        raise DataError("--coordinator, --processes and --process belong together: give all three")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise DataError(f"--process {process}: expected from 0 to {processes - 1}, as there are "
                        f"{processes} processes")  # fmt: skip
    if not any(given) and not launcher():
        if "JOB_COMPLETION_INDEX" in os.environ:
            print("this pod of an indexed job trains alone: for several pods give --coordinator")
        return
    if keras.backend.backend() != "jax":
        raise DataError(f"{launcher() or '--coordinator'}: {SINGLE}")
    try:
        keras.distribution.initialize(coordinator, processes, process)
    except (RuntimeError, ValueError) as error:  # of JAX, which does not find the others
        fix = "give --coordinator HOST:PORT, --processes N and --process K"
        found = " ".join(str(error).split())
        raise DataError(f"{launcher() or coordinator}: the processes do not find each other "
                        f"({found}): {fix}") from error  # fmt: skip


def agreed(number: float, team: Team) -> float:
    """The number that the first process has, in all of them."""
    if team.processes == 1:
        return number
    from jax.experimental.multihost_utils import broadcast_one_to_all

    return float(broadcast_one_to_all(number))


@contextmanager
def together() -> Iterator[Team]:
    """Networks that are built in this block are trained by all devices of all processes.

    Every batch is spread over them, weights are copies. Means, batch statistics and all that is
    drawn are those of the whole batch, so a result does not depend on how many devices there are,
    but for rounding. On TensorFlow there is one device.
    """
    if keras.backend.backend() != "jax":
        yield Team()
        return
    import jax

    team = Team(jax.process_index(), jax.process_count(), jax.device_count())
    if team.devices == 1:
        yield team
        return
    try:
        with keras.distribution.DataParallel(auto_shard_dataset=False).scope():
            yield team
    except jax.errors.JaxRuntimeError as error:
        if team.processes == 1:
            raise
        what = f"{error}".partition("\n")[0]
        print(f"cellaug: process {team.process} has lost the others ({what}). Start all again: "
              "they go on from the last checkpoint", file=sys.stderr, flush=True)  # fmt: skip
        os._exit(1)  # the usual end would wait for them
