"""The augmentation study: its plan, its arms, its rules, and real runs on a real Dask cluster."""

import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from itertools import islice

from cellaug import cli
from cellaug.book.chapter import notebook_file
from cellaug.classifiers import read_classifier
from cellaug.data import DataError, Dataset, open_dataset, split
from cellaug.evaluation.selection import REASONS, learn_selector, refused
from cellaug.generators import CARD
from cellaug.study import cluster, tasks
from cellaug.study.arms import (
    Stock,
    augmentation,
    class_weights,
    draw_subset,
    duplicates,
    extra_counts,
    feed,
    others,
)
from cellaug.study.external import HeldOut, other_laboratory, own_test
from cellaug.study.plan import ARM, Contrast, Run, ordered, read_plan
from cellaug.study.results import (
    contrasts,
    gather,
    merged,
    one_generator,
    record,
    specificity,
    taxonomies,
)
from cellaug.study.statistics import holm, seeds_needed
from cellaug.study.tasks import perform, refuse_test
from cellaug.study.worker import RESULT, clear

import keras
import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from dask.distributed import Client
from PIL import Image

PLANS = notebook_file("studies/augmentation").parent / "plans"


def written(folder, **changes):
    plan = yaml.safe_load((PLANS / "smoke.yaml").read_text("utf-8")) | changes
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan), "utf-8")
    return folder / "plan.yaml"


BLOCK = {"seeds": 1, "scarcities": ["tail-8"], "arms": ["synthetic", "duplicates"]}
CONTRAST = {"arm": "synthetic", "against": "duplicates", "at": ["tail-8"]}


# --- the plan -------------------------------------------------------------------------------------


def test_every_plan_can_be_read_and_lists_runs_once():
    for path in PLANS.glob("*.yaml"):
        runs = read_plan(path).runs()
        names = [run.name for run in ordered(runs)]
        assert len(names) == len(set(names)) > 0, path.name
        places = {name: k for k, name in enumerate(names)}
        for run in ordered(runs):
            assert all(places[other.name] < places[run.name] for other in run.needs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"x": {"extra": "more"}}}, "arms: x: extra 'more': expected none, duplicates"),
        ({"arms": {"x": {"extras": 1}}}, "arms: x: no choice extras: sampling, augment"),
        ({"blocks": [{"seeds": 1, "scarcities": ["no"], "arms": []}]}, "no scarcities no"),
        ({"classifier": {"depth": 3}}, "classifier: no choice depth: network"),
        ({"classifier": {"network": "resnet"}}, "classifier: network 'resnet': expected residual"),
        ({"classifier": {"steps": "many"}}, "classifier: steps 'many': expected a number"),
        ({"seed": 3}, "no choice seed: data, image_size"),
        ({"arms": None}, "arms is missing or empty"),
        ({"arms": ["x"]}, r"arms \['x'\]: expected 'key: value'"),
        (
            {"arms": {"x": {"ratio": "filled"}}},
            "arms: x: ratio 'filled': expected fill or a number",
        ),
        ({"scarcities": {"x": {"image": 3}}}, "scarcities: x: no choice image: images, share"),
        ({"blocks": [{"scarcities": ["tail-8"], "arms": []}]}, "blocks: seeds is missing"),
        ({"blocks": [{"seeds": 1, "scarcities": ["tail-8"]}]}, "blocks: arms is missing"),
        ({"blocks": [BLOCK | {"classifier": {"norm": "no"}}]}, "norm 'no': expected batch, group"),
        ({"contrasts": [{"arm": "synthetic", "against": "duplicates"}]}, "at is missing"),
        ({"contrasts": [CONTRAST | {"where": 1}]}, "contrasts: no choice where: arm, against, at"),
        ({"contrasts": [CONTRAST | {"measure": "f1"}]}, "measure 'f1': expected macro_f1"),
        ({"taxonomies": {"coarse": None}}, "taxonomies: coarse: expected lines 'class: "),
        (
            {"contrasts": [{"arm": "none", "against": "synthetic", "at": ["tail-8"]}]},
            "contrasts: no block has none at tail-8",
        ),
    ],
)
def test_wrong_plans_are_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match="plan.yaml: .*" + message.replace("(", r"\(")):
        read_plan(written(tmp_path, **changes))


def test_what_is_left_empty_in_a_plan_is_as_usual(tmp_path):
    arms, scarcities = {"real": None}, {"all": None}
    blocks = [{"seeds": 1, "scarcities": ["all"], "arms": ["real"], "classifier": None}]
    new = {"arms": arms, "scarcities": scarcities, "blocks": blocks, "contrasts": None}
    (run,) = read_plan(written(tmp_path, **new)).runs()
    new |= {"arms": {"real": {}}, "scarcities": {"all": {}}, "contrasts": []}
    assert read_plan(written(tmp_path, **new)).runs() == [run]


def test_a_taxonomy_of_other_classes_is_refused(tmp_path):
    plan = read_plan(written(tmp_path, taxonomies={"two": {"blast": "immature"}}))
    with pytest.raises(DataError, match="two: of blast none is a class, as are a, b"):
        taxonomies(plan, ["a", "b"])


def test_generators_that_differ_have_names_that_do(tmp_path):
    """0.002 is the classifier's usual learning rate, and not the recipe's."""
    recipes = {"a": {}, "b": {"learning_rate": 0.002}, "c": {"batch_size": 32}}
    arms = {name: {"extra": "generated", "recipe": recipe} for name, recipe in recipes.items()}
    blocks = [{"seeds": 1, "scarcities": ["tail-8"], "arms": [*arms]}]
    plan = read_plan(written(tmp_path, arms=arms, blocks=blocks, contrasts=[]))
    assert (
        len({run.needs[0].name for run in plan.runs()}) == len({r.name for r in plan.runs()}) == 3
    )


