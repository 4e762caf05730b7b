# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Does it help?
#
# Does a classifier get better when generated cells join its training images? Better than what one
# gets without any generator, from flips, turns and more copies of the same images? Chapter 5 repeats
# the thesis's comparison; this study asks the question with paired runs on real cells (PBC,
# 11 classes, 64 pixels).
#
# The study takes many hours, so it is recorded as far as it has come (`cellaug study augmentation
# --profile pbc`). Nothing here was run again, and every number and every sentence about results
# is made from the recorded tables.
#
# **You will see:** what is compared and how often it was, and, where runs are finished, five answers
# with their figures, which cells only one of two classifiers classifies correctly, and every comparison
# and every arm as a table.

# %% tags=["hide-input"]
from cellaug import figures
from cellaug.book import result_file
from cellaug.data.published import SETS
from cellaug.evaluation.classifiers import FOR_A_VERDICT
from cellaug.evaluation.selection import REASONS
from cellaug.figures import study as charts
from cellaug.generators import read_generator
from cellaug.study import answers

import pandas as pd
from IPython.display import Markdown

figures.use_style()
pd.set_option("display.max_colwidth", None)
results = answers.read_results(result_file("augmentation") / "pbc")
done, planned = results.done


# %% tags=["hide-input"]
def shown(what, rows, draw, **options):
    """A figure of these rows, or a sentence that says what is not there yet."""
    return (
        draw(rows, **options)
        if len(rows)
        else Markdown(f"*{what}: nothing to show from the runs that are finished.*")
    )


# %% tags=["nbval-check-output", "hide-input"]
each_run = results.runs.drop_duplicates("run")
machines = each_run["device"].value_counts()
Markdown(
    f"**{done} of the {planned} classifiers of the plan are finished**, after "
    f"{results.hours:.1f} hours of computing ("
    + "; ".join(f"{n} on {device}" for device, n in machines.items())
    + f"; {each_run['commit'].nunique()} versions of the code). Each was tested once, "
    f"at its end, on {len(results.test):,} "
    "test images that no generator, selection or choice has seen, from a part of the "
    f"{sum(SETS['pbc'].images.values()):,} images of PBC. The set does not say which "
    "images are of one patient, so intervals are over images. Arms are paired by seed, "
    f"and nothing is called better or worse with fewer than {FOR_A_VERDICT} seeds."
)

# %% [markdown]
# ## What is compared
#
# An *arm* is a way to make a training set. All arms take the same number of steps and start from the same
# weights. Their names say what they do:
#
# - *classical*: flips, turns, zooms and moderate changes of colour, applied to every training image
# - *even*: every class is shown equally often, so images of small classes come more often
# - *duplicates*: copies of real images fill every class up to the largest
# - *synthetic*: generated cells fill every class up to the largest; *selected*: only good ones do
# - *half*: every class is shown equally often, and half of what is shown of a class is generated, in all
#   classes but the largest; *half … of scarce*: in the scarce classes alone
#
# A *scarcity* says how many real images there are: *tail-10* has 10 of each of three scarce classes
# (promyelocyte, metamyelocyte, band neutrophil) and all of the others; *each-10* has 10 of every class;
# *half* has half of all. With many comparisons some seem clear by chance alone; {term}`Holm's correction`
# allows for this, for all comparisons of the plan at once.
#
# How many seeds has each arm so far?

# %% tags=["hide-input"]
found = answers.scores(results)
summary = answers.summary(found)
seeds = summary["n"].unstack("scarcity").dropna(how="all").astype("Int64")
seeds.rename_axis(columns="seeds with")

# %% [markdown]
# The comparisons were written down before the first run, but for those that the plan calls added. Order
# and numbers of seeds were changed later, too. The plan (open it to read it):

# %% tags=["hide-cell"]
print(results.plan.text)

# %% [markdown]
# ## 1. Does synthetic data help beyond augmentation and duplicates?

# %% tags=["nbval-check-output", "hide-input"]
Markdown(answers.in_words(answers.of_question(results, 1)))

