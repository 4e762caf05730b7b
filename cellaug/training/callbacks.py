"""Callbacks for `keras.Model.fit`."""

import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from cellaug.training.adversarial import generate_images
from cellaug.training.checkpoint import write_npz

import keras
import numpy as np


class StopOnNonFinite(keras.callbacks.Callback):
    """Stops with FloatingPointError, naming label, epoch and step, at the first NaN or infinity."""

    def __init__(self, label: str):
        super().__init__()
        self.label = label
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Remember the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Look at the means over the epoch so far: one bad step makes them bad."""
        for name, value in (logs or {}).items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{self.label}: {name} is {value} in epoch {self.epoch + 1}, step {batch + 1}. "
                    "Try a smaller learning rate."
                )


class Progress(keras.callbacks.Callback):
    """One line on standard output: rewritten about every second for a person, one line in the end.

    Where standard output is neither a terminal nor a notebook, only the last line is written.

    Args:
        label: what is trained, such as "vanilla GAN".
        epochs: how many in all, those of an earlier, interrupted run among them.
        steps: how many in an epoch.
        images: how many in an epoch.
        seconds: how long the earlier epochs took.
    """

    def __init__(self, label: str, epochs: int, steps: int, images: int, seconds: float = 0.0):
        super().__init__()
        self.label = label
        self.epochs = epochs
        self.steps = steps
        self.images = images
        self.begun = time.monotonic() - seconds
        self.epoch = 0
        self.shown = 0.0
        self.width = 0
        # A notebook kernel says that it is no terminal, but it shows a line that is rewritten.
        kernel = type(sys.stdout).__module__.startswith("ipykernel")
        self.watched = kernel or sys.stdout.isatty()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Remember the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Rewrite the line if a second has gone by."""
        now = time.monotonic()
        if self.watched and now - self.shown >= 1:
            self.shown = now
            where = f"epoch {self.epoch + 1} of {self.epochs}, step {batch + 1} of {self.steps}"
            self._write(f"{self.label}: {where}, {self._spent()}{numbers(logs)}")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Remember the epoch's numbers for the last line."""
        self.epoch = epoch + 1
        self.last = dict(logs or {})

    def on_train_end(self, logs: dict | None = None) -> None:
        """Write the line that stays."""
        epochs = f"{self.epoch:,} epoch" + ("" if self.epoch == 1 else "s")
        images = f"{self.epoch * self.images:,} images"
        self._write(f"{self.label}: {epochs}, {images}, {self._spent()}{numbers(self.last)}")
        print(flush=True)

    def _spent(self) -> str:
        return duration(time.monotonic() - self.begun)

    def _write(self, line: str) -> None:
        start = "\r" if self.width else ""
        print(start + line.ljust(self.width), end="", flush=True)
        self.width = len(line)


def numbers(logs: dict | None) -> str:
    """', d_loss 1.21, g_loss 0.93': losses and accuracies, to three digits."""
    shown = {k: v for k, v in (logs or {}).items() if "loss" in k or "accuracy" in k}
    return "".join(f", {name} {value:.3g}" for name, value in shown.items())


def duration(seconds: float) -> str:
    """'5 min 12 s', with hours if there are any, without minutes if there are none."""
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min")] if hours else [(minutes, "min")] if minutes else []
    return " ".join(f"{count} {unit}" for count, unit in [*parts, (left, "s")])


class SampleImages(keras.callbacks.Callback):
    """Keeps what the generator makes of the same latent vectors at chosen moments.

    For each chosen epoch ``<folder>/epoch_<epoch>.npz`` holds the uint8 ``images``; `load_samples`
    reads them. A run that starts from the beginning removes an earlier run's files; a resumed one
    keeps them.

    Args:
        latents: (N, d).
        labels: (N,), for a generator that takes labels.
        epochs: after how many epochs; 0 is before the first.
        folder: is made if it is missing.
    """

    def __init__(
        self,
        latents: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        epochs: Iterable[int],
        folder: str | Path,
    ):
        super().__init__()
        self.latents = latents
        self.labels = labels
        self.epochs = frozenset(epochs)
        self.folder = Path(folder)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Before the first epoch: clear the folder, and take the sample of epoch 0 if asked."""
        if epoch == 0:
            for path in self.folder.glob("epoch_*.npz"):
                path.unlink()
            self._take(0)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Take a sample if one is asked after this epoch."""
        self._take(epoch + 1)

    def _take(self, epoch: int) -> None:
        if epoch in self.epochs:
            images = generate_images(self.model.generator, self.latents, self.labels)
            write_npz(self.folder / f"epoch_{epoch:06d}.npz", images=images)


def load_samples(folder: str | Path) -> dict[int, np.ndarray]:
    """What `SampleImages` kept: the uint8 images (N, H, W, 3) by epoch, in order."""
    samples = {}
    for path in sorted(Path(folder).glob("epoch_*.npz")):
        with np.load(path, allow_pickle=False) as file:
            samples[int(path.stem.removeprefix("epoch_"))] = file["images"]
    return samples
