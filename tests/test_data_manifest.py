"""Manifests: what they may say, and splits that keep groups and published sides together."""

import json
import os
import re
import tracemalloc

from cellaug import cli
from cellaug.book.run import load_profile
from cellaug.data import DataError, concat, load_splits, open_dataset, save_splits, split
from cellaug.data.images import write_png
from cellaug.data.inspection import inspect
from cellaug.data.published import BLOODMNIST_CLASSES
from cellaug.errors import BookError

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Forty images p/00.png to p/39.png."""
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CELLAUG_DATA", raising=False)
    root = tmp_path / "lab"
    (root / "p").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for i in range(40):
        write_png(root / "p" / f"{i:02d}.png", rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return root


def plain(count=40):
    return pd.DataFrame(
        {
            "path": [f"p/{i:02d}.png" for i in range(count)],
            "label": ["lymphocyte" if i % 2 else "monocyte" for i in range(count)],
        }
    )


def save(root, table, name="manifest.csv", **options):
    file = root / name
    if file.suffix == ".parquet":
        table.to_parquet(file)
    else:
        table.to_csv(file, index=False, **options)
    return file


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cells.csv", {}),
        ("cells.CSV", {"sep": ";"}),
        ("cells.csv", {"sep": "\t", "encoding": "utf-8-sig"}),
        ("cells.parquet", {}),
    ],
)
def test_formats(root, name, options):
    cells = open_dataset(save(root, plain(), name, **options))
    assert cells.name == "cells" and cells.root == root.resolve()
    assert cells.class_names == ("lymphocyte", "monocyte")
    assert cells.counts().tolist() == [20, 20]
    assert {path.name for path in cells.of_class(0).paths} == {
        f"{i:02d}.png" for i in range(1, 40, 2)
    }
    assert set(cells.table["side"]) == set(cells.table["group"]) == {""} and cells.report.empty
    assert set(cells.table["origin"]) == {"real"}
    assert open_dataset(root / name, class_names=("monocyte", "lymphocyte")).class_names[0] == (
        "monocyte"
    )


def test_origins_and_further_columns_are_kept(root, tmp_path):
    table = plain().rename(columns={"path": "file"})
    table["origin"] = ["Real", "synthetic", "", "synthetic"] * 10
    table["Stain"] = ["Wright" if i % 3 else "" for i in range(40)]
    table["digest"] = range(40)  # ours has another meaning
    cells = open_dataset(save(root, table)).subset([39, 0, 21])
    rows = [int(path.stem) for path in cells.paths]
    assert rows == [38, 1, 2]
    assert cells.table["origin"].tolist() == ["real", "synthetic", "real"]
    assert cells.table["stain"].tolist() == ["Wright"] * 3
    assert cells.table["digest (manifest)"].tolist() == ["38", "1", "2"]
    save_splits({"all": cells}, tmp_path)
    pd.testing.assert_frame_equal(load_splits(tmp_path)["all"].table, cells.table)
    both = concat([cells, open_dataset(save(root, plain(), "bare.csv"))])
    assert len(both) == 43 and both.table["stain"].isna().sum() == 40
    table["origin"] = "Barcelona"
    cells = open_dataset(save(root, table))
    assert set(cells.table["origin"]) == {"real"} and len(cells) == 40
    assert set(cells.table["origin (manifest)"]) == {"Barcelona"}


def test_copies_that_a_generator_made_stay(root):
    for name in ("02", "04", "06"):
        (root / "p" / f"{name}.png").write_bytes((root / "p" / "00.png").read_bytes())
    table = plain()
    table["origin"] = ["synthetic" if i in (2, 4) else "real" for i in range(40)]
    cells = open_dataset(save(root, table))
    kept = "copy: of p/00.png, kept because it is generated"
    assert cells.report.to_numpy().tolist() == [
        ["p/02.png", "monocyte", "kept", kept],
        ["p/04.png", "monocyte", "kept", kept],
        ["p/06.png", "monocyte", "dropped", "copy: of p/00.png"],
    ]
    assert len(cells) == 39


def test_labels_that_are_numbers(root):
    table = plain()
    table["label"] = [i % 2 for i in range(40)]
    assert open_dataset(save(root, table)).class_names == ("0", "1")
    assert open_dataset(save(root, table, "m.parquet")).class_names == ("0", "1")


def test_paths(root):
    table = plain(36)
    table.loc[0, "path"] = str(root / "p" / "00.png")  # absolute, within the folder
    table.loc[1, "path"] = "p/../p/./01.png"
    table.loc[2, "path"] = "p\\02.png"  # written on Windows
    table.loc[3, "path"] = "../lab/p/03.png"  # out and back in again
    table.loc[4, "path"] = "../elsewhere.png"
    table.loc[5, "path"] = "/etc/hostname"
    table.loc[6, "path"] = str(root) + "-other/p/06.png"
    table.loc[7, "path"] = "p/missing.png"
    table.loc[8, "path"] = ""
    table.loc[9, "label"] = " "
    table.loc[10, "path"] = "p/11.png"  # twice, with two labels
    table.loc[12, "path"] = "p/14.png"  # twice, with one label
    table.loc[15, "path"] = "p"
    cells = open_dataset(save(root, table))
    used = {path.relative_to(root).as_posix() for path in cells.paths}
    lost = {4, 5, 6, 7, 8, 9, 10, 11, 12, 15}
    assert used == {f"p/{i:02d}.png" for i in range(36) if i not in lost}
    outside = f"outside the manifest's folder: expected a path below {root}; put the manifest into "
    outside += "a folder above the images"
    doubtful = "listed with different labels, splits or groups"
    assert sorted(cells.report[["path", "reason"]].itertuples(index=False, name=None)) == sorted(
        [
            ("../elsewhere.png", f"{outside} (row 5)"),
            ("/etc/hostname", f"{outside} (row 6)"),
            (f"{root}-other/p/06.png", f"{outside} (row 7)"),
            ("p/missing.png", "cannot be read (No such file or directory)"),
            ("", "no path (row 9)"),
            ("p/09.png", "no label (row 10)"),
            ("p/11.png", f"{doubtful} (row 11)"),
            ("p/11.png", f"{doubtful} (row 12)"),
            ("p/14.png", "listed twice (row 15)"),
            ("p", cells.report.set_index("path").loc["p", "reason"]),
        ]
    )
    assert (cells.report["outcome"] == "dropped").all()
    assert len(cells) + len(cells.report) == len(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\np/00.png,a\n", r"no column 'path' \(there are: image, label\)"),
        ("path,label,Label\np/00.png,a,b\n", "several columns are called label"),
        ("path,class\np/00.png,a\n", "no column 'label'"),
        ("", "cannot be read as csv"),
        ("path,label\n", "no usable row .it has none"),
        ("path,label\n../x.png,a\n", r"no usable row \(\.\./x\.png: outside the manifest's folder"),
        ("path,label\np/00.png,Band\np/01.png,band\n", "classes Band, band differ only by case"),
        ("path,label\np/00.png,a\np/none.png,b\n", 'class "b" has no usable image .1 × cannot'),
        ('path,label\n"p/00.png,a\n', "cannot be read as csv"),
    ],
)
def test_complaints(root, text, message):
    (root / "m.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(root / "m.csv")


def test_unreadable_manifests(root):
    (root / "m.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"m\.parquet: cannot be read as parquet"):
        open_dataset(root / "m.parquet")
    (root / "m.txt").write_text("path,label\n")
    with pytest.raises(DataError, match=r"m.txt: is a file, but no manifest.*\.csv or \.parquet"):
        open_dataset(root / "m.txt")


def test_groups_are_never_divided(root):
    table = plain()
    table["group"] = [f"patient {i // 4}" for i in range(36)] + [""] * 4
    cells = open_dataset(save(root, table))
    fractions = {"train": 0.5, "test": 0.5}
    seeds_apart = 0
    for seed in range(12):
        try:
            parts = split(cells, fractions, seed)
        except DataError:
            continue
        sides = [set(part.table["group"]) - {""} for part in parts.values()]
        assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 9
        assert sum(len(part) for part in parts.values()) == 40
        seeds_apart += 1
    assert seeds_apart >= 6


def test_why_a_class_cannot_be_divided(root):
    """The cause is a patient or the published split, not the number of images."""
    table = plain()
    table["group"] = ["A" if i % 2 else f"P{i // 4}" for i in range(40)]
    cause = r'all 20 images of class "lymphocyte" come from one patient or slide \(A\)'
    with pytest.raises(DataError, match=cause + r", so the split .*never divided: .*3 splits need"):
        split(open_dataset(save(root, table)))
    table["group"] = ["AB"[i % 4 // 2] if i % 2 else f"P{i // 4}" for i in range(40)]
    with pytest.raises(DataError, match=r"come from 2 patients or slides \(A, B\)"):
        split(open_dataset(save(root, table)))
    table["group"] = ""
    table["split"] = ["train" if i % 2 else ["train", "test"][i % 4 // 2] for i in range(40)]
    cause = r'published split puts the 20 images of class "lymphocyte" elsewhere, so .*"test"'
    with pytest.raises(DataError, match=cause + ".*column 'split'"):
        split(open_dataset(save(root, table)))


def test_published_sides_stay(root, tmp_path):
    table = plain()
    table["split"] = ["Training"] * 24 + ["val"] * 6 + ["test"] * 10
    cells = open_dataset(save(root, table))
    parts = split(cells, seed=5)
    numbers = {name: sorted(int(p.stem) for p in part.paths) for name, part in parts.items()}
    assert numbers == {
        "train": list(range(24)),
        "validation": list(range(24, 30)),
        "test": list(range(30, 40)),
    }
    halves = {"generator": 0.35, "classifier": 0.35, "validation": 0.15, "test": 0.15}
    parts = split(cells, halves, seed=5)
    numbers = {name: sorted(int(p.stem) for p in part.paths) for name, part in parts.items()}
    assert numbers["validation"] == list(range(24, 30)) and numbers["test"] == list(range(30, 40))
    assert sorted(numbers["generator"] + numbers["classifier"]) == list(range(24))
    assert 5 <= len(numbers["generator"]) <= 19
    save_splits(parts, tmp_path)
    loaded = load_splits(tmp_path)
    assert loaded["generator"].table["side"].eq("train").all()
    with pytest.raises(DataError, match="published with the side validation, but the split has"):
        split(cells, {"train": 0.5, "test": 0.5})


def test_a_validation_part_is_taken_from_training_where_none_is_published(root):
    table = plain()
    table["split"] = ["train"] * 30 + ["test"] * 10
    parts = split(open_dataset(save(root, table)), seed=2)
    numbers = {name: sorted(int(p.stem) for p in part.paths) for name, part in parts.items()}
    assert numbers["test"] == list(range(30, 40))
    assert sorted(numbers["train"] + numbers["validation"]) == list(range(30))
    assert 1 <= len(numbers["validation"]) <= 12


def test_a_copy_on_two_sides_stays_where_training_does_not_see_it(root):
    (root / "p" / "39.png").write_bytes((root / "p" / "01.png").read_bytes())
    table = plain()
    table["split"] = ["train"] * 30 + ["test"] * 10
    cells = open_dataset(save(root, table))
    assert "01.png" not in {path.name for path in cells.paths} and len(cells) == 39
    assert cells.report.to_numpy().tolist() == [
        [
            "p/01.png",
            "lymphocyte",
            "dropped",
            "copy: of p/39.png (in the split test, this one in train)",
        ]
    ]


def test_a_row_without_a_split_among_others(root):
    table = plain()
    table["split"] = ["train"] * 30 + ["test"] * 9 + [""]
    cells = open_dataset(save(root, table))
    assert cells.report["reason"].tolist() == ["no split, where other rows have one (row 40)"]


def test_bloodmnist_keeps_its_published_split_whole(root, monkeypatch):
    """A folder as `cellaug fetch bloodmnist-28` leaves it."""
    monkeypatch.setenv("CELLAUG_DATA", str(root))
    home = root / "bloodmnist-28"
    home.mkdir()
    (root / "p").rename(home / "p")
    (home / "p" / "30.png").write_bytes((home / "p" / "00.png").read_bytes())
    (home / "p" / "33.png").write_bytes((home / "p" / "32.png").read_bytes())
    table = plain()
    table["label"] = [BLOODMNIST_CLASSES[i % 8] for i in range(40)]
    table["split"] = ["train"] * 16 + ["validation"] * 8 + ["test"] * 16
    save(home, table)
    cells = open_dataset("bloodmnist-28")
    assert cells.class_names == BLOODMNIST_CLASSES and "CC BY 4.0" in cells.credit
    assert [len(part) for part in split(cells).values()] == [16, 8, 16]
    assert set(cells.report["outcome"]) == {"kept"}
    assert cells.report["path"].tolist() == ["p/00.png", "p/30.png", "p/32.png", "p/33.png"]


def test_bloodmnist_absent_says_both_ways(root):
    with pytest.raises(DataError, match=r"cellaug fetch bloodmnist-64.*file bloodmnist_64\.npz"):
        open_dataset("bloodmnist-64")
    with pytest.raises(DataError, match=r"published file bloodmnist\.npz"):
        open_dataset("bloodmnist-28")


def marked(file, seed, **said):
    """Write an image as `cellaug generate` does, with the text chunk that says so."""
    pixels = np.random.default_rng([7, seed]).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    info = PngImagePlugin.PngInfo()
    info.add_text("cellaug", json.dumps({"seed": seed, "index": 0} | said))
    Image.fromarray(pixels).save(file, pnginfo=info)


def in_folders(root):
    """Move the forty images into the folders of their classes."""
    for path, label in plain().itertuples(index=False):
        (root / label).mkdir(exist_ok=True)
        (root / path).rename(root / label / path[2:])
    (root / "p").rmdir()
    return root


def test_a_folder_with_a_manifest_knows_origin_split_and_group(root):
    """As `cellaug augment` leaves it: class folders and the manifest that lists them."""
    table = plain()
    table["path"] = table["label"] + "/" + table["path"].str[2:]
    table["origin"] = ["synthetic" if i >= 30 else "real" for i in range(40)]
    table["split"] = ["test" if i < 6 else "training" for i in range(40)]
    table["group"] = ["" if i >= 30 else f"patient {i % 3}" for i in range(40)]
    table["generator"] = ["pbc generator 01" if i >= 30 else "" for i in range(40)]
    listed = open_dataset(save(in_folders(root), table))
    cells = open_dataset(root)
    pd.testing.assert_frame_equal(cells.table, listed.table)
    rows = [int(path.stem) for path in cells.paths]
    assert cells.table["origin"].tolist() == table["origin"][rows].tolist()
    assert cells.table["side"].tolist() == table["split"].str.replace("ing", "")[rows].tolist()
    assert cells.table["group"].tolist() == table["group"][rows].tolist()
    assert cells.origins() == "10 of 40 images are generated (by pbc generator 01)"
    assert cells.subset(cells.table["origin"] == "real").origins() == ""
    assert cells.report.to_numpy().tolist() == [
        ["manifest.csv", "", "dropped", "outside the class folders"]
    ]
    write_png(root / "monocyte" / "new.png", np.full((9, 9, 3), 9, np.uint8))
    lacking = "no split in manifest.csv, where other files have one"
    assert ["monocyte/new.png", "monocyte", "dropped", lacking] in (
        open_dataset(root).report.to_numpy().tolist()
    )


def test_a_manifest_needs_no_label_where_folders_give_it(root):
    rows = "file,origin\nmonocyte/00.png,synthetic\nmonocyte/00.png,real\ngone.png,real\n"
    (in_folders(root) / "manifest.csv").write_text(rows)
    cells = open_dataset(root)
    made = cells.table["path"][cells.table["origin"] == "synthetic"]
    assert made.tolist() == ["monocyte/00.png"] and len(cells) == 40
    assert cells.origins() == "1 of 40 images are generated"
    (root / "manifest.csv").write_text("name,origin\nmonocyte/00.png,synthetic\n")
    cells = open_dataset(root)
    assert set(cells.table["origin"]) == {"real"}
    (row,) = cells.report.to_numpy().tolist()
    assert row[:3] == ["manifest.csv", "", "dropped"]
    assert row[3].startswith("outside the class folders, and not used: ")
    assert "no column 'path' (there are: name, origin)" in row[3]


def test_a_folder_without_class_folders_opens_by_its_manifest(root):
    """As `cellaug generate` leaves it."""
    table = plain().assign(path=[f"{i:02d}.png" for i in range(40)], origin="synthetic", seed=3)
    save(root / "p", table.assign(generator="g"))
    cells = open_dataset(root / "p")
    assert (cells.name, cells.root, len(cells)) == ("p", (root / "p").resolve(), 40)
    assert cells.class_names == ("lymphocyte", "monocyte") and set(cells.table["seed"]) == {"3"}
    assert cells.origins() == "40 of 40 images are generated (by g)"
    assert open_dataset(root / "p", class_names=("monocyte", "lymphocyte")).labels[0] == 0


def test_a_text_chunk_makes_an_image_generated_wherever_it_lies(root, tmp_path, capsys):
    in_folders(root)
    for seed in range(4):
        marked(root / "monocyte" / f"mixed in {seed}.png", seed, generator=f"g{seed}")
    for _ in range(2):  # from the files, then from the index
        cells = open_dataset(root)
        made = cells.subset(cells.table["origin"] == "synthetic").table
        assert made["path"].tolist() == [f"monocyte/mixed in {seed}.png" for seed in range(4)]
        assert made["generator"].tolist() == ["g0", "g1", "g2", "g3"]
        assert made["seed"].tolist() == ["0", "1", "2", "3"] and set(made["index"]) == {"0"}
        assert cells.origins() == "4 of 44 images are generated (by g0, g1, g2, …)"
        assert cells.table["generator"].tolist().count("") == 40 and cells.report.empty
    assert cli.main(["store", str(root), "--size", "9", "--out", str(tmp_path / "store")]) == 0
    assert "4 of 44 images are generated (by g0, g1, g2, …)" in capsys.readouterr().out
    assert open_dataset(tmp_path / "store").origins() == cells.origins()


def test_a_text_chunk_is_believed_against_the_manifest(root):
    for seed, name in enumerate(("00", "01", "02")):
        marked(root / "p" / f"{name}.png", seed, generator="chunk")
    table = plain().assign(origin="real", generator="", seed="")
    table.loc[1, ["origin", "generator", "seed"]] = ["synthetic", "manifest", "8"]
    table.loc[2, "origin"] = ""
    cells = open_dataset(save(root, table))
    made = cells.table[cells.table["origin"] == "synthetic"].set_index("path").sort_index()
    assert made.index.tolist() == ["p/00.png", "p/01.png", "p/02.png"]
    assert made["generator"].tolist() == ["chunk", "manifest", "chunk"]
    assert made["seed"].tolist() == ["0", "8", "2"]
    why = "generated, though listed as real: the text chunk cellaug of the file says so"
    assert cells.report.to_numpy().tolist() == [["p/00.png", "monocyte", "kept", why]]


def test_a_generated_image_below_a_patient_s_folder_has_no_patient(tmp_path):
    root = tmp_path / "set"
    for patient in ("P1", "P2", "P3"):
        for i, name in enumerate(("monocyte", "lymphocyte")):
            image = np.random.default_rng([i, int(patient[1])]).integers(0, 256, (16, 16, 3), "u1")
            (root / patient / name).mkdir(parents=True)
            write_png(root / patient / name / "0.png", image)
            write_png(root / patient / name / "1.png", 255 - image)
    (root / "manifest.csv").write_text("path,origin\nP1/monocyte/0.png,synthetic\n")
    table = open_dataset(root).table.set_index("path")
    assert table.loc["P1/monocyte/0.png", "group"] == ""
    assert set(table["group"].drop("P1/monocyte/0.png")) == {"P1", "P2", "P3"}


def test_origins_are_believed_of_converted_and_of_linked_files(root, tmp_path):
    """A manifest names .png, the files are .bmp; a set of links leads into a generated one."""
    in_folders(root)
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.png"))
    rows = pd.DataFrame({"path": names, "origin": ["synthetic"] * 3 + ["real"] * (len(names) - 3)})
    save(root, rows, "manifest.csv")
    links = tmp_path / "links"
    for name in names:
        image = cv2.imread(str(root / name))
        (root / name).unlink()
        place = (root / name).with_suffix(".bmp")
        cv2.imwrite(str(place), image)
        (links / name).parent.mkdir(parents=True, exist_ok=True)
        (links / name).with_suffix(".bmp").symlink_to(place)
    for folder in (root, links):
        table = open_dataset(folder).table
        made = table["path"][table["origin"] == "synthetic"].tolist()
        assert made == [name.replace(".png", ".bmp") for name in names[:3]]


def test_a_row_without_a_path_says_nothing_of_other_files(root):
    in_folders(root)
    names = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.png"))
    save(root, pd.DataFrame({"path": [names[0], ""], "group": ["P1", "P2"]}), "manifest.csv")
    groups = open_dataset(root).table.set_index("path")["group"]
    assert groups.pop(names[0]) == "P1" and set(groups) == {""}


@pytest.mark.parametrize("name", ["manifest.csv", "manifest.parquet"])
@pytest.mark.parametrize("place", ["", "train", "train/monocyte", ".."])
def test_origins_are_believed_wherever_their_manifest_lies(root, tmp_path, place, name):
    """As where the output of `augment`, saved again as JPEG, is put below train/ of another set."""
    in_folders(root)
    for side, numbers in {"test": range(6), "train": range(6, 40)}.items():
        for i in numbers:
            folder = "lymphocyte" if i % 2 else "monocyte"
            (root / side / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"{i:02d}.png").rename(root / side / folder / f"{i:02d}.png")
    (root / "monocyte").rmdir()
    (root / "lymphocyte").rmdir()
    folder = (root / place).resolve()
    file = root / "train" / "monocyte" / "08.png"
    rows = [
        {"path": file.relative_to(folder), "origin": "synthetic", "generator": "g", "seed": "3"}
    ]
    other = root / "train" / "lymphocyte" / "09.png"
    if other.is_relative_to(folder):
        rows += [{"path": other.relative_to(folder), "origin": "real", "group": "P1"}]
    save(folder, pd.DataFrame(rows).astype(str).replace("nan", ""), name)
    cells = open_dataset(root)
    made = cells.table[cells.table["origin"] == "synthetic"]
    assert made["path"].tolist() == ["train/monocyte/08.png"] and made["seed"].tolist() == ["3"]
    assert cells.origins() == "1 of 40 images are generated (by g)" and set(made["side"]) == {
        "train"
    }
    groups = cells.table["group"][cells.table["path"] == "train/lymphocyte/09.png"].tolist()
    assert groups == (["P1"] if len(rows) > 1 else [""])
    if place == "train":  # also where a table of another name lists the images as real
        table = cells.table[["path", "class"]].rename(columns={"class": "label"})
        listed = open_dataset(save(root, table.assign(origin="real"), "cells.csv"))
        assert listed.origins() == cells.origins()
        why = f"generated, though listed as real: {folder / name} says so"
        assert listed.report.to_numpy().tolist() == [
            ["train/monocyte/08.png", "monocyte", "kept", why]
        ]


def test_a_damaged_manifest_above_or_below_is_left_aside(root):
    (in_folders(root) / "monocyte" / "manifest.csv").write_bytes(b"\xff\xfe\0")
    (root.parent / "manifest.parquet").write_text("no table")
    assert open_dataset(root).origins() == ""


OTHER_NAMES = {"path": "image ID", "label": "Cell_Type", "group": "patient"}


def renamed(root, **columns):
    table = plain().assign(group=[f"P{i % 3}" for i in range(40)])
    return save(root, table.rename(columns=OTHER_NAMES).assign(**columns), "cells.csv")


def test_columns_may_have_other_names(root):
    file = renamed(root, label="mine", stain="Wright")
    cells = open_dataset(file, columns={"path": " Image id", "label": "cell_type"})
    assert cells.class_names == ("lymphocyte", "monocyte") and len(cells) == 40
    assert set(cells.table["group"]) == {""}
    assert set(cells.table["label (manifest)"]) == {"mine"}  # kept, but not what was asked for
    cells = open_dataset(file, columns=OTHER_NAMES)
    rows = [int(path.stem) for path in cells.paths]
    assert cells.table["group"].tolist() == [f"P{row % 3}" for row in rows]
    assert "patient" not in cells.table and set(cells.table["stain"]) == {"Wright"}
    both = open_dataset(file, columns=OTHER_NAMES | {"group": "image id"})
    assert both.table["group"].tolist() == both.table["path"].tolist()
    save(root, pd.read_csv(file))
    assert open_dataset(root, columns=OTHER_NAMES).class_names == cells.class_names


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "no column 'path' .*; for another name columns={'path': 'image id'}, or --columns"),
        ({"path": "image ID"}, r"no column 'label' .*, or --columns label=\"cell_type\" \(run "),
        (
            {"path": "imageID"},
            r"no column 'imageid' for the path \(there are: .*, perhaps image id",
        ),
        ({"path": "image ID", "label": "nothing"}, r"'nothing' for the label .*patient\)$"),
        (
            {"image": "image ID"},
            "columns: unknown name 'image'. Expected path, label, split, group",
        ),
    ],
)
def test_wrong_names_of_columns(root, columns, message):
    with pytest.raises(DataError, match=message):
        open_dataset(renamed(root), columns=columns)


def test_columns_need_a_table(root):
    with pytest.raises(DataError, match="columns are those of a table; give the table"):
        open_dataset(root, columns={"path": "x"})
    save(root, plain())
    with pytest.raises(DataError, match=r"manifest\.csv: no column 'x' for the path"):
        open_dataset(root, columns={"path": "x"})
    with pytest.raises(DataError, match="unknown option columns: pbc takes none"):
        open_dataset("pbc", columns={"path": "x"})


@pytest.mark.parametrize(
    "words",
    [
        ["path=image ID", "label=cell_type", "group=patient"],
        ["path=image ID, label=cell_type,group = patient"],
        [["path=image ID", "label=cell_type", "group=patient"]],
    ],
)
def test_columns_on_the_command_line(root, tmp_path, capsys, words):
    file, options = renamed(root), []
    for text in words:
        options += ["--columns", *([text] if isinstance(text, str) else text)]
    store = ["store", str(file), "--size", "9", "--out", str(tmp_path / "store")]
    assert cli.main([*store, *options]) == 0
    cells = open_dataset(tmp_path / "store")
    assert set(cells.table["group"]) == {"P0", "P1", "P2"} and len(cells) == 40
    for command in (["inspect"], ["evaluate", str(file)], ["augment", "--generator=x", "--out=y"]):
        assert cli.main([*command, str(file), *options, "--columns", "label=diagnosis"]) == 2
        error = capsys.readouterr().err
        assert "diagnosis" in error or "no such generator" in error
    for wrong in ("path", "=x", "label="):
        assert cli.main([*store, "--columns", wrong]) == 2
        assert "expected NAME=COLUMN, as in label=cell_type" in capsys.readouterr().err


def test_a_table_whose_paths_are_wrong_says_so_first(root):
    table = plain()
    table["label"] = [f"class {i}" for i in range(40)]  # so that classes fail, too
    table["path"] = table["path"].str.replace(".png", ".PNG")
    table.loc[[1, 2], "path"] = ["p/01.png", "q/none.png"]
    with pytest.raises(DataError) as caught:
        open_dataset(save(root, table))
    assert str(caught.value) == (
        f"{root}/manifest.csv: 39 of 40 paths name no file below {root}, such as 'p/00.PNG' (row 1)"
        "; p/00.png is there, which differs by case only. Expected paths from the table's folder "
        "on, with ending and case as there"
    )
    table["path"] = [f"{i}" for i in range(40)]
    with pytest.raises(DataError, match=r"such as '10' \(row 11\); p/10.png is there"):
        open_dataset(save(root, table))  # without folder and ending
    table["path"] = [f"x/{i}" for i in range(40)]
    with pytest.raises(DataError, match=r"40 of 40 paths .* such as 'x/0' \(row 1\)\. Expected"):
        open_dataset(save(root, table))


def test_a_path_that_nearly_names_a_file(root):
    table = plain()
    missing = ["P/00.png", "p/01", "p/02.jpg", "p/0\0.png", "p//05.PNG", "q/06.png", "p/7.png"]
    table.loc[[0, 1, 2, 4, 5, 6, 7], "path"] = missing
    cells = open_dataset(save(root, table, "cells.parquet"))
    why = "cannot be read (No such file or directory)"
    assert dict(zip(cells.report["path"], cells.report["reason"], strict=True)) == {
        "P/00.png": f"{why}: p/00.png is there, which differs by case only",
        "p/01": f"{why}: p/01.png is there",
        "p/02.jpg": f"{why}: p/02.png is there",
        "p/0\0.png": "cannot be read (embedded null byte)",
        "p/05.PNG": f"{why}: p/05.png is there, which differs by case only",
        "q/06.png": why,
        "p/7.png": why,
    }
    table.loc[:12, "label"] = "blast"  # a class that fails, though the table as a whole is right
    table.loc[7:12, "path"] = "p/none.png"
    with pytest.raises(DataError, match=r'"blast" has no usable image .*× cannot be read'):
        open_dataset(save(root, table.drop([3]), "cells.parquet"))


def test_a_path_that_nearly_names_a_file_whose_name_is_no_text(root):
    odd = os.fsdecode(b"\xff.png")
    (root / "p" / "00.png").rename(root / "p" / odd)
    rows = "".join(f"p/{i:02d}.png,x\n" for i in range(1, 20))
    (root / "cells.csv").write_bytes(os.fsencode(f"path,label\n{rows}p/{odd.upper()},x\n"))
    cells = open_dataset(root / "cells.csv")
    why = (
        f"cannot be read (No such file or directory): p/{odd} is there, which differs by case only"
    )
    assert cells.report.to_numpy().tolist() == [[f"p/{odd.upper()}", "x", "dropped", why]]


def test_hundreds_of_copies_under_two_labels_take_no_square_number_of_rows(root):
    """As a placeholder image in every row: each names one copy of the other class."""
    table, data = plain(), (root / "p" / "00.png").read_bytes()
    for i in range(800):
        (root / "p" / f"copy {i:04d}.png").write_bytes(data)
    more = [f"p/copy {i:04d}.png" for i in range(800)]
    labels = ["lymphocyte" if i % 2 else "monocyte" for i in range(800)]
    table = pd.concat([table, pd.DataFrame({"path": more, "label": labels})])
    tracemalloc.start()
    cells = open_dataset(save(root, table))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(cells) == 39 and peak < 2**24  # a third of a million pairs would take more
    reason = cells.report.set_index("path")["reason"]
    assert reason["p/copy 0001.png"] == "same image under another label: p/00.png (monocyte)"
    assert reason["p/copy 0002.png"] == (
        "same image under another label: p/copy 0001.png (lymphocyte)"
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "cp1252", "utf-8"])
def test_encodings(root, encoding):
    (root / "p" / "00.png").rename(root / "p" / "größe €.png")
    table = plain().rename(columns={"label": "label", "path": "path"})
    table["label"] = table["label"].replace("monocyte", "Größe €")
    table["färbung"] = "Grünwald"
    table.loc[0, "path"] = "p/größe €.png"
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    file = root / "cells.csv"
    file.write_bytes(mark + table.to_csv(index=False, sep=";").encode(encoding))
    cells = open_dataset(file)
    assert cells.class_names == ("Größe €", "lymphocyte") and len(cells) == 40
    assert set(cells.table["färbung"]) == {"Grünwald"}
    assert root / "p" / "größe €.png" in cells.paths
    said = "not UTF-8: the columns path, label, färbung are read as Windows-1252"
    expected = [["cells.csv", "", "converted", said]] if encoding == "cp1252" else []
    assert cells.report.to_numpy().tolist() == expected


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark_is_refused(root, encoding):
    (root / "cells.csv").write_bytes(plain().to_csv(index=False).encode(encoding))
    what = r"cells\.csv: .*as UTF-16 without its mark does.*saved as UTF-8 with commas"
    with pytest.raises(DataError, match=what):
        open_dataset(root / "cells.csv")


def test_class_names_that_differ_by_case_only(root):
    file = save(root, plain())
    with pytest.raises(DataError, match=r"They differ by case, spaces or accents: write them as"):
        open_dataset(file, class_names=("Lymphocyte", "monocyte"))
    with pytest.raises(DataError, match=r"class_names are a, b, but the classes .*monocyte$"):
        open_dataset(file, class_names=("a", "b"))


def test_some_rows_without_a_group_keep_that(root):
    table = plain().assign(group=["" if i % 4 else "P1" for i in range(40)])
    cells = open_dataset(save(root, table))
    assert cells.table["group"].value_counts().to_dict() == {"": 30, "P1": 10}


@pytest.mark.parametrize(
    ("words", "columns", "odd"),
    [
        (["real", "synthetic", "augmented"], {}, "'augmented'"),
        (["original", "fake"], {}, "'fake', 'original'"),
        (["0", "1"], {"origin": "origin"}, "'0', '1'"),
    ],
)
def test_an_origin_in_other_words_is_refused(root, words, columns, odd):
    table = plain().assign(origin=[words[i % len(words)] for i in range(40)])
    for source in (save(root, table, "cells.csv"), save(in_folders(root), table).parent):
        with pytest.raises(DataError, match=f"column origin holds {odd}. Expected real or synth"):
            open_dataset(source, columns=columns)


@pytest.mark.parametrize(
    ("column", "words"),
    [("type", ["real", "fake"]), ("source", ["original", "Generated"]),
     ("is_synthetic", ["False", "True"]), ("generator", ["", "StyleGAN2"]),
     ("echt", ["ja", "nein"]),
     ("is real", ["1", "0"]), ("AI generated", ["N", "Y"]), ("source", ["hospital", "synthetic"]),
     ("type", ["real", "GAN generated"]), ("künstlich", ["FALSCH", "WAHR"]),
     ("kind", ["original", "augmented"]), ("synthetic", ["", "x"]), ("is_original", ["1", "0"])],
)  # fmt: skip
def test_generated_images_under_another_column_are_refused(root, column, words):
    table = plain().assign(**{column: [words[i % 2] for i in range(40)]})
    file = save(root, table, "cells.csv")
    with pytest.raises(DataError, match=f"(?i)column {column} holds .* no column origin, so that"):
        open_dataset(file)
    save(root, table.assign(origin=["real", "synthetic"] * 20), "cells.csv")
    assert set(open_dataset(file).table["origin"]) == {"real", "synthetic"}
    save(in_folders(root), table)
    with pytest.raises(DataError, match=f"(?i)column {column} holds"):
        open_dataset(root)


def test_a_file_that_is_called_like_a_generated_one_is_one(root):
    in_folders(root)
    old, other, third = sorted(root.glob("monocyte/*.png"))[:3]
    old.rename(old.with_name("synthetic_0_00007.png"))
    other.rename(other.with_name("synthetic_1.png"))
    third.rename(third.with_name("crop_synthetic_2_00009_64px.png"))
    fourth = sorted(root.glob("lymphocyte/*.png"))[0]
    fourth.rename(fourth.with_name("synthetic_lymphocyte_3_00001.png"))  # as `generate` calls it
    table = open_dataset(root).table
    made = table[table["origin"] == "synthetic"]
    assert made[["path", "seed", "index"]].to_numpy().tolist() == [
        ["lymphocyte/synthetic_lymphocyte_3_00001.png", "3", "00001"],
        ["monocyte/crop_synthetic_2_00009_64px.png", "2", "00009"],
        ["monocyte/synthetic_0_00007.png", "0", "00007"],
    ]


@pytest.mark.parametrize("words", ["0 1", "no yes", "orig aug", "ja nein", "Original rescan"])
def test_a_column_origin_in_other_words_is_refused(root, words):
    file = save(root, plain().assign(origin=words.split() * 20), "cells.csv")
    with pytest.raises(DataError, match=r"the column origin holds .* Expected real or synthetic"):
        open_dataset(file)


def test_a_column_origin_of_another_meaning_is_kept(root):
    table = plain().assign(origin=["Malmö", "Lund"] * 20)
    cells = open_dataset(save(root, table, "cells.csv"))
    assert set(cells.table["origin"]) == {"real"}
    assert set(cells.table["origin (manifest)"]) == {"Malmö", "Lund"}


def test_a_class_whose_paths_are_all_wrong_names_the_table(root):
    table = plain()
    table.loc[table.index[::2][:20], "path"] = table["path"].str.replace("png", "PNG")
    table.loc[1::2, "label"] = ["lymphocyte", "platelet"] * 10
    with pytest.raises(DataError) as caught:
        open_dataset(save(root, table, "cells.csv"))
    said = str(caught.value)
    assert said.startswith(f'{root / "cells.csv"}: class "monocyte" has no usable image (20 × cann')
    assert "such as p/00.PNG: " in said and "p/00.png is there" in said
    assert said.endswith("Correct the paths in cells.csv, or remove the class from it")


@pytest.mark.parametrize(
    ("column", "values", "ours"),
    [
        ("patient", ["P1", "P2", "P3", "P4"], "group"),
        ("Patient-ID", ["P1", "P2", "P3", "P4"], "group"),
        ("slide no.", ["7", "8"], "group"),
        ("PatientenNr", ["P1", "P2"], "group"),
        ("Fallnummer", ["11", "12", "13"], "group"),
        ("Ausstrich", ["a", "b", "c"], "group"),
        ("patient_uid", ["a", "b", "c"], "group"),
        ("ID Patient", ["a", "b", "c"], "group"),
        ("Probennummer", ["a", "b", "c"], "group"),
        ("WSI", ["a", "b", "c"], "group"),
        ("subset", ["Train", "test", "val", "train"], "split"),
        ("phase", ["TRAIN", "EVAL"], "split"),
        ("part of study", ["train", "train", "hold-out"], "split"),
        ("cohort", ["internal test", "external test", "training"], "split"),
        ("Pt_ID", ["a", "b", "c"], "group"),
        ("study id", ["a", "b", "c"], "group"),
        ("LabNo", ["1", "2", "3"], "group"),
        ("Einsender", ["a", "b", "c"], "group"),
        ("is_test", ["0", "1"], "split"),
        ("in_train", ["yes", "no"], "split"),
        ("Hold-out", ["True", "False"], "split"),
        ("cv", ["trn", "tst"], "split"),
        ("use", ["derivation", "validation"], "split"),
        ("use", ["Trainset", "Testset"], "split"),
        ("fold", ["0", "1", "2"], "split"),
    ],
)
def test_a_column_that_may_be_group_or_split_is_a_problem(root, column, values, ours):
    table = plain().assign(**{column: [values[i // 2 % len(values)] for i in range(40)]})
    found = open_dataset(save(root, table, "cells.csv"), columns={ours: column})
    assert not found.report["reason"].str.startswith("column not read").any()
    for place in ("table", "folder"):
        if place == "folder":
            table["path"] = [
                f"{k}/{p[2:]}" for k, p in zip(table["label"], table["path"], strict=True)
            ]
            save(in_folders(root), table)
        source = root / "cells.csv" if place == "table" else root
        cells = open_dataset(source)
        told = [x for x in cells.report["reason"] if x.startswith("column not read: ")]
        assert len(told) == 1 and f'--columns {ours}="{column.lower()}"' in told[0]
        assert any(told[0].partition(": ")[2] in problem for problem in inspect(cells).problems)
        with pytest.raises(BookError, match=re.escape(f"data: {told[0]}.")):
            load_profile("smoke", [f"data={source}"], data=True)


def test_columns_of_another_meaning_are_no_problem(root):
    facts = {"patient": "one", "case": [str(k) for k in range(40)], "set": ["train", "new"] * 20}
    facts |= {"slide": ["unknown", "P1"] * 20, "fall": ["control", "disease"] * 20}
    facts |= {"donor blood group": ["A", "B", "AB", "0"] * 10, "slide position": ["1", "2"] * 20}
    facts |= {"patient age": [str(30 + k // 4) for k in range(40)], "partition": ["a", "b"] * 20}
    facts |= {"slide stain": ["MGG", "Wright", "Giemsa", "May"] * 10, "valid": ["1", "1"] * 20}
    facts |= {"source": ["original", "copied"] * 20, "generated": ["0", "no"] * 20}
    facts |= {"note": ["tested", "test", "", ""] * 10, "light": ["natural", "artificial"] * 20}
    facts |= {"patient group": ["AML", "CML", "healthy", "ALL"] * 10, "real": ["yes", "yes"] * 20}
    facts |= {"specimen": ["blood", "marrow", "CSF", "pleura"] * 10, "val": ["1", "0"] * 20}
    facts |= {"device": ["test device", "train device"] * 20, "comment": ["fake", ""] * 20}
    facts |= {"microscope": ["Zeiss LED", "Leica"] * 20, "usage": ["0", "1", "2", "3"] * 10}
    cells = open_dataset(save(root, plain().assign(**facts), "cells.csv"))
    assert not cells.report["reason"].str.startswith("column not read").any()


def test_a_manifest_in_a_folder_whose_paths_have_another_name_is_refused(root):
    in_folders(root)
    save(root, plain().rename(columns={"path": "image"}).assign(group="P1"))
    with pytest.raises(DataError, match="no column 'path'"):
        open_dataset(root)


def test_a_manifest_in_a_folder_that_names_none_of_its_images_is_refused(root):
    in_folders(root)
    save(root, plain().assign(path=[f"D:\\cells\\{i}.png" for i in range(40)], group="P1"))
    with pytest.raises(DataError, match=r"none of its 40 paths names an image here, such as 'D:"):
        open_dataset(root)


def test_a_comma_at_the_end_of_rows_is_passed_over(root):
    rows = [f"p/{k:02d}.png,{'ab'[k % 2]}," for k in range(40)]
    for text in ("path,label\n" + "\n".join(rows), "path,label\n" + rows[0] + "\n" + "\n".join(
        row[:-1] for row in rows[1:]
    )):  # fmt: skip
        (root / "cells.csv").write_text(text + "\n")
        cells = open_dataset(root / "cells.csv")
        assert cells.class_names == ("a", "b") and len(cells) == 40


def test_columns_that_are_not_read_are_named_in_the_report(root):
    table = plain().assign(operator=["A", "B"] * 20, cell=[str(k) for k in range(40)], stain="MGG")
    (row,) = open_dataset(save(root, table, "cells.csv")).report.to_numpy().tolist()
    assert row[:3] == ["cells.csv", "", "kept"]
    assert row[3].startswith("columns without a meaning here: operator. One that names the patient")
    whole = table.assign(group="P1", split="train", origin="real")
    assert open_dataset(save(root, whole, "cells.csv")).report.empty


def test_a_row_that_says_more_than_the_head_names_is_refused(root):
    rows = [f"p/{k:02d}.png,{'ab'[k % 2]},P{k % 4}" for k in range(40)]
    (root / "cells.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match="row 1 has more fields than the first line has names"):
        open_dataset(root / "cells.csv")


def test_excel_s_own_line_names_the_separator(root):
    file = save(root, plain(), "cells.csv", sep=";")
    text = file.read_text()
    for head in ("sep=;", '"sep=;"', "SEP=;"):
        file.write_text(f"{head}\n{text}")
        assert len(open_dataset(file)) == 40


def test_generated_images_on_a_held_out_side_are_refused(root):
    table = plain().assign(split=["train"] * 20 + ["validation"] * 10 + ["test"] * 10)
    table["origin"] = ["synthetic" if i > 34 else "real" for i in range(40)]
    cells = open_dataset(save(root, table, "cells.csv"))
    with pytest.raises(DataError, match="5 generated images are published as test, such as p/3"):
        split(cells)
    table["split"] = table["split"].where(table["origin"] == "real", "train")
    parts = split(open_dataset(save(root, table, "cells.csv")))
    assert (parts["train"].table["origin"] == "synthetic").sum() == 5
    assert set(parts["test"].table["origin"]) == {"real"}


@pytest.mark.parametrize("place", [".", ".."])
def test_renamed_generated_images_are_not_taken_for_real_ones(root, place):
    """Converted and renamed files lose their text chunk and their row in the manifest."""
    in_folders(root)
    folder = (root / place).resolve()
    paths = sorted(path.relative_to(folder).as_posix() for path in root.glob("*/*.png"))
    rows = pd.DataFrame({"path": paths, "origin": ["synthetic"] * 3 + ["real"] * (len(paths) - 3)})
    save(folder, rows)
    assert (open_dataset(root).table["origin"] == "synthetic").sum() == 3
    new = [(folder / path).with_name(f"cell {k}.png") for k, path in enumerate(paths[:2])]
    for path, other in zip(paths, new, strict=False):
        (folder / path).rename(other)
    said = r"manifest\.csv: 2 of the 3 generated images that it names are not there, and 2 images"
    with pytest.raises(DataError, match=said):
        open_dataset(root)
    for path in new:  # somebody has sorted them out
        path.unlink()
    assert (open_dataset(root).table["origin"] == "synthetic").sum() == 1


@pytest.mark.parametrize(
    "word",
    ["#N/A N/A", "-1.#QNAN", "#DIV/0!", "#NAME?", "#NV", "NULL", "k.A.", "k. A.", "keine Angabe",
     "not known", "anonym", "unbek.", "-1", "kein Name", "not available", "x"],
)  # fmt: skip
def test_what_spreadsheets_write_for_nothing_is_no_patient(root, word):
    table = plain().assign(group=[word if i < 10 else f"P{i % 3}" for i in range(40)])
    cells = open_dataset(save(root, table))
    assert sorted(set(cells.table["group"])) == ["", "P0", "P1", "P2"]
