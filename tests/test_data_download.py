"""Fetching a set: from a server on this machine, with all that may go wrong."""

import csv
import hashlib
import io
import json
import pickle
import socket
import stat
import struct
import threading
import time
import tracemalloc
import warnings
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

from cellaug.data import DataError
from cellaug.data import download as module
from cellaug.data.download import SETS, download, expand_npz, fetch, unpack

import cv2
import numpy as np
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


def tree(folder):
    """Everything under a folder: contents of files by path, None for folders."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE_S", 0)
    server = Server(NPZ)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Let `fetch` expect the small sets of these tests."""
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CELLAUG_DATA", raising=False)
    monkeypatch.setattr(module, "known_digests", lambda: DIGESTS)
    small = {"images": COUNTS, "size": SIZE, "md5": md5(NPZ), "most_bytes": 20_000}
    monkeypatch.setitem(SETS, "bloodmnist-28", replace(SETS["bloodmnist-28"], **small))
    small = {"images": {"neutrophil/SNE": 3, "eosinophil/EO": 1}}
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
    digests = module.known_digests()
    parts = [digests[i : i + 8] for i in range(0, len(digests), 8)]
    assert len(parts) == 10294 and parts == sorted(set(parts))
    base = "https://zenodo.org/records/10519652/files/"
    assert {name: (s.size, s.url, s.md5) for name, s in SETS.items() if name != "pbc"} == {
        "bloodmnist-28": (
            28,
            f"{base}bloodmnist.npz?download=1",
            "7053d0359d879ad8a5505303e11de1dc",
        ),
        "bloodmnist-64": (
            64,
            f"{base}bloodmnist_64.npz?download=1",
            "2b94928a2ae4916078ca51e05b6b800b",
        ),
        "bloodmnist-128": (
            128,
            f"{base}bloodmnist_128.npz?download=1",
            "adace1e0ed228fccda1f39692059dd4c",
        ),
        "bloodmnist-224": (
            224,
            f"{base}bloodmnist_224.npz?download=1",
            "b718ff6835fcbdb22ba9eacccd7b2601",
        ),
    }
    for published in list(SETS.values())[1:]:
        assert published.images == {"train": 11959, "validation": 1712, "test": 3421}
        raw = 17092 * published.size**2 * 3
        assert raw < published.most_bytes < 1.1 * raw
    assert all("CC BY 4.0" in published.summary for published in SETS.values())


def test_a_set_that_is_not_known():
    with pytest.raises(DataError, match="'bloodmnist' can be fetched; there are pbc, bloodmnist-2"):
        fetch("bloodmnist")


