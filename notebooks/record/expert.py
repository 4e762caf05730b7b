# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # What an expert should look at
#
# A haematologist sees more in a cell than a distance in grey levels. This page shows where to look in
# generated cells, what is wrong in ours, class by class, and asks why a classifier recognises some
# generated cells more often than real ones. All cells on this page are generated, by the generators
# that come with the package and learned from PBC {cite}`acevedo2020`.
#
# What is said here about cells was seen by the authors, who are no haematologists. Please tell us
# where you disagree.

# %% tags=["hide-input"]
from cellaug import figures
from cellaug.data.published import ACQUISITION
from cellaug.evaluation.scorecard import tidy
from cellaug.generators import load_generator

import pandas as pd
from IPython.display import Markdown

figures.use_style()
pd.set_option("display.max_colwidth", None)
generator = load_generator("pbc-fine-128")
names = generator.class_names

# %% tags=["hide-input"]
Markdown(ACQUISITION["pbc"])

# %% [markdown]
# ## Five places to look at
#
# 1. **Chromatin.** Is it clumped as the class asks, or is it only dark noise? Are there nucleoli?
# 2. **Granules.** Are they single and of one size, or a wash of colour?
# 3. **Rim.** Does the cytoplasm end in one line, or is it torn, or does it run into a neighbour?
# 4. **Red cells.** Are they round, whole, and paler in the middle?
# 5. **Background.** Is it clear, as on a good slide, or stained where nothing lies?
#
# The cells below were *chosen* from the first six of each class because a fault can be seen in them;
# most cells show less. The first one shows none of these faults.

# %% tags=["hide-input"]
chosen = {
    ("myelocyte", 1): (
        "myelocyte: none of these faults",
        [("chromatin", (0.5, 0.5), (0.5, 0.13)), ("rim", (0.33, 0.56), (0.12, 0.9))],
    ),
    ("promyelocyte", 1): (
        "promyelocyte: its stain leaves the cell",
        [
            ("rim", (0.4, 0.2), (0.72, 0.13)),
            ("granules", (0.45, 0.55), (0.16, 0.86)),
        ],
    ),
    ("segmented neutrophil", 4): (
        "segmented neutrophil: a lobe dissolves",
        [
            ("chromatin", (0.45, 0.27), (0.2, 0.1)),
            ("rim", (0.3, 0.56), (0.16, 0.9)),
        ],
    ),
    ("eosinophil", 3): (
        "eosinophil: granules have run together",
        [
            ("granules", (0.64, 0.6), (0.5, 0.92)),
            ("red cells", (0.88, 0.38), (0.8, 0.1)),
        ],
    ),
    ("monocyte", 2): (
        "monocyte: cytoplasm apart from the cell",
        [
            ("rim", (0.35, 0.47), (0.14, 0.12)),
            ("red cells", (0.84, 0.86), (0.5, 0.93)),
        ],
    ),
    ("erythroblast", 5): (
        "erythroblast: a smear of stain",
        [
            ("background", (0.28, 0.2), (0.5, 0.08)),
            ("red cells", (0.73, 0.45), (0.75, 0.9)),
        ],
    ),
}
drawn = generator.generate(names, 6).reshape(len(names), 6, 128, 128, 3)
cells = [
    (caption, drawn[names.index(name), number], marks)
    for (name, number), (caption, marks) in chosen.items()
]

# %% mystnb={"figure": {"caption": "Generated cells of 128 px, chosen to show what is right and what is wrong, with arrows to what an expert should look at. From the shipped generator that was trained on PBC (Acevedo et al. 2020, CC BY 4.0).", "name": "fig-look-at"}} tags=["hide-input"]
figures.marked(cells)

# %% [markdown]
# ## What is wrong, class by class
#
# Seen by eye in the generated cells of 64, 128 and 256 px on the page
# [](weights.ipynb), which are not chosen.

