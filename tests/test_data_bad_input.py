"""Bad input, tried in earnest: each fault in an otherwise good set, with its exact outcome.

A case puts one file or folder into a small good set. The report must say exactly what is stated
here, all good images must still be read, and every entry on disk must be kept or reported.
"""

import functools
import io
import json
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cellaug.data import DataError, open_dataset, sets
from cellaug.data import scan as scan_module
from cellaug.data.images import decode, write_png
from cellaug.files import inside

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image, TiffImagePlugin

SIDE = 16
RAMP = np.linspace(0, 250, SIDE * SIDE).astype(np.uint8).reshape(SIDE, SIDE)
PICTURE = np.dstack([RAMP, RAMP.T, 255 - RAMP])
GREY = np.repeat(RAMP[..., None], 3, axis=2)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
WHITE = np.full_like(PICTURE, 255)
EXIF = Image.Exif()
EXIF[0x0112] = 6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CELLAUG_DATA", raising=False)
    return tmp_path / "cache"


def encoded(form: str, image=PICTURE, mode: str = "", **options) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def tenth(data: bytes, tenths: int) -> bytes:
    return data[: len(data) * tenths // 10]


def zeroed(data: bytes, size: int = 512) -> bytes:
    """The data with a block of zero bytes in its middle, as a failing disk leaves it."""
    middle = len(data) // 2
    return data[:middle] + bytes(size) + data[middle + size :]


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 8
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    return chunks


def png_of(chunks, spoilt: bytes = b"") -> bytes:
    """A PNG of these chunks; the checksum of the chunk `spoilt` is wrong."""
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        checksum = zlib.crc32(kind + body) ^ (kind == spoilt)
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)
    return data


def wrong_length() -> bytes:
    """A PNG whose pixels are said to take 2 GiB."""
    data = bytearray(encoded("PNG"))
    data[33] = 0x7F
    return bytes(data)


def strips_missing() -> bytes:
    """A TIFF that is said to have twice the height of its one strip."""
    data = encoded("TIFF", tiffinfo={TiffImagePlugin.ROWSPERSTRIP: SIDE})
    height = struct.pack("<HHI", TiffImagePlugin.IMAGELENGTH, 4, 1)
    return data.replace(height + struct.pack("<I", SIDE), height + struct.pack("<I", 2 * SIDE))


