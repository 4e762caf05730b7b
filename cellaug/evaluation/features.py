"""The feature space in which cells are compared: the shipped one, or one learned from the cells."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any

from cellaug.data.dataset import Dataset
from cellaug.data.images import check_images, fit_square, to_float, turned
from cellaug.errors import DataError
from cellaug.files import cache_home, progress
from cellaug.generators import SHIPPED, load_weights, save_weights

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    import keras

NAME, BATCH = "blood-extractor", 128
SIZES = (64, 128)  # of the images that the shipped extractors look at, in pixels
CHOICES = ("auto", "shipped", "own")  # of features

# Features know the real cells if the extractor recognises so many of them: the lowest macro recall
# at all, and the greatest loss against its own test images, the difference between cells of its
# laboratory and cells that it takes for others; and if it knows the classes of so many images.
LOWEST_RECALL, GREATEST_LOSS, LEAST_KNOWN = 0.6, 0.25, 0.5

# Own features: images per class that are enough to learn from, training steps of so many images,
# and the network. About a minute on two cores at 64 pixels, two at 128.
ENOUGH, STEPS, STEP, WIDTH, SIDE = 30, 600, 64, 16, 128


class Extractor:
    """Turns images of cells into features and class logits; `load_extractor` makes the shipped one.

    `model` maps images in [-1, 1] to both; `card` has at least `class_names` and `accuracy` (0–1).
    """

    def __init__(self, model: "keras.Model", card: dict[str, Any], digest: str):
        self.model, self.card, self.digest = model, card, digest
        self.size: int = model.input_shape[1]
        self.class_names: tuple[str, ...] = tuple(card["class_names"])
        self.accuracy: float = card["accuracy"]

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, 128) and logits (N, classes), float32, of uint8 images N×H×W×3, any size."""
        answers = []
        # every batch has one shape, so the results do not depend on the number of images
        batch = np.zeros((BATCH, self.size, self.size, 3), np.uint8)
        for start in range(0, len(check_images(images, "images")), BATCH):
            part = images[start : start + BATCH]
            batch[: len(part)] = [fit_square(image, self.size) for image in part]
            answer = self.model.predict_on_batch(to_float(batch))
            answers.append([np.asarray(values)[: len(part)] for values in answer])
        features, logits = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return features, logits


def pixels(cells: Dataset) -> np.ndarray:
    """The images of a set in memory, uint8 N×S×S×3."""
    assert cells.images is not None, f"{cells.name} is not in memory"
    return cells.images


def load_extractor(size: int = SIZES[0]) -> Extractor:
    """The extractor of the package for images of `size` pixels.

    It is the smallest in `SIZES` that need not reduce them; those above the largest are reduced.
    Raises DataError where its weights are not those of its card.
    """
    return _load_extractor(min((fits for fits in SIZES if fits >= size), default=SIZES[-1]))


@cache
def _load_extractor(size: int) -> Extractor:
    from cellaug.networks import blood_extractor
    from cellaug.training.backends import use_xla

    name = f"{NAME}-{size}"
    card = json.loads((SHIPPED / f"{name}.json").read_text("utf-8"))
    shape = (len(card["class_names"]), card["size"], card["width"])
    model = blood_extractor(*shape, detail=card["detail"])
    load_weights(model, SHIPPED / f"{name}.npz", card["sha256"])
    model.jit_compile = use_xla()
    return Extractor(model, card, card["sha256"][:16])


def recognition(
    seen: np.ndarray, truth: np.ndarray, known: Sequence[str], accuracy: float, seed: int = 0
) -> dict[str, Any]:
    """How well an extractor knows real cells, from the class seen in each (N,) and the true one.

    `known` are its classes, `accuracy` (0–1) is that on its own test images. Returns `value`, its
    macro recall on the classes it knows, with `low` and `high` (95 %, Jeffreys's interval of each
    class), `chance`, `classes` (those it knows among the `of` there are), `images` (fraction in
    these classes), `needed` (the lowest value) and `problem`: why its features cannot be relied on,
    "" if they can. Fractions are 0–1, None where no class is known.
    """
    by = pd.Series(seen == truth).groupby(pd.Series(truth, dtype=object), sort=False)
    right, count = by.sum(), by.size()
    mine = [name for name in count.index if name in known]
    share = float(count[mine].sum() / count.sum())
    needed = max(LOWEST_RECALL, accuracy - GREATEST_LOSS)
    found: dict[str, Any] = {"value": None, "low": None, "high": None, "chance": 1 / len(known)}
    found |= {"classes": mine, "of": len(count), "images": share, "needed": needed}
    if mine:
        good, bad = right[mine].to_numpy(), (count - right)[mine].to_numpy()
        drawn = np.random.default_rng([seed, 5]).beta(good + 0.5, bad + 0.5, (4000, len(mine)))
        low, high = map(float, np.quantile(drawn.mean(1), [0.025, 0.975]))
        value = float((good / (good + bad)).mean())
        found |= {"value": value, "low": min(low, value), "high": max(high, value)}
    problem = ""
    if share < LEAST_KNOWN:
        problem = f"the extractor knows the classes of only {100 * share:.0f} % of the real images"
    elif found["value"] < needed:
        problem = (
            f"the extractor recognises only {100 * found['value']:.0f} % of the real ones (mean of "
        )
        problem += f"{len(mine)} classes), {100 * needed:.0f} % are needed"
    found["problem"] = problem and f"the features do not know these cells: {problem}"
    return found


