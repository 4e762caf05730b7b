"""Tests of cellaug.generators and cellaug.augmentation."""

import csv
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import cellaug
from cellaug import cli, load_discriminator, networks
from cellaug.augmentation import TRIES, augment, generate, refused_images
from cellaug.data import DataError, open_dataset, read_image, split, stored
from cellaug.data.class_map import alike, read_class_map
from cellaug.data.images import decode, fit_square, write_png
from cellaug.evaluation import read_generated
from cellaug.files import inside
from cellaug.generators import (
    load_generator,
    read_generator,
    save_generator,
    shipped_generators,
    short_digests,
)
from cellaug.training import Recipe

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

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
    assert sorted(contents(saved)) == ["generator.json", "generator.npz", "trained_on.bin"]
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


def test_truncation_draws_again_what_is_too_far_out(saved):
    """Latent vectors are normal numbers cut off at ±t; those that are within stay what they are."""
    given = []

    class Recorder:
        def predict_on_batch(self, inputs):
            given.append(inputs[0])
            return np.zeros((len(inputs[0]), SIZE, SIZE, 3))

    for limit, count in ((None, 32), (0.8, 320)):
        generator = read_generator(saved, limit)
        generator.__dict__["model"] = Recorder()  # in place of the network, which is built later
        generator.generate("platelet", count, seed=4)
    plain, first, *_ = given
    within = np.abs(plain) <= 0.8
    assert np.array_equal(first[within], plain[within]) and 0 < within.sum() < within.size
    drawn = np.ravel(given[1:])
    assert np.abs(drawn).max() <= 0.8 and len(drawn) == 320 * LATENT
    assert stats.kstest(drawn, stats.truncnorm(-0.8, 0.8).cdf).pvalue > 0.01
    for wrong in (0, -1, float("nan")):
        with pytest.raises(DataError, match=r"truncation: expected a number from 0\.1 up"):
            read_generator(saved, wrong)


def test_a_truncated_image_says_so(saved, tmp_path):
    words = ["generate", "--generator", str(saved), "--label", "platelet", "--count", "2"]
    assert cli.main([*words, "--truncation", "0.5", "--out", str(tmp_path / "cut")]) == 0
    manifest = pd.read_csv(tmp_path / "cut" / "manifest.csv")
    assert manifest["generator"].str.endswith(", truncated at 0.5").all()
    cut = load_generator(saved, 0.5).generate("platelet", 2, (0, 2))
    assert np.array_equal(read_image(tmp_path / "cut" / manifest["path"][1], SIZE), cut[1])
    assert not np.array_equal(cut, load_generator(saved).generate("platelet", 2, (0, 2)))


def test_unconditional_generator(tmp_path, dataset):
    folder = save_generator(network(False), tmp_path / "g", class_names=(), dataset=dataset)
    generator = load_generator(folder)
    assert not generator.conditional and generator.generate(count=3).shape[0] == 3
    with pytest.raises(DataError, match="takes no label"):
        generator.generate("platelet")
    with pytest.raises(DataError, match="no label to train on"):
        augment(dataset, generator, 0.5, tmp_path / "out")
    manifest = generate(generator, None, 2, tmp_path / "out", seed=4)
    assert manifest["path"].tolist() == [f"synthetic_cell_4_0000{k}.png" for k in range(2)]
    drawn = read_image(tmp_path / "out" / "synthetic_cell_4_00001.png", SIZE)
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


def test_weights_that_are_no_numbers_are_refused(dataset, tmp_path):
    model = network()
    model.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    save_generator(model, tmp_path / "g", class_names=NAMES, dataset=dataset)
    with pytest.raises(DataError, match="no finite numbers"):
        load_generator(tmp_path / "g")


def test_a_generator_knows_the_digests_of_its_training_images(saved, dataset):
    found = load_generator(saved).trained_on
    assert found.dtype == np.uint64 and found.tolist() == sorted(found.tolist())
    assert {f"{number:016x}" for number in found.tolist()} == {d[:16] for d in dataset.digests}
    assert np.array_equal(found, short_digests(reversed(dataset.digests)))
    assert (saved / "trained_on.bin").stat().st_size == 8 * len(dataset)
    generator = load_generator(saved)
    assert generator.seen(dataset) == len(dataset) and generator.seen(dataset.subset([0, 3])) == 2
    other = dataset.table.assign(digest="00" * 32)
    assert generator.seen(replace(dataset, table=other)) == 0
    other = other.assign(source_sha256=dataset.table["digest"].astype(str))  # as after `augment`
    assert generator.seen(replace(dataset, table=other)) == len(dataset)
    card = json.loads((saved / "generator.json").read_text())
    del card["trained_on"]
    (saved / "generator.json").write_text(json.dumps(card))
    assert load_generator(saved).trained_on is None  # saved before there were digests
    assert load_generator(saved).seen(dataset) == 0