def test_a_generator_with_an_unknown_choice_is_refused_before_the_first_run(tmp_path):
    plan = read_plan(written(tmp_path, generator={"images": 96, "epoch": 3}))
    with pytest.raises(DataError, match="generator: no choice epoch: generator_depth, "):
        cluster.carry_out(plan.runs(), tmp_path / "runs")


def test_a_plan_that_is_not_there_is_said():
    with pytest.raises(DataError, match="no plan demo in plans: there are pbc, smoke"):
        read_plan(PLANS / "demo.yaml")


def test_a_name_holds_all_that_makes_a_run_and_no_usual_choice(tmp_path):
    plan = read_plan(written(tmp_path))
    synthetic = plan.run("tail-8", "synthetic", 1, plan.classifier)
    duplicate = plan.run("tail-8", "duplicates", 1, plan.classifier)
    assert [run.settings["task"] for run in synthetic.needs] == ["generator"]
    assert not duplicate.needs
    named = {synthetic.name, duplicate.name}
    for change in (
        {"generator": {"images": 641}},
        {"classifier": {"steps": 121}},
        {"image_size": 64},
        {"options": {"classes": 4, "images": 321, "size": 48}},
    ):
        other = read_plan(written(tmp_path, **change))
        named.add(other.run("tail-8", "synthetic", 1, other.classifier).name)
    assert len(named) == 6
    usual = {key: value[0] if isinstance(value, tuple) else value for key, value in ARM.items()}
    spelled = {"duplicates": {**usual, "extra": "duplicates"}, "synthetic": {"extra": "generated"}}
    other = read_plan(written(tmp_path, arms=spelled))
    assert other.run("tail-8", "duplicates", 1, other.classifier).name == duplicate.name


# --- what an arm trains on ------------------------------------------------------------------------


def cells(counts=(30, 20, 12), size=8, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (sum(counts), size, size, 3), np.uint8)
    return Dataset.of_images(images, np.repeat(range(len(counts)), counts), ["a", "b", "c"])


def test_subsets_are_nested_disjoint_and_drawn_anew_by_seed():
    whole = cells()
    few, rest = draw_subset(whole, {"images": 4, "scarce": ["c"]}, seed=1)
    more, _ = draw_subset(whole, {"images": 8, "scarce": ["c"]}, seed=1)
    assert few.counts().to_list() == [30, 20, 4] and rest.counts().to_list() == [0, 0, 8]
    assert set(few.digests) < set(more.digests)
    assert not set(few.digests) & set(rest.digests)
    other, _ = draw_subset(whole, {"images": 4, "scarce": ["c"]}, seed=2)
    assert set(other.digests) != set(few.digests)
    half, rest = draw_subset(whole, {"share": 0.5}, seed=1)
    assert half.counts().to_list() == [15, 10, 6] == rest.counts().to_list()
    assert len(draw_subset(whole, {}, 1)[0]) == len(whole)
    with pytest.raises(DataError, match="class c has 12 training images, not 13"):
        draw_subset(whole, {"images": 13}, 1)
    with pytest.raises(DataError, match="no class d: there are a, b, c"):
        draw_subset(whole, {"images": 3, "scarce": ["d"]}, 1)


def test_extra_images_fill_up_or_follow_the_ratio():
    counts = np.array([30, 20, 4])
    assert extra_counts(counts, "fill").tolist() == [0, 10, 26]
    assert extra_counts(counts, 0.5).tolist() == [15, 10, 2]
    whole = cells()
    images, labels = duplicates(whole, whole.images, np.array([0, 30, 5]), seed=3)
    assert np.bincount(labels).tolist() == [0, 30, 5]
    known = {
        image.tobytes(): label for image, label in zip(whole.images, whole.labels, strict=True)
    }
    assert all(known[i.tobytes()] == label for i, label in zip(images, labels, strict=True))
    times = pd.Series([i.tobytes() for i in images[:30]]).value_counts()
    assert sorted(times) == [1] * 10 + [2] * 10  # all in turn
    train, rest = draw_subset(whole, {"images": 4}, 1)
    more, labels = others(rest, np.array([3, 3, 99]), 8, seed=0)
    assert np.bincount(labels).tolist() == [3, 3, 8]  # all that there are
    assert not {i.tobytes() for i in more} & {i.tobytes() for i in train.images}


def numbered(count, first):
    """Images that say their own number."""
    return np.full((count, 2, 2, 3), np.arange(first, first + count)[:, None, None, None], np.uint8)


def test_arms_of_a_seed_see_the_same_batches_but_for_the_extra_images():
    labels = np.repeat([0, 1], [40, 10])
    none = Stock(numbered(50, 0), labels, numbered(0, 0), np.zeros(0, int))
    one, two = (
        Stock(numbered(50, 0), labels, numbered(30, first), np.ones(30, int))
        for first in (100, 200)
    )
    plain, first, second = (
        [*islice(stock.batches(16, 5, 2, "natural"), 12)] for stock in (none, one, two)
    )
    shown = [np.concatenate([images[:, 0, 0, 0] for images, *_ in part])
             for part in (plain, first, second)]  # fmt: skip
    np.testing.assert_array_equal(shown[1] >= 100, shown[2] >= 100)
    np.testing.assert_array_equal(shown[1] + 100 * (shown[1] >= 100), shown[2])
    real = shown[1][shown[1] < 100]
    np.testing.assert_array_equal(real, shown[0][: len(real)])
    assert 0.25 < (shown[1] >= 100).mean() < 0.5  # 30 of 80
    other = next(none.batches(16, 6, 2, "natural"))[0]
    assert not np.array_equal(other, plain[0][0])
    alone = next(one.batches(16, 5, 2, "natural", 1.0))[0]
    assert alone.min() >= 100 and next(one.batches(16, 5, 2, "natural", 0.0))[0].max() < 100


