"""The ablation study, shipped weights, and the studies run for real at a small setting."""

import json
import re
import shutil
from dataclasses import asdict, replace
from itertools import pairwise

import cellaug.train as work
from cellaug import cli, figures
from cellaug.book import chapter as book
from cellaug.data import DataError, open_dataset, split, to_uint8
from cellaug.data.images import decode, write_png
from cellaug.data.phantom import phantom
from cellaug.errors import BookError
from cellaug.evaluation.distances import frechet_distance, kernel_distance
from cellaug.evaluation.features import SIZES, Extractor, load_extractor
from cellaug.evaluation.scorecard import compact, scorecard, tidy
from cellaug.evaluation.texture import PERIODS
from cellaug.generators import (
    CARD,
    DISCRIMINATOR,
    SHIPPED,
    WEIGHTS,
    load_discriminator,
    load_generator,
    load_weights,
    save_weights,
    shipped_generators,
)
from cellaug.networks import blood_extractor, conditional_generator, discriminator
from cellaug.training import Recipe
from studies import broken, extractor, ladder, weights
from studies.common import stored_splits, verdicts

import cv2
import keras
import numpy as np
import pytest
from processes import python

# Tracing lines takes a tenth of the time, and other tests cover what the package has of this.
pytestmark = pytest.mark.no_cover


def differences(one: ladder.Arm, other: ladder.Arm) -> set[str]:
    a, b = asdict(one), asdict(other)
    return {key for key in a if a[key] != b[key]}


def test_every_step_changes_what_it_names_and_nothing_else():
    recipes = ladder.recipes()
    names = list(ladder.STEPS)
    assert names[0] == "thesis" and recipes["thesis"] == ladder.THESIS
    for before, name in pairwise(names):
        changed = differences(recipes[before], recipes[name])
        assert changed == set(ladder.STEPS[name]) and len(changed) == 1
    last = recipes[names[-1]]
    for name, value in asdict(Recipe()).items():  # the last step is the recipe
        if name not in ("generator_depth", "seed"):
            assert getattr(last, name) == value, name
    for name, change in ladder.VARIANTS.items():
        assert differences(last, recipes[name]) == set(change), name
    before = recipes["real symmetries"]
    assert differences(before, recipes[ladder.LINEAR]) == {"last_activation"}


def cells_of(**options):
    folder, _, _ = phantom(**{"classes": 3, "size": 16, "seed": 3, "imbalance": 2} | options)
    return open_dataset(folder)


@pytest.fixture(scope="module")
def cells():
    return cells_of(images=330)


SMALL = {"generator_depth": 8, "discriminator_depth": 4, "latent_dim": 6}


@pytest.mark.parametrize(
    ("arm", "stages", "expected"),
    [
        # Of 330 images in batches of 20 and of 32 an epoch takes 320; 500, and 100 of 600 asked.
        ("thesis", ["vanilla", "ac_gan"], 2 * 320 + 320),
        ("WGAN", ["conditional"], 2 * 320),  # five steps on 32 images each are a batch
    ],
)
def test_an_arm_sees_the_images_it_is_given(cells, arm, stages, expected, tmp_path):
    """Both kinds: two stages on a frozen pair, and one stage with five critic steps."""

    def run():
        return ladder.train(replace(ladder.recipes()[arm], **SMALL), cells, 16, 600, tmp_path)

    gan, histories, seen = run()
    images = gan.generate(np.zeros((3, 6)), np.arange(3))
    assert images.shape == (3, 16, 16, 3) and seen == expected
    *_, history = histories.values()
    assert {"diversity", "d_loss", "g_loss"} <= set(history)
    assert list(histories) == stages and {path.stem for path in tmp_path.iterdir()} == set(stages)
    again, repeated, seen = run()
    assert seen == expected
    for stage in stages:  # what is done is not done again
        assert repeated[stage].equals(histories[stage])
    np.testing.assert_array_equal(again.generate(np.zeros((3, 6)), np.arange(3)), images)