@pytest.mark.parametrize("name", shipped_generators())
def test_shipped_generators_know_the_images_that_they_were_trained_on(name):
    """As many as the card says, all of them of PBC."""
    generator = read_generator(name)
    pbc = np.fromfile(Path(cellaug.__file__).parent / "data" / "pbc_digests.bin", ">u8")
    assert len(generator.trained_on) == 7144 == generator.card["training"]["training_images"]
    assert np.isin(generator.trained_on, pbc).all()


def test_a_card_says_how_near_its_cells_are_to_real_ones(saved):
    card = json.loads((saved / "generator.json").read_text())
    assert read_generator("pbc-fine-64").caution == ""
    table = ["level,group,measure,value,real,ratio", "overall,,frechet,9,1,"]
    for fidelity, words in (
        ({"table": [table[0], table[1] + "10.4"]}, "far from real cells: .* is 10.4 times that"),
        ({"table": [table[0], "class,platelet,frechet,9,1,20", table[1] + "9.9"]}, ""),
        ({"table": table}, "could not judge .* with more of them, and without --split,"),
        ({"table": []}, "could not judge"),
        ({"table": 3}, "could not judge"),
        ("none", "nobody has measured .* `cellaug evaluate REAL"),
    ):
        (saved / "generator.json").write_text(json.dumps(card | {"fidelity": fidelity}))
        found = read_generator(saved).caution
        assert re.search(words, found) and bool(found) is bool(words)