# BloodMNIST, as it should be.


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_bloodmnist(server, cache, monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK_BYTES", block * SIZE * SIZE * 3)
    folder = fetch("bloodmnist-28", url=server.url)
    assert folder == cache / "bloodmnist-28"
    check_small_set(folder)
    assert [p.name for p in cache.iterdir()] == ["bloodmnist-28"]
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


def test_others_may_read_the_folder(server, cache, tmp_path):
    (tmp_path / "plain").mkdir()
    folder = fetch("bloodmnist-28", url=server.url)
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_expanding_needs_little_memory(tmp_path, monkeypatch):
    count, size = 400, 64
    monkeypatch.setattr(module, "_BLOCK_BYTES", 10 * size * size * 3)
    arrays = {}
    for side in ("train", "val", "test"):
        arrays[f"{side}_images"] = np.zeros((count, size, size, 3), np.uint8)
        arrays[f"{side}_labels"] = np.zeros((count, 1), np.uint8)
    data = npz(arrays)
    (tmp_path / "x.npz").write_bytes(data)
    del arrays
    tracemalloc.start()
    counts = dict.fromkeys(COUNTS, count)
    expand_npz(tmp_path / "x.npz", tmp_path / "out", size, counts, md5(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(list(tmp_path.glob("out/basophil/*.png"))) == 3 * count
    assert peak < 2.5e6  # one array has 4.9 MB


# A server that breaks off, stalls, lies.


def test_a_broken_transfer_is_taken_up_at_once(server, cache):
    server.script = [Answer(cut=500), Answer(cut=200)]
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.asked == [None, "bytes=500-", "bytes=700-"]
    assert server.conditions == [None, '"one"', '"one"']


def test_a_broken_download_goes_on_another_day(server, cache):
    server.script = [Answer(cut=500), Answer(cut=100), Answer(cut=0)]
    with pytest.raises(DataError, match=r"broke off after 600 of [\d,]+ bytes; .*last of 3 tries"):
        fetch("bloodmnist-28", url=server.url)
    assert {name for name in tree(cache)} == {"bloodmnist.npz.part", "bloodmnist.npz.part.json"}
    assert (cache / "bloodmnist.npz.part").read_bytes() == NPZ[:600]
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.asked == [None, "bytes=500-", "bytes=600-", "bytes=600-"]
    assert [p.name for p in cache.iterdir()] == ["bloodmnist-28"]


def test_without_tag_or_date_a_download_goes_on_too(server, tmp_path):
    server.etag = None
    server.script = [Answer(cut=500)]
    part = download(server.url, tmp_path / "part", 20_000)
    assert part.read_bytes() == NPZ
    assert server.asked == [None, "bytes=500-"] and server.conditions == [None, None]


def test_a_weak_tag_is_no_condition_but_a_date_is(server, tmp_path):
    server.etag = 'W/"one"'
    date = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    server.script = [Answer(cut=500, headers=date)]
    assert download(server.url, tmp_path / "part", 20_000).read_bytes() == NPZ
    assert server.conditions == [None, date["Last-Modified"]]


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    server.script = [Answer(cut=500), Answer(ranges=False)]
    assert download(server.url, tmp_path / "part", 20_000).read_bytes() == NPZ
    assert server.asked == [None, "bytes=500-"]


def test_a_part_of_unknown_origin_is_not_gone_on_with(server, tmp_path):
    (tmp_path / "part").write_bytes(b"x" * 100)
    assert download(server.url, tmp_path / "part", 20_000).read_bytes() == NPZ
    assert server.asked == [None]


@pytest.mark.parametrize("answer", [Answer(), Answer(headers={"ETag": None})])
def test_a_complete_part_is_not_downloaded_again(server, tmp_path, answer):
    server.script = [answer]
    part = download(server.url, tmp_path / "part", 20_000)
    assert download(server.url, part, 20_000).read_bytes() == NPZ
    assert server.asked == [None]


def new_version():
    return npz(ARRAYS | {"more": np.arange(1000)})


@pytest.mark.parametrize(
    ("second", "asked"),
    [
        # The server heeds If-Range and sends the new file from its beginning.
        (Answer(), [None, "bytes=500-"]),
        # It does not, and goes on with the new file; only the tag tells.
        (
            Answer(
                status=206,
                body=new_version()[500:],
                headers={"Content-Range": f"bytes 500-{len(new_version()) - 1}/{len(NPZ)}"},
            ),
            [None, "bytes=500-", None],
        ),
        # It has no tags; only the length tells.
        (
            Answer(
                status=206,
                body=new_version()[500:],
                headers={
                    "ETag": None,
                    "Content-Range": f"bytes 500-{len(new_version()) - 1}/{len(new_version())}",
                },
            ),
            [None, "bytes=500-", None],
        ),
    ],
)
def test_a_file_that_changes_meanwhile_is_no_mixture(server, tmp_path, second, asked):
    first = Answer(cut=500, body=NPZ, headers={"ETag": '"one"'})
    server.data, server.etag = new_version(), '"two"'
    server.script = [first, second]
    part = download(server.url, tmp_path / "part", 20_000)
    assert part.read_bytes() == new_version()
    assert server.asked == asked


@pytest.mark.parametrize("place", ["bytes 0-{last}/{all}", "bytes 501-{last}/{all}", "bytes", None])
def test_a_part_from_the_wrong_place_is_not_used(server, tmp_path, place):
    place = place and place.format(last=len(NPZ) - 1, all=len(NPZ))
    server.script = [Answer(cut=500), Answer(headers={"Content-Range": place})]
    assert download(server.url, tmp_path / "part", 20_000).read_bytes() == NPZ
    assert server.asked == [None, "bytes=500-", None]


def test_a_part_that_nobody_asked_for(server, tmp_path):
    lie = Answer(status=206, body=NPZ[:500], headers={"Content-Range": f"bytes 0-499/{len(NPZ)}"})
    server.script = [lie] * 3
    with pytest.raises(DataError, match="was asked for the whole file, but sent 'bytes 0-499/"):
        download(server.url, tmp_path / "part", 20_000)
    assert tree(tmp_path) == {}


def test_a_part_in_small_pieces(server, tmp_path):
    place = {"Content-Range": f"bytes 500-899/{len(NPZ)}"}
    piece = Answer(body=NPZ[500:900], headers=place, then="hang")
    next_place = {"Content-Range": f"bytes 900-999/{len(NPZ)}"}
    longer = Answer(body=NPZ[900:1000] + b"more than was said", headers=next_place)
    server.script = [Answer(cut=500), piece, longer]
    with pytest.raises(DataError, match="broke off after 1,000 of"):
        download(server.url, tmp_path / "part", 20_000, timeout=0.5)
    assert (tmp_path / "part").read_bytes() == NPZ[:1000]
    assert download(server.url, tmp_path / "part", 20_000).read_bytes() == NPZ
    assert server.asked == [None, "bytes=500-", "bytes=900-", "bytes=1000-"]


def test_nothing_more_where_something_should_be(server, tmp_path):
    nothing = Answer(status=416, body=b"", headers={"Content-Range": "bytes */99"})
    server.script = [Answer(cut=500), nothing]
    assert download(server.url, tmp_path / "part", 20_000).read_bytes() == NPZ
    assert server.asked == [None, "bytes=500-", None]


def test_fewer_bytes_than_announced(server, cache):
    server.script = [Answer(headers={"Content-Length": str(len(NPZ) + 100)})]
    # There is nothing more to get, as the server then says; so the file is complete.
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.asked == [None, f"bytes={len(NPZ)}-"]


def test_fewer_bytes_than_announced_for_ever(server, cache):
    lie = {"Content-Length": str(len(NPZ) + 100)}
    none = Answer(status=416, headers={"Content-Range": None})
    server.script = [Answer(headers=lie), none, Answer(headers=lie)]
    with pytest.raises(
        DataError, match=f"broke off after {len(NPZ):,} of {len(NPZ) + 100:,} bytes"
    ):
        fetch("bloodmnist-28", url=server.url)
    assert server.asked == [None, f"bytes={len(NPZ)}-", None]


def test_more_bytes_than_announced(server, cache):
    server.script = [Answer(headers={"Content-Length": "1000"})]
    with pytest.raises(DataError, match=f"its MD5 is {md5(NPZ[:1000])}, expected {md5(NPZ)}"):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache) == {}
    assert server.asked == [None]


def test_an_endless_body(server, cache):
    server.script = [Answer(headers={"Content-Length": None}, then="zeros")]
    with pytest.raises(DataError, match="sends more than the 20,000 bytes that the file has at"):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache) == {}
    assert server.asked == [None]


def test_a_body_without_length(server, cache):
    server.script = [Answer(headers={"Content-Length": None})]
    check_small_set(fetch("bloodmnist-28", url=server.url))


def test_a_broken_body_without_length(server, cache):
    server.script = [Answer(headers={"Content-Length": None}, cut=500)]
    with pytest.raises(DataError, match="is not the published file"):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache) == {}


