"""Paired comparisons of arms over seeds and test images, and what a gain is worth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

RESAMPLES = 2000
LEVEL = 0.95


def scores(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Accuracy, balanced accuracy, macro and weighted F1 of class numbers (..., N), and recalls.

    `truth` (N,) holds class numbers below `classes`. Scores have the shape (...) of `predicted`
    without its last axis, "recall" (..., classes), NaN for a class without images. As in
    scikit-learn, F1 is 0 where a class is never right; a class that does not occur counts in no
    mean, though naming it is wrong.
    """
    shape = predicted.shape[:-1]
    answers = predicted.reshape(-1, predicted.shape[-1])
    cells = (np.arange(len(answers))[:, None] * classes + truth) * classes + answers
    counts = np.bincount(cells.ravel(), minlength=len(answers) * classes**2)
    confusion = counts.reshape(-1, classes, classes)
    right = np.diagonal(confusion, axis1=1, axis2=2)
    true, named = confusion.sum(2), confusion.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(true, 2 * right / (true + named), np.nan)
        recall = right / true
    found = {
        "accuracy": right.sum(1) / len(truth),
        "balanced_accuracy": np.nanmean(recall, axis=1),
        "macro_f1": np.nanmean(f1, axis=1),
        "weighted_f1": np.nansum(f1 * true, axis=1) / len(truth),
    }
    found = {name: values.reshape(shape) for name, values in found.items()}
    return found | {"recall": recall.reshape(*shape, classes)}


