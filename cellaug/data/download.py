"""Fetch a public set once: download, verify, unpack, move into place.

What comes from outside is not trusted: only http and https are followed, a download has a most
size, an archive is checked as a whole before its first file is written, and everything is built in
a folder of its own that is renamed when it is complete. One process at a time works on a set.
"""

import csv
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import stat
import struct
import sys
import time
import unicodedata
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from cellaug.data.catalogue import BLOODMNIST_CLASSES, PBC_TOP, homes
from cellaug.data.errors import DataError
from cellaug.data.images import write_atomically, write_png
from cellaug.data.manifest import MANIFEST
from cellaug.data.scan import cache_home

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib import format as npy
from tqdm import tqdm

TRIES = 3
PAUSE_S = 2.0
"""A download that breaks off is taken up again so often, after so many seconds."""

PBC_IMAGES = {
    "neutrophil/SNE": 1646,
    "neutrophil/BNE": 1633,
    "neutrophil/NEUTROPHIL": 50,
    "eosinophil/EO": 3117,
    "basophil/BA": 1218,
    "lymphocyte/LY": 1214,
    "monocyte/MO": 1420,
    "ig/PMY": 592,
    "ig/MY": 1137,
    "ig/MMY": 1015,
    "ig/IG": 151,
    "erythroblast/ERB": 1551,
    "platelet/PLATELET": 2348,
}
"""Images by folder and file-name prefix in the set as published, 17,092 in all."""

BLOODMNIST_IMAGES = {"train": 11959, "validation": 1712, "test": 3421}
"""Images by side of the official split."""

_ARRAYS = {"train": "train", "validation": "val", "test": "test"}  # BloodMNIST's own words
_BLOCK_BYTES = 8 * 2**20  # of decoded images in memory at a time
_CHUNK = 256 * 2**10
_DIGEST_BYTES = 8
_DISK_BLOCK = 4096  # a file takes up whole blocks
_LONGEST_NAME = 200
_MOST_BYTES = 2**30  # of the unpacked PBC set, which has about 0.3 GB
_MOST_MEMBERS = 100_000
_SLOWEST = 1024  # bytes per second; a server that is slower has stalled
_NPY_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

# What reading a damaged, encrypted or hostile zip file raises. DataError is a ValueError, and what
# zipfile says of an unknown way of packing is a RuntimeError.
_WRONG = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True)
class Published:
    """A set as its authors publish it: one archive and what is known of it.

    `images` are the numbers of its images: of PBC by "folder/file-name prefix", of BloodMNIST by
    side of the official split. `most_bytes` bounds the download, `unpacked_bytes` the folder made
    from it. `size` are BloodMNIST's pixels. `md5` is empty where the authors publish no check sum.
    """

    summary: str
    url: str
    page: str
    file: str
    images: Mapping[str, int]
    most_bytes: int
    unpacked_bytes: int
    size: int = 0
    md5: str = ""


def _bloodmnist(size: int, md5: str) -> Published:
    file = "bloodmnist.npz" if size == 28 else f"bloodmnist_{size}.npz"
    count, image_bytes = sum(BLOODMNIST_IMAGES.values()), size * size * 3
    return Published(
        summary=f"{count:,} of PBC's cells at {size}×{size} pixels in 8 classes, with an official "
        "split; MedMNIST v2, CC BY 4.0",
        url=f"https://zenodo.org/records/10519652/files/{file}?download=1",
        page="https://zenodo.org/records/10519652",
        file=file,
        images=BLOODMNIST_IMAGES,
        most_bytes=2**20 + count * image_bytes * 101 // 100,  # deflate hardly ever adds anything
        unpacked_bytes=count * (image_bytes + _DISK_BLOCK),
        size=size,
        md5=md5,
    )