def test_too_long_an_announcement(server, cache):
    server.script = [Answer(headers={"Content-Length": "20001"})]
    with pytest.raises(DataError, match="announces 20,001 bytes, but the file has at most 20,000"):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache) == {}


def test_chunks_that_break_off_are_taken_up(server, tmp_path):
    def chunked(data, end=b""):
        return b"%x\r\n%b\r\n%b" % (len(data), data, end)

    headers = {"Content-Length": None, "Transfer-Encoding": "chunked"}
    server.script = [Answer(body=chunked(NPZ)[:507], headers=headers)]
    part = download(server.url, tmp_path / "part", 20_000)
    assert part.read_bytes() == NPZ
    begun = 507 - len(b"%x\r\n" % len(NPZ))
    assert server.asked == [None, f"bytes={begun}-"]


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
    monkeypatch.setattr(module, "TRIES", 1)
    server.script = [answer]
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"(?s)the server stalled: .*0\.2.* s.*By hand: "):
        fetch("bloodmnist-28", url=server.url, timeout=0.2)
    assert time.monotonic() - begun < 15
    if answer.held:
        answer.held.set()
        assert tree(cache) == {}
        return
    assert tree(cache)["bloodmnist.npz.part"][:500] == NPZ[:500]
    if answer.then == "hang":
        check_small_set(fetch("bloodmnist-28", url=server.url))
        assert server.asked == [None, "bytes=500-"]


def test_a_login_page_does_not_replace_what_came_before(server, cache):
    server.script = [
        Answer(cut=500),
        Answer(ranges=False, body=b"<!DOCTYPE html><title>Log in to the network</title>" * 9),
    ]
    with pytest.raises(DataError, match=r"is no zip file; it begins b'<!DOCTYPE html>.*\n.*By han"):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache)["bloodmnist.npz.part"] == NPZ[:500]
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.asked == [None, "bytes=500-", "bytes=500-"]


def test_an_empty_answer_does_not_either(server, cache):
    empty = Answer(ranges=False, body=b"")
    server.script = [Answer(cut=500), empty, empty]
    with pytest.raises(DataError, match="broke off after 0 bytes"):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache)["bloodmnist.npz.part"] == NPZ[:500]


