# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Ablation study
#
# Which of the changes between the thesis's recipe and that of chapter 3 made the difference? An
# *ablation study* answers this. It leads from the thesis's recipe to the current one, one change at a
# time. Every step is shown the same number of training images (repeats counted) and evaluated in the same
# way.
#
# The study takes longer than a chapter may, so it was recorded on real cells (`cellaug study ladder
# --profile pbc`). Nothing on this page was run again.
#
# **You will see:** what each step changes, how close its cells come to real ones, one generated cell
# of each class, the measures that the last step does not reach yet, and two remedies for a net of
# dots.

# %% tags=["hide-input"]
from cellaug import figures
from studies import ladder
from studies.common import measured_in, verdicts

import pandas as pd
from IPython.display import Markdown

figures.use_style()
pd.set_option("display.max_colwidth", None)
study, cells = ladder.recorded("pbc")
runs, steps = ladder.table(study), study["rungs"]
arms = list(runs["arm"].unique())

# %% tags=["nbval-check-output", "hide-input"]
Markdown(
    f"*Recorded {study['date']}: {study['data']}, {study['image_size']} px, "
    f"{len(study['class_names'])} classes; {len(runs)} runs with about "
    f"{study['images_asked']:,} images shown "
    f"each (repeats counted), evaluated on {study['test_images']:,} test images; "
    f"{study['options']['generator_depth']} channels at 4×4 pixels in the generator "
    "and "
    f"{study['options']['discriminator_depth']} after the discriminator's first "
    "convolution. "
    f"{study['device']}. {measured_in(study['runs'][0]['settings']['extractor'])}*"
)

# %% [markdown]
# ## Steps and variants
#
# Each step keeps the changes of all steps before it. One step changes more than one thing: it replaces
# the two-stage training by a single conditional GAN, and with it the networks. A variant changes one
# thing of the last step. One variant, the linear layer, changes the last step that still has a frozen
# generator; compare it with *real symmetries*.

# %% tags=["nbval-check-output", "hide-input"]
changes = (
    ladder.STEPS | {ladder.LINEAR: {"last_activation": "linear"}} | ladder.VARIANTS
)
pd.DataFrame(
    {
        "kind": ["step" if arm in steps else "variant" for arm in arms],
        "changes": [
            ", ".join(f"{k} = {v}" for k, v in changes[arm].items()) or "–"
            for arm in arms
        ],
        "seeds": runs["arm"].value_counts()[arms].to_numpy(),
    },
    index=arms,
)

# %% [markdown]
# ## Measures
#
# Every value is relative to real cells: we measure one half of the real test images against the other
# half and divide. For coverage, recall and diversity 1 is as good as real; the Fréchet distance is 1
# at best. Class accuracy is that of a classifier on generated cells minus its accuracy on real ones,
# in percentage points. Grid texture is the energy at the frequencies of a pixel grid relative to the
# energy around them, at the period where it differs most from real cells.

# %% mystnb={"figure": {"caption": "The recorded ablation study on real cells. Numbered steps (blue dots) add up: each has the changes of all above it. Variants (orange triangles) change one thing of the last step; the linear layer changes the last step with a frozen generator. A mark is the mean over the seeds, a line their range; the dashed line shows real cells. Distance and grid texture have logarithmic axes.", "name": "fig-ladder"}} tags=["hide-input"]
figures.ladder(runs, len(steps))

# %% mystnb={"figure": {"caption": "One generated cell of each class (column) by each step and variant (row) of the recorded study: first seed, first latent vector of the class, not selected. All cells are generated, by networks trained on PBC (Acevedo et al. 2020, CC BY 4.0).", "name": "fig-ladder-cells"}} tags=["hide-input"]
figures.image_rows(dict(zip(arms, cells, strict=True)), study["class_names"])

# %% [markdown]
# The first step, the thesis's recipe, and the last, which has all changes (the recipe of chapter 3): mean
# and standard deviation over their seeds.

# %% tags=["nbval-check-output"]
ends = runs[runs["arm"].isin([steps[0], steps[-1]])].drop(columns="seed")
ends = ends.replace({"arm": {steps[-1]: "all changes (recipe of chapter 3)"}})
ends = ends.groupby("arm", sort=False).agg(["mean", "std"]).round(2)
ends.rename(columns={"std": "sd"}).T

