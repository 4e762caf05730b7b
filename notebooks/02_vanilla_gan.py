# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Vanilla GAN
#
# Two networks play against each other: the *generator* turns random numbers into images, the
# *discriminator* tells them from real ones, and each learns from the other's success. Here the
# labels are left aside. The question is only whether cells come out that could be real.
#
# **What you will see:** the two networks at the thesis's full size and at the size of this run,
# the game that trains them, how samples change from epoch to epoch, and an expert test with real and
# generated cells that you can take yourself in JupyterLab.

# %% [markdown]
# ## Parameters
#
# The thesis's own settings are those of its Table 1, and of the profile `thesis`. With far fewer
# images a larger learning rate makes up for some of the missing steps.

# %% tags=["parameters"]
profile = "demo"
seed = 1
image_size = 32
latent_dim = 100
kernel = 5
generator_depth = 64
discriminator_depth = 24
gan_batch_size = 64
gan_epochs = 25
gan_learning_rate = 2.0e-4
gan_beta_1 = 0.5
expert_images = 50
machine_steps = 100
memory_mb = 512

# %% tags=["hide-input"]
from statistics import median

from cellaug import figures, networks
from cellaug.augmentation import save_generator
from cellaug.book import Chapter, interactive, recorded_benchmark, thesis
from cellaug.data.images import write_atomically
from cellaug.data.reader import Reader
from cellaug.evaluation import expert, expert_page, realfake, similarity
from cellaug.training import Adversarial, CrossEntropy, SampleImages, fit, load_samples

import keras
import numpy as np
import pandas as pd
from IPython.display import Markdown

chapter = Chapter("02_vanilla_gan", globals())
figures.use_style()

# %% [markdown]
# ## The networks of the thesis
#
# A DCGAN {cite}`radford2016`: a dense layer opens the 100-dimensional latent vector to 4 × 4
# pixels with 1024 channels; each transposed convolution, 5 × 5 with stride 2, doubles the side and
# halves the channels, up to 256 × 256. Batch normalisation and leaky ReLU stand after every layer
# but the last, which ends in $\tanh$.

# %% tags=["nbval-check-output"]
table_1 = thesis()["vanilla_gan"]
full_generator = networks.generator(256, table_1["generator_depth"], table_1["latent_dim"])
print(networks.layer_table(full_generator).to_string(index=False))
print(f"{full_generator.count_params():,} parameters")

# %% [markdown]
# The discriminator goes the other way: 64 channels first, twice as many at each step, dropout
# instead of normalisation. The thesis ends it in a sigmoid; ours returns the number before the
# sigmoid (the *logit*), and the loss applies the sigmoid itself. The function is the same, without
# the rounding of a logarithm near zero.

# %% tags=["nbval-check-output"]
full_discriminator = networks.discriminator(256, table_1["discriminator_depth"])
print(networks.layer_table(full_discriminator).to_string(index=False))
print(f"{full_discriminator.count_params():,} parameters")
del full_generator, full_discriminator

# %% [markdown]
# ## The networks of this run

# %% tags=["nbval-check-output"]
generator = networks.generator(image_size, generator_depth, latent_dim, kernel)
discriminator = networks.discriminator(image_size, discriminator_depth, kernel)
for name, network in (("generator", generator), ("discriminator", discriminator)):
    print(f"{name}: {network.input_shape} -> {network.output_shape}, ", end="")
    print(f"{network.count_params():,} parameters")

# %% [markdown]
# ## The game
#
# The two play for the value $V(G, D)$ of {eq}`eq-29`. The discriminator climbs it, which is the
# same as descending its cross-entropy; the generator could descend {eq}`eq-30`, but where the
# discriminator is sure of itself that curve is flat. So it descends $-\log D(G(z))$ instead, which
# has the same fixed point and a slope from the start {cite}`goodfellow2014`.