def test_wrong_bytes_are_never_opened(server, cache, monkeypatch):
    def opened(*arguments):
        raise AssertionError("opened before it was verified")

    monkeypatch.setattr(zipfile, "ZipFile", opened)
    server.data = NPZ[:-1] + b"x"
    with pytest.raises(DataError, match=f"MD5 is {md5(server.data)}, .*It was removed"):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache) == {}


def test_compression_on_the_way_is_refused(server, cache):
    server.script = [Answer(headers={"Content-Encoding": "gzip"})]
    with pytest.raises(DataError, match="sends the file as gzip, which was not asked for"):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache) == {}


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("file:///etc/hostname", "file:///etc/hostname' is not allowed"),
        ("ftp://127.0.0.1/file", "ftp://127.0.0.1/file is refused: only http and https"),
        ("http://127.0.0.1:1/", r"leads cannot be reached: .*refused"),
        ("http://127.0.0.1:x/", "or where it leads is no address: nonnumeric port"),
    ],
)
def test_redirections_elsewhere(server, cache, location, message):
    server.script = [Answer(status=302, body=b"", headers={"Location": location})]
    with pytest.raises(DataError, match=message):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache) == {}
    assert server.asked == [None]


def test_a_redirection_keeps_the_range(server, tmp_path):
    there = Answer(status=302, body=b"", headers={"Location": "/other"})
    server.script = [there, Answer(cut=500), there]
    assert download(server.url, tmp_path / "part", 20_000).read_bytes() == NPZ
    assert server.asked == [None, None, "bytes=500-", "bytes=500-"]


def test_redirections_in_a_circle(server, cache):
    server.script = [Answer(status=302, body=b"", headers={"Location": "/file"})] * 20
    with pytest.raises(DataError, match="infinite loop"):
        fetch("bloodmnist-28", url=server.url)
    assert 4 < len(server.asked) <= 11


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "nonsense", "http://[", "http://a b/c"]
)
def test_addresses_that_are_none(cache, url):
    with pytest.raises(DataError, match=r"only http and https|no address|cannot be reached"):
        fetch("bloodmnist-28", url=url)
    assert tree(cache) == {}


def test_answers_that_are_final_or_not(server, cache):
    server.script = [Answer(status=404)]
    with pytest.raises(DataError, match="the server answered 404 Not Found"):
        fetch("bloodmnist-28", url=server.url)
    server.script = [Answer(status=204, body=b"")]
    with pytest.raises(DataError, match="the server answered 204 No Content"):
        fetch("bloodmnist-28", url=server.url)
    assert len(server.asked) == 2
    assert tree(cache) == {}
    server.script = [Answer(status=503), Answer(status=429)]
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert len(server.asked) == 5


def test_tries_come_to_an_end(server, cache):
    server.script = [Answer(status=503)] * 9
    with pytest.raises(DataError, match="answered 503 Service Unavailable; so ended the last of 3"):
        fetch("bloodmnist-28", url=server.url)
    assert len(server.asked) == 3


# Without a network, without room.


def test_no_network_says_how_to_do_it_by_hand(cache, monkeypatch):
    def no_name(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    with pytest.raises(DataError) as caught:
        fetch("bloodmnist-64")
    assert str(caught.value) == (
        "zenodo.org or where it leads cannot be reached: [Errno -2] Name or service not known\n"
        "By hand: download bloodmnist_64.npz from https://zenodo.org/records/10519652 with a "
        f"browser and put it into {cache} or into the folder that CELLAUG_DATA names"
    )
    with pytest.raises(DataError) as caught:
        fetch("pbc")
    assert str(caught.value) == (
        "data.mendeley.com or where it leads cannot be reached: "
        "[Errno -2] Name or service not known\n"
        "By hand: download the archive from https://doi.org/10.17632/snkd93bnjr.1 with a browser "
        f"and unpack it so that {cache / 'pbc' / TOP} holds the class folders (or anywhere else, "
        "with CELLAUG_DATA set to the folder around it)"
    )


def test_a_refused_connection(cache):
    with pytest.raises(
        DataError, match=r"(?s)127\.0\.0\.1:1 or where it leads cannot be reached: .*By hand: "
    ):
        fetch("bloodmnist-28", url="http://127.0.0.1:1/file")


UNPACKED = 17092 * (28 * 28 * 3 + 4096)
Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("missing", [1, 0])
@pytest.mark.parametrize("by_hand", [False, True])
def test_the_disk_must_have_room(server, cache, monkeypatch, missing, by_hand):
    """For the images, and besides for what there is to download."""
    needed = UNPACKED + (0 if by_hand else len(NPZ))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(0, 0, needed - missing))
    cache.mkdir()
    if by_hand:
        (cache / "bloodmnist.npz").write_bytes(NPZ)
    before = tree(cache)
    if not missing:
        check_small_set(fetch("bloodmnist-28", url=server.url))
        return
    message = rf"{cache}: {needed / 1e6:,.1f} MB are needed there, but the disk has only .* MB left"
    with pytest.raises(DataError, match=message):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache) == before


