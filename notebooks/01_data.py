# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Data
#
# A generator can only be as good as its training images, and a test is only fair if its images were
# never used in training. This chapter opens a set of labelled cells, says what is in it
# and what was left out, splits it into training, validation and test images, and shows the image
# reader, the code that feeds every network of this book.
#
# **What you will see:** how uneven the classes are, what the cells look like, which files were
# dropped and why, which images may be used for what, and how fast the image reader is.

# %% [markdown]
# ## Parameters
#
# `data` is the name of a public set (`pbc`, `pbc-fine`), the set of drawn cells (`phantom`) or a
# folder of your own with one subfolder for each class. With `protocol = "disjoint"` the generator and
# the classifier each get half of the training images, as in the thesis. With `"one pool"` they share
# all of them, as a laboratory with a single set of images would do.

# %% tags=["parameters"]
profile = "demo"
seed = 1
data = "phantom"
phantom_classes = 8
phantom_images = 3000
phantom_size = 64
image_size = 32
batch_size = 64
protocol = "one pool"
memory_mb = 512

# %% tags=["hide-input"]
import time
from dataclasses import replace

from cellaug import figures
from cellaug.book import Chapter, thesis
from cellaug.data import (
    open_dataset,
    published,
    save_splits,
    split,
    stored,
    to_float,
    to_uint8,
)
from cellaug.data.inspection import BOUNDS
from cellaug.data.splits import measurable

import numpy as np
import pandas as pd
from IPython.display import Markdown

chapter = Chapter("01_data", globals())
figures.use_style()

# %% [markdown]
# ## The images and their labels
#
# When a set is opened, each file is checked and hashed; invalid files are rejected. One hash
# identifies the whole data set and is stored with every result.

# %% tags=["nbval-check-output"]
drawing = {
    "classes": phantom_classes,
    "images": phantom_images,
    "size": phantom_size,
    "seed": seed,
}
cells = open_dataset(data, **(drawing if data == "phantom" else {}))
print(f"{cells.name}: {len(cells):,} images in {len(cells.class_names)} classes")
print("\n".join(filter(None, [cells.credit, cells.origins()])))

# %% tags=["hide-input"]
Markdown(published.ACQUISITION.get(data, "")) if data in published.NAMES else None

# %% tags=["hide-input"]
whole = sum(published.SETS["pbc"].images.values()) if data in ("pbc", "pbc-fine") else 0
here = len(cells) + int((cells.report["outcome"] == "dropped").sum())
Markdown(
    f"The set was published with {whole:,} images; {here:,} of them are in this folder."
) if here < whole else None

# %% [markdown]
# Some cell types are rare in every laboratory. The figure counts the images of each class. The larger
# the gap between the longest and the shortest bar, the stronger the {term}`class imbalance`.

# %% mystnb={"figure": {"caption": "Images of each class in the training, validation and test split. Uneven classes would be a reason for augmentation: a classifier sees too few images of the rare ones.", "name": "fig-class-distribution"}}
parts = split(cells, seed=seed)
counts = pd.DataFrame({side: part.counts() for side, part in parts.items()}).T
figures.class_distribution(counts)

# %% tags=["hide-input"]
theirs = thesis()["data"]
imbalance = cells.counts().max() / cells.counts().min()
equal = cells.counts().nunique() == 1
ours = f"The largest class has **{imbalance:.1f} times** the images of the smallest."
ours = f"**All classes have {cells.counts().max():,} images.**" if equal else ours
Markdown(
    f"{ours} In the thesis the largest class had "
    f"{max(theirs['table_5']) / min(theirs['table_5']):.0f} times as many as the "
    "smallest "
    f"for the generator (Table 5) and "
    f"{max(theirs['table_6']) / min(theirs['table_6']):.0f} times for the classifier "
    f"(Table 6), over {theirs['classes']} classes."
)

# %% [markdown]
# One row for each class, taken at random with the seed of this run, not selected. Look for the
# differences between neighbouring rows: a conditional generator has to learn them.

