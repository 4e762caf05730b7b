# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Discussion
#
# What did the thesis claim, what did this run find, and what may we conclude? Our numbers below are read
# from what the chapters and studies recorded, those of the thesis from one list of its numbers.
#
# **What you will see:** the claims of the thesis with its numbers, ours, and those that were recorded
# earlier on real cells, with verdicts; the answer in one figure; and a conclusion that follows
# from the intervals, not from what we hoped.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "demo"
seed = 1

# %% tags=["hide-input"]
import json

from cellaug import figures
from cellaug.book import (
    CHAPTERS,
    Chapter,
    recorded_results,
    result_file,
    show,
    thesis,
)
from cellaug.book.claims import claims, claims_table, f1_sources, real_runs, rules
from cellaug.evaluation.classifiers import FOR_A_VERDICT, points, verdict
from cellaug.study import answers
from studies import ladder, weights
from studies.common import measured_in, verdicts

import pandas as pd
from IPython.display import Markdown

chapter = Chapter("06_discussion", globals())
figures.use_style()

# %%
ours = {
    name: json.loads((chapter.inputs(name) / "metrics.json").read_text())["metrics"]
    for name in CHAPTERS[:-1]
}
recorded = real_runs()
drawn = ours["01_data"]["phantom"]

# %% [markdown]
# ## The claims, one by one
#
# For each claim a function takes the numbers that the chapters recorded and returns ours, and another one
# judges them. The same functions are applied to this run and to every run that was recorded on real
# cells. A recorded run may come from earlier versions of the chapters: the second table says so. Verdicts
# are on real cells.

# %% tags=["hide-input"]
table = claims_table(ours)
table.style.hide(axis="index").set_properties(
    **{"text-align": "left", "vertical-align": "top"}
)

# %% tags=["hide-input"]
Markdown(rules())

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
# A change counts as shown if its 95 % interval, paired over the seeds, does not include zero. Fewer
# than three seeds give no interval, because two that happen to agree would make it far too narrow, and
# fewer than five give no verdict.

# %%
show(verdict)

# %% mystnb={"figure": {"caption": "Change of F1 compared with training on the original images, for each training set: the thesis, which reports weighted F1 of one run, this run, and runs recorded on PBC. Lines are 95 % intervals over seeds; a mark without a line has too few seeds for one.", "name": "fig-answer"}} tags=["hide-input"]
figures.forest(f1_sources(ours["05_classifier"]["change_against_original"], drawn))


# %%
def conclusions(run):
    """Of every arm with generated cells: what may be said of both F1 scores."""
    changes = run["05_classifier"]["change_against_original"]
    return pd.DataFrame(
        {
            (arm, metric.replace("_f1", " F1")): {
                "points": points(found),
                "shown": verdict(found),
            }
            for arm, change in changes.items()
            if arm != "classical"
            for metric, found in change.items()
        }
    ).T


# %% tags=["hide-input"]
Markdown(
    f"This run, profile *{profile}*, on "
    f"{'drawn phantom cells' if drawn else 'real cells'}:"
)

# %%
conclusions(ours)

# %% [markdown]
# The same for runs that were recorded on real cells:

# %%
pd.concat({name: conclusions(run) for name, run in recorded.items()})

# %% tags=["hide-input"]
few = [
    name
    for name, run in recorded.items()
    if run["05_classifier"]["seeds"] < FOR_A_VERDICT
]
Markdown(
    f"Too few seeds for a verdict: *{', '.join(few)}*. What such a run shows is a "
    "range that a larger "
    "study may narrow, not an answer."
    if few
    else "Every recorded run has seeds enough for a verdict."
)

# %% [markdown]
# How varied are the generated cells of one class, compared with the real cells that the generator was
# trained on? The table has the mean distance between two cells of one class (diversity), in per cent of
# the same distance between those real cells.

# %%
kept = {"this run": ours} | {f"recorded: {name}": run for name, run in recorded.items()}
pd.DataFrame(
    {name: run["03_ac_gan"]["diversity_of_real"] for name, run in kept.items()}
).mul(100).style.format("{:.0f} %", na_rep="–")

# %% [markdown]
# ## Beyond the thesis
#
# The recipe of chapter 3 was compared with the thesis's own on real cells ([](record/ladder.ipynb)),
# both with the same number of images shown. The last row has the same changes, but also wider
# networks, a learning rate that falls, and many more images shown ([](record/weights.ipynb)): its
# gain cannot be put down to long training alone. The distance is relative to that between halves of the
# real images.

