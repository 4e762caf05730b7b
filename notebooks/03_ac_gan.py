# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # AC-GAN
#
# A cell of unknown class is of no use to a classifier. This chapter makes cells to order. The
# thesis kept its trained vanilla pair as it was, *froze* it, and trained only a few dense layers
# around it: some before the generator, which learn where in the latent space each class lies, and
# some behind the discriminator, which learn to name the class.
#
# **What you will see:** which parameters train and which do not, a generated cell of each class
# beside the most similar real one, how varied the cells of one class are, and three alternatives:
# the same construction without its last ReLU, the conditional GAN that the thesis could not get to
# work, and the recipe that the field has arrived at since; the ladder that leads from the thesis's
# recipe to that one, its two ends climbed here and all of its rungs as they were recorded; and
# cells from weights that were trained for hours.

# %% [markdown]
# ## Parameters
#
# The thesis trained its AC-GAN for a single epoch of many images (its Table 3); how many, and how
# many were seen here, stands in the table at the end.

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
ladder_images = 20_000
ladder_generator_depth = 64
ladder_discriminator_depth = 16
diversity_images = 64
memory_mb = 512

# %% tags=["hide-input"]
from cellaug import figures, networks
from cellaug.augmentation import load_generator, save_generator
from cellaug.book import Chapter, thesis
from cellaug.data.reader import Reader
from cellaug.evaluation import scorecard_table, similarity
from cellaug.study import ladder, weights
from cellaug.training import (
    Adversarial,
    AuxiliaryClassifier,
    CrossEntropy,
    Diversity,
    conditional,
    fit,
)
from cellaug.training.callbacks import duration

import keras
import numpy as np
import pandas as pd
from IPython.display import Markdown

chapter = Chapter("03_ac_gan", globals())
figures.use_style()

# %% [markdown]
# ## The frozen pair
#
# The generator and the discriminator of chapter 2 go in as they are. In front of the generator
# stand three layers of 100 units that turn a latent vector and a label into a new latent vector;
# behind the discriminator's convolutions stand three more, and a head with one output per class.

# %%
vanilla = chapter.inputs("02_vanilla_gan")
vanilla_generator = load_generator(vanilla / "vanilla").model
vanilla_discriminator = keras.saving.load_model(vanilla / "discriminator.keras")
sides = chapter.splits()
names = sides["generator"].class_names

# %%
generator, discriminator = networks.acgan(
    vanilla_generator, vanilla_discriminator, classes=len(names)
)

# %% [markdown]
# What trains, and what does not? In the generator only the new layers; in the discriminator the
# two heads, for real or generated and for the class.

# %% tags=["nbval-check-output"]
for network in (generator, discriminator):
    table = networks.trainable_table(network)
    totals = table.groupby("trainable")["parameters"].sum()
    print(f"{network.name}: {totals.get(True, 0):,} parameters train, {totals[False]:,} do not")

# %% tags=["hide-input"]
table

# %%
frozen = generator.non_trainable_variables
before = [keras.ops.convert_to_numpy(v) for v in frozen]

# %% [markdown]
# ## The game with labels
#
# The discriminator now climbs $L_S + L_C$ of {eq}`eq-33` and the generator $L_C - L_S$: both want
# the class to be recognised, and only the source is in dispute.


# %%
def play(generator, discriminator, objective, label, batch_size, epochs, rate, beta_1=0.9):
    """Train one conditional pair; the batch size and the rate come from the parameters above."""
    game = Adversarial(generator, discriminator, objective, latent_dim, seed=seed)
    game.compile(
        g_optimizer=keras.optimizers.Adam(rate, beta_1),
        d_optimizer=keras.optimizers.Adam(rate, beta_1),
    )
    reader = Reader(
        sides["generator"], image_size, batch_size, seed=seed, memory_mb=memory_mb, drop_last=True
    )
    settings = chapter.parameters | {"data": sides["generator"].fingerprint, "arm": label}
    folder = chapter.checkpoints / label.replace(" ", "_")
    history = fit(
        game, reader, epochs, checkpoint=folder, settings=settings, restart=True, label=label
    )
    return game, history


# %%
ac_game, ac_history = play(
    generator, discriminator, AuxiliaryClassifier(), "AC-GAN",
    ac_batch_size, ac_epochs, ac_learning_rate,
)  # fmt: skip

# %% [markdown]
# The frozen part has not moved, to the last bit:

