"""The store: complete or absent, up to date, found by content, readable without the package."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time

from cellaug.cli import main
from cellaug.data import (
    DataError,
    load_splits,
    open_dataset,
    read_image,
    save_splits,
    split,
    stored,
)
from cellaug.data import store as store_module
from cellaug.data.images import write_png
from cellaug.data.store import Store

import numpy as np
import pandas as pd
import pytest

SIZE = 12
ROW = SIZE * SIZE * 3


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name, count in {"a": 9, "b": 5}.items():
        (tmp_path / "cells" / name).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 256, (SIZE + 7, SIZE + 5, 3), dtype=np.uint8)
            write_png(tmp_path / "cells" / name / f"{i}.png", image)
    return tmp_path / "cells"


def pixels(cells, size=SIZE):
    return np.stack([read_image(path, size) for path in cells.paths])


def decoded(monkeypatch):
    """Count the images that are decoded for a store from now on."""
    seen = []
    real = store_module.read_image
    monkeypatch.setattr(store_module, "read_image", lambda *a: seen.append(1) or real(*a))
    return seen


def test_a_stored_dataset_reads_the_same_pixels(folder, tmp_path):
    cells = open_dataset(folder)
    kept = stored(cells, SIZE)
    assert kept.store.folder.parent == tmp_path / "cache" / "stores"
    assert kept.store.folder.name.startswith(f"cells-{SIZE}-")
    (folder / "a").rename(folder / "gone")
    np.testing.assert_array_equal(kept.read(SIZE)[9:], pixels(cells.of_class(1)))
    (folder / "gone").rename(folder / "a")
    np.testing.assert_array_equal(kept.read(SIZE), pixels(cells))
    order = [13, 0, 7, 7]
    np.testing.assert_array_equal(kept.subset(order).read(SIZE), pixels(cells)[order])
    # another size than the stored one comes from the files
    np.testing.assert_array_equal(kept.read(8), pixels(cells, 8))


def test_it_is_read_where_the_system_cannot_read_at_an_offset(folder, monkeypatch):
    cells = open_dataset(folder)
    kept = stored(cells, SIZE)
    monkeypatch.delattr(os, "preadv", raising=False)  # as on Windows
    np.testing.assert_array_equal(kept.subset([13, 0, 7]).read(SIZE), pixels(cells)[[13, 0, 7]])


def test_it_is_readable_without_the_package(folder, tmp_path):
    cells = open_dataset(folder)
    stored(cells, SIZE, tmp_path / "store")
    table = pd.read_parquet(tmp_path / "store" / "index.parquet")
    (array,) = (tmp_path / "store").glob("images-*.npy")
    images = np.load(array)
    assert images.shape == (14, SIZE, SIZE, 3) and images.dtype == np.uint8
    for image, row, path in zip(images, table.to_dict("records"), cells.paths, strict=True):
        np.testing.assert_array_equal(image, read_image(path, SIZE))
        assert row["digest"] == hashlib.sha256((folder / row["path"]).read_bytes()).hexdigest()
        assert row["class"] == path.parent.name
    assert table.attrs["size"] == SIZE and table.attrs["class_names"] == ["a", "b"]


def test_a_store_is_opened_as_a_dataset_though_its_files_are_gone(folder, tmp_path):
    write_png(folder / "a" / "tiny.png", np.zeros((2, 2, 3), np.uint8))
    cells = open_dataset(folder)
    expected = pixels(cells)
    stored(cells, SIZE, tmp_path / "store")
    shutil.rmtree(folder)
    again = open_dataset(tmp_path / "store")
    assert again.name == cells.name and again.class_names == cells.class_names
    assert again.fingerprint == cells.fingerprint and again.paths == cells.paths
    assert again.labels.tolist() == cells.labels.tolist()
    assert again.report.equals(cells.report) and len(again.report) == 1
    np.testing.assert_array_equal(again.read(SIZE), expected)
    parts = split(again, {"train": 0.5, "test": 0.5}, seed=3)
    save_splits(parts, tmp_path)
    tmp_path.rename(tmp_path.with_name("moved"))
    loaded = load_splits(tmp_path.with_name("moved"))
    assert loaded["train"].store is loaded["test"].store
    np.testing.assert_array_equal(loaded["test"].read(SIZE), parts["test"].read(SIZE))


def test_only_what_changed_is_decoded_again(folder, tmp_path, monkeypatch):
    seen = decoded(monkeypatch)
    store = tmp_path / "store"
    stored(open_dataset(folder), SIZE, store)
    assert len(seen) == 14
    stored(open_dataset(folder), SIZE, store)
    assert len(seen) == 14
    new = np.full((20, 20, 3), 7, np.uint8)
    write_png(folder / "b" / "new.png", new)  # added
    write_png(folder / "a" / "0.png", new + 1)  # changed
    (folder / "a" / "1.png").unlink()  # removed
    (folder / "a" / "2.png").rename(folder / "a" / "z.png")  # renamed: the pixels are known
    os.utime(folder / "a" / "3.png")  # touched
    cells = open_dataset(folder)
    stale = Store(store)
    with pytest.raises(DataError, match=r"2 of 14 images are not in this store.*Build it again"):
        stale.find(cells.digests)
    after = stored(cells, SIZE, store).store
    assert len(seen) == 16 and len(after) == 14
    np.testing.assert_array_equal(open_dataset(store).read(SIZE), pixels(cells))
    # what was opened before goes on reading what it named
    out = np.empty((14, SIZE, SIZE, 3), np.uint8)
    stale.read(np.arange(14), out)


def test_copies_under_two_names_are_stored_once(folder, tmp_path):
    (folder / "manifest.csv").write_text("path,label,split\na/0.png,a,train\nb/0.png,b,test\n")
    cells = open_dataset(folder / "manifest.csv")
    twice = cells.subset([0, 1, 0])
    store = stored(twice, SIZE, tmp_path / "store").store
    assert len(store) == 3 and len(store.images) == 2
    again = open_dataset(tmp_path / "store")
    assert again.table["side"].tolist() == ["train", "test", "train"]
    np.testing.assert_array_equal(again.read(SIZE), pixels(twice))


BUILD = """
import sys, time
from cellaug.data import open_dataset, store
real = store.read_image
def slow(*args):
    time.sleep(0.02)
    return real(*args)