def test_a_share_of_extra_images_in_the_classes_that_have_some():
    stock = Stock(numbered(50, 0), np.repeat([0, 1], [40, 10]), numbered(30, 100), np.ones(30, int))
    drawn = [*islice(stock.batches(20, 5, 2, "balanced", 0.3), 100)]
    shown, labels = (np.concatenate([part[k] for part in drawn]) for k in (0, 1))
    shown = shown[:, 0, 0, 0]
    assert np.bincount(labels).tolist() == [1000, 1000]
    assert (shown[labels == 0] < 40).all()
    assert 0.25 < (shown[labels == 1] >= 100).mean() < 0.35
    plain = [*islice(stock.batches(20, 5, 2, "balanced", 0.0), 100)]
    reals = np.concatenate([images[:, 0, 0, 0] for images, *_ in plain])
    kinds = np.concatenate([part[1] for part in plain])
    np.testing.assert_array_equal(kinds, labels)  # whatever is shown of a class
    for kind in (0, 1):  # the same order of each class's real images
        mine = shown[(labels == kind) & (shown < 100)]
        np.testing.assert_array_equal(mine, reals[kinds == kind][: len(mine)])


def test_sampling_and_weights():
    labels = np.repeat([0, 1, 2], [80, 16, 4])
    stock = Stock(numbered(100, 0), labels, numbered(0, 0), np.zeros(0, int))
    _, drawn, _ = (np.concatenate(p) for p in zip(*islice(stock.batches(30, 0, 3, "balanced"), 10),
                                                  strict=True))  # fmt: skip
    assert np.bincount(drawn).tolist() == [100, 100, 100]
    _, drawn, weights = (
        np.concatenate(p)
        for p in zip(*islice(stock.batches(100, 0, 3, "weighted"), 2), strict=True)
    )
    from sklearn.utils.class_weight import compute_class_weight

    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(class_weights(labels, 3), expected)
    np.testing.assert_allclose(weights, expected[drawn], rtol=1e-6)
    assert weights.sum() == pytest.approx(200)


@pytest.mark.parametrize("kind", ["classical", "randaugment"])
def test_augmentation_changes_images_in_training_only_and_keeps_the_range(kind):
    rng = np.random.default_rng(0)
    smooth = np.clip(rng.normal(0, 0.5, (16, 4, 4, 3)).repeat(4, 1).repeat(4, 2), -1, 1)
    images = smooth.astype(np.float32)
    layers = augmentation(kind, seed=3)
    np.testing.assert_allclose(layers(images, training=False), images, atol=1e-6)
    changed = np.asarray(layers(images, training=True))
    assert changed.min() >= -1.001 and changed.max() <= 1.001
    apart = np.abs(changed - images).mean(axis=(1, 2, 3))
    assert (apart > 1e-3).mean() > 0.8  # nearly every image, and each in its own way
    assert len(np.unique(apart.round(5))) > 8
    again = augmentation(kind, seed=3)
    np.testing.assert_allclose(again(images, training=True), changed, atol=1e-6)


def test_mixup_mixes_images_and_labels_alike():
    from cellaug.study.arms import Mixed

    rng = np.random.default_rng(0)
    labels = np.arange(8) % 2
    images = np.repeat(labels, 48).reshape(8, 4, 4, 3).astype(np.uint8) * 255
    batches = iter([(images, labels, np.ones(8, np.float32))] * 4)
    mixed = [*feed(batches, 2, Mixed(seed=int(rng.integers(9))))]
    for x, y, _ in mixed:
        np.testing.assert_allclose(y.sum(1), 1, atol=1e-6)
        np.testing.assert_allclose((x.mean(axis=(1, 2, 3)) + 1) / 2, y[:, 1], atol=1e-5)
    values = np.concatenate([y[:, 1] for _, y, _ in mixed])
    assert ((values > 0.01) & (values < 0.99)).any()


# --- no test image is seen ------------------------------------------------------------------------


def test_a_test_image_among_the_training_images_is_refused(monkeypatch):
    parts = split(open_dataset("phantom", classes=3, images=120, size=16))
    parts = {name: part.in_memory(16) for name, part in parts.items()}
    settings = {"subset": {"scarcity": "all"}, "seed": 1}
    monkeypatch.setattr(tasks, "sides", lambda settings: parts)
    assert len(tasks.material(settings).train) == len(parts["train"])
    leak = parts["test"].subset([0])
    table = pd.concat([parts["train"].table, leak.table], ignore_index=True)
    images = np.concatenate([parts["train"].images, leak.images])
    parts["train"] = replace(parts["train"], table=table, images=images)
    with pytest.raises(DataError, match="1 of the images to train on are test images of phantom"):
        tasks.material(settings)
    from cellaug.generators import short_digests

    with pytest.raises(DataError, match="1 of the images to train on are test images"):
        refuse_test(short_digests(leak.digests), parts["test"])


# --- selection ------------------------------------------------------------------------------------


