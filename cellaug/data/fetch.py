"""Fetch a public set once: download with pooch, verify, unpack, move into place.

Only the expected images of an archive are written, under names that cannot leave the folder.
"""

import hashlib
import io
import re
import shutil
import sys
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from cellaug.data.images import write_png
from cellaug.data.published import BLOODMNIST_CLASSES, DIGESTS, MANIFEST, PBC_TOP, SETS, Published
from cellaug.errors import DataError
from cellaug.files import atomic_folder, cache_home, homes, progress

import numpy as np
import pandas as pd
import pooch
import requests
from filelock import AcquireReturnProxy, FileLock, Timeout
from urllib3.exceptions import HTTPError

_TIMEOUT = 60.0  # seconds without data after which a server has stalled
_SLOWEST = 1024  # bytes per second; one that sends less has stalled too
_PBC_IMAGE = re.compile(rf"{PBC_TOP}/(\w+)/((\w+?)_[^/\\:]*\.jpg)")


def fetch(name: str, destination: str | Path | None = None, url: str = "") -> Path:
    """Download a public set of real images, unless it is there already; return its folder.

    A broken download is resumed, also by a later call. BloodMNIST is verified by its MD5, and not
    downloaded if its file is in `destination`, `$CELLAUG_DATA` or the cache; PBC by its numbers of
    images of each kind and more than 10,000 digests. `name` is one of `SETS`. The set's folder is
    made in `destination` (the cache by default); `url` is another place to get the archive from.
    """
    if name not in SETS:
        raise DataError(f"no set named {name!r} can be fetched; there are {', '.join(SETS)}")
    published = SETS[name]
    home, top = (cache_home() / "pbc", PBC_TOP) if name == "pbc" else (cache_home(), name)
    home = home if destination is None else Path(destination).expanduser()
    given = (place / published.file for place in (home, *homes())) if published.md5 else ()
    archive = next((file for file in given if file.is_file()), None)
    make(home / top, published, archive, url or published.url)
    return home / top


def make(folder: Path, published: Published, archive: Path | None, url: str = "") -> None:
    """Make the folder of a set, unless it is whole, from its archive or else a download."""
    if _is_whole(folder, published):
        return
    work = folder.with_name(f".{folder.name}.download")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if _is_whole(folder, published):
                return
            if folder.is_file() or any(folder.glob("*")):
                fix = "It was left as it is: move it away, or choose another destination"
                raise DataError(f"{folder} is there already, but is not the whole set. {fix}")
            for left in folder.parent.glob(f".{folder.name}.*.part"):  # by a killed run
                shutil.rmtree(left)
            have = sum(part.stat().st_size for part in work.glob("*"))
            room = published.unpacked_bytes + (0 if archive else published.most_bytes - have)
            if (free := shutil.disk_usage(folder.parent).free) < room:
                less = f"up to {room / 1e6:,.1f} MB are needed there, but the disk has only"
                fix = f"{free / 1e6:,.1f} MB left. Make room, or choose another destination"
                raise DataError(f"{folder}: {less} {fix}")
            if archive and (found := pooch.file_hash(str(archive), "md5")) != published.md5:
                raise ValueError(f"its MD5 is {found}, expected {published.md5}")
            hashes = {published.file: f"md5:{published.md5}" if published.md5 else None}
            get = pooch.Pooch(work, "", hashes, {published.file: url}, retry_if_failed=2)
            downloader = partial(_resume, most_bytes=published.most_bytes)
            file = archive or Path(get.fetch(published.file, downloader=downloader))
            with atomic_folder(folder) as place:
                (_unpack_npz if published.md5 else _unpack_pbc)(file, place, published)
            shutil.rmtree(work, ignore_errors=True)
    except DataError:
        raise
    except Exception as error:  # zipfile and NumPy raise many kinds for a damaged file
        if not (isinstance(error, requests.RequestException) or getattr(error, "errno", None)):
            shutil.rmtree(work, ignore_errors=True)  # neither network nor disk: the file is wrong
        reason = getattr(next(iter(error.args), None), "reason", error)
        held = published.file if published.md5 else f"the unpacked {PBC_TOP}"
        fix = f"{published.page} and set CELLAUG_DATA to the folder that holds {held}"
        failed = f"{folder} cannot be made from {archive or url}: {reason}"
        raise DataError(f"{failed}\nBy hand: download the file from {fix}") from error


def _is_whole(folder: Path, published: Published) -> bool:
    """Whether a folder holds all images of a set, as far as their names can tell."""
    if not published.md5:
        files = folder.glob("*/[!.]*.jpg")
        kinds = (f"{file.parent.name}/{file.name.split('_')[0]}" for file in files)
        return Counter(kinds) == published.images
    found = Counter(file.name.split("_")[0] for file in folder.glob("*/*.png"))
    manifest = folder / MANIFEST
    rows = manifest.read_bytes().count(b"\n") - 1 if manifest.is_file() else 0
    return found == published.images and rows == found.total()


