"""Fetching a set: from a server on this machine, with all that may go wrong."""

import csv
import hashlib
import io
import os
import pickle
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from cellaug.data import DataError
from cellaug.data import fetch as module
from cellaug.data.fetch import fetch, make
from cellaug.data.published import SETS

import cv2
import numpy as np
import pooch
import pytest
from hostile_server import Answer, Server

TOP = "PBC_dataset_normal_DIB"
FILES = {f"neutrophil/SNE_{i}.jpg": bytes([i]) * 3000 for i in range(3)} | {
    "eosinophil/EO_7.jpg": b"eosinophil" * 500,
    "neutrophil/.DS_169665.jpg": b"clutter",
}
DIGESTS = b"".join(
    hashlib.sha256(FILES[name]).digest()[:8]
    for name in ("eosinophil/EO_7.jpg", "neutrophil/SNE_0.jpg")
)
CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
SIZE = 8
COUNTS = {"train": 9, "validation": 3, "test": 5}


def zipped(files, extra=(), top=TOP):
    buffer = io.BytesIO()
    with (
        warnings.catch_warnings(action="ignore"),  # of a name that is there twice
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle,
    ):
        bundle.writestr(f"{top}/", "")
        bundle.writestr("__MACOSX/._x", "clutter")
        for name, data in files.items():
            bundle.writestr(f"{top}/{name}", data)
        for name, data in extra:
            bundle.writestr(name, data)
    return buffer.getvalue()


def small_arrays():
    """The arrays of a BloodMNIST of noise, with every class in it."""
    rng = np.random.default_rng(5)
    arrays = {}
    for side, (name, count) in zip(("train", "val", "test"), COUNTS.items(), strict=True):
        assert name.startswith(side)
        arrays[f"{side}_images"] = rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
        arrays[f"{side}_labels"] = (np.arange(count, dtype=np.uint8)[:, None] * 3 + 1) % 8
    return arrays


