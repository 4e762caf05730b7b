"""The ladder from the thesis's recipe to the conditional one, a change at a time.

Every rung and side arm sees the same number of real images, with the same seeds, and is measured by
the same evaluation against the same test images (`cellaug study ladder`). Rungs add up: each has
the changes of all before it. Side arms change one thing of the last rung.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from cellaug import networks
from cellaug.book import device, versions, write_json
from cellaug.data import DataError, Dataset, open_dataset, split
from cellaug.data.images import write_png
from cellaug.data.reader import Reader
from cellaug.evaluation.fidelity import evaluate
from cellaug.evaluation.labelled import LabelledImages
from cellaug.study.extractor import SPLIT_SEED
from cellaug.training import (
    Adversarial,
    AuxiliaryClassifier,
    CrossEntropy,
    Diversity,
    Symmetries,
    conditional,
    fit,
)

import keras
import numpy as np
import pandas as pd

AC_SHARE = 1 / 6
"""Share of the images that the second stage of the thesis's recipe, the AC-GAN, sees."""


@dataclass(frozen=True)
class Recipe:
    """All choices of a run; the defaults are the thesis's (its Tables 1 and 3).

    Attributes:
        learning_rate: of the vanilla pair's Adams, or of the conditional pair's.
        beta_1: theirs.
        batch_size: of the vanilla pair, or of the conditional pair.
        kernel: height and width of the kernels at stride 2.
        half_life: of the generator's moving average, images; 0 for none.
        symmetries: show real images in any of the smear's eight symmetries.
        projection: one conditional pair with a projection head, on balanced batches, in place of
            an AC-GAN on a frozen vanilla pair.
        gamma: of R1, every eighth step; 0 for none.
        deviation: minibatch deviation as a feature of the discriminator: "class", "batch", "none".
        augmentation: probability of differentiable augmentation of real and generated images.
        spectral: spectral normalisation of the discriminator.
        objective: as in `cellaug.training.conditional`.
        last_activation: of the layers in front of the frozen generator.
        width: multiplies the depth of both networks.
    """

    learning_rate: float = 1e-5
    beta_1: float = 0.9
    batch_size: int = 20
    kernel: int = 5
    half_life: int = 0
    symmetries: bool = False
    projection: bool = False
    gamma: float = 0.0
    deviation: str = "none"
    augmentation: float = 0.0
    spectral: bool = False
    objective: str = "cross-entropy"
    last_activation: str = "relu"
    width: float = 1.0


RUNGS: Mapping[str, Mapping[str, Any]] = {
    "thesis": {},
    "Adam 2e-4, batches of 64": {"learning_rate": 2e-4, "beta_1": 0.5, "batch_size": 64},
    "kernel 4×4": {"kernel": 4},
    "moving average": {"half_life": 10_000},
    "real symmetries": {"symmetries": True},
    "projection": {"projection": True},
    "lazy R1": {"gamma": 0.02},
    "minibatch deviation": {"deviation": "class"},
}
SIDE_ARMS: Mapping[str, Mapping[str, Any]] = {
    "differentiable augmentation": {"augmentation": 0.4},
    "spectral normalisation for R1": {"spectral": True, "gamma": 0.0},
    "WGAN-GP": {"objective": "wasserstein-gp"},
    "WGAN": {"objective": "wasserstein"},
    "relativistic pairing": {"objective": "relativistic"},
    "deviation over all classes": {"deviation": "batch"},
    "kernel 6×6": {"kernel": 6},
    "twice the filters": {"width": 2.0},
}
LINEAR = "linear before the frozen generator"
"""A side arm of the last rung that still has a frozen generator."""


def recipes() -> dict[str, Recipe]:
    """Every rung, then every side arm, by name."""
    found, recipe = {}, Recipe()
    frozen = recipe
    for name, change in RUNGS.items():
        recipe = replace(recipe, **change)
        found[name] = recipe
        frozen = frozen if recipe.projection else recipe
    found[LINEAR] = replace(frozen, last_activation="linear")
    return found | {name: replace(recipe, **change) for name, change in SIDE_ARMS.items()}


