"""Do the runs of a study on a Dask cluster: one that is started here, or another."""

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cellaug.errors import DataError
from cellaug.files import MINUTE
from cellaug.study.plan import Run, ordered, require_choices
from cellaug.study.worker import RESULT, apart, clear
from cellaug.training.backends import accelerators
from cellaug.training.progress import duration

import dask
from dask.distributed import Client, Future, LocalCluster, wait
from joblib import cpu_count

MEMORY = 3 * 2**30
"""Bytes that a worker needs for images of 64 pixels, with Keras."""

CONNECT = 10
"""Seconds to wait for a scheduler's answer."""

KILLS = 5
"""Workers that a run may lose before the study gives it up."""


def workers_here() -> tuple[int, int]:
    """How many workers this machine bears, and the threads that each of them computes with."""
    cores = cpu_count()
    if cards := len(accelerators()):
        return cards, max(1, cores // cards)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = max(1, min(cores, memory // MEMORY))
    return count, max(1, cores // count)


def local_cluster(workers: int | None = None) -> LocalCluster:
    """A cluster of worker processes on this machine, as many as it bears."""
    count, threads = workers_here()
    count, threads = (workers, max(1, count * threads // workers)) if workers else (count, threads)
    limits = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": os.environ.get("KERAS_BACKEND", "tensorflow"),
    }
    flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    environment = dict.fromkeys(limits, str(threads)) | quiet | {"XLA_FLAGS": flags}
    with _uninterrupted(), dask.config.set({
        "distributed.nanny.pre-spawn-environ": environment,
        "distributed.scheduler.allowed-failures": KILLS,
        "distributed.worker.memory.terminate": False,
    }):  # fmt: skip
        return LocalCluster(
            n_workers=count, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0",
            silence_logs="ERROR",
        )  # fmt: skip


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that are started here leave Ctrl-C to this one, which closes them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say so, and only that one is interrupted
        return
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def carry_out(
    runs: Sequence[Run], folder: Path, scheduler: str = "", workers: int | None = None,
    hours: float | None = None,
) -> list[str]:  # fmt: skip
    """Do all runs that are not done yet, and print how far it is; returns the names of those left.

    Results are folders in `folder`, which every worker must reach under this path; so are
    checkpoints, with which a run whose worker was killed goes on. `scheduler` is the address of a
    Dask cluster, else one is started here, of `workers` processes. After `hours` no further run is
    begun. Raises DataError where a run fails, after the others have ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    every = ordered(runs)
    require_choices(every)
    todo = [run for run in every if not _is_done(folder, run.name)]
    if not todo:
        return []
    cluster = None if scheduler else local_cluster(workers)
    try:
        with _client(scheduler or cluster) as client:
            print(f"{len(todo)} of {len(every)} runs to do; dashboard: {client.dashboard_link}")
            return _wait(client, todo, folder, hours)
    finally:
        # Said of a client that was interrupted while it closed.
        warnings.filterwarnings("ignore", "coroutine 'Client._close'", RuntimeWarning)
        if cluster is not None:
            cluster.close()
            for run in todo:
                clear(folder, run.name)


def _client(scheduler: str | LocalCluster | None) -> Client:
    try:
        return Client(scheduler, timeout=CONNECT)
    except OSError as error:
        raise DataError(f"no Dask scheduler answers at {scheduler}: {error}") from error


def at_once(scheduler: str = "", workers: int | None = None) -> int:
    """How many runs go on at once: on a scheduler's workers, or as many as are started here."""
    if not scheduler:
        return workers or workers_here()[0]
    with _client(scheduler) as client:
        return max(1, sum(client.nthreads().values()))


def _wait(client: Client, todo: list[Run], folder: Path, hours: float | None) -> list[str]:
    began, waiting = time.monotonic(), list(todo)
    done: list[str] = []
    seconds: dict[str, list[float]] = {}
    failures: dict[str, Any] = {}
    running: dict[str, Future] = {}
    abreast = max(1, sum(client.nthreads().values()))

    def submit() -> None:
        """Keep a little more than all workers busy, in the order of the plan."""
        late = hours is not None and time.monotonic() - began > 3600 * hours
        for run in list(waiting):
            if late or len(running) >= abreast:
                return
            names = [other.name for other in run.needs]
            if any(name in failures for name in names):
                failures[run.name] = "what it needs has failed"
                waiting.remove(run)
            elif all(n not in running and _is_done(folder, n) for n in names):
                running[run.name] = client.submit(
                    apart, run.name, dict(run.settings), str(folder), run.before,
                    key=run.name, pure=False,
                )  # fmt: skip
                waiting.remove(run)

    submit()
    while running:
        ended = _ended(running)
        for name in ended:
            future = running.pop(name)
            if future.status == "finished":
                done.append(name)
                seconds.setdefault(name.partition("-")[0], []).append(future.result()["seconds"])
                left = _left(todo, done, seconds, abreast)
                took = duration(seconds[name.partition("-")[0]][-1])
                print(f"{len(done)} of {len(todo)}: {name}, {took}; about {left} left", flush=True)
            else:
                failures[name] = future.exception()
                print(f"{name} failed: {failures[name]}", flush=True)
        if not ended:
            left = f"; about {_left(todo, done, seconds, abreast)} left" if done else ""
            at_work = f"at work: {', '.join(running)}{left}; dashboard: {client.dashboard_link}"
            print(f"{len(done)} of {len(todo)} runs done, {at_work}", flush=True)
        submit()
    if failures:
        name, error = next(iter(failures.items()))
        raise DataError(f"{len(failures)} runs failed, the first of them {name}: {error}")
    return [run.name for run in waiting]


def _ended(running: dict[str, Future]) -> list[str]:
    """The names of the runs that have ended, as soon as one has; none if a minute goes by."""
    with suppress(TimeoutError):
        wait(list(running.values()), MINUTE, "FIRST_COMPLETED")
    return [name for name, future in running.items() if future.done()]


def _is_done(folder: Path, name: str) -> bool:
    return (folder / name / RESULT).is_file()


def _left(todo: list[Run], done: list[str], seconds: dict[str, list[float]], abreast: int) -> str:
    """The time that is left, from the mean time of each kind of run so far."""
    known = [s for times in seconds.values() for s in times]
    usual = sum(known) / len(known)
    left = [run for run in todo if run.name not in done]
    means = {kind: sum(times) / len(times) for kind, times in seconds.items()}
    total = sum(means.get(run.settings["task"], usual) for run in left)
    return duration(total / min(abreast, max(1, len(left))))