def blob(shape, seed, shade):
    """A smooth image of one shade with details of its own, (32, 32, 3)."""
    rng = np.random.default_rng([seed, shade])
    noise = rng.normal(0, 12, shape).repeat(4, 0).repeat(4, 1)
    return np.clip(shade + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def selector():
    """A selector of dark and bright images; its classifier's features are the means of colours."""
    image = keras.Input((32, 32, 3))
    mean = keras.layers.GlobalAveragePooling2D(name="mean")(image)
    head = keras.layers.Dense(4, name="features")
    features = head(mean)
    answer = keras.layers.Dense(2)
    model = keras.Model(image, answer(features))
    head.set_weights([np.eye(3, 4, dtype="f4"), np.array([0, 0, 0, 1], "f4")])
    slope = np.zeros((4, 2), "f4")
    slope[:3] = [-6, 6]  # bright: class 1
    answer.set_weights([slope, np.zeros(2, "f4")])
    shades = np.repeat([60, 200], 20)
    images = np.stack([blob((8, 8, 1), k, s).repeat(3, 2) for k, s in enumerate(shades)])
    more = np.stack([blob((8, 8, 1), 500 + k, s).repeat(3, 2) for k, s in enumerate(shades)])
    labels = (shades > 128).astype(int)
    train, validation = (Dataset.of_images(i, labels, ["dark", "bright"]) for i in (images, more))
    return learn_selector(model, train, validation), images


def test_selection_refuses_for_each_reason(selector):
    chooser, training = selector
    good = [blob((8, 8, 1), 900 + k, s).repeat(3, 2) for k, s in enumerate([60, 200])]
    red = blob((8, 8, 1), 77, 140).repeat(3, 2)
    red[..., 1:] = 10
    noise = good[1].astype(int)  # as bright, and no redder on the whole
    noise[::2, :, 0] += 40
    noise[1::2, :, 0] -= 40
    made = np.stack([
        noise.clip(0, 255),
        good[0],  # kept
        good[1],  # kept
        good[1],  # asked for as dark
        blob((8, 8, 1), 903, 118).repeat(3, 2),  # dark, but hardly
        red,  # unlike any training image
        training[25][:, ::-1],  # a mirrored training image
        good[0][::-1],  # the first one, upside down
    ]).astype(np.uint8)  # fmt: skip
    asked = np.array([1, 0, 1, 0, 0, 0, 1, 0])
    judged = chooser.judge(made, asked)
    told = ["colours", "", "", "class", "unsure", "outlier", "copy", "twin"]
    assert judged["reason"].tolist() == told
    assert judged["kept"].tolist() == [False, True, True, *[False] * 5]
    table = refused(judged, ["dark" if kind == 0 else "bright" for kind in asked])
    assert table.loc["dark", "kept"] == 1 and table.sum().sum() == 8
    assert set(table.columns) == {"kept", *REASONS}


def test_bounds_of_a_selection_come_from_validation_images(selector):
    chooser, _ = selector
    shades = np.repeat([60, 200], 50)
    fresh = np.stack([blob((8, 8, 1), 2000 + k, s).repeat(3, 2) for k, s in enumerate(shades)])
    judged = chooser.judge(fresh, (shades > 128).astype(int))
    refused_most = judged["reason"].value_counts(normalize=True)
    # real images of the same kind: about a tenth is not sure enough, a hundredth too far
    assert refused_most.get("unsure", 0) < 0.25 and refused_most.get("outlier", 0) < 0.1


# --- measures -------------------------------------------------------------------------------------


def test_taxonomies_add_probabilities_and_specificity_is_that_of_the_book():
    p = np.array([[0.4, 0.35, 0.25], [0.1, 0.2, 0.7]])
    np.testing.assert_allclose(merged(p, np.array([0, 1, 1])), [[0.4, 0.6], [0.1, 0.9]])
    confusion = np.array([[5, 1, 0], [2, 6, 0], [0, 1, 5]])
    np.testing.assert_allclose(specificity(confusion), [12 / 14, 10 / 12, 14 / 14])


# --- every kind of run ----------------------------------------------------------------------------

TINY = {
    "scarcities": {
        "tail-6": {"images": 6, "scarce": ["phantom lymphocyte"]},
        "half": {"share": 0.5},
    },
    "classifier": {"width": 8, "steps": 6, "batch_size": 8},
    "generator": {"images": 96, "generator_depth": 8, "discriminator_depth": 4, "batch_size": 16},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Every arm of the real study, as small as it goes."""
    arms = yaml.safe_load((PLANS / "pbc.yaml").read_text("utf-8"))["arms"]
    arms["half reconstructions of scarce, classical"] = arms["half reconstructions, classical"] | {
        "only": "scarce"
    }
    arms["AC-GAN of other images +50 %"] = arms["AC-GAN +50 %"] | {"pool": "disjoint"}
    blocks = [{"seeds": 1, "scarcities": ["tail-6"], "arms": [*arms]}]
    folder = tmp_path_factory.mktemp("tiny")
    return read_plan(written(folder, **TINY, arms=arms, blocks=blocks, contrasts=[])), folder


def done(tiny, arm, scarcity="tail-6"):
    plan, folder = tiny
    run = plan.run(scarcity, arm, 1, plan.classifier)
    for each in ordered([run]):
        result = perform(each.name, each.settings, str(folder), each.before)
    return result, folder


@pytest.mark.parametrize(
    ("arm", "extra"),
    [
        ("even, MixUp", 0),
        ("half reconstructions, classical", 1),
        ("half interpolations, classical", 1),
        ("pre-training, classical", 1),
        ("synthetic +50 %, classical", 0.5),
    ],
)
def test_every_arm_trains_and_adds_what_it_says(tiny, arm, extra):
    record, folder = done(tiny, arm)
    real = pd.Series(record["found"]["real"])
    assert real["phantom lymphocyte"] == 6
    wanted = {0: real * 0, 1: real.max() - real, 0.5: np.round(real / 2)}[extra]
    assert record["found"]["extra"] == wanted.astype(int).to_dict()
    with np.load(folder / record["name"] / "logits.npz") as logits:
        assert logits["test"].shape[1] == 4 and np.isfinite(logits["test"]).all()
        answers = logits["test"].argmax(1)
    truth = tasks.sides(record["settings"])["test"].labels
    loaded = read_classifier(folder / record["name"] / "classifier")
    assert loaded.card["held_out"]["accuracy"] == pytest.approx((answers == truth).mean())
    assert not [*folder.glob(".*checkpoint*")]


def small_xception(top, weights, input_shape, pooling=None):
    """In place of `keras.applications.Xception`, whose first step takes half a minute."""
    image = keras.Input(input_shape)
    x = keras.layers.Conv2D(8, 3, 4)(image)
    return keras.Model(image, keras.layers.GlobalAveragePooling2D()(x) if pooling else x)


def test_the_classifier_of_the_thesis_is_trained_and_saved(tiny, monkeypatch):
    monkeypatch.setattr(keras.applications, "Xception", small_xception)
    plan, folder = tiny
    run = plan.run("tail-6", "real", 1, plan.classifier | {"network": "xception"})
    record = perform(run.name, run.settings, str(folder), {})
    with np.load(folder / record["name"] / "logits.npz") as logits:
        answers = logits["test"].argmax(1)
    loaded = read_classifier(folder / record["name"] / "classifier")
    found = loaded.predict(tasks.sides(run.settings)["test"].read(32))["class"]
    assert (found == np.array(loaded.class_names, object)[answers]).mean() > 0.9


def test_selection_counts_what_it_refuses(tiny):
    record, folder = done(tiny, "half selected, classical")
    chosen = record["needs"]["select"]
    judged = pd.read_csv(folder / chosen / "judged.csv", keep_default_na=False)
    found = json.loads((folder / chosen / RESULT).read_text("utf-8"))["found"]
    kept = record["found"]["extra"]
    card = json.loads((folder / record["needs"]["generator"] / "generator" / CARD).read_text())
    assert record["found"]["generator_sha256"] == card["sha256"][:16]
    for kind, count in found["wanted"].items():
        own = judged[judged["label"] == kind]
        assert kept[kind] == own["kept"].sum() <= count
        assert len(own) <= tasks.TRIES * count
        reasons = own["reason"].replace("", "kept").value_counts().to_dict()
        assert {k: n for k, n in found["reasons"][kind].items() if n} == reasons


@pytest.mark.parametrize("kind", ["reconstructions", "synthetic"])
def test_generated_images_of_the_scarce_classes_alone(tiny, kind):
    """The same ones as an arm with all classes adds, without those of other classes."""
    every, _ = done(tiny, f"half {kind}, classical")
    alone, _ = done(tiny, f"half {kind} of scarce, classical")
    assert alone["needs"] == every["needs"] and alone["name"] != every["name"]
    wanted = {
        name: n * (name == "phantom lymphocyte") for name, n in every["found"]["extra"].items()
    }
    assert alone["found"]["extra"] == wanted and any(wanted.values())


def test_the_thesis_protocol_gives_the_generator_other_images(tiny):
    record, folder = done(tiny, "AC-GAN of other images +50 %", "half")
    card = json.loads((folder / record["needs"]["generator"] / "generator" / CARD).read_text())
    plan, _ = tiny
    seen = tasks.material(plan.run("half", "real", 1, plan.classifier).settings)
    assert card["data_hash"] == seen.rest.fingerprint != seen.train.fingerprint
    assert card["builder"] == "acgan_generator"
    real, _ = done(tiny, "other real images +50 %, classical", "half")
    assert real["found"]["extra"] == record["found"]["extra"]


def test_a_record_keeps_other_test_sets_and_the_work_of_lost_runs(tiny, tmp_path):
    made, folder, place = "synthetic +50 %, classical", tmp_path / "runs", tmp_path / "tables"
    names = [done(tiny, arm)[0]["name"] for arm in ("real", made)]
    needs = done(tiny, made)[0]["needs"]
    for name in (*names, needs["generator"]):
        shutil.copytree(tiny[1] / name, folder / name)
    block = {"seeds": 1, "scarcities": ["tail-6"], "arms": ["real", made]}
    plan = replace(tiny[0], blocks=(block,), contrasts=(Contrast(made, "real", "tail-6"),))
    others = open_dataset("phantom-2", classes=4, images=40, size=32)
    named = np.array(others.class_names, object)[others.labels]
    lab = HeldOut("lab", others, named, None, own=False)

    def table(name, *more):
        record(plan, folder, place, *more)
        return pd.read_parquet(place / f"{name}.parquet")

    runs = table("runs", lab)
    drawn_by = runs.drop_duplicates("run").set_index("run")["generator_sha256"].to_dict()
    card = json.loads((folder / needs["generator"] / "generator" / CARD).read_text())
    assert drawn_by == {names[0]: "", names[1]: card["sha256"][:16]}
    pairs = pd.read_parquet(place / "contrasts.parquet")
    assert set(pairs["tested_on"]) == {"own test images", "lab"}
    # Recorded again without the other set, all that is known of it is kept.
    again, columns = table("runs"), ["run", "tested_on", "taxonomy", "measure", "class", "value"]
    for frames in ((runs, again), (pairs, pd.read_parquet(place / "contrasts.parquet"))):
        keys = columns if "run" in frames[0] else ["tested_on", "class", "mean"]
        one, other = (f[keys].sort_values(keys, ignore_index=True) for f in frames)
        pd.testing.assert_frame_equal(one, other)
    # A run whose files are gone was never tested on a third set.
    shutil.move(folder / names[0], tmp_path / "kept")
    assert set(table("contrasts", replace(lab, name="third"))["tested_on"]) >= {"lab"}
    shutil.move(tmp_path / "kept", folder / names[0])
    # A generator and its classifier were lost and are trained again: both took their time.
    for name in (names[1], needs["generator"]):
        found = json.loads((folder / name / RESULT).read_text())
        (folder / name / RESULT).write_text(json.dumps(found | {"seconds": 1e6}))
    before = pd.read_csv(place / "work.csv")
    for _ in range(2):  # and it stays so
        runs, work = table("runs"), pd.read_csv(place / "work.csv")
        assert work["seconds"].sum() == pytest.approx(before["seconds"].sum() + 2e6)
        assert set(runs[runs["tested_on"] == "lab"]["run"]) == {names[0]}
    # Earlier records lack the column.
    runs.drop(columns="generator_sha256").to_parquet(place / "runs.parquet", index=False)
    shutil.rmtree(folder / names[1])
    kept = table("runs").groupby("run")["generator_sha256"].unique()
    assert [*kept[names[1]]] == [""]


def test_what_a_killed_worker_left_is_removed(tmp_path):
    name, other = "classifier-0123456789ab", "classifier-ba9876543210"
    for left in (f"..{name}.checkpoint.npz.7-8.part", f"..{other}.checkpoint.npz.7-8.part"):
        (tmp_path / left).write_text("half")  # as `write_atomically` calls it
    (tmp_path / f".{name}.x1y2.part" / "new").mkdir(parents=True)
    clear(tmp_path, name)
    assert [path.name for path in tmp_path.iterdir()] == [f"..{other}.checkpoint.npz.7-8.part"]


def test_a_class_without_other_images_is_named(tiny):
    plan, folder = tiny
    run = plan.run("tail-6", "disjoint +50 %, classical", 1, plan.classifier).needs[0]
    with pytest.raises(DataError, match="no image of phantom segmented neutrophil"):
        perform(run.name, run.settings, str(folder), {})
    assert not [*folder.glob(".*part")]


# --- runs on a cluster ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The smallest study, undisturbed, as a user runs it."""
    folder = tmp_path_factory.mktemp("alone")
    assert cli.main(["study", "augmentation", "--profile", "smoke", "--out", str(folder)]) == 0
    return folder


def results(plan, folder):
    parts = tasks.sides({"data": plan.data, "options": plan.options, "image_size": plan.image_size})
    table, answers = gather(plan, folder, parts["validation"], [own_test(parts["test"])])
    here = ["seconds", "seconds_before", "device", "generator_sha256"]
    table = table[table["seed"] == 1].drop(columns=here)
    return table, answers[answers["run"].isin(table["run"])].reset_index(drop=True)


def test_workers_leave_ctrl_c_to_the_command_that_started_them():
    usual = signal.getsignal(signal.SIGINT)
    with cluster.local_cluster(1) as workers, Client(workers) as client:
        (theirs,) = client.run(lambda: signal.getsignal(signal.SIGINT)).values()
    assert theirs == signal.SIG_IGN and signal.getsignal(signal.SIGINT) == usual


def test_a_study_whose_worker_is_killed_gives_the_same_table(alone, tmp_path, capsys, monkeypatch):
    """Two worker processes; one of them is killed with SIGKILL while it trains."""
    monkeypatch.setattr(cluster, "MINUTE", 1.0)
    smoke = read_plan(PLANS / "smoke.yaml")
    small = replace(smoke, blocks=tuple({**block, "seeds": 1} for block in smoke.blocks))
    from multiprocessing import active_children
    from threading import Thread

    killed = []

    def kill() -> None:
        for _ in range(600):
            training = [p for p in tmp_path.glob(".*") if p.is_dir()]
            if training and (workers := worker_processes()):
                time.sleep(1.0)  # in the middle of a run
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
                return
            time.sleep(0.2)

    assert not active_children()
    watcher = Thread(target=kill)
    watcher.start()
    assert cluster.carry_out(small.runs(), tmp_path, workers=2) == []
    watcher.join()
    assert len(killed) == 1
    printed = capsys.readouterr().out
    assert "3 of 3 runs to do; dashboard: http://127.0.0.1:" in printed and "left" in printed
    assert re.search(
        "[012] of 3 runs done, at work: (generator|classifier)-", printed
    )  # while nothing ends
    for mine, theirs in zip(results(small, tmp_path), results(smoke, alone), strict=True):
        assert len(mine) >= 2
        pd.testing.assert_frame_equal(mine, theirs)
    # A finished study is not done again.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*/{RESULT}")}
    assert cluster.carry_out(small.runs(), tmp_path) == []
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"*/{RESULT}")}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def worker_processes():
    """The processes of Dask's workers that are doing a run."""
    every = psutil.Process().children(recursive=True)
    busy = (p for p in every if "cellaug.study.tasks" in p.cmdline())
    return [p.ppid() for p in busy]


