# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Classifier
#
# This chapter asks the question for which the thesis was written: does a classifier get better when
# generated images are added to its training set? We compare several training sets, with one
# network and the same test images.
#
# **What you will see:** {term}`confusion matrices <confusion matrix>` with and without generated
# cells, the change in each class, {term}`F1` with its spread over seeds, and whether the differences
# are larger than that spread. Three generators take part: the thesis's AC-GAN, the conditional recipe
# of chapter 3, and, where its classes fit the data, the generator `pbc-fine-64` that comes with the
# package.
#
# This chapter repeats the thesis's comparison: few seeds, one number of images. [](record/augmentation.ipynb)
# asks the question of reviewers and laboratories: does it help beyond more copies of the same images, for
# whom, and how much?

# %% [markdown]
# ## Parameters
#
# `classifier` is `"xception"` for Keras's Xception {cite}`chollet2017`, the thesis's choice, or
# `"compact"` for a small network of the same kind that can be trained on a CPU. `ratio` is the number
# of generated images for one real<!-- run --> image of each class; the thesis took 0.5.

# %% tags=["parameters"]
profile = "demo"
seed = 1
image_size = 32
classifier = "compact"
classifier_epochs = 6
classifier_batch_size = 32
classifier_learning_rate = 1.0e-3
classifier_seeds = 2
ratio = 0.5
memory_mb = 512

# %% tags=["hide-input"]
from cellaug import figures, networks
from cellaug.augmentation import augment
from cellaug.book import Chapter, show, thesis
from cellaug.book.claims import f1_sources
from cellaug.data import open_dataset, read_image, stored, to_float
from cellaug.data.class_map import alike
from cellaug.data.reader import Reader
from cellaug.evaluation import classifiers
from cellaug.evaluation.classifiers import points
from cellaug.evaluation.expert import binomial_interval
from cellaug.generators import load_generator

import keras
import numpy as np
import pandas as pd
from IPython.display import Markdown

chapter = Chapter("05_classifier", globals())
figures.use_style()

# %% [markdown]
# ## The training sets
#
# `augment` copies the classifier's training images and adds generated images to each class, half as
# many as there are real<!-- run --> ones, as the thesis did. The command `cellaug augment` does the same. A
# manifest says which images are generated. Like the real<!-- run --> images in chapter 1, each
# set is decoded once.

# %%
splits = chapter.splits()
real = splits["classifier"]
real = real.subset(
    real.table["origin"] == "real"
)  # what was generated before is left out
names = real.class_names
folder = chapter.inputs("03_ac_gan")
sources = {
    "AC-GAN": folder / "ac_gan",
    "recipe": folder / "conditional",
    "shipped": "pbc-fine-64",
}
generators = {arm: load_generator(source) for arm, source in sources.items()}
unknown = {
    arm: [
        name
        for name, ours in alike(names, g.class_names).items()
        if ours not in g.class_names
    ]
    for arm, g in generators.items()
}
seen = {arm: g.seen(splits["test"]) for arm, g in generators.items()}
generators = {
    arm: g for arm, g in generators.items() if not unknown[arm] and not seen[arm]
}

# %% [markdown]
# Not every generator suits every set: it may not know all classes, or have learned from images that
# are for testing here, and images that are far from the cells of the set can only teach a classifier
# something wrong.

# %% tags=["hide-input"]
for arm, missing in unknown.items():
    if missing:
        print(f"{arm}: left out, because it does not know {', '.join(missing)}")
    elif seen[arm]:
        test_images = f"{seen[arm]} of the {len(splits['test'])} test images"
        print(f"{arm}: left out, because it was trained on {test_images}")
    elif generators[arm].caution:
        print(f"{arm}: {generators[arm].caution}")

# %%
manifests, augmented = {}, {}
for arm, generator in generators.items():
    out = chapter.out / arm.lower()
    manifests[arm] = augment(real, generator, ratio, out, seed=seed, size=image_size)
    cells = open_dataset(out, class_names=names)
    augmented[arm] = stored(cells, image_size, chapter.checkpoints / f"{arm} store")