def _lock(folder: Path) -> AcquireReturnProxy:
    """Let one process or thread at a time make `folder`; the others wait and find it made."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with suppress(Timeout):
        return lock.acquire(timeout=0)
    print(f"{folder} is being made by another process; waiting for it", file=sys.stderr)
    return lock.acquire()


def _resume(url: str, output_file: str, into: pooch.Pooch, most_bytes: int) -> None:
    """Download what is missing of `url`; pooch tries again after a RequestException."""
    part = into.abspath / "download.part"
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "cellaug", "Accept-Encoding": "identity"}
    if have:
        tag = part.with_suffix(".tag").read_text()
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": tag} if tag else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
            _take(response, part, have, most_bytes)
    except HTTPError as error:  # of urllib3, while reading
        raise requests.ConnectionError(f"the connection broke off ({error})") from error
    part.replace(output_file)


def _take(response: requests.Response, part: Path, have: int, most_bytes: int) -> None:
    """Append a response to `part`, or start over if it is another file or begins elsewhere."""
    status, place = response.status_code, response.headers.get("Content-Range", "")
    continues = status == 206 and place.startswith(f"bytes {have}-")
    if status != 200 and not continues:
        if status in (206, 416):
            part.unlink(missing_ok=True)
        raise requests.HTTPError(f"the server answered {status} {response.reason} {place}")
    chunk = b"" if continues else response.raw.read(40)
    if not continues and chunk[:4] != b"PK\x03\x04":  # a log-in page must not replace a part
        raise requests.HTTPError(f"the server sends no zip file; it begins {chunk!r}")
    size, left = have if continues else 0, response.raw.length_remaining
    total = None if left is None else size + len(chunk) + left
    bar = progress(None, "download", total=total, initial=size, unit="B", unit_scale=True)
    with bar, part.open("ab" if size else "wb", buffering=0) as file:
        etag = response.headers.get("ETag", "W/")  # a weak one does not promise the same bytes
        date = response.headers.get("Last-Modified", "")
        part.with_suffix(".tag").write_text(date if etag.startswith("W/") else etag)
        since, came = time.monotonic(), 0
        while chunk or (chunk := response.raw.read1(2**18)):
            size, came = size + len(chunk), came + len(chunk)
            if max(size, total or 0) > most_bytes:
                raise OverflowError(f"more than the {most_bytes:,} bytes that it can have")
            file.write(chunk)
            bar.update(len(chunk))
            chunk = b""
            if (waited := time.monotonic() - since) > _TIMEOUT:
                if came < _SLOWEST * waited:
                    raise requests.Timeout(f"stalled: {came:,} bytes in {waited:.3g} s")
                since, came = time.monotonic(), 0


def _unpack_pbc(archive: Path, place: Path, published: Published) -> None:
    """Unpack the images of PBC's zip file; anything else in it, such as macOS clutter, is left."""
    # in memory, where a damaged archive cannot raise errors that look like those of the disk
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as bundle:
        images = [m for name in set(bundle.namelist()) if (m := _PBC_IMAGE.fullmatch(name))]
        found, expected = Counter(f"{i[1]}/{i[3]}" for i in images), Counter(published.images)
        if found != expected:
            both = f"{dict(expected - found)}, or too many: {dict(found - expected)}"
            raise ValueError(f"images are missing: {both}")
        size = sum(bundle.getinfo(image[0]).file_size for image in images)
        if size > published.most_bytes:
            raise ValueError(f"{size:,} bytes unpacked, expected at most {published.most_bytes:,}.")
        seen = set()
        for image in progress(images, "unpacking"):
            data = bundle.read(image[0])
            seen.add(int.from_bytes(hashlib.sha256(data).digest()[:8], "little"))
            (place / image[1]).mkdir(exist_ok=True)
            (place / image[1] / image[2]).write_bytes(data)
    known = set(np.fromfile(DIGESTS, "<u8").tolist())
    if missing := len(known - seen):
        raise ValueError(f"{missing:,} of {len(known):,} known images are missing or altered.")


def _unpack_npz(archive: Path, place: Path, published: Published) -> None:
    """Write `<class name>/<side>_<number>.png` and a manifest; one side at a time is in memory."""
    table = []
    for name in BLOODMNIST_CLASSES:
        (place / name).mkdir()
    with np.load(archive, allow_pickle=False) as arrays:
        for side, count in published.images.items():
            name = {"validation": "val"}.get(side, side)
            images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
            if images.shape != (count, published.size, published.size, 3):
                raise ValueError(f"{side} images have the shape {images.shape}.")
            names = [BLOODMNIST_CLASSES[label] for label in labels.ravel()]
            paths = [f"{name}/{side}_{i:05d}.png" for i, name in enumerate(names)]
            table.append(pd.DataFrame({"path": paths, "label": names, "split": side}))
            with ThreadPoolExecutor() as pool:
                written = pool.map(write_png, [place / path for path in paths], images)
                list(progress(written, f"unpacking {side}", total=count))
    pd.concat(table).to_csv(place / MANIFEST, index=False, lineterminator="\n")
