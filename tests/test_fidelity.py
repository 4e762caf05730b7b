"""Tests of `cellaug evaluate`: each measure against a known answer or another implementation."""

import json
from dataclasses import replace

from cellaug import cli, figures
from cellaug.augmentation import augment, generate, load_generator, save_generator
from cellaug.data import DataError, open_dataset
from cellaug.data.phantom import phantom
from cellaug.evaluation import (
    LabelledImages,
    as_json,
    as_text,
    evaluate,
    fidelity,
    read_generated,
    texture,
)
from cellaug.evaluation import features as extractors
from cellaug.evaluation.cas import accuracy_score
from cellaug.evaluation.distances import (
    frechet_distance,
    kernel_distance,
    pairwise_distances,
    precision_recall_density_coverage,
)
from cellaug.evaluation.memorisation import copying_statistic, excess_of_copies, nearest_training

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from prdc import compute_prdc
from scipy import linalg, stats

NAMES = ("red", "green", "blue")
SIZE = 32


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
    return LabelledImages(np.clip(images, 0, 255).astype(np.uint8), labels, names, name)


def changed(cells, images):
    """The same cells with other pixels."""
    return replace(cells, images=np.clip(images, 0, 255).astype(np.uint8))


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
    strata = [(np.arange(7), np.arange(4)), (np.arange(7, 20), np.arange(4, 40))]
    draws = list(fidelity._half_samples(strata, [2, 6], 5, np.random.default_rng(0)))
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
        draws = fidelity._half_samples([(np.arange(60),) * 2], [30], 80, rng)
        values = [kernel_distance(real[a], fake[f]) for a, _, f in draws]
        found = fidelity._estimate(values, [1.0] * 80)
        inside += found["low"] <= truth <= found["high"]
        widths.append(found["high"] - found["low"])
    assert 0.85 <= inside / 80 <= 1
    assert np.mean(widths) < 4 * truth


def test_the_interval_of_a_ratio_is_that_of_the_ratios():
    """Distances of real halves are skewed; a ratio of distances is never below zero for that."""
    rng = np.random.default_rng(6)
    values, halves = rng.normal(36, 3, 4000), rng.lognormal(1, 0.6, 4000)
    found = fidelity._estimate(values, halves)
    assert found["ratio"] == pytest.approx(values.mean() / halves.mean())
    expected = np.quantile(values / halves, [0.025, 0.975])
    assert [found["ratio_low"], found["ratio_high"]] == pytest.approx(list(expected))
    assert found["ratio_low"] > 0
    halves[:200] = 0  # nothing recalled: as the least that is
    assert np.isfinite(fidelity._estimate(values, halves)["ratio_high"])


# --- memorisation ------------------------------------------------------------------------------


def test_nearest_training_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    training, query = rng.normal(50, 9, (60, 5)), rng.normal(50, 9, (300, 5))
    query[7] = training[11]
    gaps = np.linalg.norm(query[:, None] - training, axis=2)
    near = np.sort(gaps, axis=1)[:, :10].mean(1)
    told = []
    index, distance, relative = nearest_training(query, training, 10, progress=told.append)
    assert index.tolist() == gaps.argmin(1).tolist() and sum(told) == 300
    assert distance == pytest.approx(gaps.min(1), abs=1e-4)
    assert relative == pytest.approx(gaps.min(1) / near, abs=1e-4)
    assert (index[7], relative[7]) == (11, 0)
    with pytest.raises(ValueError, match="at least 61 images"):
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
    views = fidelity._views(image[None])
    assert len({view.tobytes() for view in views}) == 8
    upright = image.reshape(4, 4, 3)
    wanted = {upright.tobytes(), upright[::-1].tobytes(), upright.transpose(1, 0, 2).tobytes()}
    assert wanted <= {view.tobytes() for view in views}