# %%
game = Adversarial(generator, discriminator, CrossEntropy(), latent_dim, seed=seed)
game.compile(
    g_optimizer=keras.optimizers.Adam(gan_learning_rate, gan_beta_1),
    d_optimizer=keras.optimizers.Adam(gan_learning_rate, gan_beta_1),
)

# %% [markdown]
# Nine latent vectors are drawn once and kept. Looking at the same nine again and again shows
# learning, not luck of the draw.

# %%
sides = chapter.splits()
reader = Reader(
    sides["generator"], image_size, gan_batch_size, seed=seed, memory_mb=memory_mb, drop_last=True
)
nine = np.random.default_rng(seed).standard_normal((9, latent_dim)).astype("float32")
moments = sorted({1, *(max(1, round(gan_epochs * f)) for f in (0.05, 0.2, 0.5, 1))})
samples = SampleImages(nine, epochs=moments, folder=chapter.checkpoints / "samples")

# %% [markdown]
# Training goes through Keras's own `fit`. Should it be interrupted, the next run of this cell goes
# on from the last checkpoint; a loss that is no longer a number stops it.

# %%
history = fit(
    game,
    reader,
    gan_epochs,
    checkpoint=chapter.checkpoints / "gan",
    settings=chapter.parameters | {"data": sides["generator"].fingerprint},
    restart=True,
    callbacks=[samples],
    label="vanilla GAN",
)

# %% [markdown]
# How fast is a step? `make bench-train` lets this package and PyTorch take the same step in turn, on
# a DCGAN of 64 px, and counts the operations that the step needs. What it measured when it was last
# recorded:

# %% tags=["hide-input"]
bench = recorded_benchmark("train")
speed, reached = bench["operations_per_second"], bench["verdicts"]
convolving = {name: bench["shares"][name]["convolutions"] for name in ("ours", "ours-bfloat16")}
Markdown(
    f"Recorded {bench['date']}: {bench['machine']['processor']}, {bench['machine']['cores']} cores, "
    f"TensorFlow {bench['versions']['tensorflow']}, PyTorch {bench['versions']['torch']}; batches "
    f"of {bench['batch']}, medians of {bench['rounds']} rounds.\n\n"
    "| | images per second | 10⁹ operations per second |\n|---|---|---|\n"
    + "\n".join(
        f"| {words} | "
        + ("" if arm.endswith("products") else f"{median(bench['rates'][arm]):.0f}")
        + f" | {speed[arm]:.0f} |"
        for arm, words in bench["arms"].items()
    )
    + "\n\n"
    + "; ".join(
        f"{what}: {row['ratio']:.2f} (aim {row['target']}: {'met' if row['met'] else 'missed'})"
        for what, row in reached.items()
    )
    + f". Of our DCGAN's step on one thread {convolving['ours']:.0%} are convolutions in float32 and "
    f"{convolving['ours-bfloat16']:.0%} in bfloat16. Both libraries leave these to oneDNN, so they "
    "stand in the way of more: were all else free, the ratios would be about "
    f"{reached['float32']['ratio'] / convolving['ours']:.2f} and "
    f"{reached['bfloat16']['ratio'] / convolving['ours-bfloat16']:.2f}. Drawing dropout's random "
    f"numbers takes {bench['shares']['ours']['random numbers']:.0%} and "
    f"{bench['shares']['ours-bfloat16']['random numbers']:.0%}. What the step does to be fast: the "
    "generator draws once for both players, and no autotuner is waited for at the end of an epoch."
)

# %% [markdown]
# ## Losses
#
# Look for the two curves settling beside each other rather than falling: a loss of a GAN measures
# the opponent as much as the player. At a perfect stand-off the discriminator's loss is
# $2\log 2 = 1.39$ and the generator's $\log 2 = 0.69$.

# %% mystnb={"figure": {"caption": "Loss of generator and discriminator by epoch.", "name": "fig-gan-losses"}}
figures.loss_curves(history, {"g_loss": "generator", "d_loss": "discriminator"})