def difference(
    truth: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    classes: int,
    measure: str = "macro_f1",
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """By how much `one` is better than `other`, both class numbers (S, N) of S paired seeds.

    The interval is BCa (Efron 1987) over seeds and test images at once, which are drawn
    independently of each other: it says how far the mean would move with other seeds and with other
    cells of the same kind. With `groups` (patients or slides, (N,)) whole groups are drawn. It is
    NaN with fewer than three seeds. Returns mean, low, high, p (`sign_flip`), d (`effect_size`), sd
    (of the differences between seeds), n (seeds), and the differences by seed.
    """
    by_seed = scores(truth, one, classes)[measure] - scores(truth, other, classes)[measure]
    found = {"mean": by_seed.mean(), "low": np.nan, "high": np.nan, "p": sign_flip(by_seed)}
    found |= {"d": effect_size(by_seed), "sd": by_seed.std(ddof=1) if len(by_seed) > 1 else np.nan}
    found |= {"n": len(by_seed), "by_seed": by_seed}
    if len(by_seed) < 3 or not np.any(one != other):
        return found
    members = [np.array([k]) for k in range(len(truth))]
    if groups is not None:
        named = pd.Series(range(len(truth))).groupby(np.asarray(groups)).agg(list)
        members = [np.array(rows) for rows in named]

    def mean_difference(seeds: np.ndarray, units: np.ndarray) -> float:
        rows = units.astype(int) if groups is None else np.concatenate([members[k] for k in units])
        seeds, known = seeds.astype(int), truth[rows]
        ones, others = (a[seeds][:, rows] for a in (one, other))
        gain = scores(known, ones, classes)[measure] - scores(known, others, classes)[measure]
        return float(gain.mean())

    samples = np.arange(len(by_seed)), np.arange(len(members))
    interval = stats.bootstrap(
        samples, mean_difference, n_resamples=resamples, confidence_level=LEVEL, vectorized=False,
        method="BCa", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return found | {"low": float(interval.low), "high": float(interval.high)}


def over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean of several seeds' values with Student's interval (NaN with fewer than three), sd and n.

    Not a bootstrap: of three to five values its intervals are much too narrow.
    """
    known = np.asarray([v for v in values if not np.isnan(v)], float)
    found = {"mean": known.mean() if len(known) else np.nan, "low": np.nan, "high": np.nan}
    found |= {"sd": known.std(ddof=1) if len(known) > 1 else np.nan, "n": len(known)}
    if len(known) >= 3 and np.ptp(known):
        low, high = stats.ttest_1samp(known, 0).confidence_interval(LEVEL)
        found |= {"low": float(low), "high": float(high)}
    return found


def on_resampled_images(
    truth: np.ndarray, predicted: np.ndarray, classes: int, resamples: int = RESAMPLES
) -> np.ndarray:
    """Macro F1 of class numbers (S, N) on test images drawn with replacement: (S, resamples).

    The images drawn are the same for all S, and for every call with as many images.
    """
    rng, count = np.random.default_rng(0), len(truth)
    drawn = rng.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float32)
    true, one_hot = np.eye(classes, dtype=np.float32)[truth], np.eye(classes, dtype=np.float32)
    true_drawn, rows = drawn @ true, []
    for answers in predicted:
        named = one_hot[answers]
        right, both = drawn @ (named * true), true_drawn + drawn @ named
        with np.errstate(invalid="ignore"):
            rows.append(np.nanmean(np.where(true_drawn, 2 * right / both, np.nan), axis=1))
    return np.array(rows)


def sign_flip(differences: np.ndarray) -> float:
    """Two-sided p of paired differences (S,): how often random signs give as large a mean.

    Exact up to 13 seeds. With S seeds it cannot be below 2 / 2^S: 0.0625 with five. NaN for one.
    """
    if len(differences) < 2:
        return np.nan
    if not np.any(differences):
        return 1.0
    test = stats.permutation_test(
        (differences, np.zeros_like(differences)), lambda a, b: np.mean(a - b),
        permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(test.pvalue)


def effect_size(differences: np.ndarray) -> float:
    """Cohen's d of paired differences: their mean in units of their standard deviation."""
    if len(differences) < 2 or not (spread := np.std(differences, ddof=1)):
        return np.nan
    return float(np.mean(differences) / spread)


def holm(p: pd.Series, family: int = 0) -> pd.Series:
    """P values adjusted for their number (Holm 1979), or for a larger `family`; NaN are left out.

    Of a family that is not complete those that are missing count as larger than all.
    """
    ordered = p.dropna().sort_values()
    factors = max(family, len(ordered)) - np.arange(len(ordered))
    adjusted = pd.Series(np.maximum.accumulate(ordered.to_numpy() * factors), ordered.index)
    return adjusted.clip(upper=1).reindex(p.index)


def seeds_needed(sd: float, gain: float, power: float = 0.8, most: int = 10_000) -> float:
    """Paired seeds with which a t-test at 5 % shows a mean `gain` with this power; inf if > `most`.

    `sd` is the standard deviation of the differences between seeds, in the unit of `gain`.
    """
    if not sd:
        return 2.0

    def enough(n: int) -> bool:
        shift, bound = abs(gain) / sd * np.sqrt(n), stats.t.ppf(0.975, n - 1)
        reached = stats.nct.sf(bound, n - 1, shift) + stats.nct.cdf(-bound, n - 1, shift)
        return bool(reached >= power)

    low, high = 2, 4
    while not enough(high):
        low, high = high, 2 * high
        if high > most:
            return np.inf
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return float(low)


def worth(
    curve: Mapping[int, Sequence[float]], count: int, gains: Sequence[float], resamples: int = 2000,
    seed: int = 0, beyond: bool = False,
) -> dict[str, float]:  # fmt: skip
    """How many more real images would bring the same gain at `count` real images.

    `curve` has the scores of a baseline arm, one for each seed, by number of real images; `gains`
    are those of an arm over the baseline at `count`, one for each seed. The mean curve, made to
    rise only (isotonic regression), is read off along the logarithm of the number. Returns images
    and its percentile interval over seeds, low and high; inf beyond the last point of the curve, or
    with `beyond` what its last stretch that rises gives when it is continued; -inf before the
    first, or with `beyond` as many fewer as lead to it.
    """
    rng, numbers = np.random.default_rng(seed), np.array(sorted(curve))
    places = np.log(numbers)

    def more(means: np.ndarray, gain: float) -> float:
        rising = optimize.isotonic_regression(means).x
        wanted = np.interp(np.log(count), places, rising) + gain
        if gain > 0 and wanted > rising[-1]:
            before = np.flatnonzero(rising < rising[-1])
            if not beyond or not len(before):
                return np.inf
            run, rise = (np.subtract(values[-1], values[before[-1]]) for values in (places, rising))
            return float(np.exp(places[-1] + (wanted - rising[-1]) * run / rise) - count)
        if wanted < rising[0]:
            return float(numbers[0] - count) if beyond else -np.inf
        steps = np.flatnonzero(np.diff(rising, prepend=rising[0] - 1) > 0)  # the first of equals
        return float(np.exp(np.interp(wanted, rising[steps], places[steps])) - count)

    def drawn(values: Sequence[float]) -> float:
        return float(np.mean(rng.choice(np.asarray(values, float), len(values))))

    found = [
        more(np.array([drawn(curve[n]) for n in numbers]), drawn(gains)) for _ in range(resamples)
    ]
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    means = np.array([np.mean(curve[n]) for n in numbers])
    return {"images": more(means, float(np.mean(gains))), "low": float(low), "high": float(high)}
