"""What must not change: data hashes and splits, images of the shipped weights, one evaluation.

The shipped generators are free of test images only while an image keeps its split, so these values
were written down once (`tests/pins.json`) and no later version may differ, but for the splits of a
user's own set, which are stratified since, and the evaluation, which belongs to the shipped
extractor of today. Numbers of networks are compared with a tolerance, since processors round
differently; the rest to the last bit.
"""

import hashlib
import json
import os
from pathlib import Path

from cellaug import load_generator
from cellaug.cli import main
from cellaug.data import open_dataset, split
from cellaug.data.splits import position

import cv2
import numpy as np
import pytest

PINS = json.loads(Path(__file__).with_name("pins.json").read_text())
PBC = Path(os.environ.get("CELLAUG_DATA", Path(__file__).parents[2] / "shared" / "data"))
FRACTIONS = {"generator": 0.35, "train": 0.35, "validation": 0.15, "test": 0.15}


def hashes(cells):
    """Number of images and data hash of a set and of the parts of two splits."""
    found = {"all": [len(cells), cells.fingerprint]}
    for label, fractions in (("three", None), ("four", FRACTIONS)):
        parts = split(cells, fractions, seed=1) if fractions else split(cells, seed=1)
        for side, part in parts.items():
            found[f"{label} {side}"] = [len(part), part.fingerprint]
    return found


def written(folder):
    """A set whose bytes no library makes: PPM files of three classes, some of them in groups."""
    rows = ["path,label,group"]
    for number in range(240):
        label = ("lymphocyte", "monocyte", "größe")[number % 7 % 3]
        body = np.random.default_rng([number, 9]).integers(0, 256, 8 * 8 * 3, np.uint8).tobytes()
        (folder / f"{number}.ppm").write_bytes(b"P6 8 8 255\n" + body)
        rows.append(f"{number}.ppm,{label},{f'patient {number % 11}' if number % 3 else ''}")
    (folder / "cells.csv").write_text("\n".join(rows) + "\n", "utf-8")
    return open_dataset(folder / "cells.csv")


def phantoms(options):
    """A drawn set, and the means over 8×8 blocks of the first image of each class."""
    cells = open_dataset("phantom", **json.loads(options))
    return cells, blocks(cells.sample_per_class(1, seed=0).read(64))


def blocks(images):
    """Means over 8×8 blocks of square images: (N, 8, 8, 3)."""
    block = images.shape[1] // 8
    return np.round(images.reshape(len(images), 8, block, 8, block, 3).mean((2, 4)), 2)


def places():
    """Positions of the published PBC images whose digests the package knows, a hash of them."""
    known = (Path(__file__).parents[1] / "cellaug" / "data" / "pbc_digests.bin").read_bytes()
    digests = [known[i : i + 8].hex() * 4 for i in range(0, len(known), 8)]
    rows = [position(d, "platelet", seed).hex() for seed in (0, 1) for d in digests]
    return [len(digests), hashlib.sha256("\n".join(rows).encode()).hexdigest()]


def drawn(name):
    generator = load_generator(name)
    many = 1 if generator.class_names else 4
    return blocks(generator.generate(generator.class_names or None, many, 7))


def evaluated(folder, capsys):
    """Every value of `cellaug evaluate`: phantoms, and blurred phantoms of another seed."""
    real, training, made = (
        open_dataset("phantom", classes=4, images=320, size=64, seed=seed).root
        for seed in (5, 6, 7)
    )
    for file in made.glob("*/*.png"):
        target = folder / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), cv2.blur(cv2.imread(str(file)), (3, 3)))
    given = [str(real), str(folder), "--reference", str(training), "--no-cas", "--seed", "3"]
    assert main(["evaluate", *given, "--features", "shipped", "--json"]) == 0
    keys = ["value", "low", "high", "real", "real_low", "real_high", "ratio", "gap", "p"]
    return {
        f"{row['level']}, {row['group']}, {row['measure']}": [row[key] for key in keys]
        for row in json.loads(capsys.readouterr().out)["table"]
    }


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_files_keep_their_data_hash_and_splits(tmp_path):
    assert hashes(written(tmp_path)) == PINS["written"]


@pytest.mark.parametrize("options", PINS["phantom"])
def test_phantoms_keep_their_images_and_splits(options):
    cells, means = phantoms(options)
    expected = PINS["phantom"][options]
    assert cells.counts().tolist() == expected["counts"]
    assert np.abs(means - np.array(expected["means"])).max() < 1.0
    if cells.fingerprint != expected["hashes"]["all"][1]:
        pytest.skip("this processor rounds the drawings' last bits in another way")
    assert hashes(cells) == expected["hashes"]


def test_published_images_keep_their_positions():
    assert places() == PINS["positions"]


@pytest.mark.skipif(not (PBC / "pbc").is_dir(), reason="the PBC images are not on this machine")
@pytest.mark.parametrize("name", ["pbc", "pbc-fine"])
def test_pbc_keeps_its_splits(name, monkeypatch):
    monkeypatch.setenv("CELLAUG_DATA", str(PBC))
    assert hashes(open_dataset(name)) == PINS[name]


@pytest.mark.parametrize("name", PINS["drawn"])
def test_shipped_weights_draw_the_same_images(name):
    expected = np.array(PINS["drawn"][name])
    assert np.abs(drawn(name) - expected).max() < 1.0  # grey levels of 255


@pytest.mark.no_cover  # other tests cover what the package has of this
def test_an_evaluation_gives_the_same_numbers(tmp_path, capsys):
    found, expected = evaluated(tmp_path, capsys), PINS["evaluated"]
    new = found.keys() - expected.keys()
    assert expected.keys() <= found.keys() and all(name.endswith(", colours") for name in new)
    for name, values in expected.items():
        for mine, theirs in zip(found[name], values, strict=True):
            if theirs is None:
                assert mine is None, name
            else:
                assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-3), name