def test_excess_of_copies_is_fishers_exact_test():
    generated, held_out = np.array([0.1, 0.1, 0.1, 0.1, 0.6, 0.9]), np.array([0.2, 0.7, 0.8, 0.9])
    found = excess_of_copies(generated, held_out, 0.5)
    expected = stats.fisher_exact([[4, 2], [1, 3]], "greater").pvalue
    assert found == {"share": 4 / 6, "held_out_share": 0.25, "p": pytest.approx(expected)}
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
    copies = found.memorisation
    assert copies["memorised"] and found.scorecard["memorised"]["met"] is False
    assert {"space": "pixels", "group": "overall"} in copies["flagged"]
    assert copies["pixels"]["overall"]["share"] == pytest.approx(45 / 180, abs=0.01)
    assert copies["pixels"]["classes"]["red"]["share"] == pytest.approx(0.25, abs=0.02)
    assert copies["pixels"]["overall"]["held_out_share"] == 0
    # without a turn the random projections know them too
    assert copies["features"]["overall"]["share"] == pytest.approx(22 / 180, abs=0.02)
    shown = [pair for pair in copies["closest"] if pair["space"] == "pixels"]
    assert [pair["relative"] for pair in shown] == [0, 0, 0]
    assert len({pair["training_index"] for pair in shown}) == 3
    for pair, (left, right) in zip(copies["closest"], found.pairs, strict=True):
        assert np.array_equal(left, images[pair["index"]])
        assert np.array_equal(right, training.images[pair["training_index"]])
        assert pair["class"] == NAMES[fake.labels[pair["index"]]]


def test_bland_images_are_no_copies(good, real, training):
    assert not good.memorisation["memorised"]
    assert abs(good.memorisation["pixels"]["copying"]) < 3
    fake = cells(3)
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), 3) for image in fake.images])
    found = compare(real, changed(fake, blurred), training)
    # nearer to the training images than real ones are, and yet copies of none
    assert found.memorisation["pixels"]["copying"] < -3
    assert found.memorisation["pixels"]["overall"]["share"] == 0
    assert not found.memorisation["memorised"]


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
    assert texture.periods(64) == (2, 4, 8) and texture.periods(32) == (2, 4)
    assert texture.periods(28) == (2,) and texture.periods(15) == ()


def test_weights_pick_images():
    images = np.random.default_rng(0).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    weights = np.zeros((2, 300))
    weights[0, [3, 280]], weights[1, 5] = 0.5, 1
    both = texture.mean_power(images, weights)
    assert both[0] == pytest.approx(texture.mean_power(images[[3, 280]]), rel=1e-4)
    assert both[1] == pytest.approx(texture.mean_power(images[5:6]), rel=1e-4)


# --- all in one --------------------------------------------------------------------------------


def test_images_as_good_as_real_ones_meet_the_targets(good, real):
    rows = {name: row["met"] for name, row in good.scorecard.items()}
    assert set(rows.values()) == {True}, good.scorecard
    assert 0.7 < good.scorecard["frechet_ratio"]["value"] < 1.4
    assert good.settings["compared"] == 90 and good.overall["compared"] == 90
    assert {name: group["compared"] for name, group in good.classes.items()} == dict.fromkeys(
        NAMES, 30
    )
    for group in (good.overall, *good.classes.values()):
        assert group["reasons"] == {}
        assert group["kernel"]["low"] < 0 < group["kernel"]["high"]
        assert group["kernel"]["ratio"] is None
        for measure in ("frechet", "recall", "coverage", "diversity_pixels", "agreement"):
            found = group[measure]
            assert found["low"] <= found["value"] <= found["high"]
            assert found["real_low"] <= found["real"] <= found["real_high"]
        ratio = group["coverage"]["value"] / group["coverage"]["real"]
        assert group["coverage"]["ratio"] == pytest.approx(ratio)


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
    green = good.classes["green"]
    assert green["frechet"]["value"] == pytest.approx(frechet, rel=0.08)
    assert green["frechet"]["real"] == pytest.approx(own, rel=0.08)
    assert green["recall"]["value"] == pytest.approx(recall, abs=0.03)
    assert green["diversity_features"]["value"] == pytest.approx(diversity, rel=0.02)


