"""Tests of cellaug.evaluation."""

import json
import subprocess
import sys
from fractions import Fraction
from functools import partial
from math import comb

from cellaug import networks
from cellaug.book.chapter import thesis
from cellaug.data import DataError, Dataset, open_dataset
from cellaug.data.reader import Reader
from cellaug.evaluation.classifiers import (
    classification_report,
    endless,
    machine_expert,
    paired_difference,
    per_class_change,
    points,
    predicted,
    require_better_than_guessing,
    summarise_seeds,
    train_classifier,
    verdict,
)
from cellaug.evaluation.distances import diversity, mean_pairwise_distance, nearest
from cellaug.evaluation.expert import (
    against_guessing,
    binomial_interval,
    detectable_accuracy,
    score,
    score_confusion,
    shuffle_trial,
    trials_needed,
)
from cellaug.networks import recalibrate
from cellaug.training import fit

import keras
import numpy as np
import pandas as pd
import pytest
from scipy import stats

NAMES = ("band", "segmented", "platelet", "absent")


def flat(*levels, size=8):
    """Images of one grey level each."""
    return np.stack([np.full((size, size, 3), level, np.uint8) for level in levels])


# --- classification ----------------------------------------------------------------------------


def test_report_by_hand():
    truth = np.array([0, 0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 0, 1, 1, 2, 2])
    report = classification_report(truth, predicted, NAMES)
    assert report["confusion"] == [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert report["accuracy"] == pytest.approx(5 / 7)
    assert report["recall"] == {"band": 0.75, "segmented": 0.5, "platelet": 1.0, "absent": None}
    assert report["precision"] == {"band": 1.0, "segmented": 0.5, "platelet": 0.5, "absent": None}
    f1 = [6 / 7, 1 / 2, 2 / 3]  # 2PR / (P + R)
    assert list(report["f1"].values())[:3] == pytest.approx(f1)
    assert report["weighted_f1"] == pytest.approx((4 * f1[0] + 2 * f1[1] + 1 * f1[2]) / 7)
    assert report["macro_f1"] == pytest.approx(sum(f1) / 3)  # the absent class does not count
    assert report["support"] == {"band": 4, "segmented": 2, "platelet": 1, "absent": 0}
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_a_class_that_is_only_predicted_counts_as_wrong():
    report = classification_report(np.array([0, 0]), np.array([0, 3]), NAMES)
    assert report["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert report["weighted_f1"] == pytest.approx(2 / 3)
    assert report["precision"]["absent"] == 0.0 and report["recall"]["absent"] is None


@pytest.mark.parametrize(
    ("truth", "predicted", "wrong"),
    [
        ([0, 1], [0], "predicted"),
        ([], [], "truth"),
        ([0, 4], [0, 1], "truth"),
        ([0, 1], [0, -1], "predicted"),
        ([0, 1], [0.5, 1.0], "predicted"),
        ([0, 1], [[0.9, 0.1], [0.2, 0.8]], "predicted"),
    ],
)
def test_report_refuses(truth, predicted, wrong):
    with pytest.raises(ValueError, match=f"{wrong}: expected class numbers from 0 to 3.*argmax"):
        classification_report(np.array(truth), np.array(predicted), NAMES)


def test_per_class_change_is_in_percentage_points():
    before = classification_report(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), NAMES)
    after = classification_report(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 0]), NAMES)
    change = per_class_change(before, after)
    assert change[["band", "segmented"]].tolist() == [50.0, -50.0]
    assert change[["platelet", "absent"]].isna().all()


def test_summary_of_seeds():
    truth = np.array([0, 0, 1, 1])
    reports = [
        classification_report(truth, np.array(predicted), NAMES)
        for predicted in ([0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1])
    ]
    summary = summarise_seeds(reports)
    # accuracies 1, 0.75, 0.5: variance ((0.25)² + 0 + (0.25)²) / 2
    assert summary["accuracy"] == {"mean": 0.75, "std": pytest.approx(0.25), "n": 3}
    assert summary["recall"]["band"]["mean"] == 0.5
    assert summary["recall"]["absent"] == {"mean": None, "std": None, "n": 0}
    assert summarise_seeds(reports[:1])["accuracy"] == {"mean": 1.0, "std": None, "n": 1}


