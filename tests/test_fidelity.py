"""Tests of `cellaug evaluate`: each measure against a known answer or another implementation."""

import json
import re
from dataclasses import replace

from cellaug import cli, evaluation, figures
from cellaug.augmentation import augment, generate
from cellaug.data import DataError, Dataset, open_dataset
from cellaug.data.phantom import phantom
from cellaug.evaluation import (
    as_json,
    as_text,
    classifiers,
    colours,
    evaluate,
    expected_seconds,
    keep_finding,
    measures,
    read_generated,
    scorecard_table,
    sources,
    texture,
    training_digests,
)
from cellaug.evaluation import features as extractors
from cellaug.evaluation.classifiers import accuracy_score
from cellaug.evaluation.distances import (
    frechet_distance,
    kernel_distance,
    pairwise_distances,
    precision_recall_density_coverage,
)
from cellaug.evaluation.finding import crossed
from cellaug.evaluation.memorisation import copying_statistic, excess_of_copies, nearest_training
from cellaug.evaluation.scorecard import alarms, compact, scorecard, summary, tidy
from cellaug.generators import load_generator, save_generator

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from prdc import compute_prdc
from scipy import linalg, stats

NAMES = ("red", "green", "blue")
SIZE = 32
WHOLE = " (of each half of the real images)"  # where features are learned from the other half


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("CELLAUG_CACHE", str(tmp_path / "cache"))


class Projection:
    """An extractor of random projections, which takes an image's class from its colour."""

    size, digest, accuracy = 16, "0123456789abcdef", 0.9

    def __init__(self, width=12, class_names=NAMES):
        self.class_names = class_names
        self._matrix = np.random.default_rng(5).normal(size=(16 * 16 * 3, width)) / 28

    def features(self, images):
        small = [cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA) for image in images]
        return (np.reshape(small, (len(images), -1)) / 127.5 - 1).astype(np.float32) @ self._matrix

    def __call__(self, images):
        return self.features(images), images.mean((1, 2))[:, : len(self.class_names)]


