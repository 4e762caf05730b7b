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
# What did the thesis claim, what did this run find, and what may be concluded? Every figure below
# is read from what the chapters recorded; none is typed in.
#
# **What you will see:** the claims of the thesis with its numbers and ours, the same for results
# recorded earlier on real cells, and a conclusion that follows from the intervals and not from the
# hope.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "demo"
seed = 1

# %% tags=["hide-input"]
import json

from cellaug.book import CHAPTERS, Chapter, recorded_results, thesis
from cellaug.evaluation import score_confusion
from cellaug.study import ladder, weights

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
# A function for each claim takes the chapters' figures and returns ours. The same functions are
# applied to this run and to every recorded one, so the columns cannot drift apart.


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
    return f"D gives real {gan['d_real']:.2f}, generated {gan['d_fake']:.2f}"


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
    found = run["03_ac_gan"]["diversity_of_real"]
    return "; ".join(f"{arm} {value:.2f}" for arm, value in found.items()) + " of real"


def conditioning(run):
    classes = run["05_classifier"]
    return (
        f"{100 * classes['class_agreement']:.0f} % of generated cells named as ordered "
        f"({classes['synthetic_from']}; real {100 * classes['accuracy_on_real']:.0f} %)"
    )


def smoothness(run):
    largest = run["04_latent_space"]["interpolation_largest_over_mean_step"]
    return f"largest step {largest:.1f} × the mean"


def reconstruction(run):
    found = run["04_latent_space"]
    return (
        f"{found['reconstruction_error_network']:.1f} grey levels; optimised "
        f"{found['reconstruction_error_optimised']:.1f}"
    )


def gain(run, arm="synthetic", metric="weighted_f1"):
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
    ("The AC-GAN makes the class that is ordered (6)", "by eye", conditioning),
    ("Interpolation is smooth (5.3)", "by eye, with small jumps", smoothness),
    ("A network finds latent vectors of real cells (5.3)", "by eye", reconstruction),
    ("Generated cells raise weighted F1 (5.4)", f"{their_gain:+.1f} points, one seed", gain),
    ("Classical augmentation lowers it (5.4)", "not reported",
     lambda run: gain(run, "classical")),
    ("Both together (5.4)", "not reported", lambda run: gain(run, "both")),
    ("Rare classes gain most: macro F1 (6)", "not reported",
     lambda run: gain(run, metric="macro_f1")),
]  # fmt: skip
print(f"{len(claims)} claims of the thesis are held against what was measured")

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
# The recorded columns are what earlier runs of these chapters wrote down, with their date and
# settings on the page of recorded results; they were not run again for this report.

# %% [markdown]
# ## What may be concluded
#
# A change counts as found if its 95 % interval, paired over the seeds, leaves out zero. One seed
# gives no interval, and then nothing is concluded.


# %%
def verdict(difference):
    """What the interval of a paired difference allows to say."""
    if difference["n"] < 2:
        return "cannot be judged from one seed"
    if difference["low"] > 0:
        return "is confirmed"
    if difference["high"] < 0:
        return "is refuted: the change is negative"
    return "is neither confirmed nor refuted: the interval holds zero"


def conclusion(run, where):
    change = run["05_classifier"]["change_against_original"]["synthetic"]
    collapsed = run["03_ac_gan"]["diversity_of_real"]
    arms = {
        "ac_gan": "AC-GAN",
        "ac_gan_linear": "AC-GAN, linear",
        "cgan": "conditional GAN",
        "conditional": "conditional recipe",
    }
    kept = ", ".join(f"{100 * share:.0f} % {arm}" for arm, share in collapsed.items())
    return (
        f"**{where}.** That cells from the {arms[run['05_classifier']['synthetic_from']]} raise "
        "weighted F1 "
        f"{verdict(change['weighted_f1'])} ({with_interval(change['weighted_f1'])}). For macro F1, "
        f"where rare classes count in full, it {verdict(change['macro_f1'])} "
        f"({with_interval(change['macro_f1'])}). Of the variety of real cells within a class they "
        f"keep: {kept}."
    )


# %% tags=["hide-input"]
drawn = ours["01_data"]["phantom"]
here = f"This run, profile {profile}, on {'drawn phantom cells' if drawn else 'real cells'}"
Markdown(
    "\n\n".join(
        [conclusion(ours, here)]
        + [conclusion(run, f"Recorded, profile {name}") for name, run in recorded.items()]
    )
)

# %% [markdown]
# ## Beyond the thesis
#
# The recipe of chapter 3 was recorded against the thesis's own, with as many real images seen by
# both, and with as many as a long run allows.

# %% tags=["hide-input"]
climbed, _ = ladder.recorded("pbc")
distances = ladder.table(climbed).groupby("arm")["Fréchet distance"].agg(["mean", "std", "count"])
old, new = (distances.loc[climbed["rungs"][k]] for k in (0, -1))
long_runs = weights.recorded("pbc-fine-64")["runs"]
long_table = ladder.verdicts({"runs": long_runs}, "pbc-fine-64")
met = long_table["met"] == long_table["seeds"]
Markdown(
    f"Fréchet distance to real cells, as a multiple of that between real halves: thesis "
    f"{old['mean']:,.0f} ± {old['std']:,.0f} ({old['count']:.0f} seeds), recipe of chapter 3 "
    f"{new['mean']:,.0f} ± {new['std']:,.0f} ({new['count']:.0f} seeds), after about "
    f"{climbed['images_asked']:,} images each; after {long_runs[0]['images_seen']:,} the recipe is at "
    f"{long_table['mean']['Fréchet distance']:.1f}"
    + (f" ± {long_table['sd']['Fréchet distance']:.1f}" if len(long_runs) > 1 else "")
    + f" ({len(long_runs)} seeds). Of the {len(long_table)} targets there it meets {met.sum()} with "
    f"every seed. Missed with one seed or more: {', '.join(long_table.index[~met]) or 'none'}."
)

# %% [markdown]
# ## What stands in the way
#
# - **Patients.** No public set says which cells come from one patient. Splits are by image, and
#   scores within a set are on the hopeful side.
# - **Size.** The thesis had half a million images and weeks of training; a CPU has minutes. Where a
#   claim fails here at small scale, it may hold at large scale, and the profile `thesis` is there
#   to try.
# - **The grid.** 5 × 5 kernels at stride 2 cover pixels unequally often {cite}`odena2016`. It is
#   the thesis's architecture and stays in its reproduction.
# - **Distance.** The chapters' own generators are compared with real cells on grey levels. That is
#   plain and stated, but blind to much of what a haematologist looks at; the ladder and the weights'
#   cards measure in features of blood cells too, whose extractor knows one laboratory.
# - **Not tried here:** generated images as many as real ones (`ratio: 1.0`) and classifiers other
#   than the Xception family; the thesis proposes both. The Wasserstein loss {cite}`arjovsky2017`,
#   its third proposal, is a side arm of chapter 3's ladder, with clipped weights and with a penalty.

# %% tags=["remove-cell"]
chapter.finish({claim: measure(ours) for claim, _, measure in claims})
