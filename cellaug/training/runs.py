"""Train a GAN on a set of cells, for about so many images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cellaug.data import Dataset
from cellaug.data.reader import Reader
from cellaug.training.devices import Team
from cellaug.training.fit import fit
from cellaug.training.gan import Adversarial

import pandas as pd


@dataclass(frozen=True)
class Trained:
    """A GAN after its training: by epoch the metrics, and how many real images it has seen."""

    gan: Adversarial
    history: pd.DataFrame
    images_seen: int


def train_on(
    cells: Dataset,
    build: Callable[[int], Adversarial],
    size: int,
    batch_size: int,
    images: float,
    *,
    seed: int,
    balance: bool,
    team: Team = Team(),  # noqa: B008 - it cannot be changed
    **options: Any,
) -> Trained:
    """Train a GAN on about `images` real images of a set, in whole epochs and at least one.

    Args:
        cells: the images.
        size: pixels, at which they are read.
        build: makes the compiled GAN; gets the number of the generator's steps.
        batch_size: real images in a step, for all processes together.
        images: how many are shown.
        seed: of the order of the images.
        balance: show every class equally often.
        team: the processes that train together.
        options: of `fit`.

    Raises what `Reader` and `fit` raise.
    """
    with Reader(
        cells, size, team.share(batch_size), seed=seed, balance=balance, drop_last=True,
        process=team.process, processes=team.processes,
    ) as reader:  # fmt: skip
        steps = len(reader)
        epochs = max(1, round(images / (steps * batch_size)))
        gan = build(epochs * steps)
        settings = {"data": cells.fingerprint, **options.pop("settings", {})}
        history = fit(gan, reader, epochs, settings=settings, **options)
    return Trained(gan, history, len(history) * steps * batch_size)