def cells(seed, counts=(60, 60, 60), names=NAMES, name="cells"):
    """Discs on a noisy ground, anywhere and of any size, in the colour of their class."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = rng.normal(110, 12, (len(labels), SIZE, SIZE, 3))
    for image, label in zip(images, labels, strict=True):
        for _ in range(6):
            disc = np.zeros((SIZE, SIZE), np.uint8)
            place, radius = rng.integers(0, SIZE, 2).tolist(), int(rng.integers(3, 9))
            cv2.circle(disc, place, radius, 1, cv2.FILLED)
            image[disc > 0] += rng.uniform(-45, 45)
        image[..., label % 3] += 45
    return Dataset.of_images(np.clip(images, 0, 255).astype(np.uint8), labels, names, name)


def changed(cells, images):
    """The same cells with other pixels."""
    images = np.clip(images, 0, 255).astype(np.uint8)
    return Dataset.of_images(images, cells.labels, cells.class_names, cells.name)


def unlabelled(cells, name="cells"):
    """The same cells without classes."""
    return Dataset.of_images(cells.images, None, (), name)


def digests(cells):
    """What a generator that was trained on these cells knows of them."""
    return np.array([int(digest[:16], 16) for digest in cells.digests], np.uint64)


def row(found, measure, group=""):
    """A row of the table."""
    rows = found.table.set_index(["measure", "group"])
    return rows.loc[(measure, group)]


@pytest.fixture(scope="module")
def real():
    """Held-out real cells."""
    return cells(1, name="held out")


@pytest.fixture(scope="module")
def training():
    """What a generator was trained on."""
    return cells(2, (120, 120, 120), name="training set")


@pytest.fixture(scope="module")
def good(real, training):
    """Generated cells as good as real ones."""
    return compare(real, cells(3, name="good"), training, resamples=100)


def compare(real, fake, reference=None, **options):
    options = {"extractor": Projection(), "cas": False, "resamples": 40} | options
    return evaluate(real, fake, reference, **options)


# --- distances between sets of points ----------------------------------------------------------


def points(mean, covariance, count=50, seed=0):
    """Points with exactly this sample mean and covariance."""
    raw = np.random.default_rng(seed).normal(size=(count, len(mean)))
    raw -= raw.mean(0)
    found = np.atleast_2d(np.cov(raw, rowvar=False))
    white = raw @ np.linalg.inv(np.linalg.cholesky(found)).T
    return white @ np.linalg.cholesky(np.asarray(covariance, float)).T + mean


def test_frechet_distance_of_normal_distributions():
    first = points([0, 0, 0], np.diag([1, 4, 9]))
    second = points([1, 2, 2], np.diag([4, 4, 1]), 70, 1)
    # |μ|² = 9, and (√a − √b)² of each variance: 1 + 0 + 4
    assert frechet_distance(first, second) == pytest.approx(14)
    assert frechet_distance(first, first[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(points([3], [[4]]), points([5], [[1]])) == pytest.approx(4 + 1)


def test_frechet_distance_agrees_with_the_matrix_root():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(80, 9)) @ rng.normal(size=(9, 9))
    second = rng.normal(size=(60, 9)) @ rng.normal(size=(9, 9)) + rng.normal(size=9)
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum()
    expected += np.trace(one + two - 2 * linalg.sqrtm(one @ two).real)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_says_how_many_images_it_needs():
    with pytest.raises(ValueError, match="9 features needs at least 10 images in each set, got 9"):
        frechet_distance(np.eye(9), np.ones((20, 9)))


def test_kernel_distance_agrees_with_two_loops():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(7, 4)), rng.normal(0.5, 1, (9, 4))

    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / 4 + 1) ** 3

    def within(rows):
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    between = sum(kernel(x, y) for x in first for y in second) / 63
    expected = within(first) + within(second) - 2 * between
    assert kernel_distance(first, second) == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"at least 2 images .* got 1 and 9 images"):
        kernel_distance(first[:1], second)


def test_kernel_distance_has_no_bias():
    rng = np.random.default_rng(2)
    values = [kernel_distance(*rng.normal(size=(2, 6, 3))) for _ in range(3000)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 3000**0.5
    assert min(values) < 0


def test_kernel_distance_of_sets_with_fixed_numbers_of_each_class():
    rng = np.random.default_rng(3)
    classes = np.repeat([0, 1], [8, 4])
    centres = np.array([[0.0, 0, 0], [3, 3, 3]])[classes]
    rows = []
    for _ in range(1500):
        first, second = rng.normal(size=(2, 12, 3)) + centres
        rows.append(
            (kernel_distance(first, second, (classes,) * 2), kernel_distance(first, second))
        )
    known, unknown = np.mean(rows, axis=0)
    error = np.std(rows, axis=0)[0] / 1500**0.5
    assert abs(known) < 3 * error and unknown < -20 * error
    with pytest.raises(ValueError, match="of each class"):
        kernel_distance(first, second, (np.arange(12), classes))


def brute_force(real, fake, k):
    """Precision, recall, density and coverage by their definitions, one pair after another."""

    def ball(rows, i):
        gaps = sorted(np.linalg.norm(rows[i] - row) for j, row in enumerate(rows) if j != i)
        return gaps[k - 1]

    reals = [(row, ball(real, i)) for i, row in enumerate(real)]
    fakes = [(row, ball(fake, i)) for i, row in enumerate(fake)]

    def holds(centre, reach, row):
        return np.linalg.norm(centre - row) < reach

    return {
        "precision": np.mean([any(holds(c, r, f) for c, r in reals) for f in fake]),
        "recall": np.mean([any(holds(c, r, x) for c, r in fakes) for x in real]),
        "density": sum(holds(c, r, f) for c, r in reals for f in fake) / (k * len(fake)),
        "coverage": np.mean([any(holds(c, r, f) for f in fake) for c, r in reals]),
    }


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_density_coverage_agree_with_brute_force(k):
    rng = np.random.default_rng(k)
    real, fake = rng.normal(size=(30, 3)), rng.normal(0.7, 0.8, (24, 3))
    found = precision_recall_density_coverage(real, fake, k)
    assert found == pytest.approx(brute_force(real, fake, k))
    assert 0 < found["recall"] < 1 and 0 < found["precision"] < 1
    with pytest.raises(ValueError, match=f"at least {k + 1} images .* got 30 and {k}"):
        precision_recall_density_coverage(real, fake[:k], k)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall_density_coverage_agree_with_prdc(k):
    """The package of those who proposed density and coverage (Naeem et al. 2020)."""
    rng = np.random.default_rng(10 + k)
    real, fake = rng.normal(size=(150, 8)), rng.normal(0.4, 0.9, (130, 8))
    found = precision_recall_density_coverage(real, fake, k)
    assert found == pytest.approx(compute_prdc(real, fake, k))
    assert 0 < found["coverage"] < 1


def test_coverage_of_equal_distributions_is_as_derived():
    """1 − (N−1)…(N−k) / ((2N−1)…(2N−k)), Naeem et al. 2020."""
    rng = np.random.default_rng(3)
    sets = (rng.normal(size=(2, 40, 3)) for _ in range(150))
    coverage = np.mean([precision_recall_density_coverage(*s, 3)["coverage"] for s in sets])
    expected = 1 - (39 * 38 * 37) / (79 * 78 * 77)
    assert coverage == pytest.approx(expected, abs=0.01)


def test_a_collapsed_set_recalls_nothing():
    real = np.random.default_rng(0).normal(size=(40, 4))
    found = precision_recall_density_coverage(real, np.repeat(real[:1], 30, axis=0))
    assert found["precision"] == 1 and found["recall"] == 0
    assert found["density"] * 5 == pytest.approx(
        brute_force(real, real[:1].repeat(30, 0), 5)["density"] * 5
    )


def test_pairwise_distances_are_exactly_zero_for_copies():
    rows = np.array([[3.0, 4], [3, 4], [0, 0]]) + 1e4
    assert pairwise_distances(rows) == pytest.approx(np.array([[0, 0, 5], [0, 0, 5], [5, 5, 0]]))
    assert (np.diag(pairwise_distances(rows)) == 0).all()


def test_half_samples_are_disjoint_and_keep_the_classes():
    strata = {"a": (np.arange(7), np.arange(4)), "b": (np.arange(7, 20), np.arange(4, 40))}
    draws = list(measures.half_samples(strata, [2, 6], 5, np.random.default_rng(0)))
    for first, second, other in draws:
        assert len({*first, *second}) == 16 and len(set(other)) == 8
        assert [(part < edge).sum() for part, edge in ((first, 7), (second, 7), (other, 4))] == [
            2
        ] * 3
    assert any(not np.array_equal(draws[0][0], draw[0]) for draw in draws)


def test_intervals_hold_the_truth():
    """The kernel distance of two normal distributions lies in 95 % of the intervals, or so."""
    rng = np.random.default_rng(4)
    big = [
        kernel_distance(rng.normal(size=(1500, 2)), rng.normal(0.6, 1, (1500, 2))) for _ in range(8)
    ]
    truth, inside, widths = np.mean(big), 0, []
    for _ in range(80):
        real, fake = rng.normal(size=(60, 2)), rng.normal(0.6, 1, (60, 2))
        draws = measures.half_samples({"": (np.arange(60),) * 2}, [30], 80, rng)
        found = measures.estimate([(kernel_distance(real[a], fake[f]), 1) for a, _, f in draws])
        inside += found["low"] <= truth <= found["high"]
        widths.append(found["high"] - found["low"])
    assert 0.85 <= inside / 80 <= 1
    assert np.mean(widths) < 4 * truth


def test_the_interval_of_a_ratio_is_that_of_the_ratios():
    """Distances of real halves are skewed; a ratio of distances is never below zero for that."""
    rng = np.random.default_rng(6)
    values, halves = rng.normal(36, 3, 4000), rng.lognormal(1, 0.6, 4000)
    found = measures.estimate(np.stack([values, halves], axis=1))
    assert found["ratio"] == pytest.approx(values.mean() / halves.mean())
    expected = np.quantile(values / halves, [0.025, 0.975])
    assert [found["ratio_low"], found["ratio_high"]] == pytest.approx(list(expected))
    assert found["ratio_low"] > 0
    halves[:200] = 0  # nothing recalled: as the least that is
    assert np.isfinite(measures.estimate(np.stack([values, halves], axis=1))["ratio_high"])


# --- memorisation ------------------------------------------------------------------------------


def test_nearest_training_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    training, query = rng.normal(50, 9, (60, 5)), rng.normal(50, 9, (300, 5))
    query[7] = training[11]
    gaps = np.linalg.norm(query[:, None] - training, axis=2)
    near = np.sort(gaps, axis=1)[:, :10].mean(1)
    index, distance, relative = nearest_training(query, training, 10)
    assert index.tolist() == gaps.argmin(1).tolist()
    assert distance == pytest.approx(gaps.min(1), abs=1e-4)
    assert relative == pytest.approx(gaps.min(1) / near, abs=1e-4)
    assert (index[7], relative[7]) == (11, 0)
    with pytest.raises(ValueError, match="out of bounds"):
        nearest_training(query, training, 61)


def test_nearest_training_takes_the_nearest_view():
    rng = np.random.default_rng(1)
    training = rng.normal(size=(60, 6))
    query = training[:5, ::-1].copy()
    index, distance, _ = nearest_training(
        query, training, views=lambda rows: np.stack([rows, rows[:, ::-1]])
    )
    assert index.tolist() == [0, 1, 2, 3, 4] and distance.tolist() == [0] * 5
    assert nearest_training(query, training)[1].min() > 0


def test_a_square_has_eight_views():
    image = np.arange(4 * 4 * 3, dtype=float)
    views = measures.views(image[None])
    assert len({view.tobytes() for view in views}) == 8
    upright = image.reshape(4, 4, 3)
    wanted = {upright.tobytes(), upright[::-1].tobytes(), upright.transpose(1, 0, 2).tobytes()}
    assert wanted <= {view.tobytes() for view in views}


def test_excess_of_copies_is_fishers_exact_test():
    generated, held_out = np.array([0.1, 0.1, 0.1, 0.1, 0.6, 0.9]), np.array([0.2, 0.7, 0.8, 0.9])
    found = excess_of_copies(generated, held_out, 0.5)
    expected = stats.fisher_exact([[4, 2], [1, 3]], "greater").pvalue
    assert found == {"value": 4 / 6, "real": 0.25, "p": pytest.approx(expected)}
    assert excess_of_copies(generated + 1, held_out, 0.5)["p"] == 1


def test_copying_statistic_by_hand():
    low, high = np.arange(10.0), np.arange(20.0, 40)
    # no generated distance above a held-out one: U = 0, mean 100, variance 10·20·31/12
    expected = -100 / (10 * 20 * 31 / 12) ** 0.5
    assert copying_statistic([(low, high)]) == pytest.approx(expected)
    assert copying_statistic([(high, low)]) == pytest.approx(-expected)
    mixed = [(low, high), (high, low)]  # weighted by held-out images: 20 and 10
    assert copying_statistic(mixed) == pytest.approx(expected / 3)


def test_copies_are_found_turned_or_not(real, training):
    fake = cells(3)
    images = fake.images.copy()
    for label in range(3):
        mine = np.flatnonzero(fake.labels == label)[:15]
        images[mine] = training.images[np.flatnonzero(training.labels == label)[:15]]
    images[::2] = np.rot90(images[::2], 1, (1, 2))
    found = compare(real, changed(fake, images), training)
    assert found.scorecard.loc["memorised", ["value", "met"]].tolist() == [1, False]
    flagged = alarms(found.table)
    assert ("copies in pixels", "") in set(zip(flagged["measure"], flagged["group"], strict=True))
    pixels = row(found, "copies in pixels")
    assert pixels["value"] == pytest.approx(45 / 180, abs=0.01) and pixels["real"] == 0
    assert row(found, "copies in pixels", "red")["value"] == pytest.approx(0.25, abs=0.02)
    # without a turn the random projections know them too
    assert row(found, "copies in features")["value"] == pytest.approx(22 / 180, abs=0.02)
    shown = found.closest[found.closest["space"] == "pixels"]
    assert shown["relative"].tolist() == [0, 0, 0] and shown["training_index"].nunique() == 3
    for pair, (left, right) in zip(found.closest.itertuples(), found.pairs, strict=True):
        assert np.array_equal(left, images[pair.index])
        assert np.array_equal(right, training.images[pair.training_index])
    assert found.closest["class"].tolist() == [
        NAMES[fake.labels[i]] for i in found.closest["index"]
    ]
    assert "copies: over all (copies in features)" in as_text(found)


def test_bland_images_are_no_copies(good, real, training):
    assert good.scorecard.at["memorised", "met"] and alarms(good.table).empty
    assert abs(good.memorisation["pixels"]["copying"]) < 3
    fake = cells(3)
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 3) for image in fake.images])
    found = compare(real, changed(fake, blurred), training)
    # nearer to the training images than real ones are, and yet copies of none
    assert found.memorisation["pixels"]["copying"] < -3
    assert row(found, "nearest in pixels")["value"] < row(found, "nearest in pixels")["real"]
    assert row(found, "copies in pixels")["value"] == 0
    assert found.scorecard.at["memorised", "met"]


# --- grid texture ------------------------------------------------------------------------------


def test_checkerboard_on_noise_has_the_energy_it_should():
    rng = np.random.default_rng(0)
    side, sigma, height = 64, 10, 2
    noise = rng.normal(128, sigma, (60, side, side, 3))
    board = height * (-1.0) ** np.indices((side, side)).sum(0)[..., None]
    plain, laid = (np.rint(part).astype(np.uint8) for part in (noise, noise + board))
    floor = 3 * (sigma**2 + 1 / 12) + 3 / 12
    # through a Hann window (Σw)²/Σw² = 4N²/9, spread over 3×3 bins (1 + 2·¼)²; one of 3 frequencies
    line = 3 * height**2 * 4 * side**2 / 9 * 1.5**2 / 27
    energy = texture.grid_energy(texture.mean_power(laid))
    assert energy[2][0] == pytest.approx(floor + line, rel=0.03)
    assert energy[2][1] == pytest.approx(1 + line / floor, rel=0.04)
    assert energy[4][1] == pytest.approx(1, abs=0.03) and energy[8][1] == pytest.approx(1, abs=0.03)
    assert texture.grid_energy(texture.mean_power(plain))[2][1] == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("period", [2, 4, 8])
def test_lines_are_found_at_their_own_period(period):
    rng = np.random.default_rng(1)
    images = rng.normal(128, 10, (20, 64, 64, 3))
    images[:, :, ::period] += 6
    energy = texture.grid_energy(texture.mean_power(np.rint(images).astype(np.uint8)))
    assert energy[period][1] > 1.15
    assert all(energy[other][1] < 1.1 for other in (4, 8) if other > period)


def test_blur_is_no_grid():
    rng = np.random.default_rng(2)
    images = [cv2.GaussianBlur(rng.normal(128, 90, (64, 64, 3)), (0, 0), 1.2) for _ in range(80)]
    images = np.clip(np.rint(images), 0, 255).astype(np.uint8)
    energy = texture.grid_energy(texture.mean_power(images))
    assert [energy[period][1] for period in (2, 4, 8)] == pytest.approx([1, 1, 1], abs=0.12)
    assert energy[2][0] < 0.01 * energy[8][0]


def upsampled(coarse, kernel):
    """A transposed convolution with stride 2."""
    spread = np.zeros((len(coarse), 2 * coarse.shape[1], 2 * coarse.shape[2], 3), np.float32)
    spread[:, ::2, ::2] = coarse
    found = np.stack([cv2.filter2D(image, -1, kernel) for image in spread])[:, 8:-8, 8:-8]
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def test_a_kernel_that_does_not_fit_its_stride_leaves_a_grid():
    coarse = np.random.default_rng(3).normal(128, 20, (30, 40, 40, 3)).astype(np.float32)
    coarse = np.stack([cv2.GaussianBlur(image, (0, 0), 1) for image in coarse])
    five = upsampled(coarse, np.full((5, 5), 4 / 25, np.float32))  # covers 9, 6, 6 or 4 times
    four = upsampled(coarse, np.full((4, 4), 4 / 16, np.float32))  # covers 4 times everywhere
    assert texture.grid_energy(texture.mean_power(five))[2][1] > 20
    assert texture.grid_energy(texture.mean_power(four))[2][1] < 1.1


def test_periods_that_an_image_is_too_small_for():
    periods = {side: [*texture.grid_energy(np.ones((side, side)))] for side in (64, 32, 28, 15)}
    assert periods == {64: [2, 4, 8], 32: [2, 4], 28: [2], 15: []}


def test_weights_pick_images():
    images = np.random.default_rng(0).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    weights = np.zeros((2, 300))
    weights[0, [3, 280]], weights[1, 5] = 0.5, 1
    both = texture.mean_power(images, weights)
    assert both[0] == pytest.approx(texture.mean_power(images[[3, 280]]), rel=1e-4)
    assert both[1] == pytest.approx(texture.mean_power(images[5:6]), rel=1e-4)


# --- all in one --------------------------------------------------------------------------------


def test_colour_statistics_of_a_plain_image():
    """Each channel is the same everywhere: its mean is each percentile, and it has no grain."""
    image = np.full((1, 8, 8, 3), 128, np.uint8)
    lab = cv2.cvtColor(image[0], cv2.COLOR_RGB2LAB)[0, 0]
    parts = colours.colour_statistics(image).reshape(5, 3)
    assert (parts[[0, 2, 3]] == lab).all() and np.abs(parts[[1, 4]]).max() < 1e-4


def test_unusual_rows_are_those_beyond_the_chi_squared_limit():
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(3, 3))  # a distance that heeds the covariance forgets this
    reference = rng.normal(size=(20_000, 3)) @ mixed + 7
    other = rng.normal(size=(20_000, 3))
    (found,) = colours.unusual(reference, [other @ mixed + 7])
    beyond = (other**2).sum(1) > stats.chi2.ppf(0.99, 3)
    assert found.mean() == pytest.approx(0.01, abs=0.003) and (found != beyond).mean() < 0.003


def test_broken_cells_are_counted():
    """Of 440 good cells 22 are noise, all of one class."""
    own, made = (cells(seed, (220, 220), ("red", "green")).images for seed in (1, 2))
    made[220::10] = np.random.default_rng(3).integers(0, 256, made[220::10].shape)
    sizes, classes = [110, 110], np.repeat([0, 1], 220)
    strata = {str(k): (np.flatnonzero(classes == k),) * 2 for k in (0, 1)}
    draws = list(measures.half_samples(strata, sizes, 20, np.random.default_rng(0)))
    overall, good, bad = measures.colours(own, made, draws, sizes)
    assert overall["value"] - overall["real"] == pytest.approx(0.05, abs=0.02)
    assert bad["value"] - bad["real"] == pytest.approx(0.1, abs=0.04)
    assert good["value"] == pytest.approx(good["real"], abs=0.03)
    assert overall["real"] < 0.05 and overall["ratio"] > 2
    (few, *_) = measures.colours(own, made, draws, [50, 50])
    assert few["reason"].startswith("it needs 400 images in either set, 200 of either match")


def test_images_as_good_as_real_ones_meet_the_targets(good, real):
    card = good.scorecard
    assert not card["met"].eq(False).any() and (card["reason"] == "").all(), card
    sure = ["coverage_ratio", "recall_ratio", "memorised", "agreement_gap"]  # of 60 a class
    assert card.index[card["met"].eq(True)].tolist() == sure
    assert card["value"].between(card["lowest"].fillna(-9), card["highest"].fillna(9)).all()
    assert 0.7 < row(good, "frechet")["ratio"] < 1.4
    assert good.settings["compared"] == 90
    table = good.table
    halves = table[table["measure"].isin(["frechet", "kernel", "grid 2", "diversity_pixels"])]
    compared = halves.groupby("group")["compared"].agg(["min", "max"]).to_dict("index")
    assert compared[""] == {"min": 90, "max": 90} and compared["red"] == {"min": 30, "max": 30}
    assert set(table.loc[table["reason"] != "", "measure"]) == {"colours"}  # it takes 400 images
    assert set(table["group"]) == {"", *NAMES}
    kernel = table[table["measure"] == "kernel"]
    assert ((kernel["low"] < 0) & (kernel["high"] > 0) & kernel["ratio"].isna()).all()
    for measure in ("frechet", "recall", "coverage", "diversity_pixels", "agreement"):
        found = table[table["measure"] == measure]
        assert len(found) == 4 and found["value"].between(found["low"], found["high"]).all()
        assert found["real"].between(found["real_low"], found["real_high"]).all()
    coverage = table[table["measure"] == "coverage"]
    assert (coverage["value"] / coverage["real"]).tolist() == pytest.approx(list(coverage["ratio"]))


def test_the_scorecard_names_the_worst_and_says_why_one_is_missing():
    """By hand: a summary and lines of CSV have the same scorecard, the targets and reasons too."""
    names = ["recall", "coverage", "diversity_pixels", "diversity_features"]
    rows = [
        {"level": "class", "group": group, "measure": name, "ratio": ratio, "ratio_low": ratio}
        for group, ratios in (("a", (0.7, 0.79, 1.05, None)), ("b", (0.65, 0.9, 0.86, None)))
        for name, ratio in zip(names, ratios, strict=True)
    ]
    overall = {
        "frechet": {"value": 30.0, "low": 25, "high": 40, "real": 10, "compared": 1400},
        "recall": {"ratio": 0.1},
        "agreement": {"gap": -0.031},
        "grid 2": {"ratio": 0.95},
        "grid 4": {"ratio": 1.2},
        "copies in pixels": {"p": 0.0009},
        "copies in features": {"p": 0.9},
    }
    rows += [{"level": "overall", "measure": name, **row} for name, row in overall.items()]
    rows += [{"level": "class", "group": "a", "measure": "copies in pixels", "p": 0.8}] * 6
    table = tidy(rows)
    card = scorecard(table)
    # with half of the images a ratio of 3 is one of 2: 1 + (3 − 1) / 2
    assert card["value"].tolist()[:4] == [2, 0.79, 0.65, pytest.approx(np.nan, nan_ok=True)]
    assert card.loc["frechet_ratio", ["low", "high"]].tolist() == [1.75, 2.5]
    assert card["where"].tolist() == [
        "over all", "a", "b", "", "a", "", "period 4", "over all"
    ]  # fmt: skip
    assert card["met"].tolist() == [True, False, True, None, True, False, False, False]
    assert card.at["diversity_features_ratio", "reason"] == "no class has enough images"
    assert card.loc["recall_ratio", ["measured", "of", "low"]].tolist() == [2, 2, 0.65]
    # eight tests share the level of 0.01, so 0.0009 is an alarm and would not be one among twelve
    assert alarms(table)["measure"].tolist() == ["copies in pixels"]
    assert alarms(tidy([*rows, *[{"measure": "copies in x", "p": 1}] * 4])).empty
    short = summary(table)
    assert len(short) < len(table)
    counts = ["measured", "of"]
    pd.testing.assert_frame_equal(scorecard(short).drop(columns=counts), card.drop(columns=counts))
    pd.testing.assert_frame_equal(scorecard(compact(table)), card)
    words = scorecard_table(compact(table))
    assert words.loc["memorised"].tolist() == ["yes", "–", "–", "no", "missed"]
    assert words.loc["recall"].tolist() == ["0.65", "from 0.65", "b", "from 0.60", "met"]


@pytest.mark.parametrize(
    ("classes", "where", "met", "word"),
    [
        ({"a": (0.9, 0.85, 0.95), "b": (0.95, 0.81, 1.1)}, "a", True, "met"),
        ({"a": (0.9, 0.70, 0.95), "b": (0.85, 0.81, 1.1)}, "a", None, "undecided"),
        ({"a": (0.7, 0.60, 0.85), "b": (0.75, 0.71, 0.79)}, "b", False, "missed"),
        ({"a": (0.7, 0.60, 0.79), "b": (0.75, 0.71, 0.79)}, "a", False, "missed"),
    ],
)
def test_the_whole_interval_decides(classes, where, met, word):
    """The target of coverage is 0.8 or more; a class that decides is named."""
    columns = ["ratio", "ratio_low", "ratio_high"]
    rows = [
        {"level": "class", "group": name, "measure": "coverage"}
        | dict(zip(columns, values, strict=True))
        for name, values in classes.items()
    ]
    found = scorecard(tidy(rows)).loc["coverage_ratio"]
    assert found["met"] is met and found["where"] == where and found["value"] == classes[where][0]
    assert scorecard_table(tidy(rows)).at["coverage", ""] == word


def test_the_frechet_distance_of_the_scorecard_does_not_change_with_the_number_of_images():
    """Normal distributions of which the ratio itself would double with twice the images."""
    rng, found = np.random.default_rng(3), {}
    for m in (150, 300, 600):
        draws = rng.normal(size=(40, 3, m, 20))
        draws[:, 2] += 0.12
        values = [(frechet_distance(a, c), frechet_distance(a, b)) for a, b, c in draws]
        rows = {"level": "overall", "measure": "frechet", "compared": m}
        table = tidy([rows | measures.estimate(values)])
        found[m] = table["ratio"][0], scorecard(table).at["frechet_ratio", "value"]
    ratios, given = np.array(list(found.values())).T
    assert ratios[2] > 1.4 * ratios[0] and np.ptp(given) < 0.12 * given.mean()


def test_a_table_survives_as_csv(good):
    odd = good.table.assign(reason='"a, b"', group=good.table["group"].replace("red", "NA"))
    read = tidy(compact(odd))
    pd.testing.assert_frame_equal(read, odd, rtol=1e-5)
    assert compact(good.table)[0].startswith("level,group,measure,value")


def test_measures_are_those_of_half_samples(good, real):
    """The mean over half-samples of one class, taken again with other random numbers."""
    fake, extractor, rng = cells(3), Projection(), np.random.default_rng(99)
    mine, theirs = (extractor.features(part.images[part.labels == 1]) for part in (real, fake))
    rows = []
    for _ in range(300):
        order, other = rng.permutation(60), rng.permutation(60)[:30]
        halves = mine[order[:30]], theirs[other], mine[order[30:]]
        rows.append(
            (
                frechet_distance(halves[0], halves[1]),
                frechet_distance(halves[0], halves[2]),
                precision_recall_density_coverage(halves[0], halves[1])["recall"],
                linalg.norm(halves[1][:, None] - halves[1], axis=2).sum() / (30 * 29),
            )
        )
    frechet, own, recall, diversity = np.mean(rows, 0)
    assert row(good, "frechet", "green")["value"] == pytest.approx(frechet, rel=0.08)
    assert row(good, "frechet", "green")["real"] == pytest.approx(own, rel=0.08)
    assert row(good, "recall", "green")["value"] == pytest.approx(recall, abs=0.03)
    found = row(good, "diversity_features", "green")["value"]
    assert found == pytest.approx(diversity, rel=0.02)


def test_result_is_json_and_text(good):
    document = json.loads(as_json(good))
    values = [row["value"] for row in document["scorecard"]]
    assert values == pytest.approx(good.scorecard["value"].tolist())
    assert document["format"] == 3 and len(document["table"]) == len(good.table)
    assert document["sets"]["generated"]["classes"] == dict.fromkeys(NAMES, 60)
    assert "pairs" not in document and "nearness" not in document
    text = as_text(good)
    assert text.startswith("good: 180 generated images against 180 real ones of held out")
    assert "compares 90 real with 90 generated images" in text and "12 features" in text
    assert "accuracy score: not measured, it was not asked for" in text
    assert "copies: nowhere" in text and "missed" not in text
    assert json.loads(json.dumps(good.card()))["table"] == compact(good.table)


def test_the_seed_decides(real):
    one, same, other = (
        compare(real, cells(3), resamples=20, seed=seed).table for seed in (0, 0, 1)
    )
    assert one.equals(same) and not one["value"].equals(other["value"])


def test_collapse_shows_in_diversity_and_recall(real):
    fake = cells(3)
    first = [np.flatnonzero(fake.labels == label)[0] for label in fake.labels]
    noise = np.random.default_rng(0).normal(0, 1, fake.images.shape)
    found = compare(real, changed(fake, fake.images[first] + noise))
    assert row(found, "diversity_pixels")["ratio"] < 0.1
    assert row(found, "diversity_features")["ratio"] < 0.1
    assert row(found, "recall")["value"] == 0
    missed = set(found.scorecard.index[found.scorecard["met"].eq(False)])
    assert {"recall_ratio", "diversity_pixels_ratio", "diversity_features_ratio"} <= missed
    assert row(found, "frechet")["ratio"] > 5


def test_agreement_is_the_share_in_which_the_class_is_seen(real):
    fake = cells(3)
    images = fake.images.copy()
    images[:15] = images[60:75]  # 15 of 60 red ones are green
    found = compare(real, changed(fake, images))
    red, overall = row(found, "agreement", "red"), row(found, "agreement")
    assert red["value"] == 0.75 and red["real"] == 1
    assert overall["value"] == pytest.approx((0.75 + 1 + 1) / 3)
    assert overall["gap"] == pytest.approx(-0.25 / 3)
    # Jeffreys's interval of 45 in 60
    ends = stats.beta.ppf([0.025, 0.975], 45.5, 15.5)
    assert (red["low"], red["high"]) == pytest.approx(tuple(ends), abs=0.01)
    assert found.scorecard.at["agreement_gap", "met"] is False
    assert np.isnan(overall["training"])
    # training images of which a tenth of the red ones are green
    training = cells(2, (50, 50, 50), name="training set")
    wrong = training.images.copy()
    wrong[:5] = wrong[50:55]
    found = compare(real, fake, changed(training, wrong))
    assert row(found, "agreement")["training"] == pytest.approx((0.9 + 1 + 1) / 3)
    assert "weighted as the real ones: 96.7 %, of the real ones 100.0 %" in " ".join(found.notes)


def test_a_scarce_class_has_a_frechet_distance_in_principal_components(real):
    """20 features are too many for 30 images in two halves; against a projection by hand."""
    mine, fake = cells(1, (60, 60, 36)), cells(3, (60, 60, 36))
    extractor, rng = Projection(20), np.random.default_rng(7)
    found = compare(mine, fake, extractor=extractor, resamples=100)
    assert found.settings["components"] == 16
    points = extractor.features(mine.images)
    values, axes = np.linalg.eigh(np.cov(points.T))
    assert found.settings["components_variance"] == pytest.approx(values[4:].sum() / values.sum())
    ours, theirs = (extractor.features(s.images[s.labels == 2]) @ axes[:, 4:] for s in (mine, fake))
    expected = np.mean(
        [frechet_distance(*(rng.permutation(part)[:18] for part in (ours, theirs)))
         for _ in range(200)]
    )  # fmt: skip
    assert row(found, "frechet", "blue")["value"] == pytest.approx(expected, rel=0.08)
    assert "first 16 principal components of all real images' features" in as_text(found)


def test_grid_in_generated_images_is_missed(real):
    fake = cells(3)
    board = 12 * (np.indices((SIZE, SIZE)).sum(0) % 2)[..., None]
    found = compare(real, changed(fake, fake.images + board - 6.0))
    missed = found.scorecard.loc["grid_ratio"]
    assert missed["where"] == "period 2" and missed["value"] > 2 and missed["met"] is False
    assert row(found, "grid 2")["energy_ratio"] == pytest.approx(missed["value"], rel=0.1)
    assert found.spectra[1][16, 16] > 50 * found.spectra[0][16, 16]
    for name in NAMES:  # in each class, as over all
        ratio = row(found, "grid 2")["ratio"]
        assert row(found, "grid 2", name)["ratio"] == pytest.approx(ratio, rel=0.1)
        assert row(found, "grid 4", name)["ratio"] == pytest.approx(1, abs=0.2)
    text = as_text(found)
    assert f"{row(found, 'grid 2', 'red')['ratio']:.2f}" in text.split("\nratio, by class")[1]
    assert (
        f"{row(found, 'grid 2', 'red')['energy_ratio']:.2f}" in text.split("energy of the grid")[1]
    )


def test_small_missing_and_unknown_classes_are_said(real):
    names = (*NAMES, "pale", "odd")
    mine = cells(1, (60, 60, 60, 12, 8), names)
    fake = cells(3, (60, 60, 7, 60, 0), names)
    found = compare(mine, fake, extractor=Projection(class_names=("red", "green", "blue")))
    assert found.left_out == {"odd": "there are no generated images of it"}
    rows = found.table[found.table["measure"].isin(["recall", "kernel", "frechet", "agreement"])]
    reasons = rows.set_index(["group", "measure"])["reason"].loc[["blue", "pale"]]
    few = "it needs 12 images in either set, there are 60 real and 7 generated ones"
    assert reasons["blue"].unique().tolist() == [few]
    assert reasons["pale"].to_dict() == {
        "agreement": "the extractor knows no class 'pale'",
        "frechet": "with 12 principal components it needs 26 images in either set, "
        "12 of either match by class",
        "kernel": "",
        "recall": "",
    }
    missing = rows.set_index(["group", "measure"])["value"].isna()
    assert (missing == (rows.set_index(["group", "measure"])["reason"] != "")).all()
    assert found.scorecard.loc["recall_ratio", ["measured", "of"]].tolist() == [3, 4]
    text = as_text(found)
    assert (
        "(3 of 4 measured)" in text
        and "without pale: the extractor does not know it" in text
        and "Not compared: odd: there are no generated images of it." in text
    )


def test_generated_images_without_classes(real, training):
    found = compare(real, unlabelled(cells(3)), training)
    assert set(found.table["level"]) == {"overall"} and row(found, "kernel")["compared"] == 90
    assert np.isnan(row(found, "agreement")["value"])
    assert row(found, "diversity_pixels")["ratio"] == pytest.approx(1, abs=0.05)
    assert found.scorecard.at["recall_ratio", "where"] == "over all"
    assert found.scorecard.at["agreement_gap", "reason"] == "the generated images have no classes"
    text = as_text(found)
    assert "no classes" in text and "of the same classes" not in text and "a class" not in text
    assert found.scorecard.at["memorised", "met"]
    alone = evaluate(real, unlabelled(cells(3)), extractor=Projection(), resamples=20)
    assert row(alone, "accuracy score")["reason"] == "it needs two classes"
    assert alone.scorecard.at["memorised", "reason"] == "no training images were given"


def test_too_few_images_says_how_many_are_needed(real):
    found = compare(real, cells(3), extractor=Projection(95))
    assert np.isnan(row(found, "frechet")["value"])
    assert found.scorecard.at["frechet_ratio", "met"] is None
    need = "with 95 features it needs 192 images in either set, 180 of either match by class"
    assert found.scorecard.at["frechet_ratio", "reason"] == need
    assert f"over all, no Fréchet distance: {need}" in as_text(found)
    assert row(found, "coverage")["ratio"] > 0.5
    few = cells(3, (3, 4, 2))
    words = (
        r"at least 6, which takes 12 real .* There are 180 real and 9 generated ones, of which 4"
    )
    with pytest.raises(DataError, match=words):
        compare(real, few)


def test_real_images_are_read_at_the_size_of_the_generated_ones(real):
    small = cells(3).in_memory(16)
    assert compare(real, small).table.equals(compare(real.in_memory(16), small).table)


def test_bad_sets_are_refused(real, training, monkeypatch):
    with pytest.raises(DataError, match=r"no class in common \(red, green, blue and a, b, c\)"):
        compare(real, cells(3, names=("a", "b", "c")))
    with monkeypatch.context() as patch:
        patch.setattr(extractors, "learn_extractor", None)  # nothing is learned for it
        with pytest.raises(DataError, match="no class in common"):
            compare(real, cells(3, names=("a", "b", "c")), features="own")
    with pytest.raises(DataError, match="180 of the 180 real images of held out are among the tr"):
        compare(real, cells(3), trained_on=digests(real))
    with pytest.raises(DataError, match="the real images have no classes"):
        compare(unlabelled(real), cells(3))
    with pytest.raises(ValueError, match=r"in memory, as `in_memory"):
        compare(real, open_dataset(phantom(3, 96, SIZE, 1, 1)[0]))
    with pytest.raises(ValueError, match="resamples from 20"):
        compare(real, cells(3), resamples=5)
    with pytest.raises(ValueError, match="features auto, shipped, own"):
        compare(real, cells(3), features="mine")
    few = compare(real, cells(3), cells(2, (10, 10, 10)), resamples=20)
    reason = few.scorecard.at["memorised", "reason"]
    assert reason == "it needs at least 50 training images, there are 30"


# --- do the features know the cells? -------------------------------------------------------------


class Misled(Projection):
    """It takes a fraction of the red cells, and all others, for what they are."""

    def __init__(self, right, **options):
        super().__init__(**options)
        self.right, self.accuracy = right, 0.95  # 0.7 is needed

    def __call__(self, images):
        features, colours = super().__call__(images)
        red = np.flatnonzero(colours.argmax(1) == 0)
        colours[red[int(self.right * len(red)) :], 1] = 999
        return features, colours


def test_recognition_is_the_macro_recall_on_known_classes(real):
    seen = np.array(["a"] * 8 + ["b"] * 12 + ["c"] * 5, object)
    truth = np.array(["a"] * 10 + ["b"] * 10 + ["c"] * 5, object)
    found = extractors.recognition(seen, truth, ("a", "b", "x"), 0.9)
    assert found["value"] == pytest.approx((0.8 + 1) / 2) and found["problem"] == ""
    assert (found["classes"], found["of"], found["images"]) == (["a", "b"], 3, 0.8)
    assert found["chance"] == pytest.approx(1 / 3) and found["needed"] == pytest.approx(0.65)
    # the mean of two Beta variables, by their moments: normal enough here
    one, two = stats.beta(8.5, 2.5), stats.beta(10.5, 0.5)
    middle, width = (one.mean() + two.mean()) / 2, np.hypot(one.std(), two.std()) / 2
    assert found["low"] == pytest.approx(middle - 1.96 * width, abs=0.03)
    assert found["high"] == pytest.approx(middle + 1.96 * width, abs=0.03)
    few = extractors.recognition(seen, truth, ("c", "x"), 0.9)
    assert "knows the classes of only 20 % of the real images" in few["problem"]
    poor = extractors.recognition(seen, truth, ("a", "b", "c"), 0.7)
    assert poor["problem"] == "" and poor["needed"] == 0.6
    none = extractors.recognition(seen, truth, ("x", "y"), 0.9)
    assert none["value"] is None and "only 0 % of" in none["problem"]


def test_features_that_do_not_know_the_cells_give_no_verdict(real, training):
    names = ("red", "x", "y")  # the images' colour makes it see x in green cells
    for right, judged in ((0.2, True), (0.02, False)):
        found = compare(real, cells(3), training, extractor=Misled(right, width=12), resamples=20)
        known = found.extractor["recognition"]
        assert known["value"] == pytest.approx((int(right * 60) / 60 + 2) / 3)
        assert (known["problem"] == "") == judged == (known["value"] >= 0.7)
    grey = ["diversity_pixels_ratio", "memorised", "grid_ratio"]
    fair = compare(real, cells(3), training, resamples=20)
    found = compare(real, cells(3), training, extractor=Misled(0, class_names=names), resamples=20)
    card = found.scorecard
    assert card.index[card["reason"] == ""].tolist() == grey
    assert card.loc[~card.index.isin(grey), "met"].isna().all() and card["value"].notna().all()
    numbers = ["value", "low", "high"]  # there are, as if they were judged
    same = card.index != "agreement_gap"
    pd.testing.assert_frame_equal(card.loc[same, numbers], fair.scorecard.loc[same, numbers])
    words = scorecard_table(found.table)
    assert (words[""] == "not judged").sum() == 5 and words.at["recall", "95 %"] != ""
    text = as_text(found)
    assert "no verdict on Fréchet distance, kernel distance" in text
    assert "knows the classes of only 33 % of the real images" in text
    document = json.loads(as_json(found))
    assert document["extractor"]["recognition"]["classes"] == ["red"]
    # a copy is no copy in features that mean nothing, but one in grey levels
    images = cells(3).images.copy()
    images[:60] = training.images[:60]
    copied = compare(real, changed(cells(3), images), training, extractor=Misled(0), resamples=20)
    assert copied.scorecard.loc["memorised", ["value", "met"]].tolist() == [1, False]
    assert set(alarms(copied.table)["measure"]) == {"copies in pixels"}


@pytest.fixture(scope="module")
def strangers():
    """Real and generated phantoms, which the package's extractor does not know."""
    options = {"classes": 4, "size": 32, "imbalance": 1}
    sizes = ((1, 480), (2, 160))
    sets = [open_dataset("phantom", **options, images=n, seed=seed) for seed, n in sizes]
    return [cells.in_memory(32) for cells in sets]