# %% mystnb={"figure": {"caption": "Mean probability of being real that the discriminator gives to real and to generated images. The closer the curves, the harder it is to tell them apart.", "name": "fig-gan-probabilities"}} tags=["hide-input"]
figures.loss_curves(
    history, {"d_real": "real images", "d_fake": "generated images"}, ylabel="mean D(x)"
)

# %% [markdown]
# ## The same nine latent vectors through training

# %% mystnb={"figure": {"caption": "Images from the same nine latent vectors at several epochs, one row for each epoch.", "name": "fig-gan-samples"}}
figures.samples_over_time(load_samples(chapter.checkpoints / "samples"))

# %% [markdown]
# ## Nine cells
#
# The thesis's Figure 13 shows nine cells after 75 epochs. These are ours: the same nine vectors as
# above, none of them chosen by eye. Check background, rim of the red cells, nucleus.

# %% mystnb={"figure": {"caption": "Nine cells from the trained generator, not selected.", "name": "fig-gan-nine"}}
figures.image_grid(game.generate(nine), columns=3)

# %% [markdown]
# A picture can hide that a generator has only a few answers. The mean distance between two of its
# images, against the same distance between two real ones, cannot.

# %%
rng = np.random.default_rng(seed + 1)
latents = rng.standard_normal((256, latent_dim)).astype("float32")
generated = game.generate(latents)
real = sides["test"].sample(256, seed=seed).read(image_size)
spread = {
    "generated": similarity.mean_pairwise_distance(generated, seed=seed),
    "real": similarity.mean_pairwise_distance(real, seed=seed),
}

# %% tags=["hide-input"]
Markdown(
    f"Mean pairwise distance: **{spread['generated']:.1f}** grey levels between generated images, "
    f"**{spread['real']:.1f}** between real ones (ratio "
    f"{spread['generated'] / spread['real']:.2f})."
)

# %% [markdown]
# ## The expert test
#
# In the thesis a medical technologist was shown 50 real and 50 generated cells in random order,
# without being told how many there were of each, and said of each whether it was real. *Recall* is
# the share of real cells called real, *specificity* the share of generated cells called generated.

# %% tags=["nbval-check-output"]
answered = expert.score_confusion(thesis()["expert"]["confusion"])
kinds = ["real", "generated"]
table_2 = pd.DataFrame(answered["confusion"], index=kinds, columns=[f"called {k}" for k in kinds])
print(table_2.to_string())
for name in ("recall", "specificity"):
    value, low, high = (answered[name][key] for key in ("value", "low", "high"))
    print(f"{name} {value:.2f}, 95 % interval {low:.2f} to {high:.2f}")

# %% [markdown]
# Look at how wide the intervals are, and whether they hold one half, which is guessing. So many
# images show a reader's accuracy to be better than guessing, four times in five, only where it is
# this high or higher:

# %%
images = int(table_2.to_numpy().sum())
print(f"{images} images: {expert.detectable_accuracy(images):.3f}")

# %% [markdown]
# The trial of this run is drawn from test images, shuffled by the seed.

# %%
count = min(expert_images, len(sides["test"]))
rng = np.random.default_rng(seed + 2)
real_trial = sides["test"].sample(count, seed=seed + 2).read(image_size)
fake_trial = game.generate(rng.standard_normal((count, latent_dim)).astype("float32"))
trial, is_real = expert.shuffle_trial(real_trial, fake_trial, seed)

# %% [markdown]
# In JupyterLab the next cell shows a form: one image at a time, two buttons, and a way back. Your
# answers are saved after each click and are scored further down, also in the report.

# %%
answers_file = chapter.build / "expert" / f"answers-{expert.trial_hash(trial)}.json"
form = expert.ExpertForm(trial, answers_file)
form if interactive() else print(f"{len(trial)} images await a person in JupyterLab")

# %% [markdown]
# For a reader without JupyterLab the same trial is one page that works offline in any browser. The
# file that it exports, moved beside the page, is taken up by the form above.

