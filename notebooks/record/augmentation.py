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
# the thesis's comparison; the study on this page asks the question with many paired runs on real cells
# (PBC, 11 classes, 64 pixels).
#
# The study takes many hours, so it is recorded as far as it has come (`cellaug study augmentation
# --profile pbc`). Nothing on this page was run again, and every number and every sentence about results
# is made from the recorded tables.
#
# **You will see:** what is compared and how often it was, and, where runs are finished, five answers
# with their figures, and which cells only one of two classifiers names right.

# %% tags=["hide-input"]
from cellaug import figures
from cellaug.book import result_file
from cellaug.data.published import SETS
from cellaug.evaluation.classifiers import FOR_A_VERDICT
from cellaug.evaluation.selection import REASONS
from cellaug.figures import study as charts
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
first = results.runs.iloc[0]
Markdown(
    f"**{done} of the {planned} classifiers of the plan are finished**, after "
    f"{results.hours:.1f} hours "
    f"of computing ({first['device']}). Each was tested once, at its end, on "
    f"{len(results.test):,} "
    "test images that no generator, selection or choice has seen, from a part of the "
    f"{sum(SETS['pbc'].images.values()):,} images of PBC. Arms are paired by seed, and "
    f"nothing is called better or worse with fewer than {FOR_A_VERDICT} seeds."
)

# %% [markdown]
# ## What is compared
#
# An *arm* is a way to make a training set. *Even* shows every class equally often, *duplicates* has as
# many copies of real images as *synthetic* has generated ones, and *classical* stands for flips, turns,
# zooms and moderate changes of colour. Generated cells fill every class up to the largest, not the scarce
# ones alone; *half* means that every second image that is shown of a class with such cells is generated:
# of all classes but the largest. All arms take the same number of steps and start from the same weights. A *scarcity* says
# how many real images there are: *tail-10* has 10 of each of three rare classes (promyelocyte,
# metamyelocyte, band neutrophil) and all of the others; *each-10* has 10 of every class. With many
# comparisons some seem clear by chance alone; {term}`Holm's correction` allows for this.
#
# How many seeds has each arm so far?

# %% tags=["hide-input"]
found = answers.scores(results)
summary = answers.summary(found)
seeds = summary["n"].unstack("scarcity").dropna(how="all").astype("Int64")
seeds.rename_axis(columns="seeds with")

# %% [markdown]
# The comparisons were written down before the first run, in this plan (open it to read it):

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
# would be as good as the missing real images; below zero its score is lower than without it.

# %% tags=["hide-input"]
room = answers.room(results)
shown(
    "Room and what is recovered of it",
    room.drop(columns=["score", "ceiling"], errors="ignore").dropna(axis=1, how="all"),
    lambda rows: rows.set_index(["scarcity", "arm"]).round(3),
)

# %% [markdown]
# Which classes gain? A class that is asked for more often is also named more often, so look at the
# whole row of changes, not at the best one.

# %% mystnb={"figure": {"caption": "Change of each class's recall when half of what is shown of a class is generated (every class but the largest, not the scarce ones alone), against the same classifier without generated cells, in percentage points: means over seeds, from three seeds on with 95 % intervals over seeds and test images. Nothing counts as changed with fewer than five seeds, or where the interval includes zero.", "name": "fig-augmentation-classes"}} tags=["hide-input"]
pairs = results.contrasts
by_class = pairs[(pairs["class"] != "") & (pairs["tested_on"] == answers.OWN)]
half = by_class["arm"].eq("half synthetic, classical") & by_class["against"].eq(
    "even, classical"
)
shown("Changes by class", by_class[half], charts.change_by_class)

# %% [markdown]
# What is a gain worth? It could also have been had with more real images. The *worth* is the number
# of further real images of each class that would have brought the same, read off the curve of the arm
# without synthesis. An arm that scores less than this curve does anywhere cannot be read off it.

# %% mystnb={"figure": {"caption": "Worth of generated cells: the number of further real images of each (scarce) class that would bring the same gain in macro F1, with 95 % intervals over seeds. Below zero the arm does worse than the real images alone. What lies beyond an end of the curve is drawn at that end.", "name": "fig-augmentation-worth"}} tags=["hide-input"]
shown("Worth in real images", answers.worths(results), charts.worth_in_images)

# %% [markdown]
# Which cells does only one of the two classifiers name right? We look for the test images on which they
# differ most, counted over seeds. The images are PBC's (Acevedo et al. 2020, CC BY 4.0) and are read
# from its archive, so this figure is there only where the set is.

# %% mystnb={"figure": {"caption": "Real test cells that only one of two classifiers names right, with 10 real images of each scarce class: above, those that only the classifier with generated cells gets right; below, those that only the one without gets right. Under each cell its class, then the name that the other classifier gives it. The largest differences over seeds, not selected by eye.", "name": "fig-augmentation-cells"}} tags=["hide-input"]
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

# %% [markdown]
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

# %% mystnb={"figure": {"caption": "Macro F1 against the number of generated images, in per cent of the real ones, with 25 real images of each class. Marks are means over seeds, lines 95 % intervals. A curve that falls says that more is worse.", "name": "fig-augmentation-ratio"}} tags=["hide-input"]
shown(
    "Ratios",
    answers.ratios(results),
    charts.score_curves,
    xlabel="generated images (% of the real ones)",
)

# %% [markdown]
# Does a generator that looks better help more? To find out, measures of the generators' cells beside
# real ones are rank-correlated with the gain of the arm that used them, over all runs.

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
# or for six times as many steps. We compare macro F1, its standard deviation and the number of seeds.

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

# %% [markdown]
# These are cells of one laboratory, with its scarce classes chosen by us. `cellaug advise DATA` does
# the same study, small, on a set of your own, and says which arm helps there.