def test_own_features_are_learned_where_the_shipped_ones_fail(strangers, tmp_path, monkeypatch):
    real, fake = strangers
    monkeypatch.setattr(extractors, "STEPS", 60)
    monkeypatch.setattr(extractors, "STEP", 32)
    options = {"cas": False, "resamples": 20, "seed": 4}
    shipped = evaluate(real, fake, features="shipped", **options)
    assert (
        shipped.extractor["recognition"]["problem"] and "frechet_ratio" in shipped.scorecard.index
    )
    assert shipped.scorecard.at["coverage_ratio", "met"] is None
    found = evaluate(real, fake, **options)
    assert found.extractor["source"] == "own" and not found.extractor["recognition"]["problem"]
    assert found.extractor["learned_from"] == {"set": "real", "images": 480}
    assert found.extractor["accuracy"] == found.extractor["recognition"]["value"] > 0.6
    assert found.sets["real"]["classes"] == real.counts().to_dict()
    assert found.sets["real"]["images"] == 480
    assert found.scorecard.at["coverage_ratio", "reason"] == ""
    assert "from half of the 480 real images, while the other half was compared" in as_text(found)
    learned = extractors.halves_to_learn(real.labels, 4)
    assert np.bincount(real.labels[learned]).tolist() == [60] * 4
    files = list((tmp_path / "cache" / "extractors").iterdir())
    assert len(files) == 2
    assert len(set(found.extractor["digest"].split(" and "))) == 2
    monkeypatch.setattr(extractors, "_train", None)  # from now on it is in the cache
    again = evaluate(real, fake, features="own", **options)
    assert again.table.equals(found.table)