# %% tags=["nbval-check-output"]
after = [keras.ops.convert_to_numpy(v) for v in frozen]
unchanged = all(np.array_equal(old, new) for old, new in zip(before, after, strict=True))
assert unchanged, "a frozen variable has moved"
print(f"{len(frozen)} frozen variables of the generator, unchanged: {unchanged}")

# %% mystnb={"figure": {"caption": "Losses of the AC-GAN by epoch. Both players' losses contain the class term.", "name": "fig-ac-losses"}}
figures.loss_curves(ac_history, {"g_loss": "generator", "d_loss": "discriminator"})

# %% [markdown]
# ## Without the last ReLU
#
# The third of the new layers ends in a ReLU, as the thesis writes it, so what reaches the frozen
# generator is never negative. The generator was trained on normal vectors, half of whose entries
# are. Of its $2^{100}$ orthants only one can be reached. The same construction with a linear last
# layer has the whole space.

# %%
linear_pair = networks.acgan(
    vanilla_generator, vanilla_discriminator, classes=len(names), last_activation="linear"
)
linear_game, linear_history = play(
    *linear_pair, AuxiliaryClassifier(), "AC-GAN linear",
    ac_batch_size, ac_epochs, ac_learning_rate,
)  # fmt: skip

# %% [markdown]
# ## The conditional GAN
#
# The thesis tried a plain conditional GAN {cite}`mirza2014` first and gave it up for poor images.
# Here it is, on the same convolutional body, with the label given to both networks and everything
# trained from the start. Its value is {eq}`eq-32`.

# %%
conditional_pair = (
    networks.cgan_generator(image_size, generator_depth, latent_dim, len(names), kernel),
    networks.cgan_discriminator(image_size, discriminator_depth, len(names), kernel),
)
cgan, cgan_history = play(
    *conditional_pair, CrossEntropy(), "conditional GAN",
    cgan_batch_size, cgan_epochs, cgan_learning_rate, cgan_beta_1,
)  # fmt: skip

# %% [markdown]
# ## The recipe of today
#
# Ten years of small steps separate the thesis's recipe from what is used now. Here they are in one
# call, each an argument that can be switched off:
#
# - kernels of 4 × 4 at stride 2, which overlap evenly, and at the end of the generator a bilinear
#   enlargement with a plain convolution after it, so that a grid is no longer built in
#   {cite}`odena2016`; how much of one is learned all the same, the ladder below measures;
# - class and latent vector scale and shift every layer of the generator, and the discriminator asks
#   by a projection whether an image fits its class {cite}`miyato2018proj`;
# - the discriminator also learns that a real cell with a wrong label is not real {cite}`reed2016`,
#   without which it may tell real from generated and never ask for the class;
# - every generated cell is judged beside a real one of its class, and the game is about which of the
#   two looks more real, so that a generator which repeats itself still loses
#   {cite}`jolicoeur2019,huang2024`;
# - a penalty on the discriminator's slope at real images and at generated ones, R1 and R2
#   {cite}`mescheder2018`, on every eighth step;
# - the deviation within a batch as a feature, so that the discriminator notices when a generator
#   repeats itself, and a moving average of the generator's weights {cite}`karras2018`;
# - real cells in all their eight symmetries, since a smear has no up and no left, and epochs in
#   which every class is equally frequent.

# %%
recipe = conditional(
    image_size,
    len(names),
    generator_depth=recipe_generator_depth,
    discriminator_depth=recipe_discriminator_depth,
    latent_dim=latent_dim,
    seed=seed,
)

# %% [markdown]
# After every epoch the diversity within classes is measured, and a run that has collapsed ends.

# %%
seen = sides["generator"].sample(min(1000, len(sides["generator"])), seed=seed)
balanced = Reader(
    sides["generator"], image_size, recipe_batch_size,
    seed=seed, balance=True, memory_mb=memory_mb, drop_last=True,
)  # fmt: skip
recipe_history = fit(
    recipe,
    balanced,
    recipe_epochs,
    checkpoint=chapter.checkpoints / "recipe",
    settings=chapter.parameters | {"data": sides["generator"].fingerprint},
    restart=True,
    callbacks=[Diversity(seen.read(image_size), seen.labels, latent_dim)],
    label="conditional recipe",
)

# %% mystnb={"figure": {"caption": "Conditional recipe: mean distance between two generated cells of one class, as a share of that between real ones, after each epoch.", "name": "fig-recipe-diversity"}} tags=["hide-input"]
figures.loss_curves(
    recipe_history, {"diversity": "conditional recipe"}, ylabel="diversity, share of real cells"
)

