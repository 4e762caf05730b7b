"""The store: complete or not there, up to date, found by content, readable without the package."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

from cellaug.cli import main
from cellaug.data import DataError, load_splits, open_dataset, read_image, save_splits, split
from cellaug.data import store as store_module
from cellaug.data.images import write_png
from cellaug.data.store import Store, build_store, default_folder

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
    real = store_module.to_square
    monkeypatch.setattr(store_module, "to_square", lambda *a: seen.append(1) or real(*a))
    return seen


def test_a_stored_dataset_reads_the_same_pixels(folder):
    cells = open_dataset(folder)
    stored = cells.stored(SIZE)
    assert stored.store.folder == default_folder(cells, SIZE).resolve()
    (folder / "a").rename(folder / "gone")
    np.testing.assert_array_equal(stored.read(SIZE)[9:], pixels(cells.of_class(1)))
    (folder / "gone").rename(folder / "a")
    np.testing.assert_array_equal(stored.read(SIZE), pixels(cells))
    order = [13, 0, 7, 7]
    np.testing.assert_array_equal(stored.subset(order).read(SIZE), pixels(cells)[order])
    # another size than the stored one comes from the files
    np.testing.assert_array_equal(stored.read(8), pixels(cells, 8))


def test_it_is_readable_without_the_package(folder, tmp_path):
    cells = open_dataset(folder)
    build_store(cells, SIZE, tmp_path / "store", shard_bytes=4 * ROW)
    table = pd.read_parquet(tmp_path / "store" / "index.parquet")
    assert list(table["shard"].unique()) == [f"shard-{k:05d}" for k in range(4)]
    for row, path in zip(table.itertuples(), cells.paths, strict=True):
        shard = np.load(tmp_path / "store" / f"{row.shard}.npy", mmap_mode="r")
        np.testing.assert_array_equal(shard[row.row], read_image(path, SIZE))
        assert row.digest == hashlib.sha256((folder / row.file).read_bytes()).hexdigest()
        assert row._asdict()["_3"] == path.parent.name  # the column "class"
        digests = np.load(tmp_path / "store" / f"{row.shard}.digests.npy")
        assert digests[row.row].tobytes().hex() == row.digest
    facts = json.loads(table.attrs["cellaug"])
    assert facts["size"] == SIZE and facts["class_names"] == ["a", "b"]


def test_a_store_is_opened_as_a_dataset_though_its_files_are_gone(folder, tmp_path):
    write_png(folder / "a" / "tiny.png", np.zeros((2, 2, 3), np.uint8))
    cells = open_dataset(folder)
    expected = pixels(cells)
    build_store(cells, SIZE, tmp_path / "store")
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
    build_store(open_dataset(folder), SIZE, store)
    assert len(seen) == 14
    build_store(open_dataset(folder), SIZE, store)
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
    after = build_store(cells, SIZE, store)
    assert len(seen) == 16 and len(after) == 14
    np.testing.assert_array_equal(open_dataset(store).read(SIZE), pixels(cells))
    # what was opened before goes on reading what it named
    out = np.empty((14, SIZE, SIZE, 3), np.uint8)
    stale.read(np.arange(14), out)


def test_shards_mostly_out_of_use_are_written_anew_without_decoding(folder, tmp_path, monkeypatch):
    store = tmp_path / "store"
    build_store(open_dataset(folder), SIZE, store, shard_bytes=7 * ROW)
    for i in range(6):
        (folder / "a" / f"{i}.png").unlink()
    cells = open_dataset(folder)
    seen = decoded(monkeypatch)
    build_store(cells, SIZE, store, shard_bytes=7 * ROW)
    assert not seen
    # of the first shard's seven images one was left
    names = sorted(path.name for path in store.glob("shard-*[0-9].npy"))
    assert names == ["shard-00001.npy", "shard-00002.npy"]
    assert np.load(store / "shard-00002.npy").shape == (1, SIZE, SIZE, 3)
    np.testing.assert_array_equal(open_dataset(store).read(SIZE), pixels(cells))


def test_copies_under_two_names_are_stored_once(folder, tmp_path):
    (folder / "manifest.csv").write_text("path,label,split\na/0.png,a,train\nb/0.png,b,test\n")
    cells = open_dataset(folder / "manifest.csv")
    twice = cells.subset([0, 1, 0])
    store = build_store(twice, SIZE, tmp_path / "store")
    assert len(store) == 3 and np.load(tmp_path / "store" / "shard-00000.npy").shape[0] == 2
    again = open_dataset(tmp_path / "store")
    assert again.sides == ("train", "test", "train")
    np.testing.assert_array_equal(again.read(SIZE), pixels(twice))


BUILD = """
import sys, time
from cellaug.data import images, open_dataset, store
real = store.to_square
def slow(*args):
    time.sleep(0.02)
    return real(*args)