def test_result_is_json_and_text(good):
    document = json.loads(as_json(good))
    assert document["scorecard"] == good.scorecard and document["format"] == 2
    assert document["sets"]["generated"]["classes"] == dict.fromkeys(NAMES, 60)
    assert "pairs" not in document and "nearness" not in document
    text = as_text(good)
    assert text.startswith("good: 180 generated images against 180 real ones of held out")
    assert "compares 90 real with 90 generated images" in text and "12 features" in text
    assert "accuracy score: not measured, it was not asked for" in text
    assert "memorised: no" in text and "missed" not in text


def test_the_seed_decides(real):
    one, same, other = (
        compare(real, cells(3), resamples=20, seed=seed).overall for seed in (0, 0, 1)
    )
    assert one == same and one["kernel"] != other["kernel"]


def test_collapse_shows_in_diversity_and_recall(real):
    fake = cells(3)
    first = [np.flatnonzero(fake.labels == label)[0] for label in fake.labels]
    noise = np.random.default_rng(0).normal(0, 1, fake.images.shape)
    found = compare(real, changed(fake, fake.images[first] + noise))
    assert found.overall["diversity_pixels"]["ratio"] < 0.1
    assert found.overall["diversity_features"]["ratio"] < 0.1
    assert found.overall["recall"]["value"] == 0
    missed = {name for name, row in found.scorecard.items() if row and row["met"] is False}
    assert {"recall_ratio", "diversity_pixels_ratio", "diversity_features_ratio"} <= missed
    assert found.overall["frechet"]["ratio"] > 5


def test_agreement_is_the_share_in_which_the_class_is_seen(real):
    fake = cells(3)
    images = fake.images.copy()
    images[:15] = images[60:75]  # 15 of 60 red ones are green
    found = compare(real, changed(fake, images))
    assert found.classes["red"]["agreement"]["value"] == 0.75
    assert found.classes["red"]["agreement"]["real"] == 1
    assert found.overall["agreement"]["value"] == pytest.approx((0.75 + 1 + 1) / 3)
    assert found.overall["agreement"]["gap"] == pytest.approx(-0.25 / 3)
    # Jeffreys's interval of 45 in 60
    ends = stats.beta.ppf([0.025, 0.975], 45.5, 15.5)
    low, high = (found.classes["red"]["agreement"][key] for key in ("low", "high"))
    assert (low, high) == pytest.approx(tuple(ends), abs=0.01)
    assert found.scorecard["agreement_gap"]["met"] is False
    assert found.overall["agreement"]["training"] is None
    # training images of which a tenth of the red ones are green
    training = cells(2, (50, 50, 50), name="training set")
    wrong = training.images.copy()
    wrong[:5] = wrong[50:55]
    found = compare(real, fake, changed(training, wrong))
    assert found.overall["agreement"]["training"] == pytest.approx((0.9 + 1 + 1) / 3)
    assert "weighted as the real ones: 96.7%, of the real ones 100.0%" in " ".join(found.notes)


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
    assert found.classes["blue"]["frechet"]["value"] == pytest.approx(expected, rel=0.08)
    assert "first 16 principal components of all real images' features" in as_text(found)


def test_grid_in_generated_images_is_missed(real):
    fake = cells(3)
    board = 12 * (np.indices((SIZE, SIZE)).sum(0) % 2)[..., None]
    found = compare(real, changed(fake, fake.images + board - 6.0))
    row = found.scorecard["grid_ratio"]
    assert row["where"] == "period 2" and row["value"] > 2 and row["met"] is False
    assert found.grid["2"]["energy_ratio"] == pytest.approx(row["value"], rel=0.1)
    assert found.spectra[1][16, 16] > 50 * found.spectra[0][16, 16]
    for group in found.classes.values():  # in each class, as over all
        assert group["grid"]["2"]["ratio"] == pytest.approx(found.grid["2"]["ratio"], rel=0.1)
        assert group["grid"]["4"]["ratio"] == pytest.approx(1, abs=0.2)
    assert "red" in as_text(found).split("by class, ratio and 95 %")[1]


