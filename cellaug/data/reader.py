"""Feed images to Keras: shuffled, balanced, batched, in [-1, 1]; a part is kept in memory."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from cellaug.data.catalogue import Dataset
from cellaug.data.errors import DataError
from cellaug.data.images import read_image, to_float

import keras
import numpy as np

# Keras looks at up to this many batches before it begins an epoch.
_TRIAL_BATCHES = 2


class Reader(keras.utils.PyDataset):
    """The data reader of the thesis's section 4.2, as a Keras dataset.

    `reader[i]` is batch i of the current epoch: float32 images (B, size, size, 3) in [-1, 1] and
    their targets, int64 labels (B,) or, with `targets="images"`, the images themselves. It depends
    on nothing but the dataset, the arguments, `reader.epoch` and i, so a run that sets `epoch` goes
    on as if it had not stopped. `fit` advances `epoch` by one per epoch; give it `shuffle=False`,
    the shuffling is done here.

    With `balance` an epoch holds equally many images of every class, about N in all: each class
    goes through its own permutations, one after another, so that its images are used equally often.
    Decoded images are kept as uint8 up to `memory_mb` MiB, the others are decoded each time, by
    `workers` threads (one per core if None). With `drop_last` an incomplete last batch is left out.
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
        memory_mb: float = 512,
        drop_last: bool = False,
        workers: int | None = None,
    ):
        """See the class."""
        # Keras's own workers stay off: they read ahead, so the end of an epoch could not be seen.
        super().__init__()
        if targets not in ("labels", "images"):
            raise ValueError(f'targets must be "labels" or "images", not {targets!r}')
        if size < 1 or batch_size < 1:
            raise ValueError(f"size and batch_size must be positive: {size}, {batch_size}")
        self.dataset, self.size, self.batch_size = dataset, size, batch_size
        self.seed, self.shuffle, self.balance = seed, shuffle, balance
        self.targets, self.drop_last = targets, drop_last
        self._threads = workers or min(8, os.cpu_count() or 1)
        self._classes = [np.flatnonzero(dataset.labels == k) for k in np.unique(dataset.labels)]
        image_bytes = size * size * 3
        room = min(len(dataset), int(memory_mb * 2**20) // image_bytes)
        self._kept = np.empty((room, size, size, 3), np.uint8)
        self._filled = np.zeros(room, bool)
        self.epoch = 0
        if len(self) == 0:
            raise DataError(
                f"{dataset.name}: {len(dataset)} images are less than one batch of {batch_size}"
            )

    @property
    def epoch(self) -> int:
        """The number of the current epoch, from 0; set it to resume."""
        return self._epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch = int(value)
        self._begun = self._read_out = False
        self._order = self._order_of(self._epoch)

    @property
    def memory_bytes(self) -> int:
        """Bytes of decoded images now held in memory."""
        return int(self._filled.sum()) * self.size * self.size * 3

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        batches = len(self._order) / self.batch_size
        return math.floor(batches) if self.drop_last else math.ceil(batches)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return batch `index` of the current epoch: images and targets."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        chosen = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        images = to_float(self._read(chosen))
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
            self.epoch += 1

    def _read(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), self.size, self.size, 3), np.uint8)
        absent = []
        for place, index in enumerate(indices):
            if index < len(self._kept) and self._filled[index]:
                images[place] = self._kept[index]
            else:
                absent.append((place, index))
        if absent:
            with ThreadPoolExecutor(self._threads) as pool:
                files = (self.dataset.paths[index] for _, index in absent)
                read = pool.map(lambda file: read_image(file, self.size), files)
                for (place, index), image in zip(absent, read, strict=True):
                    images[place] = image
                    if index < len(self._kept):
                        self._kept[index] = image
                        self._filled[index] = True
        return images

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
