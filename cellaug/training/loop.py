"""Training that can be stopped and taken up again."""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cellaug.training.callbacks import Progress, StopOnNonFinite
from cellaug.training.checkpoint import Mismatch, Position, fingerprint, restore, save

import keras
import numpy as np
import pandas as pd


class _Keeper(keras.callbacks.Callback):
    """Sets the reader's place, keeps the history and writes the checkpoint."""

    def __init__(
        self,
        reader: Any,
        position: Position,
        epochs: int,
        checkpoint: Path | None,
        own: Mapping[str, Any],
        save_seconds: float,
    ):
        super().__init__()
        self.reader = reader
        self.position = position
        self.epochs = epochs
        self.checkpoint = checkpoint
        self.own = own
        self.save_seconds = save_seconds
        self.begun = self.saved = time.monotonic()
        self.first = self.left = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        # Keras calls the reader's on_epoch_end once before the first epoch, and after every epoch
        # that it ran: only the number that is set here says for sure which epoch this is.
        self.reader.seek(epoch, self.position.batch)
        self.first, self.left = self.position.batch, len(self.reader)
        self.begun = time.monotonic() - self.position.seconds
        if self.first:
            # Keras has just set them to zero.
            values = self.position.metrics
            for variable, value in zip(self.model.metrics_variables, values, strict=True):
                variable.assign(value)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        now = time.monotonic()
        last = batch + 1 == self.left
        if self.checkpoint and not last and now - self.saved >= self.save_seconds:
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            self.position.batch = self.first + batch + 1
            self.position.seconds = now - self.begun
            self.position.metrics = [
                keras.ops.convert_to_numpy(v.value).tolist() for v in self.model.metrics_variables
            ]
            self._save()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        now = time.monotonic()
        numbers = {name: float(value) for name, value in (logs or {}).items()}
        self.position.history.append({**numbers, "seconds": now - self.begun})
        self.position.epoch, self.position.batch = epoch + 1, 0
        self.position.seconds, self.position.metrics = 0.0, []
        self.position.stopped = self.model.stop_training
        last = epoch + 1 == self.epochs or self.model.stop_training
        if self.checkpoint and (last or now - self.saved >= self.save_seconds):
            self._save()

    def _save(self) -> None:
        save(self.checkpoint, self.model, self.own, self.position)
        self.saved = time.monotonic()


def fit(
    model: keras.Model,
    reader: Any,
    epochs: int,
    *,
    checkpoint: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    restart: bool = False,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    label: str = "training",
    validation: Any = None,
    save_seconds: float = 30.0,
) -> pd.DataFrame:
    """Train a compiled model, from its checkpoint if there is one.

    A run that was stopped at any step, by whatever means, and is started again with the same code,
    settings, epochs and freshly built model ends with the same bits as one that was not: weights,
    optimizers, moving average, random state and history. A callback that keeps state of its own is
    given the numbers of the epochs so far if it has a method `resume`, as `Diversity` does; others,
    such as Keras's EarlyStopping, begin afresh when a run is resumed.

    Args:
        model: compiled; any `keras.Model`, or `Adversarial`.
        reader: a `cellaug.data.reader.Reader`, or another `keras.utils.PyDataset` with its `seek`.
        epochs: how many in all. A checkpoint of fewer is continued.
        checkpoint: where to keep the state; without it nothing is kept. Removing it is left to the
            caller.
        settings: plain values that the result depends on besides what the model shows of itself
            (`checkpoint.fingerprint`), such as data hash and seed; compared with the checkpoint's.
        restart: start anew, and say why in a printed line, where the checkpoint is of a run with
            other settings; without it that is an error.
        callbacks: further ones; they see the numbers of each epoch before the checkpoint is
            written, and may add to them.
        label: what the lines on standard output and messages call this.
        validation: a reader for ``validation_data``.
        save_seconds: the checkpoint is written once this much time has gone by since the last, in
            the middle of an epoch too, and at the end.

    Returns:
        One row for each epoch, from 1: the metrics and the ``seconds`` it took.

    Raises:
        Mismatch: if the checkpoint is of a run with other settings; names those that differ.
        FloatingPointError: as soon as a metric is no longer finite.
        ValueError: if the checkpoint is not one.
    """
    path = None if checkpoint is None else Path(checkpoint)
    own = {} if path is None else fingerprint(model, settings or {})
    callbacks, position = list(callbacks), Position()
    if path is not None and path.exists():
        try:
            position = restore(path, model, own, epochs)
        except Mismatch as mismatch:
            if not restart:
                raise
            print(
                f"{label}: starting anew, since the run kept in {path.name} differs in "
                f"{', '.join(mismatch.keys)}"
            )
    if position.epoch < epochs and not position.stopped:
        reader.seek(position.epoch, 0)
        last = len(reader) - 1
        images = last * len(reader[0][0]) + len(reader[last][0])
        for callback in callbacks:
            if hasattr(callback, "resume"):
                callback.resume(position.history)
        spent = sum(row["seconds"] for row in position.history) + position.seconds
        watchers = [
            StopOnNonFinite(label),
            *callbacks,
            _Keeper(reader, position, epochs, path, own, save_seconds),
            Progress(label, epochs, len(reader), images, spent, position.batch),
        ]
        # Keras asks for an epoch's length once: the rest of a broken-off one is a call of its own.
        if position.batch:
            reader.seek(position.epoch, position.batch)
            _fit(model, reader, position.epoch + 1, position.epoch, validation, watchers)
        if position.epoch < epochs and not position.stopped:
            reader.seek(position.epoch, 0)
            _fit(model, reader, epochs, position.epoch, validation, watchers)
    history = position.history
    return pd.DataFrame(history, index=pd.RangeIndex(1, len(history) + 1, name="epoch"))


def _fit(
    model: keras.Model, reader: Any, epochs: int, done: int, validation: Any, callbacks: list
) -> None:
    model.fit(
        _prompt(reader),
        epochs=epochs,
        initial_epoch=done,
        validation_data=None if validation is None else _prompt(validation),
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )


def _prompt(reader: keras.utils.PyDataset) -> Any:
    """What to give to Keras's `fit`, so that an epoch ends with its last step.

    On TensorFlow, Keras makes a `tf.data.Dataset` of a reader and leaves its autotuner on. When an
    epoch is over that one is not told to stop (TensorFlow 2.21): it is waited for until its next
    turn, and turns come 10 ms after the start, then at intervals that double up to a minute. An
    epoch of 3 s takes 5, one of 11 s 20. The reader reads ahead by itself and needs no tuning.
    """
    if keras.backend.backend() != "tensorflow":
        return reader
    import tensorflow as tf

    def batches() -> Iterator[tuple[np.ndarray, ...]]:
        for index in range(len(reader)):
            yield reader[index]

    specs = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in reader[0])
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_generator(batches, output_signature=specs).prefetch(1)
    return data.apply(tf.data.experimental.assert_cardinality(len(reader))).with_options(options)