# %% [markdown]
# How much did each step change the Fréchet distance? The last column divides by the step before.

# %% tags=["nbval-check-output"]
mean = runs.groupby("arm", sort=False)["Fréchet distance"].mean()
by_step = mean[steps].to_frame()
by_step["relative to the step before"] = mean[steps] / mean[steps].shift()
by_step.round(2)

# %% tags=["nbval-check-output", "hide-input"]
factor = by_step["relative to the step before"].dropna().sort_values()
better = [arm for arm in arms if arm not in steps and mean[arm] < mean[steps[-1]]]
single = int(runs["arm"].value_counts().eq(1).sum())
Markdown(
    "In these runs the distance fell most with "
    f"*{factor.index[0]}*. After these steps it was no smaller: "
    f"{', '.join(f'*{arm}*' for arm in factor.index[factor >= 1]) or 'none'}. Variants "
    "with a smaller "
    "distance than the last step: "
    f"{', '.join(f'*{arm}*' for arm in better) or 'none'}. {single} of "
    f"the {len(arms)} recipes were run once, so small differences between them mean "
    "nothing."
)

# %% [markdown]
# ## The last step and its targets
#
# The last step over its seeds: for each measure, the worst class (or grid period), its target, and in
# how many of the seeds the target was met or missed. In the others it is undecided, because the
# interval includes an end of the target.

# %% tags=["nbval-check-output"]
verdicts(run for run in study["runs"] if run["arm"] == steps[-1]).round(2)

# %% [markdown]
# ## The net of dots
#
# Larger cells of the shipped weights show a faint net of dots. Transposed convolutions are known for it
# {cite}`odena2016`; our generator has one at every size but the last. Remedies were tried at 128 pixels on
# the last step: *resize-convolutions throughout*; a discriminator that *filters before halving*
# {cite}`zhang2019`, so that it does not see some pixels better than others; both; and *even kernels*, which
# add the same to every pixel where the layer before is even {cite}`sugawara2018`. These runs are short, so
# no cell here is like a real one. Look at the texture.

# %% tags=["nbval-check-output", "hide-input"]
remedies, larger_cells = ladder.recorded("pbc-128")
tried = ladder.table(remedies).replace({"arm": {steps[-1]: "last step"}})
seen = {run["images_seen"] for run in remedies["runs"]}
Markdown(
    f"*Recorded {remedies['date']}: {remedies['data']}, {remedies['image_size']} px, "
    f"{len(tried)} runs on {max(seen):,} images each; {remedies['device']}. "
    f"{measured_in(remedies['runs'][0]['settings']['extractor'])}*"
)

# %% mystnb={"figure": {"caption": "One generated cell of each class (column) by the last step and with each remedy (row) at 128 pixels: first seed, first latent vector of the class, not selected. All cells are generated, by networks trained on PBC (Acevedo et al. 2020, CC BY 4.0).", "name": "fig-ladder-net"}} tags=["hide-input"]
rows = dict(zip(tried["arm"].unique(), larger_cells, strict=True))
figures.image_rows(rows, remedies["class_names"])

# %% tags=["nbval-check-output"]
judged = ["Fréchet distance", "grid texture", "coverage", "class accuracy, points"]
by_arm = tried.groupby("arm", sort=False)[judged]
by_arm.agg(["mean", "min", "max"]).T.round(2)

# %% tags=["nbval-check-output", "hide-input"]
middle = by_arm.mean()
grid, near = middle["grid texture"], middle["Fréchet distance"]
calm, close = (grid - 1).abs().idxmin(), near.idxmin()
within = [name for name in grid.index if abs(grid[name] - 1) <= 0.1]
Markdown(
    f"Grid texture comes nearest to that of real cells with *{calm}* "
    f"({grid[calm]:.2f}, the last step {grid['last step']:.2f}); within 10 % of it: "
    f"{', '.join(f'*{name}*' for name in within) or 'none'}. The distance is least "
    f"with *{close}* ({near[close]:.1f}, the last step {near['last step']:.1f}), whose "
    f"grid texture is {grid[close]:.2f}. With "
    f"{tried['arm'].value_counts().min()} or {tried['arm'].value_counts().max()} seeds "
    "each this is a hint."
)
