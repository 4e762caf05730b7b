"""One image: decode a file, crop and resize it, change its value range, write it."""

import hashlib
import io
import json
import os
import stat
import threading
import zlib
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from cellaug.errors import DataError
from cellaug.files import write_atomically

import cv2
import numpy as np
import simplejpeg
from PIL import Image
from PIL import TiffImagePlugin as Tiff

# A bad file is reported by `decode`; OpenCV's own lines on the terminal would only repeat it.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

LARGEST_IMAGE = 2**26  # pixels (8,192×8,192); a larger image is refused by its header
LARGEST_FILE = 2**29  # bytes, that image with 16 bits and four channels
_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # markers of a JPEG
_TAKE_TURNS = 2**24  # pixels; threads decode larger images one at a time, to spare memory
_LARGE = threading.Lock()
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "AVIF", "PPM")
_FOREIGN = {b"%pdf": "a PDF", b"pk\3\4": "a zip archive", b"<svg": "an SVG drawing"}
_FOREIGN |= {b"<?xml": "XML, perhaps an SVG drawing", b"<html": "a web page"}
_FOREIGN |= {b"<!doctype html": "a web page"}
CHUNK = "cellaug"  # of a generated PNG: a text, JSON, with these keys
CHUNK_KEYS = ("generator", "class", "seed", "index")


def read_file(path: Path) -> tuple[bytes, os.stat_result]:
    """Return a regular file's bytes and its `stat`; `DataError`, without the file's name."""
    try:
        status = path.stat()
        regular, size = stat.S_ISREG(status.st_mode), status.st_size
        # A pipe or device could wait for ever.
        data = path.read_bytes() if regular and size <= LARGEST_FILE else b""
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        raise DataError(f"cannot be read ({getattr(error, 'strerror', error)})") from error
    if not regular:
        raise DataError("not a regular file")
    if size > LARGEST_FILE:
        raise DataError(f"too large: {size:,} bytes, expected at most {LARGEST_FILE:,}")
    if len(data) != size:
        raise DataError("changed while it was read; open the set again when it is complete")
    return data, status


def decode(source: bytes | str | Path, name: str = "") -> tuple[np.ndarray, list[str]]:
    """Decode an image file to RGB: its bytes, called `name`, or its path.

    JPEG, PNG, TIFF, BMP, GIF, WebP, JPEG 2000, AVIF and PNM are known by their contents. Returns
    the uint8 image (H, W, 3) and notes on what was converted. `DataError` if it is no image, larger
    than `LARGEST_IMAGE`, or damaged, which only JPEG, PNG and deflated or LZW TIFF always show.
    """
    if not isinstance(source, bytes):
        try:
            return decode(read_file(Path(source))[0], Path(source).name)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
    kind = _kind(source)
    header, pages = _header(kind, source)
    width, height = header.size
    if width * height > LARGEST_IMAGE:
        most = f"expected at most {LARGEST_IMAGE:,}"
        raise DataError(f"too large: {width:,}×{height:,} pixels, {most}")
    ending = Path(name).suffix.lower()
    facts = {
        f"a {kind} file named {ending}": Image.EXTENSION.get(ending, kind) in {*_FORMATS} - {kind},
        f"first of {pages} pages": pages > 1,
        f"EXIF orientation {'applied' if kind == 'TIFF' else 'ignored'}": _turned(kind, header),
        "palette expanded to RGB": header.mode in ("P", "PA"),
        "CMYK converted to RGB": header.mode == "CMYK",
        "1-bit scaled to 8-bit": header.mode == "1",
    }
    notes = [note for note, true in facts.items() if true]
    with _LARGE if width * height > _TAKE_TURNS else nullcontext():
        try:
            image = _pixels(kind, header, source)
        except DataError:
            raise
        except Exception as error:  # damage makes decoders raise nearly anything
            what = "wrong checksum" if isinstance(error, zlib.error) else "cannot be decoded"
            raise DataError(f"damaged image ({what})") from error
        return _to_rgb(image, notes), notes


