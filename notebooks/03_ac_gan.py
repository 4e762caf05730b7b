# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # AC-GAN
#
# A classifier can only learn from images whose class is known. This chapter generates cells of a
# class that we choose. The thesis kept its trained generator and discriminator unchanged (*frozen*)
# and trained only a few new layers: three before the generator, which learn where in the
# {term}`latent space` each class lies, and three after the discriminator's convolutions, which learn
# to name the class.
#
# **What you will see:** which parameters are trained and which are not, a generated cell of each
# class beside the most similar real<!-- run --> cell, and how varied the cells of one class are. We compare four
# constructions: the thesis's {term}`AC-GAN`, the same without its last ReLU, the conditional GAN
# that the thesis gave up, and a current recipe. The step from one recipe to the other, one change at
# a time, is on the page [](record/ladder.ipynb); cells from long training are on
# [](record/weights.ipynb).

# %% [markdown]
# ## Parameters
#
# The thesis trained its AC-GAN for one epoch of many images (its Table 3). The table at the end says
# how many images were shown there and here, repeats counted.

# %% tags=["parameters"]
profile = "demo"
seed = 1
image_size = 32
latent_dim = 100
kernel = 5
generator_depth = 64
discriminator_depth = 24
ac_batch_size = 32
ac_epochs = 5
ac_learning_rate = 2.0e-4
cgan_batch_size = 64
cgan_epochs = 25
cgan_learning_rate = 2.0e-4
cgan_beta_1 = 0.5
recipe_generator_depth = 64
recipe_discriminator_depth = 24
recipe_batch_size = 32
recipe_epochs = 25
diversity_images = 64
memory_mb = 512

# %% tags=["hide-input"]
from dataclasses import asdict

from cellaug import figures, networks
from cellaug.book import Chapter, show, thesis
from cellaug.data.reader import Reader
from cellaug.evaluation import distances
from cellaug.evaluation.collapse import Diversity
from cellaug.generators import load_discriminator, load_generator, save_generator
from cellaug.training import (
    R1,
    Adversarial,
    AuxiliaryClassifier,
    CrossEntropy,
    Recipe,
    Relativistic,
    WrongLabels,
)

import keras
import numpy as np
import pandas as pd
from IPython.display import Markdown

chapter = Chapter("03_ac_gan", globals())
figures.use_style()

# %% [markdown]
# ## New layers on frozen networks
#
# The generator and the discriminator of chapter 2 are used as they are. Three layers of 100 units
# before the generator turn a latent vector and a label into a new latent vector. Three more after
# the discriminator's convolutions lead to an output with one number for each class.

# %%
show(networks.acgan_generator, networks.acgan_discriminator)

# %%
vanilla = chapter.inputs("02_vanilla_gan") / "vanilla"
vanilla_generator, vanilla_discriminator = (
    load_generator(vanilla).model,
    load_discriminator(vanilla),
)
splits = chapter.splits()
cells = splits["generator"]
names = cells.class_names

# %%
generator = networks.acgan_generator(vanilla_generator, len(names))
discriminator = networks.acgan_discriminator(vanilla_discriminator, len(names))

# %% [markdown]
# Which parameters are trained? In the generator only the new layers; in the discriminator the two
# outputs, one for real or generated and one for the class, and the new layers before the second.

# %% tags=["nbval-check-output"]
for network in (generator, discriminator):
    table = networks.trainable_table(network)
    totals = table.groupby("trainable")["parameters"].sum()
    print(
        f"{network.name}: {totals.get(True, 0):,} parameters are trained, "
        f"{totals[False]:,} not"
    )

# %% tags=["hide-input"]
table

# %%
frozen = generator.non_trainable_variables
before = [keras.ops.convert_to_numpy(v) for v in frozen]

# %% [markdown]
# ## The loss with labels
#
# The discriminator maximises $L_S + L_C$ of {eq}`eq-33`, the generator $L_C - L_S$. Both networks try
# to make the class recognisable; they compete only about real or generated.

# %%
show(AuxiliaryClassifier)


# %%
def train(generator, discriminator, loss, label, batch_size, epochs, rate, beta_1=0.9):
    """Train one conditional pair; returns it and its history."""
    gan = Adversarial(generator, discriminator, loss, latent_dim, seed=seed)
    gan.compile(
        g_optimizer=keras.optimizers.Adam(rate, beta_1),
        d_optimizer=keras.optimizers.Adam(rate, beta_1),
    )
    reader = Reader(
        cells, image_size, batch_size, seed=seed, memory_mb=memory_mb, drop_last=True
    )
    return gan, chapter.fit(gan, reader, epochs, label=label)


