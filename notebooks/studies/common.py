"""Shared by the studies: the data, the vanilla GAN, the training run, and verdicts over seeds."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cellaug import networks
from cellaug.book.source import code_hash
from cellaug.data import Dataset, open_dataset, split, stored
from cellaug.data.reader import Reader
from cellaug.data.splits import SEED
from cellaug.evaluation.collapse import Diversity
from cellaug.evaluation.features import NAME
from cellaug.evaluation.scorecard import ROWS, scorecard
from cellaug.generators import SHIPPED
from cellaug.training import Adversarial, CrossEntropy, Recipe, Symmetries, fit

import keras
import pandas as pd

SPLIT_SEED = SEED
"""The chapters' own, so that their test images were never trained on."""

COMPARED = 2000
"""Maximum number of real images that the diversity during training is compared with."""


def stored_splits(data: str, size: int) -> dict[str, Dataset]:
    """Training, validation and test split of the real images of a set, read from a store.

    `size` is the store's, in pixels. Nothing that a study makes is trained on generated images.
    """
    cells = stored(open_dataset(data), size)
    return split(cells.subset(cells.table["origin"] == "real"), seed=SPLIT_SEED)


def vanilla(size: int, recipe: Recipe) -> Adversarial:
    """The thesis's GAN without classes, compiled, with those choices of a recipe that it has.

    These are depths, latent_dim, kernel, symmetries, half_life, learning_rate, beta_1 and seed.
    """
    keras.utils.set_random_seed(recipe.seed)
    gan = Adversarial(
        networks.generator(size, recipe.generator_depth, recipe.latent_dim, recipe.kernel),
        networks.discriminator(size, recipe.discriminator_depth, recipe.kernel),
        CrossEntropy(),
        recipe.latent_dim,
        recipe.seed,
        real_augmentation=Symmetries() if recipe.symmetries else None,
        half_life=recipe.half_life,
    )
    gan.compile(*(keras.optimizers.Adam(recipe.learning_rate, recipe.beta_1) for _ in range(2)))
    return gan


def epochs_and_steps(
    cells: Dataset, size: int, batch_size: int, images: float, balance: bool
) -> tuple[int, int]:
    """Epochs, at least one, in which about `images` images are seen, and the steps of an epoch."""
    with Reader(cells, size, batch_size, balance=balance, drop_last=True) as reader:
        return max(1, round(images / (len(reader) * batch_size))), len(reader)


def build(recipe: Recipe, cells: Dataset, size: int, images: float) -> Adversarial:
    """A recipe's GAN for these cells; its learning rate is timed for about `images` images."""
    taken = recipe.batch_size * recipe.d_steps
    epochs, steps = epochs_and_steps(cells, size, taken, images, balance=True)
    return recipe.build(size, len(cells.class_names), epochs * steps)


def train_on(
    cells: Dataset,
    gan: Adversarial,
    size: int,
    batch_size: int,
    images: float,
    *,
    seed: int,
    balance: bool,
    checkpoint: Path,
    settings: Mapping[str, Any],
    label: str,
    restart: bool = False,
) -> tuple[pd.DataFrame, int]:
    """Train a compiled GAN on about `images` real images, in whole epochs and at least one.

    `batch_size` is that of one step of the discriminator; `balance` shows every class equally
    often; for the others see `cellaug.training.fit`. A checkpoint of another code is another run.

    Returns:
        The history by epoch, with the diversity, and the number of images seen. A run that
        collapses ends early.
    """
    real = cells.sample(COMPARED, seed=0)
    taken = batch_size * gan.d_steps
    epochs, steps = epochs_and_steps(cells, size, taken, images, balance)
    with Reader(cells, size, taken, seed=seed, balance=balance, drop_last=True) as reader:
        history = fit(
            gan,
            reader,
            epochs,
            checkpoint=checkpoint,
            settings={**settings, "data": cells.fingerprint, "study": studies_hash()},
            callbacks=[Diversity(real.read(size), real.labels, gan.latent_dim)],
            label=label,
            restart=restart,
            save_seconds=60,
        )
    return history, len(history) * steps * taken


def studies_hash() -> str:
    """A hash over the code that only studies train with."""
    return code_hash({Path(__file__), Path(__file__).with_name("variants.py")})


def measured_in(digest: str) -> str:
    """A sentence on the extractor of a record, and whether the package has another one now."""
    present = json.loads((SHIPPED / f"{NAME}.json").read_text("utf-8"))["sha256"][: len(digest)]
    if digest == present:
        return f"Features of extractor {digest}."
    only = "compare these values with each other, not with those of other pages"
    return f"Features of extractor {digest}, not of the present one ({present}): {only}."


def verdicts(runs: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The scorecards of recorded runs that differ only in the seed.

    Returns:
        A row for each measure of the scorecard that was measured, for its worst class or period:
        `mean` and standard deviation (`sd`) over the seeds, the target from `lowest` to `highest`
        (NaN for no bound), and in how many of `seeds` it was `met`, and `missed`; in the others it is
        undecided.
    """
    cards = pd.concat([scorecard(run["table"]) for run in runs])
    cards = cards[cards["value"].notna() & (cards["reason"] == "")]
    cards = cards.assign(met=cards["met"].eq(True), missed=cards["met"].eq(False))
    by = cards.groupby(cards.index.map(ROWS), sort=False)
    table = pd.DataFrame({"mean": by["value"].mean(), "sd": by["value"].std()})
    table[["lowest", "highest"]] = by[["lowest", "highest"]].first()
    return table.assign(met=by["met"].sum(), missed=by["missed"].sum(), seeds=by.size())
