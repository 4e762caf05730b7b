"""Training on several devices and in several processes gives what one device gives."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

from cellaug import cli_study
from cellaug.book.chapter import project_root
from cellaug.data.images import write_png
from cellaug.training import Recipe

import numpy as np
import pytest
import yaml
from processes import QUICK

EXAMPLES = ("train.slurm", "train-job.yaml")
TRAIN = """
import os, sys, time
from pathlib import Path
sys.modules["tensorflow"] = None  # a job on JAX does without it, and is three seconds faster here
import cellaug.train as work
from cellaug import cli
from cellaug.data import reader
from cellaug.evaluation.collapse import Diversity

work.SAVE_SECONDS = 0
if flag := os.environ.get("PAUSE"):  # stay in the middle until a signal comes
    usual = Diversity.on_epoch_end

    def slow(self, epoch, logs=None):
        usual(self, epoch, logs)
        if epoch == 1:
            Path(flag).touch()
            time.sleep(600)

    Diversity.on_epoch_end = slow
if log := os.environ.get("SEEN"):  # which images were read in training
    read = reader.Reader._read

    def logged(self, indices):
        with open(log, "a") as file:
            file.write(" ".join(map(str, (self.epoch, *indices))) + "\\n")
        return read(self, indices)

    reader.Reader._read = logged
sys.exit(cli.main(sys.argv[1:]))
"""
IMAGES, STEPS, BATCH = 80, 20, 16
CHOICES = {
    "generator_depth": 16,
    "discriminator_depth": 8,
    "batch_size": BATCH,
    "augmentation": 0.4,
}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Noise of two classes; 80 images are for training, so that an epoch is five steps."""
    root, rng = tmp_path_factory.mktemp("scale") / "cells", np.random.default_rng(0)
    root.mkdir()
    rows = ["path,label,split"]
    sides = ["train"] * IMAGES + ["validation", "test"] * 4
    for k, side in enumerate(sides):
        write_png(root / f"{k}.png", rng.integers(0, 256, (16, 16, 3), np.uint8))
        rows.append(f"{k}.png,{'ab'[k // 2 % 2]},{side}")
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    return root / "table.csv"


