"""Classifiers: train them, report on them, compare them; the accuracy score, the machine expert."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any

from cellaug.data import to_float
from cellaug.data.images import turned
from cellaug.errors import DataError
from cellaug.evaluation.expert import binomial_interval
from cellaug.files import progress

import numpy as np
import pandas as pd
from numpy import ndarray as Array
from scipy import stats
from sklearn import metrics

if TYPE_CHECKING:
    import keras

Batch = tuple[np.ndarray, np.ndarray]

STEPS, BATCH = 400, 32
"""Training steps of a classifier, and images in each."""

CALIBRATION, CHECKED = 64, 8
"""Most batches of a pass that sets BatchNorm's running averages, and of a check of the result."""

FOR_AN_INTERVAL, FOR_A_VERDICT = 3, 5
"""The fewest seeds from which a change gets an interval, and a verdict."""

LARGEST_DROP = 0.2
"""Accuracy that a classifier may lose on its training images between training and prediction."""


def classification_report(truth: Array, predicted: Array, class_names: Sequence[str]) -> dict:
    """Score predicted class numbers (N,) against the true ones; the result can go into JSON.

    Scores are 0–1: `accuracy` (Eq. 34), `weighted_f1` (Eq. 38 per class, averaged by support: Table
    4), `macro_f1` (of the classes that occur or are predicted); by class name `precision` (Eq. 35),
    `recall` (Eq. 36) and `f1`, None where undefined, and `support`, the number of true images. Rows
    of `confusion` are true classes, columns predicted ones.
    """
    every = range(len(class_names))
    for name, labels in (("truth", truth), ("predicted", predicted)):
        if len(labels) != len(truth) or not len(labels) or not np.isin(labels, every).all():
            wanted = f"class numbers from 0 to {every[-1]}, one for each image"
            raise ValueError(f"{name}: expected {wanted}, such as the argmax of logits")
    options = {"labels": every, "zero_division": np.nan}
    *scores, support = metrics.precision_recall_fscore_support(truth, predicted, **options)
    table = pd.DataFrame(dict(zip(("precision", "recall", "f1"), scores, strict=True)), class_names)
    missing = table.isna() | (support == 0)[:, None] & (table.columns == "f1")
    return {
        "accuracy": float(np.equal(truth, predicted).mean()),
        "weighted_f1": float(table["f1"].fillna(0) @ support / len(truth)),
        "macro_f1": float(table["f1"].mean()),
        **table.astype(object).mask(missing, None).to_dict(),
        "support": dict(zip(class_names, support.tolist(), strict=True)),
        "confusion": metrics.confusion_matrix(truth, predicted, labels=every).tolist(),
        "class_names": list(class_names),
    }


def require_better_than_guessing(report: Mapping, title: str) -> None:
    """DataError unless a report's accuracy is above the largest class's fraction of its images.

    By the exact one-sided binomial test at 5 %: what names the largest class every time is as right
    as that, so a comparison with such a classifier measures chance.
    """
    confusion = np.array(report["confusion"])
    right, images, largest = (
        int(n) for n in (confusion.trace(), confusion.sum(), confusion.sum(1).max())
    )
    test = stats.binomtest(right, images, largest / images, alternative="greater")
    if test.pvalue >= 0.05:
        found = f"{right} of {images} test images are right (accuracy {right / images:.2f})"
        chance = f"naming the largest class every time gives {largest / images:.2f}"
        fix = "Train for more epochs (classifier_epochs), with another learning rate "
        fix += "(classifier_learning_rate), or on more images"
        what = f"{found}, and {chance}: no better than guessing (p = {test.pvalue:.2f})"
        raise DataError(f"{title}: {what}. A comparison would measure chance. {fix}")


def per_class_change(baseline: Mapping, other: Mapping) -> pd.Series:
    """Change of each class's recall between two reports, in percentage points (section 5.4)."""
    before, after = (pd.Series(report["recall"], dtype=float) for report in (baseline, other))
    return (100 * (after - before)).reindex(baseline["class_names"]).rename("change")


def summarise_seeds(reports: Sequence[Mapping]) -> dict:
    """Mean, standard deviation (n − 1 in the denominator) and n over reports of several seeds.

    By metric "mean", "std", "n" for accuracy, weighted and macro F1, and the same by class under
    `recall`. `std` is None for a single seed, all but `n` for a class without images.
    """
    table = pd.DataFrame(reports)
    found: dict = {key: _spread(table[key]) for key in ("accuracy", "weighted_f1", "macro_f1")}
    recall = pd.DataFrame(table["recall"].tolist(), dtype=float)
    return found | {"recall": {name: _spread(recall[name]) for name in recall}}


