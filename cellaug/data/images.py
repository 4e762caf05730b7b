"""One image: decode a file, crop and resize it, change its value range, write it.

Images are uint8 RGB arrays, height × width × 3, values 0–255. Networks take float32 in [-1, 1].
"""

import io
import math
import os
import re
import stat
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from cellaug.data.errors import DataError

import cv2
import numpy as np
import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# A bad file is reported by `decode`; OpenCV's own lines on the terminal would only repeat it.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

LARGEST_IMAGE = 2**26
"""Pixels; a larger image (8,192×8,192) is refused by its header, before it takes any memory."""
LARGEST_FILE = 2**29
"""Bytes, that image with 16 bits and four channels; a larger file is not read."""

_JPEG, _SCAN, _END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"  # markers of a JPEG

_TAKE_TURNS = 2**24  # pixels; threads decode larger images one at a time, to spare memory
_LARGE = threading.Lock()

_STARTS = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<BMP>BM)"
    rb"|(?P<GIF>GIF8[79]a)|(?P<WebP>RIFF....WEBP)|(?P<JPEG2000>\0\0\0\x0cjP  |\xff\x4f\xff\x51)"
    rb"|(?P<AVIF>....ftypavi[fs])|(?P<PNM>P[1-6]\s)",
    re.DOTALL,
)
_HEADERS = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "JPEG2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "PNM": PpmImagePlugin.PpmImageFile,
}
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "WebP": (".webp",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpf", ".jpx"),
    "AVIF": (".avif", ".avifs"),
    "PNM": (".pnm", ".ppm", ".pgm", ".pbm"),
}
_FOREIGN = {
    b"%pdf": "a PDF",
    b"pk\3\4": "a zip archive",
    b"<svg": "an SVG drawing",
    b"<?xml": "XML, perhaps an SVG drawing",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}
_ORIENTATION = 0x0112  # EXIF and TIFF tag
_TIFF = TiffImagePlugin  # names its tags
_DEFLATE = (8, 32946)  # TIFF compression