# %% [markdown]
# ## One cell of each class, and the real cell nearest to it
#
# The thesis picked its real cells by hand to resemble the generated ones, and said so. Here the
# partner is computed: the image of the same class in the generator's own training images at the
# smallest distance, measured pixel by pixel after reducing both to 32 × 32. A pair that agrees too
# well would mean that the generator has learnt a picture by heart.

# %%
arms = {
    "AC-GAN": ac_game,
    "AC-GAN, linear": linear_game,
    "conditional GAN": cgan,
    "conditional recipe": recipe,
}
labels = np.arange(len(names))
latents = np.random.default_rng(seed).standard_normal((len(names), latent_dim)).astype("float32")
ours = {arm: game.generate(latents, labels) for arm, game in arms.items()}
pool = {k: sides["generator"].of_class(k).read(image_size) for k in labels}


# %%
def partners(images):
    """The nearest real image of the same class for one image of each class."""
    found = [similarity.nearest(images[k : k + 1], pool[k]) for k in labels]
    return [pool[k][index[0]] for k, (index, _) in enumerate(found)], [d[0] for _, d in found]


# %% mystnb={"figure": {"caption": "Left of each pair: a cell of the AC-GAN with the thesis's layers, first draw. Right: the nearest real cell of that class. Below: their distance in grey levels.", "name": "fig-ac-pairs"}}
nearest, distance = partners(ours["AC-GAN"])
figures.pairs(ours["AC-GAN"], nearest, names, [f"{d:.1f}" for d in distance])

# %% mystnb={"figure": {"caption": "The same for the conditional GAN.", "name": "fig-cgan-pairs"}} tags=["hide-input"]
nearest, distance = partners(ours["conditional GAN"])
figures.pairs(ours["conditional GAN"], nearest, names, [f"{d:.1f}" for d in distance])

# %% mystnb={"figure": {"caption": "The same for the conditional recipe.", "name": "fig-recipe-pairs"}} tags=["hide-input"]
nearest, distance = partners(ours["conditional recipe"])
figures.pairs(ours["conditional recipe"], nearest, names, [f"{d:.1f}" for d in distance])

# %% [markdown]
# ## Nine cells of the largest class
#
# In the thesis's Figure 16 the nine cells of its largest class fall into three groups of near
# duplicates: *mode collapse*. The same nine latent vectors, through each of the four:

# %%
largest = int(sides["generator"].counts().to_numpy().argmax())
nine = np.random.default_rng(seed + 1).standard_normal((9, latent_dim)).astype("float32")
nines = {arm: game.generate(nine, np.full(9, largest)) for arm, game in arms.items()}

# %% mystnb={"figure": {"caption": "Nine cells of the largest class from the AC-GAN as the thesis built it.", "name": "fig-ac-nine"}}
figures.image_grid(nines["AC-GAN"], columns=9)

# %% mystnb={"figure": {"caption": "The same class and latent vectors, AC-GAN with a linear last layer.", "name": "fig-linear-nine"}} tags=["hide-input"]
figures.image_grid(nines["AC-GAN, linear"], columns=9)

# %% mystnb={"figure": {"caption": "The same class and latent vectors, conditional GAN.", "name": "fig-cgan-nine"}} tags=["hide-input"]
figures.image_grid(nines["conditional GAN"], columns=9)

# %% mystnb={"figure": {"caption": "The same class and latent vectors, conditional recipe.", "name": "fig-recipe-nine"}} tags=["hide-input"]
figures.image_grid(nines["conditional recipe"], columns=9)

# %% [markdown]
# ## Diversity within a class
#
# The mean distance between two cells of one class, generated against real, puts a number on it:
# 1 would be as varied as real cells, 0 the same cell again and again.


# %%
def within_class(game):
    """Mean pairwise distance within each class over images from fresh latent vectors."""
    rng = np.random.default_rng(seed + 2)
    which = np.repeat(labels, diversity_images)
    images = game.generate(rng.standard_normal((len(which), latent_dim)).astype("float32"), which)
    return similarity.diversity(images, which, names)


real_images = np.concatenate([pool[k][:diversity_images] for k in labels])
real_labels = np.concatenate([np.full(len(pool[k][:diversity_images]), k) for k in labels])
real_diversity = similarity.diversity(real_images, real_labels, names)
diversity = pd.DataFrame({arm: within_class(game) for arm, game in arms.items()})
ratios = diversity.div(real_diversity, axis=0)