@pytest.fixture
def eager():
    """Steps that TensorFlow does not compile, which takes longer than the few that are done."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config")  # it reads data as ever
@pytest.mark.parametrize("arm", [*ladder.VARIANTS, ladder.LINEAR, "one conditional pair"])
def test_every_variant_can_be_trained(cells, arm, tmp_path, request):
    """WGAN-GP compiled, since no other test does that; of the others some test does."""
    if arm != "WGAN-GP":
        request.getfixturevalue("eager")
    cells = cells.sample(200, seed=0)
    gan, histories, _ = ladder.train(
        replace(ladder.recipes()[arm], **SMALL), cells, 16, 1, tmp_path
    )
    *_, history = histories.values()
    assert len(history) == 1 and np.isfinite(history.to_numpy()).all()
    assert np.ptp(gan.generate(np.zeros((3, 6)), np.arange(3))) > 0


def test_the_fall_of_the_learning_rate_is_counted_in_the_generators_steps():
    """Twenty batches; with five critic steps four for the generator."""
    arm = replace(ladder.recipes()["wrong labels"], **SMALL, decay=0.5)
    for objective, taken, first, fall in (("relativistic", 1, 10, 10), ("wasserstein", 5, 2, 2)):
        chosen = replace(arm, objective=objective)
        gan = chosen.build(16, 3, 20 // chosen.d_steps)
        for optimizer, own in ((gan.optimizer, 1), (gan.d_optimizer, taken)):
            rate = optimizer._learning_rate
            assert (rate.warmup_steps, rate.decay_steps) == (own * first, own * fall)
    gan = replace(arm, decay=0.0).build(16, 3, 20)
    assert gan.optimizer._learning_rate == arm.learning_rate


def test_unknown_arm(tmp_path):
    with pytest.raises(DataError, match="no arm nonsense: there are thesis, learning rate 2e-4"):
        ladder.run({}, 16, 100, tmp_path, arms=["nonsense"])


def test_a_study_is_run_recorded_and_read(cells, tmp_path, monkeypatch):
    """Two seeds of the first step and one of a variant; a second call does nothing again."""
    splits = split(cells, seed=1)

    def run():
        arms = ["thesis", "kernel 6×6"]
        return ladder.run(splits, 16, 200, tmp_path, arms=arms, seeds=1, end_seeds=2, **SMALL)

    found = run()
    runs = ladder.table(found)
    assert list(zip(runs["arm"], runs["seed"], strict=True)) == [
        ("thesis", 1), ("thesis", 2), ("kernel 6×6", 1),
    ]  # fmt: skip
    assert found["rungs"] == ["thesis"] and found["test_images"] == len(splits["test"])
    assert runs["coverage"].between(0, 2).all() and runs["diversity"].gt(0).all()
    rows = tidy(found["runs"][0]["table"]).set_index(["level", "measure"])
    assert runs["coverage"][0] == rows.loc[("overall", "coverage"), "ratio"].item()
    assert runs["Fréchet distance"].isna().all()  # for 258 images and more
    ends = verdicts(found["runs"][:2])
    # the shipped features do not know drawn cells: values, but verdicts in grey levels only
    worst = [scorecard(run["table"]).loc["diversity_pixels_ratio"] for run in found["runs"][:2]]
    values = [row["value"] for row in worst]
    name = "diversity in grey levels"
    assert ends.loc[name, "mean"] == pytest.approx(sum(values) / 2)
    assert ends.loc[name, "sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert ends.loc[name, ["target from", "target to", "seeds"]].tolist() == [0.8, 1.1, 2]
    assert ends.loc[name, "met"] == sum(row["met"] is True for row in worst)
    assert ends.loc[name, "missed"] == sum(row["met"] is False for row in worst)
    assert "coverage" not in ends.index and "Fréchet distance" not in ends.index
    monkeypatch.setattr(ladder, "train", None)
    assert run() == found

    monkeypatch.setattr(book, "project_root", lambda: tmp_path)
    with pytest.raises(BookError, match="cellaug study ladder --profile small"):
        ladder.recorded("small")
    (tmp_path / "book" / "results").mkdir(parents=True)
    ladder.record(found, tmp_path, "small")
    read, pictures = ladder.recorded("small")
    assert read["runs"] == found["runs"]
    assert pictures.shape == (2, 3, 16, 16, 3)
    for arm, file in enumerate(("thesis-1.png", "kernel-6-6-1.png")):
        row = decode(tmp_path / file)[0]
        np.testing.assert_array_equal(np.concatenate(list(pictures[arm]), axis=1), row)
    none = figures.ladder(runs.assign(recall=np.nan), 1)  # not measured is left out, 0 is shown
    assert len(figures.ladder(runs.assign(recall=0.0), 1).axes) == len(none.axes) + 1
    figures.ladder(runs, 1).savefig(tmp_path / "figure.png")


# What is shipped


@pytest.fixture
def shipped(tmp_path):
    """A directory as the package ships them."""
    keras.utils.set_random_seed(0)
    options = {"size": 16, "depth": 8, "latent_dim": 6, "classes": 3, "kernel": 4}
    model = conditional_generator(**options)
    card = {
        "format": 1,
        "class_names": ["a", "b", "c"],
        "latent_dim": 6,
        "image_size": 16,
        "conditional": True,
        "data_name": "cells",
        "data_hash": "0",
        "credit": "",
        "created": "2026-01-01",
        "builder": "conditional_generator",
        "options": options,
        "sha256": save_weights(model, tmp_path / WEIGHTS),
    }
    (tmp_path / CARD).write_text(json.dumps(card))
    return tmp_path, model, card


def test_weights_survive_as_float16(shipped):
    folder, model, card = shipped
    generator = load_generator(folder)
    assert generator.digest == card["sha256"]
    for kept, weight in zip(generator.model.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(kept, weight.astype(np.float16).astype(np.float32))
    latents = np.random.default_rng(0).standard_normal((8, 6)).astype("float32")
    labels = np.arange(8) % 3
    before, after = (
        keras.ops.convert_to_numpy(m([latents, labels])) for m in (model, generator.model)
    )
    assert np.abs(before - after).max() < 0.01  # about one grey level


def test_a_vanilla_pair_brings_its_discriminator(shipped):
    folder, _, card = shipped
    options = {"size": 16, "depth": 4, "kernel": 4}
    model = discriminator(**options)
    with pytest.raises(FileNotFoundError, match="holds no discriminator"):
        load_discriminator(folder)
    described = {"options": options, "sha256": save_weights(model, folder / DISCRIMINATOR)}
    (folder / CARD).write_text(json.dumps(card | {"discriminator": described}))
    images = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype("float32")
    read = load_discriminator(folder)
    np.testing.assert_allclose(read(images), model(images), atol=0.01)


@pytest.mark.parametrize("kind", ["conditional", "vanilla"])
def test_weights_are_trained_measured_and_written(kind, tmp_path, monkeypatch):
    """The whole way at a small setting, and the directory reads as a shipped one."""
    splits = split(cells_of(images=1900), seed=1)
    small = {"generator_depth": 8, "discriminator_depth": 4, "latent_dim": 6}
    with pytest.raises(DataError, match="gama"):
        weights.train(tmp_path / "never", splits, 300, 16, gama=0.1)
    out = tmp_path / f"cells-{kind}-16"
    weights.train(out, splits, 300, 16, kind, {"resamples": 20, "cas": False}, **small)
    generator = load_generator(out)
    assert generator.conditional == (kind == "conditional")
    card = generator.card
    assert card["training"]["images_seen"] >= 192 and len(card["fidelity"]["table"]) > 8
    if kind == "conditional":  # the choices that were not made here too
        chosen = {"gamma": 0.02, "wrong_labels": 0.5, "half_life": 10_000, "decay": 0.3}
        assert chosen.items() <= card["training"]["recipe"].items()
    text = (out / "README.md").read_text()
    assert card["sha256"] in text and "## Known weaknesses" in text and "coverage" in text
    assert text.index("## Known weaknesses") < text.index("## Scorecard") < text.index("<details>")
    sheet = decode(out / "samples.png")[0]
    assert "{" not in text and (len(sheet), sheet.shape[1] > 160) == (48, kind == "conditional")
    if kind == "vanilla":
        assert load_discriminator(out).output_shape == (None, 1)
    else:
        assert list(card["class_names"]) == list(splits["train"].class_names)
        monkeypatch.setattr(book, "project_root", lambda: tmp_path)
        (tmp_path / "book" / "results").mkdir(parents=True)
        broken.measure(out, splits, (1.0,), resamples=20)
        facts, table = broken.recorded(out.name)
        assert facts["cells"] == facts["test_images"] == len(splits["test"])
        shares = table[table["measure"] == "colours"]
        assert shares["truncation"].fillna(0).tolist() == [0, 1] and 0 <= facts["broken"] <= 1
        varied = table[table["measure"] == "diversity_features"]["value"].tolist()
        assert varied[1] < varied[0]  # what a truncation costs
        assert {"latent vector", "activations at 4 × 4 pixels"} <= facts["causes"].keys()
        others = replace(splits["test"], class_names=("c", "d", "e"))
        with pytest.raises(DataError, match=r"draws none of the classes of .*: name the profile"):
            broken.measure(out, {**splits, "test": others}, (1.0,))
        arms, work = [next(iter(broken.PENALTIES)), "none"], tmp_path / "work"
        with pytest.raises(DataError, match="no arm R3: there are as before"):
            broken.penalty(out, splits, 150, work, (1,), arms=["R3"])
        with pytest.raises(DataError, match=r"draws none of the classes of .*: name the profile"):
            broken.penalty(out, {**splits, "test": others}, 150, work, (1,), arms=arms)
        broken.penalty(out, splits, 150, work, (1,), 20, arms, discriminator_depth=4)
        facts, table = broken.penalties(out.name)
        assert facts["sha256"] == card["sha256"]
        assert [run["recipe"]["gamma"] for run in facts["runs"]] == [0.02, 0]
        values = table.pivot_table("value", "measure", "arm")
        assert set(table["measure"]) == set(broken.COMPARED)
        assert values.loc["frechet", arms[0]] != values.loc["frechet", "none"]


def test_what_broken_cells_share_is_found():
    """Where the layer's size makes the grey, broken cells are known by it, not by the vector."""
    vector, label = keras.Input((2,)), keras.Input((), dtype="int32")
    layer = keras.layers.Dense(
        192, use_bias=False, kernel_initializer=keras.initializers.Constant(0.3)
    )(vector)
    inside = keras.layers.Reshape((8, 8, 3), name="norm_8")(layer)
    model = keras.Model([vector, label], keras.layers.Activation("tanh")(inside))
    grey = np.linspace(-0.3, 0.3, 500)[:, None, None, None] * np.ones((1, 8, 8, 3))
    train = to_uint8(np.tanh(grey))
    found, share, in_batch = broken.causes(model, np.array([150, 150]), train)
    assert in_batch == share  # nothing here is normalised over a batch
    rng = np.random.default_rng(1)
    rng.permutation(300)
    latents = rng.standard_normal((300, 2))
    assert share == pytest.approx((np.abs(latents.sum(1)) > 1).mean(), abs=0.03)
    known = found["activations at 8 × 8 pixels"]
    assert known["area"] > 0.995 and known["broken"] > 0.3 > known["others"]
    assert 0.55 < found["latent vector"]["area"] < 0.9

    averaged = keras.layers.BatchNormalization(name="norm_last")
    plain = keras.layers.Reshape((8, 8, 3))(layer)
    hot = keras.Model([vector, label], keras.layers.Activation("tanh")(averaged(plain)))
    kept = [
        np.ones(3),
        np.zeros(3),
        np.zeros(3),
        np.full(3, 2.0**-13),
    ]  # averages far from a batch's
    averaged.set_weights(kept)
    _, share, in_batch = broken.causes(hot, np.array([150, 150]), train)
    assert share > 0.9 and 0.6 < in_batch < 0.85  # |z| > 0.3 where the statistics are its own
    assert all(np.array_equal(*pair) for pair in zip(averaged.get_weights(), kept, strict=True))


