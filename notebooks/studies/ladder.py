# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Study: from the thesis's recipe to a current one
#
# An ablation study. Its *steps* lead from the thesis's recipe to that of chapter 3, one change at a
# time; each step keeps the changes of all steps before it. *Variants* change one thing of the last
# step. Every run sees the same number of real images and is evaluated in the same way on the same
# test images. `cellaug study ladder` runs it. It resumes after an interruption and
# repeats nothing that is done.

# %% tags=["parameters"]
profile = "demo"
data = "phantom"
image_size = 64
out = ""  # by default build/study/ladder
arms = ()  # by default all
seeds = 1
record_as = ""  # keep the arms given as book/results/ladder-NAME
ladder_images = 20_000
ladder_generator_depth = 64
ladder_discriminator_depth = 16

# %%
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from cellaug import networks
from cellaug.book.chapter import device, project_root, read_result, result_file, versions
from cellaug.data import Dataset
from cellaug.data.images import decode, write_png
from cellaug.evaluation.collapse import COLLAPSED
from cellaug.evaluation.features import load_extractor
from cellaug.evaluation.fidelity import evaluate
from cellaug.evaluation.scorecard import compact, scorecard, summary, tidy
from cellaug.files import inside, write_json
from cellaug.training import Adversarial, AuxiliaryClassifier, Symmetries
from cellaug.training.checkpoint import source_hash
from cellaug.training.runs import Trained
from studies.common import require_known, stored_splits, studies_hash, train_on, vanilla
from studies.variants import Variant

import keras
import numpy as np
import pandas as pd

AC_FRACTION = 1 / 6
"""Fraction of the images that the thesis's second stage, the AC-GAN, is trained on."""

RESAMPLES = 50
"""Half-samples per evaluation. More would narrow the intervals by less than the spread between
seeds."""

# %% [markdown]
# ## Steps and variants


# %%
@dataclass(frozen=True)
class Arm(Variant):
    """All choices of a run.

    Attributes:
        joint: train one conditional GAN in balanced epochs, with the networks of
            `cellaug.networks.conditional`, no dropout and beta_2 0.99; False for the thesis's two
            stages, an AC-GAN on a frozen vanilla generator and discriminator.
        last_activation: of the layers before the frozen generator.
        width: multiplies the depth of both networks.
    """

    joint: bool = False
    last_activation: str = "relu"
    width: float = 1.0


THESIS = Arm(
    generator_depth=128, kernel=5, modulation=False, resize=False, projection=False,
    deviation="none", objective="cross-entropy", wrong_labels=0.0, gamma=0.0, r2=False,
    symmetries=False, half_life=0, batch_size=20, learning_rate=1e-5, beta_1=0.9, seed=1,
)  # fmt: skip
"""The thesis's choices (its Tables 1 and 3)."""

STEPS: Mapping[str, Mapping[str, Any]] = {
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
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "differentiable augmentation": {"augmentation": 0.4},
    "spectral normalisation for R1": {"spectral": True, "gamma": 0.0},
    "WGAN-GP": {"objective": "wasserstein-gp"},
    "WGAN": {"objective": "wasserstein"},
    "deviation over all classes": {"deviation": "batch"},
    "kernel 6×6": {"kernel": 6},
    "twice the filters": {"width": 2.0},
    "wrong labels at full weight": {"wrong_labels": 1.0},
    "falling learning rate": {"decay": 0.5},
    "resize-convolutions throughout": {"resize_all": True},
    "filter before halving": {"low_pass": True},
    "both against grids": {"resize_all": True, "low_pass": True},
    "even kernels": {"even": True},
}
LINEAR = "linear before the frozen generator"
"""The variant that changes the last step with a frozen generator, not the last step of all."""


# %%
def recipes() -> dict[str, Arm]:
    """Every step, then every variant, by name."""
    found, recipe = {}, THESIS
    frozen = recipe
    for name, change in STEPS.items():
        recipe = replace(recipe, **change)
        found[name] = recipe
        frozen = frozen if recipe.joint else recipe
    found[LINEAR] = replace(frozen, last_activation="linear")
    return found | {name: replace(recipe, **change) for name, change in VARIANTS.items()}


# %% [markdown]
# ## One run
#
# A joint recipe is one conditional GAN. The others have two stages, as the thesis had: a GAN without
# classes, then an AC-GAN on its frozen networks.


