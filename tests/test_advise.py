"""`cellaug advise`: a real study of a small set, its files, and what it concludes from tables."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

from cellaug import cli
from cellaug.classifiers import load_classifier
from cellaug.data import DataError, open_dataset, split
from cellaug.data.class_map import begun_as
from cellaug.data.images import write_png
from cellaug.generators import load_generator
from cellaug.networks.dcgan import Even
from cellaug.study import advise, answers, cluster, tasks
from cellaug.study.plan import CLASSIFIER, Run, choices, ordered, read_plan
from cellaug.training import Recipe
from cellaug.training.finetune import begin, choices_of, resize_kernel, take_over

import keras
import numpy as np
import pandas as pd
import pytest
import yaml
from test_study_augmentation import small_xception

SMALL = {"width": 8, "steps": 6, "batch_size": 8}
TINY = {"images": 96, "generator_depth": 8, "discriminator_depth": 4, "batch_size": 16}


def folder_of(cells, place):
    for k, (image, label) in enumerate(zip(cells.read(32), cells.labels, strict=True)):
        kind = place / cells.class_names[label]
        kind.mkdir(parents=True, exist_ok=True)
        write_png(kind / f"{k:03d}.png", image)
    return place


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A laboratory's folder of labelled cells, one class of which is scarce."""
    cells = open_dataset("phantom", classes=3, images=180, size=32, imbalance=3)
    return folder_of(cells, tmp_path_factory.mktemp("lab") / "cells")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A generator of another laboratory, in which one class is called differently."""
    folder = tmp_path_factory.mktemp("trained")
    settings = {"task": "generator", "data": "phantom-2", "image_size": 32, "pool": "one",
                "options": {"classes": 3, "images": 90, "size": 32}, "seed": 1, "start_from": "",
                "subset": {"scarcity": "all"}, "generator": "recipe", "class_map": {},
                **TINY}  # fmt: skip
    tasks.perform("generator", settings, str(folder), {})
    return folder / "generator" / "generator"


def in_process(runs, folder, scheduler="", workers=None, hours=None):
    """The runs one after another, without a cluster, which other tests start."""
    for run in ordered(runs):
        tasks.perform(run.name, dict(run.settings), str(folder), run.before)
    return []


@pytest.fixture(scope="module")
def advised(lab, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("advised") / "advice"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(advise, "carry_out", in_process)
        patch.setattr(advise, "SIZES", ((1, 1.0),))
        before = {path: path.stat().st_mtime_ns for path in lab.rglob("*")}
        options = {"size": 32, "classifier": SMALL, "generator": TINY, "start_from": str(trained)}
        found = advise.advise(str(lab), out, **options)
        assert before == {path: path.stat().st_mtime_ns for path in lab.rglob("*")}
        changed = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
        assert (
            advise.advise(str(lab), out, **options)["arm"] == found["arm"]
        )  # nothing is done again
        assert changed == {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
        with pytest.raises(DataError, match="was begun before classifier has changed"):
            advise.advise(str(lab), out, **options | {"classifier": SMALL | {"steps": 7}})
    return found, out


def test_a_study_of_a_laboratorys_cells_ends_in_advice(advised, lab):
    found, out = advised
    assert json.loads((out / "advice.json").read_text()) == json.loads(json.dumps(found))
    assert set(found["arms"]) == {"as they are", "even, classical", "duplicates, classical",
                                  "quarter synthetic, classical", "half synthetic, classical",
                                  "half selected, classical",
                                  "half synthetic, trained further, classical"}  # fmt: skip
    assert all(row["n"] == 1 for row in found["arms"].values())
    means = {arm: row["validation"] for arm, row in found["arms"].items() if arm in advise.REAL}
    assert found["best_without"] == max(means, key=means.get)
    assert found["augment"] is False and found["arm"] == found["best_without"]  # one seed
    page = (out / "advice.html").read_text("utf-8")
    assert "Do not add generated cells" in page and "Not for diagnosis" in page
    assert page.count("data:image/png;base64,") == 3 and "http" not in page
    for name in found["set"]["classes"]:
        assert name in page
    counts = {name: sum(sides.values()) for name, sides in found["set"]["classes"].items()}
    assert counts == open_dataset(lab).counts().to_dict()
    classifier = load_classifier(out / "classifier")
    assert set(classifier.class_names) == set(counts)
    assert not (out / "generator").exists()


def test_both_generators_are_evaluated_or_it_is_said_why_not(advised):
    made = advised[0]["generators"]
    if "problem" in made:
        assert made["problem"].startswith("the generators cannot be compared: ")
    else:
        assert made["better"] in made and len(made) == 3


def test_augment_follows_the_advice(advised, tmp_path, capsys, lab):
    found, out = advised
    given = ["augment", str(lab), "--advice", str(out), "--out", str(tmp_path / "more")]
    assert cli.main(given) == 2
    assert "advises against generated cells: " in capsys.readouterr().err
    other = tmp_path / "advice"
    other.mkdir()
    runs = [json.loads(file.read_text()) for file in (out / "runs").glob("generator-*/run.json")]
    place = next(run["name"] for run in runs if not run["settings"]["start_from"])
    (other / "generator").symlink_to(out / "runs" / place / "generator")
    told = advise.ordered_by(choices(advise.MADE["half synthetic"]), 70, "x", out, {})
    (other / "advice.json").write_text(json.dumps(found | {"augment": True} | told))
    given[3] = str(other)
    capsys.readouterr()
    assert cli.main(given) == 0
    assert "in training show every class equally often" in capsys.readouterr().out
    before, after = (split(open_dataset(place)) for place in (lab, tmp_path / "more"))
    assert len(before["train"].counts()[before["train"].counts() < 70])
    assert after["train"].counts().to_dict() == before["train"].counts().clip(lower=70).to_dict()
    assert after["test"].counts().to_dict() == before["test"].counts().to_dict()
    given += ["--generator", str(other / "generator")]
    assert cli.main([*given[:-3], "x", *given[-2:]]) == 2
    assert "expected either --generator DIR or --advice DIR" in capsys.readouterr().err
    (other / "advice.json").write_text("[]")
    assert cli.main(given[:6]) == 2
    assert "expected what 'cellaug advise' writes" in capsys.readouterr().err


def test_too_few_images_end_in_advice_to_collect(tmp_path, capsys, monkeypatch):
    cells = open_dataset("phantom", classes=2, images=40, size=32)
    rows = [*np.flatnonzero(cells.labels == 0), *np.flatnonzero(cells.labels == 1)[:2]]
    few = folder_of(cells.subset(rows), tmp_path / "cells")
    order = ["advise", str(few), "--out", str(tmp_path / "out")]
    assert cli.main(order) == 0
    assert "collect more images of " in capsys.readouterr().out
    page = tmp_path / "out" / "advice.html"
    assert "Collect more images first" in page.read_text()
    shutil.copytree(few, tmp_path / "fewer")
    assert cli.main(["advise", str(tmp_path / "fewer"), *order[2:]]) == 2  # of another set
    assert "collect more images of " not in capsys.readouterr().out
    (tmp_path / "map.yaml").write_text("a: b\n")
    assert cli.main([*order, "--class-map", str(tmp_path / "map.yaml")]) == 2
    assert "--class-map says how --start-from is to begin" in capsys.readouterr().err
    folder_of(cells, few)  # the rest has come: a study begins in the same folder
    monkeypatch.setattr(advise, "step_times", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(order)
    page.write_text("the advice of that study")
    assert cli.main(["advise", str(tmp_path / "fewer"), *order[2:]]) == 2
    assert "was begun before the images have changed" in capsys.readouterr().err
    assert page.read_text() == "the advice of that study"


def test_the_command_that_follows_an_advice_is_whole():
    arm = choices({**advise.MADE["half selected"], "ratio": 1.0})
    found = advise.ordered_by(arm, 30, "my cells.csv", Path("out"), {"label": "cell type"})
    words = shlex.split(found["command"])
    assert words[2] == "my cells.csv" and words[-1] == "--columns=label=cell type"
    assert found["order"] == {"ratio": 1.0, "select": True}
    assert "with generated cells 50 % of the images shown are generated" in found["train"]


def test_a_schedulers_workers_are_counted():
    with cluster.LocalCluster(
        1, threads_per_worker=3, processes=False, protocol="tcp://", dashboard_address=None
    ) as workers:
        assert cluster.at_once(workers.scheduler_address, 7) == 3
    assert cluster.at_once("", 7) == 7 and cluster.at_once() == cluster.workers_here()[0]


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds other files"):
        advise.require_same(tmp_path / "study.json", {"hash": "a"})
    (tmp_path / "new" / "x").parent.mkdir()
    advise.require_same(tmp_path / "new" / "study.json", {"hash": "a"})
    with pytest.raises(DataError, match="begun before the images have changed"):
        advise.require_same(tmp_path / "new" / "study.json", {"hash": "b"})


def test_the_study_is_sized_to_the_hours(tmp_path):
    counts = pd.DataFrame({"train": [100, 30], "validation": 20, "test": 20}, ["a", "b"])
    settings = {"data": "x", "options": {}, "image_size": 64, "start_from": "", "class_map": {},
                "classifier": {"steps": 3000}, "generator": {"images": 60_000}}  # fmt: skip
    times = {"classifier_step": 0.05, "generator_step": 0.4}
    times |= {"select_step": 0.02, "compare_step": 0.01}
    plan, seconds = advise.sized(tmp_path, settings, counts, times, 24, 2)
    assert max(block["seeds"] for block in plan.blocks) == 10 and seconds < 24 * 3600
    runs = ordered(plan.runs())
    kinds = pd.Series([run.settings["task"] for run in runs]).value_counts()
    assert kinds["classifier"] == 10 * (6 + 2) and kinds["generator"] == kinds["select"] == 10
    own = kinds["classifier"] * 3000 * 0.05 + kinds["generator"] * 60_000 / 32 * 0.4
    own += kinds["select"] * (tasks.TRIES * 70 * 0.02 + 130 * 0.01)  # to fill b, beside all others
    assert advise.too_few(plan, settings, counts, times, 2) == ""
    assert seconds == pytest.approx((own + advise.OVERHEAD * len(runs)) / 2)
    again, _ = advise.sized(tmp_path, settings, counts, times, 0.1, 2)  # a stopped one goes on
    assert again.text == plan.text
    (tmp_path / "plan.yaml").unlink()
    less, seconds = advise.sized(tmp_path, settings, counts, times, 0.8, 2)
    assert less.generator["images"] < 60_000 and seconds < 0.8 * 3600
    said = advise.too_few(less, settings, counts, times, 2)
    assert said.startswith("3 seeds are too few for a verdict; --hours ") and said.endswith("g 5")
    (tmp_path / "plan.yaml").unlink()
    hours = float(said.split("--hours ")[1].split()[0])
    more, _ = advise.sized(tmp_path, settings, counts, times, hours, 2)
    assert max(block["seeds"] for block in more.blocks) == 5
    (tmp_path / "plan.yaml").unlink()
    with pytest.raises(
        DataError, match=r"the smallest study of these cells takes about .* --hours"
    ):
        advise.sized(tmp_path, settings, counts, times, 0.01, 2)
    assert plan.arms["half synthetic, classical"]["ratio"] == "fill"
    even = advise.planned(settings, counts.assign(train=[100, 90]), 3, 1.0)
    assert even["arms"]["half synthetic, classical"]["ratio"] == 1.0


def tables(gain, seeds=6, copies=0.7):
    """Results of a study in which half synthetic is `gain` better than even, classical."""
    settings = {"data": "x", "options": {}, "image_size": 64, "start_from": "", "class_map": {}}
    counts = pd.DataFrame({"train": [100, 30]}, ["a", "b"])
    settings |= {"classifier": {"steps": 9}, "generator": {"images": 9}}
    text = yaml.safe_dump(advise.planned(settings, counts, 6, 1.0))
    levels = {"as they are": 0.6, "even, classical": 0.8, "duplicates, classical": copies,
              "half synthetic, classical": 0.8 + gain}  # fmt: skip
    rows = [("all", arm, level, 200) for arm, level in levels.items()]
    rows += [("half", "even, classical", 0.7, 100), ("quarter", "even, classical", 0.6, 50)]
    return text, rows, seeds


def results_of(tmp_path, gain, seeds=6, copies=0.7):
    text, rows, seeds = tables(gain, seeds, copies)
    (tmp_path / "plan.yaml").write_text(text)
    plan, made = read_plan(tmp_path / "plan.yaml"), []
    for scarcity, arm, level, images in rows:
        for seed in range(1, seeds + 1):
            row = {"run": f"{scarcity} {arm} {seed}", "scarcity": scarcity, "arm": arm, "class": "",
                   "seed": seed, "measure": "macro_f1", "taxonomy": "fine", "real_images": images,
                   **plan.classifier}  # fmt: skip
            value = level + 0.002 * (seed % 3 - 1) * (1 + arm.startswith("half"))
            for where in (answers.OWN, answers.VALIDATION):
                made.append(row | {"tested_on": where, "value": value})
    pairs = []
    values = {arm: level for scarcity, arm, level, _ in rows if scarcity == "all"}
    for contrast in plan.contrasts:
        if contrast.arm in values:
            mean = values[contrast.arm] - values[contrast.against]
            found = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": seeds}
            pairs.append(vars(contrast) | {"class": "", "tested_on": answers.OWN, **found})
    none = pd.DataFrame()
    return answers.Results(plan, pd.DataFrame(made), pd.DataFrame(pairs), none, none, none, none)


@pytest.mark.parametrize(
    ("gain", "seeds", "called", "augment"),
    [(0.05, 6, "better", True), (-0.05, 6, "worse", False), (0.002, 6, "undecided", False),
     (0.05, 3, "too few seeds", False)],
)  # fmt: skip
def test_generated_cells_are_recommended_only_for_a_certain_gain(
    tmp_path, gain, seeds, called, augment
):
    found = advise.conclude(results_of(tmp_path, gain, seeds))
    assert (found["verdict"], found["augment"]) == (called, augment)
    assert found["arm"] == ("half synthetic, classical" if augment else "even, classical")
    assert found["best_without"] == "even, classical"
    assert found["gain"]["mean"] == pytest.approx(gain)
    assert found["gain_without"]["mean"] == pytest.approx(0.2)
    if gain == 0.05:  # the curve rises by 0.1 for each doubling: 0.05 is worth 200 (√2 − 1)
        assert found["worth"]["images"] == pytest.approx(200 * (2**0.5 - 1), rel=0.01)


def test_the_worth_in_real_images_is_of_the_gain_over_the_curves_own_arm(tmp_path):
    found = advise.conclude(results_of(tmp_path, 0.05, copies=0.83))
    assert found["best_without"] == "duplicates, classical"
    assert found["gain"]["mean"] == pytest.approx(0.02)
    assert found["worth"]["over"] == "even, classical"
    assert found["worth"]["images"] == pytest.approx(200 * (2**0.5 - 1), rel=0.01)


def test_too_few_seeds_are_named_as_the_reason(tmp_path):
    found = advise.conclude(results_of(tmp_path, 0.05, 3), "3 seeds are too few")
    assert found["because"].startswith("3 seeds are too few: half synthetic, classical against ")


def test_a_generator_is_trained_further_with_its_own_classes(trained):
    source = load_generator(trained)
    choices = choices_of(source, 32)
    assert choices["generator_depth"] == TINY["generator_depth"]
    theirs = source.class_names
    names = [theirs[0], "Mono", "blast"]
    recipe = Recipe(**choices, discriminator_depth=4, rise=0.5, batch_size=8)
    gan = recipe.build(32, 3, 10)
    begun = begun_as(names, theirs, {"Mono": theirs[1]})
    assert begun == {theirs[0]: theirs[0], "Mono": theirs[1], "blast": ""}
    take_over(gan, source, names, {"Mono": theirs[1]})
    latents = np.random.default_rng(0).standard_normal((2, 100)).astype("f4")
    for network in (gan.generator, gan.averaged):
        mine = network.predict_on_batch([latents, np.array([1, 1], "i4")])
        expected = source.model.predict_on_batch([latents, np.array([1, 1], "i4")])
        np.testing.assert_allclose(mine, expected, atol=1e-5)
    vectors = np.asarray(gan.generator.get_layer("label_vector").weights[0])
    known = np.asarray(source.model.get_layer("label_vector").weights[0])
    np.testing.assert_allclose(vectors[2], known.mean(0), rtol=1e-5)
    rates = [
        float(keras.ops.convert_to_numpy(gan.optimizer._learning_rate(k))) for k in (0, 1, 5, 9)
    ]
    np.testing.assert_allclose(rates, [0, 4e-5, 2e-4, 2e-4], rtol=1e-5)
    with pytest.raises(DataError, match="draws 32 pixels, not 64"):
        choices_of(source, 64)
    with pytest.raises(DataError, match="no class nobody; its classes are"):
        take_over(gan, source, names, {"Mono": "nobody"})
    card = source.card | {"builder": "acgan_generator"}
    with pytest.raises(DataError, match="and this is acgan_generator"):
        choices_of(replace(source, card=card), 32)


def test_a_transposed_convolution_becomes_the_nearest_resize_convolution():
    """One that enlarges smoothly loses nothing; of another no other kernel is nearer."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((2, 3)).astype("f4")  # (out, in)
    pixels = np.zeros((3, 8, 8, 3), "f4")
    for channel in range(3):
        pixels[channel, 4, 4, channel] = 1
    enlarged = keras.layers.UpSampling2D(interpolation="bilinear")(pixels)

    def miss(found, kernel):
        expected = keras.ops.conv_transpose(pixels, kernel, 2, "same")
        answer = keras.ops.conv(enlarged, found, padding="same")
        return float(keras.ops.sum((answer - expected) ** 2))

    row = np.array([1, 3, 3, 1], "f4") / 4
    smooth = np.outer(row, row)[:, :, None, None] * mix
    found = resize_kernel(smooth)
    assert found.shape == (3, 3, 3, 2) and found.dtype == np.float32
    assert miss(found, smooth) < 1e-8
    other = rng.standard_normal((4, 4, 2, 3)).astype("f4")
    found = resize_kernel(other)
    best = miss(found, other)
    assert best > 1
    for _ in range(20):
        step = 0.05 * rng.standard_normal(found.shape).astype("f4")
        assert miss(found + step, other) > best