# %% tags=["nbval-check-output"]
counts = manifests["AC-GAN"].groupby(["label", "origin"]).size().unstack()
counts = counts.rename(columns={"real": chapter.real, "synthetic": "generated"})
print(counts.rename_axis(index=None, columns=None).to_string())

# %% [markdown]
# Each training set is one {term}`arm` of the comparison. *Classical* augmentation rotates, mirrors and
# zooms the images while they are read; the thesis rotated and zoomed. The
# [study of augmentation](record/augmentation.ipynb) also changes colours.

# %%
arms = {"original": (real, False), "classical": (real, True)}
arms |= {arm: (cells, False) for arm, cells in augmented.items()}
arms["AC-GAN and classical"] = (augmented["AC-GAN"], True)
show(networks.classical_augmentation)

# %% [markdown]
# ## One network for all
#
# A larger training set would normally mean more training steps. To be fair, every arm takes the same
# number of steps, with the same number of images in total: `classifier_epochs` times the number of
# real<!-- run --> ones. Each arm goes through its own set in random order, then again in another order, until it
# has seen that many. The learning rate falls to zero along a cosine. We use the network after the last
# step and never choose by test results.
#
# Batch normalisation uses running averages when it predicts. After few
# steps they still lag behind the weights, and a network that has learned its training images can fail
# on the same images. So at the end one more pass over training images sets the averages, without
# changing a weight.

# %%
show(classifiers.train_classifier, networks.recalibrate, networks.compact_xception)

# %%
test = Reader(
    splits["test"],
    image_size,
    classifier_batch_size,
    shuffle=False,
    memory_mb=memory_mb,
)
budget = classifier_epochs * len(real)


# %%
def train(arm, run_seed):
    """Train one arm with one seed; returns the network and its answers on the test."""
    cells, classical = arms[arm]
    keras.utils.set_random_seed(run_seed)
    order = next(
        classifiers.endless(
            np.arange(len(cells)), budget, np.random.default_rng(run_seed)
        )
    )
    reader = Reader(
        cells.subset(order),
        image_size,
        classifier_batch_size,
        shuffle=False,
        memory_mb=0,
    )
    model = classifiers.train_classifier(
        reader,
        image_size,
        len(names),
        len(reader),
        kind=classifier,
        augment=classical,
        learning_rate=classifier_learning_rate,
        seed=run_seed,
        title=f"{arm}, seed {run_seed}",
        fit=chapter.fit,
    )
    return model, model.predict(test, verbose=0).argmax(axis=1)


# %%
seeds = [seed + k for k in range(classifier_seeds)]
models, reports = {}, {arm: [] for arm in arms}
for run_seed in seeds:
    for arm in arms:
        models[arm], answers = train(arm, run_seed)
        report = classifiers.classification_report(
            splits["test"].labels, answers, names
        )
        if arm == "original":
            baseline = f"baseline (original images, seed {run_seed})"
            classifiers.require_better_than_guessing(report, baseline)
        reports[arm].append(report)

# %% [markdown]
# A change is measured against the original images. If a network trained on them is no better than
# guessing, the comparison would measure chance, and this chapter ends there.
#
# ## Confusion
#
# Each row is a true class, each column an answer, in per cent of the row, summed over the seeds.
# The interesting mistakes are between neighbours: cells that the bone marrow makes one after the
# other.

# %%
matrices = {
    arm: np.sum([r["confusion"] for r in found], axis=0)
    for arm, found in reports.items()
}

# %% mystnb={"figure": {"caption": "Confusion on the test images after training on the original images. Rows: true class; columns: answer; in per cent of the row, summed over the seeds.", "name": "fig-confusion-original"}}
figures.confusion_matrix(matrices["original"], names)

# %% mystnb={"figure": {"caption": "Confusion on the test images after training on original images and cells of the AC-GAN. Rows: true class; columns: answer; in per cent of the row, summed over the seeds.", "name": "fig-confusion-synthetic"}}
figures.confusion_matrix(matrices["AC-GAN"], names)

