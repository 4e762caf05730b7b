# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Discussion
#
# What did the thesis claim, what did this run find, and what may we conclude? Every figure below is
# read from what the chapters recorded; none is typed in.
#
# **What you will see:** the claims of the thesis with its numbers and ours, the same for results that
# were recorded earlier on real cells, and a conclusion that follows from the intervals, not from what
# we hoped.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "demo"
seed = 1

# %% tags=["hide-input"]
import json

from cellaug.book import CHAPTERS, Chapter, recorded_results, thesis
from cellaug.evaluation import score_confusion
from studies import ladder, weights
from studies.common import verdicts

import pandas as pd
from IPython.display import Markdown

chapter = Chapter("06_discussion", globals())

# %%
ours = {
    name: json.loads((chapter.inputs(name) / "metrics.json").read_text())["metrics"]
    for name in CHAPTERS[:-1]
}
recorded = {name: result["chapters"] for name, result in recorded_results().items()}
theirs = thesis()

# %% [markdown]
# ## The claims, one by one
#
# For each claim a function takes the chapters' figures and returns ours. The same functions are
# applied to this run and to every recorded one, so all columns mean the same.


# %%
def with_interval(difference):
    """A change in percentage points with its 95 % interval, as text."""
    mean = f"{100 * difference['mean']:+.2f} points"
    if difference["n"] < 2:
        return f"{mean}, one seed"
    low, high = 100 * difference["low"], 100 * difference["high"]
    return f"{mean} ({low:+.2f} to {high:+.2f}), {difference['n']} seeds"


# %% tags=["hide-input"]
def imbalance(run):
    return f"{run['01_data']['imbalance']:.1f} : 1 in {run['01_data']['classes']} classes"


def balance_of_losses(run):
    gan = run["02_vanilla_gan"]
    return f"D(x) is {gan['d_real']:.2f} for real, {gan['d_fake']:.2f} for generated images"


def told_apart(run):
    gan = run["02_vanilla_gan"]
    who, score = ("person", gan["person"]) if gan["person"] else ("machine", None)
    recall = score["recall"] if score else gan["machine_recall"]
    specificity = score["specificity"] if score else gan["machine_specificity"]
    return f"{who}: recall {recall['value']:.2f}, specificity {specificity['value']:.2f}"


def variety(run):
    gan = run["02_vanilla_gan"]
    return f"{gan['diversity_generated'] / gan['diversity_real']:.2f} of real"


def collapse(run):
    return f"{run['03_ac_gan']['diversity_of_real']['AC-GAN']:.2f} of the variety of real cells"


def conditioning(run):
    found = run["05_classifier"]
    return (
        f"{100 * found['class_agreement']['AC-GAN']:.0f} % recognised as the requested class "
        f"(real cells: {100 * found['accuracy_on_real']:.0f} %)"
    )


def smoothness(run):
    largest = run["04_latent_space"]["interpolation_largest_over_mean_step"]
    return f"largest step {largest:.1f} times the mean"


def reconstruction(run):
    found = run["04_latent_space"]
    return (
        f"{found['reconstruction_error_network']:.1f} grey levels; optimised "
        f"{found['reconstruction_error_optimised']:.1f}"
    )


def gain(run, arm="AC-GAN", metric="weighted_f1"):
    return with_interval(run["05_classifier"]["change_against_original"][arm][metric])


# %% tags=["hide-input", "nbval-check-output"]
expert, f1 = score_confusion(theirs["expert"]["confusion"]), theirs["classifier"]
their_gain = 100 * (f1["weighted_f1_synthetic"] - f1["weighted_f1_baseline"])
their_recall, their_specificity = expert["recall"]["value"], expert["specificity"]["value"]
their_imbalance = max(theirs["data"]["table_6"]) / min(theirs["data"]["table_6"])
claims = [
    ("Classes are uneven (4.1)", f"{their_imbalance:.1f} : 1 in {theirs['data']['classes']} classes",
     imbalance),
    ("The losses reach a balance (5.1)",
     f"around epoch {theirs['vanilla_gan']['equilibrium_epoch']}", balance_of_losses),
    ("Generated cells are hard to tell from real ones (5.1)",
     f"technologist: recall {their_recall:.2f}, specificity {their_specificity:.2f}", told_apart),
    ("Generated cells are varied (5.1)", "by eye", variety),
    ("The AC-GAN collapses within classes (5.2)", "three groups among nine cells", collapse),
    ("The AC-GAN generates the requested class (6)", "by eye", conditioning),
    ("Interpolation is smooth (5.3)", "by eye, with small jumps", smoothness),
    ("A network finds latent vectors of real cells (5.3)", "by eye", reconstruction),
    ("Generated cells raise weighted F1 (5.4)", f"{their_gain:+.1f} points, one seed", gain),
    ("Classical augmentation lowers it (5.4)", "not reported",
     lambda run: gain(run, "classical")),
    ("Both together (5.4)", "not reported", lambda run: gain(run, "AC-GAN and classical")),
    ("Rare classes gain most: macro F1 (6)", "not reported",
     lambda run: gain(run, metric="macro_f1")),
]  # fmt: skip
print(f"{len(claims)} claims of the thesis are compared with what was measured")

# %% tags=["hide-input"]
table = pd.DataFrame(
    [
        {"claim of the thesis": claim, "thesis": value, "this run": measure(ours)}
        | {f"recorded: {name}": measure(run) for name, run in recorded.items()}
        for claim, value, measure in claims
    ]
)
table.style.hide(axis="index").set_properties(**{"text-align": "left", "vertical-align": "top"})

