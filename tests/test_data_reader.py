"""The reader: true permutations, balance, memory, and the same on both Keras backends."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

from cellaug.data import DataError, open_dataset, read_image, stored, to_float
from cellaug.data import images as images_module
from cellaug.data import reader as reader_module
from cellaug.data.images import write_png
from cellaug.data.reader import Reader

import numpy as np
import pytest

SIZE = 8
COUNTS = {"a": 10, "b": 3, "c": 4}


@pytest.fixture
def cells(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        (tmp_path / "cells" / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (SIZE + 3, SIZE + 2, 3), dtype=np.uint8)
            write_png(tmp_path / "cells" / name / f"{i:02d}.png", image)
    return open_dataset(tmp_path / "cells")


def which(cells, images):
    """Return the index in the dataset of every image of a batch."""
    table = {to_float(read_image(path, SIZE)).tobytes(): i for i, path in enumerate(cells.paths)}
    return [table[image.tobytes()] for image in images]


def epoch_of(cells, reader):
    batches = [reader[i] for i in range(len(reader))]
    seen = [index for images, _ in batches for index in which(cells, images)]
    assert np.concatenate([y for _, y in batches]).tolist() == cells.labels[seen].tolist()
    return seen


def test_batches(cells):
    reader = Reader(cells, SIZE, 5, shuffle=False)
    assert len(reader) == 4
    images, labels = reader[1]
    assert images.shape == (5, SIZE, SIZE, 3) and images.dtype == np.float32
    assert labels.dtype == np.int64 and labels.tolist() == [0] * 5
    assert which(cells, images) == [5, 6, 7, 8, 9]
    assert len(reader[3][0]) == 2
    with pytest.raises(IndexError):
        reader[4]
    short = Reader(cells, SIZE, 5, shuffle=False, drop_last=True)
    assert len(short) == 3
    assert epoch_of(cells, short) == list(range(15))


def test_every_epoch_is_a_true_permutation_from_seed_and_epoch(cells):
    reader = Reader(cells, SIZE, 5, seed=3)
    epochs = []
    for number in range(3):
        reader.epoch = number
        epochs.append(epoch_of(cells, reader))
        assert sorted(epochs[-1]) == list(range(17))
    assert epochs[0] == np.random.default_rng([3, 0]).permutation(17).tolist()
    assert epochs[0] != epochs[1] != epochs[2]
    resumed = Reader(cells, SIZE, 5, seed=3)
    resumed.epoch = 2
    assert epoch_of(cells, resumed) == epochs[2]
    assert epoch_of(cells, Reader(cells, SIZE, 5, seed=4)) != epochs[0]


def test_epoch_end_counts_only_after_a_whole_epoch(cells):
    reader = Reader(cells, SIZE, 5)
    reader[0], reader[1]
    reader.on_epoch_end()
    assert reader.epoch == 0
    for expected in (1, 2):
        epoch_of(cells, reader)
        reader.on_epoch_end()
        assert reader.epoch == expected
    small = Reader(cells, SIZE, 9)  # two batches: both may be read before an epoch begins
    epoch_of(cells, small)
    small.on_epoch_end()
    assert small.epoch == 0
    small.on_epoch_begin()
    epoch_of(cells, small)
    small.on_epoch_end()
    assert small.epoch == 1


def test_images_as_targets(cells):
    images, targets = Reader(cells, SIZE, 4, targets="images")[0]
    assert (images == targets).all()


@pytest.mark.parametrize("shuffle", [True, False])
def test_balance(cells, shuffle):
    reader = Reader(cells, SIZE, 4, seed=1, balance=True, shuffle=shuffle)
    uses = np.zeros(len(cells), int)
    for number in range(10):
        reader.epoch = number
        seen = epoch_of(cells, reader)
        assert len(seen) == 18  # 17 images in 3 classes: 6 of each
        assert np.bincount(cells.labels[seen]).tolist() == [6, 6, 6]
        np.add.at(uses, seen, 1)
    # 60 draws from each class, which 10 and 3 and 4 images share evenly
    assert uses.tolist() == [6] * 10 + [20] * 3 + [15] * 4
    assert epoch_of(cells, Reader(cells, SIZE, 4, seed=1, balance=True, shuffle=shuffle)) == (
        epoch_of(cells, Reader(cells, SIZE, 4, seed=1, balance=True, shuffle=shuffle))
    )


def test_balance_leaves_out_a_class_without_images(cells):
    reader = Reader(cells.subset(cells.labels != 1), SIZE, 4, balance=True)
    drawn = np.concatenate([reader[i][1] for i in range(len(reader))])
    assert np.bincount(drawn).tolist() == [7, 0, 7]


def test_seek_goes_on_in_mid_epoch(cells):
    reader = Reader(cells, SIZE, 5, seed=3, balance=True)
    whole = []
    for epoch in range(3):
        reader.epoch = epoch
        whole.append([reader[i] for i in range(len(reader))])
    resumed = Reader(cells, SIZE, 5, seed=3, balance=True)
    resumed.seek(1, 2)
    assert resumed.epoch == 1 and len(resumed) == len(whole[1]) - 2
    for i in range(len(resumed)):
        np.testing.assert_array_equal(resumed[i][0], whole[1][2 + i][0])
        np.testing.assert_array_equal(resumed[i][1], whole[1][2 + i][1])
    with pytest.raises(IndexError):
        resumed[len(whole[1]) - 2]
    resumed.on_epoch_begin()
    resumed[len(resumed) - 1]
    resumed.on_epoch_end()
    assert resumed.epoch == 2 and len(resumed) == len(whole[2])
    np.testing.assert_array_equal(resumed[0][0], whole[2][0][0])
    with pytest.raises(ValueError, match="batch 4 of an epoch of 4"):
        resumed.seek(1, 4)


@pytest.mark.parametrize("balance", [False, True])
def test_from_a_store_and_from_files_alike(cells, balance):
    decoded = stored(cells, SIZE)
    options = {"seed": 2, "balance": balance}
    files, store, memory = (
        Reader(source, SIZE, 5, **options) for source in (cells, decoded, cells.in_memory(SIZE))
    )
    for path in cells.paths:
        path.rename(path.with_suffix(".away"))
    with pytest.raises(DataError):
        files[0]
    for path in cells.paths:
        path.with_suffix(".away").rename(path)
    for i in range(len(files)):
        images = files[i][0]
        np.testing.assert_array_equal(images, store[i][0])
        np.testing.assert_array_equal(images, memory[i][0])
    # of another size there is no store, so files are read
    assert Reader(decoded, 6, 5)[0][0].shape == (5, 6, 6, 3)


@pytest.mark.parametrize("from_store", [False, True])
def test_uint8_values_are_those_of_the_files(cells, from_store):
    cells = stored(cells, SIZE) if from_store else cells
    images, _ = Reader(cells, SIZE, 17, shuffle=False, values="uint8")[0]
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, np.stack([read_image(p, SIZE) for p in cells.paths]))


@pytest.mark.parametrize("processes", [2, 3, 5])
@pytest.mark.parametrize("drop_last", [False, True])
def test_shares_of_processes(cells, processes, drop_last):
    """17 images: disjoint, together complete, the same number and sizes of batches."""
    options = {"seed": 1, "drop_last": drop_last, "processes": processes}
    readers = [Reader(cells, SIZE, 2, process=p, **options) for p in range(processes)]
    for epoch in range(2):
        for reader in readers:
            reader.epoch = epoch
        shares = [epoch_of(cells, reader) for reader in readers]
        sizes = {tuple(len(r[i][1]) for i in range(len(r))) for r in readers}
        assert len(sizes) == 1
        seen = [index for share in shares for index in set(share)]
        assert len(seen) == len(set(seen))
        assert all(len(share) - len(set(share)) <= 1 for share in shares)
        if not drop_last:
            assert sorted(seen) == list(range(17))
    with pytest.raises(DataError, match=r"17 images are less than one batch.*of 18 processes"):
        Reader(cells, SIZE, 1, process=17, processes=18)
    with pytest.raises(ValueError, match="process must be from 0 to 1, not 2"):
        Reader(cells, SIZE, 1, process=2, processes=2)


def test_reading_ahead_is_bounded_and_waits(cells, monkeypatch):
    looked = []
    read_file = images_module.read_file
    monkeypatch.setattr(
        images_module, "read_file", lambda path: looked.append(path) or read_file(path)
    )

    def settled(count):
        """The files that were looked at, once there are as many and no more follow."""
        deadline = time.monotonic() + 30
        while len(looked) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        return sorted(looked)

    with Reader(cells, SIZE, 3, shuffle=False, ahead=2, memory_mb=0) as reader:
        reader[0]
        assert settled(9) == sorted(cells.paths[:9])  # this batch and two more
        reader[1]
        reader[2]
        assert settled(15) == sorted(cells.paths[:15])  # each once
    with Reader(cells, SIZE, 3, ahead=0, memory_mb=0) as reader:
        del looked[:]
        reader[0]
        assert len(settled(3)) == 3


def test_threads_end(cells):
    before = set(threading.enumerate())

    def threads():
        new = set(threading.enumerate()) - before
        return sum("ThreadPoolExecutor" in thread.name for thread in new)

    with Reader(cells, SIZE, 5, workers=3) as reader:
        reader[0]
        assert 0 < threads() <= 3  # one that is done already takes the next batch
    assert threads() == 0
    reader[0]  # they start again
    assert threads() > 0
    del reader
    gc.collect()
    deadline = time.monotonic() + 10
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == 0


def test_an_interrupt_reaches_the_caller(cells, tmp_path):
    """Ctrl-C while the threads are slow."""
    code = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
from cellaug.data import images, open_dataset, reader
quick = images.decode_reduced
def slow(data, size):
    time.sleep(2)
    return quick(data, size)
images.decode_reduced = slow
cells = open_dataset(sys.argv[1])
print("ready", flush=True)
try:
    with reader.Reader(cells, 8, 17, ahead=50) as batches:
        batches[0]
except KeyboardInterrupt:
    print("interrupted", time.monotonic(), flush=True)
"""
    command = [sys.executable, "-c", code, str(cells.root)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    word, moment = process.communicate(timeout=60)[0].split()
    assert word == "interrupted" and float(moment) - sent < 10  # all would take 34 s


def test_memory_bound_changes_speed_only(cells, monkeypatch):
    read = []
    monkeypatch.setattr(
        reader_module, "read_image", lambda path, size: read.append(path) or read_image(path, size)
    )
    image_bytes = SIZE * SIZE * 3
    bound = Reader(cells, SIZE, 5, seed=2, memory_mb=6.5 * image_bytes / 2**20, workers=2)
    everything = Reader(cells, SIZE, 5, seed=2)
    nothing = Reader(cells, SIZE, 5, seed=2, memory_mb=0)
    readers = (bound, everything, nothing)
    assert [r.memory_bytes for r in readers] == [0, 0, 0]
    for again in ([17, 17, 17], [11, 0, 17]):
        for reader, expected in zip(readers, again, strict=True):
            read.clear()
            seen = epoch_of(cells, reader)
            assert len(read) == expected
            assert seen == np.random.default_rng([2, 0]).permutation(17).tolist()
    assert [r.memory_bytes for r in readers] == [6 * image_bytes, 17 * image_bytes, 0]


def test_reading_a_dataset_whole(cells):
    images = cells.read(SIZE)
    assert images.dtype == np.uint8 and len(images) == len(cells)
    for image, path in zip(images, cells.paths, strict=True):
        assert (image == read_image(path, SIZE)).all()


def test_complaints(cells):
    with pytest.raises(ValueError, match="targets"):
        Reader(cells, SIZE, 4, targets="label")
    with pytest.raises(ValueError, match="positive"):
        Reader(cells, SIZE, 0)
    with pytest.raises(DataError, match="17 images are less than one batch of 18"):
        Reader(cells, SIZE, 18, drop_last=True)
    with pytest.raises(DataError, match="0 images"):
        Reader(cells.subset([]), SIZE, 18)
    gone = Reader(cells, SIZE, 4)
    cells.paths[3].unlink()
    with pytest.raises(DataError, match=r"03\.png: cannot be read"):
        for batch in range(len(gone)):
            gone[batch]


FIT = """
import sys
import keras, numpy as np
from cellaug.data import open_dataset
from cellaug.data.reader import Reader

order = []

class Recorder(Reader):
    def __getitem__(self, index):
        order.append((self.epoch, index + 4 - len(self)))
        return super().__getitem__(index)

class Total(keras.Model):
    # its one weight becomes the sum over steps of step · (mean of the batch), as SGD would have it
    def __init__(self):
        super().__init__()
        self.weight = self.add_weight(shape=(), initializer="zeros")
    def call(self, x):
        return keras.ops.mean(x, axis=(1, 2, 3)) * self.weight

cells = open_dataset(sys.argv[1])
reader = Recorder(cells, 8, 5, seed=3)
model = Total()
model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
model.fit(reader, epochs=2, shuffle=False, verbose=0)
first = reader.epoch
model.fit(reader, epochs=1, shuffle=False, verbose=0)
model.evaluate(Reader(cells, 8, 5, shuffle=False), verbose=0)
reader.seek(3, 2)  # a run that was stopped after two batches of its fourth epoch
model.fit(reader, epochs=1, shuffle=False, verbose=0)
model.fit(reader, epochs=1, shuffle=False, verbose=0)
full = [pair for k, pair in enumerate(order) if pair not in order[k + 1:]]
print(keras.backend.backend(), first, reader.epoch, full, f"{float(model.weight):.5f}")
"""


def test_fit_runs_through_the_epochs_alike_on_both_backends(cells):
    def result(backend):
        environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        return subprocess.Popen(
            [sys.executable, "-c", FIT, str(cells.root)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    processes = {backend: result(backend) for backend in ("tensorflow", "jax")}
    answers = {}
    for backend, process in processes.items():
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        answers[backend] = out.split(maxsplit=1)
    every = [(epoch, batch) for epoch in range(5) for batch in range(4)]
    every.remove((3, 0))
    every.remove((3, 1))
    for backend, (name, answer) in answers.items():
        assert name == backend
        assert answer.startswith(f"2 5 {every} ")
    assert answers["tensorflow"][1] == answers["jax"][1]
    assert abs(float(answers["jax"][1].split()[-1])) > 1e-3