def halves_to_learn(labels: np.ndarray, seed: int) -> np.ndarray:
    """Which images to learn from, bool (N,): half of each class (rounded down), at random."""
    chosen, rng = np.zeros(len(labels), bool), np.random.default_rng([seed, 4])
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        chosen[members[: len(members) // 2]] = True
    return chosen


def learn_extractor(cells: Dataset, seed: int = 0) -> Extractor:
    """An extractor that learned the classes of a set in memory, from the cache if it did before.

    Its features have 128 dimensions, as the shipped ones. It knows the classes with at least
    `ENOUGH` images; its accuracy is not known yet (NaN). It trains for `STEPS` steps on balanced
    batches of turned and mirrored images, with AdamW (Loshchilov & Hutter 2019) and a learning rate
    that falls along a cosine. Raises DataError with fewer than two classes that have enough images.
    """
    from cellaug.networks import blood_extractor
    from cellaug.training.backends import use_xla

    import keras

    images, counts = pixels(cells), cells.counts()
    names = counts.index[counts >= ENOUGH].tolist()
    if len(names) < 2:
        need = f"{ENOUGH} images to learn from in each of two classes: half of those that are no "
        need += "training images of the generator"
        have = ", ".join(f"{count} of {name}" for name, count in counts.items())
        fix = f"Add images until {2 * ENOUGH} of each class are left beside those of the training "
        fix += f"({2 * ENOUGH / 0.7:.0f} with --split), or give more with --reference"
        raise DataError(f"{cells.name}: own features need {need}; they got {have}. {fix}")
    size, classes = min(SIDE, images.shape[1]), cells.table["class"].to_numpy()
    members = [np.flatnonzero(classes == name) for name in names]
    keras.utils.set_random_seed(seed)
    model = blood_extractor(len(names), size, WIDTH, one_laboratory=True)
    choices = [names, size, WIDTH, STEPS, STEP, seed, [list(w.shape) for w in model.weights]]
    content = hashlib.sha256(json.dumps(choices).encode())
    for mine in members:
        content.update(images[mine].tobytes())
    file = cache_home() / "extractors" / f"{content.hexdigest()[:32]}.npz"
    model.jit_compile = use_xla()
    card = {"class_names": names, "accuracy": float("nan")}
    with suppress(OSError, DataError):  # not there, or damaged: learn again
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        load_weights(model, file, digest)
        return Extractor(model, card, digest[:16])
    _train(model, images, members, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    digest = save_weights(model, file)
    load_weights(model, file, digest)  # in the precision of the file
    return Extractor(model, card, digest[:16])


def _train(model: "keras.Model", images: np.ndarray, members: list, seed: int) -> None:
    import keras

    learner = keras.Model(model.input, model.output[1])
    rate = keras.optimizers.schedules.CosineDecay(2e-3, STEPS)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(keras.optimizers.AdamW(rate, 0.02), loss, jit_compile=model.jit_compile)
    learner.optimizer.build(learner.trainable_variables)  # else the first step compiles twice
    rng, size = np.random.default_rng([seed, 6]), model.input_shape[1]
    small = np.stack([fit_square(image, size) for image in images])
    for _ in progress(range(STEPS), "learning features"):
        asked = rng.integers(len(members), size=STEP)
        chosen = [turned(small[rng.choice(members[c])], int(rng.integers(8))) for c in asked]
        learner.train_on_batch(to_float(np.stack(chosen)), asked)