# %% mystnb={"figure": {"caption": "Macro F1 on real test images, by arm and by the number of real training images, as the axis or the title says. Marks are means over seeds, lines their 95 % intervals where there are at least three seeds; marks of one number stand side by side.", "name": "fig-augmentation-curves"}} tags=["hide-input"]
planned_arms = {arm for c in results.plan.contrasts for arm in (c.arm, c.against)}
curves = answers.numbered(results, summary)
curves = curves[curves["arm"].isin([*planned_arms, "classical"])]
shown(
    "Scores by number of images",
    curves,
    charts.score_curves,
    xlabel={f: f"real images {f}" for f in curves.get("family", ())},
)

# %% [markdown]
# How much room is there? The *room* is what the missing images cost: the score with all images less
# that of the best arm without synthesis, chosen on validation images. An arm that recovers all of it
# would be as good as the missing real images; below zero its score is lower than without it. All
# classifiers here are trained for the same, rather few steps; a longer training changes the room, too.
# Intervals over five seeds are somewhat too narrow.

# %% tags=["hide-input"]
room = answers.room(results)
shown(
    "Room and what is recovered of it",
    room.drop(columns=["score", "ceiling"], errors="ignore").dropna(axis=1, how="all"),
    lambda rows: rows.set_index(["scarcity", "arm"]).round(2),
)

# %% tags=["nbval-check-output", "hide-input"]
families = answers.curves(results.plan).values()
scarce = {name for each in families for name, n in each.items() if 10 <= n <= 25}
judged = room[room["n"] >= FOR_A_VERDICT] if len(room) else room
judged = judged[judged["scarcity"].isin(scarce)] if len(judged) else judged
won = (
    judged[(judged["recovered"] >= 1 / 3) & (judged["low"] > 0)] if len(judged) else ()
)
best = judged.loc[judged["recovered"].idxmax()] if len(judged) else None
Markdown(
    "The aim was an arm with generated cells that recovers at least a third of the "
    "room where classes have 10 to 25 images, with an interval that leaves out zero. "
    + ("**It is reached** by " + ", ".join(f"*{row.arm}* at {row.scarcity}" for row in
       won.itertuples()) + "." if len(won) else "**It is not reached so far.**")
    + (f" Of the arms with {FOR_A_VERDICT} seeds or more the best "
       f"{'recovers' if best['recovered'] > 0 else 'recovers nothing but loses'} "
       f"{abs(100 * best['recovered']):.0f} % of it (interval of what is recovered: "
       f"{100 * best['low']:.0f} to {100 * best['high']:.0f} %): *{best['arm']}* at "
       f"{best['scarcity']}.".replace("-", "−").replace("tail−", "tail-")
       if best is not None else "")
)  # fmt: skip

# %% [markdown]
# Which classes gain? A class that is asked for more often is also named more often, so look at the
# whole row of changes, not at the best one.

# %% mystnb={"figure": {"caption": "Change of each class's recall when half of what is shown of a class is generated, in all classes but the largest, against the same classifier without generated cells, in percentage points: means over seeds, from three seeds on with 95 % intervals over seeds and test images. Nothing counts as changed with fewer than five seeds, or where the interval includes zero; the intervals are not corrected for the number of classes.", "name": "fig-augmentation-classes"}} tags=["hide-input"]
pairs = results.contrasts
by_class = pairs[(pairs["class"] != "") & (pairs["tested_on"] == answers.OWN)]
half = by_class["arm"].eq("half synthetic, classical") & by_class["against"].eq(
    "even, classical"
)
shown("Changes by class", by_class[half], charts.change_by_class)

# %% [markdown]
# What is a gain worth? It could also have been had with more real images. The *worth* is the number
# of further real images of each class that would have brought the same, read off the curve of the arm
# without synthesis. An arm that scores less than this curve does anywhere is worth less than none.

# %% tags=["nbval-check-output", "hide-input"]
worths = answers.worths(results)
below = worths[worths["images"] == -float("inf")] if len(worths) else worths
named = [f"*{row.arm}* at {row.scarcity} ({row.n} seeds)" for row in below.itertuples()]
Markdown("Below the whole curve: " + (", ".join(named) or "no arm that was measured."))

# %% mystnb={"figure": {"caption": "Worth of generated cells: the number of further real images of each (scarce) class that would bring the same gain in macro F1, with 95 % intervals over seeds, which are too narrow for three to five seeds. Below zero the arm does worse than the real images alone. Values outside the measured range are drawn at its edge.", "name": "fig-augmentation-worth"}} tags=["hide-input"]
shown("Worth in real images", worths.drop(below.index), charts.worth_in_images)

