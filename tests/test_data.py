"""Opening, sorting out and dividing labelled images."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from cellaug.book.chapter import declared_parameters
from cellaug.data import (
    DataError,
    Dataset,
    concat,
    fetch,
    load_splits,
    locate,
    open_dataset,
    save_splits,
    split,
    splits,
)
from cellaug.data import scan as scan_module
from cellaug.data.dataset import as_table
from cellaug.data.images import fit_square, write_png
from cellaug.data.published import PBC_FINE, PBC_FOLDERS
from cellaug.data.splits import SEED, by_content, position

import cv2
import numpy as np
import pandas as pd
import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CELLAUG_DATA", raising=False)
    return tmp_path / "cache"


def picture(seed, height=16, width=16):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(kind, image):
    return cv2.imencode(kind, image)[1].tobytes()


def folder_of(root, classes, count=4, size=16):
    for k, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            write_png(root / name / f"{i}.png", picture(1000 * k + i, size, size))
    return root


def reasons(dataset):
    return dict(zip(dataset.report["path"], dataset.report["reason"], strict=True))


def test_import_is_light():
    code = "import sys, cellaug.data; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"keras", "tensorflow", "jax", "matplotlib", "IPython"} & set(loaded)


def test_clean_folder(tmp_path):
    root = folder_of(tmp_path / "cells", ["mono", "baso"], count=3)
    cells = open_dataset(root)
    assert cells.name == "cells"
    assert cells.class_names == ("baso", "mono")
    assert cells.labels.dtype == np.int64
    assert cells.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert len(cells) == 6
    assert cells.counts().to_dict() == {"baso": 3, "mono": 3}
    assert [p.name for p in cells.paths] == ["0.png", "1.png", "2.png"] * 2
    first = (root / "baso" / "0.png").read_bytes()
    assert cells.digests[0] == hashlib.sha256(first).hexdigest()
    assert cells.report.empty and [*cells.report] == ["path", "class", "outcome", "reason"]
    assert cells.credit == ""
    assert [*cells.table] == ["path", "class", "digest", "side", "group", "origin"]
    assert [*cells.table.iloc[4]] == ["mono/1.png", "mono", cells.digests[4], "", "", "real"]


def test_fingerprint_is_over_sorted_class_and_digest_pairs(tmp_path):
    cells = open_dataset(folder_of(tmp_path / "cells", ["a", "b"], count=2))
    names = ["a", "a", "b", "b"]
    lines = sorted(f"{n}\t{d}" for n, d in zip(names, cells.digests, strict=True))
    expected = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert cells.fingerprint == expected
    assert cells.subset([3, 1, 0, 2]).fingerprint == expected
    assert cells.subset([0, 1, 2]).fingerprint != expected


def test_subset_takes_indices_or_truth_values(tmp_path):
    cells = open_dataset(folder_of(tmp_path / "cells", ["a", "b"], count=2))
    chosen = cells.subset([3, 0])
    assert chosen.paths == (cells.paths[3], cells.paths[0])
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.digests == (cells.digests[3], cells.digests[0])
    assert cells.subset(cells.labels == 1).paths == cells.paths[2:]
    only_b = cells.subset(cells.labels == 1)
    assert only_b.counts().to_dict() == {"a": 0, "b": 2}
    assert len(cells.subset([])) == 0
    with pytest.raises(IndexError, match="1 instead of 4"):
        cells.subset(np.array([True]))


def test_sample_per_class(tmp_path):
    cells = open_dataset(folder_of(tmp_path / "cells", ["a", "b"], count=6))
    sample = cells.sample_per_class(4, seed=1)
    assert sample.labels.tolist() == [0] * 4 + [1] * 4
    assert len(set(sample.paths)) == 8
    assert sample.paths == cells.sample_per_class(4, seed=1).paths
    assert sample.paths != cells.sample_per_class(4, seed=2).paths
    assert len(cells.sample_per_class(100)) == 12


def test_concat(tmp_path):
    cells = open_dataset(folder_of(tmp_path / "cells", ["a", "b"]))
    both = concat([cells.subset([5, 0]), cells.subset([2])])
    assert both.paths == (cells.paths[5], cells.paths[0], cells.paths[2])
    assert both.labels.tolist() == [1, 0, 0] and both.labels.dtype == np.int64
    other = open_dataset(folder_of(tmp_path / "other", ["a", "c"]))
    with pytest.raises(DataError, match="cells and other have different classes"):
        concat([cells, other])


def test_a_set_in_memory(tmp_path):
    cells = open_dataset(folder_of(tmp_path / "cells", ["a", "b"]))
    held = cells.in_memory(8)
    assert held.fingerprint == cells.fingerprint and held.read(8) is held.images
    np.testing.assert_array_equal(held.images, cells.read(8))
    part = held.subset([5, 0])
    np.testing.assert_array_equal(part.images, held.images[[5, 0]])
    np.testing.assert_array_equal(concat([part, held]).images[2:], held.images)
    np.testing.assert_array_equal(part.read(4)[0], fit_square(part.images[0], 4))
    with pytest.raises(DataError, match="read both into memory, or none"):
        concat([held, cells])


def test_images_as_a_set():
    images = np.stack([picture(seed) for seed in range(3)])
    made = Dataset.of_images(images, [1, 0, 1], ("a", "b"), "made", "us", "synthetic")
    digest = hashlib.sha256(images[2].tobytes()).hexdigest()
    assert [*made.table.iloc[2]] == ["", "b", digest, "", "", "synthetic"]
    assert (made.name, made.credit, made.unlabelled) == ("made", "us", False)
    assert made.labels.tolist() == [1, 0, 1] and made.counts().to_dict() == {"a": 1, "b": 2}
    bare = Dataset.of_images(images, None, ())
    assert bare.unlabelled and bare.counts().to_dict() == {"cell": 3}


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4, 3)), [0, 0], "expected uint8 RGB images"),
        (np.zeros((2, 4, 5, 3), np.uint8), [0, 0], "expected square images"),
        (np.zeros((0, 4, 4, 3), np.uint8), [], "at least one"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], "labels must be 2 whole numbers from 0 to 1"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 2], "labels must be 2 whole numbers"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, -1], "labels must be 2 whole numbers"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0.5, 1.0], "labels must be 2 whole numbers"),
    ],
)
def test_images_that_make_no_set(images, labels, message):
    with pytest.raises(ValueError, match=f"made: .*{message}"):
        Dataset.of_images(images, labels, ("a", "b"), "made")


def test_copies(tmp_path):
    root = folder_of(tmp_path / "cells", ["a", "b", "c"])
    same = (root / "a" / "1.png").read_bytes()
    (root / "a" / "0copy.png").write_bytes(same)
    (root / "a" / "z.png").write_bytes(same)
    crossed = (root / "b" / "0.png").read_bytes()
    (root / "c" / "x.png").write_bytes(crossed)
    cells = open_dataset(root)
    assert cells.counts().to_dict() == {"a": 4, "b": 3, "c": 4}
    assert (root / "a" / "0copy.png").resolve() in cells.paths  # the first by path
    assert set(cells.report["outcome"]) == {"dropped"}
    assert reasons(cells) == {
        "a/1.png": "copy: of a/0copy.png",
        "a/z.png": "copy: of a/0copy.png",
        "b/0.png": "same image under another label: c/x.png (c)",
        "c/x.png": "same image under another label: b/0.png (b)",
    }


def test_a_copy_twice_in_one_class_and_once_in_another_is_dropped_everywhere(tmp_path):
    root = folder_of(tmp_path / "cells", ["a", "b"])
    data = (root / "a" / "0.png").read_bytes()
    (root / "a" / "second.png").write_bytes(data)
    (root / "b" / "third.png").write_bytes(data)
    cells = open_dataset(root)
    assert cells.counts().to_dict() == {"a": 3, "b": 4}
    assert set(reasons(cells)) == {"a/0.png", "a/second.png", "b/third.png"}


def test_every_bad_file_is_reported_and_the_terminal_stays_quiet(tmp_path, capfd):
    root = folder_of(tmp_path / "cells", ["a", "b"])
    a = root / "a"
    jpeg, png = encoded(".jpg", picture(7, 64, 64)), encoded(".png", picture(8, 64, 64))
    (a / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (a / "cut.png").write_bytes(png[: len(png) // 2])
    spoilt = bytearray(png)
    spoilt[len(png) // 2] ^= 255
    (a / "spoilt.png").write_bytes(spoilt)
    (a / "half.bmp").write_bytes(encoded(".bmp", picture(9))[:200])
    (a / "empty.jpg").write_bytes(b"")
    (a / "notes.txt").write_text("slide 7, see the log book")
    (a / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (a / "float.tiff").write_bytes(encoded(".tiff", np.zeros((16, 16), np.float32)))
    write_png(a / "tiny.png", picture(10, 7, 30))
    write_png(a / ".hidden.png", picture(11))
    write_png(a / "._0.png", picture(12))
    (a / "Thumbs.db").write_bytes(b"x")
    (a / "deeper").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "readme.txt").write_text("hello")
    cells = open_dataset(root)
    assert cells.counts().to_dict() == {"a": 4, "b": 4}
    assert reasons(cells) == {
        "a/cut.jpg": "truncated JPEG (no end marker)",
        "a/cut.png": "truncated PNG (no IEND chunk)",
        "a/spoilt.png": "damaged image (cannot be decoded)",
        "a/half.bmp": "damaged image (cannot be decoded)",
        "a/empty.jpg": "empty file",
        "a/notes.txt": "not an image",
        "a/gone.png": "cannot be read (No such file or directory)",
        "a/float.tiff": "float32 values (expected 8- or 16-bit whole numbers; convert it)",
        "a/tiny.png": "too small: 30×7 pixels, expected at least 8 on each side",
        "a/.hidden.png": "hidden or system clutter",
        "a/._0.png": "hidden or system clutter",
        "a/Thumbs.db": "hidden or system clutter",
        "a/deeper": "a folder inside a class folder; what it holds is not read",
        "__MACOSX": "hidden or system clutter",
        "readme.txt": "outside the class folders",
    }
    assert set(cells.report["outcome"]) == {"dropped"}
    assert capfd.readouterr() == ("", "")
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_conversions_are_kept_and_reported(tmp_path):
    root = folder_of(tmp_path / "cells", ["a", "b"])
    grey16 = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    (root / "a" / "grey16.png").write_bytes(encoded(".png", grey16))
    (root / "b" / "alpha.png").write_bytes(encoded(".png", np.zeros((16, 16, 4), np.uint8)))
    write_png(root / "b" / "wide.png", picture(9, 16, 20))
    cells = open_dataset(root)
    assert len(cells) == 11
    assert set(cells.report["outcome"]) == {"converted"}
    assert reasons(cells) == {
        "a/grey16.png": "16-bit scaled to 8-bit; grey repeated to RGB",
        "b/alpha.png": "transparency laid over white",
        "b/wide.png": "other size: 20×16 where most have 16×16; centre cropped and resized",
    }


def test_a_set_of_one_oblong_size_is_normal(tmp_path):
    root = folder_of(tmp_path / "cells", ["a"])
    for file in root.glob("a/*"):
        write_png(file, picture(int(file.stem), 36, 37))
    assert open_dataset(root).report.empty


def test_second_opening_reads_no_image(tmp_path, monkeypatch, cache):
    root = folder_of(tmp_path / "cells", ["a", "b"])
    first = open_dataset(root)
    assert len(list((cache / "index").iterdir())) == 1
    looked = []
    look = scan_module._look
    monkeypatch.setattr(
        scan_module, "_look", lambda path: (looked.append(path.name), look(path))[1]
    )
    again = open_dataset(root)
    assert looked == []
    assert again.fingerprint == first.fingerprint
    write_png(root / "a" / "2.png", picture(77, 17, 17))  # another size
    old = (root / "b" / "3.png").stat()
    write_png(root / "b" / "3.png", picture(78))
    os.utime(root / "b" / "3.png", ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    write_png(root / "b" / "new.png", picture(79))
    (root / "a" / "0.png").unlink()
    third = open_dataset(root)
    assert sorted(looked) == ["2.png", "3.png", "new.png"]
    assert len(third) == 8
    fresh = hashlib.sha256((root / "b" / "3.png").read_bytes()).hexdigest()
    assert fresh in third.digests


def test_damaged_index_is_made_anew(tmp_path, cache):
    root = folder_of(tmp_path / "cells", ["a"])
    first = open_dataset(root)
    (index,) = (cache / "index").iterdir()
    for text in ("", "[]", '{"format": "0"}', json.dumps({"format": scan_module._FORMAT})):
        index.write_text(text)
        assert open_dataset(root).fingerprint == first.fingerprint
        assert json.loads(index.read_text())["files"]


def test_unwritable_cache_is_only_a_warning(tmp_path, monkeypatch):
    root = folder_of(tmp_path / "cells", ["a"])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="set CELLAUG_CACHE"):
        assert len(open_dataset(root)) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "absent", "no such folder"),
        (lambda root: root / "file", "is a file, but no manifest"),
        (lambda root: root / "bare", "no classes"),
        (lambda root: root / "hollow", '"b" has no usable image \\(no files\\)'),
        (lambda root: root / "spoilt", '"b" has no usable image \\(2 × empty file\\)'),
        (lambda root: "pcb", "Give phantom, pbc"),
    ],
)
def test_unusable_sources(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "bare" / ".git").mkdir(parents=True)
    folder_of(tmp_path / "hollow", ["a"])
    (tmp_path / "hollow" / "b").mkdir()
    folder_of(tmp_path / "spoilt", ["a"])
    (tmp_path / "spoilt" / "b").mkdir()
    for name in "xy":
        (tmp_path / "spoilt" / "b" / name).write_bytes(b"")
    with pytest.raises(DataError, match=message):
        open_dataset(make(tmp_path))


def test_unknown_options(tmp_path):
    with pytest.raises(DataError, match="unknown option sise: phantom takes classes, images, size"):
        open_dataset("phantom", sise=64)
    with pytest.raises(DataError, match="unknown option size"):
        open_dataset("pbc", size=64)


def pbc_like(home):
    """A drawn set in the form of PBC, with its faults."""
    root = home / "PBC_dataset_normal_DIB"
    prefixes = {
        "neutrophil": ["SNE", "BNE", "NEUTROPHIL"],
        "eosinophil": ["EO"],
        "basophil": ["BA"],
        "lymphocyte": ["LY"],
        "monocyte": ["MO"],
        "ig": ["PMY", "MY", "MMY", "IG"],
        "erythroblast": ["ERB"],
        "platelet": ["PLATELET"],
    }
    seed = 0
    for folder, kinds in prefixes.items():
        (root / folder).mkdir(parents=True)
        for kind in kinds:
            for i in range(2):
                seed += 1
                data = encoded(".jpg", picture(seed))
                (root / folder / f"{kind}_{100 + i}.jpg").write_bytes(data)
    (root / "neutrophil" / ".DS_169665.jpg").write_bytes(b"\0\0\0\1Bud1")
    data = (root / "eosinophil" / "EO_100.jpg").read_bytes()
    (root / "neutrophil" / "BNE_7.jpg").write_bytes(data)
    data = (root / "ig" / "MY_100.jpg").read_bytes()
    (root / "ig" / "MMY_7.jpg").write_bytes(data)
    return root


@pytest.mark.parametrize("variable", ["CELLAUG_DATA", "CELLAUG_CACHE"])
@pytest.mark.parametrize("below", ["pbc", "."])
def test_pbc_coarse_and_fine(tmp_path, monkeypatch, variable, below):
    root = pbc_like(tmp_path / "home" / below)
    monkeypatch.setenv(variable, str(tmp_path / "home"))
    coarse = open_dataset("pbc")
    assert coarse.root == locate("pbc") == root.resolve()
    assert coarse.class_names == PBC_FOLDERS
    several = {"eosinophil": 1, "ig": 8, "neutrophil": 6}
    assert coarse.counts().to_dict() == dict.fromkeys(PBC_FOLDERS, 2) | several
    assert "10.17632/snkd93bnjr.1" in coarse.credit and "CC BY 4.0" in coarse.credit
    fine = open_dataset("pbc-fine")
    assert fine.class_names == tuple(PBC_FINE.values()) and len(fine.class_names) == 11
    # A myelocyte's copy among the metamyelocytes takes both out.
    fewer = {"myelocyte": 1, "eosinophil": 1}
    assert fine.counts().to_dict() == dict.fromkeys(PBC_FINE.values(), 2) | fewer
    unspecified = [p for p, r in reasons(fine).items() if r == "finer label not specified"]
    assert sorted(unspecified) == [
        "ig/IG_100.jpg",
        "ig/IG_101.jpg",
        "neutrophil/NEUTROPHIL_100.jpg",
        "neutrophil/NEUTROPHIL_101.jpg",
    ]
    assert reasons(fine)["neutrophil/.DS_169665.jpg"] == "hidden or system clutter"
    labels = {p.name: fine.class_names[k] for p, k in zip(fine.paths, fine.labels, strict=True)}
    assert labels["MMY_100.jpg"] == "metamyelocyte" and labels["MY_101.jpg"] == "myelocyte"


def test_pbc_absent_says_both_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError) as caught:
        open_dataset("pbc")
    for part in ("elsewhere", "cache", "cellaug fetch pbc", "CELLAUG_DATA"):
        assert part in str(caught.value)


def test_position_by_hand():
    digest = "ab" * 32
    whole = hashlib.sha256(f"3\tmyelocyte\t{digest}".encode()).digest()
    assert position(digest, "myelocyte", 3) == (int.from_bytes(whole[:8], "big") // 2048) / 2**53
    assert position(digest, "myelocyte", 3) != position(digest, "metamyelocyte", 3)


def test_published_sets_are_split_by_content(tmp_path):
    """Sets opened by name; here it is of two classes of 60 images."""
    cells = open_dataset(folder_of(tmp_path / "cells", ["a", "b"], count=60, size=8))
    cells = replace(cells, name="pbc", credit="named")
    assert by_content(cells)
    parts = split(cells, seed=5)
    assert list(parts) == ["train", "validation", "test"]
    bounds = {"train": (0, 0.7), "validation": (0.7, 0.85), "test": (0.85, 1)}
    for name, part in parts.items():
        low, high = bounds[name]
        for digest, label in zip(part.digests, part.labels, strict=True):
            assert low <= position(digest, cells.class_names[label], 5) < high
    together = [path for part in parts.values() for path in part.paths]
    assert sorted(together) == sorted(cells.paths)
    assert split(cells, seed=6)["train"].paths != parts["train"].paths
    half = split(cells.subset(np.arange(0, 120, 2)), seed=5)
    for name, part in half.items():
        assert set(part.paths) <= set(parts[name].paths)


def test_own_sets_are_split_in_exact_fractions(tmp_path):
    cells = open_dataset(folder_of(tmp_path / "pbc", ["a", "b"], count=40, size=8))
    assert not by_content(cells)  # the folder's name makes it no published set
    parts = split(cells, seed=5)
    counts = {name: part.counts().tolist() for name, part in parts.items()}
    assert counts == {"train": [28, 28], "validation": [6, 6], "test": [6, 6]}
    # In the order of the positions: an image of the training part lies before all others.
    for label in (0, 1):
        order = [
            max(position(d, "ab"[label], 5) for d in part.of_class(label).digests)
            for part in parts.values()
        ]
        assert order == sorted(order)
    backwards = split(cells.subset(np.arange(80)[::-1]), seed=5)
    assert {n: set(p.paths) for n, p in backwards.items()} == {
        n: set(p.paths) for n, p in parts.items()
    }
    assert set(split(cells, seed=6)["test"].paths) != set(parts["test"].paths)
    default = split(cells)
    assert default["test"].paths == split(cells, seed=SEED)["test"].paths
    assert SEED == declared_parameters("01_data")["seed"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(3, [1, 1, 1]), (4, [2, 1, 1]), (7, [5, 1, 1]), (20, [14, 3, 3]), (100, [70, 15, 15])],
)
def test_every_part_of_a_small_class_has_an_image(count, expected):
    places = np.random.default_rng(count).random(count)
    found = splits._by_rank(places, np.array([0.7, 0.15, 0.15]))
    assert np.bincount(found).tolist() == expected
    four = splits._by_rank(places, np.array([0.4, 0.4, 0.1, 0.1]))
    assert count < 4 or np.bincount(four, minlength=4).min() >= 1


def test_copies_stay_together_where_a_class_is_cut():
    places = np.repeat([0.1, 0.2, 0.3, 0.4], [1, 4, 4, 1])
    found = splits._by_rank(places, np.array([0.5, 0.5]))
    assert found.tolist() == [0] * 5 + [1] * 5


def test_more_images_move_few_of_the_old_ones():
    """5 % more images, 20 times: on average under 1 % change their part, never more than 3 %."""
    shares, rng, moved = np.array([0.7, 0.15, 0.15]), np.random.default_rng(0), []
    for _ in range(20):
        places = rng.random(630)
        before, after = splits._by_rank(places[:600], shares), splits._by_rank(places, shares)
        moved.append((before != after[:600]).mean())
    assert np.mean(moved) < 0.01 and max(moved) < 0.03


def test_images_of_pbc_are_split_by_content_wherever_they_lie():
    """A quarter of known digests is enough; other real images stay with them."""
    known = np.fromfile(fetch.DIGESTS, np.uint8).reshape(-1, 8)[:30]
    digests = [bytes(first).hex() + "0" * 48 for first in known]
    digests += [hashlib.sha256(bytes([i])).hexdigest() for i in range(90)]
    columns = {"path": [str(i) for i in range(120)], "class": "a", "digest": digests}
    table = as_table(pd.DataFrame(columns), ["a"])
    report = pd.DataFrame(columns=["path", "class", "outcome", "reason"])
    cells = Dataset("mine", Path("/none"), ("a",), table, report)
    assert by_content(cells) and not by_content(cells.subset(range(1, 120)))
    expected = [d for d in digests if position(d, "a", 1) < 0.7]
    assert list(split(cells)["train"].digests) == expected
    # Generated images beside them do not count.
    made = as_table(pd.DataFrame(columns | {"origin": "synthetic", "digest": "ff" * 32}), ["a"])
    assert by_content(concat([cells, replace(cells, table=made)]))


def test_split_complaints(tmp_path):
    cells = open_dataset(folder_of(tmp_path / "cells", ["a", "b"], count=2))
    with pytest.raises(DataError, match=r'class "a" has only 2 images, .*"test".*3 splits need'):
        split(cells)
    for fractions in ({"train": 0.7}, {"train": 1.2, "test": -0.2}, {}, {"train": 1, "test": 0}):
        with pytest.raises(DataError, match="positive and sum to 1"):
            split(cells, fractions)


def test_generated_images_are_only_trained_on(tmp_path):
    cells = open_dataset(folder_of(tmp_path / "cells", ["a", "b"], count=20))
    made = cells.table["path"].str.contains(r"/1\d\.png")
    cells = replace(cells, table=cells.table.assign(origin=np.where(made, "synthetic", "real")))
    parts = split(cells, {"generator": 0.4, "classifier": 0.4, "test": 0.2})
    assert [len(part) for part in parts.values()] == [8, 28, 4]
    assert (parts["classifier"].table["origin"] == "synthetic").sum() == 20
    parts = split(cells)
    assert (parts["train"].table["origin"] == "synthetic").sum() == 20
    assert [len(part) for part in parts.values()] == [34, 4, 2]
    cells.table.loc[cells.table["class"] == "b", "origin"] = "synthetic"
    with pytest.raises(DataError, match='all 20 images of class "b" are generated'):
        split(cells)


def test_splits_are_saved_and_loaded(tmp_path):
    cells = open_dataset("phantom", classes=2, images=80, size=16)
    parts = split(cells, seed=0)
    file = save_splits(parts, tmp_path)
    assert file == tmp_path / "splits.parquet"
    loaded = load_splits(tmp_path)
    assert list(loaded) == list(parts)
    for name, part in parts.items():
        again = loaded[name]
        assert again.paths == part.paths and again.root == part.root
        assert again.labels.tolist() == part.labels.tolist() and again.labels.dtype == np.int64
        assert again.digests == part.digests and again.fingerprint == part.fingerprint
        assert again.credit == part.credit and again.class_names == part.class_names
        pd.testing.assert_frame_equal(again.table, part.table)
        pd.testing.assert_frame_equal(again.report, part.report)
    Path(parts["test"].paths[0]).unlink()
    with pytest.raises(DataError, match="gone"):
        load_splits(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        load_splits(tmp_path / "other")


def test_names_with_odd_characters(tmp_path):
    root = folder_of(tmp_path / "Zellen ä", ["Stabkernige (jung)", "b c"], count=2)
    odd = os.fsencode(root / "b c") + b"/\xff.png"
    Path(os.fsdecode(odd)).write_bytes(encoded(".png", picture(5)))
    cells = open_dataset(root)
    assert cells.counts().to_dict() == {"Stabkernige (jung)": 2, "b c": 3}
    assert open_dataset(root).fingerprint == cells.fingerprint
    assert len(cells.fingerprint) == 16


def test_of_class_and_sample(tmp_path):
    cells = open_dataset(folder_of(tmp_path / "cells", ["a", "b"], count=7)).subset(range(3, 14))
    assert {path.parent.name for path in cells.of_class(1).paths} == {"b"}
    assert len(cells.of_class(1)) == 7
    drawn = cells.sample(6, seed=2)
    assert len(set(drawn.paths)) == 6 and drawn.paths == cells.sample(6, seed=2).paths
    assert drawn.paths != cells.sample(6, seed=3).paths
    assert sorted(cells.sample(99).paths) == sorted(cells.paths)


def test_class_names_fix_the_order(tmp_path):
    cells_at = folder_of(tmp_path / "cells", ["a", "b"], count=1)
    cells = open_dataset(cells_at, class_names=("b", "a"))
    assert cells.class_names == ("b", "a")
    assert [cells.class_names[label] for label in cells.labels] == ["b", "a"]
    assert [path.parent.name for path in cells.paths] == ["b", "a"]
    with pytest.raises(DataError, match="class_names are a, c, but the classes a, b"):
        open_dataset(cells_at, class_names=("a", "c"))
    with pytest.raises(DataError, match="unknown option size"):
        open_dataset(cells_at, size=3)


def test_outcomes_count_by_kind(tmp_path):
    cells_at = folder_of(tmp_path / "cells", ["a"], count=1)
    assert open_dataset(cells_at).outcomes().empty
    for index in (1, 2):
        write_png(cells_at / "a" / f"{index}.png", picture(0))
    (cells_at / "a" / "3.png").write_bytes(b"")
    assert open_dataset(cells_at).outcomes().to_numpy().tolist() == [
        ["dropped", "copy", 2],
        ["dropped", "empty file", 1],
    ]


def test_copies_whose_names_are_no_text(tmp_path):
    root, odd = folder_of(tmp_path / "cells", ["a", "b"]), os.fsdecode(b"\xff.png")
    for name in ("a", "b"):
        (root / name / odd).write_bytes((root / name / "1.png").read_bytes())
    (root / "b" / f"2{odd}").write_bytes((root / "a" / "2.png").read_bytes())
    listed = "".join(f"{path.relative_to(root).as_posix()},x\n" for path in root.glob("a/*"))
    file = root / "manifest.csv"
    file.write_bytes(os.fsencode(f"path,label\n{listed}a/{odd},x\nb/{odd},x\n../{odd},x\n"))
    assert reasons(open_dataset(root)) == {
        f"a/{odd}": "copy: of a/1.png",
        f"b/{odd}": "copy: of b/1.png",
        "a/2.png": f"same image under another label: b/2{odd} (b)",
        f"b/2{odd}": "same image under another label: a/2.png (a)",
        "manifest.csv": "outside the class folders",
    }
    cells = open_dataset(file)
    assert cells.root / "b" / odd in cells.paths and len(cells) == 5
    assert cells.report["path"].tolist() == [f"../{odd}", f"a/{odd}", f"a/{odd}"]
    assert cells.report["reason"][1:].tolist() == ["copy: of a/1.png", "listed twice (row 6)"]