# %% mystnb={"figure": {"caption": "Mean distance between two cells of one class, generated against real. The further left of the real cells a mark lies, the more the generator repeats itself.", "name": "fig-ac-diversity"}}
figures.diversity(diversity, real_diversity)

# %% tags=["hide-input"]
Markdown(
    "| | diversity, share of real (mean over classes) | scarcest of all classes |\n|---|---|---|\n"
    + "\n".join(
        f"| {arm} | {column.mean():.2f} | {column.min():.2f} ({column.idxmin()}) |"
        for arm, column in ratios.items()
    )
)

# %% [markdown]
# ## A ladder between the two recipes
#
# Which of the changes made the difference? A ladder answers that: from the thesis's vanilla pair
# and AC-GAN as written to the recipe of today, a change at a time, every rung with as many real
# images seen (in whole epochs) and the same evaluation. One step is wider than the others: where two
# stages become one conditional pair, the networks change with it. Here are the first and the last
# rung, on this book's images; `cellaug study ladder` climbs all of it, and tries what lies beside it.

# %%
first, *_, last = ladder.RUNGS
here = ladder.run(
    {"train": sides["generator"], "test": sides["test"]},
    image_size,
    ladder_images,
    chapter.checkpoints / "ladder",
    arms=[first, last],
    end_seeds=1,
    generator_depth=ladder_generator_depth,
    discriminator_depth=ladder_discriminator_depth,
)

# %% [markdown]
# Coverage, recall and diversity are shares of what one half of the real test images has of the
# other, the Fréchet distance a multiple of theirs, agreement is that of a classifier with the class
# that was ordered, in points less than with the real class. Nothing stands where there are too few
# images to measure it.

# %%
ladder.table(here).set_index("arm").style.format(precision=2, na_rep="–")

# %% [markdown]
# Climbing all of it takes longer than a chapter may, so the whole ladder was recorded, on real
# cells.

# %% tags=["hide-input"]
climbed, pictures = ladder.recorded("pbc")
runs = ladder.table(climbed)
arms_of_ladder = list(dict.fromkeys(runs["arm"]))
Markdown(
    f"*Recorded on {climbed['date']}: {climbed['data']}, {climbed['image_size']} px, "
    f"{len(climbed['class_names'])} classes, {len(runs)} runs that each saw about "
    f"{climbed['images_asked']:,} images, measured on {climbed['test_images']:,} test images; "
    f"{climbed['options']['generator_depth']} channels at 4×4 pixels in the generator and "
    f"{climbed['options']['discriminator_depth']} after the discriminator's first convolution. "
    f"{climbed['device']}.*"
)

# %% mystnb={"figure": {"caption": "The recorded ladder. Numbered rungs (blue) add up: each has the changes of all above it. Side arms (orange) change one thing of the last rung; the linear layer stands before the last frozen generator, so compare it with the rung of real symmetries. A mark is a run with a seed of its own, the bar their mean; real cells stand at the dashed line.", "name": "fig-ladder"}} tags=["hide-input"]
figures.ladder(runs, len(climbed["rungs"]))

# %% mystnb={"figure": {"caption": "One generated cell of each class by each arm of the recorded ladder: the first seed and the first latent vector of the class, not selected. All cells are generated, by networks that learned from PBC (CC BY 4.0).", "name": "fig-ladder-cells"}} tags=["hide-input"]
figures.ladder_samples(pictures, arms_of_ladder, climbed["class_names"])

# %% tags=["hide-input"]
mean = runs.groupby("arm", sort=False).mean(numeric_only=True)
spread = runs.groupby("arm", sort=False).std(numeric_only=True)
first, *_, last = climbed["rungs"]
distance = mean["Fréchet distance"]
rungs = distance[climbed["rungs"]]
steps = (rungs / rungs.shift()).iloc[1:].sort_values()
single = runs["arm"].value_counts().eq(1).sum()
sides_better = [arm for arm in arms_of_ladder[len(rungs) :] if distance[arm] < rungs.iloc[-1]]
Markdown(
    f"From the first rung to the last the Fréchet distance goes from {rungs.iloc[0]:,.0f} to "
    f"{rungs.iloc[-1]:,.0f} times that between halves of the real images (standard deviation over "
    f"seeds {spread['Fréchet distance'][first]:,.0f} and {spread['Fréchet distance'][last]:,.0f}; "
    f"the last is {rungs.iloc[-1] / rungs.iloc[0]:.3f} of the first), "
    f"and the diversity within a class from {mean['diversity'][first]:.2f} to "
    f"{mean['diversity'][last]:.2f} of real cells'. The largest step down is *{steps.index[0]}* "
    f"(to {steps.iloc[0]:.2f} of the rung before); rungs that did not help by this measure: "
    f"{', '.join(f'*{arm}*' for arm in steps.index[steps >= 1]) or 'none'}. Side arms with a "
    f"smaller distance than the last rung: "
    f"{', '.join(f'*{arm}*' for arm in sides_better) or 'none'}. {single} of the {len(mean)} arms "
    "are single runs, so small differences between them say nothing."
)