SETS: dict[str, Published] = {
    "pbc": Published(
        summary="17,092 normal blood cells of about 360×363 pixels in 8 classes, CC BY 4.0",
        url="https://data.mendeley.com/public-files/datasets/snkd93bnjr/files/"
        "2fc38728-2ae7-4a62-a857-032af82334c3/file_downloaded",
        page="https://doi.org/10.17632/snkd93bnjr.1",
        file=f"{PBC_TOP}.zip",
        images=PBC_IMAGES,
        most_bytes=_MOST_BYTES,
        unpacked_bytes=400_000_000,
    ),
    "bloodmnist-28": _bloodmnist(28, "7053d0359d879ad8a5505303e11de1dc"),
    "bloodmnist-64": _bloodmnist(64, "2b94928a2ae4916078ca51e05b6b800b"),
    "bloodmnist-128": _bloodmnist(128, "adace1e0ed228fccda1f39692059dd4c"),
    "bloodmnist-224": _bloodmnist(224, "b718ff6835fcbdb22ba9eacccd7b2601"),
}
"""What `fetch` knows, by name."""


def fetch(
    name: str,
    destination: str | Path | None = None,
    url: str | None = None,
    *,
    timeout: float = 60.0,
) -> Path:
    """Download a public set of real images, unless it is there already; return its folder.

    A broken download is taken up where it stopped, three times by itself and then whenever `fetch`
    is called again. BloodMNIST is verified by its published MD5 before it is opened. PBC's authors
    publish no check sum; so the archive's own check sums, the published number of images of each
    kind and the digests of more than 10,000 known images must agree. Whatever goes wrong, there is
    the complete set afterwards, or what was there before and perhaps a broken download.

    Args:
        name: one of `SETS`.
        destination: the folder to make the set's own folder in (`PBC_dataset_normal_DIB`, or one
            named like the set); by default where `open_dataset` looks, in the cache home.
        url: another place to get the same archive from.
        timeout: seconds without data after which the server is taken to have stalled.

    Raises:
        DataError: if the set cannot be had, with what to do by hand.
    """
    if name not in SETS:
        raise DataError(f"no set named {name!r} can be fetched; there are {', '.join(SETS)}")
    published = SETS[name]
    home, top = (cache_home() / "pbc", PBC_TOP) if name == "pbc" else (cache_home(), name)
    if destination is not None:
        home = Path(destination).expanduser()
    folder = home / top
    if _is_whole(folder, published):
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if not _is_settled(folder, published):
                _get(published, folder, url or published.url, timeout)
    except OSError as error:
        raise DataError(f"{folder} could not be made: {error}") from error
    return folder


def _get(published: Published, folder: Path, url: str, timeout: float) -> None:
    """Make the folder of a set from a file put there by hand or a download."""
    part = folder.with_name(f"{published.file}.part")
    try:
        given = _put_by_hand(published.file, folder.parent) if published.md5 else None
        if not given:
            download(url, part, published.most_bytes, published.unpacked_bytes, timeout=timeout)
        _check_room(folder.parent, published.unpacked_bytes)
        if given:
            _verify(given, published.md5)
            _expand(given, folder, published)
            return
        try:
            if published.md5:
                _verify(part, published.md5)
                _expand(part, folder, published)
            else:
                install(part, folder, published.images, known_digests())
        except _WRONG as error:
            _discard(part)
            raise DataError(
                f"what {url} sent is not the expected file: {error}. It was removed"
            ) from error
        _discard(part)
    except DataError as error:
        raise DataError(f"{error}\n{_by_hand(published, folder)}") from error


def _by_hand(published: Published, folder: Path) -> str:
    if published.md5:
        return (
            f"By hand: download {published.file} from {published.page} with a browser and put it "
            f"into {cache_home()} or into the folder that CELLAUG_DATA names"
        )
    return (
        f"By hand: download the archive from {published.page} with a browser and unpack it so that "
        f"{folder} holds the class folders (or anywhere else, with CELLAUG_DATA set to the folder "
        "around it)"
    )


def _put_by_hand(file: str, home: Path) -> Path | None:
    return next((place / file for place in (home, *homes()) if (place / file).is_file()), None)