# %% mystnb={"figure": {"caption": "Random cells of every class of the data set named above, one row for each class, after centre crop and resize to the pixels of this run (`image_size`), not selected.", "name": "fig-class-examples"}}
per_class = 8
shown = cells.sample_per_class(per_class, seed=seed)
images = shown.read(image_size)
figures.class_examples(images, shown.labels, cells.class_names, per_class)

# %% [markdown]
# ## What was left out, and why
#
# Nothing is dropped in silence. Duplicates with the same label are kept once. An image found under two
# labels is removed completely, because we cannot know which label is right. Files that are not complete
# images are listed with the reason.

# %% tags=["nbval-check-output"]
outcomes = cells.outcomes()
print(
    outcomes.to_string(index=False) if len(outcomes) else "every file was kept as it is"
)

# %% [markdown]
# If there are such files, the table lists up to five of each kind, those that were dropped first.

# %% tags=["hide-input"]
kinds = ["outcome", cells.report["reason"].str.split(":").str[0]]
some = cells.report.groupby(kinds, sort=False).head(5)
dropped = some["outcome"] == "dropped"
some = pd.concat([some[dropped], some[~dropped]])
some[["path", "reason", "outcome", "class"]] if len(some) else None

# %% [markdown]
# ## Decoded once
#
# Decoding is the slow part of reading, so we do it once: every image is cropped to its central square,
# resized and saved in a store, an array on disk that later chapters read.

# %% tags=["nbval-check-output"]
cells = stored(cells, image_size, chapter.out / "store")
print(
    f"{len(cells.store):,} images of {cells.store.size}×{cells.store.size} pixels in "
    "the store"
)

# %% [markdown]
# ## Training, validation and test split
#
# In public sets and drawn cells, the split of an image depends only on its content, its class and the
# seed, so it stays the same when other images are added or removed; a published split is kept. A set of
# your own is {term}`stratified <split>`: every class is divided in the same fractions, and all images of one
# patient or slide go to the same split if the table of the set has the column `group`.
#
# The shipped generators have not seen any test image of `pbc-fine`. If PBC is divided differently, they
# may have seen test images; chapter 5 then leaves them out. Generated images that are in a set already
# are never tested on, and the chapters train nothing on them.

# %% tags=["nbval-check-output"]
parts = split(cells, seed=seed)
if protocol == "disjoint":
    halves = {"generator": 0.35, "classifier": 0.35, "validation": 0.15, "test": 0.15}
    splits = split(cells, halves, seed)
else:
    real = parts["train"].table["origin"] == "real"
    splits = {"generator": parts["train"].subset(real), "classifier": parts["train"]}
    splits |= {side: parts[side] for side in ("validation", "test")}
save_splits(splits, chapter.out)
pd.Series({side: len(part) for side, part in splits.items()}, name=protocol).to_frame()

# %% [markdown]
# A recall that is measured with few test images is uncertain. The table shows, for each class, the
# exact 95 % interval of a recall of 0.9 with the test images it has, and from how many patients or
# slides all its images and its test images come, if that is known.

# %% tags=["hide-input"]
few = measurable(parts)
notes = np.where(
    few.images < BOUNDS["fewest_tested"], "Too few images to measure much. ", ""
)
alone = (few.groups > 0) & ((few.groups < BOUNDS["fewest_groups"]) | (few.tested < 2))
notes = notes + np.where(alone, "Too few patients to say much about others.", "")
unknown = "not known" if chapter.real == "real" else "none"
table = pd.DataFrame(
    {
        "test images": few.images.map("{:,}".format),
        "recall of 0.9: 95 % interval": [
            f"{row.low:.2f} to {row.high:.2f}" for row in few.itertuples()
        ],
        "patients (in the test)": [
            f"{row.groups} ({row.tested})" if row.groups else unknown
            for row in few.itertuples()
        ],
        "note": notes,
    }
)
table if any(notes) else table.drop(columns="note")