def read_file(path: Path) -> tuple[bytes, os.stat_result]:
    """Return a file's bytes and its `stat`.

    Raises `DataError`, without the file's name, unless it is a readable regular file of at most
    `LARGEST_FILE` bytes. A pipe, socket or device is not even opened: it could wait for ever.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a regular file")
        if status.st_size > LARGEST_FILE:
            raise DataError(
                f"too large: {status.st_size:,} bytes, expected at most {LARGEST_FILE:,}"
            )
        # Not `open`: its further system calls, each of which lets go of the interpreter and has to
        # win it back from the other reading threads, cost a tenth of decoding a small image.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:
            data = os.read(file, status.st_size + 1)
            while 0 < len(data) < status.st_size and (more := os.read(file, status.st_size + 1)):
                data += more
        finally:
            os.close(file)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from error
    except ValueError as error:  # a NUL in its name, which only a list of names can hold
        raise DataError(f"cannot be read ({error})") from error
    if len(data) != status.st_size:
        raise DataError("changed while it was read; open the set again when it is complete")
    return data, status


def decode(source: bytes | str | Path, name: str = "") -> tuple[np.ndarray, list[str]]:
    """Decode an image file to RGB.

    `source` is the file's bytes or its path, `name` what it is called if bytes are given. JPEG,
    PNG, TIFF, BMP, GIF, WebP, JPEG 2000, AVIF and PNM are known by their contents.

    Returns the uint8 image (H, W, 3) and notes on what had to be converted or is amiss: 16-bit
    values are scaled to 8 bits (0–65535 → 0–255), a transparent image is laid over white, grey is
    repeated three times, of several pages the first is taken, an EXIF orientation is ignored
    because a smear has no up (a TIFF is turned by it), the ending may belong to another format.

    Raises `DataError` for what is no image, larger than `LARGEST_IMAGE`, incomplete or damaged.
    Damage is seen in JPEG (by libjpeg's warnings and blocks of zero bytes), in PNG and deflated
    TIFF (by checksums) and in LZW; spoilt values inside other formats, which have no checksum,
    cannot be told from an image.
    """
    if isinstance(source, bytes):
        return _decode(source, name)
    try:
        return _decode(read_file(Path(source))[0], Path(source).name)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def _decode(data: bytes, name: str = "") -> tuple[np.ndarray, list[str]]:
    kind = _kind(data)
    header, pages = _header(kind, data)
    width, height = header.size
    if width * height > LARGEST_IMAGE:
        raise DataError(
            f"too large: {width:,}×{height:,} pixels, expected at most {LARGEST_IMAGE:,}"
        )
    notes = []
    ending = Path(name).suffix.lower()
    if any(ending in endings for other, endings in _ENDINGS.items() if other != kind):
        notes.append(f"a {kind} file named {ending}")
    if pages > 1:
        notes.append(f"first of {pages} pages")
    if 2 <= _orientation(kind, header) <= 8:
        notes.append(f"EXIF orientation {'applied' if kind == 'TIFF' else 'ignored'}")
    if header.mode in ("P", "PA"):
        notes.append("palette expanded to RGB")
    if header.mode == "CMYK":
        notes.append("CMYK converted to RGB")
    if header.mode == "1":
        notes.append("1-bit scaled to 8-bit")
    with _LARGE if width * height > _TAKE_TURNS else nullcontext():
        return _to_rgb(_pixels(kind, header, data), notes), notes


def _kind(data: bytes) -> str:
    found = _STARTS.match(data)
    if found:
        return found.lastgroup
    if not data:
        raise DataError("empty file")
    if not data.strip(b"\0"):
        raise DataError("not an image: nothing but zero bytes")
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    what = next((what for mark, what in _FOREIGN.items() if start.startswith(mark)), "")
    raise DataError(f"not an image: {what}" if what else "not an image")


def _header(kind: str, data: bytes) -> tuple[Image.Image, int]:
    """Read size and mode, but no pixels; return Pillow's image and the number of pages."""
    if kind == "PNG":
        _check_chunks(data)
    try:
        # Not Image.open, which refuses a large image without naming its size.
        header = _HEADERS[kind](io.BytesIO(data))
        return header, getattr(header, "n_frames", 1)
    except Exception as error:  # damage makes Pillow's readers raise nearly anything
        if kind == "JPEG" and _END not in data:
            raise DataError("truncated JPEG (no end marker)") from error
        raise DataError("damaged image or unusual format (header cannot be read)") from error


def _check_chunks(data: bytes) -> None:
    """Follow a PNG's chunks to the last; OpenCV takes gigabytes for one of a wrong length."""
    place = 8
    while data[place + 4 : place + 8] != b"IEND":
        if place >= len(data):
            raise DataError("truncated PNG (no IEND chunk)")
        place += 12 + int.from_bytes(data[place : place + 4], "big")


def _orientation(kind: str, header: Image.Image) -> int:
    tags = header.tag_v2 if kind == "TIFF" else Image.Exif()
    try:
        if kind != "TIFF":
            tags.load(header.info.get("exif"))
        return int(tags.get(_ORIENTATION, 1))
    except Exception:  # as above; damage in this block does no harm to the image
        return 1


def _pixels(kind: str, header: Image.Image, data: bytes) -> np.ndarray:
    """Decode to (H, W) or (H, W, channels), RGB."""
    if kind == "JPEG":
        return _jpeg_pixels(header.mode, data)
    if kind == "TIFF":
        bits = max(header.tag_v2.get(_TIFF.BITSPERSAMPLE, (1,)))
        if header.mode == "LAB" or (bits == 16 and header.mode == "CMYK"):
            raise DataError(f"{bits}-bit {header.mode} colours (expected RGB or grey; convert it)")
        try:
            _check_parts(header.tag_v2, data)
        except zlib.error as error:
            raise DataError("damaged image (wrong checksum)") from error
        except (LookupError, TypeError, ArithmeticError) as error:  # a tag that makes no sense
            raise DataError("damaged image (cannot be decoded)") from error
        # OpenCV takes spoilt LZW for an image and multiplies by the alpha channel.
        if bits != 16:
            return _pillow_pixels(header)
    if kind == "JPEG2000" and header.mode in ("LA", "CMYK"):  # not known to OpenCV
        return _pillow_pixels(header)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise DataError("damaged image (cannot be decoded)")
    if image.ndim == 2:
        return image
    order = cv2.COLOR_BGR2RGB if image.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(image, order, dst=image)


def _jpeg_pixels(mode: str, data: bytes) -> np.ndarray:
    # It stops at libjpeg's warnings, which OpenCV and Pillow pass over: grey or shifted blocks.
    colours = {"L": "GRAY", "CMYK": "CMYK"}.get(mode, "RGB")
    try:
        image = simplejpeg.decode_jpeg(data, colours)
    except ValueError as error:
        message = str(error).removeprefix("Corrupt JPEG data: ")
        if message.startswith("Premature end") or _END not in data:
            raise DataError("truncated JPEG (no end marker)") from error
        raise DataError(f"damaged JPEG: {message}") from error
    if _has_zero_block(data):
        raise DataError("damaged JPEG: a block of zero bytes")
    if mode != "CMYK":
        return image
    # Such files hold the colours inverted: 255 is no ink.
    return (image[..., :3].astype(np.uint16) * image[..., 3:] // 255).astype(np.uint8)


def _has_zero_block(data: bytes) -> bool:
    """Whether a decodable JPEG has zero bytes where no image has them, as a bad disk leaves them.

    They mean the first code of each table over and over. In a flat part of an image that may be:
    no change and end of block, both symbol 0. Progressive images, which have other symbols, and
    those of several scans are not judged.
    """
    zeros = bytes(64)
    if zeros not in data:
        return False
    place, sequential, first_symbols = 2, False, set()
    while (marker := data[place + 1]) != _SCAN[1]:
        if marker == 0xFF:  # padding before a marker
            place += 1
            continue
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        segment = data[place + 4 : place + 2 + size]
        sequential |= marker in (0xC0, 0xC1)
        while marker == 0xC4 and segment:  # its tables: a number, 16 counts, as many symbols
            first_symbols.add(segment[17])
            segment = segment[17 + sum(segment[1:17]) :]
        place += 2 + size
    scan = data[place + 2 : data.find(_END, place)]
    return sequential and _SCAN not in scan and zeros in scan and first_symbols != {0}


def _check_parts(tags: TiffImagePlugin.ImageFileDirectory_v2, data: bytes) -> None:
    """Check that a TIFF's strips or tiles are there, and whole if deflated.

    Pillow leaves missing ones black, and libtiff passes over the checksums.
    """
    width, height = tags[_TIFF.IMAGEWIDTH], tags[_TIFF.IMAGELENGTH]
    if _TIFF.TILEOFFSETS in tags:
        offsets, sizes = tags[_TIFF.TILEOFFSETS], tags[_TIFF.TILEBYTECOUNTS]
        parts = -(-width // tags[_TIFF.TILEWIDTH]) * -(-height // tags[_TIFF.TILELENGTH])
    else:
        offsets, sizes = tags[_TIFF.STRIPOFFSETS], tags.get(_TIFF.STRIPBYTECOUNTS, ())
        parts = -(-height // tags.get(_TIFF.ROWSPERSTRIP, height))
    if tags.get(_TIFF.PLANAR_CONFIGURATION) == 2:  # each channel on its own
        parts *= tags[_TIFF.SAMPLESPERPIXEL]
    if len(offsets) < parts:
        raise DataError(f"damaged image: {len(offsets)} of its {parts} parts")
    if tags.get(_TIFF.COMPRESSION) in _DEFLATE:
        for offset, size in zip(offsets, sizes, strict=False):
            inflater = zlib.decompressobj()
            inflater.decompress(data[offset : offset + size], LARGEST_FILE)
            if not inflater.eof:
                raise DataError("damaged image (cannot be decoded)")


def _pillow_pixels(header: Image.Image) -> np.ndarray:
    wanted = {
        "1": "L",
        "P": "RGB",
        "PA": "RGBA",
        "CMYK": "RGB",
        "YCbCr": "RGB",
        "RGBX": "RGB",
    }
    try:
        return np.asarray(header.convert(wanted[header.mode]) if header.mode in wanted else header)
    except Exception as error:  # as above
        raise DataError("damaged image (cannot be decoded)") from error


def _to_rgb(image: np.ndarray, notes: list[str]) -> np.ndarray:
    if image.dtype == np.uint16:
        notes.append("16-bit scaled to 8-bit")
        if image.max() < 4096:  # 12-bit cameras fill only the lowest part of the range
            notes[-1] += f": very dark, largest value {image.max()} of 65535"
        image = cv2.convertScaleAbs(image, alpha=1 / 257)
    if image.dtype != np.uint8:
        raise DataError(f"{image.dtype} values (expected 8- or 16-bit whole numbers; convert it)")
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[2] in (2, 4):
        alpha = image[..., -1:].astype(np.uint16)
        image = image[..., :-1]
        if alpha.min() < 255:
            notes.append("transparency laid over white")
            light = image * alpha  # and, within 16 bits, as much white as is missing
            light += 255 * (255 - alpha) + 127
            image = (light // 255).astype(np.uint8)
    if image.shape[2] == 1:
        notes.append("grey repeated to RGB")
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image)


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """Crop the central square of an image and resize it to (size, size, 3), antialiased.

    Shrinking averages over areas, enlarging is cubic.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    image = image[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(image)
    if side < size:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC)
    if side % size == 0:
        return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    # OpenCV averages over parts of pixels in float32 anyway, faster when it is given them as such.
    mean = cv2.resize(image.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return cv2.convertScaleAbs(mean)


def turned(images: np.ndarray, view: int) -> np.ndarray:
    """One of the eight views (0–7) of square images (..., H, H, C): quarter turns, mirrored from 4.

    A smear has no up and no left, so each shows the same cell.
    """
    return np.rot90(images[..., ::-1, :] if view >= 4 else images, view % 4, axes=(-3, -2))


def read_image(path: str | Path, size: int) -> np.ndarray:
    """Read a file as a uint8 RGB image (size, size, 3): central square, resized.

    A JPEG that is much larger than `size` is decoded at 1/2, 1/4 or 1/8 of its scale, which is
    faster. In the mean over an image the result then differs from full decoding by 1.7 grey levels
    of 255 on PBC, and by less than 5 in any image. Raises `DataError` naming the file if it cannot
    be read or decoded.
    """
    return next(read_images([path], size))


def read_images(paths: Sequence[str | Path], size: int) -> Iterator[np.ndarray]:
    """`read_image` of one file after another, faster where several threads do it.

    Some MiB of files are read before the first of them is decoded: fewer system calls between two
    images let each thread keep at its work.
    """
    ready: list[tuple[str | Path, bytes]] = []
    for count, path in enumerate(paths, 1):
        try:
            ready.append((path, read_file(Path(path))[0]))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        if count < len(paths) and sum(len(data) for _, data in ready) < _READY:
            continue
        for path, data in ready:
            try:
                yield to_square(data, size)
            except DataError as error:
                raise DataError(f"{path}: {error}") from error
        ready.clear()


_READY = 2**22
"""Bytes of files that wait to be decoded, besides the last one."""

_SPARE = 1.4
"""A reduced image is at least this many times the target's size, so that averaging smooths it."""


def to_square(data: bytes, size: int) -> np.ndarray:
    """`read_image` of a file's bytes; its `DataError` cannot name the file."""
    image = _decode_reduced(data, math.ceil(_SPARE * size)) if data.startswith(_JPEG) else None
    return fit_square(decode(data)[0] if image is None else image, size)


def _decode_reduced(data: bytes, side: int) -> np.ndarray | None:
    """Decode a JPEG at 1/8, 1/4, 1/2 or the whole of its scale, the smallest that leaves `side`.

    Other fractions take longer than the whole. Returns None where `decode` is needed.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray"):
            return None
        k = next((k for k in (8, 4, 2) if min(height, width) // k >= side), 1)
        least = {"min_height": -(-height // k), "min_width": -(-width // k)}
        return simplejpeg.decode_jpeg(data, "RGB", **least)
    except ValueError:
        return None  # damaged: `decode` says how


def to_float(images: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Scale uint8 values 0–255 to float32 in [-1, 1]: (p − 127.5) / 127.5, Eq. 39 of the thesis.

    The result is written to `out`, float32 of the same shape, if that is given.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"to_float expects uint8 images with values 0–255, not {images.dtype}")
    if out is None:
        out = np.empty(images.shape, np.float32)
    if images.size and images.flags.c_contiguous and out.flags.c_contiguous:
        rows = len(images) if images.ndim > 1 else 1  # OpenCV counts a row's values in 31 bits
        cv2.LUT(images.reshape(rows, -1), _SCALED, out.reshape(rows, -1))
    else:
        np.take(_SCALED, images, out=out)
    return out


_SCALED = (np.arange(256, dtype=np.float32) - np.float32(127.5)) / np.float32(127.5)
"""What each of the 256 values becomes: looking it up takes two thirds of the time of computing."""


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Scale values in [-1, 1] back to uint8 0–255: the inverse of Eq. 39, rounded and clipped.

    Raises `ValueError` if a value is not a number.
    """
    images = np.asarray(images, np.float32)
    if np.isnan(images).any():
        raise ValueError("to_uint8 expects numbers in [-1, 1]; some values are NaN")
    return np.clip(np.rint(images * 127.5 + 127.5), 0, 255).astype(np.uint8)


def check_images(images: np.ndarray, name: str) -> np.ndarray:
    """Return the images as an array; ValueError, naming them, unless uint8 RGB (N, H, W, 3)."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"{name}: expected uint8 RGB images N×H×W×3 (0–255), but got {images.dtype} "
            f"{images.shape}; cellaug.data.to_uint8 turns [-1, 1] into uint8"
        )
    return images


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write a uint8 RGB image (H, W, 3) as PNG; the file appears whole or not at all."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"{path}: expected a uint8 image of shape (height, width, 3), "
            f"not {image.dtype} of shape {image.shape}"
        )
    write_atomically(path, cv2.imencode(".png", image[..., ::-1])[1].tobytes())


def read_png(path: str | Path) -> np.ndarray:
    """What `write_png` wrote, (H, W, 3) uint8 RGB; for our own files, others need `read_image`."""
    return cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write bytes to a temporary name in the same folder, then move them into place."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
