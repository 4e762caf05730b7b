"""One image: decode a file, crop and resize it, change its value range, write it.

Images are uint8 RGB arrays, height × width × 3, values 0–255. Networks take float32 in [-1, 1].
"""

import os
import threading
from pathlib import Path

from cellaug.data.errors import DataError

import cv2
import numpy as np

# A bad file is reported by `decode`; OpenCV's own lines on the terminal would only repeat it.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PAGED = (b"GIF8", b"II*\0", b"MM\0*")
_OTHER = (b"BM", b"RIFF", b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"\0\0\0\x0cjP", b"\xff\x0a")


def decode(source: bytes | str | Path) -> tuple[np.ndarray, list[str]]:
    """Decode an image file to RGB.

    `source` is the file's bytes or its path. Returns the uint8 image (H, W, 3) and notes on what
    had to be converted: 16-bit values are scaled to 8 bits (0–65535 → 0–255), a transparent image
    is laid over white, grey is repeated three times, of several pages the first is taken. An EXIF
    orientation is ignored. Raises `DataError` for what is no complete image.
    """
    if isinstance(source, bytes):
        return _decode(source)
    try:
        return _decode(Path(source).read_bytes())
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror})") from error
    except DataError as error:
        raise DataError(f"{source}: {error}") from error


def _decode(data: bytes) -> tuple[np.ndarray, list[str]]:
    if not data:
        raise DataError("empty file")
    # Entropy-coded JPEG data holds neither marker, so a whole file ends after its last scan.
    if data.startswith(_JPEG) and data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda"):
        raise DataError("truncated JPEG (no end marker)")
    if data.startswith(_PNG) and b"IEND" not in data:
        raise DataError("truncated PNG (no IEND chunk)")
    notes = []
    buffer = np.frombuffer(data, np.uint8)
    try:
        if data.startswith(_PAGED):
            pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED)[1]
            image = pages[0] if pages else None
            if len(pages) > 1:
                notes.append(f"first of {len(pages)} pages")
        else:
            image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        known = data.startswith((_JPEG, _PNG, *_PAGED, *_OTHER))
        raise DataError("damaged image (cannot be decoded)" if known else "not an image")
    if data.startswith(_PNG) and data[25] == 3:
        notes.append("palette expanded to RGB")
    return _to_rgb(image, notes), notes


def _to_rgb(image: np.ndarray, notes: list[str]) -> np.ndarray:
    if image.dtype == np.uint16:
        notes.append("16-bit scaled to 8-bit")
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype != np.uint8:
        raise DataError(f"{image.dtype} values (expected 8- or 16-bit whole numbers; convert it)")
    if image.ndim == 2:
        image = image[..., None]
    channels = image.shape[2]
    if channels in (2, 4):
        notes.append("transparency laid over white")
        alpha = image[..., -1:].astype(np.float32) / 255
        image = np.rint(image[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    if channels <= 2:
        notes.append("grey repeated to RGB")
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[..., ::-1])


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
    method = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return cv2.resize(image, (size, size), interpolation=method)


def read_image(path: str | Path, size: int) -> np.ndarray:
    """Read a file as a uint8 RGB image (size, size, 3): central square, resized.

    Raises `DataError` naming the file if it cannot be read or decoded.
    """
    return fit_square(decode(Path(path))[0], size)


def to_float(images: np.ndarray) -> np.ndarray:
    """Scale uint8 values 0–255 to float32 in [-1, 1]: (p − 127.5) / 127.5, Eq. 39 of the thesis."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"to_float expects uint8 images with values 0–255, not {images.dtype}")
    return (images.astype(np.float32) - np.float32(127.5)) / np.float32(127.5)


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


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write bytes to a temporary name in the same folder, then move them into place."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
