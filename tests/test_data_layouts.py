"""Folders as labs have them: splits, patients, one folder too many, masks and boxes."""

from pathlib import Path

from cellaug.data import DataError, open_dataset, split
from cellaug.data.images import write_png
from cellaug.data.inspection import inspect

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CELLAUG_DATA", raising=False)


def tree(root: Path, text: str) -> Path:
    """Write the files that `text` names, images of noise or texts."""
    for seed, name in enumerate(text.split()):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".png":
            write_png(file, np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8))
        else:
            file.write_text("text")
    return root


def table(cells, column):
    return dict(zip(cells.table["path"], cells.table[column], strict=True))


def report(cells):
    return [tuple(row) for row in cells.report[["path", "outcome", "reason"]].to_numpy()]


def test_folders_of_a_published_split(tmp_path):
    text = "Train/a/0.png Train/b/0.png val/a/0.png valid/b/0.png validation/b/1.png test/a/0.png"
    cells = open_dataset(tree(tmp_path / "set", text + " test/b/0.png test/x.png notes.txt"))
    assert cells.class_names == ("a", "b") and set(cells.table["group"]) == {""}
    assert table(cells, "side") == {
        "Train/a/0.png": "train",
        "Train/b/0.png": "train",
        "val/a/0.png": "validation",
        "valid/b/0.png": "validation",
        "validation/b/1.png": "validation",
        "test/a/0.png": "test",
        "test/b/0.png": "test",
    }
    assert report(cells) == [
        (".", "kept", "folders are read as SPLIT/CLASS"),
        ("notes.txt", "dropped", "outside the class folders"),
        ("test/x.png", "dropped", "outside the class folders"),
    ]
    parts = split(cells)
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 2,
        "validation": 3,
        "test": 2,
    }


LONGER = ["wbc_train wbc_val wbc_test", "train1 val1 test1", "1_train 2_val 3_test"]
LONGER += ["Trainingsdaten Validierungsdaten Testdaten", "wbcTrain wbcVal wbcTest"]


@pytest.mark.parametrize("names", LONGER)
def test_sides_may_have_longer_names(tmp_path, names):
    sides = dict(zip(names.split(), ("train", "validation", "test"), strict=True))
    text = " ".join(f"{name}/{kind}/0.png" for name in sides for kind in "ab")
    cells = open_dataset(tree(tmp_path / "set", text))
    assert cells.class_names == ("a", "b") and set(cells.table["group"]) == {""}
    assert table(cells, "side") == {path: sides[path.split("/")[0]] for path in text.split()}


def test_sides_named_after_their_class(tmp_path):
    sides = ("train", "val", "test")
    text = " ".join(f"{kind}/{kind}_{side}/0.png" for kind in ("baso", "mono") for side in sides)
    cells = open_dataset(tree(tmp_path / "set", text))
    assert cells.class_names == ("baso", "mono") and set(cells.table["group"]) == {""}
    assert set(table(cells, "side").values()) == {"train", "validation", "test"}


def test_patients_whose_names_hold_a_word_of_a_split_stay_patients(tmp_path):
    text = " ".join(f"{kind}/test{k}/0.png" for kind in ("basophil", "monocyte") for k in "123")
    cells = open_dataset(tree(tmp_path / "set", text))
    assert set(cells.table["group"]) == {"test1", "test2", "test3"}


def test_folders_that_name_side_and_class_in_one_are_refused(tmp_path):
    text = "train_baso/0.png test_baso/1.png train_mono/2.png test_mono/3.png"
    with pytest.raises(DataError, match=r"such as test_baso, name a side .* Expected train/CLASS"):
        open_dataset(tree(tmp_path / "set", text))


def test_a_folder_that_says_nothing_is_read_through(tmp_path):
    cells = open_dataset(tree(tmp_path / "set", "a/images/0.png a/images/1.png b/Images/0.png"))
    assert cells.class_names == ("a", "b") and set(cells.table["group"]) == {""}
    assert len(cells) == 3 and report(cells)[0][2] == "folders are read as CLASS/images"
    cells = open_dataset(tree(tmp_path / "two", "a/images/0.png a/raw/1.png b/images/0.png"))
    assert set(cells.table["group"]) == {""} and len(cells) == 3