# %%
ac_gan, ac_history = train(
    generator,
    discriminator,
    AuxiliaryClassifier(),
    "AC-GAN",
    ac_batch_size,
    ac_epochs,
    ac_learning_rate,
)

# %% [markdown]
# The frozen part has not changed, to the last bit:

# %% tags=["nbval-check-output"]
after = [keras.ops.convert_to_numpy(v) for v in frozen]
unchanged = all(
    np.array_equal(old, new) for old, new in zip(before, after, strict=True)
)
assert unchanged, "a frozen variable has changed"
print(f"{len(frozen)} frozen variables of the generator, unchanged: {unchanged}")

# %% mystnb={"figure": {"caption": "Losses of the AC-GAN by epoch. Both losses contain the class term.", "name": "fig-ac-losses"}}
figures.loss_curves(ac_history, {"g_loss": "generator", "d_loss": "discriminator"})

# %% [markdown]
# ## Without the last ReLU
#
# The third of the new layers ends in a ReLU, as the thesis writes it. So no number that reaches the
# frozen generator is negative. But the generator was trained on normal vectors, half of whose values
# are negative: most of the latent space is never used. The same construction with a linear last layer
# can use all of it.

# %%
linear, linear_history = train(
    networks.acgan_generator(vanilla_generator, len(names), last_activation="linear"),
    networks.acgan_discriminator(vanilla_discriminator, len(names)),
    AuxiliaryClassifier(),
    "AC-GAN linear",
    ac_batch_size,
    ac_epochs,
    ac_learning_rate,
)

# %% [markdown]
# ## The conditional GAN
#
# The thesis first tried a plain conditional GAN {cite}`mirza2014` and gave it up because of poor
# images. Here it is, with the same convolutions. Both networks get the label, and everything is
# trained from the start. Its value function is {eq}`eq-32`.

# %%
cgan, cgan_history = train(
    networks.cgan_generator(
        image_size, generator_depth, latent_dim, len(names), kernel
    ),
    networks.cgan_discriminator(image_size, discriminator_depth, len(names), kernel),
    CrossEntropy(),
    "conditional GAN",
    cgan_batch_size,
    cgan_epochs,
    cgan_learning_rate,
    cgan_beta_1,
)

# %% [markdown] tags=["new-page"]
# ## A current recipe
#
# Many small improvements lie between the DCGAN of 2016, which the thesis used, and a recipe of today.
# `Recipe` names each of them, and each can be switched off. The most important ones:
#
# **Relativistic loss.** The discriminator compares each generated cell with a training cell of the same
# class and decides which looks more real, so a generator that repeats itself still loses
# {cite}`jolicoeur2019,huang2024`.

# %%
show(Relativistic)

# %% [markdown]
# **Gradient penalty.** $R_1$ and $R_2$ keep the discriminator's gradient small at real and at
# generated images {cite}`mescheder2018`. They are computed on every eighth step only.

# %%
show(R1)

# %% [markdown]
# **Projection and wrong labels.** The discriminator multiplies the features of an image with a vector
# of its class {cite}`miyato2018proj`. It also learns to refuse a training cell with a wrong label
# {cite}`reed2016`; without this it could ignore the class.

# %%
show(WrongLabels, networks.conditional_discriminator)

# %% [markdown]
# **The generator.** Class and latent vector scale and shift every layer. Kernels of 4 × 4 at stride 2
# overlap evenly, and the last layer is a bilinear enlargement followed by a convolution, so no grid is
# built in {cite}`odena2016`. A moving average of its weights is what we use in the end
# {cite}`karras2018`. The discriminator also sees how much the images of a batch differ, and training cells
# are shown in all eight symmetries, since a smear has no up and no left.

# %%
show(networks.conditional_generator)

# %% tags=["nbval-check-output"]
recipe = Recipe(
    generator_depth=recipe_generator_depth,
    discriminator_depth=recipe_discriminator_depth,
    latent_dim=latent_dim,
    seed=seed,
)
print("\n".join(f"{choice} = {value!r}" for choice, value in asdict(recipe).items()))

# %% [markdown]
# After every epoch we measure how much the cells of one class differ. If they hardly do
# ({term}`mode collapse`), training stops.

