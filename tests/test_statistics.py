"""Statistics of paired arms, calibration and selection: against other code and by hand."""

from cellaug.evaluation.calibration import calibration, probabilities, temperature
from cellaug.study.statistics import (
    difference,
    effect_size,
    holm,
    on_resampled_images,
    over_seeds,
    scores,
    seeds_needed,
    sign_flip,
    worth,
)

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics


def answers(truth, right, seeds, rng, classes=4):
    """Class numbers (seeds, N), each right with this probability, else any class at random."""
    hit = rng.random((seeds, len(truth))) < right
    return np.where(hit, truth, rng.integers(classes, size=(seeds, len(truth))))


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.integers(5, size=200)
    named = np.stack([answers(truth, right, 2, rng, 5) for right in (0.9, 0.4)])
    named[1, 1][named[1, 1] == 3] = 2  # a class that is never named
    found = scores(truth, named, 5)
    for place in np.ndindex(2, 2):
        one = named[place]
        assert found["accuracy"][place] == pytest.approx(metrics.accuracy_score(truth, one))
        for kind in ("macro", "weighted"):
            expected = metrics.f1_score(truth, one, average=kind, zero_division=0)
            assert found[f"{kind}_f1"][place] == pytest.approx(expected)
        expected = metrics.balanced_accuracy_score(truth, one)
        assert found["balanced_accuracy"][place] == pytest.approx(expected)
        recall = metrics.recall_score(truth, one, average=None)
        np.testing.assert_allclose(found["recall"][place], recall)


def test_a_class_that_does_not_occur_counts_in_no_mean_but_naming_it_is_wrong():
    found = scores(np.array([0, 0, 1]), np.array([[0, 0, 1], [2, 0, 1]]), 3)
    assert np.isnan(found["recall"][:, 2]).all()
    np.testing.assert_allclose(found["macro_f1"], [1.0, (2 / 3 + 1) / 2])
    expected = metrics.f1_score([0, 0, 1], [2, 0, 1], average="macro", labels=[0, 1])
    assert found["macro_f1"][1] == pytest.approx(expected)


def test_no_effect_is_called_none():
    """Arms that differ by chance alone: the interval includes zero, and p is not small."""
    rng = np.random.default_rng(1)
    truth = rng.integers(4, size=300)
    included = 0
    for trial in range(12):
        one, other = (answers(truth, 0.8, 10, rng) for _ in range(2))
        found = difference(truth, one, other, 4, resamples=300, seed=trial)
        assert found["low"] < found["mean"] < found["high"]
        included += found["low"] <= 0 <= found["high"]
    assert included >= 10  # about 11.4 of 12 are expected


def test_known_effect_is_found_within_its_interval():
    rng = np.random.default_rng(2)
    truth = np.repeat(np.arange(4), 100)
    one, other = answers(truth, 0.9, 10, rng), answers(truth, 0.8, 10, rng)
    found = difference(truth, one, other, 4, measure="accuracy", resamples=500)
    effect = 0.75 * 0.1  # a wrong guess is right in a quarter of the cases
    assert found["low"] < effect < found["high"] and found["low"] > 0
    assert found["p"] == pytest.approx(2 / 2**10) and found["n"] == 10 and found["d"] > 2
    by_hand = (one == truth).mean(1) - (other == truth).mean(1)
    np.testing.assert_allclose(found["by_seed"], by_hand)
    again = difference(truth, one, other, 4, measure="accuracy", resamples=500)
    assert (again["low"], again["high"]) == (found["low"], found["high"])


def test_groups_widen_the_interval():
    """Cells of a patient are alike: 40 patients tell less than 400 cells."""
    rng = np.random.default_rng(3)
    truth = rng.integers(4, size=400)
    groups = np.repeat(np.arange(40), 10)
    better = rng.random(40)[groups] < 0.3  # all cells of these patients are named right by one
    other = answers(truth, 0.6, 5, rng)
    one = np.where(better, truth, other)
    alone, whole = (
        difference(truth, one, other, 4, measure="accuracy", groups=g, resamples=400)
        for g in (None, groups)
    )
    assert whole["high"] - whole["low"] > 1.4 * (alone["high"] - alone["low"])
    assert whole["mean"] == alone["mean"]


def test_no_interval_from_two_seeds():
    truth = np.array([0, 1, 0, 1])
    found = difference(truth, np.array([truth] * 2), np.array([1 - truth] * 2), 2)
    assert np.isnan(found["low"]) and found["mean"] == 1 and found["n"] == 2
    assert np.isnan(over_seeds([0.1, 0.2])["low"])


def test_the_interval_over_seeds_by_hand():
    found = over_seeds([0.1, 0.2, 0.3, np.nan])
    half = 4.302653 * 0.1 / 3**0.5  # Student's t with two degrees of freedom
    assert found["n"] == 3 and found["low"] == pytest.approx(0.2 - half)
    assert found["high"] == pytest.approx(0.2 + half)