def npz(arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


ARRAYS = small_arrays()
NPZ = npz(ARRAYS)
ZIP = zipped(FILES)


def files(folder):
    """Contents of all files under a folder by path, but for those that only lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def shown(folder):
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


PART = ".bloodmnist-28.download/download.part"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=lambda seconds: None))
    server = Server(NPZ)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path, tmp_path_factory):
    """Let `fetch` expect the small sets of these tests."""
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CELLAUG_DATA", raising=False)
    digests = tmp_path_factory.mktemp("known") / "digests.bin"
    digests.write_bytes(DIGESTS)
    monkeypatch.setattr(module, "DIGESTS", digests)
    small = {"images": COUNTS, "size": SIZE, "md5": md5(NPZ), "most_bytes": 20_000}
    monkeypatch.setitem(SETS, "bloodmnist-28", replace(SETS["bloodmnist-28"], **small))
    small = {"images": {"neutrophil/SNE": 3, "eosinophil/EO": 1}, "most_bytes": 100_000}
    monkeypatch.setitem(SETS, "pbc", replace(SETS["pbc"], **small))
    return tmp_path / "cache"


def check_small_set(folder):
    """Compare a folder with what `ARRAYS` hold, image for image."""
    expected, rows = {}, []
    for side, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        for i, label in enumerate(ARRAYS[f"{side}_labels"].ravel()):
            path = f"{CLASSES[label]}/{name}_{i:05d}.png"
            expected[path] = ARRAYS[f"{side}_images"][i]
            rows.append({"path": path, "label": CLASSES[label], "split": name})
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {*expected, "manifest.csv"}
    for path, image in expected.items():
        assert (cv2.imread(folder / path, cv2.IMREAD_UNCHANGED)[..., ::-1] == image).all()
    text = (folder / "manifest.csv").read_text()
    assert list(csv.DictReader(text.splitlines())) == rows
    assert text.startswith("path,label,split\neosinophil/train_00000.png,eosinophil,train\n")
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == sorted(CLASSES)


# What is published.


def test_what_is_known_of_the_sets(monkeypatch):
    monkeypatch.undo()
    assert sum(SETS["pbc"].images.values()) == 17092
    assert SETS["pbc"].url.startswith("https://data.mendeley.com/public-files/datasets/snkd93bnjr/")
    digests = module.DIGESTS.read_bytes()
    parts = [digests[i : i + 8] for i in range(0, len(digests), 8)]
    assert len(parts) == 10294 and parts == sorted(set(parts))
    md5 = {
        28: "7053d0359d879ad8a5505303e11de1dc",
        64: "2b94928a2ae4916078ca51e05b6b800b",
        128: "adace1e0ed228fccda1f39692059dd4c",
        224: "b718ff6835fcbdb22ba9eacccd7b2601",
    }
    assert {s.size: s.md5 for s in SETS.values() if s.md5} == md5
    assert [s.url for s in list(SETS.values())[1:]] == [
        f"https://zenodo.org/records/10519652/files/bloodmnist{size}.npz?download=1"
        for size in ("", "_64", "_128", "_224")
    ]
    assert list(SETS)[1:] == [f"bloodmnist-{size}" for size in md5]
    for published in list(SETS.values())[1:]:
        assert published.images == {"train": 11959, "validation": 1712, "test": 3421}
        raw = 17092 * published.size**2 * 3
        assert raw < published.most_bytes < 1.1 * raw


def test_a_set_that_is_not_known():
    with pytest.raises(DataError, match="'bloodmnist' can be fetched; there are pbc, bloodmnist-2"):
        fetch("bloodmnist")


# BloodMNIST, as it should be.


def test_bloodmnist(server, cache, tmp_path):
    (tmp_path / "plain").mkdir()
    folder = fetch("bloodmnist-28", url=server.url)
    assert folder == cache / "bloodmnist-28"
    check_small_set(folder)
    assert shown(cache) == ["bloodmnist-28"]
    assert set(p.suffix for p in cache.iterdir()) == {"", ".lock"}
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode  # others may read it
    assert fetch("bloodmnist-28", url="http://127.0.0.1:1/never") == folder
    assert server.asked == [None]


def test_to_another_place(server, cache, tmp_path):
    folder = fetch("bloodmnist-28", tmp_path / "a" / "b", server.url)
    assert folder == tmp_path / "a" / "b" / "bloodmnist-28"
    check_small_set(folder)
    assert not cache.exists()


def test_an_empty_folder_is_no_obstacle(server, cache):
    (cache / "bloodmnist-28").mkdir(parents=True)
    check_small_set(fetch("bloodmnist-28", url=server.url))


# A server that breaks off, stalls, lies.


def new_version():
    return npz({"more": np.arange(1000)} | ARRAYS)


def chunked(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


DATE = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
CUT = Answer(cut=500)


def moved(place):
    return Answer(headers={"Content-Range": place.format(last=len(NPZ) - 1, all=len(NPZ))})


RESUMED = {
    "cut twice": ([CUT, Answer(cut=200)], [None, "500-", "700-"]),
    "chunks": (
        [
            Answer(
                body=chunked(NPZ)[:506],
                headers={"Content-Length": None, "Transfer-Encoding": "chunked"},
            )
        ],
        [None, "500-"],
    ),
    "no ranges": ([CUT, Answer(ranges=False)], [None, "500-"]),
    "wrong place": ([CUT, moved("bytes 0-{last}/{all}")], [None, "500-", None]),
    "next place": ([CUT, moved("bytes 501-{last}/{all}")], [None, "500-", None]),
    "no place": ([CUT, Answer(headers={"Content-Range": None})], [None, "500-", None]),
    "not asked for": ([Answer(status=206), CUT], [None, None, "500-"]),
    "nothing more": ([CUT, Answer(status=416, body=b"", headers={"Content-Range": "bytes */99"})],
     [None, "500-", None]),
    "mixture": (  # only the MD5 tells
        [Answer(body=new_version()[: len(NPZ)], cut=900)],
        [None, "900-", None],
    ),
    "more announced": ([Answer(headers={"Content-Length": str(len(NPZ) + 100)})],
     [None, f"{len(NPZ)}-", None]),
    "less announced": ([Answer(headers={"Content-Length": "1000"})], [None, None]),
    "no length": ([Answer(headers={"Content-Length": None})], [None]),
    "no length, cut": ([Answer(headers={"Content-Length": None}, cut=500)], [None, None]),
    "busy": ([Answer(status=503), Answer(status=429)], [None, None, None]),
    "redirection": ([Answer(status=302, body=b"", headers={"Location": "/other"}), CUT],
     [None, None, "500-"]),
}  # fmt: skip


@pytest.mark.parametrize("case", RESUMED)
def test_what_breaks_off_is_resumed_at_once(server, cache, case):
    server.script, asked = list(RESUMED[case][0]), RESUMED[case][1]
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.asked == [text and f"bytes={text}" for text in asked]
    assert shown(cache) == ["bloodmnist-28"]


@pytest.mark.parametrize(
    ("etag", "headers", "condition"),
    [('"one"', {}, '"one"'), (None, {}, None), ('W/"one"', DATE, DATE["Last-Modified"])],
)
def test_a_download_goes_on_only_with_the_same_file(server, cache, etag, headers, condition):
    """A strong tag or a date is the condition; a weak tag does not promise the same bytes."""
    server.etag = etag
    server.script = [Answer(cut=500, headers=headers)]
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.conditions == [None, condition]


def test_a_file_that_changes_meanwhile_is_no_mixture(server, cache):
    server.data, server.etag = NPZ, '"two"'
    server.script = [Answer(cut=500, body=new_version(), headers={"ETag": '"one"'})]
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.asked == [None, "bytes=500-"]


def test_a_broken_download_goes_on_another_day(server, cache):
    server.script = [CUT, Answer(cut=100), Answer(cut=0)]
    with pytest.raises(DataError, match=r"connection broke off.*\nBy hand: "):
        fetch("bloodmnist-28", url=server.url)
    assert files(cache)[PART] == NPZ[:600]
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.asked == [None, "bytes=500-", "bytes=600-", "bytes=600-"]
    assert shown(cache) == ["bloodmnist-28"]


def test_a_kill_costs_nothing_that_came(server, cache):
    server.script = [Answer(cut=500, then="hang")]
    code = f"from cellaug.data.fetch import fetch; fetch('bloodmnist-28', url={server.url!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    part = cache / PART
    while not (part.exists() and part.stat().st_size == 500) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.asked == [None, "bytes=500-"]
    assert shown(cache) == ["bloodmnist-28"]
    assert not part.parent.exists()


LOGIN = b"<!DOCTYPE html><title>Log in to the network</title>" * 9
REFUSED = {
    "endless": (Answer(headers={"Content-Length": None}, then="zeros"),
     "more than the 20,000 bytes", 1),
    "too long": (Answer(headers={"Content-Length": "20001"}), "more than the 20,000 bytes", 1),
    "gzip": (Answer(body=b"\x1f\x8b" + NPZ, headers={"Content-Encoding": "gzip"}),
     "sends no zip file", 3),
    "login": (Answer(body=LOGIN), "sends no zip file; it begins b'<!DOCTYPE html>", 3),
    "wrong bytes": (Answer(body=NPZ[:-1] + b"x"), "MD5 hash of downloaded file .* does not match",
     3),
    "not found": (Answer(status=404), "the server answered 404 Not Found", 3),
    "no content": (Answer(status=204, body=b""), "the server answered 204 No Content", 3),
    "unavailable": (Answer(status=503), "the server answered 503 Service Unavailable", 3),
    "part": (
        Answer(status=206, body=NPZ[:500], headers={"Content-Range": f"bytes 9-508/{len(NPZ)}"}),
        "the server answered 206 .*bytes 9-508",
        3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_answer_that_is_refused_leaves_nothing(server, cache, monkeypatch, case):
    def opened(*arguments, **options):
        raise AssertionError("opened before it was verified")

    monkeypatch.setattr(module.np, "load", opened)
    answer, message, tries = REFUSED[case]
    server.script = [answer] * 9
    with pytest.raises(DataError, match=rf"(?s){message}.*\nBy hand: "):
        fetch("bloodmnist-28", url=server.url)
    assert files(cache) == {}
    assert len(server.asked) == tries


@pytest.mark.parametrize("body", [LOGIN, b"", b"P"])
def test_another_page_does_not_replace_what_came_before(server, cache, body):
    page = Answer(ranges=False, body=body)
    server.script = [CUT, page, page]
    with pytest.raises(DataError, match="the server sends no zip file"):
        fetch("bloodmnist-28", url=server.url)
    assert files(cache)[PART] == NPZ[:500]
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.asked == [None] + ["bytes=500-"] * 3


@pytest.mark.parametrize(
    "answer",
    [
        Answer(held=threading.Event()),  # which nobody sets in time
        Answer(cut=500, then="hang"),
        Answer(cut=500, then="drip"),
    ],
    ids=["before", "within", "drip"],
)
def test_a_stall(server, cache, monkeypatch, answer):
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    # the part of a dripping server goes on from where the last try stopped
    server.script = [answer] + [Answer(ranges=True, cut=0, then=answer.then, held=answer.held)] * 2
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"(?s)(timed out|stalled).*By hand: "):
        fetch("bloodmnist-28", url=server.url)
    assert time.monotonic() - begun < 15
    assert len(server.asked) == 3
    if answer.held:
        answer.held.set()
        assert files(cache) == {}
        return
    assert files(cache)[PART][:500] == NPZ[:500]
    if answer.then == "hang":
        check_small_set(fetch("bloodmnist-28", url=server.url))
        assert server.asked == [None] + ["bytes=500-"] * 3


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/hostname", "No connection adapters were found for 'file:///etc/hostname'"),
        ("ftp://127.0.0.1/file", "No connection adapters were found for 'ftp://127.0.0.1/file'"),
        ("http://127.0.0.1:1/", "refused"),
        ("http://127.0.0.1:x/", "Port could not be cast"),
        ("/file", "Exceeded 30 redirects"),
    ],
)
def test_redirections_elsewhere(server, cache, location, message):
    server.script = [Answer(status=302, body=b"", headers={"Location": location})] * 99
    with pytest.raises(DataError, match=message):
        fetch("bloodmnist-28", url=server.url)
    assert files(cache) == {}


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "nonsense", "http://[", "http://a b/c"]
)
def test_addresses_that_are_none(server, cache, url):
    with pytest.raises(DataError, match=r"No connection adapters|nvalid|parse|resolve"):
        fetch("bloodmnist-28", url=url)
    assert files(cache) == {}


# Without a network, without room.


@pytest.mark.parametrize(
    ("name", "page", "held"),
    [
        ("bloodmnist-64", "https://zenodo.org/records/10519652", "bloodmnist_64.npz"),
        ("pbc", "https://doi.org/10.17632/snkd93bnjr.1", f"the unpacked {TOP}"),
    ],
)
def test_no_network_says_how_to_do_it_by_hand(server, monkeypatch, name, page, held):
    def no_name(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "*")
    with pytest.raises(DataError) as caught:
        fetch(name)
    first, second = str(caught.value).splitlines()
    assert SETS[name].url in first and "Name or service not known" in first
    assert second == (
        f"By hand: download the file from {page} and set CELLAUG_DATA to the folder that holds "
        f"{held}"
    )


UNPACKED = 17092 * (28 * 28 * 3 + 4096)
Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("missing", [1, 0])
@pytest.mark.parametrize("state", ["by hand", "new", "resumed"])
def test_the_disk_must_have_room(server, cache, monkeypatch, missing, state):
    """For the images, and besides for what there is to download."""
    cache.mkdir()
    if state == "by hand":
        (cache / "bloodmnist.npz").write_bytes(NPZ)
    if state == "resumed":
        server.etag, server.script = None, [CUT] + [Answer(cut=0)] * 2
        with pytest.raises(DataError, match="broke off"):
            fetch("bloodmnist-28", url=server.url)
    needed = UNPACKED + {"by hand": 0, "new": 20_000, "resumed": 19_500}[state]
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(0, 0, needed - missing))
    before = files(cache)
    if not missing:
        check_small_set(fetch("bloodmnist-28", url=server.url))
        return
    message = rf"up to {needed / 1e6:,.1f} MB are needed there, but the disk has only .* MB left"
    with pytest.raises(DataError, match=message):
        fetch("bloodmnist-28", url=server.url)
    assert files(cache) == before


@pytest.mark.parametrize(
    ("problem", "raised"),
    [
        (OSError(28, "No space left on device"), DataError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["full disk", "interrupt"],
)
def test_what_stops_the_unpacking_costs_no_download(server, cache, monkeypatch, problem, raised):
    write = module.write_png

    def stop(file, image):
        if file.name == "test_00000.png":
            raise problem
        write(file, image)

    monkeypatch.setattr(module, "write_png", stop)
    with pytest.raises(raised, match=r"cannot be made from .*No space left|^$"):
        fetch("bloodmnist-28", url=server.url)
    assert files(cache)[".bloodmnist-28.download/bloodmnist.npz"] == NPZ
    assert shown(cache) == []
    monkeypatch.setattr(module, "write_png", write)
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.asked == [None]  # what was downloaded served again
    assert not (cache / PART).parent.exists()


# What was there before.


def test_a_file_put_there_by_hand(server, cache, tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    (data / "bloodmnist.npz").write_bytes(NPZ)
    monkeypatch.setenv("CELLAUG_DATA", str(data))
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert (data / "bloodmnist.npz").read_bytes() == NPZ
    monkeypatch.delenv("CELLAUG_DATA")
    (cache / "bloodmnist.npz").write_bytes(NPZ)
    check_small_set(fetch("bloodmnist-28", tmp_path / "there", url=server.url))
    assert sorted(shown(cache)) == ["bloodmnist-28", "bloodmnist.npz"]
    assert server.asked == []


def test_a_wrong_file_put_there_by_hand_stays(server, cache):
    cache.mkdir()
    (cache / "bloodmnist.npz").write_bytes(NPZ[:700])
    message = (
        rf"(?s)cache/bloodmnist\.npz: its MD5 is {md5(NPZ[:700])}, expected {md5(NPZ)}.*By hand"
    )
    with pytest.raises(DataError, match=message):
        fetch("bloodmnist-28", url=server.url)
    assert files(cache) == {"bloodmnist.npz": NPZ[:700]}
    assert server.asked == []


@pytest.mark.parametrize("case", ["other", "image missing", "manifest short", "file"])
def test_something_else_in_its_place_stays(server, cache, case):
    folder = cache / "bloodmnist-28"
    if case == "file":
        cache.mkdir()
        folder.write_text("mine")
    elif case == "other":
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")
    else:
        fetch("bloodmnist-28", url=server.url)
        if case == "image missing":
            (folder / "eosinophil" / "train_00000.png").unlink()
        else:
            manifest = folder / "manifest.csv"
            manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    before, asked = files(cache), len(server.asked)
    with pytest.raises(
        DataError, match=r"is there already, but is not the whole set.*move it away"
    ):
        fetch("bloodmnist-28", url=server.url)
    assert files(cache) == before
    assert len(server.asked) == asked


def test_what_a_killed_run_left_is_cleared_away(server, cache):
    left = cache / ".bloodmnist-28.x1y2z3.part" / "basophil"
    left.mkdir(parents=True)
    (left / "train_99999.png").write_bytes(b"half")
    (cache / ".bloodmnist-28.lock").touch()
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert not left.parent.exists() and shown(cache) == ["bloodmnist-28"]


def test_two_at_once(server, cache, capsys):
    """The second waits for the first and finds the set made."""
    held = threading.Event()
    server.script = [Answer(held=held)]
    folders = []

    def run():
        folders.append(fetch("bloodmnist-28", url=server.url))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    said = ""
    until = time.monotonic() + 10
    while "waiting" not in said and time.monotonic() < until:
        time.sleep(0.01)
        said += capsys.readouterr().err
    held.set()
    for thread in threads:
        thread.join(10)
    assert said == f"{cache / 'bloodmnist-28'} is being made by another process; waiting for it\n"
    assert folders == [cache / "bloodmnist-28"] * 2
    check_small_set(folders[0])
    assert server.asked == [None]
    assert shown(cache) == ["bloodmnist-28"]


def test_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"cannot be made from .*file"):
        fetch("bloodmnist-28", tmp_path / "file", server.url)
    assert files(tmp_path) == {"file": b"mine"}


# Arrays that are not as expected.


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil_was_here"),)


def raw_npz(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, data in members.items():
            bundle.writestr(name, data)
    return buffer.getvalue()


def members(**changed):
    """The members of the small npz file, some of them changed."""
    with zipfile.ZipFile(io.BytesIO(NPZ)) as bundle:
        return {name: bundle.read(name) for name in bundle.namelist()} | {
            f"{name}.npy": data for name, data in changed.items()
        }


def npy_bytes(array, version=None):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


def damaged():
    data = bytearray(raw_npz(members()))
    data[data.index(ARRAYS["test_images"].tobytes()) + 50] ^= 1
    return bytes(data)


WRONG_NPZ = {
    "missing": (npz({name: array for name, array in ARRAYS.items() if name != "val_labels"}),
     "val_labels is not a file in the archive"),
    "count": (npz(ARRAYS | {"test_images": ARRAYS["test_images"][1:]}), r"shape \(4, 8, 8, 3\)"),
    "grey": (npz(ARRAYS | {"train_images": ARRAYS["train_images"][..., :1]}),
     r"train images have the shape \(9, 8, 8, 1\)"),
    "floats": (npz(ARRAYS | {"train_images": ARRAYS["train_images"] / 255}), "float64"),
    "float labels": (npz(ARRAYS | {"train_labels": ARRAYS["train_labels"] / 1}),
     "must be integers"),
    "label": (npz(ARRAYS | {"test_labels": np.full((5, 1), 8)}), "out of range"),
    "pickle": (raw_npz(members(train_images=npy_bytes(np.full((9, 8, 8, 3), Evil(), object)))),
     "allow_pickle=False"),
    "pickled labels": (raw_npz(members(train_labels=pickle.dumps(Evil()))),
     "train_labels|shape|pickle|tuple|ravel"),
    "short": (raw_npz(members(val_images=npy_bytes(ARRAYS["val_images"])[:-1])),
     "cannot reshape|EOF"),
    "damage": (damaged(), "Bad CRC-32 for file 'test_images.npy'"),
    "no zip": (b"PK\x03\x04 nothing", "not a zip file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_NPZ)
def test_arrays_that_are_not_as_expected(tmp_path, monkeypatch, case):
    """Even if the published MD5 were theirs: nothing is run, nothing is left."""
    monkeypatch.chdir(tmp_path)
    data, message = WRONG_NPZ[case]
    monkeypatch.setitem(SETS, "bloodmnist-8", replace(SETS["bloodmnist-28"], md5=md5(data)))
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(DataError, match=message):
        make(tmp_path / "out", SETS["bloodmnist-8"], tmp_path / "x.npz")
    assert files(tmp_path) == {"x.npz": data}


def test_the_published_sum_is_expected(tmp_path):
    (tmp_path / "x.npz").write_bytes(NPZ)
    published = "2b94928a2ae4916078ca51e05b6b800b"
    with pytest.raises(DataError, match=f"MD5 is {md5(NPZ)}, expected {published}"):
        make(tmp_path / "out", SETS["bloodmnist-64"], tmp_path / "x.npz")
    with pytest.raises(DataError, match=r"cannot be made from .*y\.npz.*No such file"):
        make(tmp_path / "out", SETS["bloodmnist-64"], tmp_path / "y.npz")
    assert files(tmp_path) == {"x.npz": NPZ}


# PBC.


def pbc_files():
    """What is unpacked: images, no clutter."""
    return {name: data for name, data in FILES.items() if "/." not in name}


@pytest.mark.parametrize("place", [None, "here"])
def test_pbc(server, cache, tmp_path, place):
    server.data = ZIP
    folder = fetch("pbc", place and tmp_path / place, url=server.url)
    assert folder == (tmp_path / place if place else cache / "pbc") / TOP
    assert files(folder) == pbc_files()
    assert shown(folder.parent) == [TOP] and cache.exists() == (place is None)
    assert fetch("pbc", place and tmp_path / place, url="http://127.0.0.1:1/never") == folder
    assert server.asked == [None]


def test_a_part_of_pbc_stays(server, cache):
    some = cache / "pbc" / TOP / "neutrophil"
    some.mkdir(parents=True)
    (some / "SNE_1.jpg").write_bytes(b"mine")
    before = files(cache)
    with pytest.raises(DataError, match="is there already, but is not the whole set"):
        fetch("pbc", url=server.url)
    assert files(cache) == before


def test_two_versions_of_pbc_make_no_set(server, cache):
    """Without tags and at the same length only the archive's own check sums can tell."""
    server.etag, server.data = None, ZIP
    place = ZIP.index(b"EO_7.jpg") + 12
    other = ZIP[:place] + bytes([ZIP[place] ^ 255]) + ZIP[place + 1 :]
    server.script = [Answer(body=other, cut=place + 10)]
    with pytest.raises(DataError, match=r"Error -3 while decompressing|Bad CRC-32"):
        fetch("pbc", url=server.url)
    assert files(cache) == {}


def member(name, mode=stat.S_IFREG | 0o644, **fields):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def patched(data, form, offset_central, offset_local, value):
    """Overwrite a number in both headers of `SEEN`."""
    data = bytearray(data)
    central = data.rindex(SEEN.encode()) - 46
    local = struct.unpack_from("<I", data, central + 42)[0]
    struct.pack_into(form, data, central + offset_central, value)
    struct.pack_into(form, data, local + offset_local, value)
    return bytes(data)


def announced(size):
    """The archive with another unpacked size of a member than it has."""
    return patched(ZIP, "<I", 24, 22, size)


X = f"{TOP}/neutrophil/x.jpg"
SEEN = f"{TOP}/eosinophil/EO_7.jpg"
REFUSED_ZIP = {
    "truncated": (ZIP[:-400], "not a zip file"),
    "half": (ZIP[: len(ZIP) // 2], "not a zip file"),
    "empty": (raw_npz({}), "sends no zip file"),
    "one more": (zipped(FILES | {"eosinophil/EO_8.jpg": b"more"}),
     "too many: {'eosinophil/EO': 1}"),
    "one less": (zipped({k: v for k, v in FILES.items() if "SNE_2" not in k}),
     "missing: {'neutrophil/SNE': 1}"),
    "other kind": (zipped(FILES | {"other/XX_8.jpg": b"more"}), "too many: {'other/XX': 1}"),
    "altered": (zipped(FILES | {"eosinophil/EO_7.jpg": b"altered"}), "1 of 2 known images"),
    "other folder": (zipped(FILES, top="other"), "images are missing"),
    "link": (
        zipped(
            {k: v for k, v in FILES.items() if "EO_7" not in k},
            [(member(SEEN, stat.S_IFLNK | 0o777), "/etc/hostname")],
        ),
        "1 of 2 known images",
    ),
    "overwritten": (zipped(FILES, [(SEEN, b"")]), "1 of 2 known images"),
    "another spelling of a folder": (zipped(FILES, [(f"{TOP}/Eosinophil/EO_8.jpg", b"")]),
     "too many: {'Eosinophil/EO': 1}"),
    "another prefix": (zipped(FILES, [(f"{TOP}/eosinophil/eo_7.jpg", b"")]), "'eosinophil/eo': 1"),
    "zero": (ZIP.replace(b"SNE_1", b"SNE\0\x31"), "missing: {'neutrophil/SNE': 1}"),
    "bomb": (announced(3_000_000), "expected at most 100,000"),
    "many": (zipped(FILES, [(f"{TOP}/neutrophil/SNE_{i}.jpg", b"") for i in range(10, 210)]),
     "too many: {'neutrophil/SNE': 200}"),
    # zipfile reads what was announced and then finds that the check sum does not fit
    "lying bomb": (announced(10), "Bad CRC-32"),
    "encrypted": (patched(ZIP, "<H", 8, 6, 1), "is encrypted"),
    "method 99": (patched(ZIP, "<H", 10, 8, 99), "compression method"),
    "two names": (zipped(FILES).replace(SEEN.encode(), SEEN.encode().replace(b"7", b"6"), 1),
     "differ"),
    "not UTF-8": (
        zipped(FILES, [(f"{TOP}/\u00e9.jpg", b"")]).replace("\u00e9".encode(), b"\xff\xfe"),
        "utf-8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_ZIP)
def test_a_wrong_archive_is_refused_and_removed(server, cache, case):
    server.data, message = REFUSED_ZIP[case]
    with pytest.raises(DataError, match=rf"(?s){message}.*\nBy hand: "):
        fetch("pbc", url=server.url)
    assert files(cache.parent) == {}


LEFT_OUT = {
    "up": (f"{TOP}/../../out.jpg", b""),
    "up in an image's name": (f"{TOP}/../SNE_/../../out.jpg", b""),
    "absolute": ("/out.jpg", b""),
    "backslash": (f"{TOP}\\..\\out.jpg", b""),
    "drive": ("C:/out.jpg", b""),
    "stream": (f"{TOP}/neutrophil/SNE_1.jpg:out.jpg", b""),
    "long": (f"{TOP}/{'d/' * 100}x", b""),
    "no name": (".", b""),
    "elsewhere": ("elsewhere/x.jpg", b""),
    "link": (member(X, stat.S_IFLNK | 0o777), "/etc/hostname"),
    "link to a folder": (member(f"{TOP}/d", stat.S_IFLNK | 0o777), "/tmp"),
    "device": (member(X, stat.S_IFCHR | 0o666), ""),
    "pipe": (member(X, stat.S_IFIFO | 0o666), ""),
    "file as a folder": (f"{TOP}/eosinophil/EO_7.jpg/x", b""),
    "bomb that is no image": (X, bytes(3_000_000)),
    "clutter": (f"{TOP}/neutrophil/.DS_1.jpg", b"clutter"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_only_images_of_the_set_are_unpacked(server, cache, case):
    """Whatever else an archive holds is not written, neither in the folder nor elsewhere."""
    server.data = zipped(FILES, [LEFT_OUT[case]])
    folder = fetch("pbc", url=server.url)
    assert files(folder) == pbc_files()
    assert len(files(cache.parent)) == len(pbc_files())


def test_any_damage_is_a_complaint_not_a_crash(server, cache):
    """Bytes of an archive overwritten at random: unpacked as it was, or refused by a message."""
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(120):
        data = bytearray(ZIP)
        for place in rng.integers(4, len(data), 3):
            data[place] = rng.integers(0, 256)
        server.data = bytes(data)
        try:
            folder = fetch("pbc", url=server.url)
        except DataError:
            refused += 1
            assert files(cache) == {}
        else:
            assert files(folder) == pbc_files()
            module.shutil.rmtree(folder)
    assert 40 < refused < 120
