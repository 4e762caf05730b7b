"""What the studies have in common: what they learn from, the vanilla pair, how they train."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellaug import networks
from cellaug.data import Dataset, open_dataset, split
from cellaug.data.reader import Reader
from cellaug.training import Adversarial, CrossEntropy, Diversity, Symmetries, fit
from cellaug.training.recipe import critic_steps

import keras
import pandas as pd

SPLIT_SEED = 1
"""That of the chapters, so that their test images were never learned from."""

COMPARED = 2000
"""Real images at most that the diversity in training is compared with."""


def stored_sides(data: str, size: int) -> dict[str, Dataset]:
    """Training, validation and test side of a dataset, read from a store at `size` pixels."""
    return split(open_dataset(data).stored(size), seed=SPLIT_SEED)


def vanilla(
    size: int,
    *,
    generator_depth: int,
    discriminator_depth: int,
    latent_dim: int,
    kernel: int,
    symmetries: bool,
    half_life: int,
    learning_rate: float,
    beta_1: float,
    seed: int,
) -> Adversarial:
    """The thesis's pair without classes, compiled; the arguments are those of `conditional`."""
    keras.utils.set_random_seed(seed)
    game = Adversarial(
        networks.generator(size, generator_depth, latent_dim, kernel),
        networks.discriminator(size, discriminator_depth, kernel),
        CrossEntropy(),
        latent_dim,
        seed,
        real_augmentation=Symmetries() if symmetries else None,
        half_life=half_life,
    )
    game.compile(*(keras.optimizers.Adam(learning_rate, beta_1) for _ in range(2)))
    return game


def epochs_and_steps(
    cells: Dataset, size: int, batch_size: int, images: float, balance: bool
) -> tuple[int, int]:
    """Epochs, at least one, in which about so many images are seen, and the steps of an epoch."""
    with Reader(cells, size, batch_size, balance=balance, drop_last=True) as reader:
        return max(1, round(images / (len(reader) * batch_size))), len(reader)


def decay_steps(
    cells: Dataset, size: int, batch_size: int, images: float, share: float, objective: str
) -> tuple[int, int] | None:
    """`decay_steps` of `conditional` for a rate that falls in the last `share` of a training."""
    if not share:
        return None
    taken = batch_size * critic_steps(objective)
    epochs, steps = epochs_and_steps(cells, size, taken, images, balance=True)
    return round((1 - share) * epochs * steps), epochs * steps


def train_on(
    cells: Dataset,
    game: Adversarial,
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
    """Let a game see about so many real images, in whole epochs and at least one.

    Args:
        cells: to learn from.
        game: compiled.
        size: height and width of the images in pixels.
        batch_size: images in a step of the discriminator.
        images: how many in all.
        seed: of their order.
        balance: every class equally often.
        checkpoint: a run that was interrupted goes on from it.
        settings: a checkpoint of others is refused.
        label: what progress lines call the run.
        restart: start anew, and say so, where the checkpoint is of other settings or code.

    Returns:
        The history by epoch, the diversity in it, and how many images were seen. A run that
        collapses ends early.
    """
    real = cells.sample(COMPARED, seed=0)
    taken = batch_size * game.d_steps
    epochs, steps = epochs_and_steps(cells, size, taken, images, balance)
    with Reader(cells, size, taken, seed=seed, balance=balance, drop_last=True) as reader:
        history = fit(
            game,
            reader,
            epochs,
            checkpoint=checkpoint,
            settings={**settings, "data": cells.fingerprint},
            callbacks=[Diversity(real.read(size), real.labels, game.latent_dim)],
            label=label,
            restart=restart,
            save_seconds=60,
        )
    return history, len(history) * steps * taken
