"""Training that can be stopped and resumed."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellaug.files import write_npz
from cellaug.training.backends import leads, prompt
from cellaug.training.checkpoint import Mismatch, Position, fingerprint, restore, save
from cellaug.training.progress import Progress

import keras
import numpy as np
import pandas as pd


@dataclass(eq=False)
class _Keeper(keras.callbacks.Callback):
    """Sets the reader's place, keeps the history, writes the checkpoint and stops at a NaN."""

    label: str
    reader: Any
    position: Position
    epochs: int
    checkpoint: Path | None
    own: Mapping[str, Any]
    save_seconds: float

    def __post_init__(self) -> None:
        super().__init__()
        self.begun = self.saved = time.monotonic()
        self.first = self.left = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        # Keras also calls the reader's on_epoch_end before the first epoch: set it here for sure.
        self.reader.seek(epoch, self.position.batch)
        self.first, self.left = self.position.batch, len(self.reader)
        self.begun = time.monotonic() - self.position.seconds
        if self.first:  # Keras has just set them to zero
            values = self.position.metrics
            for variable, value in zip(self.model.metrics_variables, values, strict=True):
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        now, place = time.monotonic(), self.position
        place.batch, place.seconds = self.first + batch + 1, now - self.begun
        for name, value in (logs or {}).items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{self.label}: {name} is {value} in epoch {place.epoch + 1}, step "
                    f"{place.batch}. Try a smaller learning rate."
                )
        if batch + 1 < self.left and now - self.saved >= self.save_seconds:
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            variables = self.model.metrics_variables
            place.metrics = [keras.ops.convert_to_numpy(v.value).tolist() for v in variables]
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        now, place = time.monotonic(), self.position
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        place.history.append({**numbers, "seconds": now - self.begun})
        place.epoch, place.batch, place.seconds, place.metrics = epoch + 1, 0, 0.0, []
        place.stopped = self.model.stop_training
        if epoch + 1 == self.epochs or place.stopped or now - self.saved >= self.save_seconds:
            self._save()

    def _save(self) -> None:
        if self.checkpoint and leads():
            save(self.checkpoint, self.model, self.own, self.position)
        self.saved = time.monotonic()


def fit(
    model: keras.Model, reader: Any, epochs: int, *, checkpoint: str | Path | None = None,
    settings: Mapping[str, Any] | None = None, restart: bool = False,
    callbacks: Iterable[keras.callbacks.Callback] = (), label: str = "training",
    validation: Any = None, save_seconds: float = 30.0,
) -> pd.DataFrame:  # fmt: skip
    """Train a compiled model; resume from its checkpoint if there is one.

    A run that was stopped at any step and is started again with the same code, settings, epochs and
    freshly built model ends with the same bits. A callback's method `resume` gets the history.

    Args:
        model: compiled; any `keras.Model`, or `Adversarial`.
        reader: a `cellaug.data.reader.Reader`, or a `keras.utils.PyDataset` with its `seek`.
        epochs: how many in all; a checkpoint of fewer is continued.
        checkpoint: file for the state, which is left there; None for none.
        settings: plain values that the result depends on besides the model, such as a seed.
        restart: start again, and print why, where the checkpoint is of a run with other settings.
        callbacks: called before the checkpoint is written; they may add numbers.
        label: name of the run in printed lines and messages.
        validation: a reader for ``validation_data``.
        save_seconds: minimum time between two checkpoints, also in the middle of an epoch.

    Returns one row for each epoch, from 1: the metrics and the ``seconds`` it took. Raises Mismatch
    for another run's checkpoint, DataError for none, FloatingPointError for a metric not finite.
    """
    path = None if checkpoint is None else Path(checkpoint)
    own = {} if path is None else fingerprint(model, settings or {})
    position = Position()
    if path is not None and path.exists():
        try:
            position = restore(path, model, own, epochs)
        except Mismatch as mismatch:
            if not restart:
                raise
            differ = ", ".join(mismatch.keys)
            print(f"{label}: starting again, since the run kept in {path.name} differs in {differ}")
    if position.epoch < epochs and not position.stopped:
        keeper = _Keeper(label, reader, position, epochs, path, own, save_seconds)
        _train(model, validation, list(callbacks), keeper)
    index = pd.RangeIndex(1, len(position.history) + 1, name="epoch")
    return pd.DataFrame(position.history, index=index)


def _train(model: keras.Model, validation: Any, callbacks: list, keeper: _Keeper) -> None:
    reader, position, epochs = keeper.reader, keeper.position, keeper.epochs
    if not model.optimizer.built:  # else the first step compiles twice
        model.optimizer.build(model.trainable_variables)
    reader.seek(position.epoch, 0)
    last = len(reader) - 1
    images = last * len(reader[0][0]) + len(reader[last][0])
    images *= getattr(reader, "processes", 1)
    for callback in callbacks:
        if hasattr(callback, "resume"):
            callback.resume(position.history)
    shown = [Progress(keeper.label, position, epochs, last + 1, images, reader)] if leads() else []
    # Keras asks for an epoch's length once: the rest of a broken-off one is a call of its own.
    for end in [position.epoch + 1, epochs] if position.batch else [epochs]:
        if position.epoch < end and not position.stopped:
            reader.seek(position.epoch, position.batch)
            model.fit(
                prompt(reader), epochs=end, initial_epoch=position.epoch,
                validation_data=None if validation is None else prompt(validation),
                shuffle=False, verbose=0, callbacks=[*callbacks, keeper, *shown],
            )  # fmt: skip


class SampleImages(keras.callbacks.Callback):
    """Keeps images of the same latents (N, d) and labels (N,) after chosen epochs; 0 is the start.

    Each is ``<folder>/epoch_<epoch>.npz``, for `load_samples`; a run from the beginning removes
    those of an earlier one.
    """

    def __init__(
        self, latents: np.ndarray, labels: Any = None, *, epochs: Iterable[int], folder: str | Path
    ):
        super().__init__()
        self.latents, self.labels = latents, labels
        self.epochs, self.folder = frozenset(epochs), Path(folder)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Before the first epoch, clear the folder and take the sample of epoch 0."""
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
            if not leads():
                return
            write_npz(self.folder / f"epoch_{epoch:06d}.npz", images=images)


def load_samples(folder: str | Path) -> dict[int, np.ndarray]:
    """The uint8 images (N, H, W, 3) that `SampleImages` kept, by epoch, in order."""
    samples = {}
    for path in sorted(Path(folder).glob("epoch_*.npz")):
        with np.load(path, allow_pickle=False) as file:
            samples[int(path.stem.removeprefix("epoch_"))] = file["images"]
    return samples
