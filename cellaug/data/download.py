"""Fetch the PBC set once: download, verify, unpack, move into place."""

import hashlib
import shutil
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from cellaug.data.catalogue import PBC_TOP
from cellaug.data.errors import DataError
from cellaug.data.scan import cache_home

from tqdm import tqdm

PBC_URL = (
    "https://data.mendeley.com/public-files/datasets/snkd93bnjr/files/"
    "2fc38728-2ae7-4a62-a857-032af82334c3/file_downloaded"
)
PBC_PAGE = "https://doi.org/10.17632/snkd93bnjr.1"

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

_MOST_BYTES = 2 * 2**30  # of the unpacked set, which has about 0.3 GB
_DIGEST_BYTES = 8
# What unpacking a damaged, encrypted or unsafe archive raises.
_WRONG = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, DataError)


def fetch(name: str, destination: str | Path | None = None, url: str | None = None) -> Path:
    """Download a public set of real images, unless it is there already; return its folder.

    `name` is "pbc". It is unpacked in `destination` (default: `pbc` under the cache home, where
    `open_dataset` looks). A broken download is taken up where it stopped. Its authors publish no
    checksum; so the archive's own check sums, the published number of images of each kind, and the
    digests of more than 10,000 known images must agree. `url` names another place to get the same
    archive from. Raises `DataError` with what to do by hand if it cannot be had.
    """
    if name != "pbc":
        raise DataError(f'no set named {name!r} can be fetched; the only one is "pbc"')
    home = cache_home() / "pbc" if destination is None else Path(destination).expanduser()
    folder = home / PBC_TOP
    if folder.is_dir():
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        archive = download(url or PBC_URL, home / f"{PBC_TOP}.zip.part")
        install(archive, folder, PBC_IMAGES, known_digests())
    except (DataError, OSError) as error:
        raise DataError(
            f"{error}\nBy hand: download the archive from {PBC_PAGE} with a browser and unpack it "
            f"so that {folder} holds the class folders (or anywhere else, with CELLAUG_DATA set to "
            "the folder around it)"
        ) from error
    return folder


def known_digests() -> bytes:
    """Return the first 8 bytes of the SHA-256 of known images of PBC, one after another."""
    return Path(__file__).with_name("pbc_digests.bin").read_bytes()


def download(url: str, part: Path) -> Path:
    """Download `url` to the file `part`, going on where an earlier try stopped; return `part`."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "cellaug"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as r:
            if r.status != 206:
                have = 0  # the server sends the file from its beginning
            length = r.headers.get("Content-Length")
            total = None if length is None else have + int(length)
            with (
                part.open("ab" if have else "wb") as file,
                tqdm(
                    total=total,
                    initial=have,
                    unit="B",
                    unit_scale=True,
                    desc=part.stem,
                    disable=None,
                ) as bar,
            ):
                while chunk := r.read(1 << 20):
                    file.write(chunk)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        error.close()
        # 416: there is nothing after what is here already, so it is all here
        if error.code != 416 or not have:
            raise DataError(f"{url}: the server answered {error.code} {error.reason}") from error
        return part
    except (OSError, HTTPException) as error:
        raise DataError(f"{url}: {error}. Try again: the download goes on from there") from error
    size = part.stat().st_size
    if total is not None and size < total:
        raise DataError(
            f"{url}: broke off after {size:,} of {total:,} bytes. Try again: it goes on from there"
        )
    return part


def install(archive: Path, folder: Path, images: Mapping[str, int], digests: bytes) -> None:
    """Verify `archive`, whose top folder is named like `folder`, and unpack it as `folder`.

    `images` are the expected numbers of images by "class folder/file-name prefix". `digests` are
    the first 8 bytes of the SHA-256 of images that must be among them, one after another. The
    archive is removed once it is unpacked, or found to be wrong (`DataError`).
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        unpack(archive, temporary, folder.name)
        top = temporary / folder.name
        _check_images(top, images, digests)
        top.rename(folder)
    except _WRONG as error:
        archive.unlink()
        raise DataError(
            f"what was downloaded is not the expected archive: {error}. It was removed"
        ) from error
    finally:
        shutil.rmtree(temporary)
    archive.unlink()


def unpack(archive: Path, into: Path, top: str, most_bytes: int = _MOST_BYTES) -> None:
    """Unpack the folder `top` of a zip file, checking names, kinds, sizes and check sums.

    Clutter of macOS beside it is left out. Raises `DataError` for anything that could write
    outside `into`, and `zipfile.BadZipFile` for damage.
    """
    left = most_bytes
    with zipfile.ZipFile(archive) as bundle:
        members = bundle.infolist()
        for member in tqdm(members, "unpacking", leave=False, delay=2, disable=None):
            name = PurePosixPath(member.filename)
            unsafe = name.is_absolute() or ".." in name.parts or set(member.filename) & set("\\:\0")
            if unsafe or stat.S_ISLNK(member.external_attr >> 16):
                raise DataError(f"{member.filename!r} is an unsafe name or a link")
            if name.parts[:1] == ("__MACOSX",):
                continue
            if name.parts[:1] != (top,):
                raise DataError(f"{member.filename!r} lies outside the folder {top}")
            target = into / name
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(member) as source, target.open("xb") as file:
                while chunk := source.read(1 << 20):
                    left -= len(chunk)
                    if left < 0:
                        raise DataError(f"it unpacks to more than {most_bytes:,} bytes")
                    file.write(chunk)


def _check_images(top: Path, images: Mapping[str, int], digests: bytes) -> None:
    found = Counter()
    seen = set()
    for file in top.glob("*/[!.]*.jpg"):
        found[f"{file.parent.name}/{file.name.split('_')[0]}"] += 1
        seen.add(hashlib.sha256(file.read_bytes()).digest()[:_DIGEST_BYTES])
    for kind in sorted(set(found) | set(images)):
        if found[kind] != images.get(kind, 0):
            raise DataError(
                f"{found[kind]:,} images {kind}_*.jpg where {images.get(kind, 0):,} were expected"
            )
    known = {digests[i : i + _DIGEST_BYTES] for i in range(0, len(digests), _DIGEST_BYTES)}
    if missing := len(known - seen):
        raise DataError(f"{missing:,} of {len(known):,} known images are missing or altered")
