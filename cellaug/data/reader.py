"""Feed images to Keras: shuffled, balanced, batched, in [-1, 1], read ahead of the training."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Lock
from typing import Literal

from cellaug.data.dataset import Dataset
from cellaug.data.images import read_image, to_float
from cellaug.errors import DataError

import keras
import numpy as np

_TRIAL_BATCHES = 2  # Keras looks at up to this many before it begins an epoch


class Reader(keras.utils.PyDataset, AbstractContextManager):
    """The data reader of the thesis's section 4.2, as a Keras dataset.

    `reader[i]` is batch i of what is left of the epoch: images (B, size, size, 3), float32 in
    [-1, 1] or, with `values="uint8"`, uint8 0–255, and targets, int64 labels (B,) or, with
    `targets="images"`, the images. An epoch is a permutation of all images that depends only on the
    dataset, the arguments and its number, so a stopped run can `seek` to where it was. `fit`
    advances `epoch`; give it `shuffle=False`. With `balance` an epoch holds equally many images of
    every class, about N in all. With `drop_last` an incomplete last batch is left out. Images in
    memory or in a store of this size are read from there, others from their files; up to
    `memory_mb` MiB are kept decoded. `workers` threads (one per core if None) read up to `ahead`
    batches in advance (one more than threads if None), until `close` or the end of a `with` block.
    Of processes that train together, number `process` of `processes` reads its own share, disjoint
    (but one image may repeat), together complete, with the same number and sizes of batches: its
    part of each batch of `processes` times `batch_size` images that one process would read. Raises
    `ValueError` for an argument out of range, `DataError` if there is not one batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        balance: bool = False,
        targets: Literal["labels", "images"] = "labels",
        values: Literal["float32", "uint8"] = "float32",
        memory_mb: float = 512,
        drop_last: bool = False,
        workers: int | None = None,
        ahead: int | None = None,
        process: int = 0,
        processes: int = 1,
    ):
        super().__init__()  # without Keras's own workers, which would hide the end of an epoch
        if targets not in ("labels", "images") or values not in ("float32", "uint8"):
            known = 'targets must be "labels" or "images", values "float32" or "uint8"'
            raise ValueError(f"{known}, not {targets!r} and {values!r}")
        if size < 1 or batch_size < 1:
            raise ValueError(f"size and batch_size must be positive: {size}, {batch_size}")
        if not 0 <= process < processes:
            raise ValueError(f"process must be from 0 to {processes - 1}, not {process}")
        self.dataset, self.size, self.batch_size, self.seed = dataset, size, batch_size, seed
        self.shuffle, self.balance, self.drop_last = shuffle, balance, drop_last
        self.targets, self.values = targets, values
        self.process, self.processes = process, processes
        self._threads = workers or min(8, os.cpu_count() or 1)
        self.ahead = self._threads + 1 if ahead is None else ahead
        self._classes = [np.flatnonzero(dataset.labels == k) for k in np.unique(dataset.labels)]
        # The first images are kept in memory: all, if the set is there, else as many as may be.
        self._kept = {} if dataset.images is None else dict(enumerate(dataset.read(size)))
        self._room = int(memory_mb * 2**20) // (size * size * 3)
        source = None if self._kept else dataset.store
        self._store = source if source and source.size == size else None
        self._rows = self._store.find(dataset.digests) if self._store else np.empty(0, int)
        self._pool: ThreadPoolExecutor | None = None
        self._asked: dict[int, Future] = {}
        self._changing = Lock()
        self.seek(0)
        if len(self) == 0:
            what = f"{dataset.name}: {len(dataset)} images are less than one batch of {batch_size}"
            each = f" for each of {processes} processes" if processes > 1 else ""
            raise DataError(what + each)

    @property
    def epoch(self) -> int:
        """The current epoch, from 0; set it to resume at its beginning."""
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.seek(value)

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Go to a batch of an epoch, both from 0; `ValueError` if the epoch does not have it.

        The rest then counts as the epoch. Keras reads its length once per `fit`: end it in a call.
        """
        with self._changing:
            self._forget(set(self._asked))
            share, size = self._share_of(epoch), self.batch_size
            end = len(share) - (size - 1 if self.drop_last else 0)
            batches = [share[start : start + size] for start in range(0, end, size)]
            if batch and not 0 <= batch < len(batches):
                raise ValueError(f"batch {batch} of an epoch of {len(batches)}")
            self._epoch, self._batches = epoch, batches[batch:]
            self._begun = self._read_out = False

    @property
    def memory_bytes(self) -> int:
        """Bytes of decoded images held in memory."""
        return len(self._kept) * self.size * self.size * 3

    def __len__(self) -> int:
        """Return the number of batches in what is left of the epoch."""
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return batch `index` of what is left of the epoch: images and targets."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        with self._changing:
            self._pool = self._pool or ThreadPoolExecutor(self._threads)
            wanted = range(index, min(index + 1 + self.ahead, len(self)))
            self._forget(self._asked.keys() - set(wanted))
            for i in sorted(set(wanted) - self._asked.keys()):
                self._asked[i] = self._pool.submit(self._read, self._batches[i])
            try:
                images = self._asked.pop(index).result()
            except BaseException:
                self._forget(set(wanted))  # they may have failed alike; ask for them again
                raise
            if index == len(self) - 1 and (self._begun or index >= _TRIAL_BATCHES):
                self._read_out = True
            labels = self.dataset.labels[self._batches[index]]
        return images, images if self.targets == "images" else labels

    def on_epoch_begin(self) -> None:
        """Note that an epoch begins; Keras calls this."""
        self._begun = True

    def on_epoch_end(self) -> None:
        """Advance to the next epoch's order if this one was read to its end; Keras calls this."""
        # Also before the first epoch, after a look at a batch or two, which must not use it up.
        # (On JAX that look cannot be told from an epoch of one batch: it counts.)
        if self._read_out:
            self.seek(self.epoch + 1)

    def close(self) -> None:
        """End the reading threads; they start again when a batch is asked for."""
        with self._changing:
            self._forget(set(self._asked))
            pool, self._pool = self._pool, None
            if pool:
                pool.shutdown()

    def __exit__(self, *exception: object) -> None:
        """Close the reader."""
        self.close()

    def _forget(self, batches: set[int]) -> None:
        for index in batches & self._asked.keys():
            self._asked.pop(index).cancel()

    def _read(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        if self._store is not None:
            self._store.read(self._rows[indices], images)
        for place, index in enumerate([] if self._store else indices.tolist()):
            if self._pool is None:
                break  # the reader was closed
            if (image := self._kept.get(index)) is None:
                image = read_image(self.dataset.paths[index], self.size)
                if index < self._room:
                    self._kept[index] = image
            images[place] = image
        return images if self.values == "uint8" else to_float(images)

    def _share_of(self, epoch: int) -> np.ndarray:
        """The images of this process in the order of an epoch."""
        order = np.arange(len(self.dataset))
        if self.balance:
            count = max(1, round(len(order) / len(self._classes)))
            rows = [self._stretch(k, epoch * count, count) for k in range(len(self._classes))]
            order = np.stack(rows, axis=1).ravel()
        order = self._permuted(order, epoch)
        whole = len(order) - len(order) % (self.processes * self.batch_size)
        parts = order[:whole].reshape(-1, self.processes, self.batch_size)[:, self.process]
        rest = np.array_split(order[whole:], self.processes)[self.process]
        longest = -(-len(order) // self.processes) if len(order) >= self.processes else 0
        return np.resize(np.concatenate([parts.ravel(), rest]), longest)  # repeats the beginning

    def _stretch(self, k: int, start: int, length: int) -> np.ndarray:
        """`length` images of class k from `start` on in its endless row of permutations."""
        members = self._classes[k]
        first, last = start // len(members), (start + length - 1) // len(members)
        # k + 1: with a zero at its end the seed would be that of the order of epoch r
        row = [self._permuted(members, r, k + 1) for r in range(first, last + 1)]
        return np.concatenate(row)[start - first * len(members) :][:length]

    def _permuted(self, items: np.ndarray, *numbers: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, *numbers])
        return rng.permutation(items) if self.shuffle else items
