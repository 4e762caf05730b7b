# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Study: broken cells
#
# Some cells of a generator burst into coloured noise, or lie on a background that no slide has. What do
# their latent vectors and activations have in common, does the moving average of batch statistics make
# them, does the gradient penalty, and what does a truncation bring and cost?
# `cellaug study broken` measures a generator for some minutes and records it; with `--images N` it also
# trains it further with each penalty, which takes longer and resumes.

# %% tags=["parameters"]
profile = "pbc"
data = "pbc-fine"
generator = "pbc-fine-64"  # its name, or its folder
truncations = (2.5, 2.0, 1.5)
resamples = 200
images = 0  # that each further training is shown; 0 for none
arms = ()  # names of `PENALTIES`; by default all
seeds = (1, 2)  # of those

# %%
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from functools import partial
from io import StringIO
from pathlib import Path

from cellaug.book.chapter import device, project_root, read_result, result_file, versions
from cellaug.data import DataError, Dataset, to_uint8
from cellaug.evaluation.colours import colour_statistics, unusual
from cellaug.evaluation.features import pixels
from cellaug.evaluation.fidelity import evaluate
from cellaug.evaluation.scorecard import compact, tidy
from cellaug.files import write_json
from cellaug.generators import Generator, load_generator
from cellaug.train import recipe_for
from cellaug.training.finetune import begin, choices_of
from studies.common import require_known, stored_splits, train_on

import keras
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

# %%
COMPARED = ("colours", "frechet", "coverage", "diversity_features", "agreement")


def measure(
    folder: Path, splits: Mapping[str, Dataset], limits: Sequence[float], resamples: int = 200
) -> Path:
    """Measure a generator without and with truncations; record it, and what broken cells share.

    The record is ``book/results/broken-<name>.json``; a cell counts as broken if its colours are
    `unusual`.
    """
    generator, test = load_generator(folder), splits["test"]
    wanted, tables = counts_of(generator, test), []
    for limit in (None, *limits):
        drawn = load_generator(folder, limit).generate_each(generator.class_names, wanted, (1,))
        tables.append(compared(generator, *drawn, splits, resamples).assign(truncation=limit))
    train = pixels(splits["train"].in_memory(generator.image_size))
    shared, broken, in_batch = causes(generator.model, wanted, train)
    facts = {
        "name": folder.name,
        "sha256": generator.digest,
        "data_hash": test.fingerprint,
        "test_images": len(test),
        "cells": int(wanted.sum()),
        "broken": broken,
        "broken_batch_statistics": in_batch,
        "causes": shared,
        "table": compact(pd.concat(tables)),
        "date": date.today().isoformat(),
        "device": device(),
        "versions": versions(),
    }
    path = result_file(f"broken-{folder.name}.json")
    write_json(path, facts)
    return path


def counts_of(generator: Generator, test: Dataset) -> np.ndarray:
    """How many cells of each class of a generator the test images have (classes,)."""
    wanted = test.counts().reindex([*generator.class_names], fill_value=0).to_numpy()
    if not wanted.any():
        given = f"{generator.folder} draws none of the classes of {test.name}"
        raise DataError(f"{given}: name the profile of the data that it was trained on")
    return wanted


def compared(
    generator: Generator, images: np.ndarray, labels: np.ndarray, splits: Mapping[str, Dataset],
    resamples: int,
) -> pd.DataFrame:  # fmt: skip
    """The measures `COMPARED` over all classes of drawn images against the test images."""
    sets = [splits[name].in_memory(generator.image_size) for name in ("test", "train")]
    names = generator.class_names
    made = Dataset.of_images(images, labels, names, generator.folder.name, origin="synthetic")
    found = evaluate(
        sets[0], made, sets[1], features="shipped", resamples=resamples, seed=1, cas=False
    )
    table = tidy(found.card()["table"])
    return table[(table["level"] == "overall") & table["measure"].isin(COMPARED)]


def recorded(name: str) -> tuple[dict, pd.DataFrame]:
    """The record of a generator, and its table with the column `truncation` (NaN for none)."""
    found = read_result(f"broken-{name}.json", "cellaug study broken")
    return found, pd.read_csv(StringIO("\n".join(found["table"])))