def test_small_missing_and_unknown_classes_are_said(real):
    names = (*NAMES, "pale", "odd")
    mine = cells(1, (60, 60, 60, 12, 8), names)
    fake = cells(3, (60, 60, 7, 60, 0), names)
    found = compare(mine, fake, extractor=Projection(class_names=("red", "green", "blue")))
    assert found.left_out == {"odd": "there are no generated images of it"}
    blue, pale = found.classes["blue"], found.classes["pale"]
    assert blue["kernel"] is None and blue["compared"] == 0
    assert blue["reasons"]["recall"] == (
        "it needs 12 images in either set, there are 60 real and 7 generated ones"
    )
    assert pale["kernel"]["value"] is not None and pale["frechet"] is None
    assert pale["reasons"] == {
        "agreement": "the extractor knows no class 'pale'",
        "frechet": "with 12 principal components it needs 26 images in either set",
    }
    assert found.scorecard["recall_ratio"]["measured"] == 3
    assert found.scorecard["recall_ratio"]["of"] == 4
    text = as_text(found)
    assert (
        "(3 of 4 measured)" in text
        and "it does not know pale" in text
        and "odd was not compared" in text
    )


def test_generated_images_without_classes(real, training):
    fake = replace(cells(3), labels=None, class_names=())
    found = compare(real, fake, training)
    assert found.classes == {} and found.overall["compared"] == 90
    assert found.overall["agreement"] is None
    assert found.overall["diversity_pixels"]["ratio"] == pytest.approx(1, abs=0.05)
    assert found.scorecard["recall_ratio"]["where"] == "over all"
    assert found.reasons["agreement_gap"] == "the generated images have no classes"
    text = as_text(found)
    assert "no classes" in text and "of the same classes" not in text and "a class" not in text
    assert not found.memorisation["memorised"] and found.memorisation["pixels"]["classes"] == {}
    assert evaluate(real, fake, extractor=Projection(), resamples=20).accuracy_score is None


def test_too_few_images_says_how_many_are_needed(real):
    small = cells(1, (60, 60, 60))
    with pytest.raises(
        DataError, match=r"with 95 features a half must hold at least 96, which takes 192 real"
    ):
        compare(small, cells(3), extractor=Projection(95))
    found = compare(small, cells(3), extractor=Projection(95), few=True)
    assert found.overall["frechet"] is None and found.scorecard["frechet_ratio"] is None
    assert "it needs 192 images in either set" in found.overall["reasons"]["frechet"]
    assert found.overall["coverage"]["ratio"] > 0.5
    few = cells(3, (8, 8, 8))
    with pytest.raises(
        DataError, match=r"There are 180 real and 24 generated ones, of which 24 of"
    ):
        compare(real, few)


def test_bad_sets_are_refused(real, training):
    with pytest.raises(DataError, match=r"no class in common \(red, green, blue and a, b, c\)"):
        compare(real, cells(3, names=("a", "b", "c")))
    small = replace(cells(3), images=cells(3).images[:, :16, :16])
    with pytest.raises(DataError, match="images of 16 pixels, held out of 32"):
        compare(real, small)
    leaked = changed(training, np.concatenate([real.images[:2], training.images[2:]]))
    with pytest.raises(DataError, match="2 of the 180 real images of held out are among the train"):
        compare(real, cells(3), leaked)
    with pytest.raises(DataError, match="the real images have no classes"):
        compare(replace(real, labels=None), cells(3))
    with pytest.raises(ValueError, match="resamples from 20"):
        compare(real, cells(3), resamples=5)
    with pytest.raises(ValueError, match="180 whole numbers from 0 to 1"):
        replace(real, class_names=NAMES[:2])
    with pytest.raises(ValueError, match="square"):
        replace(real, images=real.images[:, :16])
    few = compare(real, cells(3), cells(2, (10, 10, 10)), resamples=20)
    assert few.reasons["memorisation"] == "it needs at least 50 training images, there are 30"