@functools.cache
def huge_png(side: int = 30_000) -> bytes:
    """A black 1-bit PNG, compressed row by row."""
    packer = zlib.compressobj(1)
    row = bytes(1 + (side + 7) // 8)
    rows = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return png_of([(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")])


def huge_jpeg() -> bytes:
    data = bytearray(encoded("JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 30_000, 30_000)
    return bytes(data)


def with_thumbnail() -> bytes:
    whole, small = encoded("JPEG", NOISE), encoded("JPEG")
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(small) + 2) + small + whole[2:]


def sixteen_bits(form: str, alpha: int | None = None, most: int = 65535) -> bytes:
    values = (PICTURE[..., ::-1].astype(np.uint32) * most // 255).astype(np.uint16)
    if alpha is not None:
        values = np.dstack([values, np.full((SIDE, SIDE), alpha, np.uint16)])
    return cv2.imencode(form, values)[1].tobytes()


def pages(form: str, **options) -> bytes:
    return encoded(form, save_all=True, append_images=[Image.fromarray(GREY)], **options)


def with_alpha(value: int) -> np.ndarray:
    return np.dstack([PICTURE, np.full((SIDE, SIDE), value, np.uint8)])


def laid_over_white(image: np.ndarray, alpha: int) -> np.ndarray:
    return np.rint(image * (alpha / 255) + 255 * (1 - alpha / 255)).astype(np.uint8)


PALETTE = Image.fromarray(PICTURE).quantize(32)
COLOURS = np.asarray(PALETTE.convert("RGB"))
BITS = np.asarray(Image.fromarray(PICTURE).convert("1"), np.uint8) * 255


class Case(NamedTuple):
    """A file in class "a": what it holds, and what is to become of it."""

    name: str
    data: bytes | Callable[[Path], None]
    reason: str  # of dropping it if `image` is None, else what was converted
    image: np.ndarray | None = None
    tolerance: int = 0  # grey levels, for lossy formats


NO_END, NO_IEND = "truncated JPEG (no end marker)", "truncated PNG (no IEND chunk)"
HEADER = "damaged image or unusual format (header cannot be read)"
DAMAGED = "damaged image (cannot be decoded)"
SEGMENT = "damaged JPEG: premature end of data segment"

CUT = [
    Case(f"cut {form} {tenths}0 %{ending}", tenth(encoded(form, NOISE, **options), tenths), reason)
    for form, ending, reasons, options in (
        ("JPEG", ".jpg", [NO_END] * 9, {}),
        ("JPEG", ".progressive.jpg", [NO_END] * 9, {"progressive": True}),
        ("PNG", ".png", [NO_IEND] * 9, {}),
        ("TIFF", ".tif", [DAMAGED] * 9, {}),
        ("TIFF", ".lzw.tif", [HEADER] * 9, {"compression": "tiff_lzw"}),
        ("BMP", ".bmp", [DAMAGED] * 9, {}),
        ("GIF", ".gif", [HEADER] + [DAMAGED] * 8, {}),
        ("WEBP", ".webp", [HEADER] * 9, {"lossless": True}),
        ("JPEG2000", ".jp2", [DAMAGED] * 9, {}),
        ("PPM", ".ppm", [DAMAGED] * 9, {}),
    )
    for tenths, reason in enumerate(reasons, 1)
]

NOTHING = [
    Case("empty.jpg", b"", "empty file"),
    Case("zeros.jpg", bytes(5000), "not an image: nothing but zero bytes"),
    Case("text.jpg", b"slide 7, see the log book", "not an image"),
    Case("page.png", b"<!DOCTYPE html><title>404</title>", "not an image: a web page"),
    Case("page2.png", b"\xef\xbb\xbf\n<html></html>", "not an image: a web page"),
    Case("drawing.png", b'<svg width="9" height="9"/>', "not an image: an SVG drawing"),
    Case("xml.png", b"<?xml version='1.0'?><svg/>", "not an image: XML, perhaps an SVG drawing"),
    Case("paper.png", b"%PDF-1.7\n", "not an image: a PDF"),
    Case("archive.jpg", b"PK\3\4" + bytes(99), "not an image: a zip archive"),
    Case("start.jpg", b"\xff\xd8\xff", NO_END),
    Case("start.png", b"\x89PNG\r\n\x1a\n", NO_IEND),
    Case("start.bmp", b"BMI and age of the patients", HEADER),
    Case("ends at once.jpg", b"\xff\xd8\xff\xd9", HEADER),
]

DAMAGE = [
    Case("zero block.jpg", zeroed(encoded("JPEG", NOISE)),
         "damaged JPEG: 308 extraneous bytes before marker 0xd9"),
    Case("cut, end marker.jpg", tenth(encoded("JPEG", NOISE), 5) + b"\xff\xd9", SEGMENT),
    Case("cut progressive, end marker.jpg",
         tenth(encoded("JPEG", NOISE, progressive=True), 9) + b"\xff\xd9", SEGMENT),
    Case("cut behind its thumbnail.jpg", with_thumbnail()[:-400], NO_END),
    Case("cut, then rubbish.jpg", tenth(encoded("JPEG", NOISE), 5) + b"\xff\xda rubbish", NO_END),
    Case("zero block.png", zeroed(encoded("PNG", NOISE)), DAMAGED),
    Case("IHDR checksum.png", png_of(png_chunks(encoded("PNG")), b"IHDR"), HEADER),
    Case("IDAT checksum.png", png_of(png_chunks(encoded("PNG")), b"IDAT"), DAMAGED),
    Case("tEXt checksum.png",
         png_of([png_chunks(encoded("PNG"))[0], (b"tEXt", b"a\0b")], b"tEXt") + encoded("PNG")[33:],
         HEADER),
    Case("wrong chunk length.png", wrong_length(), NO_IEND),
    Case("strips missing.tif", strips_missing(), "damaged image: 1 of its 2 parts"),
    Case("no IDAT.png",
         png_of([chunk for chunk in png_chunks(encoded("PNG")) if chunk[0] != b"IDAT"]), DAMAGED),
    Case("half its rows.png",
         png_of([(kind, zlib.compress(bytes(49 * 8)) if kind == b"IDAT" else body)
                 for kind, body in png_chunks(encoded("PNG"))]), DAMAGED),
    Case("zero block lzw.tif", zeroed(encoded("TIFF", NOISE, compression="tiff_lzw")), DAMAGED),
    Case("zero block deflate.tif", zeroed(encoded("TIFF", NOISE, compression="tiff_adobe_deflate")),
         "damaged image (wrong checksum)"),
    Case("zero block.gif", zeroed(encoded("GIF", NOISE)), DAMAGED),
]  # fmt: skip

UNFIT = [
    Case("1×1.png", encoded("PNG", NOISE[:1, :1]),
         "too small: 1×1 pixels, expected at least 8 on each side"),
    Case("7×16.png", encoded("PNG", NOISE[:16, :7]),
         "too small: 7×16 pixels, expected at least 8 on each side"),
    Case("30,000×30,000.png", lambda path: path.write_bytes(huge_png()),
         "too large: 30,000×30,000 pixels, expected at most 67,108,864"),
    Case("30,000×30,000.jpg", huge_jpeg(),
         "too large: 30,000×30,000 pixels, expected at most 67,108,864"),
    Case("film.png", lambda path: (path.touch(), os.truncate(path, 10**12)),
         "too large: 1,000,000,000,000 bytes, expected at most 536,870,912"),
    Case("float.tif", encoded("TIFF", RAMP.astype(np.float32)),
         "float32 values (expected 8- or 16-bit whole numbers; convert it)"),
    Case("32 bits.tif", encoded("TIFF", RAMP.astype(np.int32)),
         "int32 values (expected 8- or 16-bit whole numbers; convert it)"),
    Case("lab.tif", encoded("TIFF", mode="LAB"),
         "8-bit LAB colours (expected RGB or grey; convert it)"),
]  # fmt: skip


def make_socket(path: Path) -> None:
    """A socket's own path may be no longer than 107 bytes."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


NO_FILE = [
    Case("pipe.png", os.mkfifo, "not a regular file"),
    Case("socket.png", make_socket, "not a regular file"),
    Case("device.png", lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    Case(
        "kernel.png",  # said to be empty, but is not: as a file that is still being written
        lambda path: path.symlink_to("/proc/self/status"),
        "changed while it was read; open the set again when it is complete",
    ),
    Case("broken link.png", lambda path: path.symlink_to("nowhere.png"),
         "cannot be read (No such file or directory)"),
    Case("looping link.png", lambda path: path.symlink_to(path.name),
         "cannot be read (Too many levels of symbolic links)"),
    Case("link to a folder", lambda path: path.symlink_to(".."),
         "a folder inside a class folder; what it holds is not read"),
    Case("link to a good one.png", lambda path: path.symlink_to("0.png"), "copy: of a/0.png"),
    Case("folder.jpg", Path.mkdir, "a folder inside a class folder; what it holds is not read"),
    Case(".hidden.png", encoded("PNG"), "hidden or system clutter"),
    Case("Thumbs.db", b"x", "hidden or system clutter"),
]  # fmt: skip

ODD = [
    Case("16-bit grey.png", encoded("PNG", RAMP.astype(np.uint16) * 257),
         "16-bit scaled to 8-bit; grey repeated to RGB", GREY),
    Case("16-bit.png", sixteen_bits(".png"), "16-bit scaled to 8-bit", PICTURE),
    Case("16-bit.tif", sixteen_bits(".tiff"), "16-bit scaled to 8-bit", PICTURE),
    Case("16-bit alpha.png", sixteen_bits(".png", 32768),
         "16-bit scaled to 8-bit; transparency laid over white", laid_over_white(PICTURE, 128), 1),
    Case("12-bit.png", sixteen_bits(".png", most=4095),
         "16-bit scaled to 8-bit: 12-bit values, 0 to 4095", PICTURE),
    Case("8-bit values.png", sixteen_bits(".png", most=255),
         "16-bit scaled to 8-bit: 8-bit values, 0 to 255", PICTURE),
    Case("palette.png", encoded("PNG", PALETTE), "palette expanded to RGB", COLOURS),
    Case("palette.tif", encoded("TIFF", PALETTE), "palette expanded to RGB", COLOURS),
    Case("palette.bmp", encoded("BMP", PALETTE), "palette expanded to RGB", COLOURS),
    Case("still.gif", encoded("GIF", PALETTE), "palette expanded to RGB", COLOURS),
    Case("palette, transparent.png", encoded("PNG", PALETTE, transparency=bytes(256)),
         "palette expanded to RGB; transparency laid over white", WHITE),
    Case("cmyk.jpg", encoded("JPEG", mode="CMYK", quality=100), "CMYK converted to RGB", PICTURE,
         6),
    Case("cmyk.tif", encoded("TIFF", mode="CMYK"), "CMYK converted to RGB", PICTURE, 1),
    Case("rgba.png", encoded("PNG", with_alpha(51)), "transparency laid over white",
         laid_over_white(PICTURE, 51)),
    Case("rgba.tif", encoded("TIFF", with_alpha(51)), "transparency laid over white",
         laid_over_white(PICTURE, 51)),
    Case("rgba.webp", encoded("WEBP", with_alpha(51), lossless=True, exact=True),
         "transparency laid over white", laid_over_white(PICTURE, 51)),
    Case("opaque rgba.png", encoded("PNG", with_alpha(255)), "", PICTURE),
    Case("grey alpha.png", encoded("PNG", np.dstack([RAMP, RAMP * 0 + 51])),
         "transparency laid over white", laid_over_white(GREY, 51)),
    Case("grey alpha.tif", encoded("TIFF", np.dstack([RAMP, RAMP * 0 + 51])),
         "transparency laid over white; grey repeated to RGB", laid_over_white(GREY, 51)),
    Case("grey.png", encoded("PNG", RAMP), "grey repeated to RGB", GREY),
    Case("grey.jpg", encoded("JPEG", RAMP, quality=95), "grey repeated to RGB", GREY, 6),
    Case("one bit.png", encoded("PNG", mode="1"), "1-bit scaled to 8-bit; grey repeated to RGB",
         np.dstack([BITS] * 3)),
    Case("one bit.tif", encoded("TIFF", mode="1", compression="group4"),
         "1-bit scaled to 8-bit; grey repeated to RGB", np.dstack([BITS] * 3)),
    Case("pages.tif", pages("TIFF"), "first of 2 pages", PICTURE),
    Case("film.gif", pages("GIF"), "first of 2 pages; palette expanded to RGB", PICTURE, 60),
    Case("film.webp", pages("WEBP", lossless=True), "first of 2 pages", PICTURE),
    Case("film.apng.png", pages("PNG"), "first of 2 pages", PICTURE),
    Case("turned.jpg", encoded("JPEG", quality=100, subsampling=0, exif=EXIF),
         "EXIF orientation ignored", PICTURE, 3),
    Case("turned.png", encoded("PNG", exif=EXIF), "EXIF orientation ignored", PICTURE),
    Case("turned.tif", encoded("TIFF", tiffinfo={0x0112: 6}), "EXIF orientation applied",
         np.rot90(PICTURE, -1)),
    Case("spoilt exif.jpg",
         encoded("JPEG", quality=100, subsampling=0, exif=b"Exif\0\0MM" + bytes(9)),
         "", PICTURE, 3),
    Case("a png.jpg", encoded("PNG") + b"1", "a PNG file named .jpg", PICTURE),
    Case("a jpeg.PNG", encoded("JPEG", quality=100, subsampling=0) + b"1", "a JPEG file named .png",
         PICTURE, 3),
    Case("no ending", encoded("PNG") + b"2", "", PICTURE),
    Case("cell.001", encoded("PNG") + b"3", "", PICTURE),
    Case("plain.tif", encoded("TIFF"), "", PICTURE),
    Case("lzw.tif", encoded("TIFF", compression="tiff_lzw"), "", PICTURE),
    Case("deflate.tif", encoded("TIFF", compression="tiff_adobe_deflate"), "", PICTURE),
    Case("plain.bmp", encoded("BMP"), "", PICTURE),
    Case("plain.ppm", encoded("PPM"), "", PICTURE),
    Case("plain.jp2", encoded("JPEG2000"), "", PICTURE),
    Case("stream.j2k", encoded("JPEG2000", no_jp2=True), "", PICTURE),
    Case("grey alpha.jp2", encoded("JPEG2000", np.dstack([RAMP, RAMP * 0 + 51])),
         "transparency laid over white; grey repeated to RGB", laid_over_white(GREY, 51)),
    Case("plain.webp", encoded("WEBP", lossless=True), "", PICTURE),
    Case("progressive.jpg", encoded("JPEG", quality=100, subsampling=0, progressive=True), "",
         PICTURE, 3),
    Case("rubbish behind.jpg", encoded("JPEG", quality=100, subsampling=0) + b"\xff\xda rubbish",
         "", PICTURE, 3),
    Case("rubbish behind.png", encoded("PNG") + b"rubbish", "", PICTURE),
]  # fmt: skip

NAMES = [
    Case(name, encoded("PNG") + os.fsencode(name), "", PICTURE)  # no copies of one another
    for name in (
        " two  spaces .png",
        'it\'s "quoted" `so`.png',
        "new\nline\r.png",
        "tab\tand\\backslash.png",
        os.fsdecode(b"latin-1 \xe4\xff.png"),
        "right to left \u202egnp.exe.png",
        "חתול.png",
        "line\u2028separator.png",
        "e\u0301 decomposed.png",
        "細胞 🩸.png",
        "$(rm -rf x); * ? <b>.png",
        "-rf.png",
        "100 %s %d {0}.png",
        "L" * 251 + ".png",
        "NUL.png",
        "dot..png",
    )
]


def good_set(root: Path, classes=("a", "b"), count: int = 3) -> dict[Path, np.ndarray]:
    """Write a small set without a fault; return its images by path."""
    rng = np.random.default_rng(1)
    images = {}
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            path = root / name / f"{index}.png"
            images[path] = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            write_png(path, images[path])
    return images


def rows(cells) -> list[tuple[str, str, str, str]]:
    return sorted(cells.report.itertuples(index=False, name=None))


def entries(root: Path) -> set[str]:
    """All that stands in the folder and its class folders."""
    top = list(root.iterdir())
    classes = [path for path in top if path.is_dir() and not path.name.startswith(".")]
    below = [f"{folder.name}/{path.name}" for folder in classes for path in folder.iterdir()]
    return {*below, *(path.name for path in top if path not in classes)}


def accounted(cells) -> set[str]:
    """All that is kept or reported."""
    kept = [path.relative_to(cells.root).as_posix() for path in cells.paths]
    dropped = cells.report["path"][cells.report["outcome"] == "dropped"]
    assert not set(kept) & set(dropped)
    assert set(cells.report["path"][cells.report["outcome"] != "dropped"]) <= set(kept)
    assert len(kept) == len(set(kept))
    return {*kept, *dropped}


def put(root: Path, case: Case) -> Path:
    path = root / "a" / case.name
    if isinstance(case.data, bytes):
        path.write_bytes(case.data)
    else:
        case.data(path)
    return path


def expected_row(case: Case) -> list[tuple[str, str, str, str]]:
    outcome = "dropped" if case.image is None else "converted"
    return [(f"a/{case.name}", "a", outcome, case.reason)] if case.reason else []


class Source(NamedTuple):
    """A change to the good set's folder, and what is to become of opening it."""

    name: str
    change: Callable[[Path], object]
    rows: tuple = ()  # of the report
    more: tuple[str, ...] = ()  # images that are kept besides the good ones
    error: str = ""  # after the folder's own path


def with_class(name: str, **files: bytes) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / name).mkdir()
        for file, data in files.items():
            (root / name / file).write_bytes(data)

    return change


def outside(root: Path) -> Path:
    """A folder beside the set's with an image that is not in it."""
    folder = root.parent / "elsewhere"
    folder.mkdir(exist_ok=True)
    write_png(folder / "x.png", PICTURE)
    return folder


USELESS = "has no usable image ({}). Add images to it or remove it"
STRAY = "outside the class folders"

SOURCES = [
    Source("a class without a file", with_class("c"),
           error=f'class "c" {USELESS.format("no files")}'),
    Source("a class without an image", with_class("c", x=b"", y=b"", z=b"text"),
           error=f'class "c" {USELESS.format("2 × empty file; 1 × not an image")}'),
    Source("a class of one image", with_class("c", x=encoded("PNG")), more=("c/x",)),
    Source("a class without its one image", with_class("c", x=encoded("PNG")[:-40]),
           error=f'class "c" {USELESS.format("1 × " + NO_IEND)}'),
    Source("classes that differ only by case", with_class("A", x=encoded("PNG")),
           error="the classes A, a differ only by case"),
    Source("classes that differ only by Unicode form",
           lambda root: (with_class("e\u0301")(root), with_class("\u00e9")(root)),
           error="the classes e\u0301, \u00e9 differ only by case"),
    Source("a class with a newline", with_class("c\n\u202e", x=encoded("PNG")),
           more=("c\n\u202e/x",)),
    Source("a class that is not UTF-8", with_class(os.fsdecode(b"\xff"), x=encoded("PNG")),
           error="the class name '\\udcff' is not valid UTF-8; rename it"),
    Source("a class that is a link out", lambda root: (root / "c").symlink_to(outside(root)),
           more=("c/x.png",)),
    Source("a class that is a link to another", lambda root: (root / "c").symlink_to("a"),
           error=f'class "a" {USELESS.format("3 × same image under another label")}'),
    Source("a class that is a link to the set", lambda root: (root / "c").symlink_to("."),
           error='class "c" ' + USELESS.format(
               "3 × a folder inside a class folder; what it holds is not read")),
    Source("a file beside the classes", lambda root: write_png(root / "x.png", PICTURE),
           rows=(("x.png", "", "dropped", STRAY),)),
    Source("a hidden folder", lambda root: (root / ".git").mkdir(),
           rows=((".git", "", "dropped", "hidden or system clutter"),)),
    Source("a broken link beside", lambda root: (root / "x").symlink_to("nowhere"),
           rows=(("x", "", "dropped", STRAY),)),
    Source("a looping link beside", lambda root: (root / "x").symlink_to("x"),
           rows=(("x", "", "dropped", STRAY),)),
    Source("a pipe beside", lambda root: os.mkfifo(root / "x"),
           rows=(("x", "", "dropped", STRAY),)),
    Source("a link to an image outside",
           lambda root: (root / "a" / "x.png").symlink_to(outside(root) / "x.png"),
           more=("a/x.png",)),
    Source("copies in one class", lambda root: shutil.copy(root / "a/1.png", root / "a/x.png"),
           rows=(("a/x.png", "a", "dropped", "copy: of a/1.png"),)),
    Source("a hard link under another label",
           lambda root: ((root / "b/x.png").hardlink_to(root / "a/1.png"),
                         write_png(root / "a/y.png", PICTURE)),
           rows=(("a/1.png", "a", "dropped", "same image under another label: b/x.png (b)"),
                 ("b/x.png", "b", "dropped", "same image under another label: a/1.png (a)")),
           more=("a/y.png",)),
]  # fmt: skip


class Manifest(NamedTuple):
    """Rows below a good manifest's own four, and what is to become of them."""

    name: str
    text: str  # {root} stands for the folder
    rows: tuple = ()
    more: tuple[str, ...] = ()
    error: str = ""  # after the file's path
    whole: bool = False  # the text is the whole file


OUT = "outside the manifest's folder: expected a path below {root}; put the manifest into a "
OUT += "folder above the images (row 5)"
TWICE = "listed with different labels, splits or groups (row {})"
COLUMNS = (
    "no column '{}' (there are: {}). Expected path (or file) and label, and if wanted split, group "
    "and origin"
)
OUR_ROWS = "path,label\na/0.png,x\na/1.png,x\nb/0.png,y\nb/1.png,y\n"

MANIFESTS = [
    Manifest("missing file", "a/9.png,x",
             (("a/9.png", "x", "dropped", "cannot be read (No such file or directory)"),)),
    Manifest("doubled", "a/0.png,x", (("a/0.png", "x", "dropped", "listed twice (row 5)"),)),
    Manifest("doubled by another way", "b/../a/./0.png,x",
             (("a/0.png", "x", "dropped", "listed twice (row 5)"),)),
    Manifest("doubled with another label", "a/2.png,x\na/2.png,y",
             (("a/2.png", "x", "dropped", TWICE.format(5)),
              ("a/2.png", "y", "dropped", TWICE.format(6)))),
    Manifest("absolute", "{root}/a/2.png,x", more=("a/2.png",)),
    Manifest("absolute, outside", "{root}/../elsewhere/x.png,x",
             (("{root}/../elsewhere/x.png", "x", "dropped", OUT),)),
    Manifest("escaping", "../elsewhere/x.png,x", (("../elsewhere/x.png", "x", "dropped", OUT),)),
    Manifest("a neighbour whose name starts alike", "../cells2/x.png,x",
             (("../cells2/x.png", "x", "dropped", OUT),)),
    Manifest("a link out", "a/link.png,x", more=("a/link.png",)),  # as in a class folder
    Manifest("a folder linked from outside", "linked/x.png,x", more=("linked/x.png",)),
    Manifest("a link within", "a/inner.png,x", more=("a/inner.png",)),
    Manifest("no label", "a/2.png,", (("a/2.png", "", "dropped", "no label (row 5)"),)),
    Manifest("no comma", "a/2.png", (("a/2.png", "", "dropped", "no label (row 5)"),)),
    Manifest("no path", ",x", (("", "x", "dropped", "no path (row 5)"),)),
    Manifest("a folder", "a,x", (("a", "x", "dropped", "not a regular file"),)),
    Manifest("its own folder", ".,x", ((".", "x", "dropped", OUT),)),
    Manifest("itself", "manifest.csv,x", (("manifest.csv", "x", "dropped", "not an image"),)),
    Manifest("a NUL", "a/2.png\0,x",
             (("a/2.png\0", "x", "dropped", "cannot be read (embedded null byte)"),)),
    Manifest("a NUL in its folder", "a\0/2.png,x",
             (("a\0/2.png", "x", "dropped", "cannot be read (embedded null byte)"),)),
    Manifest("a looping link", "a/loop.png,x",
             (("a/loop.png", "x", "dropped", "cannot be read (Too many levels of symbolic links)"),
              )),
    Manifest("a name too long", f"a/{'L' * 256},x",
             ((f"a/{'L' * 256}", "x", "dropped", "cannot be read (File name too long)"),)),
    Manifest("a copy of another class", "a/x.png,y",
             (("a/1.png", "x", "dropped", "same image under another label: a/x.png (y)"),
              ("a/x.png", "y", "dropped", "same image under another label: a/1.png (x)"))),
    Manifest("a label that is not missing", "a/2.png,NA", more=("a/2.png",)),
    Manifest("blank lines", "\n\na/2.png,x\n\n", more=("a/2.png",)),
    Manifest("labels that differ only by case", "a/2.png,X",
             error="the classes X, x differ only by case"),
    Manifest("no column path", "image,label\na/0.png,x\n", whole=True,
             error=COLUMNS.format("path", "image, label")),
    Manifest("no column label", "path,class\na/0.png,x\n", whole=True,
             error=COLUMNS.format("label", "path, class")),
    Manifest("empty", "", whole=True, error="cannot be read as csv"),
    Manifest("only a heading", "path,label\n", whole=True, error="no usable row (it has none)"),
    Manifest("too many fields", "a/2.png,x,7,8",
             error="cannot be read as csv (Expected 2 fields in line 6, saw 4)"),
    Manifest("an open quote", '"a/2.png,x', error="cannot be read as csv"),
    Manifest("an endless field", "x" * 200_000 + ",x", error="cannot be read as csv"),
    Manifest("not text", "\x89PNG\r\n\x1a\n\0\xff", whole=True, error="cannot be read as csv"),
]  # fmt: skip

HOSTILE = {  # names that may come from a table, a folder or a card, and what is wrong with them
    "": "is empty",
    ".": "is empty",
    "./.": "is empty",
    "..": "leads out of its folder by '..'",
    "../x": "leads out of its folder by '..'",
    "a/../../x": "leads out of its folder by '..'",
    "a/..": "leads out of its folder by '..'",
    "..\\x": "leads out of its folder by '..'",
    "a\\..\\..\\x": "leads out of its folder by '..'",
    "/etc/passwd": "is absolute or has a drive letter",
    "//server/share": "is absolute or has a drive letter",
    "\\\\server\\share\\x": "is absolute or has a drive letter",
    "\\x": "is absolute or has a drive letter",
    "C:\\x": "is absolute or has a drive letter",
    "c:x": "is absolute or has a drive letter",
    "a\0b": "contains a NUL character",
    "ä" * 128: "is longer than the 255 bytes that a file name can have",
    "a/" + "L" * 256: "is longer than the 255 bytes that a file name can have",
    "out/x": "is or passes a link that leads out of the folder",
    "out": "is or passes a link that leads out of the folder",
    "loop": "is or passes a link that leads out of the folder",
}
HARMLESS = ["a", "a/b.png", "a/./b", "...", "..a", "a..", "a\\b", "new\nline", "L" * 255, "in/x"]
HARMLESS += ["ä: ö", "\udcff.png", " ", "~root", "$HOME", "-rf", "NUL"]

CASES = [*CUT, *NOTHING, *DAMAGE, *UNFIT, *NO_FILE, *ODD, *NAMES]


def test_there_are_enough_cases():
    assert len({case.name for case in CASES}) == len(CASES) >= 60
    assert len({source.name for source in SOURCES}) == len(SOURCES)
    assert len({manifest.name for manifest in MANIFESTS}) == len(MANIFESTS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.encode("ascii", "replace"))
def test_one_fault(tmp_path, capfd, case):
    root = tmp_path / "cells"
    good = good_set(root)
    fault = put(root, case)
    cells = open_dataset(root)
    assert rows(cells) == expected_row(case)
    assert set(cells.paths) == {*good, *([fault] if case.image is not None else [])}
    assert accounted(cells) == entries(root)
    images = dict(zip(cells.paths, cells.read(SIDE), strict=True))
    for path, image in good.items():
        assert (images[path] == image).all()
    if case.image is not None:
        difference = np.abs(images[fault].astype(int) - case.image)
        assert difference.max() <= case.tolerance
    again = open_dataset(root)  # from the index
    assert again.fingerprint == cells.fingerprint and rows(again) == rows(cells)
    assert capfd.readouterr() == ("", "")


def test_all_faults_at_once(tmp_path):
    root = tmp_path / "cells"
    good = good_set(root)
    for case in CASES:
        put(root, case)
    cells = open_dataset(root)
    assert rows(cells) == sorted(row for case in CASES for row in expected_row(case))
    assert accounted(cells) == entries(root)
    assert len(entries(root)) == len(good) + len(CASES)
    kept = sum(case.image is not None for case in CASES)
    assert cells.counts().to_dict() == {"a": 3 + kept, "b": 3}
    assert cells.table["path"].tolist() == [
        path.relative_to(cells.root).as_posix() for path in cells.paths
    ]


def spoilt(data: bytes, rng: np.random.Generator) -> bytes:
    """The data with a few bytes changed, left out or cut off."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(data) if rng.random() < 0.5 else min(len(data), 100)))
        match rng.integers(4):
            case 0:
                data[place] = rng.integers(256)
            case 1:
                data[place : place + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff"])
            case 2:
                del data[place : place + int(rng.integers(1, 20))]
            case _:
                del data[max(place, 30) :]
        data += bytes(max(0, 30 - len(data)))
    return bytes(data)


def test_spoilt_bytes_give_an_image_or_a_data_error(monkeypatch):
    monkeypatch.setattr("cellaug.data.images.LARGEST_IMAGE", 2**20)  # spares time and memory
    rng = np.random.default_rng(3)
    outcomes = Counter()
    for case in ODD:
        for _ in range(12):
            try:
                image, _ = decode(spoilt(case.data, rng))
            except DataError as error:
                outcomes[str(error).split(":")[0]] += 1
            else:
                assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
                outcomes["image"] += 1
    assert min(outcomes[kind] for kind in ("image", HEADER, DAMAGED, NO_IEND)) > 15


def test_a_spoilt_jpeg_does_not_pass_for_whole():
    smooth = np.asarray(Image.fromarray(NOISE).resize((200, 200)))
    rng = np.random.default_rng(4)
    for image in (NOISE, smooth):
        for options in ({}, {"optimize": True}, {"subsampling": 0}, {"progressive": True}):
            whole = encoded("JPEG", image, **options)
            assert decode(whole)[0].shape == image.shape
            start = whole.index(b"\xff\xda") + 20
            for place in rng.integers(start, len(whole) - 520, 10):
                for bad in (
                    whole[:place],
                    whole[:place] + b"\xff\xd9",
                    whole[:place] + bytes(512) + whole[place + 512 :],
                ):
                    with pytest.raises(DataError, match=r"^(truncated|damaged) JPEG"):
                        decode(bad)


def test_a_flat_jpeg_is_no_block_of_zero_bytes():
    cut_out = np.zeros((640, 640, 3), np.uint8)
    cut_out[300:340, 300:340] = NOISE[:40, :40]
    flat = encoded("JPEG", cut_out, optimize=True)
    assert bytes(64) in flat[flat.index(b"\xff\xda") :]
    image, notes = decode(flat)
    assert notes == [] and (image[:280] == 0).all() and image[300:340, 300:340].std() > 20
    plain = encoded("JPEG", cut_out, comment=bytes(99))
    assert (decode(plain + bytes(99))[0] == decode(plain)[0]).all()  # behind its end


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_one_odd_folder(tmp_path, source):
    root = tmp_path / "cells"
    good = good_set(root)
    source.change(root)
    if source.error:
        with pytest.raises(DataError) as caught:
            open_dataset(root)
        assert str(caught.value).startswith(f"{root}: {source.error}")
        return
    cells = open_dataset(root)
    assert rows(cells) == sorted(source.rows)
    gone = {root / row[0] for row in source.rows}
    assert set(cells.paths) == {*good, *(root / name for name in source.more)} - gone
    assert accounted(cells) == entries(root)
    images = dict(zip(cells.paths, cells.read(SIDE), strict=True))
    for path, image in good.items():
        assert path in gone or (images[path] == image).all()
    assert cells.counts().sum() == len(cells)


@pytest.fixture
def with_links(tmp_path):
    """A folder with links out of it, within it, and to themselves."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    (folder / "a").mkdir()
    (folder / "in").symlink_to("a")
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_leads_out_is_no_path(with_links, name):
    with pytest.raises(DataError) as caught:
        inside(with_links, name)
    assert str(caught.value).startswith(
        f"{with_links}: the name {name[:99]!r} {HOSTILE[name]}. Expected a relative path"
    )


def test_a_harmless_name_stays_inside(with_links, monkeypatch):
    for name in HARMLESS:
        assert inside(with_links, name) == with_links / name
    monkeypatch.chdir(with_links)
    assert inside(Path(), "a/x") == Path("a/x")


@pytest.mark.parametrize("label", [*HOSTILE, "a/b", "b\\a", "a/", ".hidden", "__MACOSX"])
def test_a_hostile_label_is_refused(tmp_path, label):
    """Labels become names of folders."""
    root = tmp_path / "cells"
    good_set(root)
    table = pd.DataFrame({"path": ["a/0.png", "b/0.png", "b/1.png"], "label": ["x", "y", label]})
    table.to_parquet(root / "cells.parquet")
    if label in ("", "out", "loop"):  # a row without a label; a name like any other
        assert len(open_dataset(root / "cells.parquet")) == 2 + (label != "")
        return
    with pytest.raises(DataError) as caught:
        open_dataset(root / "cells.parquet")
    problem = HOSTILE.get(label, "is the name of a hidden or system folder")
    if "/" in label or "\\" in label:
        problem = "contains a slash or backslash"
    elif label.startswith("."):
        problem = "is the name of a hidden or system folder"
    said = f"{root}/cells.parquet: the label {label[:99]!r} (row 3) {problem}. Labels become names"
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "label", ["new\nline", "L" * 255, " a b ", "ä", "50 %", "-rf", "$HOME", "~"]
)
def test_an_odd_label_is_a_class(tmp_path, label):
    root = tmp_path / "cells"
    good_set(root)
    table = pd.DataFrame({"path": ["a/0.png", "b/0.png", "b/1.png"], "label": ["x", "y", label]})
    table.to_parquet(root / "cells.parquet")
    assert label.strip() in open_dataset(root / "cells.parquet").class_names


def test_a_folder_with_a_backslash_is_no_class(tmp_path):
    good_set(tmp_path / "cells", classes=("a", "up\\b"))
    said = r"the label 'up\\\\b' \(a folder's name\) contains a slash or backslash"
    with pytest.raises(DataError, match=said):
        open_dataset(tmp_path / "cells")


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest.name)
def test_one_odd_manifest(tmp_path, manifest):
    root = tmp_path / "cells"
    good = good_set(root)
    good[outside(root) / "x.png"] = PICTURE
    shutil.copy(root / "a/1.png", root / "a/x.png")
    (root / "a/link.png").symlink_to(root.parent / "elsewhere/x.png")
    (root / "a/inner.png").symlink_to("../b/2.png")
    (root / "a/loop.png").symlink_to("loop.png")
    (root / "linked").symlink_to(root.parent / "elsewhere")
    file = root / "manifest.csv"
    text = manifest.text.replace("{root}", str(root))
    file.write_bytes((text if manifest.whole else OUR_ROWS + text).encode("latin-1"))
    if manifest.error:
        with pytest.raises(DataError) as caught:
            open_dataset(file)
        assert str(caught.value).startswith(f"{file}: {manifest.error}")
        return
    cells = open_dataset(file)
    expected = [tuple(field.replace("{root}", str(root)) for field in row) for row in manifest.rows]
    assert rows(cells) == sorted(expected)
    gone = {row[0] for row in expected}
    ours = {"a/0.png", "a/1.png", "b/0.png", "b/1.png"}
    doubled = {row[0] for row in expected if row[3].startswith("listed twice")}
    kept = (ours | set(manifest.more)) - gone | doubled
    assert {path.relative_to(root).as_posix() for path in cells.paths} == kept
    for path, image in zip(cells.paths, cells.read(SIDE), strict=True):
        assert (image == good[path.resolve()]).all()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, "no such folder or manifest"),
        (lambda path: path.symlink_to("nowhere"), "no such folder or manifest"),
        (lambda path: path.symlink_to(path.name), "no such folder or manifest"),
        (lambda path: path.write_bytes(b""), "is a file, but no manifest"),
        (os.mkfifo, "is a file, but no manifest"),
        (Path.mkdir, "no classes"),
    ],
    ids=["nothing", "broken link", "looping link", "file", "pipe", "empty folder"],
)
def test_no_set_at_all(tmp_path, make, problem):
    make(tmp_path / "cells")
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / "cells")
    assert str(caught.value).startswith(f"{tmp_path / 'cells'}: {problem}")