def _spread(values: pd.Series) -> dict:
    found = {"mean": values.mean(), "std": values.std(), "n": int(values.count())}
    return {key: None if pd.isna(value) else value for key, value in found.items()}


def paired_difference(baseline: Sequence[float], other: Sequence[float]) -> dict:
    """Mean of `other − baseline` over the same seeds in the same order, with its 95 % t interval.

    `mean`, `low`, `high` in the unit of the values, and `n`. With fewer than `FOR_AN_INTERVAL`
    seeds there is no interval (None): two that happen to agree would make it far too narrow.
    """
    change = pd.Series([b - a for a, b in zip(baseline, other, strict=True)], dtype=float)
    found = {"mean": change.mean(), "low": None, "high": None, "n": len(change)}
    if len(change) < FOR_AN_INTERVAL:
        return found
    half = stats.t.ppf(0.975, len(change) - 1) * change.sem()
    return found | {"low": found["mean"] - half, "high": found["mean"] + half}


def points(difference: Mapping, unit: str = "") -> str:
    """A `paired_difference` of scores in percentage points, with its interval if it may have one.

    `unit`, such as " points", follows the mean.
    """
    mean, low, high = (difference[key] for key in ("mean", "low", "high"))
    said = f"{100 * mean:+.2f}{unit}"
    count = int(difference["n"])  # a table's is NumPy's, by whose bool no text is repeated
    if count < FOR_AN_INTERVAL or pd.isna(low):
        many = f"{count} seed" + "s" * (count > 1)
        return f"{said} ({many}, no interval)".replace("-", "−")
    return f"{said} ({100 * low:+.2f} to {100 * high:+.2f})".replace("-", "−")


def verdict(difference: Mapping) -> str:
    """What a `paired_difference` shows: "gain", "loss", "undecided", or "too few seeds".

    A change counts as shown if its 95 % interval does not include zero. It gets a verdict only from
    `FOR_A_VERDICT` seeds on.
    """
    if difference["n"] < FOR_A_VERDICT:
        return "too few seeds"
    if pd.isna(difference["low"]) or difference["low"] <= 0 <= difference["high"]:
        return "undecided"
    return "gain" if difference["low"] > 0 else "loss"


