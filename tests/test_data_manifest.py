"""Manifests: what they may say, and splits that keep groups and published sides together."""

from cellaug.data import DataError, concat, load_splits, open_dataset, save_splits, split
from cellaug.data.images import write_png
from cellaug.data.published import BLOODMNIST_CLASSES

import numpy as np
import pandas as pd
import pytest


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
    outside = f"outside the manifest's folder: expected a path below {root}"
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
    bare = root / "p"
    save(bare, plain())
    with pytest.raises(DataError, match=r"no classes.*Give .*manifest\.csv to open its manifest"):
        open_dataset(bare)


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
        ["p/01.png", "lymphocyte", "dropped", "copy: of p/39.png"]
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