# %% tags=["hide-input", "nbval-check-output"]
study, _ = ladder.recorded("pbc")
long_runs = weights.recorded("pbc-fine-64")
targets = verdicts(long_runs)
distances = (
    ladder.table(study).groupby("arm")["Fréchet distance"].agg(["mean", "std", "count"])
)
beyond = distances.loc[[study["rungs"][0], study["rungs"][-1]]]
beyond.loc["long training"] = [
    *targets.loc["Fréchet distance", ["mean", "sd", "seeds"]]
]
wider = max(
    long_runs[0]["recipe"][depth] / narrow for depth, narrow in study["options"].items()
)
beyond.index = [
    "thesis",
    "all changes (recipe of chapter 3)",
    f"the same changes, networks up to {wider:g} times as wide, falling learning rate, "
    "long training",
]
beyond.columns = ["Fréchet distance (mean)", "standard deviation", "seeds"]
beyond.insert(
    0,
    "images shown, repeats counted (about)",
    [study["images_asked"]] * 2 + [long_runs[0]["images_seen"]],
)
beyond.round(1).astype({"seeds": int})

# %% tags=["hide-input", "nbval-check-output"]
extractors = {study["runs"][0]["settings"]["extractor"], long_runs[0]["extractor"]}
Markdown(" ".join(f"*{measured_in(digest)}*" for digest in sorted(extractors)))

# %% tags=["hide-input", "nbval-check-output"]
met = targets["met"] == targets["seeds"]
missed, undecided = (
    targets.index[targets["missed"] > 0],
    targets.index[~met & (targets["missed"] == 0)],
)
Markdown(
    f"In all {len(long_runs)} long trainings the recipe meets {met.sum()} of "
    f"{len(targets)} targets. "
    f"Missed in at least one: {', '.join(missed) or 'none'}. Undecided in at least one "
    f"and missed in none, because the interval includes the target's end: "
    f"{', '.join(undecided) or 'none'}."
    + f" Fewer than {FOR_A_VERDICT} trainings are no verdict."
    * (len(long_runs) < FOR_A_VERDICT)
)

# %% [markdown]
# ## Does it help?
#
# The thesis's question has a study of its own, with paired runs and the control that the thesis lacks:
# more copies of the same real images ([](record/augmentation.ipynb)). What it has found so far, in macro
# F1 on real test cells, in percentage points:

# %% tags=["hide-input", "nbval-check-output"]
found = answers.read_results(result_file("augmentation") / "pbc")
done, planned = found.done
Markdown(
    f"{done} of {planned} classifiers are finished. "
    + answers.in_words(answers.of_question(found, 1))
)

# %% [markdown]
# What a laboratory may conclude, scarcity by scarcity:

# %% tags=["hide-input", "nbval-check-output"]
Markdown(answers.advice(found))

# %% [markdown]
# ## Limitations

# %% tags=["hide-input"]
theirs = thesis()["data"]
Markdown(
    f"- **Patients.** {ours['01_data']['patients']}\n"
    f"- **Size.** The thesis had {theirs['gan_images']:,} images for its generators "
    f"and {theirs['classifier_images']:,} for its classifier; this run has "
    f"{ours['01_data']['images']:,} for both. A claim that fails here at small scale "
    "may hold at large scale; the profile `thesis` is there to try."
)

# %% [markdown]
# - **The grid.** 5 × 5 kernels at stride 2 cover pixels unequally often {cite}`odena2016`. This is the
#   thesis's architecture, so it stays in its reproduction.
# - **Distance.** The chapters compare generators with real cells by grey levels. This is simple, but
#   misses much of what a haematologist looks at. The pages on record also measure in features of blood
#   cells, with an extractor trained on the cells of one laboratory. `cellaug evaluate` says where it
#   does not know other cells, and learns features from these if there are enough.
# - **Not tried in the chapters:** as many generated images as real ones (`ratio: 1.0`) and classifiers
#   other than the Xception family; the thesis proposes both, and the plan of the
#   [study](record/augmentation.ipynb) has both. The Wasserstein loss {cite}`arjovsky2017`, its third
#   proposal, is a variant on the page [](record/ladder.ipynb).
#
# **Try it.**
#
# - Run `cellaug run --profile pbc` on real cells and compare its columns with the recorded ones.
# - Run it again with `--set classifier_seeds=5`: from three seeds on the answer's figure has
#   lines, from five on there are verdicts.

# %% tags=["remove-cell"]
chapter.finish({claim.text: claim.found(ours) for claim in claims()})