def test_accuracy_score_of_classes_that_are_easily_told_apart():
    train, test = cells(1, (24, 24, 24)), cells(2, (20, 20, 20))
    options = {"class_names": NAMES, "steps": 50, "seed": 0}
    small, others = (part.images[:, ::2, ::2] for part in (train, test))
    right = accuracy_score(small, train.labels, others, test.labels, **options)
    assert right["accuracy"] > 0.8 and right["low"] < right["accuracy"] <= right["high"]
    assert set(right["recall"]) == set(NAMES)
    for name, (low, high) in right["recall_interval"].items():
        assert low <= right["recall"][name] <= high
        if right["recall"][name] == 1:  # Clopper & Pearson: of 20 none was missed
            assert low == pytest.approx(0.025 ** (1 / 20)) and high == 1


def test_accuracy_score_compares_equal_numbers(real, training, monkeypatch):
    asked = []

    def score(images, labels, test_images, test_labels, class_names, **options):
        asked.append((images, labels, test_images, test_labels, class_names))
        return {
            "accuracy": 0.5 + 0.1 * len(asked),
            "low": 0,
            "high": 1,
            "macro_f1": 0,
            "recall": dict.fromkeys(NAMES, 0.5),
            "recall_interval": {name: [0.4, 0.6] for name in NAMES},
        }

    monkeypatch.setattr(fidelity.classifiers, "accuracy_score", score)
    fake = cells(3, (60, 90, 60))
    found = compare(real, fake, training, cas=True, resamples=20).accuracy_score
    assert found["images"] == {"red": 60, "green": 90, "blue": 60}
    assert found["gap"] == pytest.approx(0.6 - 0.7)
    for (images, labels, test_images, truth, names), source in zip(
        asked, (fake, training), strict=True
    ):
        assert np.bincount(labels).tolist() == [60, 90, 60] and names == NAMES
        assert np.array_equal(test_images, real.images) and np.array_equal(truth, real.labels)
        for label in range(3):
            allowed = {image.tobytes() for image in source.images[source.labels == label]}
            assert {image.tobytes() for image in images[labels == label]} <= allowed
    alone = compare(real, fake, cas=True, resamples=20)
    assert alone.accuracy_score["reference"] is None
    assert "Nothing to compare it with: no training images were given" in as_text(alone)
    assert "red                       0.50 (0.40 to 0.60)" in as_text(alone)


# --- the figure --------------------------------------------------------------------------------