def test_a_file_that_vanishes(tmp_path, monkeypatch):
    root = tmp_path / "cells"
    good = good_set(root)

    def late_scan(root, names):
        (root / "a" / "1.png").unlink()
        return scan_module.scan(root, names)

    monkeypatch.setattr(sets, "scan", late_scan)
    cells = open_dataset(root)
    reason = "cannot be read (No such file or directory)"
    assert rows(cells) == [("a/1.png", "a", "dropped", reason)]
    assert set(cells.paths) == set(good) - {root / "a" / "1.png"}
    (root / "a" / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png: cannot be read \(No such file or directory\)"):
        cells.read(SIDE)


def test_a_file_that_becomes_a_pipe(tmp_path):
    root = tmp_path / "cells"
    good_set(root)
    cells = open_dataset(root)
    (root / "a" / "1.png").unlink()
    os.mkfifo(root / "a" / "1.png")
    writer = os.open(root / "a" / "1.png", os.O_RDWR)
    closing = threading.Timer(5, os.close, [writer])  # so that a reader does not wait for ever
    closing.start()
    with pytest.raises(DataError, match=r"1\.png: not a regular file"):
        cells.read(SIDE)
    closing.cancel()
    os.close(writer)


def run(code: str, *arguments: str) -> dict:
    """Run Python code in a process of its own; it prints JSON."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_huge_image_takes_no_memory(tmp_path):
    root = tmp_path / "cells"
    good_set(root)
    good_set(tmp_path / "warm")
    (root / "a" / "huge.png").write_bytes(huge_png())
    (root / "a" / "length.png").write_bytes(wrong_length())
    (root / "a" / "film.tif").touch()
    os.truncate(root / "a" / "film.tif", 10**10)
    code = """if True:
        import json, resource, sys
        from cellaug.data import open_dataset
        open_dataset(sys.argv[1])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = open_dataset(sys.argv[2]).report
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"files": report["path"].tolist(), "more": (after - before) / 1024}))
    """
    found = run(code, str(tmp_path / "warm"), str(root))
    assert found["files"] == ["a/film.tif", "a/huge.png", "a/length.png"]
    assert found["more"] < 32  # MiB; its pixels would take 858


def test_unreadable_by_permission(monkeypatch):
    """Root may read everything, so the files are opened as another user."""
    # Not below tmp_path, which only its owner may enter.
    with tempfile.TemporaryDirectory() as place:
        base = Path(place).resolve()
        base.chmod(0o755)
        parts = {
            "file": ("a/1.png", 0),
            "class": ("a", 0),
            "class without search": ("a", 0o444),
            "class without list": ("a", 0o111),
            "set": (".", 0),
            "set without search": (".", 0o444),
        }
        for name, (part, mode) in parts.items():
            good_set(base / name)
            (base / name / part).chmod(mode)
        good_set(base / "closed" / "set")
        (base / "closed").chmod(0)
        good_set(base / "good")
        (base / "cache").mkdir()
        code = """if True:
            import json, os, sys, warnings
            from cellaug.data import open_dataset
            names = sys.argv[2:]
            base = sys.argv[1]
            os.environ["CELLAUG_CACHE"] = base + "/own"
            open_dataset(base + "/good").read(16)  # imports what another user may not be able to
            os.environ["CELLAUG_CACHE"] = base + "/cache"
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            else:
                os.chmod(base + "/cache", 0o555)
            found = {}
            for name in names:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    try:
                        cells = open_dataset(os.path.join(base, name))
                        found[name] = [len(cells), cells.report.to_numpy().tolist()]
                    except Exception as error:
                        found[name] = [type(error).__name__, str(error)]
                found[name].append([str(warning.message) for warning in caught])
            print(json.dumps(found))
        """
        try:
            found = run(code, str(base), *parts, "closed/set", "good")
        finally:
            for folder in (base / "closed", base, *(base / name for name in parts)):
                folder.chmod(0o755)
            for name in parts:
                (base / name / "a").chmod(0o755)
    denied = "cannot be read (Permission denied)"
    number, report, warned = found["file"]
    assert (number, report) == (5, [["a/1.png", "a", "dropped", denied]])
    (warning,) = warned
    assert warning.startswith(f"{base}/cache/index/")
    assert "the index of images cannot be kept (Permission denied)" in warning
    assert found["good"][:2] == [6, []]
    errors = {name: found[name][1] for name in found if found[name][0] == "DataError"}
    assert errors.keys() == found.keys() - {"file", "good"}
    for name in ("class", "class without list"):
        assert errors[name].startswith(f"{base / name}/a: {denied}. Ask for the right to read it")
    assert errors["class without search"] == (
        f'{base / "class without search"}: class "a" {USELESS.format("3 × " + denied)}'
    )
    for name in ("set", "set without search", "closed/set"):
        assert errors[name].startswith(str(base / name)) and denied in errors[name]


@pytest.mark.parametrize("trouble", ["full", "no folder", "dead link", "no home"])
def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, trouble):
    root = tmp_path / "cells"
    good_set(root)
    place = tmp_path / "cache"
    if trouble == "no home":
        monkeypatch.setenv("CELLAUG_CACHE", "~nobody-of-this-name/cache")
        with pytest.raises(DataError, match="Set CELLAUG_CACHE to a folder"):
            open_dataset(root)
        return
    if trouble == "no folder":
        place.write_text("")
    if trouble == "dead link":
        place.symlink_to("nowhere/at/all")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if trouble == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        with pytest.warns(UserWarning, match="the index of images cannot be kept") as caught:
            cells = open_dataset(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(caught) == 1 and len(cells) == 6 and cells.report.empty
    assert [path for path in place.rglob("*") if path.is_file()] == []


def counted_looks(monkeypatch) -> list[str]:
    """The names of the files that are looked at from now on."""
    looked = []
    look = scan_module._look
    monkeypatch.setattr(
        scan_module, "_look", lambda path: (looked.append(path.name), look(path))[1]
    )
    return looked


def test_a_killed_first_look_goes_on(tmp_path, monkeypatch):
    root = tmp_path / "cells"
    good_set(root, count=20)
    code = """if True:
        import os, signal, sys, time
        from cellaug.data import open_dataset, scan
        scan._THREADS, scan._SAVE_EVERY = 1, 0
        look = scan._look
        def fatal(path):
            if str(path).endswith("b/10.png"):
                time.sleep(1)  # until the others are saved
                os.kill(os.getpid(), signal.SIGKILL)
            return look(path)
        scan._look = fatal
        open_dataset(sys.argv[1])
    """
    killed = subprocess.run([sys.executable, "-c", code, str(root)], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    looked = counted_looks(monkeypatch)
    cells = open_dataset(root)
    assert len(cells) == 40 and cells.report.empty
    assert len(looked) == 18 and looked.count("10.png") == 1  # b/10.png comes 23rd


def test_an_interruption_loses_nothing_and_does_not_wait(tmp_path, monkeypatch):
    root = tmp_path / "cells"
    good_set(root, count=20)
    look, late = scan_module._look, []

    def interrupted(path):
        if path.parent.name == "b":
            late.append(path)
            time.sleep(0.3)  # until the others are known
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.3)
        return look(path)

    monkeypatch.setattr(scan_module, "_THREADS", 1)
    monkeypatch.setattr(scan_module, "_look", interrupted)
    # A process that was started in the background may have been told to ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            open_dataset(root)
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(0.5)
    assert len(late) == 1
    monkeypatch.setattr(scan_module, "_look", look)
    looked = counted_looks(monkeypatch)
    assert len(open_dataset(root)) == 40
    assert sorted(looked) == sorted(f"{index}.png" for index in range(20))


def test_parts_of_a_folder_share_the_index(tmp_path, monkeypatch):
    root = tmp_path / "cells"
    good_set(root)
    first, second = ["a/0.png", "b/0.png"], ["a/1.png", "a/2.png"]
    scan_module.scan(root, first)
    scan_module.scan(root, second)
    looked = counted_looks(monkeypatch)
    assert scan_module.scan(root, first + second)["width"].tolist() == [SIDE] * 4
    assert looked == []
    (root / "a" / "1.png").unlink()
    scan_module.scan(root, first)
    (index,) = (tmp_path / "cache" / "index").iterdir()
    assert sorted(json.loads(index.read_text())["files"]) == [
        "a/0.png",
        "a/2.png",
        "b/0.png",
    ]


def test_a_first_look_holds_few_images(tmp_path, monkeypatch):
    root = tmp_path / "cells"
    good_set(root)
    side = 700
    picture = np.tile(NOISE, (11, 11, 1))[:side, :side]
    for index in range(30):
        picture[0, 0] = index
        (root / "a" / f"large {index}.bmp").write_bytes(encoded("BMP", picture))
    monkeypatch.setattr(scan_module, "_THREADS", 2)
    tracemalloc.start()
    cells = open_dataset(root)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(cells) == 36
    assert peak < 10 * side * side * 3  # two at a time: file, pixels and their order of colours