def test_loading_says_what_is_wrong(saved, dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such generator"):
        load_generator(tmp_path / "nowhere")
    card_file, weights_file = saved / "generator.json", saved / "generator.npz"
    text, weights = card_file.read_text(), weights_file.read_bytes()
    card = json.loads(text)
    inner = {"builder": "system", "options": {}}

    for wrong, message in (
        ({"format": 2}, "expected format 1, found 2"),
        ({"latent_dim": "6"}, "latent_dim should be a whole number"),
        ({"latent_dim": True}, "latent_dim should be a whole number, found True"),
        ({"latent_dim": 7}, r"say 2 inputs, 7 latent numbers.*, but .* 2 inputs, 6 latent numbers"),
        ({"latent_dim": 10**9}, "latent_dim should be from 0 to 2048, found 1000000000"),
        ({"class_names": [1, 2, 3]}, "class_names should be different names"),
        ({"class_names": ["a", "b", "a"]}, "class_names should be different names"),
        ({"class_names": []}, "0 class_names, but a network of 3 classes"),
        ({"class_names": ["a", "b"]}, "2 class_names, but a network of 3 classes"),
        ({"class_names": ["a", "b", "\ud800"]}, "expected JSON, .* surrogates"),
        (
            {"options": {**card["options"], "depth": 10**30}},
            "depth should be from 0 to 2048, found",
        ),
        ({"options": {**card["options"], "size": float("nan")}}, "size should be .*, found nan"),
        ({"options": {**card["options"], "depth": 0}}, "cgan_generator cannot be built"),
        ({"options": {**card["options"], "depth": 7.5}}, "cgan_generator cannot be built"),
        ({"options": {**card["options"], "classes": "x"}}, "3 class_names, but a network of x"),
        ({"options": [1]}, "builder should be one of"),
        ({"discriminator": {"options": {"kernel": 999}}}, "kernel should be from 0 to 16"),
        ({"conditional": False}, "conditional say 1 inputs"),
        ({"image_size": 32}, r"images \(32, 32, 3\), but builder and options"),
        ({"builder": "os.system"}, "builder should be one of generator, discriminator, cgan_"),
        ({"builder": "cgan_generator", "options": {"command": "ls"}}, "cannot be built"),
        ({"builder": "acgan_generator", "options": {"generator": inner}}, "builder 'system': exp"),
        ({"builder": "acgan_generator", "options": {"generator": {"a": 1}}}, "cannot be built"),
    ):
        card_file.write_text(json.dumps(card | wrong))
        with pytest.raises(DataError, match=message) as caught:
            load_generator(saved)
        assert str(card_file) in str(caught.value)
    deep = "[" * 100_000 + "]" * 100_000
    for damaged in (text[:-5], "[]]", "[1]", '{"a": ' + deep + "}", '{"a": ' + "9" * 5000 + "}"):
        card_file.write_text(damaged)
        with pytest.raises(DataError, match="expected JSON"):
            load_generator(saved)
    card_file.write_text(text)
    (saved / "trained_on.bin").write_bytes(bytes(8))
    with pytest.raises(
        DataError, match=r"trained_on\.bin is not the file that generator\.json desc"
    ):
        load_generator(saved)
    (saved / "trained_on.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"trained_on\.bin"):
        load_generator(saved)
    save_generator(network(), saved, class_names=NAMES, dataset=dataset)
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
    assert manifest["path"][4] == "synthetic_platelet_7_00001.png"
    assert manifest["path"][0] == "synthetic_band-neutrophil_7_00000.png"
    pd.testing.assert_frame_equal(pd.read_csv(out / "manifest.csv"), manifest)
    row = manifest.iloc[4]
    expected = generator.generate(row["label"], row["index"] + 1, seed=(row["seed"], 2))[-1]
    assert np.array_equal(read_image(out / row["path"], SIZE), expected)
    # a class's images do not depend on which others are asked for
    generate(generator, "platelet", 2, tmp_path / "alone", seed=7)
    name = "synthetic_platelet_7_00001.png"
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


def chunks(data):
    """The chunks of a PNG by name, in order, each with the right length and checksum."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = [], 8
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        body = data[place + 4 : place + 8 + size]
        assert zlib.crc32(body) == int.from_bytes(data[place + 8 + size : place + 12 + size], "big")
        found.append((body[:4].decode(), body[4:]))
        place += 12 + size
    assert place == len(data)
    return found


def test_every_generated_file_says_what_it_is(saved, dataset, tmp_path):
    generator = load_generator(saved)
    generate(generator, "platelet", 2, tmp_path / "made", seed=7)
    augment(dataset, generator, 0.5, tmp_path / "augmented", seed=3)
    for file, label, seed, index in (
        (tmp_path / "made" / "synthetic_platelet_7_00001.png", "platelet", 7, 1),
        (tmp_path / "augmented" / "eosinophil" / "synthetic_3_00001.png", "eosinophil", 3, 1),
    ):
        facts = {"generator": generator.source, "class": label, "seed": seed, "index": index}
        names, bodies = zip(*chunks(file.read_bytes()), strict=True)
        assert names[:2] == ("IHDR", "tEXt") and names[-1] == "IEND"
        keyword, _, text = bodies[1].partition(b"\0")
        assert keyword == b"cellaug" and json.loads(text.decode("ascii")) == facts
        with Image.open(file) as image:
            assert json.loads(image.text["cellaug"]) == facts
            pixels = np.asarray(image)
        number = NAMES.index(label)
        assert np.array_equal(pixels, generator.generate(label, index + 1, (seed, number))[index])


def test_texts_of_a_png_leave_its_pixels_alone(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "plain.png", image)
    write_png(tmp_path / "told.png", image, one="1", two="größe")
    plain, told = (chunks((tmp_path / f"{name}.png").read_bytes()) for name in ("plain", "told"))
    assert [chunk for chunk in told if chunk[0] != "tEXt"] == plain
    with Image.open(tmp_path / "told.png") as read:
        assert read.text == {"one": "1", "two": "größe"}
        assert np.array_equal(np.asarray(read), image)


# --- names that lead elsewhere -----------------------------------------------------------------

HOSTILE = (
    "../../escaped",
    "/tmp/escaped",
    "a/../../b",
    "..",
    ".",
    "",
    "C:x",
    "c:/x",
    "a\0b",
    "a" * 999,
)


def test_a_place_is_inside_or_refused(tmp_path):
    assert inside(tmp_path, "a/b c/..d.png") == tmp_path / "a" / "b c" / "..d.png"
    (tmp_path / "link").symlink_to(tmp_path.parent)
    for name in (*HOSTILE, "link/x", "..\\x"):
        with pytest.raises(DataError) as caught:
            inside(tmp_path, name)
        assert repr(name[:99]) in str(caught.value)


def test_no_class_name_of_table_and_card_writes_elsewhere(saved, dataset, tmp_path):
    loaded, place = load_generator(saved), tmp_path / "deep" / "er" / "out"
    for name in (*HOSTILE, "a/b", "a\\b"):
        own = (name, *NAMES[1:])
        generator = replace(loaded, class_names=own)
        vars(generator)["model"] = loaded.model
        classes = dataset.table["class"].cat.rename_categories({NAMES[0]: name})
        table = dataset.table.assign(**{"class": classes})
        before = contents(tmp_path)
        with pytest.raises(DataError, match=r"the class name .*: rename the class") as caught:
            augment(replace(dataset, class_names=own, table=table), generator, 0.5, place)
        assert repr(name[:99]) in str(caught.value) and contents(tmp_path) == before
        generate(generator, own, 1, place)  # a class is no folder here
        new = set(contents(tmp_path)) - set(before)
        assert len(new) == 3 + 2 and all(file.startswith("deep/er/out/") for file in new)
        shutil.rmtree(place)


def test_images_with_names_of_other_systems_are_copied(saved, dataset, cells, tmp_path):
    (tmp_path / "cells" / "platelet").mkdir(parents=True)
    shutil.copy(cells / "platelet" / "0.png", tmp_path / "cells/platelet/c:\\cells\\1.png")
    manifest = augment(open_dataset(tmp_path / "cells"), load_generator(saved), 0, tmp_path / "out")
    assert manifest["path"].tolist() == ["platelet/c__cells_1.png"]
    assert (tmp_path / "out" / manifest["path"][0]).is_file()


def test_generated_files_of_similar_classes_have_different_names(saved, tmp_path):
    own = ("a b", "A-b", "a/b")
    manifest = generate(replace(load_generator(saved), class_names=own), own, 1, tmp_path / "out")
    found = [f"synthetic_{stem}_0_00000.png" for stem in ("a-b", "A-b-2", "a-b-2-2")]
    assert manifest["path"].tolist() == found and manifest["label"].tolist() == list(own)


# --- augmenting --------------------------------------------------------------------------------


def test_augment_adds_a_share_to_every_class(saved, dataset, cells, tmp_path):
    before = contents(cells)
    out = tmp_path / "augmented"
    manifest = augment(dataset, load_generator(saved), 0.5, out, seed=2, size="original")
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
    augment(dataset, generator, 1.0, out, seed=2, size="original")
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


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_real_images_keep_their_split_when_they_are_resized(saved, tmp_path, monkeypatch, seed):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(seed)
    for name in NAMES:
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(20):
            image = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            write_png(tmp_path / "set" / name / f"{i}.png", image)
    before = split(open_dataset(tmp_path / "set"))
    augment(open_dataset(tmp_path / "set"), load_generator(saved), 0.5, tmp_path / "out")
    after = split(open_dataset(tmp_path / "out"))
    for side, part in after.items():
        real = part.table[part.table["origin"] == "real"]
        assert sorted(real["source"]) == sorted(before[side].table["path"])


def test_a_disk_without_room_is_named_before_a_file_is_written(
    saved, dataset, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=10 * SIZE**2 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    generator = load_generator(saved)
    with pytest.raises(DataError, match=r"new: the set of images needs 0\.00\d+ MiB more"):
        generate(generator, NAMES[0], 10, tmp_path / "new")
    generate(generator, NAMES[0], 9, tmp_path / "new")


def test_a_class_with_a_similar_name_is_suggested(saved):
    with pytest.raises(DataError, match=r"knows no class 'Eosinophils'; .* mean 'eosinophil'"):
        load_generator(saved).generate("Eosinophils")


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


def listed(cells, folder, **columns):
    """A copy of the cells with a table of them that has more columns."""
    shutil.copytree(cells, folder)
    files = sorted(path.relative_to(cells).as_posix() for path in cells.rglob("*.png"))
    table = pd.DataFrame({"path": files, "label": [file.split("/")[0] for file in files]})
    table.assign(**columns).to_csv(folder / "cells.csv", index=False)
    return open_dataset(folder / "cells.csv")


def test_every_column_of_a_table_travels(saved, cells, tmp_path):
    rows = range(11)
    columns = {"stain": [f"stain {k}" for k in rows], "index": [f"#{k}" for k in rows]}
    columns |= {"seed": "none", "generator": "no", "source": "a hospital", "group": "P7"}
    dataset = listed(cells, tmp_path / "listed", **columns)
    augment(dataset, load_generator(saved), 0.5, tmp_path / "out")
    again = open_dataset(tmp_path / "out" / "manifest.csv").table
    real, made = (again[again["origin"] == origin] for origin in ("real", "synthetic"))
    real = real.set_index("source").loc[dataset.table["path"]]
    assert real["stain"].tolist() == dataset.table["stain"].tolist()
    assert set(real["group"]) == {"P7"} and set(made["group"]) == {""}
    for name in ("index", "seed", "generator", "source"):
        kept = real[f"{name} (manifest)"]
        assert kept.tolist() == dataset.table[name].tolist() and "" not in set(kept)
    assert set(made["seed"]) == {"0"} and sorted(set(made["index"])) == ["0", "1", "2"]


def test_generated_images_are_for_the_training_side_alone(saved, cells, tmp_path):
    """5 band neutrophils, 4 eosinophils, 2 platelets, of which 3, 4 and 0 are for training."""
    sides = ["train", "Test", "training", "val", "train", *["train"] * 4, "test", "validation"]
    dataset = listed(cells, tmp_path / "listed", split=sides)
    manifest = augment(dataset, load_generator(saved), 0.5, tmp_path / "out")
    made = manifest[manifest["origin"] == "synthetic"]
    assert made["label"].value_counts().to_dict() == {NAMES[0]: 2, NAMES[1]: 2}
    assert set(made["split"]) == {"train"}


def test_every_manifest_is_read_by_every_command(saved, dataset, cells, tmp_path, capsys):
    generator = load_generator(saved)
    generate(generator, NAMES, 3, tmp_path / "made")
    augment(dataset, generator, 1, tmp_path / "augmented")
    sizes = {"made": 9, "augmented": 22}
    for name, count in sizes.items():
        manifest = str(tmp_path / name / "manifest.csv")
        assert cli.main(["inspect", manifest, "--json"]) in (0, 1)
        assert json.loads(capsys.readouterr().out)["images"] == count
        stored = ["store", manifest, "--size", "16", "--out", str(tmp_path / f"{name} store")]
        assert cli.main(stored) == 0
        assert f"{count} images of 16×16 pixels" in capsys.readouterr().out
        words = ["augment", manifest, "--generator", str(saved), "--out", str(tmp_path / "twice")]
        assert cli.main(words) == 2
        assert "already holds generated images (" in capsys.readouterr().err
        assert cli.main(["evaluate", manifest, str(cells), "--no-cas"]) == 2
        assert "holds generated images" in capsys.readouterr().err
    made = read_generated(tmp_path / "made" / "manifest.csv", dict.fromkeys(NAMES, 3))
    assert np.array_equal(made.images[made.labels == 2], generator.generate(2, 3, (0, 2)))


def test_generated_images_are_known_by_the_table_alone(saved, dataset, tmp_path):
    origin = np.where(np.arange(len(dataset)) % 5 == 1, "synthetic", "real")
    mixed = replace(dataset, table=dataset.table.assign(origin=origin))
    with pytest.raises(DataError, match=r"\(2 of 11 images are generated\): augment"):
        augment(mixed, load_generator(saved), 0.5, tmp_path / "out")


# --- one size ----------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """Images of one class that have the generator's size, in several ways, or another one."""
    folder, rng = tmp_path / "mixed" / "platelet", np.random.default_rng(3)
    folder.mkdir(parents=True)
    for name, shape in (("same", (16, 16, 3)), ("large", (41, 30, 3)), ("wide", (16, 20, 3))):
        write_png(folder / f"{name}.png", rng.integers(0, 256, shape, dtype=np.uint8))
    Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 256, (16, 16, 4), dtype=np.uint8)).save(folder / "clear.png")
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "same.jpg")
    Image.fromarray(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(folder / "large.jpg")
    Image.new("RGBA", (16, 16), (9, 8, 7, 255)).save(folder / "opaque.png")
    deep = rng.integers(0, 2**16, (16, 16, 3), dtype=np.uint16)
    cv2.imwrite(str(folder / "deep.png"), deep)
    return open_dataset(folder.parent)


def test_real_and_generated_images_have_one_size(saved, mixed, tmp_path):
    manifest = augment(mixed, load_generator(saved), 0.5, tmp_path / "out").set_index("source")
    real = manifest[manifest["origin"] == "real"]
    digests = dict(zip(mixed.table["path"], mixed.digests, strict=True))
    same = {"platelet/same.png", "platelet/same.jpg"}
    for source, row in real.iterrows():
        written = tmp_path / "out" / row["path"]
        if source in same:
            assert written.read_bytes() == (mixed.root / source).read_bytes()
            assert row["source_sha256"] == "" and row["path"] == source
        else:
            assert written.suffix == ".png" and row["source_sha256"] == digests[source]
            assert np.array_equal(decode(written)[0], read_image(mixed.root / source, 16))
    assert len(real) == len(set(real["path"])) == 9
    again = open_dataset(tmp_path / "out")
    assert not again.report["reason"].str.contains("other size").any()
    assert [decode(path)[0].shape for path in again.paths] == [(16, 16, 3)] * 14


def test_another_size_is_that_of_all_images(saved, dataset, tmp_path):
    generator = load_generator(saved)
    manifest = augment(dataset, generator, 0.5, tmp_path / "out", size=24)
    for path, source, number in manifest[["path", "source", "index"]].itertuples(index=False):
        found = decode(tmp_path / "out" / path)[0]
        if pd.isna(source):
            label = NAMES.index(path.split("/")[0])
            drawn = generator.generate(label, number + 1, (0, label))[-1]
            assert np.array_equal(found, fit_square(drawn, 24))
        else:
            assert np.array_equal(found, read_image(dataset.root / source, 24))
    for size in (0, 7, -16, "large", 9.5):
        with pytest.raises(DataError, match="size: expected pixels from 8 on, or original, got"):
            augment(dataset, generator, 0.5, tmp_path / "more", size=size)


def test_images_of_a_store_need_no_files(saved, mixed, tmp_path):
    generator = load_generator(saved)
    augment(mixed, generator, 0, tmp_path / "files")
    held = stored(mixed, 16, tmp_path / "store")
    shutil.rmtree(mixed.root)
    made = augment(held, generator, 0, tmp_path / "stored")
    assert (made["source_sha256"] != "").all()
    for source, path in made[["source", "path"]].itertuples(index=False):
        names = pd.read_csv(tmp_path / "files" / "manifest.csv").set_index("source")["path"]
        expected = decode(tmp_path / "files" / names[source])[0]
        assert np.array_equal(decode(tmp_path / "stored" / path)[0], expected)
    with pytest.raises(FileNotFoundError):
        augment(held, generator, 0, tmp_path / "again", size="original")


# --- classes that are called differently -------------------------------------------------------


@pytest.fixture
def theirs(dataset):
    """The data set with other names for its classes."""
    names = ("Band Neutrophile", "eosinophil", "SNE")
    classes = dataset.table["class"].cat.rename_categories(dict(zip(NAMES, names, strict=True)))
    return replace(dataset, class_names=names, table=dataset.table.assign(**{"class": classes}))


def test_mapped_classes_get_images_under_their_own_name(saved, theirs, tmp_path):
    generator = load_generator(saved)
    told = {"Band Neutrophile": "platelet", "SNE": "platelet"}
    manifest = augment(theirs, generator, 1, tmp_path / "out", seed=4, class_map=told)
    made = manifest[manifest["origin"] == "synthetic"]
    expected = {"Band Neutrophile": 5, "eosinophil": 4, "SNE": 2}
    assert made["label"].value_counts().to_dict() == expected
    images = set()
    for _, row in made.iterrows():
        ours = row["generator_class"] if row["label"] != "eosinophil" else "eosinophil"
        assert ours == told.get(row["label"], "eosinophil") and row["path"].startswith(row["label"])
        image = decode(tmp_path / "out" / row["path"])[0]
        drawn = generator.generate(ours, row["index"] + 1, (4, NAMES.index(ours)))[-1]
        assert np.array_equal(image, drawn)
        images.add(image.tobytes())
        with Image.open(tmp_path / "out" / row["path"]) as file:
            facts = json.loads(file.text["cellaug"])
        assert (facts["class"], facts["index"]) == (row["label"], row["index"])
        assert facts.get("generator_class", "eosinophil") == ours
    assert len(images) == 11  # two classes that are drawn as one share none
    assert made.loc[made["label"] == "SNE", "index"].tolist() == [5, 6]


def test_names_that_differ_by_case_blanks_and_underscores_are_one_class(saved, dataset, tmp_path):
    names = ("Band_neutrophil", "eosinophil", "PLATELET ")
    classes = dataset.table["class"].cat.rename_categories(dict(zip(NAMES, names, strict=True)))
    cells = replace(dataset, class_names=names, table=dataset.table.assign(**{"class": classes}))
    manifest = augment(cells, load_generator(saved), 1, tmp_path / "out", seed=4)
    made = manifest[manifest["origin"] == "synthetic"]
    assert dict(zip(made["label"], made["generator_class"].fillna(""), strict=True)) == {
        "Band_neutrophil": "band neutrophil", "eosinophil": "", "PLATELET ": "platelet",
    }  # fmt: skip
    assert alike(["a_b", "A b"], ["a b"]) == {"a_b": "a_b", "A b": "A b"}  # they stay apart


def test_unknown_classes_are_listed_with_a_map_to_complete(saved, theirs, tmp_path):
    with pytest.raises(DataError, match="does not know 'Band Neutrophile', 'SNE'; ") as caught:
        augment(theirs, load_generator(saved), 1, tmp_path / "out")
    file = tmp_path / "map.yaml"
    file.write_text("\n".join(str(caught.value).splitlines()[1:]))
    assert read_class_map(file) == {"Band Neutrophile": "band neutrophil", "SNE": "leave"}
    manifest = augment(
        theirs, load_generator(saved), 1, tmp_path / "out", class_map=read_class_map(file)
    )
    made = manifest[manifest["origin"] == "synthetic"]["label"].value_counts().to_dict()
    assert made == {"Band Neutrophile": 5, "eosinophil": 4}
    part = {"class_map": read_class_map(file), "only": ["eosinophil"]}  # the map is of all classes
    manifest = augment(theirs, load_generator(saved), 1, tmp_path / "part", **part)
    assert manifest[manifest["origin"] == "synthetic"]["label"].unique().tolist() == ["eosinophil"]
    for told, message in (
        ({"SNE": "leaf", "Band Neutrophile": "leave"}, r"know 'leaf'; (.|\n)*\nSNE: leave"),
        ({"sne": "leave"}, "the data set has no class sne; its classes are Band Neutrophile, eos"),
    ):
        with pytest.raises(DataError, match=message):
            augment(theirs, load_generator(saved), 1, tmp_path / "more", class_map=told)
    assert not (tmp_path / "more").exists()


def test_a_class_map_is_read_as_texts_or_refused(tmp_path):
    file = tmp_path / "map.yaml"
    file.write_text("1: basophil\non: leave\n'no': 'x: y'  # three names\n")
    assert read_class_map(file) == {"1": "basophil", "on": "leave", "no": "x: y"}
    for text in ("", "- a\n", "text", "a: [b]", "a: {b: c}", "a: b: c", "\t- :", "a: \0"):
        file.write_text(text)
        with pytest.raises(
            DataError, match=r"map\.yaml: expected a class map in YAML, lines such as"
        ):
            read_class_map(file)
    file.write_bytes(b"gr\xf6\xdfe: leave")
    with pytest.raises(DataError, match="expected a class map in YAML"):
        read_class_map(file)
    file.write_text("a: b\na: leave\n")
    with pytest.raises(DataError, match="two lines"):
        read_class_map(file)


# --- the commands ------------------------------------------------------------------------------


def test_the_command_says_what_it_did(saved, cells, tmp_path, capsys):
    for old, new in zip(NAMES, ("BNE", "eosinophil", "platelet"), strict=True):
        shutil.copytree(cells / old, tmp_path / "theirs" / new)
    words = ["augment", str(tmp_path / "theirs"), "--generator", str(saved), "--out"]
    assert cli.main([*words, str(tmp_path / "out")]) == 2
    assert "--class-map FILE" in capsys.readouterr().err
    (tmp_path / "map.yaml").write_text("BNE: leave\n")
    words += [str(tmp_path / "out"), "--class-map", str(tmp_path / "map.yaml")]
    assert cli.main(words) == 0
    printed = capsys.readouterr()
    assert f"11 of 11 real images were resized; all have {SIZE} pixels a side\n" in printed.out
    assert "No generated images were added to: BNE (5 real)" in printed.out
    assert printed.err.startswith("cellaug: nobody has measured how near")
    words[words.index("--out") + 1] = str(tmp_path / "more")
    assert cli.main([*words, "--size", "original"]) == 0
    assert "their sharpness can tell them from generated ones" in capsys.readouterr().out
    assert cli.main([*words, "--size", "big"]) == 2
    assert "Invalid value for '--size'" in capsys.readouterr().err


def test_arguments_are_looked_at_before_tensorflow_is_loaded(saved, cells, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    made = ["generate", "--generator", str(saved), "--count", "1", "--out"]
    grown = ["augment", str(cells), "--generator", str(saved), "--out"]
    damaged = shutil.copytree(saved, tmp_path / "damaged")
    (damaged / "generator.json").write_text("{")
    calls = [
        ([*made, str(tmp_path / "full")], "is not empty"),
        ([*made, str(tmp_path / "new"), "--label", "blast"], "knows no class 'blast'"),
        ([*grown, str(tmp_path / "full")], "is not empty"),
        ([*grown, str(cells / "inner")], "lies inside the data set"),
        (
            [*grown, str(tmp_path / "new"), "--class-map", str(tmp_path / "none")],
            "there is no such file",
        ),
        (["generate", "--generator", str(damaged), *made[3:], str(tmp_path / "new")], "JSON"),
    ]
    code = "import json, sys; from cellaug.cli import main\n"
    code += "for words in json.loads(sys.argv[1]): assert main(words) == 2\n"
    code += "assert not {'tensorflow', 'jax', 'keras'} & set(sys.modules)"
    words = [sys.executable, "-c", code, json.dumps([call for call, _ in calls])]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "nobody has measured" not in line]
    for line, (_, message) in zip(lines, calls, strict=True):
        assert message in line and line.startswith("cellaug: ")


# --- how many, for which classes, and which of them -----------------------------------------------


def test_classes_are_filled_up_to_a_number(saved, dataset, tmp_path):
    made = augment(dataset, load_generator(saved), 0.5, tmp_path / "out", fill=5)
    added = made[made["origin"] == "synthetic"]["label"].value_counts().to_dict()
    assert added == {"eosinophil": 1, "platelet": 3}  # beside 5, 4 and 2 real ones
    assert open_dataset(tmp_path / "out").counts().to_list() == [5, 5, 5]


def test_only_the_named_classes_get_images(saved, dataset, tmp_path):
    made = augment(dataset, load_generator(saved), 1.0, tmp_path / "out", only=["platelet"])
    added = made[made["origin"] == "synthetic"]["label"].value_counts().to_dict()
    assert added == {"platelet": 2} and (made["origin"] == "real").sum() == 11
    with pytest.raises(DataError, match="has no class platelets: band neutrophil, eosinophil"):
        augment(dataset, load_generator(saved), 1.0, tmp_path / "no", only=["platelets"])
    assert not (tmp_path / "no").exists()


def test_ratio_and_fill_are_two_ways_to_say_how_many(saved, cells, tmp_path, capsys):
    order = ["augment", str(cells), "--generator", str(saved), "--out", str(tmp_path / "out")]
    assert cli.main([*order, "--ratio", "1", "--fill", "9"]) == 2
    assert "--ratio and --fill both say how many" in capsys.readouterr().err


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Phantoms of three classes, and a barely trained generator of them."""
    from cellaug.data.phantom import phantom

    folder, names, _ = phantom(classes=3, images=240, size=32, seed=8, imbalance=1.5)
    shown = open_dataset(folder, class_names=names)
    gan = Recipe(generator_depth=16, discriminator_depth=8, latent_dim=8).build(32, 3)
    place = tmp_path_factory.mktemp("drawn") / "generator"
    save_generator(gan.trained_generator, place, class_names=names, dataset=shown)
    return folder, place, names


def test_a_selection_refuses_what_is_no_cell_and_says_so(drawn, tmp_path, monkeypatch, capsys):
    """Cells of an untrained generator are not like the real ones, and real ones would pass."""
    from functools import partial

    from cellaug.evaluation import selection

    folder, place, names = drawn
    monkeypatch.setattr(selection, "selector_of", partial(selection.selector_of, steps=150))
    out = tmp_path / "out"
    order = ["augment", str(folder), "--generator", str(place), "--out", str(out)]
    assert cli.main([*order, "--fill", "110", "--select"]) == 0
    printed = capsys.readouterr()
    assert "learning what to select by takes about two minutes" in printed.err
    judged = pd.read_csv(out / "selection.csv", keep_default_na=False)
    manifest = pd.read_csv(out / "manifest.csv")
    made = manifest[manifest["origin"] == "synthetic"]
    counts = open_dataset(folder, class_names=names).counts()
    kept = judged[judged["kept"]]
    assert (judged["kept"] == (judged["reason"] == "")).all()
    assert len(made) == len(kept) < (110 - counts).clip(lower=0).sum()
    assert made["index"].astype(int).tolist() == kept["index"].tolist()
    for name, count in counts.items():
        own = judged[judged["label"] == name]
        assert len(own) in (0, TRIES * (110 - count))  # too few were good: all tries were used
    assert "far from all training images" in printed.out or "kept" in printed.out
    assert cv2.imread(str(out / "refused.png")) is not None
    assert cli.main(["inspect", str(out)]) in (0, 1)


def test_refused_images_of_a_mapped_class_are_drawn_again(saved, theirs, tmp_path):
    """Of a class of which every image was refused, no row of the manifest says how it was drawn."""

    class Strict:
        def number(self, name):
            return 0

        def choose(self, images, kind, count):
            return np.zeros(0, int), pd.DataFrame(
                {"kept": False, "reason": ["class"] * len(images)}
            )

    generator, told = load_generator(saved), {"Band Neutrophile": "platelet", "SNE": "leave"}
    order = {"only": ["Band Neutrophile"], "class_map": told, "selector": Strict()}
    made = augment(theirs, generator, 0.2, tmp_path / "out", 4, **order)
    assert (made["origin"] == "real").all()
    (images,) = refused_images(tmp_path / "out", generator, 4).values()
    expected = generator.generate("platelet", TRIES, (4, NAMES.index("platelet")))
    np.testing.assert_array_equal(images, expected)


def test_selection_of_generated_images_alone(drawn, tmp_path, monkeypatch, capsys):
    from functools import partial

    from cellaug.evaluation import selection

    folder, place, names = drawn
    monkeypatch.setattr(selection, "selector_of", partial(selection.selector_of, steps=150))
    order = ["generate", "--generator", str(place), "--count", "4", "--out", str(tmp_path / "out")]
    assert cli.main([*order, "--select", str(folder)]) == 0
    judged = pd.read_csv(tmp_path / "out/selection.csv", keep_default_na=False)
    assert set(judged["label"]) == set(names) and len(judged) <= 3 * 4 * TRIES
    # the same images as without a selection, but for those that were refused
    assert cli.main([*order[:-1], str(tmp_path / "all")]) == 0
    for path in (tmp_path / "out").glob("*.png"):
        if (twin := tmp_path / "all" / path.name).exists():
            assert path.read_bytes() == twin.read_bytes()
    other = tmp_path / "other"
    (other / "x").mkdir(parents=True)
    write_png(other / "x" / "1.png", np.zeros((20, 20, 3), np.uint8))
    capsys.readouterr()
    assert cli.main([*order[:-1], str(tmp_path / "no"), "--select", str(other)]) == 2
    assert "other has no class phantom segmented neutrophil" in capsys.readouterr().err
