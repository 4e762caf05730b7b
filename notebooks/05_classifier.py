# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Classifier
#
# Now the question that the thesis was written for: does a classifier get better when its training
# images are joined by generated ones? Four training sets, one network, the same test images.
#
# **What you will see:** confusion matrices with and without generated cells, the change in each
# class, F1 with its spread over seeds, and whether the differences are larger than that spread.

# %% [markdown]
# ## Parameters
#
# `classifier` is `"xception"` for Keras's Xception {cite}`chollet2017`, the thesis's choice, or
# `"compact"` for a small network of the same kind that trains on a CPU. `synthetic_from` names the
# generator of chapter 3: `"ac_gan"` (the thesis's), `"ac_gan_linear"`, `"cgan"` or `"conditional"`.

# %% tags=["parameters"]
profile = "demo"
seed = 1
image_size = 32
classifier = "compact"
classifier_epochs = 6
classifier_batch_size = 32
classifier_learning_rate = 1.0e-3
classifier_seeds = 2
synthetic_from = "ac_gan"
ratio = 0.5
memory_mb = 512

# %% tags=["hide-input"]
from cellaug import figures, networks
from cellaug.augmentation import augment, load_generator
from cellaug.book import Chapter, thesis
from cellaug.data import open_dataset, read_image, to_float
from cellaug.data.reader import Reader
from cellaug.evaluation import classification
from cellaug.training import fit, use_xla

import keras
import numpy as np
import pandas as pd
from IPython.display import Markdown

chapter = Chapter("05_classifier", globals())
figures.use_style()

# %% [markdown]
# ## The training sets
#
# `augment` copies the classifier's training images and adds to each class half as many generated
# ones, as the thesis did. It is the same function as the command `cellaug augment`; a manifest
# tells real and synthetic apart.

# %%
sides = chapter.splits()
names = sides["classifier"].class_names
generator = load_generator(chapter.inputs("03_ac_gan") / synthetic_from)
folder = chapter.out / "augmented"
manifest = augment(sides["classifier"], generator, ratio, folder, seed=seed)

# %% tags=["nbval-check-output"]
counts = manifest.groupby(["label", "origin"]).size().unstack()
print(counts.rename_axis(index=None, columns=None).to_string())

# %%
augmented = open_dataset(folder, class_names=names)
classical = {"original": False, "classical": True, "synthetic": False, "both": True}
training = {
    arm: augmented if arm in ("synthetic", "both") else sides["classifier"] for arm in classical
}

# %% [markdown]
# ## One network, four times
#
# An arm that has more images would also take more steps. To compare the images and not the effort,
# every arm sees about the same number of images in all: fewer epochs where the set is larger. The
# learning rate falls to zero along a cosine, the last epoch counts, and nothing is chosen by
# looking at test images.

# %%
test = Reader(sides["test"], image_size, classifier_batch_size, shuffle=False, memory_mb=memory_mb)
budget = classifier_epochs * len(sides["classifier"])


# %%
def train(arm, run_seed):
    """Train one arm with one seed; returns the predicted class of every test image."""
    keras.utils.set_random_seed(run_seed)
    reader = Reader(
        training[arm], image_size, classifier_batch_size, seed=run_seed, memory_mb=memory_mb
    )
    epochs = max(1, round(budget / len(training[arm])))
    model = networks.classifier(
        classifier, image_size, len(names), augment=classical[arm], seed=run_seed
    )
    steps = epochs * len(reader)
    rate = keras.optimizers.schedules.CosineDecay(classifier_learning_rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=use_xla())
    fit(
        model,
        reader,
        epochs,
        checkpoint=chapter.checkpoints / f"{arm}-{run_seed}",
        settings=chapter.parameters | {"data": training[arm].fingerprint},
        restart=True,
        label=f"{arm}, seed {run_seed}",
    )
    return model, model.predict(test, verbose=0).argmax(axis=1)


# %%
seeds = [seed + k for k in range(classifier_seeds)]
truth = sides["test"].labels
models, predicted = {}, {arm: [] for arm in classical}
for run_seed in seeds:
    for arm in classical:
        models[arm], answer = train(arm, run_seed)
        predicted[arm].append(answer)

# %%
reports = {
    arm: [classification.classification_report(truth, answer, names) for answer in answers]
    for arm, answers in predicted.items()
}
summary = {arm: classification.summarise_seeds(found) for arm, found in reports.items()}

# %% [markdown]
# ## Confusion
#
# Each row is a true class, each column an answer, in per cent of the row, summed over the seeds.
# The interesting mistakes are between neighbours: cells that the bone marrow makes one after the
# other.

# %%
matrices = {
    arm: np.sum([report["confusion"] for report in found], axis=0) for arm, found in reports.items()
}

# %% mystnb={"figure": {"caption": "Confusion on the test images, trained on the original images.", "name": "fig-confusion-original"}}
figures.confusion_matrix(matrices["original"], names)

# %% mystnb={"figure": {"caption": "Confusion on the test images, trained on original and generated images.", "name": "fig-confusion-synthetic"}}
figures.confusion_matrix(matrices["synthetic"], names)

# %% [markdown]
# ## The change in each class
#
# The thesis reports its gain class by class, in percentage points of recall. A class with twenty
# test images moves by five points for a single cell; the bars carry their spread over the seeds.