# %% [markdown] tags=["new-page"]
# ## From bytes to numbers
#
# Networks work on $[-1, 1]$. With $p_i$ a pixel value from 0 to 255 the transformation is
#
# $$\hat{p}_i = \frac{p_i - 127.5}{127.5}. \tag{39}$$
#
# All 256 values come back exactly, so nothing is lost between disk and network:

# %% tags=["nbval-check-output"]
values = pd.Series(range(256), dtype="uint8").to_numpy()
scaled = to_float(values)
print(
    f"0 becomes {scaled[0]:+.0f}, 255 becomes {scaled[255]:+.0f}".replace("-", "−")
    + f", dtype {scaled.dtype}"
)
print("all 256 values come back:", bool((to_uint8(scaled) == values).all()))

# %% [markdown]
# ## The image reader
#
# Several hundred thousand images do not fit in memory, so the thesis wrote its own image reader: it reads,
# shuffles and batches images and keeps only a part of them. Ours does the same. It is a Keras
# `PyDataset`, so `fit` accepts it on TensorFlow and on JAX.

# %% tags=["nbval-check-output"]
from cellaug.data.reader import Reader

reader = Reader(
    splits["generator"], image_size, batch_size, seed=seed, memory_mb=memory_mb
)
batch, labels = reader[0]
print(f"{len(reader)} batches an epoch; the first: {batch.shape} {batch.dtype}")
ends = f"values from {batch.min():+.2f} to {batch.max():+.2f}".replace("-", "−")
print(f"{ends}; labels {labels.dtype}")

# %% [markdown]
# With `balance=True` every class has the same number of images in an epoch; images of rare classes
# are used several times.

# %% tags=["nbval-check-output"]
balanced = Reader(splits["generator"], image_size, batch_size, seed=seed, balance=True)
drawn = pd.Series([label for i in range(len(balanced)) for label in balanced[i][1]])
drawn = drawn.map(dict(enumerate(cells.class_names)))
drawn.value_counts().sort_index().rename("images in an epoch").to_frame()

# %% [markdown]
# ## How fast and how large
#
# Reading from files, the first epoch decodes all of them; later epochs reuse the images that fit into
# the memory limit and decode the others again. We compare three limits: that of this run, room for
# half of the images, and none. The store needs no memory of its own, whatever its size.


# %%
def two_epochs(dataset, memory):
    """Images per second in two epochs, and the MiB held after each batch."""
    rates, held = [], []
    with Reader(dataset, image_size, batch_size, seed=seed, memory_mb=memory) as reader:
        for epoch in range(2):
            reader.epoch, start = epoch, time.perf_counter()
            for i in range(len(reader)):
                reader[i]
                held.append(reader.memory_bytes / 2**20)
            rates.append(len(dataset) / (time.perf_counter() - start))
    return rates, held


# %%
files = replace(splits["generator"], store=None)
whole = len(files) * image_size**2 * 3 / 2**20
limits = {
    "files, this run's limit": memory_mb,
    "files, half": whole / 2,
    "files, nothing kept": 0,
}
rates, held = {}, {}
for name, memory in limits.items():
    rates[name], held[name] = two_epochs(files, memory)
rates["store"], held["store"] = two_epochs(splits["generator"], 0)

# %% [markdown]
# *Held* is the largest number of MiB that the image reader kept at any time: it never exceeds its limit.

# %% tags=["hide-input"]
pd.DataFrame(
    {
        "first epoch, images/s": {name: pair[0] for name, pair in rates.items()},
        "second epoch, images/s": {name: pair[1] for name, pair in rates.items()},
        "limit, MiB": limits | {"store": 0},
        "held, MiB": {name: max(each) for name, each in held.items()},
    }
).style.format("{:,.0f}").format("{:,.1f}", subset=["limit, MiB", "held, MiB"])

# %% [markdown]
# How this image reader compares with others is on the page of recorded [benchmarks](record/benchmarks.ipynb).

