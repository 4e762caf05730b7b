"""The ladder from the thesis's recipe to the conditional one, a change at a time.

Every rung and side arm sees the same number of real images, with the same seeds, and is measured by
the same evaluation against the same test images (`cellaug study ladder`). Rungs add up: each has
the changes of all before it. Side arms change one thing of the last rung, but
`LINEAR`: it is one of the last rung that still has a frozen generator.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from cellaug import networks
from cellaug.book import device, read_result, result_file, versions, write_json
from cellaug.data import DataError, Dataset
from cellaug.data.images import read_png, write_png
from cellaug.evaluation.features import load_extractor
from cellaug.evaluation.fidelity import evaluate
from cellaug.evaluation.labelled import LabelledImages
from cellaug.evaluation.scorecard import ROWS
from cellaug.study.training import decay_steps, train_on, vanilla
from cellaug.training import Adversarial, AuxiliaryClassifier, Symmetries, conditional
from cellaug.training.callbacks import COLLAPSED
from cellaug.training.checkpoint import source_hash

import keras
import numpy as np
import pandas as pd

AC_SHARE = 1 / 6
"""Share of the images that the second stage of the thesis's recipe, the AC-GAN, sees."""

RESAMPLES = 50
"""Half-samples in an evaluation; what seeds differ by is larger than what more would mend."""


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
        joint: one conditional pair, trained in one go in epochs that show every class equally
            often, in place of an AC-GAN on a frozen vanilla pair. Its networks are those of
            `cellaug.networks.conditional`, without dropout, and its beta_2 is 0.99.
        projection: it has a projection head; without, the class enters as planes.
        modulation: class and latent vector scale and shift every layer of its generator.
        resize: a resize-convolution at its end.
        gamma: of R1, every eighth step; 0 for none.
        r2: the same penalty at generated images.
        wrong_labels: weight of what the discriminator learns from real images with a wrong label.
        deviation: minibatch deviation as a feature of the discriminator: "class", "batch", "none".
        augmentation: probability of differentiable augmentation of real and generated images.
        spectral: spectral normalisation of the discriminator.
        objective: as in `cellaug.training.conditional`.
        last_activation: of the layers in front of the frozen generator.
        width: multiplies the depth of both networks.
        decay: share of the steps, at the end, in which the conditional pair's learning rate falls.
    """

    learning_rate: float = 1e-5
    beta_1: float = 0.9
    batch_size: int = 20
    kernel: int = 5
    half_life: int = 0
    symmetries: bool = False
    joint: bool = False
    projection: bool = False
    modulation: bool = False
    resize: bool = False
    gamma: float = 0.0
    r2: bool = False
    wrong_labels: float = 0.0
    deviation: str = "none"
    augmentation: float = 0.0
    spectral: bool = False
    objective: str = "cross-entropy"
    last_activation: str = "relu"
    width: float = 1.0
    decay: float = 0.0


RUNGS: Mapping[str, Mapping[str, Any]] = {
    "thesis": {},
    "learning rate 2e-4": {"learning_rate": 2e-4},
    "β₁ 0.5": {"beta_1": 0.5},
    "batches of 32": {"batch_size": 32},
    "kernel 4×4": {"kernel": 4},
    "moving average": {"half_life": 10_000},
    "real symmetries": {"symmetries": True},
    "one conditional pair": {"joint": True},
    "projection": {"projection": True},
    "lazy R1": {"gamma": 0.02},
    "minibatch deviation": {"deviation": "class"},
    "modulation": {"modulation": True},
    "resize-convolution": {"resize": True},
    "relativistic pairing": {"objective": "relativistic"},
    "R2": {"r2": True},
    "wrong labels": {"wrong_labels": 0.5},
}
SIDE_ARMS: Mapping[str, Mapping[str, Any]] = {
    "differentiable augmentation": {"augmentation": 0.4},
    "spectral normalisation for R1": {"spectral": True, "gamma": 0.0},
    "WGAN-GP": {"objective": "wasserstein-gp"},
    "WGAN": {"objective": "wasserstein"},
    "deviation over all classes": {"deviation": "batch"},
    "kernel 6×6": {"kernel": 6},
    "twice the filters": {"width": 2.0},
    "wrong labels at full weight": {"wrong_labels": 1.0},
    "falling learning rate": {"decay": 0.5},
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
        frozen = frozen if recipe.joint else recipe
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
) -> tuple[Adversarial, dict[str, pd.DataFrame], int]:
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
        The trained game, whose `generate` takes latents and labels; the history of each stage, the
        last one's that of the game; and how many real images were seen in all. A run that collapses
        ends early; its history says when.
    """
    classes = len(cells.class_names)
    depths = {
        "generator_depth": round(recipe.width * generator_depth),
        "discriminator_depth": round(recipe.width * discriminator_depth),
    }
    settings = {**asdict(recipe), **depths, "images": images, "seed": seed, "size": size}
    either = {
        **depths,
        "latent_dim": latent_dim,
        "kernel": recipe.kernel,
        "symmetries": recipe.symmetries,
        "half_life": recipe.half_life,
        "learning_rate": recipe.learning_rate,
        "beta_1": recipe.beta_1,
        "seed": seed,
    }

    histories: dict[str, pd.DataFrame] = {}

    def run(game: Adversarial, stage: str, batch: int, share: float, balance: bool) -> int:
        histories[stage], seen = train_on(
            cells,
            game,
            size,
            batch,
            share * images,
            seed=seed,
            balance=balance,
            checkpoint=folder / f"{stage}.npz",
            settings=settings,
            label=f"{label or stage}, seed {seed}",
            restart=True,
        )
        return seen

    if recipe.joint:
        game = conditional(
            size,
            classes,
            **either,
            modulation=recipe.modulation,
            resize=recipe.resize,
            projection=recipe.projection,
            deviation=recipe.deviation,
            spectral=recipe.spectral,
            objective=recipe.objective,
            gamma=recipe.gamma,
            r2=recipe.r2,
            wrong_labels=recipe.wrong_labels,
            augmentation=recipe.augmentation,
            decay_steps=decay_steps(
                cells, size, recipe.batch_size, images, recipe.decay, recipe.objective
            ),
        )
        return game, histories, run(game, "conditional", recipe.batch_size, 1.0, True)

    pair = vanilla(size, **either)
    seen = run(pair, "vanilla", recipe.batch_size, 1 - AC_SHARE, False)
    labelled = networks.acgan(
        pair.trained_generator,
        pair.discriminator,
        classes,
        last_activation=recipe.last_activation,
    )
    game = Adversarial(
        *labelled,
        AuxiliaryClassifier(),
        latent_dim,
        seed,
        real_augmentation=Symmetries() if recipe.symmetries else None,
        half_life=recipe.half_life,
    )
    game.compile(*(keras.optimizers.Adam(2e-4) for _ in range(2)))
    seen += run(game, "ac_gan", 32, AC_SHARE, False)
    return game, histories, seen