store.to_square = slow
store.build_store(open_dataset(sys.argv[1]), int(sys.argv[3]), sys.argv[2], int(sys.argv[4]))
"""


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_killed_build_goes_on_where_it_was(folder, tmp_path, monkeypatch, after):
    """Killed with SIGKILL once `after` shards are there."""
    monkeypatch.setattr(store_module, "_BLOCK", 1)
    cells = open_dataset(folder)
    store = tmp_path / "store"
    command = [sys.executable, "-c", BUILD, folder, store, str(SIZE), str(3 * ROW)]
    process = subprocess.Popen(command)
    while len(list(store.glob("*.digests.npy"))) < after or not list(store.glob("*.part")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match="no complete store here"):
        Store(store)
    assert not Store.is_at(store)
    done = {path: path.stat().st_mtime_ns for path in store.glob("shard-*[0-9].npy")}
    sound = [path for path in done if path.with_suffix(".digests.npy").exists()]
    assert len(sound) >= after
    seen = decoded(monkeypatch)
    build_store(cells, SIZE, store, 3 * ROW)
    assert len(seen) == 14 - 3 * len(sound)
    assert all(path.stat().st_mtime_ns == done[path] for path in sound)
    assert not list(store.glob("*.part"))
    np.testing.assert_array_equal(open_dataset(store).read(SIZE), pixels(cells))


def test_an_interrupted_update_leaves_the_old_store_in_use(folder, tmp_path, monkeypatch):
    store = tmp_path / "store"
    build_store(open_dataset(folder), SIZE, store)
    before = pixels(open_dataset(folder))
    write_png(folder / "a" / "more.png", np.full((20, 20, 3), 9, np.uint8))
    cells = open_dataset(folder)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_module, "to_square", stop)
        build_store(cells, SIZE, store)
    np.testing.assert_array_equal(open_dataset(store).read(SIZE), before)
    build_store(cells, SIZE, store)
    np.testing.assert_array_equal(open_dataset(store).read(SIZE), pixels(cells))


def test_two_builds_at_once(folder, tmp_path):
    command = [sys.executable, "-c", BUILD, folder, tmp_path / "store", str(SIZE), str(3 * ROW)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    cells = open_dataset(folder)
    np.testing.assert_array_equal(open_dataset(tmp_path / "store").read(SIZE), pixels(cells))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda store: (store / "shard-00001.npy").unlink(),
        lambda store: (store / "shard-00001.npy").write_bytes(b"\x93NUMPY"),
        lambda store: os.truncate(store / "shard-00001.npy", 500),
        lambda store: np.save(store / "shard-00001.npy", np.zeros((7, SIZE, SIZE, 3))),
        lambda store: (store / "index.parquet").write_bytes(b"PAR1"),
    ],
    ids=["missing", "header", "cut short", "type", "index"],
)
def test_damage_is_noticed_and_mended(folder, tmp_path, spoil):
    cells, store = open_dataset(folder), tmp_path / "store"
    build_store(cells, SIZE, store, shard_bytes=7 * ROW)
    spoil(store)
    with pytest.raises(DataError, match="Build"):
        open_dataset(store)
    build_store(cells, SIZE, store, shard_bytes=7 * ROW)
    np.testing.assert_array_equal(open_dataset(store).read(SIZE), pixels(cells))


def test_a_shard_cut_short_while_it_is_read(folder, tmp_path):
    store = build_store(open_dataset(folder), SIZE, tmp_path / "store")
    os.truncate(tmp_path / "store" / "shard-00000.npy", 1000)
    with pytest.raises(DataError, match=r"shard-00000\.npy: cut short"):
        store.read(np.arange(14), np.empty((14, SIZE, SIZE, 3), np.uint8))


def test_places_that_are_refused(folder, tmp_path, monkeypatch):
    cells = open_dataset(folder)
    store = build_store(cells, SIZE, tmp_path / "store").folder
    with pytest.raises(DataError, match=f"holds images of {SIZE} pixels, not 16"):
        build_store(cells, 16, store)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: is a file"):
        build_store(cells, SIZE, tmp_path / "file")
    np.save(tmp_path / "mine.npy", np.zeros(3))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(DataError, match="is no store"):
        build_store(cells, SIZE, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(DataError, match="expected pixels from 1 on, found 0"):
        build_store(cells, 0, tmp_path / "other")
    usage = shutil.disk_usage(tmp_path)._replace(free=2**26 + 14 * ROW - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"needs 0\.1 GiB more, but the disk has 0\.1 GiB left"):
        build_store(cells, SIZE, tmp_path / "full")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=usage.free + 1))
    build_store(cells, SIZE, tmp_path / "full")


def test_a_file_that_changed_since_it_was_opened(folder, tmp_path):
    cells = open_dataset(folder)
    write_png(folder / "a" / "4.png", np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(DataError, match=r"a/4\.png: has changed since the set was opened"):
        build_store(cells, SIZE, tmp_path / "store")
    (folder / "a" / "4.png").unlink()
    with pytest.raises(DataError, match=r"a/4\.png: cannot be read \(No such file"):
        build_store(cells, SIZE, tmp_path / "store")
    assert not Store.is_at(tmp_path / "store")
    build_store(open_dataset(folder), SIZE, tmp_path / "store")


def test_names_that_are_not_text(folder, tmp_path):
    (folder / "a" / "0.png").rename(folder / "a" / os.fsdecode(b"\xff'\n.png"))
    cells = open_dataset(folder)
    build_store(cells, SIZE, tmp_path / "store")
    table = pd.read_parquet(tmp_path / "store" / "index.parquet")
    assert "a/\\xff'\n.png" in set(table["file"])
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