def test_studies_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Ladder and weights in a copy of the project; their cards again, and on other data."""
    shutil.copytree(book.project_root() / "notebooks", tmp_path / "notebooks")
    results = tmp_path / "book" / "results"
    results.mkdir(parents=True)
    for name in ("drawn", "other"):
        shutil.copytree(cells_of(images=1900).root, tmp_path / name)
    next((tmp_path / "other").rglob("*.png")).unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))

    def study(*words, data="drawn", status=0):
        ladders, others = ("ladder_generator_depth=8",), ("resamples=20", "classifiers=false")
        own = ladders if words[0] == "ladder" else others
        given = (f"data={data}", "image_size=16", *own)
        sets = [word for one in given for word in ("--set", one)]
        assert cli.main(["study", *map(str, words), "--profile", "smoke", *sets]) == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    text = study("ladder", "--arm", "lazy R1", "--images", 1, "--out", "ladder")
    place = tmp_path / "ladder" / "smoke"
    assert "lazy R1" in text and text.endswith(f"{place}\n")
    assert (place / "lazy-r1-1.json").is_file() and not any(results.iterdir())

    words = ("--arm", "conditional", "--images", 1, "--seed", 2, "--out", "weights")
    text, path = study("weights", *words), results / "weights-drawn-16.json"
    assert text == f"{path}\n"
    (run,) = json.loads(path.read_text())["runs"]
    folder = tmp_path / "weights" / "drawn-16-seed-2"
    assert run["seed"] == 2 and run["images_seen"] > 1000
    assert load_generator(folder).digest == run["sha256"]
    card, text = ((folder / name).read_text() for name in (CARD, "README.md"))
    assert "Targets missed: " in text and "Farthest from the real cells of its class" in text
    (folder / "README.md").unlink()
    assert study("cards", "--out", "weights") == f"{tmp_path / 'weights'}\n"
    assert (folder / CARD).read_text() == card and (folder / "README.md").read_text() == text
    with pytest.raises(DataError, match=r"drawn-16-seed-2 was trained on drawn.*name the profile"):
        weights.measure_again(tmp_path / "weights", stored_splits("other", 16))
    assert "trains nothing" in study("cards", "--out", "weights", "--seed", 3, status=2)
    assert "remove --out" in study("broken", "--out", "weights", status=2)
    assert "give their --images" in study("broken", "--arm", "none", status=2)
    with pytest.raises(DataError, match="holds no folder with a"):
        weights.measure_again(tmp_path, {})


def shown(images, **strengths) -> np.ndarray:
    """What `Varied` makes of images in [-1, 1] in training, with these strengths and no others."""
    none = dict.fromkeys(("stain", "light", "zoom", "shift", "blur"), 0.0)
    varied = extractor.Varied(3, **{"probability": 1.0} | none | strengths)
    return keras.ops.convert_to_numpy(varied(images, training=True))


@pytest.fixture(scope="module")
def disc():
    """A blurred violet disc on a light ground, the same whatever its symmetry: (16, 33, 33, 3)."""
    place = np.hypot(*np.mgrid[-16:17, -16:17])[..., None]
    ground, inside = np.array([230, 215, 225]), np.array([110, 60, 150])
    image = ground + (inside - ground) / (1 + np.exp(place - 8))
    return np.repeat((image / 127.5 - 1)[None], 16, axis=0).astype("float32")


def test_other_laboratories_are_imitated_one_change_at_a_time(disc):
    same = shown(disc)
    assert np.abs(same - disc).max() < 0.05  # but for the resampling
    np.testing.assert_array_equal(extractor.Varied(3)(disc), disc)  # not in training
    np.testing.assert_allclose(shown(disc, probability=0.0, stain=0.5, zoom=0.5), disc, atol=1e-6)

    def area(images):
        return (images[..., 1] < 0).sum(axis=(1, 2))

    zoomed = area(shown(disc, zoom=0.25)) / area(same)
    assert zoomed.min() < 0.85 and zoomed.max() > 1.15
    assert 0.8**2 - 0.1 < zoomed.min() and zoomed.max() < 1.25**2 + 0.1
    moved = shown(disc, shift=0.1)
    rows = np.arange(33) @ (1 - moved[..., 1]).sum(axis=2).T / (1 - moved[..., 1]).sum(axis=(1, 2))
    assert 0.5 < np.abs(rows - 16).max() <= 3.4 and np.abs(area(moved) - area(same)).max() < 12
    light = (shown(disc, light=0.1)[:, 0, 0] + 1) / (disc[:, 0, 0] + 1)
    assert 0.78 < light.min() < 0.95 and np.ptp(light / light[:, :1]) > 0.03
    stained = shown(disc, stain=0.3)
    assert stained.min() >= -1 and stained.max() <= 1
    change = np.abs(stained - same).mean(axis=(1, 2, 3))
    assert change.min() > 0.001 and change.max() > 3 * change.min()
    edges = np.abs(np.diff(shown(disc, blur=2.0)[..., 1], axis=2)).max(axis=(1, 2))
    edge = np.abs(np.diff(same[..., 1], axis=2)).max()
    assert edges.min() < 0.8 * edge and edges.max() > 1.05 * edge  # blurred, and sharpened


def test_changes_of_another_laboratory_by_hand():
    images = np.full((2, 20, 20, 3), 200, np.uint8)
    images[:, 9:11, 9:11] = 100
    found = extractor.elsewhere(images)
    assert len(found) == 9 and all(x.shape == images.shape for x in found.values())
    assert found["redder"][0, 0, 0].tolist() == [210, 197, 192]
    assert found["darker"][0, 0, 0].tolist() == [176] * 3  # 0.88 of 200
    assert found["paler"][0, 9, 9].tolist() == [131] * 3  # 255 less 0.8 of 155
    assert found["stronger stain"][0, 9, 9].tolist() == [79] * 3  # 255 (100 / 255)^1.25
    dark = {name: (255.0 - x[0, ..., 0] - 55).clip(0).sum() for name, x in found.items()}
    assert dark["larger"] / 400 == pytest.approx((20 / 16) ** 2, rel=0.1)
    assert dark["smaller"] / 400 == pytest.approx((20 / 24) ** 2, rel=0.2)
    assert found["blurred"][0, 9, 9, 0] > 120 and dark["blurred"] == pytest.approx(400, rel=0.03)


def test_studies_leave_generated_images_out(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    shutil.copytree(cells_of(images=120, imbalance=1).root, tmp_path / "set")
    files = sorted((tmp_path / "set").rglob("*.png"))
    for number, file in enumerate(files):
        if number % 4 == 0:  # as `cellaug generate` writes it
            write_png(file, decode(file)[0], cellaug='{"generator": "g"}')
    splits = stored_splits(str(tmp_path / "set"), 16)
    assert sum(map(len, splits.values())) == len(files) - len(files[::4])
    assert {origin for part in splits.values() for origin in part.table["origin"]} == {"real"}


def test_nets_are_laid_over_images_with_the_strength_that_is_told():
    """A Fourier transform finds each at its period, the sum of both crests at its strength."""
    grey = np.zeros((64, 64, 64, 3), "float32")
    images, strengths = map(np.asarray, extractor.Netted(1)(grey, training=True))
    assert 0.3 < (strengths == 0).mean() < 0.7 and strengths.max() <= 1
    alone = np.flatnonzero((strengths > 0).sum(1) == 1)
    assert len(alone) > 9
    for k in alone:
        (which,) = np.flatnonzero(strengths[k])
        power = np.abs(np.fft.fft2(images[k].mean(-1)))
        rows, columns = np.nonzero(power > power.max() / 2)
        step = 64 // PERIODS[which]
        assert set(np.minimum(rows, 64 - rows) + np.minimum(columns, 64 - columns)) == {step}
        crest = 127.5 * images[k].max()
        assert 0.5 * 16 * strengths[k, which] / 2**0.5 - 1e-3 < crest < 16 * strengths[k, which]
    np.testing.assert_array_equal(extractor.Netted(1)(grey)[0], grey)


def test_a_network_learns_to_see_nets():
    """In new images the strength of each net can be read from features of a small network."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    coarse = rng.uniform(-0.5, 0.5, (512, 4, 4, 3)).astype("float32")
    smooth = np.stack([cv2.resize(values, (32, 32)) for values in coarse])
    labels = (coarse.mean((1, 2, 3)) > 0).astype(int)
    image, task = keras.Input((32, 32, 3)), extractor.NetLoss(9.0)
    model = blood_extractor(2, 32, 8, detail=True)
    shown, strengths = extractor.Netted(0, most=16)(image)
    features, logits = model(shown)
    learner = keras.Model(image, task(logits, features, strengths))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.Adam(3e-3), loss)
    learner.fit(smooth[:384], labels[:384], epochs=25, batch_size=32, verbose=0)
    images, true = extractor.Netted(5, most=16)(smooth[384:], training=True)
    read, true = map(np.asarray, (task.read(model(images)[0]), true))
    together = [np.corrcoef(read[:, k], true[:, k])[0, 1] for k in range(3)]
    assert min(together) > 0.7, together
    np.testing.assert_array_equal(learner(smooth[:9]), model(smooth[:9])[1])  # logits as they are


