"""One image: decoding, cropping, value range, writing."""

import io
import json
import struct
import zlib

from cellaug.data import DataError, read_image, to_float, to_uint8
from cellaug.data.images import decode, decode_reduced, fit_square, generated_by, write_png
from cellaug.files import write_atomically

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin


def encoded(kind, image):
    return cv2.imencode(kind, image)[1].tobytes()


def test_colours_are_red_green_blue():
    blue_green_red = np.zeros((9, 10, 3), np.uint8)
    blue_green_red[..., 2] = 200
    image, notes = decode(encoded(".png", blue_green_red))
    assert image.shape == (9, 10, 3) and image.dtype == np.uint8 and notes == []
    assert image[0, 0].tolist() == [200, 0, 0]


def test_sixteen_bits_are_scaled_over_the_whole_range():
    values = np.array([[0, 128, 129, 257, 32767, 32768, 65406, 65535]], np.uint16)
    image, notes = decode(encoded(".png", values))
    assert image[0, :, 0].tolist() == [0, 0, 1, 1, 127, 128, 254, 255]
    assert notes == ["16-bit scaled to 8-bit", "grey repeated to RGB"]
    assert (image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all()


def test_twelve_bits_are_scaled_by_their_own_range():
    values = np.array([[0, 8, 9, 2048, 3000, 4095]], np.uint16)  # 16.06 of them are one grey level
    image, notes = decode(encoded(".png", values))
    assert image[0, :, 0].tolist() == [0, 0, 1, 128, 187, 255]
    assert notes[0] == "16-bit scaled to 8-bit: 12-bit values, 0 to 4095"
    image, notes = decode(encoded(".png", np.array([[0, 8, 16384]], np.uint16)))
    assert image[0, :, 0].tolist() == [0, 0, 64] and notes[0] == "16-bit scaled to 8-bit"
    for bits in (10, 14):
        image, notes = decode(
            encoded(".png", np.array([[0, 2 ** (bits - 1), 2**bits - 1]], np.uint16))
        )
        assert image[0, :, 0].tolist() == [0, 128, 255]
        assert notes[0] == f"16-bit scaled to 8-bit: {bits}-bit values, 0 to {2**bits - 1}"
    image, _ = decode(encoded(".png", np.array([[0, 8, 255]], np.uint16)))
    assert image[0, :, 0].tolist() == [0, 8, 255]


def test_transparency_is_laid_over_white():
    image = np.zeros((1, 3, 4), np.uint8)
    image[0, :, :3] = (10, 20, 30)  # blue, green, red
    image[0, :, 3] = (0, 255, 51)
    decoded, notes = decode(encoded(".png", image))
    assert notes == ["transparency laid over white"]
    # 51 / 255 = 0.2: 0.2 · 30 + 0.8 · 255 = 210, 0.2 · 20 + 204 = 208, 0.2 · 10 + 204 = 206
    assert decoded[0].tolist() == [[255, 255, 255], [30, 20, 10], [210, 208, 206]]


def test_palette_and_pages_are_noted():
    # a 2 × 1 PNG with a palette: red, blue

    def chunk(kind, body):
        whole = kind + body
        return struct.pack(">I", len(body)) + whole + struct.pack(">I", zlib.crc32(whole))

    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", bytes([255, 0, 0, 0, 0, 255]))
        + chunk(b"IDAT", zlib.compress(bytes([0, 0, 1])))
        + chunk(b"IEND", b"")
    )
    image, notes = decode(png)
    assert image.tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert notes == ["palette expanded to RGB"]
    pages = [np.full((8, 8, 3), value, np.uint8) for value in (10, 20)]
    image, notes = decode(cv2.imencodemulti(".tiff", pages)[1].tobytes())
    assert notes == ["first of 2 pages"] and (image == 10).all()


def test_exif_orientation_is_ignored():
    jpeg = encoded(".jpg", np.zeros((16, 24, 3), np.uint8))
    # an EXIF block with the one tag "orientation: 6 (turn right)"
    tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    body = b"Exif\0\0" + tiff
    block = b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    assert decode(jpeg[:2] + block + jpeg[2:])[0].shape == (16, 24, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"hello", "not an image"),
        (b"\xff\xd8\xff\xe0", "truncated JPEG"),
        (b"\x89PNG\r\n\x1a\n", "truncated PNG"),
        (b"BM12345", "damaged image"),
    ],
)
def test_what_is_no_image(tmp_path, data, message):
    with pytest.raises(DataError, match=message):
        decode(data)
    file = tmp_path / "cell.jpg"
    file.write_bytes(data)
    with pytest.raises(DataError, match=f"cell.jpg: {message}"):
        read_image(file, 8)


def test_a_jpeg_with_a_thumbnail_is_seen_to_be_cut():
    jpeg = encoded(".jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    thumbnail = encoded(".jpg", np.zeros((8, 8, 3), np.uint8))
    block = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = jpeg[:2] + block + jpeg[2:]
    assert decode(whole)[0].shape == (64, 64, 3)
    assert decode(whole + b"\0" * 20)[0].shape == (64, 64, 3)  # padding does not matter
    with pytest.raises(DataError, match="truncated JPEG"):
        decode(whole[:-400])


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"absent\.png: cannot be read"):
        read_image(tmp_path / "absent.png", 8)


def test_centre_crop_and_area_resize(tmp_path):
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 2:6] = 100  # the central square
    image[0, 2] = 200
    assert (fit_square(image, 4)[1:] == 100).all()
    small = fit_square(image, 2)
    assert small[0, 0].tolist() == [125, 125, 125]  # mean of 200, 100, 100, 100
    assert (small.reshape(-1, 3)[1:] == 100).all()
    tall = np.moveaxis(image, 0, 1)
    assert (fit_square(tall, 2) == np.moveaxis(small, 0, 1)).all()
    write_png(tmp_path / "x.png", image)
    assert (read_image(tmp_path / "x.png", 2) == small).all()
    assert fit_square(image, 16).shape == (16, 16, 3)