def train_classifier(
    batches: Iterable[Batch],
    size: int,
    classes: int,
    steps: int,
    *,
    kind: str = "compact",
    augment: bool = False,
    learning_rate: float = 2e-3,
    decay: bool = True,
    seed: int = 0,
    title: str = "classifier",
    fit: Callable[..., Any] | None = None,
) -> "keras.Model":
    """Train a classifier, images in [-1, 1] to logits (B, classes), with Adam on cross-entropy.

    `batches` is a `Reader`, trained on for whole epochs by `fit` (`training.fit`), or yields uint8
    images (B, S, S, 3) with class numbers (B,), endlessly; `steps` counts them. `kind` is that of
    `networks.classifier`; `augment` adds classical augmentation; `decay` is along a cosine to 0.
    BatchNorm's running averages are set at the end (`networks.recalibrate`). Raises DataError if
    the classifier then still predicts its training images far worse than in training.
    """
    from cellaug import training
    from cellaug.data.reader import Reader
    from cellaug.networks import classifier

    import keras

    model = classifier(kind, size, classes, augment=augment, seed=seed)
    falling = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    rate = falling if decay else learning_rate
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    adam = keras.optimizers.Adam(rate)
    right = keras.metrics.SparseCategoricalAccuracy("accuracy")
    model.compile(adam, loss, metrics=[right], jit_compile=training.use_xla())
    adam.build(model.trainable_variables)  # else the first step compiles twice
    if isinstance(batches, Reader):
        (fit or training.fit)(model, batches, steps // len(batches), label=title)
        batches.seek(0)
        images = len(set(batches.dataset.digests))  # each may come several times
        again: Iterator[Batch] = islice(iter(batches), -(-images // batches.batch_size))
    else:
        again = ((to_float(images), labels) for images, labels in batches)
        for images, labels in progress(islice(again, steps), title, total=steps):
            model.train_on_batch(images, labels)
    _calibrate(model, again, title)
    return model


def _calibrate(model: "keras.Model", batches: Iterator[Batch], title: str) -> None:
    """Set BatchNorm's running averages from float32 batches; DataError if predictions stay off."""
    from cellaug.networks import recalibrate

    checked = list(islice(batches, CHECKED))
    rest = islice(batches, CALIBRATION - CHECKED)
    learned = recalibrate(model, (images for images, _ in chain(checked, rest)))
    labels = np.concatenate([labels for _, labels in checked])
    shown = [np.asarray(model(images, training=False)).argmax(1) for images, _ in checked]
    trained = np.equal(learned[: len(labels)], labels).mean()
    found = np.equal(np.concatenate(shown), labels).mean()
    if trained - found > LARGEST_DROP:
        what = f"its accuracy on training images is {trained:.2f} in training, but {found:.2f} when"
        fix = "Use more images, larger batches or more training steps"
        raise DataError(f"{title}: {what} it predicts, so it cannot be used. {fix}")


def predicted(model: "keras.Model", images: np.ndarray) -> np.ndarray:
    """Class numbers (N,) that a classifier gives to uint8 images."""
    return predicted_logits(model, images, BATCH).argmax(1)


def predicted_logits(model: "keras.Model", images: np.ndarray, batch_size: int = 128) -> np.ndarray:
    """Logits (N, classes), float32, that a classifier gives to uint8 images."""
    logits = model.predict(to_float(images), batch_size=batch_size, verbose=0)
    return np.asarray(logits, np.float32)


def accuracy_score(
    train: Batch, test: Batch, class_names: Sequence[str], *, steps: int = STEPS, seed: int = 0
) -> pd.DataFrame:
    """Classification accuracy score: train a compact Xception on some images, test it on others.

    Both are uint8 images N×S×S×3 and class numbers (N,), with every class. In a batch all classes
    are equally likely; each image is turned or mirrored at random. Returns
    `value`, `low` and `high` (exact 95 % interval over test images, not over seeds), 0–1: a row ""
    for the accuracy, one for each class's recall, and "macro F1", without an interval.
    """
    (images, labels), (test_images, test_labels) = train, test
    model = train_classifier(
        balanced(images, labels, seed), images.shape[1], len(class_names), steps, seed=seed
    )
    answers = predicted(model, test_images)
    right = answers == test_labels
    parts = {"": right} | {n: right[test_labels == k] for k, n in enumerate(class_names)}
    macro = classification_report(test_labels, answers, class_names)["macro_f1"]
    rows = [[hit.mean(), *binomial_interval(int(hit.sum()), len(hit))] for hit in parts.values()]
    rows.append([macro, np.nan, np.nan])
    return pd.DataFrame(rows, [*parts, "macro F1"], ["value", "low", "high"])


def balanced(images: np.ndarray, labels: np.ndarray, seed: int = 0) -> Iterator[Batch]:
    """Endless batches of images (N, S, S, 3) in which every class is equally likely.

    Each image is turned or mirrored at random. `labels` (N,) has every class number from 0 on.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == number) for number in range(labels.max() + 1)]
    while True:
        asked = rng.integers(len(members), size=BATCH)
        chosen = [turned(images[rng.choice(members[c])], int(rng.integers(8))) for c in asked]
        yield np.stack(chosen), asked


def machine_expert(
    real: Array, fake: Array, trial: Array, seed: int = 0, steps: int = 300, batch_size: int = BATCH
) -> Array:
    """Train a compact Xception on images `real` against `fake`, then let it take the trial.

    All images are uint8 RGB of one size. A batch is half real, half generated, so that neither
    answer is likelier beforehand. Returns bool (N,), True where the machine says real: see
    `expert.score`. Raises ValueError where the trial shows an image that is also trained on.
    """
    seen = {image.tobytes() for image in (*real, *fake)}
    if known := sum(image.tobytes() in seen for image in trial):
        shared = f"{known} of the trial's {len(trial)} images are among those to train on"
        raise ValueError(f"{shared}: take them out of real and fake")
    rng, half = np.random.default_rng(seed), batch_size // 2
    fakes, reals = endless(fake, half, rng), endless(real, half, rng)
    labels = np.repeat([0, 1], half)
    batches = ((np.concatenate([next(fakes), next(reals)]), labels) for _ in count())
    rate: dict[str, Any] = {"learning_rate": 1e-3, "decay": False}
    model = train_classifier(batches, trial.shape[1], 2, steps, seed=seed, **rate)
    return predicted(model, trial) == 1


def endless(images: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches (size, ...) without end: all images in random order, then all again in another."""
    order = chain.from_iterable(rng.permutation(len(images)) for _ in count())
    while True:
        yield images[list(islice(order, size))]