# %% [markdown]
# Where the last rung stands after so few images, over its seeds: of every measure the worst class or
# period, beside what would be good enough.

# %%
ladder.verdicts(climbed, last).style.format(precision=2, na_rep="–")

# %% [markdown]
# ## Cells from a long run
#
# A book that runs in minutes cannot train for hours. The package brings the weights of a run that
# did, on real cells: PBC in its fine taxonomy. So these cells are the same in every profile. None of
# them is real.

# %%
shipped = load_generator("pbc-fine-64")
cells = shipped.generate(shipped.class_names, 8)
of_class = np.repeat(np.arange(len(shipped.class_names)), 8)

# %% mystnb={"figure": {"caption": "Generated cells, eight of each class at 64 px, from weights trained on PBC (Acevedo et al. 2020, CC BY 4.0). The first latent vectors, not selected.", "name": "fig-shipped-cells"}} tags=["hide-input"]
figures.class_examples(cells, of_class, shipped.class_names, per_class=8)

# %% [markdown]
# How far they are from real cells was measured on the test images, which this generator never saw,
# and stands on the weights' card. Each line is the worst class or period, beside what one half of
# the real cells scores on the other.

# %%
fidelity = shipped.card["fidelity"]
scorecard_table(fidelity["scorecard"], fidelity["reasons"])

# %% tags=["hide-input"]
trained = shipped.card["training"]
Markdown(
    f"*{trained['images_seen']:,} images seen in {duration(trained['seconds'])} on "
    f"{trained['device']}.*"
)

# %% [markdown]
# One run could be lucky. So the long training was recorded with several seeds, its learning rates
# falling to zero at the end: of every measure the worst class or period, and in how many runs it was
# good enough.

# %% tags=["hide-input"]
long_runs = weights.recorded("pbc-fine-64")["runs"]
Markdown(
    f"*Recorded on {max(run['date'] for run in long_runs)}: seeds "
    f"{', '.join(str(run['seed']) for run in long_runs)}, each with "
    f"{long_runs[0]['images_seen']:,} images seen, "
    f"{long_runs[0]['images_seen'] / trained['images_seen']:.0%} of those of the cells above, measured "
    f"on {long_runs[0]['test_images']:,} test images of {long_runs[0]['data_name']}. "
    f"{long_runs[0]['device']}.*"
)

# %%
long_table = ladder.verdicts({"runs": long_runs}, "pbc-fine-64")
long_table.style.format(precision=2, na_rep="–")

# %% tags=["hide-input"]
often_missed = long_table[long_table["met"] < long_table["seeds"]]
Markdown(
    "Good enough with every seed: "
    f"{', '.join(long_table.index.difference(often_missed.index, sort=False)) or 'nothing'}. "
    f"Not with every seed: {', '.join(often_missed.index) or 'nothing'}."
)

# %% [markdown]
# ## Larger cells
#
# At 64 px a haematologist misses the chromatin. The thesis worked at 256 px, and the same recipe,
# with a few numbers fitted to the size (`cellaug.study.weights.LARGER`), was let loose on 128 and on
# 256 px. Look at the nuclei, and at the red cells around them.

# %%
larger = {size: load_generator(f"pbc-fine-{size}") for size in (128, 256)}
drawn = {size: maker.generate(maker.class_names, 3) for size, maker in larger.items()}
of_class = np.repeat(np.arange(len(shipped.class_names)), 3)

# %% mystnb={"figure": {"caption": "Generated cells, three of each class at 128 px, from weights trained on PBC (Acevedo et al. 2020, CC BY 4.0). The first latent vectors, not selected.", "name": "fig-cells-128"}} tags=["hide-input"]
figures.class_examples(drawn[128], of_class, shipped.class_names, per_class=3, scale=1.6)