def test_own_features_are_learned_from_half_of_a_reference(real, training, monkeypatch):
    lessons = []

    def learn(cells, seed):
        lessons.append(cells)
        return Projection()

    monkeypatch.setattr(extractors, "learn_extractor", learn)
    found = evaluate(real, cells(3), training, features="own", cas=False, resamples=20)
    assert [each.counts().tolist() for each in lessons] == [[60, 60, 60]] * 2
    one, other = (set(each.digests) for each in lessons)
    assert one | other == set(training.digests) and not one & other
    assert found.extractor["learned_from"] == {"set": "reference", "images": 360}
    assert found.extractor["accuracy"] == 1 and found.memorisation
    expected = compare(real, cells(3), training, resamples=20)
    pd.testing.assert_frame_equal(found.table, expected.table, rtol=1e-12)
    assert found.sets == expected.sets
    assert "Features were learned from half of the 360 training images" in " ".join(found.notes)


def test_two_folds_are_joined_by_their_means(good):
    known = good.extractor["recognition"] | {"value": 0.8, "problem": ""}
    one = good.extractor | {
        "digest": "aa", "accuracy": 0.9, "recognition": known,
        "learned_from": {"set": "real", "images": 30},
    }  # fmt: skip
    other = one | {"digest": "bb", "accuracy": 0.7, "recognition": known | {"value": 0.6}}
    table = good.table.assign(value=good.table["value"] + 2, low=good.table["low"] - 1, p=0.5)
    unmeasured = (table["level"] == "overall") & (table["measure"] == "kernel")
    table.loc[unmeasured, ["value", "reason"]] = np.nan, "too few"
    found = crossed([replace(good, extractor=one), replace(good, extractor=other, table=table)])
    kernel, rest = found.table[unmeasured], found.table[~unmeasured]
    assert kernel["value"].isna().all() and kernel["reason"].tolist() == ["too few"]
    before = good.table[~unmeasured]
    assert rest["value"].to_numpy() == pytest.approx(before["value"] + 1, nan_ok=True)
    assert rest["low"].to_numpy() == pytest.approx(before["low"] - 0.5, nan_ok=True)
    assert (rest["p"] >= 0.5).all()
    lack = before["reason"].where(before["reason"] == "", before["reason"] + WHOLE)
    assert rest["reason"].equals(lack)
    assert found.sets["real"]["images"] == 2 * good.sets["real"]["images"]
    assert found.extractor["accuracy"] == pytest.approx(0.8)
    assert found.extractor["recognition"]["value"] == pytest.approx(0.7)
    assert found.extractor["digest"] == "aa and bb"
    assert found.extractor["learned_from"]["images"] == 60