# %%
def train(
    recipe: Arm, cells: Dataset, size: int, images: int, folder: Path, label: str = ""
) -> tuple[Adversarial, dict[str, pd.DataFrame], int]:
    """Train one recipe on about `images` real images, resuming from the checkpoints in `folder`.

    Returns the GAN, the history of each stage, and how many real images were seen in all.
    """
    settings = {**asdict(recipe), "images": images, "size": size}
    depths = ("generator_depth", "discriminator_depth")
    recipe = replace(recipe, **{d: round(recipe.width * getattr(recipe, d)) for d in depths})
    seed, histories = recipe.seed, {}

    classes = len(cells.class_names)

    def run(
        build: Callable[[int], Adversarial], stage: str, batch: int, fraction: float, balance: bool
    ) -> Trained:
        done = train_on(
            cells, build, size, batch, fraction * images, seed=seed, balance=balance,
            checkpoint=folder / f"{stage}.npz", settings=settings,
            label=f"{label or stage}, seed {seed}", restart=True,
        )  # fmt: skip
        histories[stage] = done.history
        return done

    if recipe.joint:
        taken = recipe.batch_size * recipe.d_steps
        done = run(lambda steps: recipe.build(size, classes, steps), "conditional", taken, 1, True)
        return done.gan, histories, done.images_seen

    before = run(
        lambda _: vanilla(size, recipe), "vanilla", recipe.batch_size, 1 - AC_FRACTION, False
    )
    first = before.gan
    symmetries = Symmetries() if recipe.symmetries else None
    gan = Adversarial(
        networks.acgan_generator(
            first.trained_generator, classes, last_activation=recipe.last_activation
        ),
        networks.acgan_discriminator(first.discriminator, classes),
        AuxiliaryClassifier(), recipe.latent_dim, seed,
        real_augmentation=symmetries, half_life=recipe.half_life,
    )  # fmt: skip
    gan.compile(*(keras.optimizers.Adam(2e-4) for _ in range(2)))
    after = run(lambda _: gan, "ac_gan", 32, AC_FRACTION, False)
    return gan, histories, before.images_seen + after.images_seen


# %% [markdown]
# Each trained generator draws as many cells of each class as the test split has, and both sets are
# compared. A file with the measures and a picture with one cell of each class are kept.


# %%
def measure(
    gan: Adversarial, history: pd.DataFrame, test: Dataset, arm: str, seed: int, file: Path
) -> dict[str, Any]:
    """The part of a run's record that concerns its cells; one of each class is drawn to `file`."""
    latents = np.random.default_rng(seed).standard_normal((len(test), gan.latent_dim))
    drawn = gan.generate(latents.astype("float32"), test.labels)
    fake = Dataset.of_images(drawn, test.labels, test.class_names, arm, origin="synthetic")
    found = evaluate(test, fake, features="shipped", cas=False, resamples=RESAMPLES, seed=seed)
    first = [np.flatnonzero(test.labels == k)[0] for k in range(len(test.class_names))]
    write_png(file, np.concatenate(list(drawn[first]), axis=1))
    return {
        "arm": arm,
        "seed": seed,
        "file": file.name,
        "collapsed": bool(history["diversity"].iloc[-1] < COLLAPSED),
        "diversity_by_epoch": history["diversity"].tolist(),
        "table": compact(summary(found.table)),
    }


# %% [markdown]
# ## All runs