def test_a_generator_goes_on_with_resize_convolutions(trained):
    """What is no convolution stays as it was, and other layers are refused."""
    source = load_generator(trained)
    choices = {**choices_of(source, 32), "discriminator_depth": 4, "batch_size": 8}
    gan = begin(Recipe(**{**choices, "resize_all": True}), 32, source.class_names, 10, source)
    kinds = {type(layer).__name__ for layer in gan.generator.layers}
    assert "Conv2DTranspose" not in kinds and "Conv2D" in kinds
    np.testing.assert_array_equal(
        gan.generator.get_layer("project").get_weights()[0],
        source.model.get_layer("project").get_weights()[0],
    )
    gan = begin(Recipe(**{**choices, "even": True}), 32, source.class_names, 10, source)
    (kernel,) = source.model.get_layer("up_8").get_weights()
    for network in (gan.generator, gan.averaged):
        found = network.get_layer("up_8").get_weights()[0]
        np.testing.assert_allclose(found, keras.ops.convert_to_numpy(Even()(kernel)), atol=1e-6)
        assert np.abs(found - kernel).max() > 1e-3
    with pytest.raises(DataError, match=r"has the shape .*: leave the choices"):
        wider = Recipe(**{**choices, "generator_depth": 2 * choices["generator_depth"]})
        begin(wider, 32, source.class_names, 10, source)


def test_times_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.applications, "Xception", small_xception)
    settings = {"task": "timing", "data": "phantom", "image_size": 32, "seed": 1,
                "options": {"classes": 3, "images": 60, "size": 32},
                "subset": {"scarcity": "all"}, "trained": TINY,
                "classifier": {**CLASSIFIER, **SMALL, "network": "xception"}}  # fmt: skip
    run = Run(settings)
    found = tasks.perform(run.name, settings, str(tmp_path), {})["found"]
    assert 0 < found["classifier_step"] < 5 and 0 < found["generator_step"] < 5
    assert 0 < found["compare_step"] < found["select_step"] < 1
