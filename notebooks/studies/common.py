"""Shared by the studies: the data, the vanilla GAN, the training run, and verdicts over seeds."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cellaug import networks
from cellaug.book.source import code_hash
from cellaug.data import DataError, Dataset, open_dataset, split, stored
from cellaug.data.splits import SEED
from cellaug.evaluation.collapse import Diversity
from cellaug.evaluation.features import NAME, SIZES
from cellaug.evaluation.scorecard import ROWS, scorecard
from cellaug.generators import SHIPPED
from cellaug.training import Adversarial, CrossEntropy, Recipe, Symmetries, runs
from cellaug.training.runs import Trained

import keras
import pandas as pd

SPLIT_SEED = SEED
"""The chapters' own, so that their test images were never trained on."""


def stored_splits(data: str, size: int) -> dict[str, Dataset]:
    """Training, validation and test split of the real images of a set, read from a store.

    `size` is the store's, in pixels. Nothing that a study makes is trained on generated images.
    """
    cells = stored(open_dataset(data), size)
    return split(cells.subset(cells.table["origin"] == "real"), seed=SPLIT_SEED)


def require_known(arms: Iterable[str], every: Iterable[str]) -> None:
    """Raise DataError for arms that are none of a study's."""
    if unknown := [arm for arm in arms if arm not in [*every]]:
        raise DataError(f"no arm {', '.join(unknown)}: there are {', '.join(every)}")


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


def train_on(
    cells: Dataset, build: Callable[[int], Adversarial], size: int, batch_size: int, images: float,
    *, settings: Mapping[str, Any], **options: Any,
) -> Trained:  # fmt: skip
    """`cellaug.training.runs.train_on` with the diversity by epoch; a run that collapses ends early.

    A checkpoint of another code of the studies is another run.
    """
    watch = Diversity.beside(cells, size)
    settings = {**settings, "study": studies_hash()}
    return runs.train_on(
        cells, build, size, batch_size, images,
        settings=settings, callbacks=[watch], save_seconds=60, **options,
    )  # fmt: skip


def studies_hash() -> str:
    """A hash over the code that only studies train with."""
    return code_hash({Path(__file__), Path(__file__).with_name("variants.py")})


def measured_in(digest: str) -> str:
    """A sentence on the extractor of a record, and whether the package has another one now."""
    cards = [json.loads((SHIPPED / f"{NAME}-{size}.json").read_text("utf-8")) for size in SIZES]
    present = {card["sha256"][: len(digest)]: card["size"] for card in cards}
    if digest in present:
        return f"Features of extractor {digest}, which looks at {present[digest]} pixels."
    only = "compare these values with each other, not with any that name another extractor"
    return f"Features of extractor {digest}, not of a present one ({', '.join(present)}): {only}."


def verdicts(runs: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The scorecards of recorded runs that differ only in the seed.

    Returns:
        A row for each measure of the scorecard that was measured, for its worst class or period:
        `mean` and standard deviation (`sd`) over the seeds, the target (`target from`,
        `target to`; NaN for no bound), and in how many of `seeds` it was `met`, and `missed`; in the others it is
        undecided.
    """
    cards = pd.concat([scorecard(run["table"]) for run in runs])
    cards = cards[cards["value"].notna() & (cards["reason"] == "")]
    cards = cards.assign(met=cards["met"].eq(True), missed=cards["met"].eq(False))
    by = cards.groupby(cards.index.map(ROWS), sort=False)
    table = pd.DataFrame({"mean": by["value"].mean(), "sd": by["value"].std()})
    table[["target from", "target to"]] = by[["lowest", "highest"]].first()
    return table.assign(met=by["met"].sum(), missed=by["missed"].sum(), seeds=by.size())
