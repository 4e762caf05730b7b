"""Fetching a set: from a server on this machine, with all that may go wrong."""

import hashlib
import io
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cellaug.data import DataError
from cellaug.data import download as module
from cellaug.data.download import PBC_IMAGES, download, fetch, install, unpack

import pytest

TOP = "PBC_dataset_normal_DIB"
FILES = {f"neutrophil/SNE_{i}.jpg": bytes([i]) * 3000 for i in range(3)} | {
    "eosinophil/EO_7.jpg": b"eosinophil" * 500,
    "neutrophil/.DS_169665.jpg": b"clutter",
}
IMAGES = {"neutrophil/SNE": 3, "eosinophil/EO": 1}
DIGESTS = b"".join(
    hashlib.sha256(FILES[name]).digest()[:8]
    for name in ("eosinophil/EO_7.jpg", "neutrophil/SNE_0.jpg")
)


def zipped(files, extra=()):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr(f"{TOP}/", "")
        bundle.writestr("__MACOSX/._x", "clutter")
        for name, data in files.items():
            bundle.writestr(f"{TOP}/{name}", data)
        for name, data in extra:
            bundle.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def server():
    """A server of one file; its attributes say how it serves it."""

    class Handler(BaseHTTPRequestHandler):
        data = zipped(FILES)
        ranges = True
        cut = None

        def do_GET(self):
            self.asked.append(self.headers.get("Range"))
            start = 0
            if self.path != "/file":
                self.send_error(404)
                return
            if self.ranges and self.headers.get("Range"):
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= len(self.data):
                    self.send_error(416)
                    return
            body = self.data[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.cut is None else body[: self.cut])

        def log_message(self, *arguments):
            pass

    Handler.asked = []
    host = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    Handler.url = f"http://127.0.0.1:{host.server_address[1]}/file"
    yield Handler
    host.shutdown()
    host.server_close()


@pytest.fixture
def small_set(monkeypatch, tmp_path):
    """Let `fetch` expect the small archive of these tests."""
    monkeypatch.setattr(module, "PBC_IMAGES", IMAGES)
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "known_digests", lambda: DIGESTS)
    return tmp_path / "cache" / "pbc"


def test_fetch(server, small_set):
    folder = fetch("pbc", url=server.url)
    assert folder == small_set / TOP
    for name, data in FILES.items():
        assert (folder / name).read_bytes() == data
    assert [p.name for p in small_set.iterdir()] == [TOP]
    assert fetch("pbc", url="http://127.0.0.1:1/never") == folder
    assert server.asked == [None]


def test_fetch_to_another_place(server, small_set, tmp_path):
    assert fetch("pbc", tmp_path / "here", server.url) == tmp_path / "here" / TOP
    assert not small_set.exists()


def test_a_broken_download_goes_on(server, small_set):
    server.cut = 500
    with pytest.raises(DataError, match=r"(?s)Try again.*By hand: .*CELLAUG_DATA"):
        fetch("pbc", url=server.url)
    part = small_set / f"{TOP}.zip.part"
    assert part.read_bytes() == server.data[:500]
    server.cut = None
    assert fetch("pbc", url=server.url).is_dir()
    assert server.asked == [None, "bytes=500-"]
    assert not part.exists()


def test_a_server_without_ranges_starts_anew(server, tmp_path):
    part = tmp_path / "part"
    part.write_bytes(b"x" * 100)
    server.ranges = False
    assert download(server.url, part).read_bytes() == server.data


def test_a_complete_part_is_not_downloaded_again(server, tmp_path):
    part = tmp_path / "part"
    part.write_bytes(server.data)
    assert download(server.url, part).read_bytes() == server.data


def test_server_complaints(server, small_set):
    with pytest.raises(DataError, match=r"(?s)answered 404.*doi\.org/10\.17632/snkd93bnjr\.1"):
        fetch("pbc", url=server.url + "s")
    with pytest.raises(DataError, match="Connection refused"):
        fetch("pbc", url="http://127.0.0.1:1/file")
    with pytest.raises(DataError, match="'bloodmnist'"):
        fetch("bloodmnist")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>log in</html>", "not a zip file"),
        (zipped(FILES)[:-400], "not a zip file"),
        (zipped(FILES | {"eosinophil/EO_8.jpg": b"one more"}), "2 images eosinophil/EO_"),
        (zipped({k: v for k, v in FILES.items() if "SNE_2" not in k}), "2 images neutrophil/SNE_"),
        (zipped(FILES | {"other/XX_8.jpg": b"one more"}), "1 images other/XX_"),
        (zipped(FILES | {"eosinophil/EO_7.jpg": b"altered"}), "1 of 2 known images"),
        (zipped(FILES, [("elsewhere/x.jpg", b"")]), "outside the folder"),
    ],
)
def test_a_wrong_archive_is_refused_and_removed(server, small_set, data, message):
    server.data = data
    with pytest.raises(DataError, match=message):
        fetch("pbc", url=server.url)
    assert list(small_set.iterdir()) == []


def test_damage_inside_the_archive_is_found(tmp_path):
    data = bytearray(zipped(FILES))
    place = data.index(b"SNE_1.jpg") + 12
    data[place] ^= 255
    archive = tmp_path / "x.zip.part"
    archive.write_bytes(data)
    with pytest.raises(DataError, match="not the expected archive"):
        install(archive, tmp_path / TOP, IMAGES, DIGESTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", [f"{TOP}/../../out.jpg", "/out.jpg", f"{TOP}\\..\\out.jpg", "C:/out.jpg"]
)
def test_unsafe_names(tmp_path, name):
    (tmp_path / "into").mkdir()
    archive = tmp_path / "x.zip"
    archive.write_bytes(zipped(FILES, [(name, b"evil")]))
    with pytest.raises(DataError, match="unsafe name"):
        unpack(archive, tmp_path / "into", TOP)
    assert not list(tmp_path.rglob("*out.jpg"))


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo(f"{TOP}/neutrophil/SNE_9.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = tmp_path / "x.zip"
    archive.write_bytes(zipped(FILES, [(link, "/etc/hostname")]))
    with pytest.raises(DataError, match="link"):
        unpack(archive, tmp_path / "into", TOP)


def test_size_bound(tmp_path):
    archive = tmp_path / "x.zip"
    archive.write_bytes(zipped(FILES))
    whole = sum(map(len, FILES.values()))
    unpack(archive, tmp_path / "a", TOP, most_bytes=whole)
    with pytest.raises(DataError, match="more than"):
        unpack(archive, tmp_path / "b", TOP, most_bytes=whole - 1)


def test_what_is_known_of_pbc():
    assert sum(PBC_IMAGES.values()) == 17092
    digests = module.known_digests()
    parts = [digests[i : i + 8] for i in range(0, len(digests), 8)]
    assert len(parts) == 10294 and parts == sorted(set(parts))
    assert Path(module.__file__).with_name("pbc_digests.bin").stat().st_size == len(digests)