def test_large_cells_are_shown_to_the_extractor_for_large_cells(monkeypatch):
    asked = []
    monkeypatch.setattr(
        extractors, "load_extractor", lambda size: asked.append(size) or Projection()
    )
    evaluate(cells(1, (12, 12, 12)), cells(3, (12, 12, 12)), cas=False, resamples=20)
    assert asked == [SIZE]


def test_own_features_need_images_to_learn_from(real, monkeypatch):
    with pytest.raises(DataError, match=r"they got 20 of red, .* until 60 of each class are left"):
        evaluate(cells(1, (40, 40, 40)), cells(3), features="own", cas=False)
    monkeypatch.setattr(
        extractors, "load_extractor", lambda size: Misled(0, class_names=("x", "y", "z"))
    )
    found = evaluate(cells(1, (60, 60, 59)), cells(3), cas=False, resamples=20)
    assert found.extractor["source"] == "shipped" and found.scorecard["met"].notna().sum() <= 2
    enough = r"Learn own features \(--features own\): they need at least 60 images of every class"
    assert re.search(enough, " ".join(found.notes))


def test_drawn_cells_of_both_laboratories_are_read_by_name(monkeypatch):
    drawn = cells(3)
    for name in ("phantom", "phantom-2"):
        monkeypatch.setattr(sources, "open_dataset", {name: drawn}.__getitem__)
        assert len(read_generated(name, {}, 16)) == len(drawn)