# %%
conditional = recipe.build(image_size, len(names))
sample = cells.sample(min(1000, len(cells)), seed=seed)
watch = Diversity(sample.read(image_size), sample.labels)
balanced = Reader(
    cells,
    image_size,
    recipe_batch_size,
    seed=seed,
    balance=True,
    memory_mb=memory_mb,
    drop_last=True,
)
recipe_history = chapter.fit(
    conditional, balanced, recipe_epochs, label="conditional recipe", callbacks=[watch]
)

# %% mystnb={"figure": {"caption": "Conditional recipe: mean distance between two generated cells of one class after each epoch, divided by that of real cells.", "name": "fig-recipe-diversity"}} tags=["hide-input"]
figures.loss_curves(
    recipe_history,
    {"diversity": "conditional recipe"},
    ylabel=f"diversity relative to {chapter.real} cells",
)

# %% [markdown] tags=["new-page"]
# ## One cell of each class, and the nearest real<!-- run --> cell
#
# The thesis chose its real cells by hand to resemble the generated ones, and said so. Here the
# partner is computed: the training image of the same class with the smallest distance, pixel by pixel
# after reducing both to 32 × 32. A pair that agrees too well would mean that the generator has
# memorised a training image.

# %%
arms = {
    "AC-GAN": ac_gan,
    "AC-GAN, linear": linear,
    "conditional GAN": cgan,
    "conditional recipe": conditional,
}
labels = np.arange(len(names))
latents = (
    np.random.default_rng(seed)
    .standard_normal((len(names), latent_dim))
    .astype("float32")
)
ours = {arm: gan.generate(latents, labels) for arm, gan in arms.items()}
pool = {k: cells.of_class(k).read(image_size) for k in labels}


# %%
def with_nearest(images):
    """A cell of each class, the nearest image of that class, and their distance."""
    found = [distances.nearest(images[k : k + 1], pool[k]) for k in labels]
    real = [pool[k][index[0]] for k, (index, _) in enumerate(found)]
    return images, real, names, [f"{distance[0]:.1f}" for _, distance in found]


# %% mystnb={"figure": {"caption": "Left of each pair: a cell of the AC-GAN as the thesis built it, first draw. Right: the nearest real cell of that class, with their distance in grey levels.", "name": "fig-ac-pairs"}}
figures.pairs(*with_nearest(ours["AC-GAN"]), real=chapter.real)

# %% [markdown]
# The same latent vectors through all four generators of this run, below cells of the data set. If
# it knows their classes, the generator that comes with the package, which was trained for hours, has
# a row too.

# %%
shipped = load_generator("pbc-fine-64")
lacking = [name for name in names if name not in shipped.class_names]
fits = not lacking
beside = {chapter.real: np.stack([pool[k][0] for k in labels])} | ours
beside |= {"shipped": shipped.generate(names, 1)} if fits else {}

# %% mystnb={"figure": {"caption": "Real cells (top) and generated ones, a column for each class: the first of each, not selected.", "name": "fig-ac-classes"}}
figures.image_rows(beside, names)

# %% tags=["hide-input", "nbval-check-output"]
known = "the generator that comes with the package"
Markdown(
    f"The last row is from {known}."
    if fits
    else f"There is no row from {known}: it does not know {', '.join(lacking)}."
)

# %% [markdown]
# How close does each generator of this run come to the training images? A distance near zero, in grey levels, would
# be a copy.

# %% tags=["hide-input"]
closest = {arm: list(map(float, with_nearest(made)[3])) for arm, made in ours.items()}
by_arm = pd.DataFrame(closest, index=names)
summary = {
    "smallest": by_arm.min(),
    "mean": by_arm.mean(),
    "class of it": by_arm.idxmin(),
}
pd.DataFrame(summary).round(1)

# %% [markdown]
# ## Nine cells of the largest class
#
# In the thesis's Figure 16 the nine cells of its largest class fall into three groups of near
# duplicates: *mode collapse*. Here are the same nine latent vectors through each generator of this
# run, below nine cells of the data set; the shipped one, if it is there, has vectors of its own.

# %%
largest = int(cells.counts().to_numpy().argmax())
equal = cells.counts().nunique() == 1
nine = (
    np.random.default_rng(seed + 1).standard_normal((9, latent_dim)).astype("float32")
)
nines = {chapter.real: pool[largest][:9]}
nines |= {arm: gan.generate(nine, np.full(9, largest)) for arm, gan in arms.items()}
nines |= {"shipped": shipped.generate([names[largest]], 9)} if fits else {}

# %% mystnb={"figure": {"caption": "Nine cells of the largest class: real ones (top), and one row for each generator, those of this run from the same nine latent vectors; not selected.", "name": "fig-ac-nine"}}
figures.image_rows(nines)