class Job:
    """`cellaug train` on JAX, in double precision, by some processes of some devices each."""

    def __init__(self, cells, out, processes=1, devices=1, slurm=False, **environment):
        home = cells.parents[1]
        (home / "keras.json").write_text('{"floatx": "float64"}')
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        command = [sys.executable, "-c", TRAIN, "train", str(cells), "--out", str(out)]
        command += ["--size", "16", "--images", str(STEPS * BATCH)]
        command += [word for key, value in CHOICES.items() for word in ("--set", f"{key}={value}")]
        given = os.environ | {
            "KERAS_BACKEND": "jax", "KERAS_HOME": str(home), "JAX_ENABLE_X64": "1",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {QUICK}",
            "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "CELLAUG_CACHE": str(home / "cache"),
        }  # fmt: skip
        self.parts = []
        for k in range(processes):
            several = ["--coordinator", f"127.0.0.1:{port}"]
            several += ["--processes", str(processes), "--process", str(k)]
            own = {key: f"{value}{k}" for key, value in environment.items()}
            if slurm:  # what `srun` sets in each process
                own |= {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost"}
                own |= {"SLURM_NTASKS": str(processes), "SLURM_PROCID": str(k)}
                own |= {"SLURM_LOCALID": str(k), "JAX_COORDINATOR_PORT": port}
            if "PAUSE" in own and k == 0 < processes - 1:
                del own["PAUSE"]  # the first one waits for the others
            self.parts.append(subprocess.Popen(
                command + several * (processes > 1 and not slurm), env=given | own, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            ))  # fmt: skip

    def end(self, status=0):
        """What each process wrote, once all have ended so."""
        told = [part.communicate(timeout=300) for part in self.parts]
        assert [part.returncode for part in self.parts] == [status] * len(self.parts), told
        return told


def test_the_examples_are_valid_and_their_options_exist():
    """SLURM's script is bash; Kubernetes's file has an indexed job and the service of its pods."""
    script, manifest = (project_root() / "book/examples" / name for name in EXAMPLES)
    subprocess.run(["bash", "-n", str(script)], check=True)
    service, job = yaml.safe_load_all(manifest.read_text())
    spec = job["spec"]
    pod = spec["template"]["spec"]
    assert (service["kind"], job["kind"], spec["completionMode"]) == ("Service", "Job", "Indexed")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    (command,) = pod["containers"][0]["args"]
    assert f"--processes {spec['completions']} " in command
    host = f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert f"--coordinator {host}:" in command
    known = {name for option in cli_study.train.params for name in option.opts}
    for text in (command, script.read_text().partition("cellaug train")[2]):
        assert set(re.findall(r" (--[a-z-]+)", text)) <= known
        for choice in re.findall(r"--set (\w+)=", text):
            assert hasattr(Recipe, choice)


def state(out):
    with np.load(out / "checkpoint.npz", allow_pickle=False) as file:
        history = json.loads(file["record"].item())["history"]
        arrays = {key: file[key] for key in file.files if key != "record"}
    return arrays, [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def alike(out, other):
    """Weights, averages, moments and losses agree to 1e-5 of the largest number of each array."""
    (one, losses), (two, others) = state(out), state(other)
    assert len(losses) == 4 and one.keys() == two.keys()
    for key, value in one.items():
        np.testing.assert_allclose(value, two[key], 0, 1e-5 * np.abs(value).max(), err_msg=key)
    for row, row_2 in zip(losses, others, strict=True):
        assert row == pytest.approx(row_2, rel=1e-5)


@pytest.fixture(scope="module")
def trained(cells, tmp_path_factory):
    """One device, four of one process, and two processes of two devices, side by side.

    The two are started as by SLURM, and the images that each of them reads are noted.
    """
    folder = tmp_path_factory.mktemp("trained")
    one, four = Job(cells, folder / "one"), Job(cells, folder / "four", 1, 4)
    two = Job(cells, folder / "two", 2, 2, True, SEEN=f"{folder}/seen")
    ((told, _),) = one.end()
    assert "20 steps of 16 images, drawn from 80 real ones; " in told
    ((told, _),) = four.end()
    assert "on 4 devices in 1 process;" in told
    (told, _), (silent, _) = two.end()
    assert "on 4 devices in 2 processes" in told and "two: 4 epochs, 320 images" in told
    assert silent.split("\n")[-2] == str(folder / "two")  # after what Gloo says
    return folder


def test_four_devices_train_as_one_does(trained):
    alike(trained / "one", trained / "four")


def test_two_processes_train_as_one_does_and_see_each_image_once_an_epoch(trained):
    alike(trained / "one", trained / "two")
    seen = [(trained / f"seen{k}").read_text().split("\n")[:-1] for k in range(2)]
    for epoch in range(4):
        own = [{*map(int, line.split()[1:])} for lines in seen for line in lines
               if line.split()[0] == str(epoch)]  # fmt: skip
        assert all(len(part) == BATCH // 2 for part in own)
        assert {image for part in own for image in part} == set(range(IMAGES))
    first, second = ({*map(int, line.split()[1:])} for line in (seen[0][0], seen[1][0]))
    assert not first & second


def test_a_job_of_which_one_process_is_killed_goes_on_to_the_same_bits(cells, trained, tmp_path):
    """And, from where it stood, in one process with four devices to the same but for rounding."""
    out, flag = tmp_path / "two", tmp_path / "flag"
    job = Job(cells, out, 2, 2, PAUSE=str(flag))
    until = time.monotonic() + 200
    while not flag.with_name("flag1").exists():
        assert time.monotonic() < until and job.parts[1].poll() is None
        time.sleep(0.2)
    job.parts[1].send_signal(signal.SIGKILL)
    _, error = job.parts[0].communicate(timeout=60)  # it does not wait for the one that is gone
    assert job.parts[0].returncode == 1 and "process 0 has lost the others" in error
    assert "Start all again: they go on from the last checkpoint" in error
    assert not out.exists()
    kept = out.with_name("two.training")
    other = tmp_path / "four"
    kept.rename(other.with_name("four.training"))
    kept.mkdir()
    for file in other.with_name("four.training").glob("*.*"):
        (kept / file.name).write_bytes(file.read_bytes())
    jobs = Job(cells, out, 2, 2), Job(cells, other, 1, 4)
    for job in jobs:
        job.end()
    (one, losses), (two, others) = state(trained / "two"), state(out)
    assert losses == others and all(np.array_equal(one[key], two[key]) for key in one)
    alike(out, other)
