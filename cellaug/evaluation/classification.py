"""How well a classifier does, by the measures of section 3.14, and how sure we may be of a gain."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from sklearn import metrics

OVERALL = ("accuracy", "weighted_f1", "macro_f1")
"""The single figures of a report."""


def classification_report(
    truth: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> dict:
    """Score predicted class numbers against the true ones; the result can go into JSON as it is.

    `truth` and `predicted` are integers (N,), numbers into `class_names`. The keys:

    - `accuracy` (Eq. 34), `weighted_f1` (Eq. 38 per class, averaged by support: Table 4) and
      `macro_f1` (every class counts the same; classes that neither occur nor are predicted do not
      count), all 0–1;
    - `precision` (Eq. 35), `recall` (Eq. 36) and `f1` per class name, 0–1; None where a class
      has no image (recall, f1) or was never predicted (precision);
    - `support`: true images per class name;
    - `confusion`: rows the true, columns the predicted class, counts;
    - `class_names`.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    names = [str(name) for name in class_names]
    if truth.ndim != 1 or truth.shape != predicted.shape or not len(truth):
        raise ValueError(
            "truth and predicted: expected two equally long lists of class numbers, but their "
            f"shapes are {truth.shape} and {predicted.shape}; take the argmax of the logits first"
        )
    for what, labels in (("truth", truth), ("predicted", predicted)):
        if not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{what}: expected integer class numbers, got {labels.dtype}")
        if labels.min() < 0 or labels.max() >= len(names):
            raise ValueError(
                f"{what}: class numbers must lie in 0–{len(names) - 1}, "
                f"but they span {labels.min()}–{labels.max()}"
            )
    every = list(range(len(names)))
    confusion = metrics.confusion_matrix(truth, predicted, labels=every)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, predicted, labels=every, zero_division=0
    )
    guessed = confusion.sum(0)
    return {
        "accuracy": float(metrics.accuracy_score(truth, predicted)),
        "weighted_f1": float(metrics.f1_score(truth, predicted, average="weighted")),
        "macro_f1": float(metrics.f1_score(truth, predicted, average="macro")),
        "precision": _by_name(names, precision, guessed > 0),
        "recall": _by_name(names, recall, support > 0),
        "f1": _by_name(names, f1, support > 0),
        "support": {name: int(count) for name, count in zip(names, support, strict=True)},
        "confusion": confusion.tolist(),
        "class_names": names,
    }


def per_class_change(baseline: Mapping, other: Mapping) -> pd.Series:
    """Change of each class's recall from one report to another, in percentage points (section 5.4).

    The index is the baseline's class names; NaN where a class has no image in either report.
    """
    if baseline["class_names"] != other["class_names"]:
        raise ValueError(
            f"the reports are about different classes: {baseline['class_names']} and "
            f"{other['class_names']}"
        )
    before = pd.Series(baseline["recall"], dtype=float)
    after = pd.Series(other["recall"], dtype=float)
    return (100 * (after - before)).rename("change")


def summarise_seeds(reports: Sequence[Mapping]) -> dict:
    """Mean, standard deviation (n − 1 in the denominator) and n over reports of several seeds.

    Gives `{metric: {"mean", "std", "n"}}` for accuracy, weighted and macro F1, and the same per
    class under `recall`. `std` is None for a single seed, all but `n` None for a class without
    images.
    """
    if not reports:
        raise ValueError("reports: expected at least one, one per seed")
    summary: dict = {key: _spread([report[key] for report in reports]) for key in OVERALL}
    summary["recall"] = {
        name: _spread([report["recall"][name] for report in reports])
        for name in reports[0]["class_names"]
    }
    return summary


def paired_difference(
    baseline: Sequence[float], other: Sequence[float], confidence: float = 0.95
) -> dict:
    """Mean of `other − baseline` over seeds with its t interval: `mean`, `low`, `high`, `n`.

    The two lists hold the same seeds in the same order, so what a seed does to both cancels. With
    one seed there is no interval: `low` and `high` are None. Unit: that of the values.
    """
    baseline, other = np.asarray(baseline, float), np.asarray(other, float)
    if baseline.ndim != 1 or baseline.shape != other.shape or not len(baseline):
        raise ValueError(
            "baseline and other: expected one value per seed in each, in the same order, but "
            f"their shapes are {baseline.shape} and {other.shape}"
        )
    difference = other - baseline
    mean, count = float(difference.mean()), len(difference)
    if count == 1:
        return {"mean": mean, "low": None, "high": None, "n": 1}
    error = difference.std(ddof=1) / np.sqrt(count)
    reach = float(stats.t.ppf((1 + confidence) / 2, count - 1) * error)
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "n": count}


def _by_name(names: Sequence[str], values: np.ndarray, defined: np.ndarray) -> dict:
    triples = zip(names, values, defined, strict=True)
    return {name: float(value) if known else None for name, value, known in triples}


def _spread(values: Sequence[float | None]) -> dict:
    known = np.array([value for value in values if value is not None], float)
    return {
        "mean": float(known.mean()) if len(known) else None,
        "std": float(known.std(ddof=1)) if len(known) > 1 else None,
        "n": len(known),
    }
