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
# them, and what does a truncation bring and cost?
# `cellaug study broken` measures a generator for some minutes and records it.

# %% tags=["parameters"]
profile = "pbc"
data = "pbc-fine"
generator = "pbc-fine-64"  # its name, or its folder
truncations = (2.5, 2.0, 1.5)
resamples = 200

# %%
from collections.abc import Mapping, Sequence
from datetime import date
from io import StringIO
from pathlib import Path

from cellaug.book.chapter import device, read_result, result_file, versions
from cellaug.data import DataError, Dataset, to_uint8
from cellaug.evaluation.colours import colour_statistics, unusual
from cellaug.evaluation.features import pixels
from cellaug.evaluation.fidelity import evaluate
from cellaug.evaluation.scorecard import compact, tidy
from cellaug.files import write_json
from cellaug.generators import load_generator
from studies.common import stored_splits

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
    size, names, counts = generator.image_size, generator.class_names, test.counts()
    real, train = test.in_memory(size), splits["train"].in_memory(size)
    wanted, tables = counts.reindex([*names], fill_value=0).to_numpy(), []
    if not wanted.any():
        given = f"{generator.folder} draws none of the classes of {test.name}"
        raise DataError(f"{given}: name the profile of the data that it was trained on")
    for limit in (None, *limits):
        images, labels = load_generator(folder, limit).generate_each(names, wanted, (1,))
        made = Dataset.of_images(images, labels, names, folder.name, origin="synthetic")
        found = evaluate(
            real, made, train, features="shipped", resamples=resamples, seed=1, cas=False
        )
        table = tidy(found.card()["table"])
        overall = table[(table["level"] == "overall") & table["measure"].isin(COMPARED)]
        tables.append(overall.assign(truncation=limit))
    shared, broken, in_batch = causes(generator.model, wanted, pixels(train))
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


# %%
if __name__ == "__main__":
    chosen = load_generator(generator)
    splits = stored_splits(data, chosen.image_size)
    print(measure(chosen.folder, splits, truncations, resamples))