def known_digests() -> bytes:
    """Return the first 8 bytes of the SHA-256 of known images of PBC, one after another."""
    return Path(__file__).with_name("pbc_digests.bin").read_bytes()


# The folder of a set.


def _is_whole(folder: Path, published: Published) -> bool:
    """Whether a folder holds all images of a set, as far as names can tell."""
    if not published.md5:
        return _count_images(folder) == Counter(published.images)
    try:
        with (folder / MANIFEST).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False
    there = {f"{path.parent.name}/{path.name}" for path in folder.glob("*/*.png")}
    sides = Counter(row.get("split") for row in rows)
    return sides == Counter(published.images) and there.issuperset(row.get("path") for row in rows)


def _is_settled(folder: Path, published: Published) -> bool:
    """Whether the set is there; DataError if something else is in its place."""
    if _is_whole(folder, published):
        return True
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(
            f"{folder} is there already, but is not the whole set. It was left as it is: move it "
            "away, or choose another destination"
        )
    return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let only one process or thread at a time make `folder`; the others wait and find it made."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder} is being made by another process; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file; FileLock does it there
            Path(lock.lock_file).unlink()
        lock.release()


@contextmanager
def _building(folder: Path) -> Iterator[Path]:
    """Yield a place beside `folder` to make it in, then move it; what a killed run left goes."""
    place = folder.with_name(f".{folder.name}.unpacking")
    if place.exists():
        shutil.rmtree(place)
    place.mkdir()
    try:
        yield place / folder.name
        (place / folder.name).rename(folder)
    finally:
        shutil.rmtree(place)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder}: {needed / 1e6:,.1f} MB are needed there, but the disk has only "
            f"{free / 1e6:,.1f} MB left. Make room, or choose another destination"
        )


# The download.


class _Broken(Exception):
    """A download broke off in a way that another try may mend."""


