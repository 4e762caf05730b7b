"""Callbacks for `keras.Model.fit`."""

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cellaug.training.checkpoint import write_npz

import keras
import numpy as np
import pandas as pd


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
        seconds: how long the run took before it was broken off.
        batch: how many steps were done of the epoch that it was broken off in.
    """

    def __init__(
        self,
        label: str,
        epochs: int,
        steps: int,
        images: int,
        seconds: float = 0.0,
        batch: int = 0,
    ):
        super().__init__()
        self.label = label
        self.epochs = epochs
        self.steps = steps
        self.images = images
        self.begun = time.monotonic() - seconds
        self.batch = batch
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
            step = self.batch + batch + 1
            where = f"epoch {self.epoch + 1} of {self.epochs}, step {step} of {self.steps}"
            self._write(f"{self.label}: {where}, {self._spent()}{numbers(logs)}")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Remember the epoch's numbers for the last line."""
        self.epoch, self.batch = epoch + 1, 0
        self.last = dict(logs or {})

    def on_train_end(self, logs: dict | None = None) -> None:
        """Write the line that stays, unless more epochs follow."""
        if self.epoch < self.epochs and not self.model.stop_training:
            return
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
            images = self.model.generate(self.latents, self.labels)
            write_npz(self.folder / f"epoch_{epoch:06d}.npz", images=images)


def load_samples(folder: str | Path) -> dict[int, np.ndarray]:
    """What `SampleImages` kept: the uint8 images (N, H, W, 3) by epoch, in order."""
    samples = {}
    for path in sorted(Path(folder).glob("epoch_*.npz")):
        with np.load(path, allow_pickle=False) as file:
            samples[int(path.stem.removeprefix("epoch_"))] = file["images"]
    return samples


COLLAPSED = 0.1
"""Diversity within classes, as a share of real cells', below which a run counts as collapsed."""


class Diversity(keras.callbacks.Callback):
    """Logs the diversity within classes after every epoch, and stops a run that has collapsed.

    The number, ``diversity``, is the mean distance between two generated images of one class (of
    any, for a generator without classes) over that of real images, as
    `cellaug.evaluation.diversity` measures it, averaged over the classes: 1 is as varied as real
    cells, 0 one picture per class. It joins the epoch's other numbers.

    Args:
        real: uint8 images (N, H, W, 3) to compare with.
        labels: theirs (N,); class k is label k.
        latent_dim: length of a latent vector.
        images: generated of each class, from the same latent vectors every time.
        floor: a run is stopped once the number has been below it for `patience` epochs on end.
        after: not before this many epochs: at first every generator repeats itself.
        seed: of the latent vectors.
    """

    def __init__(
        self,
        real: np.ndarray,
        labels: np.ndarray,
        latent_dim: int,
        images: int = 16,
        floor: float = COLLAPSED,
        patience: int = 3,
        after: int = 5,
        seed: int = 0,
    ):
        super().__init__()
        self.real, self.real_labels = real, np.asarray(labels)
        self.latent_dim, self.images, self.seed = latent_dim, images, seed
        self.floor, self.patience, self.after = floor, patience, after
        self.low = 0

    def resume(self, history: Sequence[Mapping[str, float]]) -> None:
        """Count the low epochs of a run so far, an epoch's numbers for each; `fit` calls this."""
        self.low = 0
        for epoch, numbers in enumerate(history, 1):
            self._count(epoch, numbers.get("diversity", math.inf))

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Measure the real images."""
        self.conditional = len(self.model.generator.inputs) == 2
        if not self.conditional:
            self.real_labels = np.zeros(len(self.real), int)
        self.names = [str(k) for k in range(self.real_labels.max() + 1)]
        self.expected = self._diversity(self.real, self.real_labels)
        self.which = np.repeat(np.arange(len(self.names)), self.images)
        shape = (len(self.which), self.latent_dim)
        self.latents = np.random.default_rng(self.seed).standard_normal(shape).astype("float32")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Measure the generated ones."""
        images = self.model.generate(self.latents, self.which if self.conditional else None)
        share = float((self._diversity(images, self.which) / self.expected).mean())
        if logs is not None:
            logs["diversity"] = share
        self._count(epoch + 1, share)
        if self.low >= self.patience:
            print(
                f"\nstopped after epoch {epoch + 1}: the generator has collapsed. Its cells of one "
                f"class differ {share:.0%} as much as real ones (floor {self.floor:.0%}) for "
                f"{self.low} epochs on end. Try a smaller learning rate, or minibatch deviation"
            )
            self.model.stop_training = True

    def _count(self, epochs: int, share: float) -> None:
        self.low = self.low + 1 if share < self.floor and epochs > self.after else 0

    def _diversity(self, images: np.ndarray, labels: np.ndarray) -> pd.Series:
        # here, since it brings the whole of the evaluation along
        from cellaug.evaluation import diversity

        return diversity(images, labels, self.names, seed=self.seed)