def test_value_range_by_hand_and_round_trip():
    values = np.arange(256, dtype=np.uint8)
    scaled = to_float(values)
    assert scaled.dtype == np.float32
    assert scaled[0] == -1 and scaled[255] == 1
    assert scaled[51] == pytest.approx(-0.6)
    assert (to_uint8(scaled) == values).all()
    assert to_uint8(scaled).dtype == np.uint8
    assert to_uint8(np.array([-3.0, 3.0, 0.0, 0.1])).tolist() == [0, 255, 128, 140]


def test_value_range_complaints():
    with pytest.raises(ValueError, match="uint8"):
        to_float(np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(np.array([0.0, np.nan]))


def test_write_png_leaves_nothing_half_done(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    write_png(tmp_path / "x.png", image)
    assert (decode(tmp_path / "x.png")[0] == image).all()
    with pytest.raises(ValueError, match=r"x\.png: expected uint8 RGB images"):
        write_png(tmp_path / "x.png", image.astype(float))

    def fail(self, target):
        raise OSError("disk full")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "x.png", b"other")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    assert (decode(tmp_path / "x.png")[0] == image).all()


def cell(height, width, seed=0):
    """A smear of smooth shapes with edges and noise, as a camera would see it."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), (225, 205, 210), np.uint8)
    for _ in range(9):
        centre = tuple(int(v) for v in rng.integers(0, min(height, width), 2))
        colour = tuple(int(v) for v in rng.integers(60, 230, 3))
        cv2.circle(image, centre, int(rng.integers(8, width // 5)), colour, -1, cv2.LINE_AA)
    noise = rng.normal(0, 3, image.shape)
    return np.clip(cv2.GaussianBlur(image, (0, 0), 1.2) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "eighths"), [(28, 1), (32, 1), (33, 2), (64, 2), (96, 4), (128, 4), (129, 8), (256, 8)]
)
def test_large_jpegs_are_decoded_at_a_reduced_scale(tmp_path, size, eighths):
    """The scale that leaves 1.4 times the target or more; within 5 grey levels of full decoding."""
    for seed in range(3):
        data = encoded(".jpg", cell(368, 360, seed))
        (tmp_path / "cell.jpg").write_bytes(data)
        reduced = decode_reduced(data, size)
        assert reduced.shape == (46 * eighths, 45 * eighths, 3)
        image = read_image(tmp_path / "cell.jpg", size)
        np.testing.assert_array_equal(image, fit_square(reduced, size))
        assert image.shape == (size, size, 3) and image.flags.c_contiguous
        full = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        difference = image.astype(int) - fit_square(full, size)
        assert np.abs(difference).mean() < (5 if eighths < 8 else 1e-9)
        assert abs(difference.mean()) < 0.5  # neither brighter nor darker


@pytest.mark.parametrize("progressive", [0, 1])
def test_reduced_decoding_of_grey_and_progressive_jpegs(tmp_path, progressive):
    grey = cv2.cvtColor(cell(300, 300), cv2.COLOR_BGR2GRAY)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    (tmp_path / "grey.jpg").write_bytes(cv2.imencode(".jpg", grey, options)[1].tobytes())
    image = read_image(tmp_path / "grey.jpg", 64)
    assert (image == image[..., :1]).all()
    expected = cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(image[..., 0] - expected).mean() < 5


def test_a_cut_jpeg_is_not_read_at_a_reduced_scale_either(tmp_path):
    data = encoded(".jpg", cell(300, 300))
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.jpg: truncated JPEG"):
        read_image(tmp_path / "cut.jpg", 32)


def with_text(key, text):
    info = PngImagePlugin.PngInfo()
    info.add_text(key, text)
    Image.fromarray(cell(64, 64)).save(buffer := io.BytesIO(), "PNG", pnginfo=info)
    return buffer.getvalue()


def test_a_generated_image_says_so_in_its_text_chunk():
    said = {"generator": "pbc generator 0123", "class": "größe", "seed": 7, "index": 12}
    marked = with_text("cellaug", json.dumps(said))
    expected = {"generator": "pbc generator 0123", "class": "größe", "seed": "7", "index": "12"}
    assert generated_by(marked) == expected
    start = marked.index(b"tEXt") - 4  # its chunk behind the pixels, as some programs put it
    size = 12 + int.from_bytes(marked[start : start + 4], "big")
    moved = marked[:start] + marked[start + size : -12] + marked[start : start + size]
    assert generated_by(moved + marked[-12:]) == expected
    assert decode(marked)[1] == []
    plain = encoded(".png", cell(64, 64))
    assert generated_by(plain) is None and generated_by(b"") is None
    assert generated_by(with_text("Comment", "tEXtcellaug")) is None
    assert generated_by(plain + b"tEXtcellaug\0{}") is None  # behind the end: no chunk
    assert generated_by(encoded(".jpg", cell(64, 64)) + b"tEXtcellaug\0") is None


@pytest.mark.parametrize(
    ("text", "generator"),
    [
        ("no JSON", ""),
        ("[1, 2]", ""),
        ("[" * 100_000, ""),
        ('{"seed": 1}', ""),
        ('{"generator": "a\\n\\u001b[31m b\\ud800"}', "a \x1b[31m b?"),
        (json.dumps({"generator": "x" * 900}), "x" * 200),
    ],
)
def test_a_damaged_or_hostile_text_chunk_still_means_generated(text, generator):
    assert generated_by(with_text("cellaug", text))["generator"] == generator
