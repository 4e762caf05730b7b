"""Training that can be stopped and taken up again."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cellaug.training.callbacks import Progress, StopOnNonFinite
from cellaug.training.checkpoint import Mismatch, restore, save

import keras
import pandas as pd


class _Epochs(keras.callbacks.Callback):
    """Sets the reader's epoch, keeps the history and writes the checkpoint."""

    def __init__(
        self,
        reader: Any,
        history: list[dict[str, float]],
        epochs: int,
        checkpoint: Path | None,
        settings: Mapping[str, Any],
        save_seconds: float,
    ):
        super().__init__()
        self.reader = reader
        self.history = history
        self.epochs = epochs
        self.checkpoint = checkpoint
        self.settings = settings
        self.save_seconds = save_seconds
        self.begun = self.saved = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        # Keras calls the reader's on_epoch_end once before the first epoch, and after every epoch
        # that it ran: only the number that is set here says for sure which epoch this is.
        self.reader.epoch = epoch
        self.begun = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        now = time.monotonic()
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        self.history.append({**numbers, "seconds": now - self.begun})
        last = epoch + 1 == self.epochs or self.model.stop_training
        if self.checkpoint and (last or now - self.saved >= self.save_seconds):
            save(self.checkpoint, self.model, self.settings, epoch + 1, self.history)
            self.saved = time.monotonic()


def fit(
    model: keras.Model,
    reader: Any,
    epochs: int,
    *,
    checkpoint: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    label: str = "training",
    validation: Any = None,
    save_seconds: float = 30.0,
) -> pd.DataFrame:
    """Train a compiled model, from its checkpoint if there is one with the same settings.

    A run that was stopped and is started again with the same code, settings, epochs and freshly
    built model ends with the same weights as one that was not. If anything differs it starts anew
    and a printed line says why. Callbacks that keep state of their own, such as Keras's
    EarlyStopping, begin afresh when a run is resumed.

    Args:
        model: compiled; any `keras.Model`, or `Adversarial`.
        reader: a `cellaug.data.reader.Reader`, or another `keras.utils.PyDataset` that orders its
            images by its attribute ``epoch``.
        epochs: how many in all. A checkpoint of fewer is continued, one of more is not used.
        checkpoint: where to keep the state; without it nothing is kept. Removing it is left to the
            caller.
        settings: plain values that the result depends on, such as data hash, seed and learning
            rate; compared with the checkpoint's.
        callbacks: further ones; they see the numbers of each epoch before the checkpoint is
            written.
        label: what the lines on standard output and messages call this.
        validation: a reader for ``validation_data``.
        save_seconds: the checkpoint is written at the end of an epoch once this much time has gone
            by since the last, and at the end.

    Returns:
        One row for each epoch, from 1: the metrics and the ``seconds`` it took.

    Raises:
        FloatingPointError: as soon as a metric is no longer finite.
        ValueError: if the checkpoint is not one.
    """
    settings = dict(settings or {})
    path = None if checkpoint is None else Path(checkpoint)
    done, history = 0, []
    if path is not None and path.exists():
        try:
            done, history = restore(path, model, settings, epochs)
        except Mismatch as mismatch:
            print(
                f"{label}: starting anew, since the run kept in {path.name} differs in "
                f"{', '.join(mismatch.keys)}"
            )
    if done < epochs:
        spent = sum(row["seconds"] for row in history)
        last = len(reader) - 1
        images = last * len(reader[0][0]) + len(reader[last][0])
        model.fit(
            reader,
            epochs=epochs,
            initial_epoch=done,
            validation_data=validation,
            shuffle=False,
            verbose=0,
            callbacks=[
                StopOnNonFinite(label),
                *callbacks,
                _Epochs(reader, history, epochs, path, settings, save_seconds),
                Progress(label, epochs, len(reader), images, spent),
            ],
        )
    return pd.DataFrame(history, index=pd.RangeIndex(1, len(history) + 1, name="epoch"))
