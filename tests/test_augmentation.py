"""Tests of cellaug.generators."""

import csv
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from cellaug import cli, load_discriminator, networks
from cellaug.data import DataError, open_dataset, read_image
from cellaug.data.images import write_png
from cellaug.generators import augment, generate, load_generator, save_generator
from cellaug.training import Recipe

import keras
import numpy as np
import pandas as pd
import pytest

NAMES = ("band neutrophil", "eosinophil", "platelet")
LATENT, SIZE = 6, 16


def network(conditional=True):
    """A generator of a few weights, whose float16 values are those of the file."""
    keras.utils.set_random_seed(1)
    if conditional:
        model = networks.cgan_generator(SIZE, 8, LATENT, len(NAMES))
    else:
        model = networks.generator(SIZE, 8, LATENT)
    # large enough for visible differences between latent vectors and classes
    model.set_weights([np.float16(3 * w).astype("float32") for w in model.get_weights()])
    return model


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
    return save_generator(network(), tmp_path / "gen", class_names=NAMES, dataset=dataset)


def contents(folder):
    """Every file below a folder with its bytes."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# --- the generator directory -------------------------------------------------------------------


def test_card_says_what_the_generator_is(saved, dataset):
    card = json.loads((saved / "generator.json").read_text())
    assert sorted(contents(saved)) == ["generator.json", "generator.npz"]
    assert card["class_names"] == list(NAMES)
    assert (card["image_size"], card["latent_dim"], card["conditional"]) == (SIZE, LATENT, True)
    assert (card["data_name"], card["data_hash"]) == (dataset.name, dataset.fingerprint)
    assert card["credit"] == "Somebody, CC BY 4.0"
    generator = load_generator(saved)
    assert generator.class_names == NAMES and generator.data_hash == dataset.fingerprint
    digest = hashlib.sha256((saved / "generator.npz").read_bytes()).hexdigest()
    assert generator.digest == card["sha256"] == digest and digest[:16] in generator.source


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
    folder = save_generator(network(False), tmp_path / "g", class_names=(), dataset=dataset)
    generator = load_generator(folder)
    assert not generator.conditional and generator.generate(count=3).shape[0] == 3
    with pytest.raises(DataError, match="takes no label"):
        generator.generate("platelet")
    with pytest.raises(DataError, match="no label to train on"):
        augment(dataset, generator, 0.5, tmp_path / "out")
    manifest = generate(generator, None, 2, tmp_path / "out", seed=4)
    assert manifest["path"].tolist() == ["cell_4_00000.png", "cell_4_00001.png"]
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
        "import sys, numpy as np; from cellaug.generators import load_generator;"
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
    options = {"class_names": NAMES, "dataset": dataset}
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
    own = keras.Sequential([keras.Input((3,)), keras.layers.Reshape((1, 1, 3))])
    for model, names, message in (
        (flat, NAMES, "square RGB"),
        (own, (), "expected one that a function of cellaug.networks built"),
        (network(), (), "needs the names"),
    ):
        with pytest.raises(ValueError, match=message):
            save_generator(model, tmp_path / "g", class_names=names, dataset=dataset)
    assert list(tmp_path.glob("*g*")) == []


def test_every_generator_of_the_package_can_be_saved(tmp_path, dataset):
    """An AC-GAN too, whose card describes the frozen generator inside, and moving averages."""
    keras.utils.set_random_seed(2)
    vanilla, discriminator = networks.generator(SIZE, 8, LATENT), networks.discriminator(SIZE, 4)
    classes = len(NAMES)
    ac_gan = networks.acgan_generator(vanilla, classes, last_activation="linear")
    recipe = Recipe(generator_depth=8, discriminator_depth=4, latent_dim=LATENT)
    gan = recipe.build(SIZE, classes)
    assert gan.trained_generator is gan.averaged
    for model in (vanilla, ac_gan, gan.averaged, networks.cgan_generator(SIZE, 8, LATENT, classes)):
        names = NAMES if len(model.inputs) == 2 else ()
        folder = save_generator(
            model, tmp_path / model.name, class_names=names, dataset=dataset,
            discriminator=None if names else discriminator,
        )  # fmt: skip
        read = load_generator(folder)
        latents = np.random.default_rng(0).standard_normal((4, LATENT)).astype("float32")
        given = [latents, np.arange(4) % classes] if names else latents
        expected, found = (keras.ops.convert_to_numpy(m(given)) for m in (model, read.model))
        np.testing.assert_allclose(found, expected, atol=0.01)
        assert read.latent_dim == LATENT and (read.conditional is bool(names))
        trained = [v.path for v in read.model.trainable_variables]
        assert len(trained) == len(model.trainable_variables) or model is gan.averaged
    assert json.loads((folder / "generator.json").read_text())["builder"] == "cgan_generator"
    images = np.random.default_rng(0).uniform(-1, 1, (4, SIZE, SIZE, 3)).astype("float32")
    judge = load_discriminator(tmp_path / "generator")
    logits = (keras.ops.convert_to_numpy(m(images)) for m in (judge, discriminator))
    np.testing.assert_allclose(*logits, atol=0.01)
    assert np.isfinite(judge(images, training=True)).all()  # its dropout has a seed
    with pytest.raises(FileNotFoundError, match="holds no discriminator"):
        load_discriminator(folder)


def test_loading_says_what_is_wrong(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such generator"):
        load_generator(tmp_path / "nowhere")
    card_file, weights_file = saved / "generator.json", saved / "generator.npz"
    text, weights = card_file.read_text(), weights_file.read_bytes()
    card = json.loads(text)
    inner = {"builder": "system", "options": {}}

    for wrong, message in (
        ({"format": 2}, "expected format 1, found 2"),
        ({"latent_dim": "6"}, "latent_dim should be a int"),
        ({"conditional": False}, "conditional say 1 inputs"),
        ({"image_size": 32}, r"images \(32, 32, 3\), but builder and options"),
        ({"builder": "os.system"}, "builder should be one of generator, discriminator, cgan_"),
        ({"builder": "cgan_generator", "options": {"command": "ls"}}, "cannot be built"),
        ({"builder": "acgan_generator", "options": {"generator": inner}}, "builder 'system': exp"),
        ({"builder": "acgan_generator", "options": {"generator": {"a": 1}}}, "cannot be built"),
    ):
        card_file.write_text(json.dumps(card | wrong))
        with pytest.raises(DataError, match=message):
            load_generator(saved)
    card_file.write_text(text[:-5])
    with pytest.raises(DataError, match="expected JSON"):
        load_generator(saved)
    card_file.write_text(text)
    weights_file.write_bytes(weights[:1000])
    with pytest.raises(DataError, match="is not the file that its card describes"):
        load_generator(saved)
    weights_file.unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks generator\.npz"):
        load_generator(saved)


class Trap:
    """An object whose unpickling would leave a trace."""

    def __reduce__(self):
        return (Path("trapped").touch, ())


def test_loading_runs_no_code_from_the_file(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = json.loads((saved / "generator.json").read_text())
    for content in (pickle.dumps(Trap()), None, b"PK no archive"):
        if content is None:
            np.savez(saved / "generator.npz", np.array([Trap()], object))
        else:
            (saved / "generator.npz").write_bytes(content)
        digest = hashlib.sha256((saved / "generator.npz").read_bytes()).hexdigest()
        (saved / "generator.json").write_text(json.dumps(card | {"sha256": digest}))
        with pytest.raises(DataError, match=r"generator\.npz: expected plain arrays"):
            load_generator(saved)
    assert not Path("trapped").exists()


# --- writing images ----------------------------------------------------------------------------


def test_generate_writes_images_and_manifest(saved, tmp_path):
    generator = load_generator(saved)
    out = tmp_path / "deep" / "out"
    manifest = generate(generator, ["band neutrophil", "platelet"], 3, out, seed=7)
    assert len(manifest) == 6
    files = set(contents(out))
    assert files == {"manifest.csv", "CREDIT.txt", *manifest["path"]}
    assert manifest["path"][4] == "platelet_7_00001.png"
    assert manifest["path"][0] == "band-neutrophil_7_00000.png"
    pd.testing.assert_frame_equal(pd.read_csv(out / "manifest.csv"), manifest)
    row = manifest.iloc[4]
    expected = generator.generate(row["label"], row["index"] + 1, seed=(row["seed"], 2))[-1]
    assert np.array_equal(read_image(out / row["path"], SIZE), expected)
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
    assert set(written) == {"manifest.csv", "CREDIT.txt", *manifest["path"]}
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
    columns = ["path", "label", "origin", "source", "generator", "seed", "index"]
    assert list(rows[0]) == columns
    real = [row for row in rows if row["origin"] == "real"]
    assert all(row["generator"] == row["seed"] == row["index"] == "" for row in real)
    for row in real:
        assert (dataset.root / row["source"]).read_bytes() == (out / row["path"]).read_bytes()
    synthetic = [row for row in rows if row["origin"] == "synthetic"]
    assert len(synthetic) == 11 and {row["generator"] for row in synthetic} == {generator.source}
    assert {row["source"] for row in synthetic} == {""}
    row = synthetic[-1]
    assert (row["label"], row["seed"], row["index"]) == ("platelet", "2", "1")
    assert np.array_equal(
        read_image(out / row["path"], SIZE), generator.generate("platelet", 2, seed=(2, 2))[1]
    )


def test_augmented_set_opens_as_a_data_set(saved, dataset, tmp_path):
    augment(dataset, load_generator(saved), 0.5, tmp_path / "augmented")
    again = open_dataset(tmp_path / "augmented")
    assert again.counts()[list(NAMES)].tolist() == [8, 6, 3]
    listed = open_dataset(tmp_path / "augmented" / "manifest.csv")
    assert sorted(listed.digests) == sorted(again.digests)
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
    changed = replace(dataset, table=dataset.table.assign(digest="0" * 64))
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
    more = dataset.table.iloc[[0]].assign(path=str(other), digest=digest)
    both = replace(dataset, table=pd.concat([dataset.table, more], ignore_index=True))
    manifest = augment(both, load_generator(saved), 0, tmp_path / "out")
    assert manifest["path"].iloc[-1] == f"{NAMES[0]}/0_{digest[:12]}.png"
    assert len(contents(tmp_path / "out")) == 12 + 2


def test_split_and_group_travel_and_generated_cells_are_for_training(saved, tmp_path, cells):
    files = sorted(path.relative_to(cells).as_posix() for path in cells.rglob("*.png"))
    table = pd.DataFrame({"path": files, "label": [file.split("/")[0] for file in files]})
    table["split"] = ["test" if k % 4 == 3 else "train" for k in range(len(table))]
    table["group"] = [f"patient {k % 3}" for k in range(len(table))]
    for name in NAMES:
        shutil.copytree(cells / name, tmp_path / "listed" / name)
    table.to_csv(tmp_path / "listed" / "cells.csv", index=False)
    dataset = open_dataset(tmp_path / "listed" / "cells.csv")
    manifest = augment(dataset, load_generator(saved), 0.5, tmp_path / "out")
    real = manifest[manifest["origin"] == "real"].set_index("source")
    known = table.set_index("path").loc[real.index]
    assert real["split"].tolist() == known["split"].tolist()
    assert real["group"].tolist() == known["group"].tolist()
    made = manifest[manifest["origin"] == "synthetic"]
    assert set(made["split"]) == {"train"} and made["group"].isna().all()
    assert len(open_dataset(tmp_path / "out" / "manifest.csv")) == len(manifest)