# %% [markdown]
# ## What we saw, and what the thesis saw

# %% tags=["nbval-check-output"]
smallest, largest = cells.counts().idxmin(), cells.counts().idxmax()
dropped = int((cells.report.outcome == "dropped").sum())
chapter.compare(
    {
        "images": (
            f"{theirs['gan_images']:,} + {theirs['classifier_images']:,}",
            f"{len(cells):,}",
        ),
        "classes": (theirs["classes"], len(cells.class_names)),
        "pixels": (
            f"{theirs['pixels']} × {theirs['pixels']}",
            f"{image_size} × {image_size}",
        ),
        "smallest class (thesis: Table 6)": (
            f"{min(theirs['table_6']):,}",
            f"{cells.counts()[smallest]:,} ({'all are equal' if equal else smallest})",
        ),
        "largest class (thesis: Table 6)": (
            f"{max(theirs['table_6']):,}",
            f"{cells.counts()[largest]:,} ({'all are equal' if equal else largest})",
        ),
        "files dropped": ("not reported", dropped),
        "generator has images of its own": (
            "yes",
            "yes" if protocol == "disjoint" else "no: one pool",
        ),
    }
)

# %% [markdown]
# ## What it means
#
# The thesis could train its generator on a quarter of a million labelled images that its classifier
# never saw. So the gain of its classifier may come from those images and not from generating new
# ones. Can that happen here?

# %% tags=["hide-input"]
shared = {
    "one pool": "With one pool it cannot: the generators of this run are trained on "
    "the classifier's own images.",
    "disjoint": "With `disjoint` it can, as in the thesis: the generators have images "
    "that the classifier never sees.",
}
besides = (
    "The arm *shipped*, if chapter 5 has it, is an exception: its generator was "
    "trained on PBC."
)
Markdown(f"{shared[protocol]} {besides}")

# %% tags=["hide-input"]
groups = {side: set(part.table["group"]) - {""} for side, part in parts.items()}
named = int((cells.table["group"] != "").sum())
others = (names for side, names in groups.items() if side != "train")
both = groups["train"].intersection(set().union(*others))
if named == len(cells) and not both:
    patients = (
        "Splits are by patient: all images of a group (patient or slide) are in the "
        "same split, "
        f"and the {len(groups['test']):,} groups of the test images were never used in "
        "training."
    )
elif chapter.real != "real":
    patients = (
        "Drawn cells belong to no patient. Of real cells, those of a patient are kept "
        "in one split where a table names it."
    )
else:
    why = "The published split of this set divides them"
    if named < len(cells):
        why = "Images without a group are split by image"
    patients = (
        f"{named:,} of {len(cells):,} images name their group (patient or slide), and "
        f"{len(both):,} groups are in training and in another split. {why}, so "
        "cells of one patient may be in both, and scores within this set are too "
        "optimistic."
    )
Markdown(patients)

# %% [markdown]
# **Try it.**
#
# - Set `phantom_classes = 11` and see which classes become rare.
# - Set `protocol = "disjoint"` and compare the numbers of images in the splits.
# - Point `data` to a folder of your own cells and read what was left out. If you know which patient each
#   image is of, give a table with a column `group`.

# %% tags=["remove-cell"]
chapter.finish(
    {
        "data_name": cells.name,
        "credit": cells.credit,
        "phantom": data == "phantom",
        "images": len(cells),
        "classes": len(cells.class_names),
        "counts": cells.counts(),
        "imbalance": imbalance,
        "dropped": int((cells.report.outcome == "dropped").sum()),
        "converted": int((cells.report.outcome == "converted").sum()),
        "splits": {side: len(part) for side, part in splits.items()},
        "patients": patients,
        "reader_images_per_second": {
            name: {
                "first_epoch": first,
                "second_epoch": second,
                "held_mib": held[name][-1],
            }
            for name, (first, second) in rates.items()
        },
    },
    data=cells.fingerprint,
)