class _WebOnly(urllib.request.HTTPRedirectHandler):
    """Follow redirections to http and https alone; urllib itself also takes ftp."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str) -> None:
    if not url.lower().startswith(("http://", "https://")):
        raise DataError(f"{url} is refused: only http and https addresses are followed")


def download(
    url: str, part: Path, most_bytes: int, unpacked_bytes: int = 0, *, timeout: float = 60.0
) -> Path:
    """Download a zip or npz file to `part`, going on where an earlier try stopped; return `part`.

    Beside it, `<part>.json` keeps what the server said of the file: if that changes, or if the
    server does not go on at the right byte, the download starts anew.

    Args:
        url: http or https.
        part: the file to write.
        most_bytes: of the file; what announces or sends more is refused.
        unpacked_bytes: that the disk must have room for besides.
        timeout: seconds without data, or with hardly any, that count as a stall.

    Raises:
        DataError: if it cannot be completed. What came so far is kept unless it is useless.
    """
    _check_scheme(url)
    for number in itertools.count(1):
        try:
            _transfer(url, part, most_bytes, unpacked_bytes, timeout)
        except _Broken as error:
            if number == TRIES:
                raise DataError(
                    f"{url}: {error}; so ended the last of {TRIES} tries. Try again later: the "
                    "download goes on where it stopped"
                ) from error
            time.sleep(PAUSE_S)
        else:
            break
    return part


def _transfer(url: str, part: Path, most_bytes: int, room: int, timeout: float) -> None:
    """Try once to complete `part`."""
    known = _notes(part)
    have = part.stat().st_size if known and part.exists() else 0
    if have and have == known["total"]:
        return
    headers = {"User-Agent": "cellaug", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator := known["etag"] or known["modified"]:
            headers["If-Range"] = validator
    response = _ask(url, headers, timeout, part, have)
    if response is None:
        return
    with response:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise DataError(
                f"{url}: the server sends the file as {response.headers['Content-Encoding']}, "
                "which was not asked for"
            )
        if response.status == 206:
            end, total = _range(response.headers.get("Content-Range", ""), part, have)
        elif response.status == 200:
            have, end = 0, response.length
            total = end
        else:
            raise DataError(f"{url}: the server answered {response.status} {response.reason}")
        notes = _notes_of(response.headers, total)
        if have and any(known[key] and notes[key] and known[key] != notes[key] for key in notes):
            _discard(part)
            raise _Broken("the file on the server has changed since the download began")
        if (total or 0) > most_bytes:
            raise DataError(
                f"{url}: the server announces {total:,} bytes, but the file has at most "
                f"{most_bytes:,}"
            )
        _check_room(part.parent, (total or most_bytes) - have + room)
        start = b"" if have else _beginning(response, url, timeout)
        shown = {"unit": "B", "unit_scale": True, "desc": part.stem, "disable": None}
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(total=total, initial=have, **shown) as bar,
        ):
            write_atomically(_notes_file(part), json.dumps(notes).encode())
            file.write(start)
            size = _append(response, file, have + len(start), end, most_bytes, timeout, bar)
    if size > most_bytes:
        _discard(part)
        raise DataError(
            f"{url}: the server sends more than the {most_bytes:,} bytes that the file has at most"
        )
    if total is not None and size < total:
        raise _Broken(f"the transfer broke off after {size:,} of {total:,} bytes")


def _ask(
    url: str, headers: dict[str, str], timeout: float, part: Path, have: int
) -> HTTPResponse | None:
    """Send the request; None if the server says that there is nothing after `part`."""
    try:
        with _reading(timeout):
            request = urllib.request.Request(url, headers=headers)
            return urllib.request.build_opener(_WebOnly).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        answer = f"the server answered {error.code} {error.reason}"
        if error.code == 416 and have:
            if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
                return None
            _discard(part)
            raise _Broken(f"{answer} where more bytes were expected") from error
        if error.code == 429 or error.code >= 500:
            raise _Broken(answer) from error
        raise DataError(f"{url}: {answer}") from error
    except urllib.error.URLError as error:
        host = urlsplit(url).netloc
        raise DataError(f"{host} or where it leads cannot be reached: {error.reason}") from error
    except DataError:
        raise
    except (ValueError, InvalidURL) as error:
        raise DataError(f"{url} or where it leads is no address: {error}") from error


@contextmanager
def _reading(timeout: float) -> Iterator[None]:
    """Tell apart how a connection fails: what another try may mend is `_Broken`."""
    try:
        yield
    except (urllib.error.URLError, InvalidURL):
        raise
    except TimeoutError as error:
        raise _Broken(f"the server stalled: no data for {timeout:g} s") from error
    except (OSError, HTTPException) as error:
        raise _Broken(f"the connection broke off ({error})") from error


def _range(text: str, part: Path, have: int) -> tuple[int, int | None]:
    """Return where a partial answer ends and the length of the whole, if known."""
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text.strip())
    if found and have and int(found[1]) == have <= int(found[2]):
        return int(found[2]) + 1, None if found[3] == "*" else int(found[3])
    _discard(part)
    asked = f"from byte {have:,} on" if have else "the whole file"
    raise _Broken(f"the server was asked for {asked}, but sent {text!r}")


def _beginning(response: HTTPResponse, url: str, timeout: float) -> bytes:
    """Return the first 4 bytes if they are those of a zip file.

    A log-in page or an empty answer must not replace what an earlier try brought.
    """
    with _reading(timeout):
        start = response.read(4)
        if len(start) < 4:
            raise _Broken(f"the transfer broke off after {len(start)} bytes")
        if start != b"PK\x03\x04":
            start += response.read(40)
            raise DataError(f"{url}: what the server sends is no zip file; it begins {start!r}")
    return start


def _append(
    response: HTTPResponse,
    file: BinaryIO,
    size: int,
    end: int | None,
    most_bytes: int,
    timeout: float,
    bar: tqdm,
) -> int:
    """Append the answer to a file of `size` bytes until `end` or its own end; return the size."""
    since, before = time.monotonic(), size
    while size != end and size <= most_bytes:
        with _reading(timeout):
            # what came is written at once, so that nothing of it is lost with the connection
            chunk = response.read1(_CHUNK if end is None else min(_CHUNK, end - size))
        if not chunk:
            break
        file.write(chunk)
        size += len(chunk)
        bar.update(len(chunk))
        if (waited := time.monotonic() - since) > timeout:
            if size - before < _SLOWEST * waited:
                raise _Broken(f"the server stalled: {size - before:,} bytes in {waited:.3g} s")
            since, before = time.monotonic(), size
    return size


def _notes_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _notes_of(headers: HTTPMessage, total: int | None) -> dict:
    etag = headers.get("ETag")
    # A weak tag does not promise the same bytes.
    strong = None if etag is None or etag.startswith("W/") else etag
    return {"etag": strong, "modified": headers.get("Last-Modified"), "total": total}


def _notes(part: Path) -> dict | None:
    """What the server said of the file that `part` is the beginning of, if that is known."""
    try:
        notes = json.loads(_notes_file(part).read_bytes())
        return {key: notes[key] for key in ("etag", "modified", "total")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes_file(part).unlink(missing_ok=True)


# Unpacking PBC.


def install(archive: Path, folder: Path, images: Mapping[str, int], digests: bytes) -> None:
    """Verify a zip file, whose top folder is named like `folder`, and unpack it as `folder`.

    Args:
        archive: is left as it is.
        folder: must not be there, or be empty.
        images: the expected numbers of images by "class folder/file-name prefix".
        digests: the first 8 bytes of the SHA-256 of images that must be among them, one after
            another.

    Raises:
        DataError: if the archive is not as expected; `zipfile.BadZipFile` if it is none.
    """
    with _building(folder) as top:
        unpack(archive, top.parent, top.name, _MOST_BYTES)
        _check_images(top, images, digests)


def unpack(archive: Path, into: Path, top: str, most_bytes: int) -> None:
    """Unpack the folder `top` of a zip file into the folder `into`.

    The whole archive is looked through before anything is written; clutter of macOS is left out.

    Raises:
        DataError: for a member that is damaged, encrypted or packed by an unusual method, that
            could get outside `into`, is no plain file or folder, or could overwrite another one,
            and for more than `most_bytes` in all; `zipfile.BadZipFile` for what is no zip file.
    """
    with zipfile.ZipFile(archive) as bundle:
        members = _checked(bundle.infolist(), top, most_bytes)
        for name, member in tqdm(members, "unpacking", leave=False, delay=2, disable=None):
            target = into / name
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                file.writelines(_contents(bundle, member))


def _contents(bundle: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield what a member holds, piece by piece; no more than the size that was announced."""
    try:
        with bundle.open(member) as source:
            while chunk := source.read(_CHUNK):
                yield chunk
    except (*_WRONG, OSError) as error:
        raise DataError(f"{member.filename!r} is damaged ({error})") from error


