# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # What an expert should look at
#
# A haematologist sees more in a cell than a distance in grey levels. This page shows where to look in
# generated cells, what is wrong in ours, class by class, and asks whether a classifier recognises
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
            ("red cells", (0.8, 0.5), (0.6, 0.93)),
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
# ## Are generated cells recognised more often than real ones?
#
# A classifier that was trained on real cells names generated cells and real test cells. Does it name
# more of the *generated* cells as requested? Is that more than chance?


# %% tags=["hide-input"]
def agreement(size):
    """How often cells of a shipped generator and real ones are named as their class."""
    table = tidy(load_generator(f"pbc-fine-{size}").card["fidelity"]["table"])
    rows = table.query("level == 'class' and measure == 'agreement'").set_index("group")
    return rows.loc[list(names)]


found = {f"{size} px": agreement(size) for size in (64, 128, 256)}
ends = ["value", "low", "high"]
kinds = {"generated": ends, "real": ["real", "real_low", "real_high"]}
both = pd.concat(
    rows[columns].set_axis(ends, axis=1).assign(kind=kind, measure=size)
    for size, rows in found.items()
    for kind, columns in kinds.items()
)

# %% mystnb={"figure": {"caption": "Recorded: how often a classifier names the requested class of generated cells, and the class of real test cells, with 95 % intervals; a panel for each size of the shipped generator, with the real cells that were compared with it.", "name": "fig-recognised"}} tags=["hide-input"]
figures.interval_plot(
    both.rename_axis("name").reset_index(),
    "fraction recognised as the requested class",
    number=".2f",
)

# %% [markdown]
# In which classes do the intervals of generated and real cells lie apart? Only there is it clear that
# generated cells are recognised more often, or less often. Differences are in percentage points.


# %% tags=["hide-input", "nbval-check-output"]
def told(gaps):
    """Classes with their difference in percentage points."""
    ordered = gaps.sort_values(key=abs)[::-1]
    return ", ".join(f"{name} ({gap:+.0f})" for name, gap in ordered.items()) or "none"


def compared(rows):
    """The classes by what their intervals say."""
    gap = 100 * (rows["value"] - rows["real"])
    more, less = rows["low"] > rows["real_high"], rows["high"] < rows["real_low"]
    unclear = ~more & ~less
    return {
        "clearly more often": told(gap[more]),
        "clearly less often": told(gap[less]),
        "not clear, but more often": told(gap[unclear & (gap > 0.5)]),
        "not clear, but less often": told(gap[unclear & (gap < -0.5)]),
    }


segmented = [rows.loc["segmented neutrophil"] for rows in found.values()]
assert all(each["value"] < each["real"] for each in segmented)  # as said below
pd.DataFrame({size: compared(rows) for size, rows in found.items()})

# %% tags=["hide-input", "nbval-check-output"]
myelocyte = pd.DataFrame(
    {
        size: (100 * rows.loc["myelocyte", ["value", "real"]]).round()
        for size, rows in found.items()
    }
).astype(int)
Markdown(
    "Of myelocytes a classifier named as such: "
    + "; ".join(
        f"{size} {each['value']} % of the generated, {each['real']} % of the real ones"
        for size, each in myelocyte.items()
    )
    + "."
)

# %% tags=["hide-input", "nbval-check-output"]
apart = {
    size: rows.loc["segmented neutrophil", "high"]
    < rows.loc["segmented neutrophil", "real_low"]
    for size, rows in found.items()
}
clear = [size for size, is_apart in apart.items() if is_apart]
Markdown(
    "Segmented neutrophils are recognised less often at all three sizes, clearly at "
    f"{' and '.join(clear) or 'none of them'}. Their faults above, missing bridges and "
    "too few lobes, concern just what distinguishes them from bands; that may be why."
)

# %% [markdown]
# Where generated cells are recognised more often, this does not make them better than real ones. There
# are at least two other reasons. The classifier has learned from the same training images as the
# generator, so it may recognise cells that resemble these more easily than real cells that it never
# saw. And promyelocyte, myelocyte and metamyelocyte are steps of one continuous development; the border
# between two of them is a convention, and in real slides there are cells in between, which two
# experts name differently. A conditional generator is rewarded when the discriminator takes its cell
# for one of the requested class, so it may draw cells from the middle of the class and few from its
# border. We have shown neither.
#
# For augmentation it would be a warning: cells from the middle of a class teach little that the real
# ones do not, and the cells that a laboratory gets wrong are those at the border. For an expert it is a
# question worth testing: do generated cells of the classes that are recognised more often look *too*
# typical? The expert test on your own cells (`cellaug expert-test`) can answer it.