def causes(model: keras.Model, counts: np.ndarray, train: np.ndarray) -> tuple[dict, float, float]:
    """How well broken cells are known by the size of their latent vector, and of activations.

    Args:
        model: a conditional generator.
        counts: cells to draw of each class (classes,).
        train: real training images, uint8 (N, S, S, 3).

    Returns:
        For each, the area under the ROC curve (0.5 is chance) and the median of broken and of other
        cells; the fraction of broken cells; and their fraction if each batch of the same latent
        vectors is normalised by its own statistics. Sizes are root mean squares.
    """
    rng, labels = np.random.default_rng(1), np.repeat(np.arange(len(counts)), counts)
    labels = rng.permutation(labels).astype("int32")  # batches of all classes, as in training
    latents = rng.standard_normal((len(labels), model.inputs[0].shape[-1]))
    layers = [layer for layer in model.layers if layer.name.startswith("norm_")]
    inside = keras.Model(model.inputs, [*(layer.output for layer in layers), model.output])
    sizes: dict[str, list] = {"latent vector": list(np.sqrt(np.mean(latents**2, axis=1)))}
    images: list[np.ndarray] = []
    in_batch: list[np.ndarray] = []
    parts = np.array_split(np.arange(len(labels)), max(1, len(labels) // 64))
    batches = [[latents[part].astype("float32"), labels[part]] for part in parts]
    for given in batches:
        *values, made = inside.predict_on_batch(given)
        for value in values:
            named = f"activations at {value.shape[1]} × {value.shape[1]} pixels"
            rms = np.sqrt(np.mean(np.square(np.asarray(value, "float32")), axis=(1, 2, 3)))
            sizes.setdefault(named, []).extend(rms)
        images.append(to_uint8(made))
    kept = model.get_weights()
    for given in batches:
        in_batch.append(to_uint8(np.asarray(model(given, training=True))))
    model.set_weights(kept)  # training moves the averages
    drawn = [colour_statistics(np.concatenate(each)) for each in (images, in_batch)]
    broken, other = unusual(colour_statistics(train), drawn)
    found = {}
    for named, each in sizes.items():
        value = np.array(each)
        area = roc_auc_score(broken, value) if 0 < broken.sum() < len(broken) else np.nan
        sides = {"broken": value[broken], "others": value[~broken]}
        middle = {side: float(np.median(v)) if len(v) else np.nan for side, v in sides.items()}
        found[named] = {"area": float(area), **middle}
    return found, float(broken.mean()), float(other.mean())


# %% [markdown]
# Does the gradient penalty make broken cells? The generator is trained further with each of these choices
# of the recipe, all else being as it was, with a new discriminator and the same images in the same order.

# %%
PENALTIES: Mapping[str, Mapping[str, float]] = {
    "as before, at every eighth step": {},
    "at every step": {"penalty_every": 1},
    "at real cells alone": {"r2": False},
    "none": {"gamma": 0.0},
}


def penalty(
    folder: Path, splits: Mapping[str, Dataset], images: int, work: Path, seeds: Sequence[int],
    resamples: int = 200, arms: Sequence[str] = (), **choices: float,
) -> Path:  # fmt: skip
    """Train a generator further with each penalty on about `images` images, and record the cells.

    `work` is a folder for checkpoints, in which a run that was stopped goes on; `choices` are those
    of the recipe in every arm. The record is ``book/results/penalty-<name>.json``; it has the arms
    that are given, by default all of `PENALTIES`. Raises `DataError` for an unknown one.
    """
    require_known(arms, PENALTIES)
    source, cells, runs = load_generator(folder), splits["train"], []
    wanted, size = counts_of(source, splits["test"]), source.image_size
    for seed, arm in [(seed, arm) for seed in seeds for arm in arms or PENALTIES]:
        made = {**choices, **PENALTIES[arm]}
        recipe = recipe_for(size, seed, made, choices_of(source, size))
        facts = {"arm": arm, "seed": seed, "images": images, "start_from": source.digest}
        facts |= {"recipe": asdict(recipe)}
        done = train_on(
            cells, partial(begin, recipe, size, cells.class_names, source=source), size,
            recipe.batch_size, images, seed=seed, balance=True, settings=facts,
            checkpoint=work / f"{list(PENALTIES).index(arm)}-{seed}.npz",
            label=f"{arm}, seed {seed}", restart=True,
        )  # fmt: skip
        rng, labels = np.random.default_rng(seed), np.repeat(np.arange(len(wanted)), wanted)
        drawn = done.gan.generate(rng.standard_normal((len(labels), recipe.latent_dim)), labels)
        table = compared(source, drawn, labels, splits, resamples)
        runs.append(facts | {"images_seen": done.images_seen, "table": compact(table)})
    facts = {"name": folder.name, "sha256": source.digest, "runs": runs}
    facts |= {"date": date.today().isoformat(), "device": device(), "versions": versions()}
    path = result_file(f"penalty-{folder.name}.json")
    write_json(path, facts)
    return path


def penalties(name: str) -> tuple[dict, pd.DataFrame]:
    """The record of `penalty`, and its tables with the columns `arm` and `seed`."""
    found = read_result(f"penalty-{name}.json", "cellaug study broken --images 320000")
    tables = [tidy(run["table"]).assign(arm=run["arm"], seed=run["seed"]) for run in found["runs"]]
    return found, pd.concat(tables)


# %%
if __name__ == "__main__":
    chosen = load_generator(generator)
    splits = stored_splits(data, chosen.image_size)
    print(measure(chosen.folder, splits, truncations, resamples))

# %%
if __name__ == "__main__" and images:
    work = project_root() / "build" / "study" / "broken" / chosen.folder.name
    print(penalty(chosen.folder, splits, images, work, seeds, resamples, arms))