# %% mystnb={"figure": {"caption": "Generated cells, three of each class at 256 px, from weights trained on PBC (Acevedo et al. 2020, CC BY 4.0). The first latent vectors, not selected.", "name": "fig-cells-256"}} tags=["hide-input"]
figures.class_examples(drawn[256], of_class, shipped.class_names, per_class=3, scale=1.6)

# %% [markdown]
# The worst class or period of each, as above. All sizes are seen through the same features, which
# look at 64 px: of what is finer the grid texture alone is measured, so trust your eyes there.

# %%
by_size = {
    f"{maker.card['image_size']} px": scorecard_table(
        maker.card["fidelity"]["scorecard"], maker.card["fidelity"]["reasons"]
    )
    for maker in (shipped, *larger.values())
}
pd.concat({size: table[["worst value", ""]] for size, table in by_size.items()}, axis=1)

# %% tags=["hide-input"]
Markdown(
    "\n".join(
        f"- {size} px: {maker.card['training']['images_seen']:,} images seen in "
        f"{duration(maker.card['training']['seconds'])} on {maker.card['training']['device']}. "
        f"By eye: {maker.card['seen']}"
        for size, maker in ({64: shipped} | larger).items()
    )
)

# %% [markdown]
# ## What we saw, and what the thesis saw

# %% tags=["hide-input"]
table_3 = thesis()["ac_gan"]
ac_seen = len(ac_history) * (len(sides["generator"]) // ac_batch_size) * ac_batch_size
best = ratios.mean().idxmax()
collapsed = ratios["AC-GAN"].mean() < 0.5
Markdown(
    "| | thesis | here |\n|---|---|---|\n"
    f"| images seen by the AC-GAN | {table_3['buffer_size'] * table_3['epochs']:,} "
    f"| {ac_seen:,} |\n"
    f"| collapse within a class | seen in its largest class | "
    f"{'yes' if collapsed else 'no'}: {ratios['AC-GAN'].mean():.2f} of real diversity |\n"
    f"| with a linear last layer | not tried | {ratios['AC-GAN, linear'].mean():.2f} |\n"
    f"| conditional GAN | given up | {ratios['conditional GAN'].mean():.2f} |\n"
    f"| conditional recipe | not tried | {ratios['conditional recipe'].mean():.2f} |\n"
    f"| most varied of the four | | {best} |\n"
)

# %% [markdown]
# ## What it means
#
# Diversity alone is not quality: noise is diverse. The ladder and the weights' card therefore ask
# more of a generator: how near its cells come to real ones, how much of the real cells' variety they
# reach in the scarcest class too, whether they are copies, and whether the class that was ordered is
# seen in them. Of the constructions trained here this chapter says how much variety each keeps, and
# whether the ReLU before the frozen generator costs some of it. Whether a classifier learns anything
# from their cells is for chapter 5.

# %% tags=["remove-cell"]
folders = {"ac_gan": ac_game, "ac_gan_linear": linear_game, "cgan": cgan, "conditional": recipe}
for folder, game in folders.items():
    save_generator(
        game.trained_generator,
        chapter.out / folder,
        class_names=names,
        latent_dim=latent_dim,
        dataset=sides["generator"],
    )
chapter.finish(
    {
        "images_seen": ac_seen,
        "cgan_images_seen": len(cgan_history)
        * (len(sides["generator"]) // cgan_batch_size)
        * cgan_batch_size,
        "recipe_images_seen": len(recipe_history) * len(balanced) * recipe_batch_size,
        "largest_class": names[largest],
        "diversity_of_real": {arm: column.mean() for arm, column in ratios.items()},
        "diversity_of_real_by_class": {arm: column.to_dict() for arm, column in ratios.items()},
        "d_fake": {
            "AC-GAN": ac_history["d_fake"].iloc[-1],
            "AC-GAN, linear": linear_history["d_fake"].iloc[-1],
            "conditional GAN": cgan_history["d_fake"].iloc[-1],
            "conditional recipe": recipe_history["d_fake"].iloc[-1],
        },
        "training_seconds": {
            "AC-GAN": ac_history["seconds"].sum(),
            "AC-GAN, linear": linear_history["seconds"].sum(),
            "conditional GAN": cgan_history["seconds"].sum(),
            "conditional recipe": recipe_history["seconds"].sum(),
        },
    }
)
