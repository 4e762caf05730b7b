"""Inspecting a dataset: measures, outliers, duplicates, the verdict, and the command."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from cellaug import cli
from cellaug.data import DataError, Dataset, copies, inspection, open_dataset, stored
from cellaug.data import measure as measuring
from cellaug.data.copies import families, leaked, near_duplicates
from cellaug.data.dataset import as_table
from cellaug.data.images import write_png
from cellaug.data.inspection import (
    BOUNDS,
    MEASURES,
    as_json,
    as_text,
    deviations,
    inspect,
    worst,
)
from cellaug.data.measure import measure
from cellaug.data.splits import measurable

import cv2
import numpy as np
import pandas as pd
import pytest

GLASS = (250, 236, 212)
BLUISH = (226, 228, 244)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CELLAUG_DATA", raising=False)


def smear(seed, size=96, glass=GLASS):
    """A made-up smear: a dark cell of its own shape amid red cells at random places."""
    rng = np.random.default_rng(seed)
    image = np.empty((192, 192, 3), np.uint8)
    image[:] = glass
    for _ in range(12):
        x, y = (int(v) for v in rng.integers(0, 192, 2))
        axes = tuple(int(v) for v in rng.integers(12, 22, 2))
        cv2.ellipse(image, (x, y), axes, int(rng.integers(180)), 0, 360, (214, 172, 168), -1)
        cv2.circle(image, (x, y), 5, (232, 205, 195), -1)
    cv2.circle(image, (96, 96), 40, (206, 190, 214), -1)
    for _ in range(3):
        x, y = (int(v) for v in rng.integers(78, 114, 2))
        axes = tuple(int(v) for v in rng.integers(8, 20, 2))
        cv2.ellipse(image, (x, y), axes, int(rng.integers(180)), 0, 360, (96, 60, 140), -1)
    noise = rng.normal(0, 4, image.shape)
    image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    """A folder of two classes of forty different cells each."""
    root = tmp_path_factory.mktemp("clean") / "cells"
    for k, name in enumerate(["baso", "mono"]):
        (root / name).mkdir(parents=True)
        for i in range(40):
            write_png(root / name / f"{i:02}.png", smear(1000 * k + i))
    return root


@pytest.fixture
def cells(clean, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(clean, tmp_path / "cells")


def thumbnail(image):
    return measure(image)[1]


def grey(image, factor=1.0, offset=0):
    return np.clip(image * factor + offset, 0, 255).astype(np.uint8)


def lab(rgb):
    """CIELAB of an sRGB colour (D65), by the definition."""
    rgb = np.array(rgb) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = matrix @ linear / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# --- measures ------------------------------------------------------------------------------------


def test_measures_of_even_colour():
    image = np.empty((80, 100, 3), np.uint8)
    image[:] = (150, 90, 200)
    values, small = measure(image)
    lightness, a, b = lab((150, 90, 200))
    assert values[:2].tolist() == [100, 80]
    assert values[2] == pytest.approx(lightness, abs=0.2)
    assert values[3] == pytest.approx(0, abs=1e-3)
    assert values[4] == pytest.approx(np.hypot(a, b), abs=0.5)
    assert values[5] == 0
    assert values[6:] == pytest.approx([lightness, a, b], abs=0.5)
    assert small.shape == (32, 32) and small.dtype == np.uint8
    assert (small == round(0.299 * 150 + 0.587 * 90 + 0.114 * 200)).all()


def test_brightness_and_contrast_of_halves():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 255
    values, _ = measure(image)
    assert values[2] == pytest.approx(50, abs=0.2)  # L* is 0 on the left, 100 on the right
    assert values[3] == pytest.approx(50, abs=0.5)
    assert values[4] == pytest.approx(0, abs=0.1)


def test_background_is_the_glass_between_red_cells():
    image = np.empty((64, 64, 3), np.uint8)
    image[:] = (200, 140, 140)
    image[:8, :60] = GLASS  # a quarter of the border
    image[16:48, 16:48] = 255  # brighter, but not at the border
    assert measure(image)[0][6:] == pytest.approx(lab(GLASS), abs=0.3)


def test_sharpness_is_the_variance_of_the_laplacian():
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    grey_levels = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
    padded = np.pad(grey_levels, 1, mode="reflect")
    laplacian = (
        padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    ) - 4 * grey_levels
    assert measure(image)[0][5] == pytest.approx(laplacian.var(), rel=1e-4)
    blurred = cv2.GaussianBlur(image, (0, 0), 2)
    assert measure(blurred)[0][5] < 0.01 * laplacian.var()


# --- outliers ------------------------------------------------------------------------------------


def test_deviations_are_counted_within_the_class(monkeypatch):
    monkeypatch.setitem(BOUNDS, "enough_images", 5)
    values = pd.Series([1, 2, 3, 4, 15, 101, 102, 103, 104, 105, 60.0])
    labels = pd.Series([0] * 5 + [1] * 5 + [2])
    found = deviations(values, labels, floor=0.1).to_numpy()
    assert found[:5] == pytest.approx(np.array([-2, -1, 0, 1, 12]) / 1.4826)
    assert found[5:10] == pytest.approx(np.array([-2, -1, 0, 1, 2]) / 1.4826)
    # Class 2 is too small, so it is compared with all: median 60, median distance 43.
    assert found[10] == 0
    assert deviations(values[:5], labels[:5], floor=100).iloc[4] == pytest.approx(0.12)


def test_few_bluish_cells_are_found_and_no_others(cells):
    for name in ("baso/07", "baso/31", "mono/12"):
        path = cells / f"{name}.png"
        number = int(name[-2:]) + (1000 if name.startswith("mono") else 0)
        write_png(path, smear(number, glass=BLUISH))
    found = inspect(open_dataset(cells))
    assert set(found.outliers["path"]) == {"baso/07.png", "baso/31.png", "mono/12.png"}
    assert set(found.outliers["measure"]) == {"background"}
    assert found.outliers["reason"].str.startswith("bluer background (").all()
    assert found.outliers["score"].is_monotonic_decreasing
    assert found.fit and any("Unusual images: 3 (3.8 %)" in text for text in found.warnings)
    row = found.statistics.set_index("path").loc["baso/07.png"]
    expected = np.linalg.norm(lab(BLUISH) - lab(GLASS))
    assert row["background"] == pytest.approx(expected, abs=2)


def test_blurred_dark_and_blank_images_are_named(cells):
    sharp, dark = smear(3), smear(5)
    write_png(cells / "baso" / "03.png", cv2.GaussianBlur(sharp, (0, 0), 4))
    write_png(cells / "baso" / "05.png", grey(dark, 0.4))
    write_png(cells / "mono" / "05.png", np.full((96, 96, 3), GLASS, np.uint8))
    found = inspect(open_dataset(cells))
    reasons = found.outliers.set_index("path")["reason"]
    assert "blurred" in reasons["baso/03.png"]
    assert "dark (" in reasons["baso/05.png"] and "darker background" in reasons["baso/05.png"]
    assert "low contrast" in reasons["mono/05.png"]
    assert len(reasons) == 3
    # One of 80 images is more than 1 %.
    (blank,) = [text for text in found.problems if "show nothing" in text]
    assert "contrast below 1: 1 (1.2 %)" in blank
    assert not found.fit


def test_sharpness_is_compared_by_factors():
    usual = 100 * 2 ** np.linspace(-0.4, 0.4, 40)
    statistics = pd.DataFrame({"sharpness": [*usual, 20, 180]})
    for name in ("brightness", "contrast", "colour", "background"):
        statistics[name] = 1.0
    for name in ("background_l", "background_a", "background_b"):
        statistics[name] = 1.0
    statistics[["path", "class", "side"]] = "x"
    found = inspection._outliers(statistics)
    # 5 times less is far, where neighbours differ by 1.3; in grey levels² it would not be.
    assert found["index"].tolist() == [40]
    spread = 1.4826 * np.median(np.abs(np.log2(statistics["sharpness"] + 1) - np.log2(101)))
    assert found["score"].item() == pytest.approx(np.log2(101 / 21) / spread, rel=0.02)
    assert found["reason"].item().startswith("blurred (")


def test_worst_goes_through_the_measures_in_turn():
    outliers = pd.DataFrame(
        {"measure": ["a", "a", "a", "b", "c", "b"], "score": [9, 8, 7, 6.5, 6, 5.5]}
    )
    assert worst(outliers, 4)["score"].tolist() == [9, 6.5, 6, 8]
    assert len(worst(outliers, 99)) == 6


def test_class_of_another_stain_is_a_shortcut(cells):
    for i in range(40):
        write_png(cells / "mono" / f"{i:02}.png", smear(1000 + i, glass=BLUISH))
    for i in range(40, 80):
        write_png(cells / "baso" / f"{i:02}.png", smear(i))
    found = inspect(open_dataset(cells))
    (warning,) = [text for text in found.warnings if "stain" in text]
    assert warning.startswith("Class mono has a bluer background than the others")


# --- duplicates ----------------------------------------------------------------------------------


def altered(image):
    """The same cell in other guises, by name: the image and how it lies to the first."""
    quarter = np.rot90(image)
    shifted = np.roll(cv2.copyMakeBorder(image, 8, 8, 8, 8, cv2.BORDER_REFLECT), (4, -5), (0, 1))
    jpeg = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 1)
    return {
        "saved as JPEG": (jpeg, ""),
        "brighter": (grey(image, 1.08, 4), ""),
        "darker": (grey(image, 0.8), ""),
        "smaller": (cv2.resize(image, (40, 40), interpolation=cv2.INTER_AREA), ""),
        "larger": (cv2.resize(image, (200, 200), interpolation=cv2.INTER_CUBIC), ""),
        "grey": (np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2), ""),
        "mirrored": (image[:, ::-1], "mirrored"),
        "turned": (quarter, "turned by 270°"),  # what turns it back, counter-clockwise
        "turned by half": (quarter[::-1, ::-1], "turned by 90°"),
        "both": (np.rot90(image[:, ::-1], 2), "mirrored and turned by 180°"),
        "shifted": (shifted[8:-8, 8:-8], ""),
    }


@pytest.mark.parametrize("guise", list(altered(smear(0))))
def test_near_duplicates_are_found_in_any_guise(guise):
    originals = [thumbnail(smear(i)) for i in range(30)]
    copies = {i: altered(smear(i))[guise] for i in (2, 11, 23)}
    images = [*originals, *(thumbnail(np.ascontiguousarray(copy)) for copy, _ in copies.values())]
    found = near_duplicates(np.array(images))
    assert sorted(zip(found["first"], found["second"], strict=True)) == [
        (2, 30),
        (11, 31),
        (23, 32),
    ]
    assert found["turn"].tolist() == [turn for _, turn in copies.values()]
    assert found["likeness"].between(BOUNDS["near"], 1).all()


def moved(image, degrees=0, scale=1.0, shift=(0, 0)):
    """An image turned about its centre, enlarged and shifted by fractions of its side."""
    side = len(image)
    warp = cv2.getRotationMatrix2D(((side - 1) / 2,) * 2, degrees, scale)
    warp[:, 2] += np.multiply(shift, side)
    return cv2.warpAffine(
        image, warp, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )


def test_phantoms_are_found_however_they_are_turned_shifted_or_cropped():
    """Nine guises of 14 phantoms each: at least 95 % of each kind, and no two different ones."""
    cells = open_dataset("phantom", classes=7, images=70, size=96, imbalance=1, seed=3)
    originals = list(cells.read(96))
    guises = {
        "turned by 345°": lambda image: moved(image, 15),
        "turned by 315°": lambda image: moved(image, 45),
        "turned by 270°": np.rot90,
        "": lambda image: moved(image, shift=(0.05, -0.05)),
        " ": lambda image: moved(image, shift=(0.1, 0)),
        "cropped": lambda image: image[10:-10, 10:-10],  # 80 %
        "mirrored": lambda image: image[:, ::-1],
        "mirrored and turned by 330°": lambda image: moved(image[:, ::-1], -30),
        "  ": lambda image: grey(image, 1.12, 4),
    }
    rows = np.arange(0, 70, 5)
    small = [thumbnail(image) for image in originals]
    for turn, guise in guises.items():
        made = [thumbnail(np.ascontiguousarray(guise(originals[row]))) for row in rows]
        found = near_duplicates(np.array(small + made))
        expected = set(zip(rows, range(70, 84), strict=True))
        pairs = set(zip(found["first"], found["second"], strict=True))
        assert pairs <= expected and len(pairs) >= 0.95 * len(expected), turn
        degrees = found["turn"].str.extract(r"(\d+)")[0].astype(float)
        if degrees.notna().all():
            assert abs(degrees - float(re.search(r"\d+", turn)[0])).max() <= 2
        else:
            assert set(found["turn"]) == {turn.strip()}


def test_different_cells_are_no_duplicates():
    images = np.array([thumbnail(smear(i)) for i in range(120)])
    assert near_duplicates(images).empty
    phantoms = open_dataset("phantom", classes=2, images=60, size=48, seed=2)
    assert inspect(phantoms).duplicates.empty


def test_blank_images_are_not_compared():
    rng = np.random.default_rng(0)
    noise = np.clip(rng.normal(230, 0.3, (5, 32, 32)), 0, 255).astype(np.uint8)
    even = np.full((3, 32, 32), 128, np.uint8)
    even[1:, 10, 8:20] = 129  # the same fault of a lens, say
    assert near_duplicates(np.concatenate([even, noise])).empty


def test_blocks_give_the_same_pairs_as_one(monkeypatch):
    cells = [smear(i) for i in range(25)]
    images = np.array([thumbnail(image) for image in [*cells, cells[24], *cells[::3], cells[0]]])
    whole = near_duplicates(images)
    # 9 cells again, the first and last of them a third time: 7 pairs, 3 and 3
    assert len(whole) == 13 and (24, 25) in zip(whole["first"], whole["second"], strict=True)
    monkeypatch.setattr(copies, "_BLOCK", 5)
    pd.testing.assert_frame_equal(near_duplicates(images), whole, check_exact=False, atol=1e-5)


def test_many_copies_of_one_image_stay_bounded():
    images = np.array([thumbnail(smear(1))] * 100)
    found = near_duplicates(images)
    assert len(found) <= 9 * 100
    # Yet all of them hang together.
    statistics = pd.DataFrame({"side": ["train"] + ["test"] * 99})
    pairs = found.rename(columns={"first": "index", "second": "other_index"})
    assert leaked(pairs, statistics).tolist() == list(range(1, 100))


def test_spectrum_does_not_depend_on_how_an_image_lies():
    image = thumbnail(smear(4))[None]
    lain = [np.rot90(image[:, :, ::flip], k, (1, 2)) for flip in (1, -1) for k in range(4)]
    signs = copies._waves(np.concatenate(lain), 1)[1]
    assert len(signs) == 8 and np.abs(signs - signs[0]).max() < 1e-4 < 0.1 < signs[0].max()


def test_leaks_are_counted_through_chains():
    statistics = pd.DataFrame(
        {"side": ["train", "validation", "test", "test", "test", "", "validation", "train"]}
    )
    pairs = pd.DataFrame({"index": [0, 1, 3, 4], "other_index": [1, 2, 5, 6]})
    # 2 is like 1 and 1 like 0, which is trained on; 3 is like one of no side, 4 and 6 both held out
    assert leaked(pairs, statistics).tolist() == [1, 2]
    assert leaked(pairs[:0], statistics).tolist() == []


def manifest(root, rows, columns=("path", "label", "split")):
    pd.DataFrame(rows, columns=list(columns)).to_csv(root / "manifest.csv", index=False)
    return root / "manifest.csv"


def published(cells):
    """Rows of a manifest in which every fourth image is for testing, and every eighth validates."""
    sides = ["test", "train", "train", "validation", "test", "train", "train", "train"]
    files = sorted(cells.glob("*/*.png"))
    return [
        (f"{file.parent.name}/{file.name}", file.parent.name, sides[i % 8])
        for i, file in enumerate(files)
    ]


def test_copies_across_sides_and_labels(cells):
    # All shown by their guises: within a class and side, across sides, under another label.
    rows = published(cells)
    write_png(cells / "baso" / "41.png", smear(1)[:, ::-1])
    write_png(cells / "baso" / "42.png", cv2.GaussianBlur(grey(smear(4), 0.8), (0, 0), 2))
    write_png(cells / "mono" / "43.png", grey(smear(2), 0.9))
    rows += [
        ("baso/41.png", "baso", "train"),
        ("baso/42.png", "baso", "train"),
        ("mono/43.png", "mono", "train"),
    ]
    found = inspect(open_dataset(manifest(cells, rows)))
    pairs = found.duplicates
    assert pairs["path"].tolist() == ["baso/02.png", "baso/04.png", "baso/01.png"]
    assert pairs["other"].tolist() == ["mono/43.png", "baso/42.png", "baso/41.png"]
    assert pairs["side"].tolist() == ["train", "test", "train"]
    assert pairs["other_class"].tolist() == ["mono", "baso", "baso"]
    assert pairs["turn"].tolist() == ["", "", "mirrored"]
    assert pairs.loc[1, "likeness"] < pairs.loc[2, "likeness"] == pytest.approx(1, abs=1e-4)
    assert set(pairs["kind"]) == {"near"}
    # 2 of 83 images contradict each other, 1 held out of the test side's 20 and the validation's
    held_out = found.statistics["side"].isin(["test", "validation"]).sum()
    assert held_out == 20 + 10
    contradicting, leaking = found.problems
    assert "under another label" in contradicting and ": 2 (2.4 %)" in contradicting
    assert leaking.startswith("Images held out") and f": at least 1 of {held_out} (" in leaking
    assert "nearly the same, with likeness: 3" in as_text(found)


def test_one_leak_in_many_is_a_warning(cells, monkeypatch):
    rows = published(cells)
    write_png(cells / "baso" / "42.png", grey(smear(4), 0.9))
    rows.append(("baso/42.png", "baso", "train"))
    dataset = open_dataset(manifest(cells, rows))
    assert not inspect(dataset).fit
    monkeypatch.setitem(BOUNDS, "most_leaked", 0.1)
    found = inspect(dataset)
    assert found.fit
    assert any("held out" in text for text in found.warnings)
    assert any(
        "images of one class that show the same: at least 1." in text for text in found.warnings
    )


def test_byte_identical_files_come_from_the_report(cells):
    shutil.copy(cells / "baso" / "00.png", cells / "baso" / "99.png")
    shutil.copy(cells / "baso" / "01.png", cells / "mono" / "98.png")
    found = inspect(open_dataset(cells))
    assert found.copies["path"].tolist() == ["baso/01.png", "baso/99.png", "mono/98.png"]
    assert found.duplicates.empty and found.fit
    assert any("has another label elsewhere: 2." in text for text in found.warnings)
    assert any("byte-identical to another one of their class: 1." in t for t in found.warnings)
    assert "dropped, copy: 1" in as_text(found)


def test_copies_that_stay_in_the_set_are_pairs(cells):
    shutil.copy(cells / "baso" / "00.png", cells / "baso" / "99.png")
    kept = open_dataset(cells)
    again = kept.table.iloc[[0]].assign(path="baso/99.png")
    again["class"] = pd.Categorical(["mono"], kept.class_names, ordered=True)
    doubled = replace(kept, table=pd.concat([kept.table, again], ignore_index=True))
    (pair,) = inspect(doubled).duplicates.to_dict("records")
    assert (pair["kind"], pair["likeness"], pair["turn"]) == ("same file", 1.0, "")
    assert (pair["path"], pair["other"]) == ("baso/00.png", "baso/99.png")
    assert (pair["class"], pair["other_class"]) == ("baso", "mono")
    assert "pairs in the set more than once, with likeness: 1" in as_text(inspect(doubled))


# --- the verdict ---------------------------------------------------------------------------------


def test_clean_set_is_fit(cells):
    dataset = open_dataset(cells)
    found = inspect(dataset)
    assert found.fit and found.problems == ()
    # Of 40 images 6 are for testing, and 5 of 6 right may be 36 % as well as all (by hand: 0.05/2
    # is the chance of 5 or more of 6 at a recall of 0.359, and of 5 or fewer at 0.9958).
    (few,) = found.warnings
    assert few.startswith(
        "Classes with fewer than 20 test images: baso (6: 0.36 to 1.00), mono (6:"
    )
    judged = [name for name, *_ in inspection._judgements(found)]
    assert list(dict.fromkeys(judged)) == list(inspection._RULES["judgements"])
    assert found.counts["images"].to_dict() == {"baso": 40, "mono": 40}
    assert list(found.counts) == ["train", "validation", "test", "images"]
    assert (found.counts.drop(columns="images").sum(axis=1) == 40).all()
    assert found.sizes.to_dict("records") == [{"width": 96, "height": 96, "images": 80}]
    assert found.outliers.empty and found.duplicates.empty and found.unreadable.empty
    assert found.statistics["path"].tolist() == dataset.table["path"].tolist()


def test_splits_may_be_given(cells):
    dataset = open_dataset(cells)
    found = inspect(dataset, {"train": dataset.subset(range(60)), "test": dataset.subset([70])})
    assert found.statistics["side"].tolist() == ["train"] * 60 + [""] * 10 + ["test"] + [""] * 9
    assert found.counts["train"].tolist() == [40, 20]


def test_stored_images_are_read_from_the_store(cells, tmp_path):
    dataset = stored(open_dataset(cells), 64, tmp_path / "store")
    shutil.rmtree(cells / "mono")
    found = inspect(dataset)
    assert found.sizes.to_dict("records") == [{"width": 64, "height": 64, "images": 80}]
    direct = measure(dataset.read(64)[50])[0]
    assert found.statistics.loc[50, "brightness"] == pytest.approx(direct[2])


def test_small_and_single_classes_are_problems(cells):
    shutil.rmtree(cells / "mono")
    for file in sorted((cells / "baso").iterdir())[19:]:
        file.unlink()
    single, few = inspect(open_dataset(cells)).problems[-2:]
    assert single.startswith("There is only one class, baso.")
    assert few.startswith("Classes with fewer than 20 images: baso (19).")


def test_class_that_cannot_be_divided_is_a_problem(cells):
    for file in sorted((cells / "mono").iterdir())[2:]:
        file.unlink()
    found = inspect(open_dataset(cells))
    divided, few = found.problems
    assert divided.startswith('It cannot be divided: class "mono" has only 2 images, so the split')
    assert few.startswith("Classes with fewer than 20 images: mono (2).")
    assert list(found.counts) == ["images"] and set(found.statistics["side"]) == {""}
    (imbalance,) = [text for text in found.warnings if "more than 10 to one" in text]
    assert "baso has 40 images, mono only 2" in imbalance
    assert "not fit for training" in as_text(found)


def measured(monkeypatch):
    """Let `inspect` take as measures what a test has made up, without any file."""

    def made_up(dataset):
        table = dataset.table[["path", "class", "group", "origin"]].astype(object)
        table[["width", "height", *MEASURES, "background_l", "background_a", "background_b"]] = (
            100.0
        )
        sharp = dataset.table.get("sharp", 100.0)
        return table.assign(sharpness=sharp), np.zeros((len(table), 32, 32), np.uint8)

    monkeypatch.setattr(inspection, "_measure_all", made_up)


def listed(count=200, **columns):
    """A set of two classes in turn that has these columns; its files are not there."""
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(count)]})
    table["class"] = ["baso", "mono"] * (count // 2)
    table["digest"] = [hashlib.sha256(bytes([i])).hexdigest() for i in range(count)]
    table = as_table(table.assign(**columns), ["baso", "mono"])
    report = pd.DataFrame(columns=["path", "class", "outcome", "reason"], dtype=object)
    return Dataset("made up", Path("/none"), ("baso", "mono"), table, report)


def only(texts, words):
    (found,) = [text for text in texts if words in text]
    return found


def test_groups_on_several_sides_are_a_problem(monkeypatch):
    measured(monkeypatch)
    groups = [f"P{i // 20}" for i in range(200)]
    sides = ["train"] * 130 + ["validation"] * 35 + ["test"] * 35
    found = inspect(listed(group=groups, side=sides))
    text = only(found.problems, "several sides")
    assert ": 2 of 10, P6 (train, validation), P8 (validation, test)." in text
    assert inspect(listed(group=groups)).fit
    words = as_text(found)
    assert "\npublished split, with test, validation held out\n" in words
    halved = inspect(listed(side=["train", "train", "train", "test"] * 50))
    assert "published split (test), the rest: train 82 %, validation 18 %; by image" in as_text(
        halved
    )


def test_groups_that_are_written_in_two_ways(monkeypatch):
    measured(monkeypatch)
    names = ["P01", "p1", "P 01", "P10", "P100", "Q7", "q007", "R0", "R00", "S"]
    text = only(inspect(listed(group=names * 20)).warnings, "differ only by")
    assert ": 3, P 01 = P01 = p1; Q7 = q007; R0 = R00." in text
    names = ["B\u00e4r 1", "Ba\u0308r 1", "1", "1.0", "P-7", "P_7", "P7", "1-2", "1_2", "12"]
    text = only(inspect(listed(group=names * 20)).warnings, "differ only by")
    assert ": 4, " in text and "1 = 1.0" in text and "P-7 = P7 = P_7" in text
    assert "1-2 = 1_2" in text and "12" not in text.replace("1-2", "").replace("1_2", "")
    names = [
        "2026.001",
        "2026/001",
        "P01.",
        "P01",
        "'7",
        "7",
        "Pat\u201108",
        "Pat-08",
    ]
    assert ": 4, " in only(inspect(listed(group=names * 25)).warnings, "differ only by")
    smith = ["Smith, J.", "smith j", "Smith,J", "SMITH  J.", "1,2", "12", "Smith", "J"]
    assert inspect(listed(group=smith * 25)).alike_groups == [sorted(smith[:4])]
    many = [f"{name}{k}" for k in range(1, 26) for name in "pP"]
    found = inspect(listed(group=many * 4))
    assert "; and 5 more, which '--all' lists" in only(found.warnings, "differ only by")
    assert "\npatients or slides that may be one: 25\n" in as_text(found)
    assert all(f"\n  P{k} = p{k}\n" in as_text(found, everything=True) for k in range(1, 26))
    assert len(json.loads(as_json(found))["alike_groups"]) == 25


def test_groups_that_are_unknown_or_few(monkeypatch):
    measured(monkeypatch)
    groups = [f"P{i % 22}" for i in range(190)] + [""] * 10
    found = inspect(listed(group=groups))
    assert "where others have one: 10 of 200 (5.0 %)" in only(found.warnings, "without a patient")
    assert "by patient or slide, and by image where none is known" in as_text(found)
    groups = [f"P{i % 8}" if i % 2 else f"P{i % 40}" for i in range(200)]
    text = only(inspect(listed(group=groups)).warnings, "Classes from fewer than 5")
    assert "slides: mono (4)." in text
    sides = ["test" if i < 40 else "train" for i in range(200)]  # one patient of ten
    found = inspect(listed(group=[f"P{i // 40 * 2 + i % 2}" for i in range(200)], side=sides))
    assert "slide: baso, mono." in only(found.warnings, "test images come from one patient")
    origins = ["synthetic" if i >= 180 else "real" for i in range(200)]
    groups = [f"P{i % 20}" if i < 180 else "" for i in range(200)]
    assert "without a patient" not in str(inspect(listed(group=groups, origin=origins)).warnings)


def test_training_is_the_largest_side_or_it_is_said(monkeypatch):
    measured(monkeypatch)
    sides = ["test" if i < (20 if i % 2 else 120) else "train" for i in range(200)]
    text = only(inspect(listed(side=sides)).warnings, "fewer images in training")
    assert "in training: baso (33 of 100). The" in text
    groups = [f"P{i}" if i % 2 or i < 120 else "Q" for i in range(200)]
    sides = ["test" if groups[i] == "Q" or i == 1 else "train" for i in range(200)]
    text = only(inspect(listed(side=sides, group=groups)).warnings, "fewer images in training")
    assert re.search(r": baso \([45]\d of 100\)\.", text)
    assert "fewer images in training" not in str(inspect(listed(group=groups)).warnings)


def test_the_protocol_of_the_thesis_needs_four_splits(monkeypatch):
    measured(monkeypatch)
    three = [f"P{i // 2 % 3}" if i % 2 else f"Q{i}" for i in range(200)]
    found = inspect(listed(group=three))
    text = only(found.warnings, "The protocol 'disjoint'")
    assert 'class "mono" come from 3 patients or slides (P0, P1, P2)' in text and found.fit
    assert "disjoint" not in str(inspect(listed()).warnings)


def test_a_group_that_is_not_known_is_no_patient(cells):
    words = ["#N/A", "nan", "-", "k.A.", "P1", "P2", "P3", "P4", "NA2", "?"]
    rows = [f"{path}/{i:02}.png,{words[i % 10]}" for path in ("baso", "mono") for i in range(40)]
    (cells / "manifest.csv").write_text("\n".join(["path,group", *rows]))
    dataset = open_dataset(cells)
    assert set(dataset.table["group"]) == {"", "P1", "P2", "P3", "P4", "NA2"}
    found = inspect(dataset)
    text = only(found.warnings, "no patient's or slide's name: 40")
    assert all(f"{word} (8)" in text for word in ("#N/A", "nan", "-", "k.A.", "?"))
    assert "where others have one: 40 of 80" in only(found.warnings, "without a patient")
    assert "kept, group not known: 40\n" in as_text(found)


def test_drawn_cells_hold_no_published_images(monkeypatch):
    measured(monkeypatch)
    drawn = replace(listed(6), name="phantom", credit="drawn")
    text = only(inspect(drawn).problems, "cannot be divided")
    assert "published images" not in text and "seed" not in text
    assert "Add images" in text


def test_class_of_one_patient_is_named_as_the_cause(monkeypatch):
    measured(monkeypatch)
    found = inspect(listed(group=["one" if i % 2 else f"P{i % 40}" for i in range(200)]))
    text = only(found.problems, "cannot be divided")
    assert 'all 100 images of class "mono" come from one patient or slide (one)' in text


@pytest.mark.parametrize(("count", "low", "high"), [(2, 0.158, 1), (10, 0.555, 0.9975)])
def test_recall_of_few_test_images(count, low, high):
    """Bounds from tables: all of 2 right, and 9 of 10."""
    cells = listed()
    rows = measurable({"train": cells, "test": cells.subset(range(2 * count))})
    assert rows["images"].tolist() == [count] * 2 and rows["groups"].tolist() == [0, 0]
    assert rows["low"].tolist() == pytest.approx([low] * 2, abs=1e-3)
    assert rows["high"].tolist() == pytest.approx([high] * 2, abs=1e-3)


def test_copies_across_a_published_split(cells):
    shutil.copy(cells / "baso" / "00.png", cells / "baso" / "99.png")  # 00 is for testing
    rows = [*published(cells)[:-1], ("mono/39.png", "mono", "train")]
    rows = [r if r[0] != "baso/99.png" else ("baso/99.png", "baso", "train") for r in rows]
    found = inspect(open_dataset(manifest(cells, rows)))
    held_out = found.statistics["side"].isin(["validation", "test"]).sum()
    text = only(found.problems, "This split leaked")
    assert f"leaked: 1 of the {held_out} images" in text
    assert not any("Nothing needs to be done" in warning for warning in found.warnings)


def test_generated_images_are_counted_and_kept_from_the_test(monkeypatch):
    measured(monkeypatch)
    origins = np.array(["real", "real", "synthetic", "synthetic"] * 50, object)
    found = inspect(listed(origin=origins))
    assert as_text(found).startswith(
        "made up: 200 images, 2 classes; 100 of the images are generated"
    )
    assert json.loads(as_json(found))["generated"] == 100 and found.fit
    sides = ["train"] * 150 + ["test"] * 50
    found = inspect(listed(origin=origins, side=sides))
    told = only(found.problems, "generated images are published")
    assert "26 generated images are published as test, such as" in told


def test_sharpness_that_gives_the_origin_away(monkeypatch):
    measured(monkeypatch)
    origins = np.array(["real", "real", "synthetic", "synthetic"] * 50, object)
    sharp = np.where(origins == "real", 300.0, 20.0) + np.arange(200) % 7
    sharp[1::2] = np.arange(100) * 37 % 101  # the other class: no difference
    found = inspect(listed(origin=origins, sharp=sharp))
    assert "are generated: baso (1.00). The" in only(found.warnings, "sharpness gives away")
    assert "sharpness gives away" not in str(inspect(listed(sharp=sharp)).warnings)


def test_families_of_files_are_found_by_their_names():
    names = ["a.png", "a_aug3.png", "a - copy.png", "b (1).png", "b (2).png", "c_12_3456.png"]
    names += ["d.png", "d_0_77.png", "P01_1_2.png", "P01_1_3.png", "BA_101.png", "BA_102.png"]
    table = pd.DataFrame({"path": [f"x/{name}" for name in names], "class": "x"})
    found = [[path[2:-4] for path in paths] for paths in families(table)]
    assert found == [["a", "a_aug3", "a - copy"], ["b (1)", "b (2)"], ["d", "d_0_77"]]
    assert families(table.assign(**{"class": names})) == []
    uuid = "0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f"
    names = ["a_jpg.rf.0a1b.jpg", "a_jpg.rf.2c3d.jpg", "b.png", "b_hflip.png", "aug_b.png"]
    names += [
        "c.png",
        "c - Kopie (2).png",
        f"x_original_c.png_{uuid}.png",
        "rot_1.png",
        "rot_2.png",
    ]
    table = pd.DataFrame({"path": [f"x/{name}" for name in names], "class": "x"})
    found = [[path[2:] for path in paths] for paths in families(table)]
    assert found == [names[:2], names[2:5], names[5:8]]
    # As sets are published once augmented, without the originals: the first number is the image.
    paths = [f"x/_{image}_{number}.jpeg" for image in range(3) for number in range(100, 104)]
    table = pd.DataFrame({"path": [*paths, "x/other.png"], "class": "x"})
    assert families(table) == [paths[:4], paths[4:8], paths[8:]]
    assert families(table[::2]) == []  # two of an image may be chance


def test_unreadable_files(cells):
    (cells / "baso" / "bad.png").write_bytes((cells / "baso" / "00.png").read_bytes()[:900])
    found = inspect(open_dataset(cells))
    assert found.unreadable["path"].tolist() == ["baso/bad.png"]
    assert "truncated" in found.unreadable["reason"].item()
    assert found.problems[0].startswith("Files that cannot be used: 1 (1.2 %), truncated PNG")
    for i in range(100, 125):
        write_png(cells / "mono" / f"{i}.png", smear(1000 + i))
    found = inspect(open_dataset(cells))  # 1 of 106 is less than 1 %
    assert found.fit and found.warnings[0].startswith("Files that cannot be used: 1 (0.9 %)")


def test_clutter_is_not_unreadable(cells):
    (cells / "baso" / ".hidden").write_bytes(b"")
    (cells / "notes.txt").write_text("notes")
    found = inspect(open_dataset(cells))
    assert len(found.report) == 2 and found.unreadable.empty and found.fit


def test_sizes(cells):
    write_png(cells / "baso" / "00.png", smear(0, 192))
    write_png(cells / "baso" / "01.png", smear(1, 48))
    found = inspect(open_dataset(cells))
    rows = found.sizes.itertuples(index=False)
    assert [tuple(row) for row in rows] == [(96, 96, 78), (192, 192, 1), (48, 48, 1)]
    assert any("range from 48 to 192 pixels" in text for text in found.warnings)
    assert any("fewer than 64 pixels on a side: 1 (1.2 %)" in text for text in found.warnings)


# --- for people and machines ---------------------------------------------------------------------


def test_text_is_cut_short_unless_all_is_wanted(cells):
    for i in range(9):
        write_png(cells / "baso" / f"{i:02}.png", smear(i, glass=BLUISH))
    found = inspect(open_dataset(cells))
    short, long = as_text(found), as_text(found, everything=True)
    assert "unusual by background, with deviations: 9" in short
    assert "… and 3 more: '--all' lists them" in short and "… and" not in long
    assert sum("bluer background" in line for line in short.splitlines()) == 6
    assert sum("bluer background" in line for line in long.splitlines()) == 9
    assert short.startswith(f"cells: 80 images, 2 classes\ndata hash {found.fingerprint}\n")
    split = "train 70 %, validation 15 %, test 15 %; by image, stratified, seed 1"
    assert f"\nsplit: {split}\n" in short
    assert short.endswith("\nfit for training")


def test_json_has_plain_finite_values(cells):
    write_png(cells / "baso" / "00.png", smear(0, glass=BLUISH))
    write_png(cells / "mono" / "50.png", smear(1003)[:, ::-1])
    dataset = open_dataset(cells)
    found = inspect(dataset)

    def refuse(name):
        raise AssertionError(name)

    document = json.loads(as_json(found), parse_constant=refuse)
    assert document["images"] == 81 and document["hash"] == dataset.fingerprint
    assert document["fit"] is found.fit
    assert document["counts"]["mono"]["images"] == 41
    assert document["sizes"] == [{"width": 96, "height": 96, "images": 81}]
    (outlier,) = document["outliers"]
    assert outlier["path"] == "baso/00.png" and outlier["measure"] == "background"
    (pair,) = document["duplicates"]
    assert (pair["path"], pair["other"]) == ("mono/03.png", "mono/50.png")
    bright = found.statistics.loc[found.statistics["class"] == "mono", "brightness"]
    assert document["statistics"]["mono"]["brightness"]["median"] == pytest.approx(bright.median())
    assert document["bounds"] == BOUNDS
    assert document["problems"] == list(found.problems)
    assert document["split"] == {
        "seed": 1,
        "fractions": {"train": 0.7, "validation": 0.15, "test": 0.15},
        "by": "image",
        "published": [],
        "stratified": True,
    }
    assert document["generated"] == 0 and document["test"]["baso"]["images"] == 6


def test_names_that_are_not_utf8(cells, capsys):
    odd = os.fsdecode(b"caf\xe9.png")
    write_png(cells / "baso" / odd, smear(900, glass=BLUISH))
    (cells / "mono" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    found = inspect(open_dataset(cells))
    assert found.outliers["path"].tolist() == ["baso/caf\\xe9.png"]
    document = json.loads(as_json(found))
    assert document["outliers"][0]["path"] == "baso/caf\\xe9.png"
    assert document["unreadable"][0]["path"] == "mono/\\xff.png"
    assert cli.main(["inspect", str(cells)]) == 1
    assert "baso/caf\\xe9.png (baso" in capsys.readouterr().out


def test_import_is_light():
    code = "import sys, cellaug.data.inspection; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"keras", "tensorflow", "jax", "matplotlib", "IPython"} & set(done.stdout.split())


# --- the command ---------------------------------------------------------------------------------


def test_command_says_by_its_status_whether_the_set_is_fit(cells, capsys):
    assert cli.main(["inspect", str(cells)]) == 0
    assert capsys.readouterr().out.endswith("fit for training\n")
    shutil.rmtree(cells / "mono")
    assert cli.main(["inspect", str(cells)]) == 1
    printed = capsys.readouterr()
    assert "problem: There is only one class" in printed.out and printed.err == ""
    (cells / "none").mkdir()
    assert cli.main(["inspect", str(cells)]) == 2
    printed = capsys.readouterr()
    assert 'class "none" has no usable image' in printed.err and printed.out == ""
    assert cli.main(["inspect", str(cells / "nowhere")]) == 2


def same_findings(found, expected):
    pd.testing.assert_frame_equal(found.statistics, expected.statistics)
    pd.testing.assert_frame_equal(found.duplicates, expected.duplicates)


def test_processes_measure_what_one_does(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "one"))
    dataset = open_dataset(cells)
    alone = inspect(dataset)
    monkeypatch.setattr(measuring, "_BLOCK", 9)
    monkeypatch.setattr(copies, "_BLOCK", 9)
    monkeypatch.setattr(copies, "_PAIRS", 2)
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "many"))
    same_findings(inspect(dataset), alone)
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "none"))
    write_png(dataset.paths[71], smear(3))
    with pytest.raises(DataError, match=re.escape(f"{dataset.paths[71]}: has changed since")):
        inspect(dataset)
    dataset.paths[71].unlink()
    with pytest.raises(DataError, match=re.escape(f"{dataset.paths[71]}: cannot be read (No such")):
        inspect(dataset)


def test_only_new_images_are_measured_again(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    (cells / "baso" / "again.png").write_bytes((cells / "baso" / "00.png").read_bytes())
    first = inspect(open_dataset(cells))
    read, searched = [], []
    decode_same, near = measuring.decode_same, measuring.near_duplicates
    monkeypatch.setattr(
        measuring, "decode_same", lambda *f: (read.append(f[0]), decode_same(*f))[1]
    )
    monkeypatch.setattr(measuring, "near_duplicates", lambda t: (searched.append(t), near(t))[1])
    same_findings(inspect(open_dataset(cells)), first)
    assert not read and not searched
    write_png(cells / "baso" / "99.png", smear(77))
    more = inspect(open_dataset(cells))
    assert [path.name for path in read] == ["99.png"] and len(searched) == 1
    for file in (tmp_path / "cache").rglob("*.parquet"):
        file.write_bytes(b"damaged")
    same_findings(inspect(open_dataset(cells)), more)
    assert len(read) == 1 + len(more.statistics)


def test_command_says_how_long_a_large_set_takes(cells, capsys, monkeypatch):
    monkeypatch.setattr(inspection, "IMAGES_PER_SECOND", 4.0)
    assert cli.main(["inspect", str(cells), "--json"]) == 0
    printed = capsys.readouterr()
    told = "inspecting 80 images takes about 20 seconds on two cores, again a fifth of it\n"
    assert printed.err == told
    assert json.loads(printed.out)["images"] == 80


def test_command_prints_json_and_nothing_else(cells, capsys):
    assert cli.main(["inspect", str(cells), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["fit"] is True and printed.err == ""


@pytest.mark.parametrize(
    ("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")]
)
def test_command_draws_a_figure(cells, tmp_path, capsys, suffix, start):
    write_png(cells / "baso" / "00.png", smear(0, glass=BLUISH))
    file = tmp_path / f"found.{suffix}"
    assert cli.main(["inspect", str(cells), "--json", "--figure", str(file)]) == 0
    json.loads(capsys.readouterr().out)
    assert file.read_bytes().startswith(start)
    assert [path.name for path in tmp_path.glob("*found*")] == [file.name]


@pytest.mark.parametrize("name", ["found.jpg", "found", "nowhere/found.png"])
def test_command_refuses_a_figure_before_it_looks(cells, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(inspection, "inspect", None)  # calling it would fail
    assert cli.main(["inspect", str(cells), "--figure", str(tmp_path / name)]) == 2
    assert ".png, .svg or .pdf in an existing folder" in capsys.readouterr().err


def test_file_that_is_gone_is_named(cells):
    dataset = open_dataset(cells)
    Path(dataset.paths[3]).unlink()
    with pytest.raises(DataError, match=r"03\.png"):
        inspect(dataset)