# %% [markdown]
# The recorded columns are what earlier runs of these chapters wrote down; they were not run again for
# this book. The page [](recorded_results.md) has their dates and settings. Which commit made each of
# them, and have the chapters changed since?

# %% tags=["hide-input"]
results = pd.DataFrame.from_dict(recorded_results(), orient="index")
pd.DataFrame(
    {
        "recorded": results["date"],
        "commit": results["commit"].str[:7],
        "chapters changed since": results["changed"].map({True: "yes", False: "no"}),
    }
)

# %% [markdown]
# ## What may be concluded
#
# A change counts as found if its 95 % interval, paired over the seeds, does not include zero. One seed
# gives no interval, and then we conclude nothing.


# %%
def verdict(difference):
    """A sentence on what the interval of a paired difference allows to say."""
    said = with_interval(difference)
    if difference["n"] < 2:
        return f"We cannot judge from one seed: {said}."
    if difference["low"] > 0:
        return f"Confirmed: {said}; the 95 % interval lies above zero."
    if difference["high"] < 0:
        return f"Refuted: {said}; the change is negative."
    return f"We cannot say: {said}; the 95 % interval includes zero."


def conclusions(run):
    """Of every arm with generated cells: what may be said of weighted and of macro F1."""
    changes = run["05_classifier"]["change_against_original"]
    return pd.DataFrame(
        {
            arm: {
                "raises weighted F1?": verdict(change["weighted_f1"]),
                "raises macro F1 (every class alike)?": verdict(change["macro_f1"]),
            }
            for arm, change in changes.items()
            if arm != "classical"
        }
    ).T


# %% tags=["hide-input"]
drawn = ours["01_data"]["phantom"]
Markdown(f"This run, profile *{profile}*, on {'drawn phantom cells' if drawn else 'real cells'}:")

# %%
conclusions(ours)

# %% [markdown]
# The same for runs that were recorded on real cells:

# %%
pd.concat({name: conclusions(run) for name, run in recorded.items()})

# %% [markdown]
# How much of the variety of real cells within a class does each generator keep?

# %%
kept = {"this run": ours} | {f"recorded: {name}": run for name, run in recorded.items()}
pd.DataFrame(
    {name: run["03_ac_gan"]["diversity_of_real"] for name, run in kept.items()}
).style.format("{:.0%}")

# %% [markdown]
# ## Beyond the thesis
#
# The recipe of chapter 3 was compared with the thesis's own on real cells ([](record/ladder.ipynb)),
# both trained on the same number of real images, and once more after long training
# ([](record/weights.ipynb)). The distance is relative to that between halves of the real images.

# %% tags=["hide-input", "nbval-check-output"]
study, _ = ladder.recorded("pbc")
long_runs = weights.recorded("pbc-fine-64")
targets = verdicts(long_runs)
distances = ladder.table(study).groupby("arm")["Fréchet distance"].agg(["mean", "std", "count"])
beyond = distances.loc[[study["rungs"][0], study["rungs"][-1]]]
beyond.loc["long training"] = [*targets.loc["Fréchet distance", ["mean", "sd", "seeds"]]]
beyond.index = ["thesis", "recipe of chapter 3", "the same after long training"]
beyond.columns = ["Fréchet distance (mean)", "standard deviation", "seeds"]
beyond.insert(0, "images seen (about)", [study["images_asked"]] * 2 + [long_runs[0]["images_seen"]])
beyond.round(1).astype({"seeds": int})

# %% tags=["hide-input", "nbval-check-output"]
met = targets["met"] == targets["seeds"]
missed, undecided = (
    targets.index[targets["missed"] > 0],
    targets.index[~met & (targets["missed"] == 0)],
)
Markdown(
    f"After long training the recipe meets {met.sum()} of {len(targets)} targets with every seed. "
    f"Missed with at least one seed: {', '.join(missed) or 'none'}. Undecided with at least one seed "
    f"and missed with none, because the interval includes the target's end: "
    f"{', '.join(undecided) or 'none'}."
)

# %% [markdown]
# ## Limitations

# %% tags=["hide-input"]
Markdown(f"- **Patients.** {ours['01_data']['patients']}")

# %% [markdown]
# - **Size.** The thesis had half a million images and weeks of training; a CPU has minutes. A claim that
#   fails here at small scale may hold at large scale; the profile `thesis` is there to try.
# - **The grid.** 5 × 5 kernels at stride 2 cover pixels unequally often {cite}`odena2016`. This is the
#   thesis's architecture, so it stays in its reproduction.
# - **Distance.** The chapters compare generators with real cells by grey levels. This is simple, but
#   misses much of what a haematologist looks at. The pages on record also measure in features of blood
#   cells, with an extractor trained on the cells of one laboratory. `cellaug evaluate` says where it
#   does not know other cells, and learns features from these if there are enough.
# - **Not tried here:** as many generated images as real ones (`ratio: 1.0`) and classifiers other than
#   the Xception family; the thesis proposes both. The Wasserstein loss {cite}`arjovsky2017`, its third
#   proposal, is a variant on the page [](record/ladder.ipynb).
#
# **Try it.**
#
# - Run `cellaug run --profile pbc` on real cells and compare its columns with the recorded ones.
# - Run the smoke profile with `--set classifier_seeds=3` and read how the verdicts change.

# %% tags=["remove-cell"]
chapter.finish({claim: measure(ours) for claim, _, measure in claims})