# %%
changes = {
    arm: pd.DataFrame(
        [
            classification.per_class_change(base, other)
            for base, other in zip(reports["original"], reports[arm], strict=True)
        ]
    )
    for arm in ("classical", "synthetic", "both")
}

# %% mystnb={"figure": {"caption": "Change of recall in percentage points against training on the original images, mean over the seeds; lines show one standard deviation.", "name": "fig-class-change"}}
figures.per_class_change(
    pd.DataFrame({arm: table.mean() for arm, table in changes.items()}),
    spread=pd.DataFrame({arm: table.std() for arm, table in changes.items()}),
)

# %% [markdown]
# ## F1, with its spread
#
# *Weighted* F1 counts a class by its test images, as in the thesis's Table 4; *macro* F1 counts
# every class alike, so it is the one that rare cells can move.

# %%
differences = {
    arm: {
        metric: classification.paired_difference(
            [report[metric] for report in reports["original"]],
            [report[metric] for report in reports[arm]],
        )
        for metric in ("weighted_f1", "macro_f1")
    }
    for arm in changes
}


# %% tags=["hide-input"]
def interval(difference):
    if difference["n"] < 2:
        return f"{100 * difference['mean']:+.2f} (one seed, no interval)"
    return (
        f"{100 * difference['mean']:+.2f} "
        f"({100 * difference['low']:+.2f} to {100 * difference['high']:+.2f})"
    )


def spread(value):
    mean = f"{100 * value['mean']:.2f}"
    return mean if value["std"] is None else f"{mean} ± {100 * value['std']:.2f}"


Markdown(
    "| arm | training images | weighted F1, % | macro F1, % | change of weighted F1, points "
    "| change of macro F1, points |\n|---|---|---|---|---|---|\n"
    + "\n".join(
        f"| {arm} | {len(training[arm]):,} | {spread(found['weighted_f1'])} "
        f"| {spread(found['macro_f1'])} | "
        + (
            " | ".join(interval(differences[arm][m]) for m in ("weighted_f1", "macro_f1"))
            if arm in differences
            else " | "
        )
        + " |"
        for arm, found in summary.items()
    )
    + f"\n\nMean ± standard deviation over {len(seeds)} seeds; changes are paired by seed, with "
    "95 % intervals."
)

# %% [markdown]
# ## Do the generated cells show what was ordered?
#
# A classifier that has seen only real cells is asked to name the generated ones. How often it says
# the class that was ordered, against how often it is right on real test images:

# %%
synthetic = manifest[manifest.origin == "synthetic"]
ordered = np.array([names.index(label) for label in synthetic.label])
made = np.stack([read_image(folder / file, image_size) for file in synthetic.file])
seen_as = models["original"].predict(to_float(made), verbose=0).argmax(axis=1)
agreement = float((seen_as == ordered).mean())
accuracy = summary["original"]["accuracy"]["mean"]

# %% tags=["hide-input"]
Markdown(
    f"It names the ordered class for **{100 * agreement:.0f} %** of {len(ordered):,} generated "
    f"cells; on real test images it is right in {100 * accuracy:.0f} %, and guessing would be "
    f"{100 / len(names):.0f} %."
)

# %% [markdown]
# ## What we saw, and what the thesis saw

# %% tags=["hide-input"]
theirs = thesis()["classifier"]
their_gain = 100 * (theirs["weighted_f1_synthetic"] - theirs["weighted_f1_baseline"])
rare = sides["classifier"].counts().idxmin()
mean_change = changes["synthetic"].mean()
Markdown(
    "| | thesis | here |\n|---|---|---|\n"
    f"| training images | {theirs['training']:,} | {len(sides['classifier']):,} |\n"
    f"| seeds | 1 | {len(seeds)} |\n"
    f"| weighted F1, original | {100 * theirs['weighted_f1_baseline']:.1f} % | "
    f"{spread(summary['original']['weighted_f1'])} % |\n"
    f"| weighted F1, synthetic | {100 * theirs['weighted_f1_synthetic']:.1f} % | "
    f"{spread(summary['synthetic']['weighted_f1'])} % |\n"
    f"| change | {their_gain:+.1f} points | {interval(differences['synthetic']['weighted_f1'])} |\n"
    f"| classes up / down | {sum(c > 0 for c in theirs['per_class_change'])} / "
    f"{sum(c < 0 for c in theirs['per_class_change'])} | "
    f"{(mean_change > 0).sum()} / {(mean_change < 0).sum()} |\n"
    f"| rarest class | +5 points (class 18) | {mean_change[rare]:+.1f} points ({rare}) |\n"
    f"| classical augmentation | worse, not reported | "
    f"{interval(differences['classical']['weighted_f1'])} |\n"
)

# %% [markdown]
# ## What it means
#
# One training run has a spread of its own: a gain smaller than that spread is not yet a gain. The
# thesis reports one run of each arm. Read the intervals above before the means, and the classes
# with few test images last.

# %% tags=["remove-cell"]
chapter.finish(
    {
        "arms": summary,
        "change_against_original": differences,
        "per_class_change_synthetic": mean_change.to_dict(),
        "per_class_change_sd_synthetic": changes["synthetic"].std().to_dict(),
        "seeds": len(seeds),
        "synthetic_from": synthetic_from,
        "training_images": {arm: len(found) for arm, found in training.items()},
        "test_images": len(sides["test"]),
        "class_agreement": agreement,
        "accuracy_on_real": accuracy,
    }
)