store.read_image = slow
store.stored(open_dataset(sys.argv[1]), int(sys.argv[3]), sys.argv[2])
"""


@pytest.mark.parametrize("before", [False, True], ids=["new", "update"])
def test_a_killed_build_leaves_what_was_there(folder, tmp_path, before):
    """Killed with SIGKILL while it writes its array."""
    store = tmp_path / "store"
    if before:
        stored(open_dataset(folder).of_class(0), SIZE, store)
    process = subprocess.Popen([sys.executable, "-c", BUILD, folder, store, str(SIZE)])
    while not list(store.glob("*.part")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cells = open_dataset(folder)
    if before:
        np.testing.assert_array_equal(open_dataset(store).read(SIZE), pixels(cells.of_class(0)))
    else:
        with pytest.raises(DataError, match="no complete store here"):
            Store(store)
    stored(cells, SIZE, store)
    assert not list(store.glob("*.part")) and len(list(store.glob("*.npy"))) == 1
    np.testing.assert_array_equal(open_dataset(store).read(SIZE), pixels(cells))


def test_an_interrupted_update_leaves_the_old_store_in_use(folder, tmp_path, monkeypatch):
    store = tmp_path / "store"
    stored(open_dataset(folder), SIZE, store)
    before = pixels(open_dataset(folder))
    write_png(folder / "a" / "more.png", np.full((20, 20, 3), 9, np.uint8))
    cells = open_dataset(folder)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_module, "read_image", stop)
        stored(cells, SIZE, store)
    np.testing.assert_array_equal(open_dataset(store).read(SIZE), before)
    stored(cells, SIZE, store)
    np.testing.assert_array_equal(open_dataset(store).read(SIZE), pixels(cells))


def test_two_builds_at_once(folder, tmp_path):
    command = [sys.executable, "-c", BUILD, folder, tmp_path / "store", str(SIZE)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    cells = open_dataset(folder)
    np.testing.assert_array_equal(open_dataset(tmp_path / "store").read(SIZE), pixels(cells))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda array: array.unlink(),
        lambda array: array.write_bytes(b"\x93NUMPY"),
        lambda array: os.truncate(array, 500),
        lambda array: np.save(array, np.zeros((14, SIZE, SIZE, 3))),
        lambda array: np.save(array, np.zeros((13, SIZE, SIZE, 3), np.uint8)),
        lambda array: array.with_name("index.parquet").write_bytes(b"PAR1"),
    ],
    ids=["missing", "header", "cut short", "type", "number", "index"],
)
def test_damage_is_noticed_and_fixed(folder, tmp_path, spoil):
    cells, store = open_dataset(folder), tmp_path / "store"
    spoil(stored(cells, SIZE, store).store.file)
    with pytest.raises(DataError, match="Build"):
        open_dataset(store)
    stored(cells, SIZE, store)
    np.testing.assert_array_equal(open_dataset(store).read(SIZE), pixels(cells))


def test_an_array_cut_short_while_it_is_read(folder, tmp_path):
    store = stored(open_dataset(folder), SIZE, tmp_path / "store").store
    os.truncate(store.file, 1000)
    with pytest.raises(DataError, match=r"images-.*\.npy: the pixels of image 2 are damaged"):
        store.read(np.arange(14), np.empty((14, SIZE, SIZE, 3), np.uint8))


@pytest.mark.parametrize("system", ["with preadv", "without"])
def test_a_changed_pixel_is_noticed_and_not_taken_over(folder, tmp_path, monkeypatch, system):
    if system == "without":
        monkeypatch.delattr(os, "preadv", raising=False)
    cells, place = open_dataset(folder), tmp_path / "store"
    store = stored(cells, SIZE, place).store
    with store.file.open("r+b") as file:
        file.seek(store.images.offset + 3 * ROW + 5)
        one = file.read(1)[0] ^ 1
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([one]))
    again = open_dataset(place)
    assert again.subset([2, 4]).read(SIZE).shape == (2, SIZE, SIZE, 3)
    with pytest.raises(DataError, match=r"image 3 are damaged\. Delete .* and build"):
        again.read(SIZE)
    write_png(folder / "b" / "new.png", np.full((20, 20, 3), 7, np.uint8))
    cells = open_dataset(folder)
    stored(cells, SIZE, place)
    np.testing.assert_array_equal(open_dataset(place).read(SIZE), pixels(cells))


def test_places_that_are_refused(folder, tmp_path, monkeypatch):
    cells = open_dataset(folder)
    store = stored(cells, SIZE, tmp_path / "store").store.folder
    for name in ("index.parquet.part", ".index.parquet.12-34.part"):  # of builds that were killed
        (store / name).write_bytes(b"")
        stored(cells, SIZE, store)
        assert not (store / name).exists()
    with pytest.raises(DataError, match=f"holds images of {SIZE} pixels, not 16"):
        stored(cells, 16, store)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file: is no store \(it is a file\)"):
        stored(cells, SIZE, tmp_path / "file")
    np.save(tmp_path / "mine.npy", np.zeros(3))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataError, match="is no store"):
        stored(cells, SIZE, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(DataError, match="expected pixels from 1 on, found 0"):
        stored(cells, 0, tmp_path / "other")
    usage = shutil.disk_usage(tmp_path)._replace(free=2**26 + 14 * ROW - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"needs 64 MiB more, but the disk has 64 MiB left"):
        stored(cells, SIZE, tmp_path / "full")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=usage.free + 1))
    stored(cells, SIZE, tmp_path / "full")


def test_a_file_that_changed_since_it_was_opened(folder, tmp_path):
    cells = open_dataset(folder)
    write_png(folder / "a" / "4.png", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"a/4\.png: has changed since the set was opened"):
        stored(cells, SIZE, tmp_path / "store")
    (folder / "a" / "4.png").unlink()
    with pytest.raises(DataError, match=r"a/4\.png: cannot be read \(No such file"):
        stored(cells, SIZE, tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == [".lock"]
    stored(open_dataset(folder), SIZE, tmp_path / "store")


def test_names_that_are_not_text(folder, tmp_path):
    (folder / "a" / "0.png").rename(folder / "a" / os.fsdecode(b"\xff'\n.png"))
    cells = open_dataset(folder)
    stored(cells, SIZE, tmp_path / "store")
    table = pd.read_parquet(tmp_path / "store" / "index.parquet")
    assert "a/\\xff'\n.png" in set(table["path"])
    assert open_dataset(tmp_path / "store").paths == cells.paths
    np.testing.assert_array_equal(open_dataset(tmp_path / "store").read(SIZE), pixels(cells))


def test_from_the_command_line(folder, tmp_path, capsys):
    command = ["store", str(folder), "--size", str(SIZE)]
    assert main([*command, "--out", str(tmp_path / "store")]) == 0
    size = f"14 images of {SIZE}×{SIZE} pixels"
    assert capsys.readouterr().out.splitlines() == [size, str(tmp_path / "store")]
    assert len(open_dataset(tmp_path / "store")) == 14
    assert main(command) == 0
    place = capsys.readouterr().out.splitlines()[1]
    assert place.startswith(str(tmp_path / "cache"))
    shutil.rmtree(folder)
    assert main(["store", str(tmp_path / "store"), "--size", "9"]) == 2
    assert "cannot be read (No such file" in capsys.readouterr().err