# %% [markdown]
# Which cells does only one of the two classifiers classify correctly? We look for the test images on which they
# differ most, counted over seeds. The images are PBC's (Acevedo et al. 2020, CC BY 4.0) and are read
# from its archive, so this figure is there only where the set is.

# %% mystnb={"figure": {"caption": "Real test cells that only one of two classifiers classifies correctly, with 10 real images of each scarce class: above, those that only the classifier with generated cells gets right; below, those that only the one without gets right. Under each cell its class, then the name that the other classifier gives it. The largest differences over seeds, not selected by eye.", "name": "fig-augmentation-cells"}} tags=["hide-input"]
differing = answers.only_one(
    results, "half synthetic, classical", "even, classical", "tail-10"
)
cells = answers.cells_of(results)
missing = Markdown("*The set is not at hand, so its images cannot be shown here.*")
shown(
    "Cells that one classifier names right",
    differing,
    charts.differing_cells,
    cells=cells,
) if cells else missing

# %% [markdown] tags=["new-page"]
# ## 2. Was the thesis's gain augmentation or extra data?
#
# The thesis's generator had seen 250,000 labelled images that its classifier never saw. Here a generator
# is trained on the classifier's own half of the images (*one pool*) or on the other half (*disjoint*),
# and a further arm simply gets those other real images.

# %% tags=["nbval-check-output", "hide-input"]
Markdown(answers.in_words(answers.of_question(results, 2)))

# %% [markdown]
# ## 3. Do selection, the ratio and the quality of a generator matter?

# %% tags=["nbval-check-output", "hide-input"]
Markdown(answers.in_words(answers.of_question(results, 3)))

# %% [markdown]
# A selection keeps a generated cell if a classifier of real cells sees the class that was asked for, it
# is no outlier, and it is no copy. How many were refused, and why? Classes that lack no images got none.

# %% tags=["hide-input"]
selection = results.selection.pivot_table(
    index="class", columns="reason", values="images", aggfunc="sum", fill_value=0
)
share = 100 * selection.div(selection.sum(axis=1), axis=0)
share = share.rename(columns=REASONS).rename_axis(columns="% of images")
shown("Selected and refused cells", share.round(1), pd.DataFrame)

# %% tags=["nbval-check-output", "hide-input"]
by_seed = results.selection.pivot_table(
    index=["scarcity", "seed", "class"], columns="reason", values="images", fill_value=0
)
kept = (by_seed["kept"] / by_seed.sum(axis=1)).sort_values()
(where, seed, kind), least = kept.index[0], kept.iloc[0]
Markdown(
    f"Generators differ by seed: the least was kept at {where} of the {kind}s of seed "
    f"{seed}, {100 * least:.0f} %; the median of all is {100 * kept.median():.0f} %. "
    "The arms without a selection are trained on what is refused here, too."
)

# %% mystnb={"figure": {"caption": "Macro F1 against the number of generated images, in per cent of the real ones, with 25 real images of each class. Marks are means over seeds, lines 95 % intervals. A curve that falls says that more is worse.", "name": "fig-augmentation-ratio"}} tags=["hide-input"]
shown(
    "Ratios",
    answers.ratios(results),
    charts.score_curves,
    xlabel="generated images (% of the real ones)",
)

# %% [markdown]
# How good are the generators of the study? Their measures beside real validation cells, for the classes
# that are scarce; all but the kernel distance are 1 at best (a diversity may be larger).

# %% tags=["hide-input"]
numbers = each_run.select_dtypes("number")
measured = [name for name in numbers if name.startswith("generator_")]
with_one = each_run[each_run["generator_images"] > 0]
with_one = with_one.drop_duplicates(["scarcity", "seed", "generator_kernel_distance"])
quality = with_one.groupby(["scarcity", "generator"])[measured].mean()
words = {name: name.removeprefix("generator_").replace("_", " ") for name in measured}
words["generator_images"] = "images shown"
shown("Generators", quality.rename(columns=words).round(2), pd.DataFrame)

# %% tags=["nbval-check-output", "hide-input"]
shipped = read_generator("pbc-fine-64").card["training"]["images_seen"]
few = int(with_one["generator_images"].max())
Markdown(
    f"These generators were shown {few:,} images each, because every run has its own; "
    f"the shipped one was shown {shipped:,}, {shipped / few:.0f} times as many. A "
    "better generator might give another answer."
)