@pytest.mark.parametrize("place", ["basophil/P1/slide1", "P1/basophil/images", "P1/train/baso"])
def test_images_that_lie_deeper_are_named(tmp_path, place):
    text = f"{place}/0.png {place.replace('1', '2').replace('basophil', 'monocyte')}/0.png"
    with pytest.raises(DataError, match=r"images lie deeper than two folders, as in .*path, label"):
        open_dataset(tree(tmp_path / "set", text))


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train_set", "dev", "test-images")])
def test_sides_within_classes_are_a_published_split(tmp_path, names):
    paths = [f"{kind}/{name}/0.png" for kind in "ab" for name in names]
    cells = open_dataset(tree(tmp_path / "set", " ".join(paths)))
    assert cells.class_names == ("a", "b") and set(cells.table["group"]) == {""}
    sides = ["train", "validation", "test"]
    assert table(cells, "side") == dict(zip(paths, sides * 2, strict=True))
    assert report(cells) == [(".", "kept", "folders are read as CLASS/SPLIT")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train/a/0.png test/a/0.png TEST_SIMPLE/a/0.png",
            "published split, but TEST_SIMPLE is no",
        ),
        ("train/0.png test/1.png", "no classes. Expected one subfolder of images per class"),
        ("0.png 1.png", "no classes"),
        (
            "a/train/0.png a/test/1.png a/old/2.png b/train/3.png",
            "test, train below its folders are sides of a published split, but old is none",
        ),
    ],
)
def test_what_is_no_split(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        open_dataset(tree(tmp_path / "set", text))


def test_a_table_helps_where_folders_are_no_classes(tmp_path):
    root = tree(tmp_path / "set", "train/0.png train/1.png test/2.png test/3.png")
    rows = "train/0.png,a,train\ntrain/1.png,b,train\ntest/2.png,a,test\ntest/3.png,b,test\n"
    (root / "manifest.csv").write_text(f"path,label,split\n{rows}")
    cells = open_dataset(root)
    assert cells.class_names == ("a", "b") and cells.table["side"].tolist() == ["test", "train"] * 2
    (root / "test").rename(root / "gone")
    (root / "train").rename(root / "images")
    (root / "gone").rename(root / "images" / "more")
    (root / "manifest.csv").write_text("path,label\nimages/0.png,a\nimages/1.png,b\n")
    assert open_dataset(root).class_names == ("a", "b")
    (root / "manifest.csv").write_text("path\nimages/0.png\n")
    assert open_dataset(root).class_names == ("images",)


def test_one_folder_too_many(tmp_path):
    root = tree(tmp_path / "set", "set/inner/a/0.png set/inner/b/0.png set/inner/x.txt readme.txt")
    (root / ".DS_Store").write_text("")
    cells = open_dataset(root)
    inner = root / "set" / "inner"
    assert (cells.class_names, cells.name, cells.root) == (("a", "b"), "inner", inner)
    assert report(cells) == [
        (f"{root}/.DS_Store", "dropped", "hidden or system clutter"),
        (f"{root}/readme.txt", "dropped", "outside the class folders"),
        (f"{root}/set", "kept", "one folder more than expected: opened"),
        (f"{inner}", "kept", "one folder more than expected: opened"),
        ("x.txt", "dropped", "outside the class folders"),
    ]
    for file in (root / "set" / "inner" / "a").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r'inner: class "a" has no usable image'):
        open_dataset(root)


def test_generated_cells_in_one_folder_too_many(tmp_path):
    root = tree(tmp_path / "set", "out/a_0.png out/b_0.png")
    (root / "out/manifest.csv").write_text("path,label,origin\na_0.png,a,synthetic\nb_0.png,b,\n")
    cells = open_dataset(root)
    assert cells.table["origin"].tolist() == ["synthetic", "real"] and cells.name == "out"


