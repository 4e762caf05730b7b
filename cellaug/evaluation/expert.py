"""Can an expert tell generated cells from real ones? The trial of section 4.4, and its statistics.

As in the thesis's Table 2, *real* is the positive answer: recall (Eq. 36) is the fraction of real
images called real, specificity (Eq. 37) the fraction of generated images called generated.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cellaug.data import DataError

import numpy as np
from numpy import ndarray as Array
from scipy import optimize, stats

FORMAT, POWER, ALPHA = 1, 0.8, 0.05


def binomial_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact Clopper–Pearson interval (0–1) of `successes` in `trials`; (0, 1) without a trial."""
    if successes == trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def score(truth_real: np.ndarray, said_real: np.ndarray) -> dict:
    """`score_confusion` of bool (N,): whether an image is real, and whether it was called real."""
    truth, said = np.asarray(truth_real), np.asarray(said_real)
    if not truth.dtype == said.dtype == bool or truth.shape != said.shape:
        raise ValueError("truth_real and said_real: expected two equally long lists of booleans")
    return score_confusion([[int(s.sum()), int((~s).sum())] for s in (said[truth], said[~truth])])


def score_confusion(confusion: Sequence[Sequence[int]]) -> dict:
    """Score a table laid out like Table 2: rows actual real and fake, columns called real and fake.

    Each of `recall`, `specificity` and `accuracy` gets a `value` (None without trials), `low` and
    `high` (exact 95 % interval), `successes` and `trials`; `confusion` is the table.
    """
    (real_real, real_fake), (fake_real, fake_fake) = confusion
    real, fake = real_real + real_fake, fake_real + fake_fake
    counts = {"recall": (real_real, real), "specificity": (fake_fake, fake)}
    counts["accuracy"] = real_real + fake_fake, real + fake
    found: dict = {"confusion": [list(row) for row in confusion]}
    for measure, (right, trials) in counts.items():
        low, high = binomial_interval(right, trials)
        found[measure] = {"value": right / trials if trials else None, "low": low, "high": high}
        found[measure] |= {"successes": right, "trials": trials}
    return found


def against_guessing(confusion: Sequence[Sequence[int]]) -> dict:
    """Test a table as in `score_confusion` against a reader who guesses: `test` (its name) and `p`.

    With as many real as generated images guessing has accuracy 0.5, whatever the bias towards
    "real"; otherwise it depends on it. `p` is None without images of one kind.
    """
    (real_real, real_fake), (fake_real, fake_fake) = confusion
    real, fake = real_real + real_fake, fake_real + fake_fake
    if real == fake > 0:
        p = stats.binomtest(real_real + fake_fake, real + fake, 0.5).pvalue
        return {"test": "exact binomial test of the accuracy against 0.5", "p": float(p)}
    p = float(stats.fisher_exact(confusion).pvalue) if real and fake else None
    return {"test": "Fisher's exact test of real against fake images called real", "p": p}


def detectable_accuracy(trials: int, power: float = POWER, alpha: float = ALPHA) -> float | None:
    """The smallest true accuracy that `trials` images distinguish from guessing; None if too few.

    The two-sided exact binomial test at level `alpha` then rejects guessing with probability
    `power`. ValueError unless 0 < alpha < power < 1.
    """
    _check(power, alpha)
    if trials < 1 or _power(trials, 1.0, alpha) < power:
        return None
    return float(optimize.brentq(lambda a: _power(trials, a, alpha) - power, 0.5, 1.0))


def trials_needed(accuracy: float, power: float = POWER, alpha: float = ALPHA) -> int:
    """The number of images from which on a true accuracy is told from guessing with that power.

    See `detectable_accuracy`; the power rises in a zigzag. ValueError unless 0.51 ≤ accuracy ≤ 1.
    """
    _check(power, alpha)
    if not 0.51 <= accuracy <= 1:
        raise ValueError(f"expected an accuracy from 0.51 to 1, got accuracy {accuracy}")
    # The search ends at 1.5 times the normal approximation, which is never off by half.
    width = stats.norm.isf(alpha / 2) / 2
    width += stats.norm.ppf(power) * math.sqrt(accuracy * (1 - accuracy))
    counts = np.arange(1, 50 + int(1.5 * (width / (accuracy - 0.5)) ** 2))
    return int(counts[_power(counts, accuracy, alpha) < power][-1]) + 1