# %% [markdown] tags=["new-page"]
# ## The change in each class
#
# The thesis reports its gain class by class, in percentage points of recall. A class with twenty
# test images moves by five points for a single cell; the lines show the spread over the seeds, if
# there are at least three.

# %%
others = [arm for arm in arms if arm != "original"]
changes = {
    arm: pd.DataFrame(
        map(classifiers.per_class_change, reports["original"], reports[arm])
    )
    for arm in others
}

# %% mystnb={"figure": {"caption": "Change of recall in percentage points compared with training on the original images, mean over the seeds; lines, from three seeds on, show one standard deviation.", "name": "fig-class-change"}}
figures.per_class_change(changes)

# %% [markdown]
# ## F1 and its spread
#
# *Weighted* F1 counts a class by its test images, as in the thesis's Table 4. *Macro* F1 counts
# every class alike, so rare cells can change it. A change is the mean over seeds, each seed compared
# with the same seed of the original images.

# %%
METRICS = ("weighted_f1", "macro_f1")
summary = {arm: classifiers.summarise_seeds(found) for arm, found in reports.items()}
differences = {
    arm: {
        metric: classifiers.paired_difference(
            [report[metric] for report in reports["original"]],
            [report[metric] for report in reports[arm]],
        )
        for metric in METRICS
    }
    for arm in others
}


# %% tags=["hide-input"]
def percent(value):
    mean = f"{100 * value['mean']:.2f}"
    few = value["std"] is None or value["n"] < classifiers.FOR_AN_INTERVAL
    return mean if few else f"{mean} ± {100 * value['std']:.2f}"


# %%
pd.DataFrame(
    {
        arm: {"training images": f"{len(cells):,}"}
        | {
            f"{metric.replace('_f1', '')} F1, %": percent(summary[arm][metric])
            for metric in METRICS
        }
        | {
            f"change of {metric.replace('_f1', '')} F1, points": points(
                differences[arm][metric]
            )
            for metric in METRICS
            if arm in differences
        }
        for arm, (cells, _) in arms.items()
    }
).T.fillna("–")

# %% tags=["hide-input"]
one = (
    "One seed: changes are in percentage points, and nothing says how much seeds "
    "differ."
)
spread = (
    f"Means over {len(seeds)} seeds, from {classifiers.FOR_AN_INTERVAL} seeds on with "
    "the standard deviation; changes in percentage points, paired by seed, then with "
    "95 % intervals. Chapter 6 gives no verdict from fewer than "
    f"{classifiers.FOR_A_VERDICT} seeds."
)
Markdown(spread if len(seeds) > 1 else one)

# %% [markdown]
# The same in one figure, beside the thesis and the runs that were recorded on real cells. A gain is a
# line that lies wholly to the right of zero and comes from at least five seeds.

# %% mystnb={"figure": {"caption": "Change of F1 compared with training on the original images, for each training set: this run, runs recorded on PBC, and the thesis, which reports weighted F1 of one run. Lines are 95 % intervals over seeds; a mark without a line has too few seeds for one.", "name": "fig-forest"}} tags=["hide-input"]
drawn = splits["test"].name == "phantom"
figures.forest(f1_sources(differences, drawn))

# %% [markdown]
# ## Do the generated cells show the requested class?
#
# A classifier that has seen only real<!-- run --> cells names the generated ones. We compare how often it
# recognises the requested class with how often it is right on real<!-- run --> test images.

# %%
agreement, intervals = {}, {}
for arm, manifest in manifests.items():
    made = manifest[manifest.origin == "synthetic"]
    images = np.stack(
        [read_image(augmented[arm].root / path, image_size) for path in made.path]
    )
    seen_as = models["original"].predict(to_float(images), verbose=0).argmax(axis=1)
    right = seen_as == made.label.map(names.index)
    agreement[arm] = float(right.mean())
    intervals[arm] = binomial_interval(int(right.sum()), len(right))
accuracy = summary["original"]["accuracy"]["mean"]

# %% [markdown]
# A classifier that always answers with the most frequently requested class would be right this often.
# This is the level of guessing.

