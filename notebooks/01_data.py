# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Data
#
# A generator can only be as good as the images that it has seen, and a test only as honest as the
# split behind it. This chapter opens a set of labelled white blood cells, says what is in it and
# what had to be left out, divides it, and shows the reader that will feed every network of this
# book.
#
# **What you will see:** how uneven the classes are, what the cells look like, which files were
# dropped and why, which images may be used for what, and how fast the reader delivers.

# %% [markdown]
# ## Parameters
#
# `data` names a public set (`pbc`, `pbc-fine`), the drawn set (`phantom`) or a folder of your own
# with one subfolder for each class. With `protocol = "disjoint"` the generator and the classifier
# each get half of the training images, as in the thesis; with `"one pool"` they share all of them,
# which is what a laboratory with a single set of images can do.

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
from statistics import median

from cellaug import figures
from cellaug.book import Chapter, recorded_benchmark, thesis
from cellaug.data import open_dataset, save_splits, split, to_float, to_uint8

import numpy as np
import pandas as pd
from IPython.display import Markdown

chapter = Chapter("01_data", globals())
figures.use_style()

# %% [markdown]
# ## The images and their labels
#
# Opening a set reads every file once: it is hashed, decoded, and taken in or turned away. The data
# hash stands for exactly these images with exactly these labels; every result of this book carries
# it.

# %% tags=["nbval-check-output"]
drawing = {"classes": phantom_classes, "images": phantom_images, "size": phantom_size, "seed": seed}
cells = open_dataset(data, **(drawing if data == "phantom" else {}))
print(f"{cells.name}: {len(cells):,} images in {len(cells.class_names)} classes")
print(cells.credit)

# %% [markdown]
# Rare cells are rare in any laboratory. The figure counts the images of each class, largest first;
# what matters for the later chapters is the distance between the longest bar and the shortest.

# %% mystnb={"figure": {"caption": "Images of each class, as they will be divided. Uneven classes are the reason for augmenting at all: a classifier sees the rare ones too seldom.", "name": "fig-class-distribution"}}
parts = split(cells, seed=seed)
counts = pd.DataFrame({side: part.counts() for side, part in parts.items()}).T
figures.class_distribution(counts)

# %% tags=["hide-input"]
theirs = thesis()["data"]
imbalance = cells.counts().max() / cells.counts().min()
Markdown(
    f"The largest class has **{imbalance:.1f} times** the images of the smallest. In the thesis it "
    f"was {max(theirs['table_5']) / min(theirs['table_5']):.0f} times for the generator's images "
    f"(Table 5) and {max(theirs['table_6']) / min(theirs['table_6']):.0f} times for the "
    f"classifier's (Table 6), over {theirs['classes']} classes."
)

# %% [markdown]
# One row for each class, drawn at random with the seed of this run and not chosen by eye. Look for
# what tells neighbouring rows apart: that is what a conditional generator has to learn.

# %% mystnb={"figure": {"caption": "Random examples of every class after centre crop and resize.", "name": "fig-class-examples"}}
per_class = 8
shown = cells.sample_per_class(per_class, seed=seed)
images = shown.read(image_size)
figures.class_examples(images, shown.labels, cells.class_names, per_class)

# %% [markdown]
# ## What was left out, and why
#
# Nothing is dropped in silence. A copy under the same label is dropped once, a copy under two
# labels is dropped altogether since nobody can say which label is right, and files that are not
# whole images are named with the reason.

# %% tags=["nbval-check-output"]
outcomes = cells.outcomes()
print(outcomes.to_string(index=False) if len(outcomes) else "every file was kept as it is")

# %% tags=["hide-input"]
cells.report.head(20)

# %% [markdown]
# ## Decoded once
#
# Decoding is what reading costs, so it is done once: every image is cropped to its central square,
# resized and put into a store, an array on disk that later chapters read. Built again, only files
# that were added or changed are decoded.

# %% tags=["nbval-check-output"]
cells = cells.stored(image_size, chapter.out / "store")
print(f"{len(cells.store):,} images of {cells.store.size}×{cells.store.size} pixels in the store")

# %% [markdown]
# ## Who may see what
#
# The side on which an image falls is computed from its bytes, its class and the seed, and from
# nothing else. A copy cannot straddle two sides, and an image keeps its side when others are added
# or removed, so a generator trained on part of a set has never seen a test image of the whole.