# %% tags=["hide-input", "nbval-check-output"]
seen = {
    "promyelocyte": "Nucleus and cytoplasm run together; granules are noise, nucleoli "
    "are missing. Many cells have a coloured background.",
    "myelocyte": "The most convincing of the immature cells. Chromatin is finer and "
    "more "
    "even than it should be; primary granules are missing.",
    "metamyelocyte": "The dent in the nucleus is often shallow or missing: by its "
    "shape "
    "the cell is then a myelocyte.",
    "band neutrophil": "The nucleus may close to a ring, or part into lobes as in the "
    "next class; its width is uneven.",
    "segmented neutrophil": "Often two lobes, seldom more. The thin bridges between "
    "lobes "
    "are missing, and lobes may dissolve.",
    "eosinophil": "The colour is right, but the granules flow into one wash.",
    "basophil": "Granules cover everything, the outline is ragged, and the shape of "
    "the "
    "nucleus cannot be seen.",
    "monocyte": "Vacuoles are rare; pieces of cytoplasm lie apart from the cell; the "
    "nucleus is seldom folded.",
    "lymphocyte": "Often a dark round nucleus with no cytoplasm around it.",
    "erythroblast": "The chromatin has no coarse clumps, and the background is the "
    "worst "
    "of all classes.",
    "platelet": "Size and colour are right. Clumps and giant platelets are missing.",
}
assert list(seen) == list(names)
pd.Series(seen, name="seen").rename_axis("class").to_frame()

# %% [markdown]
# ## Recognised more often than real cells
#
# A classifier that was trained on real cells names generated cells and real test cells. In some
# classes it recognises the *generated* cells more often.

# %% tags=["hide-input"]
table = tidy(load_generator("pbc-fine-64").card["fidelity"]["table"])
agreement = table.query("level == 'class' and measure == 'agreement'").set_index(
    "group"
)
agreement = agreement.loc[list(names)].reset_index(names="name")
real = agreement[["name"]].assign(
    kind="real",
    value=agreement["real"],
    low=agreement["real_low"],
    high=agreement["real_high"],
)
both = pd.concat(
    [agreement[["name", "value", "low", "high"]].assign(kind="generated"), real]
)

# %% mystnb={"figure": {"caption": "Recorded: how often a classifier names the requested class of generated cells (64 px, shipped generator), and the class of real test cells, with 95 % intervals.", "name": "fig-recognised"}} tags=["hide-input"]
figures.interval_plot(both, "share recognised as the requested class")

# %% tags=["hide-input", "nbval-check-output"]
gap = (100 * (agreement["value"] - agreement["real"])).set_axis(agreement["name"])


def told(gaps):
    """Classes with their difference in percentage points."""
    return ", ".join(f"{name} ({value:+.0f})" for name, value in gaps.items()) or "none"


more, less = gap[gap > 0.5].sort_values()[::-1], gap[gap < -0.5].sort_values()
Markdown(
    f"Recognised more often than real cells, in percentage points: {told(more)}. "
    f"Less often: {told(less)}. Where the intervals overlap, the difference may be "
    "chance."
)

# %% [markdown]
# This does not make a generated cell better than a real one. Promyelocyte, myelocyte and metamyelocyte
# are steps of one continuous development, and the border between two of them is a convention: in real
# slides there are cells in between, which two experts name differently. A conditional generator is
# rewarded when the discriminator takes its cell for one of the requested class, so it draws cells
# from the middle of the class and few from its border. A classifier then finds them easy.
#
# For augmentation that is a warning: cells from the middle of a class teach little that the real ones
# do not, and the cells that a laboratory gets wrong are those at the border. For an expert it is a
# question worth testing: do the generated myelocytes look *too* typical? The
# expert test on your own cells (`cellaug expert-test`) can answer it.
#
# Segmented neutrophils go the other way. Their faults above, missing bridges and too few lobes, are just
# what distinguishes them from bands.