def test_an_extractor_is_trained_measured_and_written(tmp_path, monkeypatch):
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    splits = stored_splits(str(cells_of(images=200, imbalance=1).root), 16)
    card = extractor.train(tmp_path, splits, size=16, width=8, epochs=8, batch_size=16, nets=1.0)
    model = blood_extractor(3, 16, 8, detail=True)
    load_weights(model, tmp_path / f"blood-extractor-{card['size']}.npz", card["sha256"])
    test = splits["test"]
    answers = Extractor(model, card, "")(test.read(16))[1].argmax(1)
    assert card["accuracy"] == pytest.approx((answers == test.labels).mean())
    assert 0.3 < card["accuracy"] <= 1 and card["images_seen"] > 200
    said = f"Accuracy**: {100 * card['accuracy']:.1f} %"
    assert said in (tmp_path / "blood-extractor-16.md").read_text()


def test_an_extractor_knows_the_phantoms_of_another_laboratory(tmp_path, monkeypatch):
    """No change costs a tenth; with BatchNorm and symmetries alone paler cells cost two tenths.

    Of phantom-2, another laboratory in all at once, it knows 0.56, and such a network 0.38.
    """
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))
    drawn = cells_of(classes=6, images=1200, size=32, imbalance=1)
    splits = stored_splits(str(drawn.root), 32)
    card = extractor.train(tmp_path, splits, size=32, width=8, epochs=14, batch_size=32)
    assert card["accuracy"] > 0.7 and len(card["elsewhere"]) == 9
    assert min(card["elsewhere"].values()) > card["accuracy"] - 0.1
    network = blood_extractor(6, 32, 8)
    load_weights(network, tmp_path / f"blood-extractor-{card['size']}.npz", card["sha256"])
    other = open_dataset("phantom-2", classes=6, images=360, size=32, imbalance=1, seed=8)
    seen = Extractor(network, card, "")(other.read(32))[1].argmax(1)
    truth = other.table["class"].astype(str).to_numpy()
    assert (np.array(card["class_names"])[seen] == truth).mean() > 0.48