# %% tags=["nbval-check-output"]
parts = split(cells, seed=seed)
if protocol == "disjoint":
    halves = {"generator": 0.35, "classifier": 0.35, "validation": 0.15, "test": 0.15}
    sides = split(cells, halves, seed)
else:
    sides = {"generator": parts["train"], "classifier": parts["train"]}
    sides |= {side: parts[side] for side in ("validation", "test")}
save_splits(sides, chapter.out)
print(pd.Series({side: len(part) for side, part in sides.items()}, name=protocol).to_string())

# %% [markdown]
# ## From bytes to numbers
#
# Networks work on $[-1, 1]$. With $p_i$ a pixel value from 0 to 255 the transformation is
#
# $$\hat{p}_i = \frac{p_i - 127.5}{127.5}. \tag{39}$$
#
# It has an exact inverse on all 256 values, so nothing is lost between disk and network:

# %% tags=["nbval-check-output"]
values = pd.Series(range(256), dtype="uint8").to_numpy()
scaled = to_float(values)
print(f"0 becomes {scaled[0]:+.0f}, 255 becomes {scaled[255]:+.0f}, dtype {scaled.dtype}")
print("all 256 values come back:", bool((to_uint8(scaled) == values).all()))

# %% [markdown]
# ## The reader
#
# The thesis wrote its own reader, because several hundred thousand images do not fit in memory:
# read, shuffle, batch, and keep only a part. Ours does the same. It is a Keras `PyDataset`, so
# `fit` takes it on TensorFlow and on JAX.

# %% tags=["nbval-check-output"]
from cellaug.data.reader import Reader

reader = Reader(sides["generator"], image_size, batch_size, seed=seed, memory_mb=memory_mb)
batch, labels = reader[0]
print(f"{len(reader)} batches an epoch; the first: {batch.shape} {batch.dtype}")
print(f"values from {batch.min():+.2f} to {batch.max():+.2f}; labels {labels.dtype}")

# %% [markdown]
# Asked to balance, it gives every class the same share of an epoch, going round the rare ones
# several times.

# %% tags=["nbval-check-output"]
balanced = Reader(sides["generator"], image_size, batch_size, seed=seed, balance=True)
drawn = pd.Series([label for i in range(len(balanced)) for label in balanced[i][1]])
print(
    drawn.map(dict(enumerate(cells.class_names))).value_counts(sort=False).sort_index().to_string()
)

# %% [markdown]
# ## How fast and how large
#
# Straight from the files, the first epoch decodes every one of them; later ones find as many images
# in memory as the bound allows and decode the rest again. Three bounds: that of this run, room for
# half of the images, and none. The store needs no memory of its own, whatever its size.


# %%
def two_epochs(dataset, memory):
    """Images per second in the first and second epoch, and the MiB held after each batch."""
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
files = replace(sides["generator"], store=None)
whole = len(files) * image_size**2 * 3 / 2**20
bounds = {"files, this run's bound": memory_mb, "files, half": whole / 2, "files, nothing kept": 0}
rates, held = {}, {}
for name, memory in bounds.items():
    rates[name], held[name] = two_epochs(files, memory)
rates["store"], held["store"] = two_epochs(sides["generator"], 0)

# %% mystnb={"figure": {"caption": "Decoded images that the reader holds while it goes through two epochs: from the files under three bounds, and from the store. It never exceeds its bound.", "name": "fig-reader-memory"}} tags=["hide-input"]
figures.memory_curve(pd.DataFrame(held, index=batch_size * (1 + np.arange(2 * len(reader)))))

# %% tags=["hide-input"]
Markdown(
    "| read from | first epoch, images/s | second epoch, images/s | held at the end, MiB |\n"
    "|---|---|---|---|\n"
    + "\n".join(
        f"| {name} | {rates[name][0]:,.0f} | {rates[name][1]:,.0f} | {held[name][-1]:,.1f} |"
        for name in rates
    )
)

# %% [markdown]
# Beside other readers, on real cells: `make bench-data` lets each read the same images in turn, and
# what it measured when it was last recorded follows. Rates mean little on another machine; look at
# the ratios to the fastest of the others that shrinks images as carefully.

