"""Tests of cellaug.augmentation."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

from cellaug import cli
from cellaug.augmentation import augment, generate, load_generator, save_generator
from cellaug.data import DataError, open_dataset, read_image
from cellaug.data.images import write_png

import keras
import numpy as np
import pandas as pd
import pytest

NAMES = ("band neutrophil", "eosinophil", "platelet")
LATENT, SIZE = 6, 16


def network(conditional=True):
    """A generator of a few weights: the class sets the colour, the latent vector the texture."""
    keras.utils.set_random_seed(1)
    latent = keras.Input((LATENT,), name="latent")
    x = keras.layers.Dense(4 * 4 * 8)(latent)
    inputs = latent
    if conditional:
        label = keras.Input((), dtype="int32", name="label")
        colour = keras.layers.Embedding(len(NAMES), 4 * 4 * 8, embeddings_initializer="normal")
        x = keras.layers.Add()([x, colour(label)])
        inputs = [latent, label]
    x = keras.layers.BatchNormalization()(keras.layers.Reshape((4, 4, 8))(x))
    x = keras.layers.Conv2DTranspose(3, 5, strides=4, padding="same", activation="tanh")(x)
    return keras.Model(inputs, x)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A folder of labelled cells: 5 band neutrophils, 4 eosinophils, 2 platelets."""
    folder = tmp_path_factory.mktemp("cells") / "cells"
    rng = np.random.default_rng(0)
    for name, count in zip(NAMES, (5, 4, 2), strict=True):
        for i in range(count):
            (folder / name).mkdir(parents=True, exist_ok=True)
            write_png(folder / name / f"{i}.png", rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
    return folder


@pytest.fixture
def dataset(cells, tmp_path, monkeypatch):
    """The same folder, opened."""
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    return replace(open_dataset(cells), credit="Somebody, CC BY 4.0")


@pytest.fixture
def saved(tmp_path, dataset):
    """A generator directory."""
    return save_generator(
        network(), tmp_path / "gen", class_names=NAMES, latent_dim=LATENT, dataset=dataset
    )


def contents(folder):
    """Every file below a folder with its bytes."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- the generator directory -------------------------------------------------------------------


def test_card_says_what_the_generator_is(saved, dataset):
    card = json.loads((saved / "generator.json").read_text())
    assert sorted(contents(saved)) == ["generator.json", "generator.keras"]
    assert card["class_names"] == list(NAMES)
    assert (card["image_size"], card["latent_dim"], card["conditional"]) == (SIZE, LATENT, True)
    assert (card["data_name"], card["data_hash"]) == (dataset.name, dataset.fingerprint)
    assert card["credit"] == "Somebody, CC BY 4.0"
    generator = load_generator(saved)
    assert generator.class_names == NAMES and generator.data_hash == dataset.fingerprint
    digest = hashlib.sha256((saved / "generator.keras").read_bytes()).hexdigest()
    assert generator.digest == digest and digest[:16] in generator.source


def test_images_are_the_network_at_the_stated_latents(saved):
    images = load_generator(saved).generate(["eosinophil", 0, "platelet"], seed=5)
    latents = np.random.default_rng(5).standard_normal((3, LATENT)).astype("float32")
    floats = keras.ops.convert_to_numpy(network()([latents, np.array([1, 0, 2])], training=False))
    assert images.dtype == np.uint8 and images.shape == (3, SIZE, SIZE, 3)
    assert np.abs(images - (floats * 127.5 + 127.5)).max() <= 0.51


def test_count_repeats_each_label_and_more_images_extend_fewer(saved):
    generator = load_generator(saved)
    twice = generator.generate(["platelet", "eosinophil"], 2, seed=1)
    spelled = generator.generate([2, 2, 1, 1], seed=1)
    assert np.array_equal(twice, spelled)
    many = generator.generate("platelet", 70, seed=3)  # three batches
    assert np.array_equal(many[:5], generator.generate("platelet", 5, seed=3))
    assert not np.array_equal(many[0], many[1]) and not np.array_equal(many[32], many[64])
    assert generator.generate([], 3).shape == (0, SIZE, SIZE, 3)


def test_unconditional_generator(tmp_path, dataset):
    folder = save_generator(
        network(False), tmp_path / "g", class_names=(), latent_dim=LATENT, dataset=dataset
    )
    generator = load_generator(folder)
    assert not generator.conditional and generator.generate(count=3).shape[0] == 3
    with pytest.raises(DataError, match="takes no label"):
        generator.generate("platelet")
    with pytest.raises(DataError, match="no label to train on"):
        augment(dataset, generator, 0.5, tmp_path / "out")
    manifest = generate(generator, None, 2, tmp_path / "out", seed=4)
    assert manifest["file"].tolist() == ["cell_4_00000.png", "cell_4_00001.png"]
    drawn = read_image(tmp_path / "out" / "cell_4_00001.png", SIZE)
    assert np.array_equal(drawn, generator.generate(None, 2, seed=4)[1])


def test_unknown_classes_are_named(saved):
    generator = load_generator(saved)
    for label in ("monocyte", 3, -1):
        with pytest.raises(DataError, match=f"knows no class {label!r}; its classes are band"):
            generator.generate(["platelet", label])
    with pytest.raises(DataError, match="say which of band neutrophil"):
        generator.generate(count=2)


def test_both_backends_draw_the_same_cells(saved, tmp_path):
    code = (
        "import sys, numpy as np; from cellaug.augmentation import load_generator;"
        "images = load_generator(sys.argv[1]).generate([0, 1, 2], 4, seed=9);"
        "np.save(sys.argv[2], images)"
    )
    other = "tensorflow" if keras.backend.backend() == "jax" else "jax"
    subprocess.run(
        [sys.executable, "-c", code, str(saved), str(tmp_path / "images.npy")],
        env=os.environ | {"KERAS_BACKEND": other, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=True,
    )
    there = np.load(tmp_path / "images.npy").astype(int)
    here = load_generator(saved).generate([0, 1, 2], 4, seed=9).astype(int)
    assert here.std() > 5 and np.abs(here - there).max() <= 1


def test_saving_replaces_a_generator_but_nothing_else(saved, dataset):
    other = network()
    other.set_weights([weight * 0 for weight in other.get_weights()])
    options = {"class_names": NAMES, "latent_dim": LATENT, "dataset": dataset}
    save_generator(other, saved, **options)
    assert np.unique(load_generator(saved).generate(0)).tolist() == [128]
    (saved / "notes.txt").write_text("mine")
    before = contents(saved)
    with pytest.raises(FileExistsError, match="notes"):
        save_generator(network(), saved, **options)
    assert contents(saved) == before
    assert not list(saved.parent.glob(".*"))


def test_saving_refuses_what_is_no_generator(tmp_path, dataset):
    flat = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="square RGB"):
        save_generator(flat, tmp_path / "g", class_names=NAMES, latent_dim=3, dataset=dataset)
    with pytest.raises(ValueError, match="needs the names"):
        save_generator(
            network(), tmp_path / "g", class_names=(), latent_dim=LATENT, dataset=dataset
        )
    assert not (tmp_path / "g").exists()


def test_loading_says_what_is_wrong(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such generator"):
        load_generator(tmp_path / "nowhere")
    card_file, model_file = saved / "generator.json", saved / "generator.keras"
    text, model = card_file.read_text(), model_file.read_bytes()
    card = json.loads(text)

    for wrong, message in (
        ({"format": 2}, "expected format 1, found 2"),
        ({"latent_dim": "6"}, "latent_dim should be a int"),
        ({"conditional": False}, "do not belong together"),
        ({"image_size": 32}, "do not belong together"),
    ):
        card_file.write_text(json.dumps(card | wrong))
        with pytest.raises(DataError, match=message):
            load_generator(saved)
    card_file.write_text(text[:-5])
    with pytest.raises(DataError, match="expected JSON"):
        load_generator(saved)
    card_file.write_text(text)
    model_file.write_bytes(model[:1000])
    with pytest.raises(DataError, match="Keras cannot read"):
        load_generator(saved)
    model_file.unlink()
    with pytest.raises(FileNotFoundError, match="lacks generator"):
        load_generator(saved)


def test_loading_runs_no_code_from_the_file(tmp_path, dataset):
    latent = keras.Input((LATENT,))
    x = keras.layers.Reshape((1, 1, 3))(keras.layers.Dense(3)(latent))
    model = keras.Model(latent, keras.layers.Lambda(lambda t: t + 1)(x))
    folder = save_generator(
        model, tmp_path / "g", class_names=(), latent_dim=LATENT, dataset=dataset
    )
    assert b"lambda" in zipfile.ZipFile(folder / "generator.keras").read("config.json")
    with pytest.raises(DataError, match="safe"):
        load_generator(folder)


# --- writing images ----------------------------------------------------------------------------


def test_generate_writes_images_and_manifest(saved, tmp_path):
    generator = load_generator(saved)
    out = tmp_path / "deep" / "out"
    manifest = generate(generator, ["band neutrophil", "platelet"], 3, out, seed=7)
    assert len(manifest) == 6
    files = set(contents(out))
    assert files == {"manifest.csv", "CREDIT.txt", *manifest["file"]}
    assert manifest["file"][4] == "platelet_7_00001.png"
    assert manifest["file"][0] == "band-neutrophil_7_00000.png"
    pd.testing.assert_frame_equal(pd.read_csv(out / "manifest.csv"), manifest)
    row = manifest.iloc[4]
    expected = generator.generate(row["label"], row["index"] + 1, seed=(row["seed"], 2))[-1]
    assert np.array_equal(read_image(out / row["file"], SIZE), expected)
    # a class's images do not depend on which others are asked for
    generate(generator, "platelet", 2, tmp_path / "alone", seed=7)
    name = "platelet_7_00001.png"
    assert (tmp_path / "alone" / name).read_bytes() == (out / name).read_bytes()


def test_the_command_makes_every_class_unless_one_is_named(saved, tmp_path, capsys):
    words = ["generate", "--generator", str(saved), "--count", "2", "--out", str(tmp_path / "all")]
    assert cli.main(words) == 0
    manifest = pd.read_csv(tmp_path / "all" / "manifest.csv")
    names = load_generator(saved).class_names
    assert manifest["label"].value_counts().to_dict() == dict.fromkeys(names, 2)


def test_generate_refuses_before_it_writes(saved, tmp_path):
    generator = load_generator(saved)
    out = tmp_path / "out"
    for labels, count in ((["monocyte"], 1), (None, 1), (["platelet"], 0)):
        with pytest.raises(DataError):
            generate(generator, labels, count, out)
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        generate(generator, ["platelet"], 1, out)
    assert contents(out) == {"mine.txt": b"mine"}
    assert not list(tmp_path.glob(".*"))


# --- augmenting --------------------------------------------------------------------------------


def test_augment_adds_a_share_to_every_class(saved, dataset, cells, tmp_path):
    before = contents(cells)
    out = tmp_path / "augmented"
    manifest = augment(dataset, load_generator(saved), 0.5, out, seed=2)
    counts = manifest.groupby(["label", "origin"]).size().unstack()
    assert counts.loc[list(NAMES), "real"].tolist() == [5, 4, 2]
    assert counts.loc[list(NAMES), "synthetic"].tolist() == [3, 2, 1]  # 2.5 rounded up
    written = contents(out)
    assert set(written) == {"manifest.csv", "CREDIT.txt", *manifest["file"]}
    assert written["CREDIT.txt"] == b"Somebody, CC BY 4.0\n"
    assert {name: data for name, data in written.items() if name in before} == before
    assert contents(cells) == before
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert not list(tmp_path.glob(".augmented*"))


def test_manifest_leads_back_to_every_image(saved, dataset, tmp_path):
    generator = load_generator(saved)
    out = tmp_path / "augmented"
    augment(dataset, generator, 1.0, out, seed=2)
    with (out / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "label", "origin", "source", "seed", "index"]
    real = [row for row in rows if row["origin"] == "real"]
    assert all((row["seed"], row["index"]) == ("", "") for row in real)
    for row in real:
        assert (dataset.root / row["source"]).read_bytes() == (out / row["file"]).read_bytes()
    synthetic = [row for row in rows if row["origin"] == "synthetic"]
    assert len(synthetic) == 11 and {row["source"] for row in synthetic} == {generator.source}
    row = synthetic[-1]
    assert (row["label"], row["seed"], row["index"]) == ("platelet", "2", "1")
    assert np.array_equal(
        read_image(out / row["file"], SIZE), generator.generate("platelet", 2, seed=(2, 2))[1]
    )


def test_augmented_set_opens_as_a_data_set(saved, dataset, tmp_path):
    augment(dataset, load_generator(saved), 0.5, tmp_path / "augmented")
    again = open_dataset(tmp_path / "augmented")
    assert again.counts()[list(NAMES)].tolist() == [8, 6, 3]
    # and generated images do not become real ones by a second round
    with pytest.raises(DataError, match="already holds generated images"):
        augment(again, load_generator(saved), 0.5, tmp_path / "twice")


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0, [0, 0, 0]), (0.2, [1, 1, 1]), (0.6, [3, 3, 2]), (2, [10, 8, 4])]
)
def test_ratio_is_rounded_up_exactly(saved, dataset, tmp_path, ratio, expected):
    manifest = augment(dataset, load_generator(saved), ratio, tmp_path / "out")
    made = manifest[manifest["origin"] == "synthetic"]["label"].value_counts()
    assert made.reindex(NAMES, fill_value=0).tolist() == expected


def test_augment_of_a_part_takes_that_part_alone(saved, dataset, tmp_path):
    part = dataset.subset(np.flatnonzero(dataset.labels == 0)[:2])
    manifest = augment(part, load_generator(saved), 0.5, tmp_path / "out")
    assert (manifest["label"] == NAMES[0]).all()
    assert manifest["origin"].tolist() == ["real", "real", "synthetic"]


def test_augment_refuses_and_leaves_nothing(saved, dataset, cells, tmp_path):
    generator = load_generator(saved)
    out = tmp_path / "out"
    for ratio in (-0.1, float("nan"), float("inf")):
        with pytest.raises(DataError, match="ratio"):
            augment(dataset, generator, ratio, out)
    with pytest.raises(DataError, match="inside the data set"):
        augment(dataset, generator, 0.5, cells / "augmented")
    stranger = replace(dataset, class_names=("band neutrophil", "monocyte", "blast"))
    with pytest.raises(DataError, match="does not know 'monocyte', 'blast'"):
        augment(stranger, generator, 0.5, out)
    changed = replace(dataset, digests=("0" * 64, *dataset.digests[1:]))
    with pytest.raises(DataError, match="changed since"):
        augment(changed, generator, 0.5, out)
    assert not out.exists() and not list(tmp_path.glob(".out*"))
    assert {path.name for path in cells.iterdir()} == set(NAMES)
    out.mkdir()
    augment(dataset, generator, 0.5, out)  # an empty folder may be filled
    before = contents(out)
    with pytest.raises(DataError, match="not empty"):
        augment(dataset, generator, 0.5, out)
    assert contents(out) == before


def test_equal_names_from_two_places_both_survive(saved, dataset, cells, tmp_path):
    other = tmp_path / "other" / "0.png"
    other.parent.mkdir()
    write_png(other, np.full((20, 20, 3), 9, np.uint8))
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    both = replace(
        dataset,
        paths=(*dataset.paths, other),
        labels=np.append(dataset.labels, 0),
        digests=(*dataset.digests, digest),
    )
    manifest = augment(both, load_generator(saved), 0, tmp_path / "out")
    assert manifest["file"].iloc[-1] == f"{NAMES[0]}/0_{digest[:12]}.png"
    assert len(contents(tmp_path / "out")) == 12 + 2