def test_seeds_are_recorded_one_after_the_other(cells, tmp_path, monkeypatch):
    """A seed replaces itself, another joins it, and a run of another recipe removes both."""
    monkeypatch.setattr(book, "project_root", lambda: tmp_path)
    (tmp_path / "book" / "results").mkdir(parents=True)
    with pytest.raises(BookError, match=r"weights-cells-16\.json is missing: 'cellaug study"):
        weights.recorded("cells-16")
    shipped_card = json.loads((SHIPPED / "pbc-fine-64" / CARD).read_text())
    splits, name = {"train": replace(cells, name="cells-fine")}, "cells-fine-16"

    def trained(
        out, splits, images, size, kind="conditional", measured=None, *, seed, start_from=""
    ):
        card = json.loads(json.dumps(shipped_card))
        card["training"]["recipe"] |= {"seed": seed, "gamma": work.recipe_for(size, seed, {}).gamma}
        card["training"]["images_seen"] = images
        table = tidy(card["fidelity"]["table"])
        columns = ["ratio", "ratio_low", "ratio_high"]
        table.loc[table["measure"] == "coverage", columns] = seed / 10
        card["fidelity"]["table"] = compact(table)
        out.mkdir(parents=True, exist_ok=True)
        (out / CARD).write_text(json.dumps(card))
        made.append(out.name)

    made = []
    monkeypatch.setattr(weights, "train", trained)

    def study(seeds, images=500, arms=("conditional",)):
        return weights.run(tmp_path / "out", splits, images, 16, arms, seeds)

    path = study([2, 1])
    assert made == [f"{name}-seed-2", name]
    assert path == tmp_path / "book" / "results" / f"weights-{name}.json"
    study([8])
    found = weights.recorded(name)
    assert [run["seed"] for run in found] == [1, 2, 8]
    row = verdicts(found).loc["coverage"]
    assert row["mean"] == pytest.approx(1.1 / 3) and (row["met"], row["seeds"]) == (1, 3)
    assert row["missed"] == 2
    assert verdicts(found).loc["memorised", "met"] == 3
    study([1])
    assert len(weights.recorded(name)) == 3
    study([3], images=501)
    assert [run["seed"] for run in weights.recorded(name)] == [3]
    monkeypatch.setitem(work.LARGER, 16, {"gamma": 1.0})
    study([4], images=501)
    assert [run["seed"] for run in weights.recorded(name)] == [4]
    made.clear()
    assert study([4], arms=["vanilla"]) == tmp_path / "out" and made == ["cells-vanilla-16"]
    with pytest.raises(DataError, match="no arm thesis: there are conditional, vanilla"):
        study([1], arms=["thesis"])