def test_what_came_already_needs_no_room_again(server, cache, monkeypatch):
    server.script = [Answer(cut=500)] + [Answer(cut=0)] * 2
    with pytest.raises(DataError, match="broke off"):
        fetch("bloodmnist-28", url=server.url)
    free = UNPACKED + len(NPZ) - 500
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(0, 0, free))
    check_small_set(fetch("bloodmnist-28", url=server.url))


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
    with pytest.raises(raised, match=r"could not be made: .*No space left|^$"):
        fetch("bloodmnist-28", url=server.url)
    assert set(tree(cache)) == {"bloodmnist.npz.part", "bloodmnist.npz.part.json"}
    monkeypatch.setattr(module, "write_png", write)
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert server.asked == [None]  # what was downloaded served again
    assert [p.name for p in cache.iterdir()] == ["bloodmnist-28"]


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
    assert set(p.name for p in cache.iterdir()) == {"bloodmnist-28", "bloodmnist.npz"}
    assert server.asked == []


def test_a_wrong_file_put_there_by_hand_stays(server, cache):
    cache.mkdir()
    (cache / "bloodmnist.npz").write_bytes(NPZ[:700])
    with pytest.raises(DataError, match=r"(?s)cache/bloodmnist\.npz is not the published.*By hand"):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache) == {"bloodmnist.npz": NPZ[:700]}
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
    before, asked = tree(cache), len(server.asked)
    with pytest.raises(
        DataError, match=r"is there already, but is not the whole set.*move it away"
    ):
        fetch("bloodmnist-28", url=server.url)
    assert tree(cache) == before
    assert len(server.asked) == asked


def test_what_a_killed_run_left_is_cleared_away(server, cache):
    left = cache / ".bloodmnist-28.unpacking" / "bloodmnist-28" / "basophil"
    left.mkdir(parents=True)
    (left / "train_99999.png").write_bytes(b"half")
    (cache / ".bloodmnist-28.lock").touch()
    check_small_set(fetch("bloodmnist-28", url=server.url))
    assert [p.name for p in cache.iterdir()] == ["bloodmnist-28"]


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
    assert [p.name for p in cache.iterdir()] == ["bloodmnist-28"]


def test_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"could not be made: .*file"):
        fetch("bloodmnist-28", tmp_path / "file", server.url)
    assert tree(tmp_path) == {"file": b"mine"}


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
    "missing": (
        npz({name: array for name, array in ARRAYS.items() if name != "val_labels"}),
        "no array val_labels; there are train_images, train_labels, val_images, test_images, test_",
    ),
    "count": (
        npz(ARRAYS | {"test_images": ARRAYS["test_images"][1:]}),
        r"test_images has the shape \(4, 8, 8, 3\), expected \(5, 8, 8, 3\)",
    ),
    "grey": (
        npz(ARRAYS | {"train_images": ARRAYS["train_images"][..., :1]}),
        r"train_images has the shape \(9, 8, 8, 1\), expected \(9, 8, 8, 3\)",
    ),
    "flat labels": (
        npz(ARRAYS | {"val_labels": ARRAYS["val_labels"].ravel()}),
        r"val_labels has the shape \(3,\), expected \(3, 1\)",
    ),
    "floats": (
        npz(ARRAYS | {"train_images": ARRAYS["train_images"] / 255}),
        "train_images holds float64 row by row, expected uint8 row by row",
    ),
    "float labels": (
        npz(ARRAYS | {"train_labels": ARRAYS["train_labels"].astype(float)}),
        "train_labels holds float64 row by row, expected integer",
    ),
    "by column": (
        npz(ARRAYS | {"train_images": np.asfortranarray(ARRAYS["train_images"])}),
        "train_images holds uint8 column by column",
    ),
    "label": (
        npz(ARRAYS | {"test_labels": np.full((5, 1), 8)}),
        "test_labels holds 8, expected 0 to 7",
    ),
    "negative label": (
        npz(ARRAYS | {"test_labels": np.full((5, 1), -1)}),
        "test_labels holds -1, expected 0 to 7",
    ),
    "pickle": (
        raw_npz(members(train_images=npy_bytes(np.full((9, 8, 8, 3), Evil(), object)))),
        "train_images holds object row by row, expected uint8",
    ),
    "pickled labels": (
        raw_npz(members(train_labels=pickle.dumps(Evil()))),
        "magic string is not correct",
    ),
    "version": (
        raw_npz(members(val_images=npy_bytes(ARRAYS["val_images"], (3, 0)))),
        r"val_images has version \(3, 0\) of the npy format",
    ),
    "short": (
        raw_npz(members(val_images=npy_bytes(ARRAYS["val_images"])[:-1])),
        "val_images.npy ends before its last value",
    ),
    "long": (
        raw_npz(members(val_images=npy_bytes(ARRAYS["val_images"]) + b"x")),
        "val_images.npy goes on after its last value",
    ),
    "damage": (damaged(), "Bad CRC-32 for file 'test_images.npy'"),
    "no zip": (b"PK\x03\x04 nothing", "not a zip file"),
}