def test_paired_difference_by_hand():
    found = paired_difference([10, 20, 30], [11, 22, 33])
    # differences 1, 2, 3: mean 2, error 1/√3, and 4.3027 is the t table's 97.5 % at 2 degrees
    assert found["mean"] == pytest.approx(2)
    assert found["low"] == pytest.approx(2 - 4.3026527 / 3**0.5)
    assert found["high"] == pytest.approx(2 + 4.3026527 / 3**0.5)
    assert found["n"] == 3
    for few in ([1.0], [1.0, 2.0]):  # two seeds that agree would have an interval of no width
        same = [value + 2 for value in few]
        none = {"mean": 2.0, "low": None, "high": None, "n": len(few)}
        assert paired_difference(few, same) == none
    assert paired_difference([1, 2, 3], [2, 3, 4]) == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 3}
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1, 2], [1, 2, 3])


@pytest.mark.parametrize(
    ("low", "high", "n", "said", "shown"),
    [
        (0.001, 0.02, 5, "+1.05 (+0.10 to +2.00)", "gain"),
        (-0.02, -0.001, 5, "−1.05 (−2.00 to −0.10)", "loss"),
        (-0.01, 0.03, 5, "+1.00 (−1.00 to +3.00)", "undecided"),
        (0.001, 0.02, 4, "+1.05 (+0.10 to +2.00)", "too few seeds"),
        (0.001, 0.02, 2, "+1.05 (2 seeds, no interval)", "too few seeds"),  # an old record
        (None, None, 1, "+0.70 (1 seed, no interval)", "too few seeds"),
    ],
)
def test_what_a_change_shows(low, high, n, said, shown):
    mean = 0.007 if low is None else (low + high) / 2
    difference = {"mean": mean, "low": low, "high": high, "n": n}
    assert points(difference) == said
    assert points(pd.DataFrame([difference]).iloc[0]) == said  # a row of a table
    assert verdict(difference) == shown


# --- the expert's statistics -------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "trials"), [(44, 50), (27, 50), (1, 7), (6, 7)])
def test_interval_ends_leave_two_and_a_half_per_cent(successes, trials):
    low, high = binomial_interval(successes, trials)
    assert stats.binom.sf(successes - 1, trials, low) == pytest.approx(0.025)
    assert stats.binom.cdf(successes, trials, high) == pytest.approx(0.025)