def test_the_smallest_study_records_its_tables(alone, tmp_path):
    place = alone / "tables"
    runs = pd.read_parquet(place / "runs.parquet")
    assert set(runs["arm"]) == {"duplicates", "synthetic"} and set(runs["seed"]) == {1, 2}
    assert {"macro_f1", "recall", "ece", "ece_scaled", "brier"} <= set(runs["measure"])
    assert runs["data_hash"].nunique() == 1 and runs["commit"].notna().all()
    contrast, *by_class = pd.read_parquet(place / "contrasts.parquet").to_dict("records")
    own = runs[(runs["measure"] == "macro_f1") & (runs["tested_on"] == "own test images")]
    by_seed = own.pivot(index="seed", columns="arm", values="value")
    change = by_seed["synthetic"] - by_seed["duplicates"]
    assert contrast["mean"] == pytest.approx(change.mean()) and contrast["n"] == 2
    assert np.isnan(contrast["low"])  # no interval from two seeds
    for row in by_class:  # the recall of each class
        own = runs[(runs["measure"] == "recall") & (runs["class"] == row["class"])]
        by_seed = own.pivot(index="seed", columns="arm", values="value")
        assert row["mean"] == pytest.approx((by_seed["synthetic"] - by_seed["duplicates"]).mean())
    assert len(by_class) == 4 and len(pd.read_parquet(place / "test.parquet")) > 30
    assert (place / "plan.yaml").read_text() == (PLANS / "smoke.yaml").read_text()
    again = record(read_plan(PLANS / "smoke.yaml"), alone, tmp_path)
    for file in place.glob("*.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(file), pd.read_parquet(again / file.name))
    work = pd.read_csv(place / "work.csv")
    assert sorted(work["task"]) == ["classifier"] * 4 + ["generator"] * 2
    assert (work["seconds"] > 0).all()
    # What a lost folder had done is kept with what another one adds.
    plan = read_plan(PLANS / "smoke.yaml")
    lone, kept = tmp_path / "lone", tmp_path / "kept"
    run = next(run for run in plan.runs() if run.settings["extra"] == "duplicates")
    shutil.copytree(alone / run.name, lone / run.name)
    record(plan, lone, kept)
    assert set(pd.read_parquet(kept / "runs.parquet")["run"]) == {run.name}
    shutil.copytree(alone, rest := tmp_path / "rest")
    shutil.rmtree(rest / run.name)
    record(plan, rest, kept)
    merged_runs = pd.read_parquet(kept / "runs.parquet").sort_values(["run", "taxonomy", "measure"])
    assert merged_runs["run"].nunique() == 4 and len(merged_runs) == len(runs)
    pairs = [pd.read_parquet(where / "contrasts.parquet") for where in (kept, place)]
    pd.testing.assert_frame_equal(*pairs)
    with pytest.raises(DataError, match="no run is finished yet"):
        record(read_plan(PLANS / "smoke.yaml"), tmp_path / "none", tmp_path / "nowhere")


def test_other_laboratories_cells_are_scored_on_the_classes_that_they_have(alone, tmp_path):
    smoke, classes = read_plan(PLANS / "smoke.yaml"), ["Lymph", "Neutro", "Smudge"]
    plan = replace(smoke, taxonomies={"two": {"phantom segmented neutrophil": "granulocyte",
                                              "phantom monocyte": "granulocyte"}})  # fmt: skip
    cells = open_dataset("phantom-2", classes=4, images=60, size=48)
    assert cells.name == "phantom-2" and not set(cells.digests) & set(
        open_dataset("phantom", classes=4, images=60, size=48).digests
    )
    theirs = {"phantom lymphocyte": "Lymph", "phantom segmented neutrophil": "Neutro"}
    images, rows = cells.read(48), []
    for k, (image, label) in enumerate(zip(images, cells.labels, strict=True)):
        kind = theirs.get(cells.class_names[label], "Smudge")
        (tmp_path / kind).mkdir(exist_ok=True)
        path = f"{kind}/{k}.png"
        Image.fromarray(image).save(tmp_path / path)
        rows.append((path, kind, f"patient {k % 5}"))
    table = tmp_path / "lab.csv"
    pd.DataFrame(rows, columns=["path", "label", "group"]).to_csv(table, index=False)
    chosen = tmp_path / "map.yaml"
    chosen.write_text("Lymph: phantom lymphocyte\nNeutro: granulocyte\nSmudge: leave\n")
    lab = other_laboratory(str(table), str(chosen), plan)
    counts = pd.Series([row[1] for row in rows]).value_counts()
    assert len(lab.cells) == counts["Lymph"] + counts["Neutro"] and len(set(lab.groups)) == 5
    record(plan, alone, tmp_path / "tables", lab)
    runs = pd.read_parquet(tmp_path / "tables" / "runs.parquet")
    own = runs[(runs["tested_on"] == "lab") & (runs["measure"] == "recall")].dropna(subset="value")
    assert set(own[own["taxonomy"] == "fine"]["class"]) == {"phantom lymphocyte"}
    assert set(own[own["taxonomy"] == "two"]["class"]) == {"phantom lymphocyte", "granulocyte"}
    run = own["run"].iloc[0]
    found = read_classifier(alone / run / "classifier").predict(lab.cells.read(32))
    truth = np.where(lab.named == "granulocyte", "granulocyte", "phantom lymphocyte")
    p = found[list(smoke_classes := [*found.columns[3:]])]
    joined = p.rename(columns=plan.taxonomies["two"]).T.groupby(level=0).sum().T
    right = (joined.idxmax(axis=1) == truth)[truth == "granulocyte"].mean()
    mine = own[(own["run"] == run) & (own["class"] == "granulocyte")]["value"].item()
    assert len(smoke_classes) == 4 and mine == pytest.approx(right)
    pairs = pd.read_parquet(tmp_path / "tables" / "contrasts.parquet")
    assert set(pairs["tested_on"]) == {"own test images", "lab"}
    chosen.write_text("Lymph: lymph\nNeutro: leave\nSmudge: leave\n")
    with pytest.raises(DataError, match="no class lymph; its classes are granulocyte, phantom"):
        other_laboratory(str(table), str(chosen), plan)
    chosen.write_text("Blast: leave\n")
    with pytest.raises(DataError, match="has no class Blast; its classes are Lymph, Neutro"):
        other_laboratory(str(table), str(chosen), plan)
    chosen.write_text("".join(f"{name}: leave\n" for name in classes))
    with pytest.raises(DataError, match="leaves every class"):
        other_laboratory(str(table), str(chosen), plan)


def test_contrasts_are_paired_over_the_seeds_that_both_arms_have():
    """Two arms of a constructed study: four and three seeds, two classes, ten test images."""
    rng = np.random.default_rng(0)
    smoke = read_plan(PLANS / "smoke.yaml")
    test = own_test(cells((6, 4, 1)).subset(range(10)))
    plan = replace(smoke, taxonomies={"joined": {"b": "a"}})
    table, given = [], []
    for arm, seeds in (("synthetic", (1, 2, 3, 4)), ("duplicates", (2, 3, 4))):
        for seed in seeds:
            run = f"{arm}-{seed}"
            table.append({"run": run, "scarcity": "tail-8", "arm": arm, "seed": seed})
            named = np.where(rng.random(10) < 0.7, test.cells.labels, rng.integers(2, size=10))
            for taxonomy, numbers in (("fine", [0, 1, 2]), ("joined", [0, 0, 1])):
                answers = np.array(numbers)[named].astype(np.uint8)
                given.append({"run": run, "taxonomy": taxonomy, "answers": answers})
    frame = pd.DataFrame(table).assign(**plan.classifier)
    answers = pd.DataFrame(given).assign(tested_on=test.name)
    every = contrasts(plan, frame, answers, [test], ["a", "b", "c"], resamples=50)
    found = every[every["class"] == ""].set_index("taxonomy")
    assert found.loc["fine", "n"] == 3 and found.loc["joined", "mean"] == 0  # all are of one class
    one, other = (
        np.stack([answers.set_index(["run", "taxonomy"])["answers"][f"{arm}-{s}", "fine"]
                  for s in (2, 3, 4)])
        for arm in ("synthetic", "duplicates")
    )  # fmt: skip
    from sklearn.metrics import f1_score

    score = [
        [f1_score(test.cells.labels, a, average="macro") for a in part] for part in (one, other)
    ]
    assert found.loc["fine", "mean"] == pytest.approx(np.mean(score[0]) - np.mean(score[1]))
    assert found.loc["fine", "low"] <= found.loc["fine", "mean"] <= found.loc["fine", "high"]
    assert found.loc["fine", "adjusted"] == found.loc["fine", "p"]  # one contrast of a taxonomy
    by_class = every[every["class"] != ""].set_index("class")
    assert [*by_class.index] == ["a", "b"] and (by_class["taxonomy"] == "fine").all()
    own = test.cells.labels == 1
    assert by_class.loc["b", "mean"] == pytest.approx(
        (one[:, own] == 1).mean() - (other[:, own] == 1).mean()
    )
    assert by_class["adjusted"].tolist() == holm(by_class["p"]).tolist()  # over the two classes
    assert found.loc["fine", "needed"] == seeds_needed(found.loc["fine", "sd"], 0.007)


def test_runs_whose_generators_differ_are_no_pair():
    """Two arms that share a generator by the plan; that of seed 2 was lost and trained again."""
    plan = read_plan(PLANS / "pbc.yaml")
    made, chosen = "half synthetic, classical", "half selected, classical"
    table = pd.DataFrame({"run": ["m1", "c1", "m2", "c2"],
                          "generator_kernel_distance": [5.5, 5.5, 6.0, 6.5]})  # fmt: skip
    pair = Contrast(chosen, made, "tail-10")
    assert one_generator(plan, pair, 1, ["c1", "m1"], table)
    assert not one_generator(plan, pair, 2, ["c2", "m2"], table)
    noted = table.assign(generator_sha256=["a", "b", "c", "c"])  # the weights say it better
    assert not one_generator(plan, pair, 1, ["c1", "m1"], noted)
    assert one_generator(plan, pair, 2, ["c2", "m2"], noted)
    apart = Contrast(made, "even, classical", "tail-10")  # only one of them has a generator
    assert one_generator(plan, apart, 2, ["m2", "e2"], table)
    other = Contrast("disjoint +50 %, classical", "synthetic +50 %, classical", "half")
    assert one_generator(plan, other, 2, ["c2", "m2"], table)  # they are to differ


def test_a_failed_run_is_named_and_the_others_are_done(tmp_path, monkeypatch):
    plan = read_plan(written(tmp_path))
    bad = plan.run("tail-8", "duplicates", 1, plan.classifier)
    settings = json.loads(json.dumps(bad.settings))
    settings["subset"]["images"] = 10_000
    worse = Run(settings)
    with pytest.raises(DataError, match=r"1 runs failed, the first of them classifier-\w+: class"):
        cluster.carry_out([worse], tmp_path / "runs", workers=1)
    assert not (tmp_path / "runs" / worse.name).exists()


def test_no_scheduler_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT", 2)
    plan = read_plan(written(tmp_path))
    with pytest.raises(DataError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        cluster.carry_out(plan.runs(), tmp_path / "runs", scheduler="tcp://127.0.0.1:9")
