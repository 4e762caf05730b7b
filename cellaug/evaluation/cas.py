"""Classification accuracy score: train on generated cells, test on real ones.

Ravuri & Vinyals (2019), with the project's compact classifier.
"""

from collections.abc import Sequence

from cellaug.data import to_float
from cellaug.data.images import turned
from cellaug.evaluation.classification import classification_report
from cellaug.evaluation.expert import binomial_interval

import numpy as np
from tqdm import tqdm

STEPS, BATCH, RATE = 400, 32, 2e-3
"""Training steps, images in each, and the first learning rate, which falls to 0 as a cosine."""


def accuracy_score(
    images: np.ndarray,
    labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    class_names: Sequence[str],
    *,
    steps: int = STEPS,
    seed: int = 0,
    title: str = "classifier",
) -> dict:
    """Train a compact Xception on some images and test it on others.

    Images are uint8 RGB N×S×S×3, labels whole numbers (N,) into `class_names`; every class needs an
    image to train on. Each step takes a batch in which every class is as likely as any other, each
    image turned or mirrored at random. Returns `accuracy`, `low`, `high` (its exact 95 % interval
    over test images; that of another seed is not in it), `macro_f1`, and by class `recall`, 0–1,
    and `recall_interval`, its exact 95 % interval.
    """
    from cellaug.backend import use_xla
    from cellaug.networks import classifier

    import keras

    rng = np.random.default_rng(seed)
    model = classifier("compact", images.shape[1], len(class_names), seed=seed)
    rate = keras.optimizers.schedules.CosineDecay(RATE, steps)
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=use_xla(),
    )
    members = [np.flatnonzero(labels == number) for number in range(len(class_names))]
    for _ in tqdm(range(steps), title, disable=None, leave=False):
        asked = rng.integers(len(members), size=BATCH)
        batch = np.stack([turned(images[rng.choice(members[c])], rng.integers(8)) for c in asked])
        model.train_on_batch(to_float(batch), asked)
    logits = model.predict(to_float(test_images), batch_size=BATCH, verbose=0)
    report = classification_report(test_labels, np.asarray(logits).argmax(1), class_names)
    right = round(report["accuracy"] * len(test_labels))
    low, high = binomial_interval(right, len(test_labels))
    within = {}
    for name, recall in report["recall"].items():
        count = report["support"][name]
        within[name] = list(binomial_interval(round(recall * count), count)) if count else [0, 1]
    return {
        "accuracy": report["accuracy"],
        "low": low,
        "high": high,
        "macro_f1": report["macro_f1"],
        "recall": report["recall"],
        "recall_interval": within,
    }