def test_a_lone_link_upwards_is_no_set(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "loop").symlink_to(".")
    with pytest.raises(DataError, match="no usable image"):
        open_dataset(tmp_path / "set")


PATIENTS = {
    "P1/mono P1/lymph P2/mono P2/lymph": "PATIENT/CLASS",
    "P1/monocyte P2/lymphocyte": "PATIENT/CLASS",
    "smith/monocyte smith/lymphocyte brown/monocyte": "PATIENT/CLASS",
    "smith/a smith/b brown/a brown/b jones/a jones/b": "PATIENT/CLASS",
    "7/1 7/2 8/1 8/2 9/1 9/2": "PATIENT/CLASS",
    "monocyte/P1 monocyte/P2 lymphocyte/P1 lymphocyte/P2 blast/P1 blast/P2": "CLASS/PATIENT",
    "monocyte/smith monocyte/brown lymphocyte/brown": "CLASS/PATIENT",
    "a/P1 a/P2 b/P1 b/P2": "CLASS/PATIENT",
    "a/smith a/brown b/jones": "CLASS/PATIENT",
    "L1/P1 L1/P2 L2/P3": "CLASS/PATIENT",
    "a/x b/x": "",
    "a/x a/y b/x b/y": "",
    "L1/P1 L1/P2 L2/P1 L2/P2": "",
    "a/1 a/2 b/1 b/2 c/1 c/2": "",
    "granulocyte/neutrophil granulocyte/eosinophil agranulocyte/monocyte": "",
    "granular/neutrophil granular/eosinophil other/monocyte": "",
}


@pytest.mark.parametrize("folders", PATIENTS)
@pytest.mark.parametrize("below", [("",), ("train/", "test/")])
def test_folders_of_patients(tmp_path, folders, below):
    files = [f"{side}{path}/{i}.png" for side in below for path in folders.split() for i in "01"]
    root = tree(tmp_path / "set", " ".join(files))
    order = PATIENTS[folders]
    if not order:
        first, second = min(folders.split()).split("/")
        both = rf"PATIENT/CLASS \({first} a patient, {second} a class\) or CLASS/PATIENT"
        with pytest.raises(DataError, match=rf"{first}/{second}, … can be read as {both}.*Write a"):
            open_dataset(root)
        return
    cells = open_dataset(root)
    at = order.split("/").index("CLASS") - 2
    parts = {path: path.rsplit("/", 1)[0].split("/") for path in files}
    assert table(cells, "class") == {path: part[at] for path, part in parts.items()}
    assert table(cells, "group") == {path: part[-3 - at] for path, part in parts.items()}
    sides = {path: part[0] if below != ("",) else "" for path, part in parts.items()}
    assert table(cells, "side") == sides
    words = ("SPLIT/" if below != ("",) else "") + order
    ((place, outcome, told),) = report(cells)
    assert (place, outcome) == (".", "kept")
    assert told.startswith(f"folders are read as {words}, with the patient or slide as group (if ")


@pytest.mark.parametrize("names", ["fold0 fold1", "Part_1 Part_2", "batch-1 batch-2", "cv fold 1"])
def test_parts_of_a_set_are_no_patients(tmp_path, names):
    parts = names.replace("cv fold 1", "cv_fold_1 cv_fold_2").split()
    files = [f"{part}/{kind}/{i}.png" for part in parts for kind in ("blast", "mono") for i in "01"]
    cells = open_dataset(tree(tmp_path / "set", " ".join(files)))
    assert cells.class_names == ("blast", "mono") and len(cells) == 8
    assert set(cells.table["group"]) == {""}
    assert report(cells) == [(".", "kept", "folders are read as PART/CLASS")]


def test_images_of_inner_folders_are_counted_in_every_layout(tmp_path):
    text = "P1/mono/0.png P1/mono/more/1.png P1/mono/more/2.png P2/lymphocyte/0.png P2/mono/0.png"
    cells = open_dataset(tree(tmp_path / "set", text))
    inner = "a folder inside a class folder; what it holds is not read: 2 images"
    assert ("P1/mono/more", "dropped", inner) in report(cells)
    assert any("with 2 images that were not read" in text for text in inspect(cells).warnings)