# %% tags=["hide-input"]
bench = recorded_benchmark("data")
table = pd.DataFrame(
    {
        f"{size} px": {arm: median(rates) for arm, rates in arms.items()}
        for size, arms in bench["rates"].items()
    }
)
best = table.loc[[arm for arm in bench["antialiased_peers"] if arm in table.index]].max()
building = bench["building"].values()
of_bare = [
    median(ours / bare for ours, bare in zip(arms["files"], arms["bare-batch"], strict=True))
    for arms in bench["rates"].values()
]
Markdown(
    f"Recorded {bench['date']}: {bench['machine']['processor']}, {bench['machine']['cores']} cores, "
    f"{bench['machine']['memory_gib']} GiB, {bench['machine']['system']}, "
    f"TensorFlow {bench['versions']['tensorflow']}; {bench['images']:,} images of PBC in batches "
    f"of {bench['batch']}, medians of {bench['rounds']} epochs, in images per second and as a "
    "multiple of the fastest antialiased peer.\n\n"
    f"| reader | {' | '.join(table)} |\n|---{'|---' * table.shape[1]}|\n"
    + "\n".join(
        f"| {bench['arms'][arm]} | "
        + " | ".join(f"{rate:,.0f} ({rate / best[size]:.1f}×)" for size, rate in row.items())
        + " |"
        for arm, row in table.iterrows()
    )
    + f"\n\nOpening a folder of {bench['many']:,} files took "
    f"{bench['start_up']['first_seconds']:.0f} s the first time and "
    f"{bench['start_up']['second_seconds']:.1f} s the second. Building a store kept "
    f"the cores at least {min(row['cores_busy'] / row['cores_busy_bare'] for row in building):.0%} "
    "as busy as decoding and shrinking alone does, and had "
    f"{min(row['of_bare_decoding'] for row in building):.0%} or more of its speed. Reading files, "
    f"our reader reaches {min(of_bare):.0%} or more of the speed of two "
    "threads that make the same batches and do nothing else, and "
    f"{(table.loc['files'] / table.loc['bare']).min():.0%} or more of that of decoding alone: "
    "shrinking with care takes longer than decoding where the images stay large."
)

# %% mystnb={"figure": {"caption": "Memory of the process above its start while it reads a store of 250,000 images of 256 pixels, as recorded by the benchmark. A reader that kept what it has read would climb.", "name": "fig-benchmark-memory"}} tags=["hide-input"]
curve = pd.Series(dict(bench["memory_mib"]), name="process")
figures.memory_curve(curve, label="memory above the start (MiB)")

# %% [markdown]
# ## What we saw, and what the thesis saw

# %% tags=["hide-input"]
smallest, largest = cells.counts().idxmin(), cells.counts().idxmax()
Markdown(
    "| | thesis | here |\n|---|---|---|\n"
    f"| images | {theirs['gan_images']:,} + {theirs['classifier_images']:,} | {len(cells):,} |\n"
    f"| classes | {theirs['classes']} | {len(cells.class_names)} |\n"
    f"| pixels | {theirs['pixels']} × {theirs['pixels']} | {image_size} × {image_size} |\n"
    f"| smallest class | {min(theirs['table_6']):,} images | {cells.counts()[smallest]:,} "
    f"({smallest}) |\n"
    f"| largest class | {max(theirs['table_5']):,} images | {cells.counts()[largest]:,} "
    f"({largest}) |\n"
    f"| files dropped | not said | {(cells.report.outcome == 'dropped').sum():,} |\n"
    f"| generator's images kept from the classifier | yes | "
    f"{'yes' if protocol == 'disjoint' else 'no: one pool'} |\n"
)

# %% [markdown]
# ## What it means
#
# The thesis could give its generator a quarter of a million labelled images that its classifier
# never saw. Whatever its classifier gained may therefore have come from those images rather than
# from the act of generating. With one pool that way is closed: anything gained in chapter 5 has to
# come out of the same images. No public set names its patients, so a split is by image, and cells
# of one patient may stand on both sides; scores within the set are on the hopeful side.

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
        "sides": {side: len(part) for side, part in sides.items()},
        "reader_images_per_second": {
            name: {"first_epoch": first, "second_epoch": second, "held_mib": held[name][-1]}
            for name, (first, second) in rates.items()
        },
    },
    data=cells.fingerprint,
)
