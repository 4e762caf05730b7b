"""Drawn cells: repeatable, labelled with the truth, told apart by what the truth says."""

from cellaug.data import DataError, open_dataset
from cellaug.data import phantom as phantom_module
from cellaug.data.images import decode
from cellaug.data.phantom import RECIPES, class_counts, class_names, draw_cell, phantom
from cellaug.data.splits import by_content

import cv2
import numpy as np
import pandas as pd
import pytest

KIND = {name: k for k, name in enumerate(RECIPES)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def drawn(name, count=12, size=32):
    rows = []
    for i in range(count):
        image, truth = draw_cell(KIND[name], np.random.default_rng([0, 1, i]), size)
        rows.append(truth | {"image": image})
    return pd.DataFrame(rows)


def test_opening_phantoms(cache):
    cells = open_dataset("phantom", classes=3, images=60, size=24, seed=4, imbalance=2)
    assert cells.name == "phantom" and "not real" in cells.credit
    assert cells.class_names == (
        "phantom segmented neutrophil",
        "phantom band neutrophil",
        "phantom eosinophil",
    )
    # geometric 2 : 1.414 : 1 of 60 is 27.2, 19.2, 13.6; the spare one goes to the largest rest
    assert cells.counts().tolist() == [27, 19, 14]
    assert cells.report.empty
    assert decode(cells.paths[0])[0].shape == (24, 24, 3)
    root, _, drawn = phantom(classes=3, images=60, size=24, seed=4, imbalance=2)
    assert cells.root == root and len(drawn) == 60
    drawn = drawn.set_index("path").drop(columns="class")
    for row, path in zip([40, 2], cells.subset([40, 2]).table["path"], strict=True):
        pd.testing.assert_series_equal(
            cells.table.loc[row, drawn.columns], drawn.loc[path], check_names=False
        )
    assert [p.name for p in (cache / "phantom").iterdir() if p.name.startswith(".")] == []


def test_files_hold_what_the_seed_gives_however_many_there_are():
    few = open_dataset("phantom", classes=2, images=30, size=16, seed=9)
    many = open_dataset("phantom", classes=4, images=64, size=16, seed=9)
    file = "phantom band neutrophil/00003.png"
    image, truth = draw_cell(1, np.random.default_rng([9, 1, 3]), 16)
    for cells in (few, many):
        assert (decode(cells.root / file)[0] == image).all()
        row = cells.table.set_index("path").loc[file]
        for name, value in truth.items():
            assert row[name] == value, name
    assert few.root != many.root
    other = open_dataset("phantom", classes=2, images=30, size=16, seed=10)
    assert (decode(other.root / file)[0] != image).any()


def test_both_laboratories_are_divided_by_content_alone():
    for name in ("phantom", "phantom-2"):
        cells = open_dataset(name, classes=2, images=30, size=16)
        assert cells.name == name and by_content(cells)


def test_drawn_once_and_again_if_damaged(monkeypatch):
    root, _, truth = phantom(classes=1, images=12, size=16)

    def fail(*args):
        raise AssertionError("drawn again")

    with monkeypatch.context() as patch:
        patch.setattr(phantom_module, "draw_cell", fail)
        again_root, _, again = phantom(classes=1, images=12, size=16)
    assert again_root == root
    pd.testing.assert_frame_equal(again, truth)
    root.with_name(f"{root.name}.csv").unlink()
    assert len(phantom(classes=1, images=12, size=16)[2]) == 12


@pytest.mark.parametrize("changed", [0, 1])
def test_drawn_again_if_the_code_or_the_recipes_have_changed(monkeypatch, tmp_path, changed):
    root = phantom(classes=1, images=12, size=16)[0]
    sources = list(phantom_module._SOURCES)
    assert [file.name for file in sources] == ["phantom.py", "phantom.yaml"]
    other = tmp_path / "other"
    other.write_bytes(sources[changed].read_bytes() + b"\n")
    sources[changed] = other
    monkeypatch.setattr(phantom_module, "_SOURCES", sources)
    assert phantom(classes=1, images=12, size=16)[0] != root
    assert root.is_dir()


def test_an_interrupted_drawing_leaves_nothing(monkeypatch, cache):
    draw = phantom_module.draw_cell
    calls = []

    def stop(*args):
        calls.append(1)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return draw(*args)

    with monkeypatch.context() as patch:
        patch.setattr(phantom_module, "draw_cell", stop)
        with pytest.raises(KeyboardInterrupt):
            phantom(classes=1, images=12, size=16)
    assert list((cache / "phantom").iterdir()) == []
    assert len(phantom(classes=1, images=12, size=16)[2]) == 12


def test_class_counts():
    assert class_counts(4, 300, 8) == [160, 80, 40, 20]
    assert class_counts(3, 99, 1) == [33, 33, 33]
    for classes, images in ((11, 1320), (11, 200), (11, 132), (11, 60), (19, 400), (1, 7)):
        counts = class_counts(classes, images, 8)
        assert sum(counts) == images
        assert counts == sorted(counts, reverse=True)
        assert min(counts) >= min(12, images // classes)


def test_class_names():
    names = class_names(33)
    assert len(set(names)) == 33
    assert all(name.startswith("phantom ") for name in names)
    assert names[:11] == tuple(f"phantom {name}" for name in RECIPES)
    assert names[12] == "phantom large band neutrophil"
    assert names[23] == "phantom small band neutrophil"


@pytest.mark.parametrize(
    "options",
    [
        {"classes": 0},
        {"classes": 34},
        {"classes": 2.0},
        {"images": 10},
        {"size": 8},
        {"seed": -1},
        {"imbalance": 0.5},
    ],
)
def test_options_out_of_range(options):
    (name,) = options
    with pytest.raises(DataError, match=f"phantom: {name} must"):
        open_dataset("phantom", **options)


def test_truth_tells_neighbouring_classes_apart():
    segmented, band = drawn("segmented neutrophil"), drawn("band neutrophil")
    assert segmented["lobes"].between(3, 5).all() and (band["lobes"] == 1).all()
    assert segmented["constriction"].min() > 0.7 and (band["constriction"] == 0).all()
    meta, my = drawn("metamyelocyte"), drawn("myelocyte")
    assert meta["sweep"].min() > my["sweep"].max()
    lymph, platelet = drawn("lymphocyte"), drawn("platelet")
    assert lymph["nucleus_fraction"].min() > 0.55
    assert (platelet["nucleus_fraction"] == 0).all() and (platelet["lobes"] == 0).all()
    assert drawn("promyelocyte")["radius"].min() > lymph["radius"].max()


def test_the_drawing_agrees_with_its_truth():
    """Dark violet pixels cover about the area that the truth gives the nucleus."""
    for row in drawn("metamyelocyte", count=8, size=96).itertuples():
        if row.tint > 0.5:
            continue  # the rare bluish slide
        ys, xs = np.mgrid[0:96, 0:96] / 96
        inside = np.hypot(xs - row.x, ys - row.y) < 1.15 * row.radius
        dark = (row.image[..., 0] < 130) & inside
        nucleus = np.pi * row.radius**2 * 0.95 * row.nucleus_fraction * 96**2
        assert dark.sum() == pytest.approx(nucleus, rel=0.2)


def test_constriction_is_visible():
    """The nucleus of a segmented neutrophil fills less of its convex hull than a lymphocyte's."""

    def solidity(row):
        dark = (row.image[..., 0] < 125).astype(np.uint8)
        outlines = cv2.findContours(dark, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        largest = max(outlines, key=cv2.contourArea)
        return cv2.contourArea(largest) / cv2.contourArea(cv2.convexHull(largest))

    def typical(name):
        return np.median([solidity(row) for row in drawn(name, 9, 96).itertuples()])

    assert typical("segmented neutrophil") < 0.85 < 0.93 < typical("lymphocyte")


def test_sizes_and_variants():
    image, truth = draw_cell(1, np.random.default_rng(3), 48)
    assert image.shape == (48, 48, 3) and image.dtype == np.uint8
    large, large_truth = draw_cell(1 + len(RECIPES), np.random.default_rng(3), 48)
    assert large_truth["radius"] == pytest.approx(1.22 * truth["radius"])
    bigger, bigger_truth = draw_cell(1, np.random.default_rng(3), 64)
    same = {"nucleus_fraction"}  # measured in pixels, so only nearly the same at another size
    assert {k: v for k, v in truth.items() if k not in same} == {
        k: v for k, v in bigger_truth.items() if k not in same
    }
    assert bigger_truth["nucleus_fraction"] == pytest.approx(truth["nucleus_fraction"], rel=0.05)
    assert large.std() > 20 and bigger.std() > 20


def test_a_second_laboratory_stains_magnifies_and_meets_cells_in_its_own_way():
    options = {"classes": 3, "images": 90, "size": 48, "seed": 4}
    (_, names, first), (folder, again, second) = (phantom(**options, laboratory=k) for k in (0, 1))
    assert names == again
    counts = [table["class"].value_counts().reindex(names).tolist() for table in (first, second)]
    assert counts[0] == counts[1][::-1] and counts[0] != counts[1]
    sizes = [table.groupby("class")["radius"].mean() for table in (first, second)]
    assert (sizes[1] / sizes[0]).between(1.15, 1.25).all()
    cells = [open_dataset("phantom", **options, laboratory=k).read(48) for k in (0, 1)]
    red, _, blue = (cells[1].mean((0, 1, 2)) - cells[0].mean((0, 1, 2))).tolist()
    assert blue - red > 15  # grey levels: bluish glass
    assert len(list(folder.rglob("*.png"))) == 90
    with pytest.raises(DataError, match="laboratory must be a whole number 0–1, not 2"):
        phantom(**options, laboratory=2)