def _checked(
    members: list[zipfile.ZipInfo], top: str, most_bytes: int
) -> list[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """Return the members of the folder `top` and where they go, if all of them are harmless."""
    if len(members) > _MOST_MEMBERS:
        raise DataError(f"{len(members):,} members, expected at most {_MOST_MEMBERS:,}")
    if min((member.header_offset for member in members), default=0) > 0:
        raise DataError("something else stands before its first member")
    chosen: dict[PurePosixPath, zipfile.ZipInfo] = {}
    spelt: dict[str, PurePosixPath] = {}
    size = 0
    for member in members:
        name = PurePosixPath(member.filename)
        if problem := _problem(member, name):
            raise DataError(f"{member.orig_filename!r} {problem}")
        if name.parts[0] == "__MACOSX":
            continue
        if name.parts[0] != top:
            raise DataError(f"{member.filename!r} lies outside the folder {top}")
        if name in chosen:
            raise DataError(f"{member.filename!r} is there twice")
        for path in (name, *name.parents):
            # how the file systems of Windows and macOS compare names
            other = spelt.setdefault(unicodedata.normalize("NFC", str(path)).casefold(), path)
            if other != path:
                raise DataError(f"{member.filename!r} and {str(other)!r} differ only in case")
        size += member.file_size
        if size > most_bytes:
            raise DataError(
                f"{member.filename!r} is one too many: with it, more than {most_bytes:,} bytes "
                "would be unpacked"
            )
        chosen[name] = member
    for name in chosen:
        for parent in name.parents:
            if parent in chosen and not chosen[parent].is_dir():
                raise DataError(f"{str(parent)!r} is a file and a folder at once")
    return list(chosen.items())


def _problem(member: zipfile.ZipInfo, name: PurePosixPath) -> str:
    """Say what is wrong with a member's name or kind; empty if nothing is."""
    whole = member.orig_filename  # zipfile cuts the other one at a zero byte
    outside = name.is_absolute() or not name.parts or ".." in name.parts
    if outside or set(whole) & set("\\:\0") or len(whole.encode()) > _LONGEST_NAME:
        return "is an unsafe name"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a file"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is packed by an unusual method ({member.compress_type})"
    return ""


def _count_images(top: Path) -> Counter:
    """Count the images of a PBC folder by class folder and file-name prefix."""
    return Counter(
        f"{file.parent.name}/{file.name.split('_')[0]}" for file in top.glob("*/[!.]*.jpg")
    )


def _check_images(top: Path, images: Mapping[str, int], digests: bytes) -> None:
    found = _count_images(top)
    for kind in sorted(set(found) | set(images)):
        if found[kind] != images.get(kind, 0):
            raise DataError(
                f"{found[kind]:,} images {kind}_*.jpg where {images.get(kind, 0):,} were expected"
            )
    files = top.glob("*/[!.]*.jpg")
    seen = {hashlib.sha256(file.read_bytes()).digest()[:_DIGEST_BYTES] for file in files}
    known = {digests[i : i + _DIGEST_BYTES] for i in range(0, len(digests), _DIGEST_BYTES)}
    if missing := len(known - seen):
        raise DataError(f"{missing:,} of {len(known):,} known images are missing or altered")


# Expanding BloodMNIST.


def expand_npz(
    archive: Path,
    folder: Path,
    size: int,
    counts: Mapping[str, int] = BLOODMNIST_IMAGES,
    md5: str | None = None,
) -> None:
    """Verify a published npz file of BloodMNIST and make a folder of images from it.

    The folder holds `<class name>/<side>_<number>.png`, numbered from 00000 in the published order
    of each side, and `manifest.csv` with the columns path, label (the class name) and split
    (train, validation or test). It appears when it is complete; if it is there already, nothing is
    done. The arrays are read piece by piece, so little memory is needed at any size.

    Args:
        archive: the npz file; it is left as it is.
        folder: to make; the folder around it is made too.
        size: of its images, pixels.
        counts: the expected numbers of images of the sides.
        md5: of the file, hexadecimal; the published one if None.

    Raises:
        DataError: if the file is not the published one, there is no room on the disk, or the folder
            holds something else.
    """
    if md5 is None:
        if f"bloodmnist-{size}" not in SETS:
            raise DataError(f"BloodMNIST of {size} pixels is not published")
        md5 = SETS[f"bloodmnist-{size}"].md5
    published = replace(_bloodmnist(size, md5), images=counts)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if not _is_settled(folder, published):
                _check_room(folder.parent, published.unpacked_bytes)
                _verify(archive, md5)
                _expand(archive, folder, published)
    except OSError as error:
        raise DataError(f"{folder} could not be made: {error}") from error


def _verify(file: Path, md5: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise DataError(f"{file} is not the published file: its MD5 is {found}, expected {md5}")


def _expand(archive: Path, folder: Path, published: Published) -> None:
    size, counts = published.size, published.images
    try:
        with zipfile.ZipFile(archive) as bundle, _building(folder) as place:
            labels = {side: _labels(bundle, side, count) for side, count in counts.items()}
            for side, count in counts.items():
                _open_images(bundle, side, count, size).close()
            for name in BLOODMNIST_CLASSES:
                (place / name).mkdir(parents=True)
            shown = {"leave": False, "delay": 2, "disable": None}
            rows = [("path", "label", "split")]
            with tqdm(desc="unpacking", total=sum(counts.values()), **shown) as bar:
                for side, count in counts.items():
                    names = [BLOODMNIST_CLASSES[label] for label in labels[side]]
                    files = [f"{name}/{side}_{i:05d}.png" for i, name in enumerate(names)]
                    with _open_images(bundle, side, count, size) as stream:
                        _write_images(stream, [place / file for file in files], size, bar)
                    rows += zip(files, names, [side] * count, strict=True)
            with (place / MANIFEST).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
    except _WRONG as error:
        raise DataError(f"{archive}: {error}") from error


def _labels(bundle: zipfile.ZipFile, side: str, count: int) -> list[int]:
    name = f"{_ARRAYS[side]}_labels"
    stream, dtype = _open_array(bundle, name, (count, 1), np.integer)
    with stream:
        labels = np.frombuffer(_take(stream, count * dtype.itemsize), dtype)
        _end(stream)
    for label in set(labels.tolist()) - set(range(len(BLOODMNIST_CLASSES))):
        raise DataError(f"{name} holds {label}, expected 0 to {len(BLOODMNIST_CLASSES) - 1}")
    return labels.tolist()


def _open_images(bundle: zipfile.ZipFile, side: str, count: int, size: int) -> BinaryIO:
    return _open_array(bundle, f"{_ARRAYS[side]}_images", (count, size, size, 3), np.uint8)[0]


def _open_array(
    bundle: zipfile.ZipFile, name: str, shape: tuple[int, ...], kind: type
) -> tuple[BinaryIO, np.dtype]:
    """Open an array of an npz file at its first value; DataError unless of that shape and kind."""
    try:
        stream = bundle.open(f"{name}.npy")
    except KeyError:
        held = ", ".join(file.removesuffix(".npy") for file in bundle.namelist())
        raise DataError(f"no array {name}; there are {held or 'none'}") from None
    try:
        version = npy.read_magic(stream)
        if version not in _NPY_HEADERS:
            raise DataError(f"{name} has version {version} of the npy format, expected 1.0 or 2.0")
        found, by_column, dtype = _NPY_HEADERS[version](stream)
        if found != shape:
            raise DataError(f"{name} has the shape {found}, expected {shape}")
        if by_column or not np.issubdtype(dtype, kind):
            order = "column by column" if by_column else "row by row"
            raise DataError(f"{name} holds {dtype} {order}, expected {kind.__name__} row by row")
    except BaseException:
        stream.close()
        raise
    return stream, dtype


def _take(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise DataError(f"{stream.name} ends before its last value")
    return data


def _end(stream: BinaryIO) -> None:
    """Read to the end, where zipfile compares the check sum."""
    if stream.read(1):
        raise DataError(f"{stream.name} goes on after its last value")


def _write_images(stream: BinaryIO, files: list[Path], size: int, bar: tqdm) -> None:
    """Write the images of an open array to PNG files, in order, a few MiB at a time."""
    shape = (size, size, 3)
    step = max(1, _BLOCK_BYTES // math.prod(shape))
    writing: Iterable[None] = ()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), step):
            block = files[start : start + step]
            data = _take(stream, len(block) * math.prod(shape))
            images = np.frombuffer(data, np.uint8).reshape(-1, *shape)
            for _ in writing:  # of the block before, meanwhile
                bar.update()
            writing = pool.map(write_png, block, images)
        for _ in writing:
            bar.update()
    _end(stream)