def run(
    sides: Mapping[str, Dataset],
    size: int,
    images: int,
    folder: Path,
    *,
    arms: Sequence[str] = (),
    seeds: int = 1,
    end_seeds: int = 3,
    **options: int,
) -> dict:
    """Train and measure every arm; what is done already in `folder` is not done again.

    Args:
        sides: what to learn from ("train") and what to compare with ("test").
        size: height and width of the images in pixels.
        images: real images that every run is to see; what it saw, in whole epochs, stands with it.
        folder: for checkpoints, and the measures and sample cells of each run.
        arms: names of `recipes()`; all of them if none is given.
        seeds: of every arm.
        end_seeds: of the first and the last rung at least.
        options: `generator_depth`, `discriminator_depth` and `latent_dim` of `train`.

    Returns:
        `runs`, a list of one dict for each run with what `table` and `samples` need, and what all
        runs share.

    Raises:
        DataError: for an unknown arm, and for too few test images.
    """
    every = recipes()
    unknown = [arm for arm in arms if arm not in every]
    if unknown:
        raise DataError(f"no arm {', '.join(unknown)}: there are {', '.join(every)}")
    test = LabelledImages.read(sides["test"], size)
    ends = (next(iter(RUNGS)), list(RUNGS)[-1])
    shared = {
        "images": images,
        "size": size,
        "data": sides["train"].fingerprint,
        "source": source_hash(),
        "evaluation": source_hash("evaluation"),
        "extractor": load_extractor().digest,
        **options,
    }
    runs = []
    for arm in arms or every:
        for seed in range(1, 1 + (max(seeds, end_seeds) if arm in ends else seeds)):
            place = folder / f"{re.sub('[^a-z0-9]+', '-', arm.lower()).strip('-')}-{seed}"
            done = place.with_suffix(".json")
            settings = {**shared, "recipe": asdict(every[arm])}
            found = json.loads(done.read_text()) if done.is_file() else {}
            if found.get("settings") != settings:
                game, histories, seen = train(
                    every[arm], sides["train"], size, images, place, seed=seed, label=arm, **options
                )
                *_, last = histories.values()
                found = {
                    "images_seen": seen,
                    "seconds": sum(float(stage["seconds"].sum()) for stage in histories.values()),
                    "date": date.today().isoformat(),
                    **_measured(game, last, test, arm, seed, place.with_suffix(".png")),
                }
                write_json(done, {**found, "settings": settings})
                found = json.loads(done.read_text())
            runs.append(found)
    return {
        "data": sides["test"].name,
        "credit": sides["test"].credit,
        "image_size": size,
        "images_asked": images,
        "options": options,
        "rungs": [arm for arm in RUNGS if arm in (arms or every)],
        "class_names": list(test.class_names),
        "test_images": len(test),
        "device": device(),
        "versions": versions(),
        "date": date.today().isoformat(),
        "runs": runs,
    }