@pytest.mark.parametrize("case", WRONG_NPZ)
def test_arrays_that_are_not_as_expected(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    data, message = WRONG_NPZ[case]
    archive = tmp_path / "x.npz"
    archive.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        expand_npz(archive, tmp_path / "out", SIZE, COUNTS, md5(data))
    assert str(caught.value).startswith(f"{archive}: ")
    assert tree(tmp_path) == {"x.npz": data}


def test_version_2_of_the_format_and_other_whole_numbers(tmp_path):
    data = raw_npz(
        members(
            test_images=npy_bytes(ARRAYS["test_images"], (2, 0)),
            test_labels=npy_bytes(ARRAYS["test_labels"].astype(">i8")),
        )
    )
    (tmp_path / "x.npz").write_bytes(data)
    expand_npz(tmp_path / "x.npz", tmp_path / "out", SIZE, COUNTS, md5(data))
    check_small_set(tmp_path / "out")


def test_the_published_sum_is_asked_for_by_default(tmp_path):
    (tmp_path / "x.npz").write_bytes(NPZ)
    published = "2b94928a2ae4916078ca51e05b6b800b"
    with pytest.raises(DataError, match=f"MD5 is {md5(NPZ)}, expected {published}"):
        expand_npz(tmp_path / "x.npz", tmp_path / "out", 64)
    with pytest.raises(DataError, match="BloodMNIST of 65 pixels is not published"):
        expand_npz(tmp_path / "x.npz", tmp_path / "out", 65)
    with pytest.raises(DataError, match=r"could not be made: .*y\.npz"):
        expand_npz(tmp_path / "y.npz", tmp_path / "out", 64)
    assert tree(tmp_path) == {"x.npz": NPZ}


# PBC.


def test_pbc(server, cache):
    server.data = ZIP
    folder = fetch("pbc", url=server.url)
    assert folder == cache / "pbc" / TOP
    for name, data in FILES.items():
        assert (folder / name).read_bytes() == data
    assert [p.name for p in (cache / "pbc").iterdir()] == [TOP]
    assert fetch("pbc", url="http://127.0.0.1:1/never") == folder
    assert server.asked == [None]


def test_pbc_to_another_place(server, cache, tmp_path):
    server.data = ZIP
    assert fetch("pbc", tmp_path / "here", server.url) == tmp_path / "here" / TOP
    assert not cache.exists()


def test_a_part_of_pbc_stays(server, cache):
    some = cache / "pbc" / TOP / "neutrophil"
    some.mkdir(parents=True)
    (some / "SNE_1.jpg").write_bytes(b"mine")
    before = tree(cache)
    with pytest.raises(DataError, match="is there already, but is not the whole set"):
        fetch("pbc", url=server.url)
    assert tree(cache) == before


def test_two_versions_of_pbc_make_no_set(server, cache):
    """Without tags and at the same length only the archive's own check sums can tell."""
    server.etag, server.data = None, ZIP
    place = ZIP.index(b"EO_7.jpg") + 12
    other = ZIP[:place] + bytes([ZIP[place] ^ 255]) + ZIP[place + 1 :]
    server.script = [Answer(body=other, cut=place + 10)]
    with pytest.raises(DataError, match=r"'.*EO_7\.jpg' is damaged .*It was removed"):
        fetch("pbc", url=server.url)
    assert tree(cache / "pbc") == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ZIP[:-400], "not a zip file"),
        (zipped(FILES | {"eosinophil/EO_8.jpg": b"one more"}), "2 images eosinophil/EO_"),
        (zipped({k: v for k, v in FILES.items() if "SNE_2" not in k}), "2 images neutrophil/SNE_"),
        (zipped(FILES | {"other/XX_8.jpg": b"one more"}), "1 images other/XX_"),
        (zipped(FILES | {"eosinophil/EO_7.jpg": b"altered"}), "1 of 2 known images"),
        (zipped(FILES, [("elsewhere/x.jpg", b"")]), "'elsewhere/x.jpg' lies outside the folder"),
        (zipped({}, top="other"), "'other/' lies outside the folder"),
        (raw_npz({}), "is no zip file"),
    ],
)
def test_a_wrong_archive_is_refused_and_removed(server, cache, data, message):
    server.data = data
    with pytest.raises(DataError, match=message):
        fetch("pbc", url=server.url)
    assert tree(cache / "pbc") == {}


