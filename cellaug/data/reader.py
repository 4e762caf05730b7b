"""Feed images to Keras: shuffled, balanced, batched, in [-1, 1], read ahead of the training."""

import os
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

from cellaug.data.catalogue import Dataset
from cellaug.data.errors import DataError
from cellaug.data.images import read_images, to_float

import keras
import numpy as np

# Keras looks at up to this many batches before it begins an epoch.
_TRIAL_BATCHES = 2


class Reader(keras.utils.PyDataset):
    """The data reader of the thesis's section 4.2, as a Keras dataset.

    `reader[i]` is batch i of what is left of the current epoch: images (B, size, size, 3) and their
    targets, int64 labels (B,) or, with `targets="images"`, the images themselves. Images are
    float32 in [-1, 1] or, with `values="uint8"`, uint8 0–255 for a network that scales them on its
    device (a quarter of the bytes to move). An epoch is a permutation of all images; it depends on
    nothing but the dataset, the arguments and its number, so a run that was stopped goes on with
    the images that it would have seen: see `seek`. `fit` advances `epoch` by one per epoch; give it
    `shuffle=False`, the shuffling is done here.

    With `balance` an epoch holds equally many images of every class, about N in all: each class
    goes through its own permutations, one after another, so that its images are used equally often.
    With `drop_last` an incomplete last batch is left out.

    Images of a dataset with a store (`Dataset.stored`) are read from there, others from their
    files; of these up to `memory_mb` MiB are kept decoded, as uint8. `workers` threads (one per
    core if None) read up to `ahead` batches in advance, one each, and then wait (if None, one batch
    more than there are threads, so that all have work while a batch is used). `close` ends them, as
    does leaving a `with` block or forgetting the reader.

    Of several processes that train together, number `process` of `processes` reads its own share:
    shares are disjoint, together complete, and have the same number and sizes of batches; where
    they do not come out even, a process sees one of its images twice. `batch_size` is that of one
    process.

    Raises `ValueError` for an argument out of range, `DataError` if there is not one batch.
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
        """See the class."""
        # Keras's own workers stay off: they read ahead, so the end of an epoch could not be seen.
        super().__init__()
        if targets not in ("labels", "images"):
            raise ValueError(f'targets must be "labels" or "images", not {targets!r}')
        if values not in ("float32", "uint8"):
            raise ValueError(f'values must be "float32" or "uint8", not {values!r}')
        if size < 1 or batch_size < 1:
            raise ValueError(f"size and batch_size must be positive: {size}, {batch_size}")
        if not 0 <= process < processes:
            raise ValueError(f"process must be from 0 to {processes - 1}, not {process}")
        self.dataset, self.size, self.batch_size = dataset, size, batch_size
        self.seed, self.shuffle, self.balance = seed, shuffle, balance
        self.targets, self.values, self.drop_last = targets, values, drop_last
        self.process, self.processes = process, processes
        self._threads = workers or min(8, os.cpu_count() or 1)
        self.ahead = self._threads + 1 if ahead is None else max(0, ahead)
        self._classes = [np.flatnonzero(dataset.labels == k) for k in np.unique(dataset.labels)]
        self._store = dataset.store if dataset.store and dataset.store.size == size else None
        if self._store:
            self._places = self._store.find(dataset.digests)
        image_bytes = size * size * 3
        room = 0 if self._store else min(len(dataset), int(memory_mb * 2**20) // image_bytes)
        self._kept = np.empty((room, size, size, 3), np.uint8)
        self._filled = np.zeros(room, bool)
        self._pool: ThreadPoolExecutor | None = None
        self._stop = threading.Event()
        self._asked: dict[int, tuple[np.ndarray, Future]] = {}
        self._changing = threading.Lock()
        self.seek(0)
        if len(self) == 0:
            raise DataError(
                f"{dataset.name}: {len(dataset)} images are less than one batch of {batch_size}"
                + (f" for each of {processes} processes" if processes > 1 else "")
            )

    @property
    def epoch(self) -> int:
        """The number of the current epoch, from 0; set it to resume at its beginning."""
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.seek(value)

    def seek(self, epoch: int, batch: int = 0) -> None:
        """Go to a batch of an epoch, both counted from 0, as if all before it had been read.

        What is left of the epoch counts as the epoch: `len` is the number of batches from there on.
        `fit` asks for the length once, so let one call of it end the epoch, and another go on.

        Raises `ValueError` for a batch that the epoch does not have.
        """
        with self._changing:
            self._forget()
            self._epoch, self._first = int(epoch), 0
            self._begun = self._read_out = False
            self._share = self._share_of(self._epoch)
            if batch and not 0 <= batch < len(self):
                raise ValueError(f"batch {batch} of an epoch of {len(self)}")
            self._first = int(batch)

    @property
    def memory_bytes(self) -> int:
        """Bytes of decoded images now held in memory for later epochs."""
        return int(self._filled.sum()) * self.size * self.size * 3

    def __len__(self) -> int:
        """Return the number of batches in what is left of the epoch."""
        whole, rest = divmod(len(self._share), self.batch_size)
        return whole + (rest > 0 and not self.drop_last) - self._first

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return batch `index` of what is left of the epoch: images and targets."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        with self._changing:
            for i in range(index, min(index + 1 + self.ahead, len(self))):
                if i not in self._asked:
                    self._asked[i] = self._ask(self._indices(i))
            for i in self._asked.keys() - range(index, index + 1 + self.ahead):
                self._cancel(i)
            images, done = self._asked.pop(index)
            chosen = self._indices(index)
        try:
            done.result()
        except BaseException:
            with self._changing:
                self._forget()  # what was read ahead may have failed alike; ask for it again
            raise
        if index == len(self) - 1 and (self._begun or index >= _TRIAL_BATCHES):
            self._read_out = True
        return images, images if self.targets == "images" else self.dataset.labels[chosen]

    def on_epoch_begin(self) -> None:
        """Note that an epoch begins; Keras calls this."""
        self._begun = True

    def on_epoch_end(self) -> None:
        """Go on to the next epoch's order if this one was read to its end; Keras calls this.

        Keras also calls it before the first epoch, having looked at a batch or two; that must not
        use up an epoch. (On JAX that look cannot be told from an epoch of one single batch, which
        then counts; set `epoch` where that matters.)
        """
        if self._read_out:
            self.seek(self.epoch + 1)

    def close(self) -> None:
        """End the reading threads; they start again when a batch is asked for."""
        with self._changing:
            self._forget()
            if self._pool is not None:
                self._stop.set()
                self._pool.shutdown(cancel_futures=True)
                self._pool = None

    def __enter__(self) -> "Reader":
        """Return the reader."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the reader."""
        self.close()

    def _indices(self, index: int) -> np.ndarray:
        start = (self._first + index) * self.batch_size
        return self._share[start : start + self.batch_size]

    def _ask(self, indices: np.ndarray) -> tuple[np.ndarray, Future]:
        """Let a thread read images into a new array."""
        if self._pool is None:
            self._stop.clear()
            self._pool = ThreadPoolExecutor(self._threads)
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        images = np.empty((len(indices), self.size, self.size, 3), self.values)
        return images, self._pool.submit(self._read, indices, images)

    def _read(self, indices: np.ndarray, out: np.ndarray) -> None:
        """Read images into `out`, which has the values that are delivered."""
        if self._store:
            plain = out if out.dtype == np.uint8 else np.empty(out.shape, np.uint8)
            self._store.read(self._places[indices], plain)
            if plain is not out:
                to_float(plain, out)
            return
        room = len(self._kept)
        new = [index >= room or not self._filled[index] for index in indices]
        files = read_images([self.dataset.paths[index] for index in indices[new]], self.size)
        for place, index in enumerate(indices):
            if self._stop.is_set():
                return
            image = next(files) if new[place] else self._kept[index]
            if new[place] and index < room:
                self._kept[index] = image
                self._filled[index] = True
            if out.dtype == np.uint8:
                out[place] = image
            else:  # one by one, while the image is in the processor's cache
                to_float(image, out[place])

    def _forget(self) -> None:
        for i in list(self._asked):
            self._cancel(i)

    def _cancel(self, index: int) -> None:
        self._asked.pop(index)[1].cancel()

    def _share_of(self, epoch: int) -> np.ndarray:
        """Return this process's images in the order of an epoch."""
        order = self._order_of(epoch)
        share = order[self.process :: self.processes]
        # np.resize repeats the share's beginning; a process without an image has none to repeat.
        longest = -(-len(order) // self.processes) if len(order) >= self.processes else 0
        return np.resize(share, longest)

    def _order_of(self, epoch: int) -> np.ndarray:
        count = len(self.dataset)
        if self.balance:
            per_class = max(1, round(count / len(self._classes)))
            start = epoch * per_class
            order = np.stack(
                [
                    self._stretch(k, members, start, per_class)
                    for k, members in enumerate(self._classes)
                ],
                axis=1,
            ).ravel()
        else:
            order = np.arange(count)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        return order

    def _stretch(self, k: int, members: np.ndarray, start: int, length: int) -> np.ndarray:
        """Return `length` images of class k from `start` on in its endless row of permutations."""
        rounds = range(start // len(members), (start + length - 1) // len(members) + 1)
        if self.shuffle:
            # k + 1: with a zero at its end the seed would be that of the order of epoch r
            seeds = ([self.seed, r, k + 1] for r in rounds)
            row = [np.random.default_rng(seed).permutation(members) for seed in seeds]
        else:
            row = [members for _ in rounds]
        offset = start - rounds[0] * len(members)
        return np.concatenate(row)[offset : offset + length]