def test_macro_f1_on_resampled_images():
    rng = np.random.default_rng(5)
    truth = rng.integers(3, size=60)
    said = np.stack(
        [np.where(rng.random(60) < p, truth, rng.integers(3, size=60)) for p in (0.5, 1)]
    )
    found = on_resampled_images(truth, said, 4, 300)
    drawn = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), 300)
    rows = np.repeat(np.arange(60), drawn[7])
    wanted = metrics.f1_score(truth[rows], said[0][rows], average="macro")
    assert found.shape == (2, 300) and found[0, 7] == pytest.approx(wanted)
    assert (found[1] == 1).all()


def test_sign_flips_by_hand():
    assert sign_flip(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 / 8)  # itself and its mirror
    assert sign_flip(np.array([1.0, -2.0, 3.0])) == pytest.approx(6 / 8)  # sums of 2, 4, 6 and more
    assert sign_flip(np.full(5, 0.1)) == pytest.approx(0.0625)
    assert sign_flip(np.zeros(4)) == 1 and np.isnan(sign_flip(np.array([0.3])))


def test_holm_by_hand():
    p = pd.Series({"a": 0.01, "b": 0.04, "c": 0.03, "d": np.nan})
    expected = pd.Series({"a": 0.03, "b": 0.06, "c": 0.06, "d": np.nan})
    pd.testing.assert_series_equal(holm(p), expected)
    assert holm(pd.Series([0.6, 0.7])).tolist() == [1.0, 1.0]
    assert holm(pd.Series([0.01, 0.02]), family=5).tolist() == [0.05, 0.08]  # three to come


def test_effect_size_and_seeds_needed():
    assert effect_size(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    # Cohen (1988) and G*Power: 34 pairs for d = 0.5, 15 for d = 0.8, at a power of 0.8
    assert seeds_needed(1.0, 0.5) == 34 and seeds_needed(1.0, 0.8) == 15
    assert seeds_needed(1.0, 1e-4) == np.inf


def test_worth_on_a_known_curve():
    """A score that rises by 0.1 each time the number doubles: +0.05 is worth √2 times as many."""
    curve = {n: [0.1 * np.log2(n)] * 3 for n in (10, 20, 40, 80)}
    found = worth(curve, 20, [0.05] * 3, resamples=50)
    assert found["images"] == pytest.approx(20 * (2**0.5 - 1))
    assert found["low"] == pytest.approx(found["images"]) == found["high"]
    assert worth(curve, 20, [-0.1] * 3, resamples=10)["images"] == pytest.approx(-10)
    assert worth(curve, 40, [0.3] * 3, resamples=10)["images"] == np.inf
    assert worth(curve, 10, [-0.1] * 3, resamples=10)["images"] == -np.inf
    assert worth(curve, 40, [-0.3] * 3, resamples=10, beyond=True)["images"] == -30
    assert worth(curve, 40, [0.0] * 3, resamples=10)["images"] == pytest.approx(0, abs=1e-9)
    uneven = {**curve, 40: [0.1 * np.log2(20) - 0.02] * 3}  # by chance lower: made level
    assert worth(uneven, 20, [0.0] * 3, resamples=10)["images"] <= 0


def test_interval_of_the_worth_grows_with_the_spread_of_seeds():
    rng = np.random.default_rng(0)
    curve = {n: 0.1 * np.log2(n) + rng.normal(0, 0.01, 10) for n in (10, 20, 40, 80)}
    narrow, wide = (worth(curve, 20, 0.05 + rng.normal(0, s, 10), 400) for s in (0.001, 0.05))
    assert narrow["low"] < 20 * (2**0.5 - 1) < narrow["high"]
    assert wide["high"] - wide["low"] > narrow["high"] - narrow["low"]


def test_temperature_undoes_a_known_scale():
    rng = np.random.default_rng(4)
    logits = 2 * rng.standard_normal((4000, 5))
    labels = np.array([rng.choice(5, p=p) for p in probabilities(logits)])
    assert temperature(3 * logits, labels) == pytest.approx(3, rel=0.1)
    assert temperature(logits, labels) == pytest.approx(1, rel=0.1)
    before, after = (calibration(probabilities(3 * logits, t), labels) for t in (1, 3))
    assert after["ece"] < 0.03 < 0.15 < before["ece"]
    assert after["brier"] < before["brier"] and after["nll"] < before["nll"]


def test_calibration_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    labels = np.array([0, 1, 1, 1])
    found = calibration(p, labels, bins=2)
    # surest two: 0.8 and 0.9, one is right; the others 0.6 and 0.7, both are right
    assert found["ece"] == pytest.approx((abs(0.5 - 0.85) + abs(1 - 0.65)) / 2)
    brier = np.mean([2 * 0.01, 2 * 0.64, 2 * 0.16, 2 * 0.09])
    assert found["brier"] == pytest.approx(brier)
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.2, 0.6, 0.7]).mean())
    assert found["nll"] == pytest.approx(metrics.log_loss(labels, p))