def test_what_lies_beside_the_images_of_patients(tmp_path):
    text = "P1/mono/0.png P1/lymph/0.png P2/mono/0.png P2/notes.txt P3/about.txt P4/.x x.png"
    (tmp_path / "set" / "P5").mkdir(parents=True)
    cells = open_dataset(tree(tmp_path / "set", text + " P1/mono/more/0.png"))
    assert cells.class_names == ("lymph", "mono") and len(cells) == 3
    assert report(cells)[1:] == [
        (
            "P1/mono/more",
            "dropped",
            "a folder inside a class folder; what it holds is not read: 1 images",
        ),
        ("P2/notes.txt", "dropped", "outside the class folders"),
        ("P3/about.txt", "dropped", "outside the class folders"),
        ("P4/.x", "dropped", "hidden or system clutter"),
        ("P5", "dropped", "outside the class folders"),
        ("x.png", "dropped", "outside the class folders"),
    ]
    with pytest.raises(DataError, match='class "blast" has no usable image'):
        open_dataset(tree(tmp_path / "other", "monocyte/P1/0.png monocyte/P2/1.png blast/x.txt"))


MASKS, BOXES = "holds segmentation masks \\({}", "holds fields with boxes \\({}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images/0.png masks/0.png", MASKS.format("masks")),
        ("a/0.png b/0.png Ground_Truth/0.png", MASKS.format("Ground_Truth")),
        ("a/0.png b/0.png cell-mask/0.png", MASKS.format("cell-mask")),
        ("1/images/0.png 1/masks/0.png 2/images/0.png", MASKS.format("1/masks")),
        ("train/images/0.png train/segmentation/0.png", MASKS.format("train/segmentation")),
        ("set/images/0.png set/mask/0.png", MASKS.format("mask")),
        ("images/0.png annotations/0.png", MASKS.format("annotations")),
        ("a/0.png a/0_mask.png b/0.png", MASKS.format("a/0_mask.png")),
        ("a/P1/0.png a/P1/0-seg.png b/P2/0.png", MASKS.format("a/P1/0-seg.png")),
        ("0.png 0_mask.png", MASKS.format("0_mask.png")),
        ("a/0.png a/0_binary.png b/0.png", MASKS.format("a/0_binary.png")),
        ("Original/a/0.png GrTh/a/0.png", MASKS.format("GrTh")),
        ("a/RGB/0.png a/GT_nucleus/0.png b/RGB/0.png", MASKS.format("a/GT_nucleus")),
        ("a/0.png a/0.bmp a/1.png a/1.bmp", MASKS.format("a/0.bmp, or a copy, beside 0.png")),
        ("JPEGImages/0.png Annotations/0.xml", BOXES.format("Annotations/0.xml")),
        ("BCCD/JPEGImages/0.png BCCD/Annotations/0.xml", BOXES.format("Annotations/0.xml")),
        ("images/0.png labels/0.txt", BOXES.format("labels/0.txt")),
        ("train/images/0.png train/labels/0.txt", BOXES.format("train/labels/0.txt")),
        ("train/0.png train/0.xml test/0.png test/0.xml", BOXES.format("test/0.xml")),
        ("train/0.png train/_annotations.coco.json", BOXES.format("train/_annotations.coco.json")),
        ("images/train/0.png labels/train/0.txt", BOXES.format("labels/train/0.txt")),
        ("0.png 1.png annotations.json", BOXES.format("annotations.json")),
    ],
)
def test_masks_and_boxes_are_no_cells(tmp_path, text, message):
    with pytest.raises(DataError, match=message + ".*Expected one image per cell, in one folder"):
        open_dataset(tree(tmp_path / "set", text))