# %% [markdown]
# Does a generator that looks better help more? To find out, these measures are rank-correlated with the
# gain of the arms that used the generator.

# %% tags=["hide-input"]
shown(
    "Quality of a generator and its gain",
    answers.quality_and_gain(results).round(2),
    pd.DataFrame,
)

# %% [markdown]
# ## 4. Does it help on another laboratory's cells, and does the classifier matter?

# %% tags=["nbval-check-output", "hide-input"]
elsewhere = [name for name in results.runs["tested_on"].unique()
             if name not in (answers.OWN, answers.VALIDATION)]  # fmt: skip
Markdown(
    " ".join(f"**{name}:** " + answers.in_words(answers.of_question(results, 1, name))
             for name in elsewhere)
    or "No other laboratory's cells were at hand when the study was recorded. "
    "`cellaug study "
    "augmentation --profile pbc --external SET` measures the finished classifiers on "
    "a set of yours."
)  # fmt: skip

# %% [markdown]
# The plan has arms that are also trained with group normalisation, with Xception (the thesis's network)
# or for six times as many steps. The last shows how good this classifier can become: every other number
# on this page is of a short training, so that many runs are possible. We compare macro F1, its standard
# deviation and the number of seeds.

# %% tags=["hide-input"]
shown("Normalisation", answers.by_classifier(results, "norm").round(3), pd.DataFrame)

# %% tags=["hide-input"]
shown("Networks", answers.by_classifier(results, "network").round(3), pd.DataFrame)

# %% tags=["hide-input"]
shown("Steps", answers.by_classifier(results, "steps").round(3), pd.DataFrame)

# %% [markdown]
# ## Can its probabilities be trusted?
#
# If a classifier says 90 %, it should be right in nine of ten such cells. The calibration error is the
# mean difference.

# %% mystnb={"figure": {"caption": "Expected calibration error (0 is perfect) of each arm at the scarcity tail-10, before and after temperature scaling on validation images: means over seeds, with 95 % intervals where there are at least three.", "name": "fig-augmentation-calibration"}} tags=["hide-input"]
shown(
    "Calibration", answers.calibration_of(results, "tail-10"), charts.calibration_errors
)

# %% [markdown]
# ## 5. What should a lab do on Monday?

# %% tags=["nbval-check-output", "hide-input"]
Markdown(answers.advice(results))

# %% [markdown] tags=["new-page"]
# ## Every comparison and every arm
#
# Differences are in percentage points of macro F1, in the three taxonomies of the plan; *p* by sign flips
# and *d* of the eleven fine classes; *needed* is how many seeds would show a gain of 0.7 points, what the
# thesis saw, if only seeds differed.

# %% tags=["nbval-check-output", "hide-input"]
own = pairs[(pairs["class"] == "") & (pairs["tested_on"] == answers.OWN)]
keys = ["question", "scarcity", "arm", "against"]
each = [answers.points(row).split(",")[0] for row in own.to_dict("records")]
said = own.assign(points=each)
said = said.pivot(index=keys, columns="taxonomy", values="points")
fine = own[own["taxonomy"] == answers.FINE].set_index(keys)
words = {"n": "seeds", "p": "p", "adjusted": "p, Holm", "d": "d", "needed": "needed"}
said.join(fine[[*words]].rename(columns=words).round(2))

# %% [markdown]
# Every arm: means over seeds; *sd* is the standard deviation of macro F1 over the seeds (open it).

# %% tags=["hide-cell"]
columns = {"macro F1": ("macro_f1",), "weighted F1": ("weighted_f1",)}
columns |= {"accuracy": ("accuracy",), "balanced accuracy": ("balanced_accuracy",)}
columns |= {f"macro F1, {kind}": ("macro_f1", kind) for kind in results.plan.taxonomies}
means = {
    word: answers.summary(answers.scores(results, *which))["mean"]
    for word, which in columns.items()
}
every = pd.DataFrame(means).assign(sd=summary["sd"], seeds=summary["n"].astype(int))
every.round(3)

# %% [markdown]
# These are cells of one laboratory, with its scarce classes chosen by us. `cellaug advise DATA` does
# the same study, small, on a set of your own, and says which arm helps there.