# %%
chance = float(made.label.value_counts(normalize=True).max())
pd.Series(
    agreement
    | {
        f"{chapter.real} test images": accuracy,
        "always the most requested class": chance,
    },
    name="fraction named as the requested class",
).mul(100).to_frame().style.format("{:.0f} %")

# %% tags=["hide-input"]
below = [arm for arm, (_, high) in intervals.items() if high < chance]
guessing = [arm for arm, (low, high) in intervals.items() if low <= chance <= high]
said = {
    "worse than guessing, so these cells mostly show other classes than requested, and "
    "their labels teach the classifier errors": below,
    "not shown to be better than guessing, so these labels say little": guessing,
}
Markdown(
    " ".join(f"**{', '.join(arms)}**: {words}." for words, arms in said.items() if arms)
    or "Every generator does better than guessing (exact 95 % intervals)."
)

# %% [markdown]
# ## What we saw, and what the thesis saw

# %% tags=["nbval-check-output"]
theirs = thesis()["classifier"]
chapter.compare(
    {
        "training images": (f"{theirs['training']:,}", f"{len(real):,}"),
        "test images": (f"{theirs['test']:,}", f"{len(splits['test']):,}"),
        "seeds": (1, len(seeds)),
        "training sets compared": (
            f"{theirs['training_sets']} ({theirs['reported']} reported)",
            len(arms),
        ),
    }
)

# %%
rare = real.counts().idxmin()
rarest = int(np.argmin(thesis()["data"]["table_6"]))
equal = " (all are equal)" * (real.counts().nunique() == 1)
gain = 100 * (theirs["weighted_f1_synthetic"] - theirs["weighted_f1_baseline"])
up, down = (sum(sign * c > 0 for c in theirs["per_class_change"]) for sign in (1, -1))
moved = changes["AC-GAN"].mean()
chapter.compare(
    {
        "weighted F1, original, %": (
            f"{100 * theirs['weighted_f1_baseline']:.1f}",
            percent(summary["original"]["weighted_f1"]),
        ),
        "weighted F1, AC-GAN, %": (
            f"{100 * theirs['weighted_f1_synthetic']:.1f}",
            percent(summary["AC-GAN"]["weighted_f1"]),
        ),
        "change, points": (
            f"{gain:+.1f}",
            points(differences["AC-GAN"]["weighted_f1"]),
        ),
        "classes better / worse": (
            f"{up} / {down}",
            f"{(moved > 0).sum()} / {(moved < 0).sum()}",
        ),
        "rarest class, points": (
            f"{theirs['per_class_change'][rarest]:+} (class {rarest})",
            f"{moved[rare]:+.1f} ({rare}){equal}",
        ),
        "classical augmentation, points": (
            "worse, not reported",
            points(differences["classical"]["weighted_f1"]),
        ),
    }
)

# %% [markdown]
# ## What it means
#
# A single training run has a spread of its own, so a gain that is smaller than this spread is not yet
# a gain. The thesis reports one run of each arm. Read the intervals before the means, and the classes
# with few test images last.
#
# **Try it.**
#
# - Set `ratio = 1.0`: as many generated images as others, which the thesis proposes as further work.
# - Set `classifier_seeds = 5`: intervals begin with three seeds, verdicts in chapter 6 with five.
# - In chapter 1 set `protocol = "disjoint"`, so that the generators have images of their own.

# %% tags=["remove-cell"]
chapter.finish(
    {
        "chance": chance,
        "arms": summary,
        "change_against_original": differences,
        "per_class_change": {
            arm: table.mean().to_dict() for arm, table in changes.items()
        },
        "per_class_change_sd": {
            arm: table.std().to_dict() for arm, table in changes.items()
        },
        "seeds": len(seeds),
        "steps": -(-budget // classifier_batch_size),
        "training_images": {arm: len(cells) for arm, (cells, _) in arms.items()},
        "test_images": len(splits["test"]),
        "class_agreement": agreement,
        "class_agreement_intervals": intervals,
        "accuracy_on_real": accuracy,
    }
)