@pytest.mark.parametrize(
    ("text", "which"),
    [("a/RGB/0.png a/Nucleus/0.png b/RGB/0.png b/Nucleus/0.png", "a/RGB and a/Nucleus"),
     ("Raw/a/0.png Raw/b/1.png Segmented/a/0.png Segmented/b/1.png", "Raw and Segmented")],
)  # fmt: skip
def test_two_versions_of_the_same_images_are_not_two_patients(tmp_path, text, which):
    with pytest.raises(DataError, match=f"{which} hold images of the same names, which may be mas"):
        open_dataset(tree(tmp_path / "set", text))
    patients = text.replace("RGB", "P1").replace("Nucleus", "P2").replace("Raw", "P1")
    cells = open_dataset(tree(tmp_path / "other", patients.replace("Segmented", "P2")))
    assert set(cells.class_names) == {"a", "b"} and set(cells.table["group"]) == {"P1", "P2"}


@pytest.mark.parametrize(
    "text",
    [
        "a/0.png a/1.png a/2.png a/2.tiff a/1.txt b/readme.png b/readme.txt b/0.png b/1.png",
        "segmented/0.png masked/0.png labelled/0.png",
        "seg/0.png band/0.png",
        "a/1_mask.png b/1.png",
        "valid/0.png invalid/0.png",
        "test/0.png control/0.png",
    ],
)
def test_what_only_resembles_masks_boxes_and_splits(tmp_path, text):
    cells = open_dataset(tree(tmp_path / "set", text))
    assert set(cells.class_names) == {name.split("/")[0] for name in text.split()}
    assert len(cells) == text.count(".png") and set(cells.table["side"]) == {""}


def test_each_class_in_one_folder_more(tmp_path):
    cells = open_dataset(tree(tmp_path / "set", "a/a/0.png a/a/1.png b/B/0.png b/x.txt"))
    assert cells.class_names == ("a", "b") and cells.counts().tolist() == [2, 1]
    assert set(cells.table["group"]) == {""}
    assert report(cells) == [
        (".", "kept", "folders are read as CLASS/CLASS"),
        ("b/x.txt", "dropped", "outside the class folders"),
    ]


def test_folders_inside_class_folders_are_counted(tmp_path):
    root = tree(tmp_path / "set", "a/0.png a/more/1.png a/more/2.png b/0.png b/none/x.txt")
    inner = "a folder inside a class folder; what it holds is not read"
    assert report(open_dataset(root)) == [
        ("a/more", "dropped", f"{inner}: 2 images"),
        ("b/none", "dropped", inner),
    ]
    (said,) = [text for text in inspect(open_dataset(root)).warnings if "inside class" in text]
    assert said.startswith("Folders inside class folders: 1, with 2 images that were not read")


def test_a_table_beside_one_folder_of_images_is_named(tmp_path):
    root = tree(tmp_path / "set", "img/0.png img/1.png meta.csv")
    with pytest.raises(DataError, match=r"one folder, img; meta\.csv may list.* Give the table"):
        open_dataset(root)


@pytest.mark.parametrize("label", ["manifest.csv", "CREDIT.txt", "index.parquet"])
def test_a_class_is_not_called_as_our_files(tmp_path, label):
    root = tree(tmp_path / "set", f"{label}.d/0.png b/0.png")
    (root / f"{label}.d").rename(root / label)
    with pytest.raises(DataError, match="is the name of a file that cellaug writes"):
        open_dataset(root)


def test_a_manifest_says_which_folders_are_one_patient(tmp_path):
    root = tree(tmp_path / "set", "P01/a/0.png P01/b/1.png p1/a/2.png p1/b/3.png P2/a/4.png")
    assert sorted(set(open_dataset(root).table["group"])) == ["P01", "P2", "p1"]
    (root / "manifest.csv").write_text("path,group\np1/a/2.png,P01\np1/b/3.png,P01\n")
    cells = open_dataset(root)
    assert table(cells, "group")["p1/a/2.png"] == table(cells, "group")["P01/b/1.png"] == "P01"
    assert sorted(set(cells.table["group"])) == ["P01", "P2"]