def member(name, mode=stat.S_IFREG | 0o644, **fields):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def patched(data, name, offset_central, offset_local, value):
    """Overwrite two bytes of both headers of a member."""
    data = bytearray(data)
    central = data.rindex(name) - 46
    local = struct.unpack_from("<I", data, central + 42)[0]
    struct.pack_into("<H", data, central + offset_central, value)
    struct.pack_into("<H", data, local + offset_local, value)
    return bytes(data)


def announced(data, name, size):
    """Say another unpacked size of a member than it has."""
    data = bytearray(data)
    central = data.rindex(name) - 46
    local = struct.unpack_from("<I", data, central + 42)[0]
    struct.pack_into("<I", data, central + 24, size)
    struct.pack_into("<I", data, local + 22, size)
    return bytes(data)


def otherwise_packed(method):
    buffer = io.BytesIO(ZIP)
    with zipfile.ZipFile(buffer, "a") as bundle:
        bundle.writestr(f"{TOP}/neutrophil/x.jpg", b"x" * 1000, method)
    return buffer.getvalue()


X = f"{TOP}/neutrophil/x.jpg"
BOMB = zipped(FILES, [(X, bytes(3_000_000))])
HOSTILE = {
    "up": (zipped(FILES, [(f"{TOP}/../../out.jpg", b"")]), r"out.jpg' is an unsafe name"),
    "absolute": (zipped(FILES, [("/out.jpg", b"")]), "'/out.jpg' is an unsafe name"),
    "backslash": (zipped(FILES, [(f"{TOP}\\..\\out.jpg", b"")]), "out.jpg' is an unsafe name"),
    "drive": (zipped(FILES, [("C:/out.jpg", b"")]), "'C:/out.jpg' is an unsafe name"),
    "stream": (zipped(FILES, [(f"{X}:out", b"")]), "x.jpg:out' is an unsafe name"),
    "zero": (zipped(FILES).replace(b"SNE_1", b"SNE\0\x31"), r"SNE\\x001.jpg' is an unsafe name"),
    "long": (zipped(FILES, [(f"{TOP}/{'d/' * 100}x", b"")]), "d/x' is an unsafe name"),
    "no name": (zipped(FILES, [(".", b"")]), "'.' is an unsafe name"),
    "link": (
        zipped(FILES, [(member(X, stat.S_IFLNK | 0o777), "/etc/hostname")]),
        "x.jpg' is a link or a device",
    ),
    "link to a folder": (
        zipped(FILES, [(member(f"{TOP}/d", stat.S_IFLNK | 0o777), ".."), (f"{TOP}/d/out", b"")]),
        "/d' is a link or a device",
    ),
    "device": (zipped(FILES, [(member(X, stat.S_IFCHR | 0o666), "")]), "x.jpg' is a link or a dev"),
    "pipe": (zipped(FILES, [(member(X, stat.S_IFIFO | 0o666), "")]), "x.jpg' is a link or a dev"),
    "twice": (zipped(FILES, [(f"{TOP}/eosinophil/EO_7.jpg", b"")]), "EO_7.jpg' is there twice"),
    "twice, other name": (
        zipped(FILES, [(f"{TOP}//eosinophil/./EO_7.jpg", b"")]),
        "EO_7.jpg' is there twice",
    ),
    "case": (
        zipped(FILES, [(f"{TOP}/eosinophil/eo_7.JPG", b"")]),
        r"eo_7.JPG' and '.*/EO_7.jpg' differ only in case",
    ),
    "case of a folder": (
        zipped(FILES, [(f"{TOP}/Eosinophil/EO_8.jpg", b"")]),
        r"EO_8.jpg' and '.*/eosinophil' differ only in case",
    ),
    "accents": (
        zipped(FILES, [(f"{TOP}/e\u0301.jpg", b""), (f"{TOP}/\u00e9.jpg", b"")]),
        "differ only in case",
    ),
    "file and folder": (
        zipped(FILES, [(f"{TOP}/eosinophil/EO_7.jpg/x", b"")]),
        "EO_7.jpg' is a file and a folder",
    ),
    "bomb": (BOMB, "x.jpg' is one too many: with it, more than 100,000 bytes"),
    # zipfile reads what was announced and then finds that the check sum does not fit
    "lying bomb": (announced(BOMB, X.encode(), 10), r"x.jpg' is damaged \(Bad CRC-32"),
    "encrypted": (patched(zipped(FILES, [(X, b"x")]), X.encode(), 8, 6, 1), "x.jpg' is encrypted"),
    "bzip2": (otherwise_packed(zipfile.ZIP_BZIP2), r"x.jpg' is packed by an unusual method \(12\)"),
    "lzma": (otherwise_packed(zipfile.ZIP_LZMA), r"x.jpg' is packed by an unusual method \(14\)"),
    "method 99": (patched(BOMB, X.encode(), 10, 8, 99), r"unusual method \(99\)"),
    "two names": (
        zipped(FILES, [(X, b"x")]).replace(X.encode(), X.encode().replace(b"x.j", b"y.j"), 1),
        "x.jpg' is damaged .*differ",
    ),
    "prefix": (b"#!/bin/sh\n" + ZIP, "something else stands before its first member"),
    "truncated": (ZIP[: len(ZIP) // 2], "not a zip file"),
    "nothing": (b"", "not a zip file"),
    "not UTF-8": (
        zipped(FILES, [(f"{TOP}/\u00e9.jpg", b"")]).replace("\u00e9".encode(), b"\xff\xfe"),
        "utf-8",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives(tmp_path, monkeypatch, case):
    monkeypatch.setattr(module, "_MOST_BYTES", 100_000)
    data, message = HOSTILE[case]
    archive = tmp_path / "x.zip"
    archive.write_bytes(data)
    with pytest.raises((DataError, zipfile.BadZipFile, UnicodeDecodeError), match=message):
        module.install(archive, tmp_path / TOP, SETS["pbc"].images, DIGESTS)
    assert tree(tmp_path) == {"x.zip": data}


@pytest.mark.parametrize("case", ["up", "link", "lying bomb", "encrypted", "not UTF-8"])
def test_hostile_archives_from_a_server(server, cache, case):
    server.data, message = HOSTILE[case]
    with pytest.raises(DataError, match=rf"(?s){message}.*It was removed\nBy hand: "):
        fetch("pbc", url=server.url)
    assert tree(cache.parent) == {"cache": None, "cache/pbc": None}


def test_too_many_members(tmp_path, monkeypatch):
    members = len(FILES) + 2
    archive = tmp_path / "x.zip"
    archive.write_bytes(ZIP)
    monkeypatch.setattr(module, "_MOST_MEMBERS", members)
    unpack(archive, tmp_path / "a", TOP, 10**6)
    monkeypatch.setattr(module, "_MOST_MEMBERS", members - 1)
    with pytest.raises(DataError, match=f"{members} members, expected at most {members - 1}"):
        unpack(archive, tmp_path / "b", TOP, 10**6)
    assert not (tmp_path / "b").exists()


def test_size_bound(tmp_path):
    archive = tmp_path / "x.zip"
    archive.write_bytes(ZIP)
    whole = sum(map(len, FILES.values()))
    unpack(archive, tmp_path / "a", TOP, most_bytes=whole)
    with pytest.raises(DataError, match=f"more than {whole - 1:,} bytes would be unpacked"):
        unpack(archive, tmp_path / "b", TOP, most_bytes=whole - 1)
    assert not (tmp_path / "b").exists()


def test_any_damage_is_a_complaint_not_a_crash(tmp_path):
    """Bytes of an archive overwritten at random: unpacked as it was, or refused by a message."""
    rng = np.random.default_rng(0)
    archive = tmp_path / "x.zip"
    (tmp_path / "in").mkdir()
    whole = None
    refused = 0
    for _ in range(120):
        data = bytearray(ZIP)
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(0, 256)
        archive.write_bytes(data)
        try:
            module.install(archive, tmp_path / "in" / TOP, SETS["pbc"].images, DIGESTS)
        except module._WRONG:
            refused += 1
            assert tree(tmp_path / "in") == {}
        else:
            whole = {name: (tmp_path / "in" / TOP / name).read_bytes() for name in FILES}
            assert whole == FILES
            module.shutil.rmtree(tmp_path / "in" / TOP)
    assert refused > 40 and whole


def test_notes_that_are_damaged_start_anew(server, tmp_path):
    server.script = [Answer(cut=500)]
    part = download(server.url, tmp_path / "part", 20_000)
    for notes in (b"", b"[]", b'{"etag": null}', b"\xff", json.dumps("x").encode()):
        part.write_bytes(NPZ[:500])
        (tmp_path / "part.json").write_bytes(notes)
        assert download(server.url, part, 20_000).read_bytes() == NPZ
        assert server.asked[-1] is None