def train(
    recipe: Recipe,
    cells: Dataset,
    size: int,
    images: int,
    folder: Path,
    *,
    generator_depth: int = 128,
    discriminator_depth: int = 32,
    latent_dim: int = 100,
    seed: int = 1,
    label: str = "",
) -> tuple[Adversarial, pd.DataFrame]:
    """Train one recipe until it has seen so many real images; goes on from what `folder` holds.

    Args:
        recipe: what to do.
        cells: to learn from; read from its store where it has one.
        size: height and width of the images in pixels.
        images: how many in all, of every recipe the same number up to an epoch's rounding.
        folder: for checkpoints.
        generator_depth: channels at 4×4 pixels.
        discriminator_depth: channels after the first convolution.
        latent_dim: length of a latent vector.
        seed: of weights, order of images, and all that is drawn.
        label: what progress lines call the run.

    Returns:
        The trained game, whose `generate` takes latents and labels, and its history, the one of the
        last stage where there are two. A run that collapses ends early; its history says when.
    """
    classes = len(cells.class_names)
    depths = {
        "generator_depth": round(recipe.width * generator_depth),
        "discriminator_depth": round(recipe.width * discriminator_depth),
    }
    settings = {**asdict(recipe), **depths, "images": images, "seed": seed, "size": size}
    settings["data"] = cells.fingerprint
    real = cells.sample(min(len(cells), 2000), seed=0)

    def run(game: Adversarial, stage: str, batch: int, seen: float, balance: bool):
        reader = Reader(
            cells, size, batch * game.d_steps, seed=seed, balance=balance, drop_last=True
        )
        with reader:
            epochs = max(1, round(seen / (len(reader) * reader.batch_size)))
            return fit(
                game,
                reader,
                epochs,
                checkpoint=folder / f"{stage}.npz",
                settings=settings,
                callbacks=[Diversity(real.read(size), real.labels, latent_dim)],
                label=f"{label or stage}, seed {seed}",
                save_seconds=60,
            )

    if recipe.projection:
        game = conditional(
            size,
            classes,
            **depths,
            latent_dim=latent_dim,
            kernel=recipe.kernel,
            deviation=recipe.deviation,
            spectral=recipe.spectral,
            objective=recipe.objective,
            gamma=recipe.gamma,
            symmetries=recipe.symmetries,
            augmentation=recipe.augmentation,
            half_life=recipe.half_life,
            learning_rate=recipe.learning_rate,
            beta_1=recipe.beta_1,
            seed=seed,
        )
        return game, run(game, "conditional", recipe.batch_size, images, True)

    keras.utils.set_random_seed(seed)
    pair = (
        networks.generator(size, depths["generator_depth"], latent_dim, recipe.kernel),
        networks.discriminator(size, depths["discriminator_depth"], recipe.kernel),
    )
    options = {
        "real_augmentation": Symmetries() if recipe.symmetries else None,
        "half_life": recipe.half_life,
    }
    vanilla = Adversarial(*pair, CrossEntropy(), latent_dim, seed, **options)
    vanilla.compile(*(keras.optimizers.Adam(recipe.learning_rate, recipe.beta_1) for _ in range(2)))
    run(vanilla, "vanilla", recipe.batch_size, images * (1 - AC_SHARE), False)
    labelled = networks.acgan(
        vanilla.trained_generator, pair[1], classes, last_activation=recipe.last_activation
    )
    game = Adversarial(*labelled, AuxiliaryClassifier(), latent_dim, seed, **options)
    game.compile(*(keras.optimizers.Adam(2e-4) for _ in range(2)))
    return game, run(game, "ac_gan", 32, images * AC_SHARE, False)


def run(
    data: str,
    size: int,
    images: int,
    folder: Path,
    *,
    arms: Sequence[str] = (),
    seeds: int = 1,
    end_seeds: int = 3,
    **depths: int,
) -> dict:
    """Train and measure every arm; what is done already in `folder` is not done again.

    Args:
        data: what to learn from and to compare with, as `open_dataset` takes it.
        size: height and width of the images in pixels.
        images: real images that every run sees.
        folder: for checkpoints and one JSON and one .npz file for each run.
        arms: names of `recipes()`; all of them if none is given.
        seeds: of every arm but
        end_seeds: those of the first and the last rung.
        depths: `generator_depth` and `discriminator_depth`.

    Returns:
        What `summary` takes: `arms`, a list of one dict for each run, and what they share.
    """
    every = recipes()
    unknown = [arm for arm in arms if arm not in every]
    if unknown:
        raise DataError(f"no arm {', '.join(unknown)}: there are {', '.join(every)}")
    cells = open_dataset(data).stored(size)
    sides = split(cells, seed=SPLIT_SEED)
    test, learned = (LabelledImages.read(sides[side], size) for side in ("test", "train"))
    ends = (next(iter(RUNGS)), list(RUNGS)[-1])
    rows = []
    for arm in arms or every:
        for seed in range(1, 1 + (end_seeds if arm in ends else seeds)):
            place = folder / f"{re.sub('[^a-z0-9]+', '-', arm.lower())}-{seed}"
            settings = {"images": images, "data": sides["train"].fingerprint, **depths}
            done = place.with_suffix(".json")
            if done.is_file() and json.loads(done.read_text())["settings"] == settings:
                rows.append(json.loads(done.read_text()))
                continue
            game, history = train(
                every[arm], sides["train"], size, images, place, seed=seed, label=arm, **depths
            )
            rng = np.random.default_rng(seed)
            latents = rng.standard_normal((len(test), game.latent_dim)).astype("float32")
            fake = replace(
                test, images=game.generate(latents, test.labels), name=arm, files=(), credit=""
            )
            found = evaluate(test, fake, learned, cas=False, seed=seed)
            first = [
                int(np.flatnonzero(test.labels == k)[0]) for k in range(len(cells.class_names))
            ]
            write_png(place.with_suffix(".png"), np.concatenate(list(fake.images[first]), axis=1))
            row = {
                "arm": arm,
                "seed": seed,
                "settings": settings,
                "recipe": asdict(every[arm]),
                "collapsed": float(history["diversity"].iloc[-1]) < 0.1,
                "diversity_by_epoch": history["diversity"].tolist(),
                "seconds": float(history["seconds"].sum()),
                "overall": found.overall,
                "scorecard": found.scorecard,
                "grid": found.grid,
            }
            write_json(done, row)
            rows.append(json.loads(done.read_text()))
    return {
        "data": cells.name,
        "image_size": size,
        "images_seen": images,
        "rungs": list(RUNGS),
        "class_names": list(cells.class_names),
        "test_images": len(test),
        "device": device(),
        "versions": versions(),
        "date": date.today().isoformat(),
        "arms": rows,
    }