# --- real, generated and training images are kept apart ------------------------------------------


def test_real_images_among_the_generated_ones_are_refused(real):
    images = cells(3).images.copy()
    images[[7, 9, 30, 90]] = real.images[[5, 5, 70, 90]]
    with pytest.raises(DataError) as refused:
        compare(real, changed(cells(3), images))
    words = "4 of the 180 generated images of cells are real images of held out, pixel by pixel"
    assert words in str(refused.value)
    assert "(image 7 is image 5, image 9 is image 5, image 30 is image 70, …)" in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images[:, :, ::-1],
        lambda images: np.rot90(images, axes=(1, 2)),
        lambda images: images.clip(1) - 1,
        lambda images: np.stack([cv2.GaussianBlur(image, (3, 3), 0) for image in images]),
    ],
)
def test_real_images_that_are_hardly_changed_are_refused(real, change):
    with pytest.raises(DataError, match=r"1\d\d of the 180 .* mirrored, .*image 0 is image 0"):
        compare(real, changed(real, change(real.images)))


@pytest.mark.parametrize("kind", ["turned", "cropped"])
def test_turned_and_cropped_real_images_are_refused(kind):
    """Larger ones, whose details show what they are."""
    whole = open_dataset("phantom", classes=3, images=60, size=64)
    drawn = whole.in_memory(64)
    turn = cv2.getRotationMatrix2D((31.5, 31.5), 20, 1)
    change = {
        "turned": lambda image: cv2.warpAffine(
            image, turn, (64, 64), borderMode=cv2.BORDER_REFLECT
        ),
        "cropped": lambda image: cv2.resize(image[5:-5, 5:-5], (64, 64)),
    }[kind]
    fake = changed(drawn, np.stack([change(image) for image in drawn.images]))
    words = rf"\d+ of {len(drawn)} generated images .* {len(drawn)} real images .* shifted or crop"
    with pytest.raises(DataError, match=words):
        sources._refuse_real(drawn, fake)
    assert sources._refuse_real(drawn.subset(range(30)), fake.subset(range(30, len(drawn)))) == []