def generated_by(data: bytes) -> dict[str, str] | None:
    """Read the text chunk `CHUNK` of a generated PNG, given its bytes; None without that chunk.

    Returns `CHUNK_KEYS` as texts; what the chunk does not say, or not in JSON, is "".
    """
    if not (data.startswith(b"\x89PNG") and b"tEXt" + CHUNK.encode() + b"\0" in data):
        return None
    header: Any = Image.OPEN["PNG"][0](io.BytesIO(data), "")
    text = header.info.get(CHUNK) or header.text.get(CHUNK)  # before the pixels, or behind them
    if text is None:
        return None  # these bytes are part of the pixels
    try:
        said = dict(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        said = {}
    texts = ((key, str(said.get(key, "")).encode("utf-8", "replace")) for key in CHUNK_KEYS)
    return {key: " ".join(text.decode().split())[:200] for key, text in texts}


def _kind(data: bytes) -> str:
    Image.init()  # loads Pillow's readers
    for kind in _FORMATS:
        accepts = Image.OPEN[kind][1]
        if accepts and accepts(data[:16].ljust(16, b"\0")):
            return kind
    if not data.strip(b"\0"):
        raise DataError("not an image: nothing but zero bytes" if data else "empty file")
    start = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    what = [what for mark, what in _FOREIGN.items() if start.startswith(mark)]
    raise DataError(": ".join(["not an image", *what]))


def _header(kind: str, data: bytes) -> tuple[Any, int]:
    """Read size and mode, but no pixels; return Pillow's image and the number of pages."""
    place = 8  # follow a PNG's chunks; OpenCV takes gigabytes for one of a wrong length
    while kind == "PNG" and data[place + 4 : place + 8] != b"IEND":
        if place >= len(data):
            raise DataError("truncated PNG (no IEND chunk)")
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    try:
        # Not Image.open, which refuses a large image without naming its size.
        header = Image.OPEN[kind][0](io.BytesIO(data), "")
        return header, getattr(header, "n_frames", 1)
    except Exception as error:  # as in `decode`
        if kind == "JPEG" and _END not in data:
            raise DataError("truncated JPEG (no end marker)") from error
        raise DataError("damaged image or unusual format (header cannot be read)") from error


def _turned(kind: str, header: Any) -> bool:
    tags = header.tag_v2 if kind == "TIFF" else Image.Exif()
    try:
        if kind != "TIFF":
            tags.load(header.info.get("exif"))
        return 2 <= int(tags.get(0x0112, 1)) <= 8
    except Exception:  # damage in this block does no harm to the image
        return False


def _pixels(kind: str, header: Any, data: bytes) -> np.ndarray:
    """Decode to (H, W) or (H, W, channels), RGB; raises anything if the file is damaged."""
    mode, bits = header.mode, 8
    if kind == "JPEG":
        return _jpeg_pixels(mode, data)
    if kind == "TIFF":
        bits = max(header.tag_v2.get(Tiff.BITSPERSAMPLE, (1,)))
        if mode == "LAB" or (bits == 16 and mode == "CMYK"):
            raise DataError(f"{bits}-bit {mode} colours (expected RGB or grey; convert it)")
        _check_parts(header.tag_v2, data)
    # OpenCV takes spoilt LZW for an image and multiplies by the alpha channel.
    if (kind == "TIFF" and bits != 16) or (kind == "JPEG2000" and mode in ("LA", "CMYK")):
        wanted = {"1": "L", "P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "RGBX": "RGB"}
        return np.asarray(header.convert(wanted[mode]) if mode in wanted else header)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError("not decoded")
    order = cv2.COLOR_BGR2RGB if image.shape[-1] == 3 else cv2.COLOR_BGRA2RGBA
    return image if image.ndim == 2 else cv2.cvtColor(image, order, dst=image)


def _jpeg_pixels(mode: str, data: bytes) -> np.ndarray:
    try:  # it stops at libjpeg's warnings, which OpenCV and Pillow pass over
        image = simplejpeg.decode_jpeg(data, {"L": "GRAY", "CMYK": "CMYK"}.get(mode, "RGB"))
    except ValueError as error:
        message = str(error).removeprefix("Corrupt JPEG data: ")
        if message.startswith("Premature end") or _END not in data:
            raise DataError("truncated JPEG (no end marker)") from error
        raise DataError(f"damaged JPEG: {message}") from error
    if _has_zero_block(data):
        raise DataError("damaged JPEG: a block of zero bytes")
    if mode == "CMYK":  # such files hold the colours inverted: 255 is no ink
        return (image[..., :3].astype(np.uint16) * image[..., 3:] // 255).astype(np.uint8)
    return image


def _has_zero_block(data: bytes) -> bool:
    """Whether a JPEG, sequential and of one scan, has a block of zeros, as a bad disk leaves it."""
    # It repeats the first code of each table. A flat part may too, but only if that is symbol 0.
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


def _check_parts(tags: Tiff.ImageFileDirectory_v2, data: bytes) -> None:
    """Check a TIFF's strips or tiles: Pillow leaves missing ones black, libtiff checks no sums."""
    width, height = tags[Tiff.IMAGEWIDTH], tags[Tiff.IMAGELENGTH]
    if Tiff.TILEOFFSETS in tags:
        offsets, sizes = tags[Tiff.TILEOFFSETS], tags[Tiff.TILEBYTECOUNTS]
        parts = -(-width // tags[Tiff.TILEWIDTH]) * -(-height // tags[Tiff.TILELENGTH])
    else:
        offsets, sizes = tags[Tiff.STRIPOFFSETS], tags.get(Tiff.STRIPBYTECOUNTS, ())
        parts = -(-height // tags.get(Tiff.ROWSPERSTRIP, height))
    if tags.get(Tiff.PLANAR_CONFIGURATION) == 2:  # each channel on its own
        parts *= tags[Tiff.SAMPLESPERPIXEL]
    if len(offsets) < parts:
        raise DataError(f"damaged image: {len(offsets)} of its {parts} parts")
    if tags.get(Tiff.COMPRESSION) in (8, 32946):  # deflate
        for offset, size in zip(offsets, sizes, strict=False):
            inflater = zlib.decompressobj()
            inflater.decompress(data[offset : offset + size], LARGEST_FILE)
            if not inflater.eof:
                raise ValueError("incomplete")


def _to_rgb(image: np.ndarray, notes: list[str]) -> np.ndarray:
    if image.dtype == np.uint16:
        notes.append("16-bit scaled to 8-bit")
        # Cameras of 10 to 14 bits, and programs that only change the type, fill the lowest part.
        bits = next(bits for bits in (8, 10, 12, 14, 16) if image.max() < 2**bits)
        if bits < 16:
            notes[-1] += f": {bits}-bit values, 0 to {2**bits - 1}"
        image = cv2.convertScaleAbs(image, alpha=255 / (2**bits - 1))
    if image.dtype != np.uint8:
        raise DataError(f"{image.dtype} values (expected 8- or 16-bit whole numbers; convert it)")
    image = image.reshape(*image.shape[:2], -1)
    if image.shape[2] in (2, 4):
        image, alpha = image[..., :-1], image[..., -1:].astype(np.uint16)
        if alpha.min() < 255:
            notes.append("transparency laid over white")
            image = ((image * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    if image.shape[2] == 1:
        notes.append("grey repeated to RGB")
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image)


def fit_square(image: np.ndarray, size: int) -> np.ndarray:
    """Crop an image's central square; resize it to (size, size, 3), averaging areas or cubic."""
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    image = image[top : top + side, left : left + side]
    if side > size and side % size:
        image = image.astype(np.float32)  # in which OpenCV averages anyway, but slower
    how = cv2.INTER_CUBIC if side < size else cv2.INTER_AREA
    return cv2.convertScaleAbs(cv2.resize(image, (size, size), interpolation=how))


def turned(images: np.ndarray, view: int) -> np.ndarray:
    """View 0–7 of square images (..., H, H, C): turned by so many quarters, mirrored from 4 on."""
    return np.rot90(images[..., ::-1, :] if view >= 4 else images, view % 4, axes=(-3, -2))


def decode_same(path: Path, digest: str) -> np.ndarray:
    """Decode a file, uint8 RGB (H, W, 3); `DataError` if it is bad or has another digest."""
    try:
        return decode(_read_same(path, digest), path.name)[0]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read_same(path: Path, digest: str) -> bytes:
    data = read_file(path)[0]
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise DataError("has changed since the set was opened; open it again")
    return data


def read_image(path: str | Path, size: int, digest: str = "") -> np.ndarray:
    """A file's central square, uint8 RGB (size, size, 3); `DataError` if bad or not of `digest`."""
    try:
        return fit_square(decode_reduced(_read_same(Path(path), digest), size), size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def decode_reduced(data: bytes, size: int) -> np.ndarray:
    """Decode a file's bytes for resizing to `size`, a JPEG at 1/8, 1/4, 1/2 or its full scale."""
    # 1.4 times `size` is left for antialiasing. On PBC this differs from full decoding by 1.7 of
    # 255 grey levels on average, in no image by 5.
    with suppress(ValueError):  # no JPEG, or a damaged one: `decode` says how
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours in ("YCbCr", "Gray"):
            k = next((k for k in (8, 4, 2) if min(height, width) // k >= 1.4 * size), 1)
            least = {"min_height": -(-height // k), "min_width": -(-width // k)}
            return simplejpeg.decode_jpeg(data, "RGB", **least)
    return decode(data)[0]


def to_float(images: np.ndarray) -> np.ndarray:
    """Scale uint8 values 0–255 to float32 in [-1, 1]: (p − 127.5) / 127.5, Eq. 39 of the thesis."""
    if (dtype := np.asarray(images).dtype) != np.uint8:
        raise ValueError(f"to_float expects uint8 images with values 0–255, not {dtype}")
    scaled = np.subtract(images, 127.5, dtype=np.float32)
    return np.divide(scaled, np.float32(127.5), out=scaled)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Scale values in [-1, 1] to uint8 0–255, rounded and clipped; `ValueError` if one is NaN."""
    images = np.asarray(images, np.float32)
    if np.isnan(images).any():
        raise ValueError("to_uint8 expects numbers in [-1, 1]; some values are NaN")
    return np.clip(np.rint(images * 127.5 + 127.5), 0, 255).astype(np.uint8)


def check_images(images: np.ndarray, name: str) -> np.ndarray:
    """Return the images as an array; ValueError, naming them, unless uint8 RGB (N, H, W, 3)."""
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        found = f"{images.dtype} {images.shape}; cellaug.data.to_uint8 turns [-1, 1] into uint8"
        raise ValueError(f"{name}: expected uint8 RGB images N×H×W×3 (0–255), but got {found}")
    return images


def write_png(path: str | Path, image: np.ndarray, **texts: str) -> None:
    """Write a uint8 RGB image (H, W, 3) as PNG; the file appears whole or not at all.

    Each of `texts` becomes a tEXt chunk of that keyword, in Latin-1 (PNG, 3rd edition, 11.3.3).
    """
    write_atomically(path, as_png(check_images(np.asarray(image)[None], str(path))[0], **texts))


def as_png(image: np.ndarray, **texts: str) -> bytes:
    """The bytes of the file that `write_png` writes."""
    data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    for keyword, text in texts.items():  # behind signature and header, the first 33 bytes
        chunk = b"tEXt" + f"{keyword}\0{text}".encode("latin-1")
        ends = (len(chunk) - 4).to_bytes(4, "big"), zlib.crc32(chunk).to_bytes(4, "big")
        data = data[:33] + ends[0] + chunk + ends[1] + data[33:]
    return data