def _measured(
    game: Adversarial, history: pd.DataFrame, test: LabelledImages, arm: str, seed: int, file: Path
) -> dict[str, Any]:
    """What is kept of a run; a row with a cell of each class goes to `file`."""
    latents = np.random.default_rng(seed).standard_normal((len(test), game.latent_dim))
    drawn = game.generate(latents.astype("float32"), test.labels)
    fake = replace(test, images=drawn, name=arm, files=(), credit="")
    found = evaluate(test, fake, cas=False, resamples=RESAMPLES, seed=seed, few=True)
    first = [np.flatnonzero(test.labels == k)[0] for k in range(len(test.class_names))]
    write_png(file, np.concatenate(list(drawn[first]), axis=1))
    return {
        "arm": arm,
        "seed": seed,
        "file": file.name,
        "collapsed": bool(history["diversity"].iloc[-1] < COLLAPSED),
        "diversity_by_epoch": history["diversity"].tolist(),
        "overall": found.overall,
        "scorecard": found.scorecard,
        "grid": found.grid,
    }


def table(found: Mapping[str, Any]) -> pd.DataFrame:
    """The measures of each run over all classes, as `evaluate` defines them.

    Returns:
        A row for each run with `arm`, `seed` and, generated against real: the Fréchet distance over
        that between real halves; coverage, recall and diversity within class as a share of real
        cells'; class agreement less real's in points; and the grid texture, how far the energy at a
        grid's frequencies stands out from that around them, over real cells', of the period where
        it differs most. NaN where it could not be measured.
    """

    def row(run: Mapping[str, Any]) -> dict[str, Any]:
        def of(measure: str, kind: str = "ratio") -> float:
            value = (run["overall"][measure] or {}).get(kind)
            return np.nan if value is None else value

        return {
            "arm": run["arm"],
            "seed": run["seed"],
            "Fréchet distance": of("frechet"),
            "coverage": of("coverage"),
            "recall": of("recall"),
            "diversity": of("diversity_pixels"),
            "agreement, points": 100 * of("agreement", "gap"),
            "grid texture": (run["scorecard"]["grid_ratio"] or {}).get("value", np.nan),
        }

    return pd.DataFrame([row(run) for run in found["runs"]])


def verdicts(found: Mapping[str, Any], arm: str) -> pd.DataFrame:
    """The scorecard of one arm over its seeds: the worst class or period of every measure.

    Returns:
        A row for each measure (in the words of a scorecard) that was measured, with `mean` and
        standard deviation (`sd`) over seeds, `lowest` and `highest` that will do (NaN for no
        bound), and in `met` how many of `seeds` lie between.
    """
    cards = [run["scorecard"] for run in found["runs"] if run["arm"] == arm]
    rows = {}
    for measure, words in ROWS.items():
        own = [card[measure] for card in cards if card[measure] is not None]
        if own:
            values = pd.Series([row["value"] for row in own], dtype=float)
            rows[words] = {
                "mean": values.mean(),
                "sd": values.std(),
                **dict(zip(("lowest", "highest"), own[0]["target"], strict=True)),
                "met": sum(row["met"] for row in own),
                "seeds": len(own),
            }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.astype({"lowest": float, "highest": float})


def samples(found: Mapping[str, Any], folder: Path) -> np.ndarray:
    """A generated cell of each class by each arm, (arms, classes, S, S, 3) uint8.

    Of each arm's first seed and each class's first latent vector; none is selected.
    """
    first = {run["arm"]: run["file"] for run in reversed(found["runs"])}
    rows = [read_png(folder / first[arm]) for arm in dict.fromkeys(r["arm"] for r in found["runs"])]
    return _cells(np.concatenate(rows), found)


def record(found: Mapping[str, Any], folder: Path, name: str) -> Path:
    """Keep measures and sample cells as ``book/results/ladder-<name>.json`` and ``.png``."""
    path = result_file(f"ladder-{name}.json")
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in samples(found, folder)])
    write_png(path.with_suffix(".png"), sheet)
    write_json(path, dict(found))
    return path


def recorded(name: str) -> tuple[dict, np.ndarray]:
    """What `record` kept: what `run` returned, and what `samples` returned.

    Raises:
        BookError: where nothing is recorded under that name.
    """
    found = read_result(f"ladder-{name}.json", f"cellaug study ladder --profile {name}")
    return found, _cells(read_png(result_file(f"ladder-{name}.png")), found)


def _cells(sheet: np.ndarray, found: Mapping[str, Any]) -> np.ndarray:
    """A sheet of cells, a row for each arm and a column for each class, taken apart."""
    size = found["image_size"]
    rows, columns = sheet.shape[0] // size, sheet.shape[1] // size
    return sheet.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