def test_damaged_and_foreign_weights(shipped):
    folder, _, card = shipped

    def refused(match, **changes):
        (folder / CARD).write_text(json.dumps(card | changes))
        with pytest.raises(DataError, match=match):
            load_generator(folder)

    refused("builder should be one of .*conditional_generator", builder="eval")
    refused("conditional_generator cannot be built", options={"colour": 1})
    refused("holds weights of another network", options=card["options"] | {"depth": 16})
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    refused("is not the file that its card describes: train it again, or copy its folder")


LOADING = """
import os, time
import cellaug, keras
import numpy as np
from cellaug.generators import shipped_generators
for name in shipped_generators():
    before = time.process_time()
    generator = cellaug.load_generator(name)
    seconds = time.process_time() - before
    columns = 640 // generator.card["image_size"]
    count = columns if generator.conditional else 3 * columns
    images = generator.generate(generator.class_names or None, count)
    file = os.path.join(os.environ["OUT"], f"{name}-{keras.backend.backend()}.npz")
    np.savez(file, images=images, seconds=seconds)
"""


def test_what_is_shipped_draws_what_its_card_shows(tmp_path, monkeypatch):
    names = shipped_generators()
    assert names == ["pbc-fine-128", "pbc-fine-256", "pbc-fine-64", "pbc-vanilla-64"]
    files = [file for kind in ("npz", "npy", "bin") for file in SHIPPED.rglob(f"*.{kind}")]
    assert len(files) > len(names) and sum(file.stat().st_size for file in files) <= 16 * 10**6
    monkeypatch.setenv("OUT", str(tmp_path))
    exec(LOADING, {})
    other = "jax" if keras.backend.backend() == "tensorflow" else "tensorflow"
    done = python(LOADING, other)
    assert done.returncode == 0, done.stderr
    for name in names:
        card = json.loads((SHIPPED / name / CARD).read_text())
        size = card["image_size"]
        sheet = decode(SHIPPED / name / "samples.png")[0]
        sheet = sheet[:, -(640 // size * size) :]  # names are on the left
        shown = sheet.reshape(-1, size, 640 // size, size, 3).swapaxes(1, 2)
        shown = shown.reshape(-1, size, size, 3)
        for backend in ("tensorflow", "jax"):
            with np.load(tmp_path / f"{name}-{backend}.npz") as file:
                assert file["seconds"] < 2  # of the processor: other tests may run beside it
                difference = np.abs(file["images"].astype(int) - shown.astype(int))
            assert difference.mean() < 0.1 and difference.max() <= 4
        assert card["training"]["images_seen"] > 50_000 and card["fidelity"]["table"]
        text = (SHIPPED / name / "README.md").read_text()
        measures = text.partition("```text\n")[2].rpartition("\n```")[0]
        assert "CC BY 4.0" in text and weights.model_card(name, card, measures) == text
        own = text.partition("The same with cells enlarged")[0]
        for row in re.findall(r"(?m)^\| (\w.*) \|$", own)[1:]:  # as the evaluation printed it
            measure, value, *_, verdict = row.split(" | ")
            line = next(line for line in measures.splitlines() if line.startswith(f"{measure}  "))
            assert value in line and line.strip().endswith(verdict.strip("–"))
        recipe = card["training"]["recipe"]
        assert recipe | work.LARGER.get(size, {}) == recipe, "not what the study trains today"
    assert load_discriminator("pbc-vanilla-64").output_shape == (None, 1)


def test_the_penalty_of_larger_images_grows_with_pixels_over_batch():
    usual = Recipe().gamma
    for size, choices in work.LARGER.items():
        pixels, images = (size / 64) ** 2, choices["batch_size"] / 32
        assert choices["gamma"] == pytest.approx(usual * pixels / images)


@pytest.mark.parametrize("size", SIZES)
def test_an_extractor_is_small_and_says_how_good_it_is(size):
    extractor = load_extractor(size)
    assert extractor.size == size
    assert len(extractor.class_names) == 11 and extractor.accuracy > 0.85
    test = extractor.card["test"]
    right = np.trace(np.array(test["confusion"])) / np.sum(test["confusion"])
    assert extractor.accuracy == pytest.approx(right)
    images = np.random.default_rng(0).integers(0, 256, (130, size, size, 3), dtype=np.uint8)
    features, logits = extractor(images)
    assert features.shape == (130, 128) and logits.shape == (130, 11)
    np.testing.assert_allclose(extractor(images[-3:])[0], features[-3:], atol=1e-4)
    large = images[:2].repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(extractor(large)[0], features[:2], rtol=1e-3, atol=1e-3)


def test_images_meet_the_extractor_that_need_not_reduce_them():
    chosen = {size: load_extractor(size).size for size in (16, 64, 65, 128, 256)}
    assert chosen == {16: 64, 64: 64, 65: 128, 128: 128, 256: 128}
    assert load_extractor().size == 64


@pytest.fixture(scope="module")
def large():
    """Cells of 128 pixels: features of one half, and the images of the other.

    A shipped generator draws them, since real ones may be far away.
    """
    generator = load_generator("pbc-fine-128")
    images = generator.generate(generator.class_names, 28)
    return load_extractor(128)(images[::2])[0], images[1::2]


@pytest.mark.parametrize("name", extractor.damaged(np.zeros((1, 8, 8, 3), np.uint8)))
def test_distances_grow_with_damage_of_fine_detail_at_full_size(large, name):
    """Faint nets of dots, a blur of a pixel, lost granules: the stronger the farther."""
    before, images = large
    see = load_extractor(128)
    after = [see(extractor.damaged(images, part / 3)[name])[0] for part in range(4)]
    frechet = [frechet_distance(before, points) for points in after]
    assert np.all(np.diff(frechet) > 0) and frechet[-1] > 1.3 * frechet[0], frechet


@pytest.fixture(scope="module")
def drawn():
    """Features of one half of phantom cells at 64 px and of the other; its images and labels."""
    cells = cells_of(classes=4, images=520, size=64, seed=5, imbalance=1)
    images, half = cells.read(64), np.arange(len(cells)) % 2 == 0
    features, _ = load_extractor()(images)
    return features[half], features[~half], images[~half], cells.labels[~half]


def blurred(images, labels, amount):
    return np.stack([cv2.GaussianBlur(image, (0, 0), amount) for image in images])


def noisy(images, labels, amount):
    noise = np.random.default_rng(0).normal(0, 12 * amount, images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def bluish(images, labels, amount):
    shift = np.array([-12, -6, 12]) * amount
    return np.clip(images + shift, 0, 255).astype(np.uint8)


def of_another_class(images, labels, amount):
    """A growing share of the cells is replaced by cells of class 0."""
    others = np.flatnonzero(labels == 0)
    chosen = np.arange(len(images)) % 4 < amount
    replaced = images.copy()
    replaced[chosen] = images[np.resize(others, chosen.sum())]
    return replaced


def fewer_kinds(images, labels, amount):
    """The set falls back on ever fewer different images, of all classes."""
    images = np.random.default_rng(0).permutation(images)
    return images[np.arange(len(images)) % (len(images) // 4**amount)]


def without_classes(images, labels, amount):
    """So many of the classes are not drawn at all; the others fill their places."""
    return images[np.resize(np.flatnonzero(labels >= amount), len(images))]


@pytest.mark.parametrize(
    "damage", [blurred, noisy, bluish, of_another_class, fewer_kinds, without_classes]
)
def test_distances_grow_with_known_damage(drawn, damage):
    """Each damage three times, growing: both distances to the untouched half grow along."""
    before, untouched, images, labels = drawn
    extractor = load_extractor()
    after = [untouched, *(extractor(damage(images, labels, amount))[0] for amount in (1, 2, 3))]
    frechet = [frechet_distance(before, points) for points in after]
    assert np.all(np.diff(frechet) > 0), frechet
    assert frechet[-1] > 1.5 * frechet[0]
    kernel = [kernel_distance(before, points) for points in after]
    assert np.all(np.diff(kernel) > 0), kernel
    assert kernel[-1] > 1.5 * abs(kernel[0])