# %% [markdown]
# ## Diversity within a class
#
# One number for this is the mean distance between two cells of one class, generated divided by
# real<!-- run -->: 1 is as varied as real<!-- run --> cells, 0 is the same cell again and again.


# %%
def within_class(gan):
    """Mean distance between two cells of each class, from new latent vectors."""
    rng = np.random.default_rng(seed + 2)
    which = np.repeat(labels, diversity_images)
    images = gan.generate(
        rng.standard_normal((len(which), latent_dim)).astype("float32"), which
    )
    return distances.diversity(images, which, names)


real_images = np.concatenate([pool[k][:diversity_images] for k in labels])
real_labels = np.concatenate(
    [np.full(len(pool[k][:diversity_images]), k) for k in labels]
)
real_diversity = distances.diversity(real_images, real_labels, names)
diversity = pd.DataFrame({arm: within_class(gan) for arm, gan in arms.items()})
if fits:
    many = shipped.generate(names, diversity_images)
    which = np.repeat(labels, diversity_images)
    diversity["shipped"] = distances.diversity(many, which, names)
ratios = diversity.div(real_diversity, axis=0)

# %% mystnb={"figure": {"caption": "Mean distance between two cells of one class in grey levels (0 to 255), generated and real. The further left of the real cells a mark lies, the more the generator repeats itself.", "name": "fig-ac-diversity"}}
figures.diversity(diversity, real_diversity, chapter.real)

# %%
pd.DataFrame(
    {
        f"diversity relative to {chapter.real} cells, mean": ratios.mean(),
        "lowest class": ratios.min(),
        "least diverse class": ratios.idxmin(),
    }
).style.format(precision=2)

# %% [markdown]
# ## What we saw, and what the thesis saw

# %% tags=["nbval-check-output"]
table_3 = thesis()["ac_gan"]
ac_seen = len(ac_history) * (len(cells) // ac_batch_size) * ac_batch_size
chapter.compare(
    {
        "images shown to the AC-GAN (repeats counted)": (
            f"{table_3['buffer_size'] * table_3['epochs']:,}",
            f"{ac_seen:,}",
        ),
        "classes": (thesis()["data"]["classes"], len(names)),
        "largest class": ("class 0", names[largest] + " (all are equal)" * equal),
    }
)

# %%
tried = {"AC-GAN": "collapse seen in its largest class", "conditional GAN": "given up"}
chapter.compare(
    {
        f"{arm}: diversity relative to {chapter.real} cells": (
            tried.get(arm, "not tried"),
            f"{mean:.2f}",
        )
        for arm, mean in ratios.mean().items()
    }
)

# %% [markdown]
# ## What it means
#
# Diversity alone is not quality: noise is diverse. The pages on record therefore ask more of a
# generator: how close its cells are to real ones, how much of the variety of these they reach in
# the worst class, whether they are copies, and whether the requested class is recognised in them.
# This chapter says how much variety each construction keeps, and whether the ReLU before the frozen
# generator costs some of it. Whether a classifier learns from such cells is the question of chapter 5.
#
# **Try it.**
#
# - Give the recipe `objective="cross-entropy"` and compare the diversity.
# - Set `wrong_labels=0.0` and look whether each column still shows its class.
# - Train the AC-GAN for one epoch only (`ac_epochs = 1`), as the thesis did, and look at the nine cells.

# %% tags=["remove-cell"]
folders = {
    "ac_gan": ac_gan,
    "ac_gan_linear": linear,
    "cgan": cgan,
    "conditional": conditional,
}
for folder, gan in folders.items():
    save_generator(
        gan.trained_generator,
        chapter.out / folder,
        class_names=names,
        dataset=cells,
    )
histories = dict(
    zip(arms, (ac_history, linear_history, cgan_history, recipe_history), strict=True)
)
chapter.finish(
    {
        "images_seen": ac_seen,
        "cgan_images_seen": len(cgan_history)
        * (len(cells) // cgan_batch_size)
        * cgan_batch_size,
        "recipe_images_seen": len(recipe_history) * len(balanced) * recipe_batch_size,
        "largest_class": names[largest],
        "diversity_of_real": ratios.mean().to_dict(),
        "diversity_of_real_by_class": ratios.to_dict(),
        "d_fake": {
            arm: history["d_fake"].iloc[-1] for arm, history in histories.items()
        },
        "training_seconds": {
            arm: history["seconds"].sum() for arm, history in histories.items()
        },
    }
)