def _check(power: float, alpha: float) -> None:
    if not 0 < alpha < power < 1:
        raise ValueError(f"expected 0 < alpha < power < 1, got alpha {alpha} and power {power}")


def _power(trials, accuracy: float, alpha: float):
    """How probably the two-sided exact test against 0.5 rejects; for one number or an array."""
    # It rejects `few` right or wrong answers or fewer, the most whose tail is within alpha / 2.
    few = stats.binom.ppf(alpha / 2, trials, 0.5)
    few = few - (stats.binom.cdf(few, trials, 0.5) > alpha / 2)
    low = stats.binom.cdf(few, trials, accuracy)
    return low + stats.binom.sf(trials - few - 1, trials, accuracy)


def shuffle_trial(real: Array, fake: Array, seed: int = 0) -> tuple[Array, Array]:
    """Real and generated images in random order: uint8 N×H×W×3, and bool (N,) which are real."""
    if not real.dtype == fake.dtype == np.uint8 or real.shape[1:] != fake.shape[1:]:
        found = f"{real.dtype} {real.shape} and {fake.dtype} {fake.shape}"
        raise ValueError(f"real and fake: expected uint8 images of one size, got {found}")
    order = np.random.default_rng(seed).permutation(len(real) + len(fake))
    return np.concatenate([real, fake])[order], order < len(real)


def trial_hash(images: np.ndarray) -> str:
    """The name of a trial: 16 hex characters that depend on the images and their order."""
    text = f"{images.dtype} {images.shape} ".encode()
    return hashlib.sha256(text + images.tobytes()).hexdigest()[:16]


def read_document(path: str | Path, name: str) -> dict:
    """A JSON document of the expert test, `name` in messages; raises as `read_answers` does."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; expected {name}")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected {name}, as JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: expected {name} of format {FORMAT}")
    return content


def read_answers(path: str | Path, trial: str) -> dict:
    """The answers that a page exported, checked against its trial (`trial_hash`).

    `said_real` is bool (N,), or `said_class` a list of N names; `milliseconds` as many numbers,
    `confidence` as many numbers from 1 (guessed) to 3 (sure) and `why` as many lists of texts, each
    None where there are none; `started`, `finished` and `initials` texts or None. Raises
    FileNotFoundError, or DataError for unfit answers.
    """
    content = read_document(path, "the answers exported from an expert test")
    classes = "said_class" in content
    name, kind = ("said_class", str | None) if classes else ("said_real", bool | None)
    given = content.get(name)
    if not isinstance(given, list) or any(not isinstance(x, kind) for x in given):
        words = "texts and null" if classes else "true, false and null"
        raise DataError(f"{path}: {name} should be a list of {words}")
    if (other := content.get("trial")) != trial:
        raise DataError(f"{path} holds the answers to another trial ({other}, this one is {trial})")
    fits: dict[str, tuple[Callable[[Any], bool], str]] = {
        "milliseconds": (lambda x: type(x) in (int, float) and 0 <= x < math.inf, "numbers from 0"),
        "confidence": (lambda x: type(x) is int and 1 <= x <= 3, "numbers from 1 to 3"),
        "why": (lambda x: isinstance(x, list) and all(isinstance(y, str) for y in x), "lists"),
    }
    found: dict[str, Any] = {name: given if classes else np.array(given, bool)}
    for field, (fit, wanted) in fits.items():
        found[field] = values = content.get(field)
        usable = isinstance(values, list) and len(values) == len(given) and all(map(fit, values))
        if values is not None and not usable:
            raise DataError(f"{path}: {field} should be a list of {len(given)} {wanted}")
    for field in ("started", "finished", "initials"):
        if not isinstance(text := content.get(field), str | None):
            raise DataError(f"{path}: {field} should be a text, found {text!r}")
        found[field] = text
    if None in given:
        raise DataError(f"{path}: {given.count(None)} of {len(given)} images are not answered yet")
    return found