def test_a_few_generated_images_that_are_real_cells_are_named(real):
    images = cells(3).images.copy()
    images[7] = np.flipud(real.images[5])
    found = compare(real, changed(cells(3), images), resamples=20)
    words = "1 of the 180 generated images of cells are real images of held out, at most mirrored"
    assert any(words in note and "(image 7 is image 5)" in note for note in found.notes)


def test_a_finding_is_kept_on_the_card_of_an_own_generator(good, real, tmp_path, monkeypatch):
    folder = save_generator(network(NAMES), tmp_path / "gen", class_names=NAMES, dataset=real)
    weights = (folder / "generator.npz").read_bytes()
    assert "nobody has measured" in load_generator(folder).caution
    unknown = good.table.assign(reason="the features do not know these cells")
    said = keep_finding(folder, replace(good, table=unknown).card())
    assert "not judged (the features do not know these cells), so " in said
    assert "the comparison that was made could not judge how near" in load_generator(folder).caution
    assert keep_finding(folder, good.card()).startswith(f"kept in {folder / 'generator.json'}")
    assert load_generator(folder).caution == ""
    table = good.table.assign(
        ratio=good.table["ratio"].where(good.table["measure"] != "frechet", 99)
    )
    keep_finding(folder, replace(good, table=table).card())
    assert "is 99 times that" in load_generator(folder).caution
    again = keep_finding(folder, replace(good, table=unknown).card())
    assert said.endswith("keeps only the rest") and again.endswith("keeps what it held")
    assert "is 99 times that" in load_generator(folder).caution  # the last that was judged
    assert (folder / "generator.npz").read_bytes() == weights
    assert keep_finding("pbc-fine-64", good.card()) == keep_finding(tmp_path, good.card()) == ""
    monkeypatch.setattr(sources, "SHIPPED", tmp_path)
    assert keep_finding(folder, good.card()) == ""


def test_too_few_images_are_the_reason_why_no_class_is_named(real):
    few = real.subset(np.concatenate([np.flatnonzero(real.labels == k)[:6] for k in range(3)]))
    found = compare(few, cells(3), k=3, resamples=20)
    assert (
        row(found, "agreement")["reason"] == "no class that the extractor knows has enough images"
    )
    other = Projection(class_names=("a", "b", "c"))
    found = compare(few, cells(3), k=3, resamples=20, extractor=other)
    assert row(found, "agreement")["reason"] == "the extractor knows none of the classes"


def test_training_images_among_the_real_ones_are_left_out(real, training):
    images = np.concatenate([real.images[[3, 100]], training.images[2:]])
    leaked = changed(training, images).subset(np.arange(40))
    for given in (
        {"reference": leaked},
        {"trained_on": np.sort(digests(real.subset([3, 100])))},
        {"reference": leaked, "trained_on": digests(real.subset([100]))},
    ):
        found = compare(real, cells(3), resamples=20, **given)
        what = "2 of the 180 real images of held out"
        assert found.left_out == {
            what: "they are training images of the generator (image 3, image 100)"
        }
        assert found.sets["real"]["classes"] == {"red": 59, "green": 59, "blue": 60}
        assert f"Not compared: {what}: they are training images" in as_text(found)
    kept = np.setdiff1d(np.arange(180), [3, 100])
    expected = compare(real.subset(kept), cells(3), resamples=20)
    found = compare(real, cells(3), resamples=20, trained_on=digests(real.subset([3, 100])))
    assert found.table.equals(expected.table)


def test_a_generator_says_what_it_was_trained_on(real, tmp_path, monkeypatch):
    folder = save_generator(network(NAMES), tmp_path / "gen", class_names=NAMES, dataset=real)
    assert training_digests(tmp_path) is None  # no generator
    known = load_generator(folder)
    object.__setattr__(known, "trained_on", digests(real))
    monkeypatch.setattr(sources, "read_generator", lambda _: known)
    assert np.array_equal(training_digests(str(folder)), digests(real))


def test_generated_images_among_the_real_ones_are_refused(real):
    origins = real.table.assign(origin=["synthetic"] * 5 + ["real"] * 175)
    mixed = replace(real, table=origins)
    with pytest.raises(DataError, match=r"held out holds generated images \(5 of 180 images"):
        compare(mixed, cells(3))
    with pytest.raises(DataError, match="held out holds generated images"):
        compare(real, cells(3), mixed)


def test_class_names_that_differ_by_case_are_the_same(real, training):
    loud = cells(3, names=("Red", "GREEN", "blue "), name="loud")
    knows = Projection(class_names=("RED", "green", "Blue"))
    few = training.subset(np.arange(0, 360, 10))
    found = compare(real, loud, few, extractor=knows, resamples=20)
    expected = compare(real, cells(3), few, resamples=20)
    assert found.table.equals(expected.table)
    assert "matched by similar names: Red as red, GREEN as green, blue  as blue" in as_text(found)
    odd = compare(real, cells(3, names=("red", "greens", "pink")), resamples=20)
    assert odd.left_out["green"].endswith(
        "is it their class 'greens'? Then give both the same name"
    )
    assert odd.left_out["pink"] == "there are no real images of it"


def test_accuracy_score_of_classes_that_are_easily_told_apart():
    train, test = cells(1, (24, 24, 24)), cells(2, (20, 20, 20))
    options = {"class_names": NAMES, "steps": 50, "seed": 0}
    small, others = (part.images[:, ::2, ::2] for part in (train, test))
    right = accuracy_score((small, train.labels), (others, test.labels), **options)
    assert right.index.tolist() == ["", *NAMES, "macro F1"]
    assert right.at["", "value"] > 0.8 and right.at["macro F1", "value"] > 0.7
    for value, low, high in right.loc[["", *NAMES]].itertuples(index=False):
        assert low <= value <= high
    for value, low, high in right.loc[list(NAMES)].itertuples(index=False):
        if value == 1:  # Clopper & Pearson: of 20 none was missed
            assert low == pytest.approx(0.025 ** (1 / 20)) and high == 1