def test_interval_at_the_edges():
    assert binomial_interval(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert binomial_interval(10, 10) == (pytest.approx(0.025**0.1), 1.0)
    assert binomial_interval(0, 0) == (0.0, 1.0)
    assert binomial_interval(0, 10, confidence=0.9)[1] == pytest.approx(1 - 0.05**0.1)
    with pytest.raises(ValueError, match="11"):
        binomial_interval(11, 10)


def test_score_gives_the_thesis_its_own_numbers():
    truth = np.repeat([True, False], 50)
    said = np.repeat([True, False, True, False], [44, 6, 23, 27])
    result = score(truth, said)
    assert result["confusion"] == thesis()["expert"]["confusion"] == [[44, 6], [23, 27]]
    assert result["recall"]["value"] == 0.88
    assert result["specificity"]["value"] == 0.54
    assert result["accuracy"]["value"] == 0.71
    # Clopper–Pearson from published tables
    assert (result["recall"]["low"], result["recall"]["high"]) == pytest.approx(
        (0.757, 0.955), abs=5e-4
    )
    assert (result["specificity"]["successes"], result["specificity"]["trials"]) == (27, 50)
    assert score_confusion([[44, 6], [23, 27]]) == result


def test_score_without_generated_images_and_with_wrong_input():
    result = score(np.array([True, True]), np.array([True, False]))
    assert result["specificity"]["value"] is None
    with pytest.raises(ValueError, match="booleans"):
        score(np.array([1, 0]), np.array([1, 0]))


def exact_power(trials, accuracy, alpha=Fraction(1, 20)):
    """The power of the two-sided sign test in whole fractions, by adding up every outcome."""
    tail = [Fraction(sum(comb(trials, i) for i in range(k + 1)), 2**trials) for k in range(trials)]
    few = max((k for k in range(trials // 2) if 2 * tail[k] <= alpha), default=-1)
    rejected = [k for k in range(trials + 1) if min(k, trials - k) <= few]
    a = Fraction(accuracy)
    return sum(comb(trials, k) * a**k * (1 - a) ** (trials - k) for k in rejected), few


def test_the_reference_agrees_with_the_tables_of_the_sign_test():
    # critical values of the two-sided sign test at 0.05, as printed in textbooks
    table = {6: 0, 8: 0, 9: 1, 10: 1, 12: 2, 15: 3, 20: 5, 25: 7, 30: 9, 50: 17, 100: 39}
    assert {n: exact_power(n, Fraction(3, 5))[1] for n in table} == table


@pytest.mark.parametrize("trials", [6, 7, 20, 37, 100])
def test_detectable_accuracy_has_the_power_asked_for(trials):
    found = detectable_accuracy(trials)
    assert 0.5 < found < 1
    assert float(exact_power(trials, Fraction(found))[0]) == pytest.approx(0.8, abs=1e-9)
    strict = detectable_accuracy(trials, power=0.9, alpha=0.04)
    power, _ = exact_power(trials, Fraction(strict), Fraction(4, 100))
    assert float(power) == pytest.approx(0.9, abs=1e-9)


def test_too_few_trials_detect_nothing():
    assert detectable_accuracy(5) is None  # 2 / 2**5 is above 0.05
    assert detectable_accuracy(0) is None
    # where a tail is exactly alpha / 2 it is rejected: all five right, 0.8 of the time
    assert detectable_accuracy(5, alpha=0.0625) == pytest.approx(0.8**0.2, abs=1e-4)


@pytest.mark.parametrize("accuracy", [Fraction(63, 100), Fraction(71, 100), Fraction(9, 10)])
def test_trials_needed_is_where_the_power_stays(accuracy):
    needed = trials_needed(float(accuracy))
    assert exact_power(needed - 1, accuracy)[0] < Fraction(4, 5)
    assert all(exact_power(n, accuracy)[0] >= Fraction(4, 5) for n in range(needed, needed + 40))
    assert detectable_accuracy(needed) <= accuracy < detectable_accuracy(needed - 1)


def test_trials_needed_at_the_edges():
    assert trials_needed(1.0) == 6
    assert trials_needed(0.71, power=0.95) > trials_needed(0.71) > trials_needed(0.71, alpha=0.2)
    with pytest.raises(ValueError, match=r"from 0\.51 to 1, got .* 0\.5"):
        trials_needed(0.5)
    with pytest.raises(ValueError, match="alpha < power"):
        trials_needed(0.7, power=0.04)
    with pytest.raises(ValueError, match="alpha < power"):
        detectable_accuracy(100, alpha=0)


def test_guessing_by_hand():
    # 9 of 10 right: (1 + 10) / 2**10 in each tail
    found = against_guessing([[5, 0], [1, 4]])
    assert found["p"] == pytest.approx(22 / 1024) and "binomial" in found["test"]
    # Always "real" on 8 real and 2 fake images: 80 % right, and no knowledge at all.
    found = against_guessing([[8, 0], [2, 0]])
    assert found["p"] == 1.0 and "Fisher" in found["test"]
    # 3 real called real, 1 fake called fake: 1 of the 4 tables with these margins
    assert against_guessing([[3, 0], [0, 1]])["p"] == pytest.approx(1 / 4)
    assert against_guessing([[3, 1], [0, 0]])["p"] is None


def test_shuffle_trial_keeps_truth_with_its_image():
    real, fake = flat(*range(100, 120)), flat(*range(20))
    images, is_real = shuffle_trial(real, fake, seed=3)
    assert images.shape == (40, 8, 8, 3)
    assert np.array_equal(images[:, 0, 0, 0] >= 100, is_real)
    assert sorted(images[:, 0, 0, 0].tolist()) == [*range(20), *range(100, 120)]
    assert 0 < is_real[:20].sum() < 20  # mixed
    assert np.array_equal(images, shuffle_trial(real, fake, seed=3)[0])
    assert not np.array_equal(images, shuffle_trial(real, fake, seed=4)[0])
    with pytest.raises(ValueError, match="one size"):
        shuffle_trial(real, flat(1, size=9))


# --- likeness and diversity --------------------------------------------------------------------


def test_nearest_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    query = rng.integers(0, 256, (7, 16, 16, 3), dtype=np.uint8)
    candidates = rng.integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    candidates[8] = query[4]
    difference = query[:, None].astype(float) - candidates[None]
    expected = np.sqrt((difference**2).mean((2, 3, 4)))
    indices, measured = nearest(query, candidates)
    assert indices.tolist() == expected.argmin(1).tolist()
    assert measured == pytest.approx(expected.min(1))
    assert indices[4] == 8 and measured[4] == 0.0


def test_distance_is_in_grey_levels_after_averaging_areas():
    indices, distances = nearest(flat(100), flat(90, 104, 111))
    assert (indices.tolist(), distances.tolist()) == ([1], [4.0])
    # at 64 px, dots of one pixel that average to the flat image vanish at 32 px
    dots = np.zeros((1, 64, 64, 3), np.uint8)
    dots[:, ::2, ::2] = 80
    assert nearest(dots, flat(20, size=64))[1].tolist() == [0.0]


def test_nearest_refuses():
    with pytest.raises(ValueError, match="Incompatible dimension"):
        nearest(flat(1), flat(1, size=9))
    with pytest.raises(ValueError, match="size 0"):
        nearest(flat(1), flat(1)[:0])
    with pytest.raises(ValueError, match="query: expected uint8"):
        nearest(flat(1) / 255, flat(1))


def test_mean_pairwise_distance_by_hand():
    assert mean_pairwise_distance(flat(0, 10, 40)) == pytest.approx((10 + 40 + 30) / 3)
    assert mean_pairwise_distance(flat(7, 7)) == 0.0
    assert np.isnan(mean_pairwise_distance(flat(1)))


def test_drawn_pairs_estimate_the_mean():
    images = flat(*range(0, 200, 4))
    every = mean_pairwise_distance(images, max_pairs=10_000)
    drawn = mean_pairwise_distance(images, max_pairs=800, seed=1)
    assert drawn != every and drawn == pytest.approx(every, rel=0.08)
    assert drawn == mean_pairwise_distance(images, max_pairs=800, seed=1)


def test_diversity_by_class():
    found = diversity(flat(0, 10, 5, 5, 80), np.array([0, 0, 1, 1, 2]), NAMES)
    expected = pd.Series([10, 0, np.nan, np.nan], index=list(NAMES), name="diversity")
    pd.testing.assert_series_equal(found, expected)
    with pytest.raises(IndexError, match="boolean index"):
        diversity(flat(0, 10), np.array([0]), NAMES)


# --- the machine in the expert's place ---------------------------------------------------------


def test_machine_expert_finds_a_plain_difference():
    rng = np.random.default_rng(0)
    cells = rng.integers(60, 200, (72, 16, 16, 3), dtype=np.uint8)
    gridded = cells[36:].copy()
    gridded[:, ::2] //= 2  # the grid of a transposed convolution, laid on thick
    trial, truth = shuffle_trial(cells[24:36], gridded[24:], seed=0)
    said = machine_expert(cells[:24], gridded[:12], trial, seed=0, steps=100, batch_size=8)
    assert score(truth, said)["accuracy"]["value"] >= 0.9


def test_machine_expert_refuses_what_it_has_seen():
    with pytest.raises(ValueError, match="1 of the trial's 2 images"):
        machine_expert(flat(1, 2), flat(3, 4), flat(2, 9))
    with pytest.raises(ValueError, match="dimensions"):
        machine_expert(flat(1, 2), flat(3, size=9), flat(9))


def test_a_classifier_learns_from_a_reader_and_resumes(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    images = rng.integers(100, 130, (64, 16, 16, 3), np.uint8)
    images[labels == 1, :, :, 0] += 90
    cells = Dataset.of_images(images, labels, ("a", "b"))

    def train():
        with Reader(cells, 16, 16, seed=1) as reader:
            resumed = partial(fit, checkpoint=tmp_path / "c", settings={"data": "x"})
            return train_classifier(reader, 16, 2, 20 * len(reader), seed=3, fit=resumed)

    model = train()
    assert (predicted(model, images) == labels).mean() > 0.9
    again = train()  # what is done is not done again
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_classifier_of_few_steps_predicts_what_it_has_learned(monkeypatch):
    """211 images, 42 steps: the running averages lag so far behind that predictions are chance."""
    cells = open_dataset("phantom", classes=5, images=211, size=48, seed=2).in_memory(16)
    before = []

    def measured(model, batches):
        before.append((predicted(model, cells.images) == cells.labels).mean())
        return recalibrate(model, batches)

    monkeypatch.setattr(networks, "recalibrate", measured)
    with Reader(cells, 16, 32, seed=1) as reader:
        model = train_classifier(reader, 16, 5, 6 * len(reader), seed=1)
    assert before[0] < 0.7
    assert (predicted(model, cells.images) == cells.labels).mean() > 0.95


def test_a_classifier_that_fails_at_prediction_is_an_error(monkeypatch):
    def tiny(kind, size, classes, **options):
        keras.utils.set_random_seed(0)
        norm = keras.layers.BatchNormalization(momentum=1.0)  # averages stay at 0 and 1
        flat = [keras.Input((size, size, 3)), keras.layers.Flatten(), norm]
        return keras.Sequential([*flat, keras.layers.Dense(classes)])

    def batches():
        labels = np.arange(32) % 4
        while True:  # grey levels near each other, far from the mean 0 of the averages
            yield flat(*(200 + 2 * labels)), labels

    monkeypatch.setattr(networks, "classifier", tiny)
    monkeypatch.setattr(networks, "recalibrate", lambda *_: np.tile(np.arange(32) % 4, 8))
    with pytest.raises(DataError, match=r"arm, seed 3: .* 1\.00 in training, but 0\.\d\d when it"):
        train_classifier(batches(), 8, 4, 20, title="arm, seed 3")


def test_a_baseline_must_be_better_than_guessing():
    # 17 of 36 in the largest class; P(X ≥ k) for binomial(36, 17/36): 0.068 for 22, 0.034 for 23
    def report(right):
        truth = np.repeat([0, 1, 2], [17, 9, 10])
        answers = np.where(np.arange(36) < right, truth, (truth + 1) % 3)
        return classification_report(truth, answers, NAMES[:3])

    share = Fraction(17, 36)
    above = [
        sum(comb(36, k) * share**k * (1 - share) ** (36 - k) for k in range(right, 37))
        for right in (22, 23)
    ]
    assert above[0] >= Fraction(1, 20) > above[1]
    require_better_than_guessing(report(23), "baseline")
    what = rf"^baseline: 22 of 36 .* 0\.61.*0\.47.*p = {float(above[0]):.2f}.*classifier_epochs"
    with pytest.raises(DataError, match=what):
        require_better_than_guessing(report(22), "baseline")


def test_arms_of_different_sizes_see_the_same_number_of_images():
    small, large = (Dataset.of_images(flat(*range(n)), [0] * n, ["a"]) for n in (20, 33))
    steps = []
    for cells in (small, large):
        order = next(endless(np.arange(len(cells)), 50, np.random.default_rng(1)))
        seen = np.bincount(order, minlength=len(cells))
        assert (
            seen.sum() == 50 and seen.max() - seen.min() == 1
        )  # all again before any a third time
        with Reader(cells.subset(order), 8, 16, shuffle=False) as reader:
            steps.append([len(reader[k][1]) for k in range(len(reader))])
    assert steps[0] == steps[1] == [16, 16, 16, 2]


def test_importing_is_light():
    code = (
        "import cellaug.evaluation, cellaug.generators, sys;"
        "heavy = {'keras', 'tensorflow', 'jax', 'IPython', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