# %%
def run(
    splits: Mapping[str, Dataset],
    size: int,
    images: int,
    folder: Path,
    *,
    arms: Sequence[str] = (),
    seeds: int = 1,
    end_seeds: int = 3,
    **options: Any,
) -> dict[str, Any]:
    """Train and measure every arm; what is done already in `folder` is not done again.

    Args:
        splits: the images to train on ("train") and to compare with ("test").
        size: height and width of the images in pixels.
        images: real images that every run sees, up to whole epochs.
        folder: for checkpoints, and the measures and cells of each run.
        arms: names of `recipes()`; all of them if none is given.
        seeds: of every arm.
        end_seeds: at least this many of the first and the last step.
        options: further choices of every arm, such as `generator_depth`.

    Returns what all runs share, and `runs`. Raises `DataError` for an unknown arm.
    """
    every = recipes()
    require_known(arms, every)
    test, (start, *_, end) = splits["test"].in_memory(size), STEPS
    shared: dict[str, Any] = {"images": images, "size": size, "data": splits["train"].fingerprint}
    shared |= {"source": source_hash(), "evaluation": source_hash("evaluation")}
    shared |= {"study": studies_hash(), "extractor": load_extractor(size).digest, **options}
    runs = []
    for arm in arms or every:
        for seed in range(1, 1 + (max(seeds, end_seeds) if arm in (start, end) else seeds)):
            place = folder / f"{re.sub('[^a-z0-9]+', '-', arm.lower()).strip('-')}-{seed}"
            done, recipe = place.with_suffix(".json"), replace(every[arm], **options, seed=seed)
            settings = {**shared, "recipe": asdict(recipe)}
            found = json.loads(done.read_text()) if done.is_file() else {}
            if found.get("settings") != settings:
                gan, histories, seen = train(recipe, splits["train"], size, images, place, arm)
                *_, last = histories.values()
                found = {
                    "images_seen": seen,
                    "seconds": sum(float(stage["seconds"].sum()) for stage in histories.values()),
                    "date": date.today().isoformat(),
                    **measure(gan, last, test, arm, seed, place.with_suffix(".png")),
                }
                write_json(done, {**found, "settings": settings})
                found = json.loads(done.read_text())
            runs.append(found)
    about: dict[str, Any] = {"data": test.name, "credit": test.credit, "images_asked": images}
    about |= {"class_names": list(test.class_names), "test_images": len(test), "image_size": size}
    about |= {"device": device(), "versions": versions(), "date": date.today().isoformat()}
    steps = [arm for arm in STEPS if arm in (arms or every)]
    return about | {"options": options, "rungs": steps, "runs": runs}


# %%
def table(found: Mapping[str, Any]) -> pd.DataFrame:
    """The measures of each run over all classes, relative to real cells; NaN if not measured.

    Class accuracy is generated minus real, in percentage points; the others are generated divided
    by real. Grid texture is that of the period where it differs most.
    """

    def row(run: Mapping[str, Any]) -> dict[str, Any]:
        rows = tidy(run["table"])
        own = rows[rows["level"] == "overall"].set_index("measure")
        card = scorecard(rows)["value"]
        return {
            "arm": run["arm"],
            "seed": run["seed"],
            "Fréchet distance": card["frechet_ratio"],
            "coverage": own["ratio"]["coverage"],
            "recall": own["ratio"]["recall"],
            "diversity": own["ratio"]["diversity_pixels"],
            "class accuracy, points": 100 * own["gap"]["agreement"],
            "grid texture": card["grid_ratio"],
        }

    return pd.DataFrame([row(run) for run in found["runs"]])


# %% [markdown]
# ## Records
#
# A complete study is recorded under `book/results/`, measures and cells, for the book to show.


# %%
def record(found: Mapping[str, Any], folder: Path, name: str) -> Path:
    """Keep measures and cells as ``book/results/ladder-<name>.json`` and ``.png``."""
    path = inside(result_file(""), f"ladder-{name}.json")
    first = {run["arm"]: run["file"] for run in reversed(found["runs"])}
    sheet = [
        decode(folder / first[arm])[0] for arm in dict.fromkeys(r["arm"] for r in found["runs"])
    ]
    write_png(path.with_suffix(".png"), np.concatenate(sheet))
    write_json(path, dict(found))
    return path


def recorded(name: str) -> tuple[dict[str, Any], np.ndarray]:
    """The recorded measures, and a generated cell of each class by each arm.

    The cells, (arms, classes, S, S, 3) uint8, are of each arm's first seed and each class's first
    latent vector, not selected. Raises `BookError` if there is no record.
    """
    found = read_result(f"ladder-{name}.json", f"cellaug study ladder --profile {name}")
    sheet, size = decode(result_file(f"ladder-{name}.png"))[0], found["image_size"]
    return found, sheet.reshape(-1, size, sheet.shape[1] // size, size, 3).swapaxes(1, 2)


# %% [markdown]
# ## Run

# %%
if __name__ == "__main__":
    place = Path(out) if out else project_root() / "build" / "study" / "ladder"
    place /= record_as or profile
    found = run(
        stored_splits(data, image_size), image_size, ladder_images, place, arms=arms, seeds=seeds,
        generator_depth=ladder_generator_depth, discriminator_depth=ladder_discriminator_depth,
    )  # fmt: skip

# %%
if __name__ == "__main__":
    print(table(found).round(3).to_string(index=False))
    print(record(found, place, record_as or profile) if record_as or not arms else place)