def test_accuracy_score_compares_equal_numbers(real, training, monkeypatch):
    asked = []

    def score(train, test, class_names, **options):
        asked.append((*train, *test, class_names))
        rows = dict.fromkeys(class_names, (0.5, 0.4, 0.6))
        rows |= {"": (0.5 + 0.1 * len(asked), 0, 1), "macro F1": (0, np.nan, np.nan)}
        return pd.DataFrame.from_dict(rows, "index", columns=["value", "low", "high"])

    monkeypatch.setattr(classifiers, "accuracy_score", score)
    fake = cells(3, (60, 90, 60))
    found = compare(real, fake, training, cas=True, resamples=20)
    compared = {name: row(found, "accuracy score", name)["compared"] for name in ("", *NAMES)}
    assert compared == {"": 210, "red": 60, "green": 90, "blue": 60}
    assert row(found, "accuracy score")["gap"] == pytest.approx(0.6 - 0.7)
    for (images, labels, test_images, truth, names), source in zip(
        asked, (fake, training), strict=True
    ):
        assert np.bincount(labels).tolist() == [60, 90, 60] and names == NAMES
        assert np.array_equal(test_images, real.images) and np.array_equal(truth, real.labels)
        for label in range(3):
            allowed = {image.tobytes() for image in source.images[source.labels == label]}
            assert {image.tobytes() for image in images[labels == label]} <= allowed
    alone = compare(real, fake, cas=True, resamples=20)
    assert np.isnan(row(alone, "accuracy score")["real"])
    text = as_text(alone)
    assert "accuracy score, macro F1: no training images were given" in text
    assert "0.80 (0.00 to 1.00)" in text.split("accuracy score")[1]


# --- the figure --------------------------------------------------------------------------------


def test_the_figure_draws_what_was_found(good, real):
    """Its values are tested in test_figures; here, that it reads a real finding."""
    alone = compare(real, unlabelled(cells(3), "$x$"), resamples=20)
    with plt.rc_context({"backend": "agg"}):
        figures.use_style()
        drawn = [figures.fidelity(found) for found in (good, alone)]
        for fig in drawn:
            FigureCanvasAgg(fig).draw()
    said, other = ([text.get_text() for text in fig.findobj(plt.Text)] for fig in drawn)
    assert set(NAMES) <= set(said) and "4 of 8 targets met, undecided: " in " ".join(said)
    pictures = [image for ax in drawn[0].findobj(plt.Axes) for image in ax.images]
    pictures = [image for image in pictures if image.get_array().ndim == 3]
    assert len(pictures) == 12
    assert np.array_equal(pictures[1].get_array(), good.pairs[0, 1])
    for words in ("all images", "not measured: no training images were given", "$x$: 180"):
        assert words in " ".join(other)


def test_the_figure_says_why_a_panel_is_empty(good):
    table, by_class = good.table.copy(), good.table["level"] == "class"
    table.loc[by_class, ["value", "real", "ratio", "gap"]] = np.nan
    table.loc[by_class, "reason"] = "it needs 12 images in either set"
    with plt.rc_context({"backend": "agg"}):
        fig = figures.fidelity(replace(good, table=table))
        FigureCanvasAgg(fig).draw()
    said = [text.get_text() for text in fig.findobj(plt.Text)]
    assert "Not measured: it needs 12 images in either set" in said
    assert any("not measured: coverage, recall" in text.replace("\n", " ") for text in said)


# --- where generated images come from, and the command line ------------------------------------


@pytest.fixture
def phantoms(monkeypatch):
    """Two folders of phantom cells, the class names, and an extractor that knows them."""
    folders = [phantom(3, 96, SIZE, seed, 1)[0] for seed in (1, 2)]
    names = open_dataset(folders[0]).class_names
    monkeypatch.setattr(extractors, "load_extractor", lambda size: Projection(12, names))
    return *folders, names


def network(names):
    """A generator of a few weights, conditional if there are names."""
    from cellaug import networks

    import keras

    keras.utils.set_random_seed(1)
    return networks.cgan_generator(16, 8, 6, len(names)) if names else networks.generator(16, 8, 6)


def test_from_the_command_line(phantoms, tmp_path, capsys, monkeypatch):
    real, fake, names = phantoms
    file = tmp_path / "fidelity.png"
    arguments = ["evaluate", str(real), str(fake), "--no-cas", "--figure", str(file)]
    assert cli.main([*arguments, "--json", "--size", "16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sets"]["real"]["classes"] == dict.fromkeys(names, 32)
    assert found["settings"]["size"] == 16 and found["settings"]["compared"] == 48
    assert "accuracy score" not in {row["measure"] for row in found["table"]}
    assert file.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["evaluate", str(real), str(fake), "--no-cas", "--reference", str(real)]) == 2
    assert "96 of the 96 real images" in capsys.readouterr().err
    assert cli.main(["evaluate", str(real), str(tmp_path / "none")]) == 2
    complaint = capsys.readouterr().err
    assert "no such folder" in complaint and "comes with cellaug: pbc-fine-128" in complaint
    monkeypatch.setattr(extractors, "load_extractor", lambda size: Projection(40, names))
    options = ["--split", "1", "--features", "shipped", "--no-cas", "--size", "16"]
    assert cli.main(["evaluate", str(real), str(fake), *options]) == 0
    told = capsys.readouterr().out
    assert "with 40 features it needs 82 images in either set" in told
    assert "REAL with about 547 images would have enough test images" in told
    assert expected_seconds(96, 96, cas=False) < 20 < expected_seconds(1500, 1500, cas=False)
    assert expected_seconds(96, 96, 96) - expected_seconds(96, 96) == pytest.approx(60 + 96 / 150)
    monkeypatch.setattr(evaluation, "expected_seconds", lambda *sizes: sum(sizes))
    assert cli.main(["evaluate", str(real), str(fake), *options[2:]]) == 0
    assert capsys.readouterr().err == "This takes about 3.2 minutes on two cores.\n"
    assert expected_seconds(9, 9, own=True) == 2 * (expected_seconds(9, 9) + 180)
    more = expected_seconds(9, 9, 9, own=True) - expected_seconds(9, 9, 9)
    assert more == pytest.approx(expected_seconds(9, 9, 9, cas=False) + 360)
    for wrong in (["--count", "0"], ["--seed", "-1"], ["--figure", "x.gif"], ["--features", "x"]):
        assert cli.main(["evaluate", str(real), str(fake), *wrong]) == 2


def test_a_generator_draws_what_it_is_compared_with(phantoms, tmp_path, capsys):
    real, _, names = phantoms
    dataset = open_dataset(real)
    known = (names[2], names[0])
    others = replace(dataset, table=dataset.table.assign(digest="0" * 64))  # it saw other images
    folder = save_generator(network(known), tmp_path / "gen", class_names=known, dataset=others)
    drawn = read_generated(folder, {names[0]: 5, names[1]: 4, names[2]: 3}, seed=7)
    assert drawn.class_names == (names[0], names[2]) and drawn.labels.tolist() == [0] * 5 + [1] * 3
    assert drawn.images.shape == (8, 16, 16, 3)
    expected = load_generator(folder).generate(names[2], 3, (7, 0))
    assert np.array_equal(drawn.images[5:], expected)
    assert len(read_generated(folder, {names[0]: 5}, size=8, count=2)) == 2
    loud = read_generated(folder, {names[0].upper(): 5}, seed=7)  # evaluate gives it the other name
    assert loud.class_names == (names[0],) and np.array_equal(loud.images, drawn.images[:5])
    with pytest.raises(DataError, match="knows none of the classes x"):
        read_generated(folder, {"x": 5})
    assert cli.main(["evaluate", str(real), str(folder), "--no-cas", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sets"]["generated"]["classes"] == {names[0]: 32, names[2]: 32}
    assert found["left_out"] == {names[1]: "there are no generated images of it"}
    assert found["settings"]["size"] == 16


def test_a_generator_without_classes(phantoms, tmp_path):
    real, _, _ = phantoms
    folder = save_generator(
        network(()), tmp_path / "gen", class_names=(), dataset=open_dataset(real)
    )
    drawn = read_generated(folder, {"a": 5, "b": 4}, seed=3)
    assert drawn.unlabelled
    assert np.array_equal(drawn.images, load_generator(folder).generate(None, 9, 3))
    generate(load_generator(folder), None, 4, tmp_path / "out", 3)
    written = read_generated(tmp_path / "out", {"a": 5})
    assert written.unlabelled and np.array_equal(written.images, drawn.images[:4])


def test_only_the_generated_part_of_an_augmented_set_counts(phantoms, tmp_path, capsys):
    real, _, names = phantoms
    dataset = open_dataset(real)
    folder = save_generator(network(names), tmp_path / "gen", class_names=names, dataset=dataset)
    generator = load_generator(folder)
    augment(dataset, generator, 0.25, tmp_path / "more", seed=2)
    found = read_generated(tmp_path / "more", {})
    assert found.counts().to_dict() == dict.fromkeys(names, 8)
    for k, name in enumerate(found.class_names):
        expected = generator.generate(name, 8, (2, generator.class_names.index(name)))
        assert np.array_equal(found.images[found.labels == k], expected)
    assert cli.main(["evaluate", str(tmp_path / "more"), str(folder)]) == 2
    assert "holds generated images" in capsys.readouterr().err