# %%
page = answers_file.with_name(f"expert-test-{expert.trial_hash(trial)}.html")
page.parent.mkdir(parents=True, exist_ok=True)
write_atomically(page, expert_page.page(trial, sides["test"].credit).encode())
print(f"{len(trial)} images in {page.name}")

# %% [markdown]
# Until a person has answered, a machine stands in: a small classifier trained to tell other real
# images from other generated ones. It is no expert. It finds traces that no eye would notice, such
# as the grid of the transposed convolutions, and says nothing of whether a nucleus is credible.

# %%
reference = sides["generator"].sample(1000, seed=seed).read(image_size)
imitations = game.generate(rng.standard_normal((len(reference), latent_dim)).astype("float32"))
said_real = realfake.machine_expert(reference, imitations, trial, seed=seed, steps=machine_steps)
machine = expert.score(is_real, said_real)
person = expert.score(is_real, np.array(form.given, bool)) if form.complete else None

# %% tags=["hide-input"]
rows = [("technologist (thesis)", answered), ("machine (this run)", machine)]
rows += [("person (this run)", person)] if person else []
intervals = pd.DataFrame(
    [
        {"name": f"{name}: {who}", **score[name]}
        for name in ("recall", "specificity")
        for who, score in rows
    ]
)

# %% mystnb={"figure": {"caption": "Recall (real cells called real) and specificity (generated cells called generated) with exact 95 % binomial intervals. The dashed line is guessing.", "name": "fig-expert"}} tags=["hide-input"]
figures.interval_plot(intervals, reference=0.5, digits=2)

# %% [markdown]
# ## What we saw, and what the thesis saw

# %% tags=["hide-input"]
last = history.iloc[-1]
seen = len(history) * len(reader) * gan_batch_size
Markdown(
    "| | thesis | here |\n|---|---|---|\n"
    f"| images seen | {table_1['buffer_size'] * table_1['epochs']:,} | {seen:,} |\n"
    f"| learning rate | {table_1['learning_rate']:.0e} | {gan_learning_rate:.0e} |\n"
    f"| generator's loss at the end | read off a plot | {last.g_loss:.2f} |\n"
    f"| discriminator's loss at the end | read off a plot | {last.d_loss:.2f} |\n"
    f"| recall | {answered['recall']['value']:.2f} (technologist) | "
    f"{machine['recall']['value']:.2f} (machine) |\n"
    f"| specificity | {answered['specificity']['value']:.2f} (technologist) | "
    f"{machine['specificity']['value']:.2f} (machine) |\n"
    f"| person's answers | {len(is_real)} images | {'yes' if person else 'none yet'} |\n"
)

# %% [markdown]
# ## What it means
#
# The thesis's expert told real from generated better than chance, and still took nearly half of
# the generated cells for real. A machine's answers are not comparable with that: read them as an
# upper bound on what can be told apart, not as a verdict on the cells. The fine grid that the
# thesis saw in its backgrounds has a known cause: a 5 × 5 kernel that moves in steps of two covers
# neighbouring pixels unequally often {cite}`odena2016`.

# %% tags=["remove-cell"]
save_generator(
    generator,
    chapter.out / "vanilla",
    class_names=(),
    latent_dim=latent_dim,
    dataset=sides["generator"],
)
discriminator.save(chapter.out / "discriminator.keras")
chapter.finish(
    {
        "images_seen": seen,
        "training_seconds": history["seconds"].sum(),
        "images_per_second": seen / history["seconds"].sum(),
        "g_loss": last.g_loss,
        "d_loss": last.d_loss,
        "d_real": last.d_real,
        "d_fake": last.d_fake,
        "diversity_generated": spread["generated"],
        "diversity_real": spread["real"],
        "trial_images": len(is_real),
        "machine_recall": machine["recall"],
        "machine_specificity": machine["specificity"],
        "person": person,
    }
)