def draw(fig):
    """Draw a figure; nothing may stick out of it, and pyplot must not hold it."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    inside = fig.get_tightbbox(canvas.get_renderer())
    width, height = fig.get_size_inches()
    assert inside.x0 >= -0.03 and inside.y0 >= -0.03
    assert inside.x1 <= width + 0.03 and inside.y1 <= height + 0.03
    assert plt.get_fignums() == []
    return fig


def words(fig):
    """All that is written on a figure."""
    return [text.get_text() for text in fig.findobj(plt.Text)]


def test_figure_shows_classes_copies_and_grid(good):
    with plt.rc_context({"backend": "agg"}):
        figures.use_style()
        fig = draw(figures.fidelity(good))
    said = words(fig)
    assert set(NAMES) <= set(said) and "8 of 8 targets met" in " ".join(said)
    axes = fig.findobj(plt.Axes)
    (recall,) = (ax for ax in axes if ax.get_xlabel() == "recall")
    drawn = next(line for line in recall.lines if line.get_label() == "generated")
    expected = [group["recall"]["value"] for group in good.classes.values()]
    assert drawn.get_xdata() == pytest.approx(expected)
    pictures = [image for ax in axes for image in ax.images if image.get_array().ndim == 3]
    assert len(pictures) == 12
    assert np.array_equal(pictures[1].get_array(), good.pairs[0, 1])


def test_figure_without_classes_or_training_images(real):
    found = compare(real, replace(cells(3, name="$x$"), labels=None, class_names=()), resamples=20)
    with plt.rc_context({"backend": "agg"}):
        figures.use_style()
        said = " ".join(words(draw(figures.fidelity(found))))
    assert "all images" in said and "not measured:" in said and r"\$x\$: 180" in said


# --- where generated images come from, and the command line ------------------------------------


@pytest.fixture
def phantoms(monkeypatch):
    """Two folders of phantom cells, the class names, and an extractor that knows them."""
    folders = [phantom(3, 96, SIZE, seed, 1)[0] for seed in (1, 2)]
    names = open_dataset(folders[0]).class_names
    monkeypatch.setattr(extractors, "load_extractor", lambda: Projection(12, names))
    return *folders, names


def network(names):
    """A conditional generator of a few weights."""
    import keras

    keras.utils.set_random_seed(1)
    latent, label = keras.Input((6,)), keras.Input((), dtype="int32")
    x = keras.layers.Dense(48)(latent)
    if names:
        x = keras.layers.Add()([x, keras.layers.Embedding(len(names), 48)(label)])
    x = keras.layers.Reshape((4, 4, 3))(x)
    x = keras.layers.Conv2DTranspose(3, 5, strides=4, padding="same", activation="tanh")(x)
    return keras.Model([latent, label] if names else latent, x)


def test_from_the_command_line(phantoms, tmp_path, capsys):
    real, fake, names = phantoms
    file = tmp_path / "fidelity.png"
    arguments = ["evaluate", str(real), str(fake), "--no-cas", "--figure", str(file)]
    assert cli.main([*arguments, "--json", "--size", "16"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sets"]["real"]["classes"] == dict.fromkeys(names, 32)
    assert found["settings"]["size"] == 16 and found["accuracy_score"] is None
    assert found["overall"]["compared"] == 48 and file.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["evaluate", str(real), str(fake), "--no-cas", "--reference", str(real)]) == 2
    assert "96 of the 96 real images" in capsys.readouterr().err
    assert cli.main(["evaluate", str(real), str(tmp_path / "none")]) == 2
    complaint = capsys.readouterr().err
    assert "no such folder" in complaint and "comes with cellaug: pbc-fine-128" in complaint
    for wrong in (["--count", "0"], ["--seed", "-1"], ["--figure", "x.gif"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["evaluate", str(real), str(fake), *wrong])


def test_a_generator_draws_what_it_is_compared_with(phantoms, tmp_path, capsys):
    real, _, names = phantoms
    dataset = open_dataset(real)
    known = (names[2], names[0])
    folder = save_generator(
        network(known), tmp_path / "gen", class_names=known, latent_dim=6, dataset=dataset
    )
    drawn = read_generated(folder, {names[0]: 5, names[1]: 4, names[2]: 3}, seed=7)
    assert drawn.class_names == (names[0], names[2]) and drawn.labels.tolist() == [0] * 5 + [1] * 3
    assert drawn.images.shape == (8, 16, 16, 3)
    expected = load_generator(folder).generate(names[2], 3, (7, 0))
    assert np.array_equal(drawn.images[5:], expected)
    assert len(read_generated(folder, {names[0]: 5}, size=8, count=2)) == 2
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
        network(()), tmp_path / "gen", class_names=(), latent_dim=6, dataset=open_dataset(real)
    )
    drawn = read_generated(folder, {"a": 5, "b": 4}, seed=3)
    assert drawn.labels is None
    assert np.array_equal(drawn.images, load_generator(folder).generate(None, 9, 3))
    generate(load_generator(folder), None, 4, tmp_path / "out", 3)
    written = read_generated(tmp_path / "out", {"a": 5})
    assert written.labels is None and np.array_equal(written.images, drawn.images[:4])


def test_only_the_generated_part_of_an_augmented_set_counts(phantoms, tmp_path, capsys):
    real, _, names = phantoms
    dataset = open_dataset(real)
    folder = save_generator(
        network(names), tmp_path / "gen", class_names=names, latent_dim=6, dataset=dataset
    )
    generator = load_generator(folder)
    augment(dataset, generator, 0.25, tmp_path / "more", seed=2)
    found = read_generated(tmp_path / "more", {})
    assert found.counts() == dict.fromkeys(names, 8)
    for k, name in enumerate(found.class_names):
        expected = generator.generate(name, 8, (2, generator.class_names.index(name)))
        assert np.array_equal(found.images[found.labels == k], expected)
    assert cli.main(["evaluate", str(tmp_path / "more"), str(folder)]) == 2
    assert "holds generated images" in capsys.readouterr().err
