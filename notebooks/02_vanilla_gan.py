# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Vanilla GAN
#
# A {term}`GAN <GAN>` consists of two networks. The *generator* turns random numbers into images. The
# *discriminator* decides for each image whether it is real or generated. Both are trained at the same
# time, and each improves because the other does. In this chapter we ignore the labels: can such
# networks draw cells that look real?
#
# **What you will see:** the two networks at the thesis's full size and at the size of this run, one
# training step by hand, how samples change from epoch to epoch, and an expert test with real<!-- run -->
# and generated cells that you can take yourself.

# %% [markdown]
# ## Parameters
#
# The thesis's own settings are in its Table 1 and in the profile `thesis`. This run has far fewer
# images, so a larger learning rate makes up for some of the missing steps.

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
from cellaug import figures, networks
from cellaug.book import Chapter, interactive, show, thesis
from cellaug.data.reader import Reader
from cellaug.evaluation import classifiers, distances, expert, expert_page
from cellaug.files import write_atomically
from cellaug.generators import save_generator
from cellaug.training import Adversarial, CrossEntropy, SampleImages, load_samples
from cellaug.training.backends import differentiate

import keras
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display
from keras import ops

chapter = Chapter("02_vanilla_gan", globals())
figures.use_style()

# %% [markdown]
# ## The networks of the thesis
#
# The thesis uses a DCGAN {cite}`radford2016`. A dense layer turns the {term}`latent vector` of 100
# numbers into 4 × 4 pixels with 1024 channels. Each transposed convolution, 5 × 5 with stride 2,
# doubles the side and halves the channels, up to 256 × 256. Batch normalisation and leaky ReLU follow
# every layer but the last, which ends in $\tanh$. This is the code that builds it:

# %%
show(networks.dcgan.generator_body, networks.dcgan.activated)

# %% tags=["nbval-check-output"]
table_1 = thesis()["vanilla_gan"]
full_generator = networks.generator(
    256, table_1["generator_depth"], table_1["latent_dim"]
)
print(f"{full_generator.count_params():,} parameters")
networks.layer_table(full_generator).set_index("layer")

# %% [markdown]
# The discriminator goes the other way: 64 channels first, twice as many at each step, and dropout
# instead of normalisation. In the thesis it ends in a sigmoid. Ours returns the number before the
# sigmoid (the {term}`logit`), and the loss applies the sigmoid. The function is the same, but a
# probability near zero is not rounded before its logarithm is taken.

# %%
show(networks.dcgan.discriminator_body)

# %% tags=["nbval-check-output"]
full_discriminator = networks.discriminator(256, table_1["discriminator_depth"])
print(f"{full_discriminator.count_params():,} parameters")
networks.layer_table(full_discriminator).set_index("layer")

# %% [markdown]
# ## The networks of this run

# %% tags=["nbval-check-output"]
generator = networks.generator(image_size, generator_depth, latent_dim, kernel)
discriminator = networks.discriminator(image_size, discriminator_depth, kernel)
for name, network in (("generator", generator), ("discriminator", discriminator)):
    print(f"{name}: {network.input_shape} -> {network.output_shape}, ", end="")
    print(f"{network.count_params():,} parameters")

# %% [markdown]
# ## The loss
#
# The networks compete over the value $V(G, D)$ of {eq}`eq-29`. The discriminator maximises $V$, that
# is, it minimises its cross-entropy. The generator could minimise {eq}`eq-30`, but early in training
# the gradient of that is almost zero, because the discriminator is nearly always right. So it
# minimises $-\log D(G(z))$ instead: the same optimum, and a useful gradient from the first step
# {cite}`goodfellow2014`. With a logit $l$ the two logarithms are softplus functions.

# %%
show(CrossEntropy)

# %% [markdown]
# ## The training step
#
# One step is Algorithm 1 of Goodfellow et al.: draw latent vectors and generate images, improve the
# discriminator, then improve the generator against the improved discriminator.

# %%
show(Adversarial.draw, Adversarial.discriminator_step, Adversarial.generator_step)

# %%
gan = Adversarial(generator, discriminator, CrossEntropy(), latent_dim, seed=seed)
gan.compile(
    g_optimizer=keras.optimizers.Adam(gan_learning_rate, gan_beta_1),
    d_optimizer=keras.optimizers.Adam(gan_learning_rate, gan_beta_1),
)

# %% [markdown]
# ## One step by hand
#
# To see that nothing is hidden we take the first step on one batch ourselves, with copies of both
# networks. A copy has the same weights and draws the same dropout.

# %%
splits = chapter.splits()
reader = Reader(
    splits["generator"],
    image_size,
    gan_batch_size,
    seed=seed,
    memory_mb=memory_mb,
    drop_last=True,
)
images, labels = reader[0]


def copy_of(network):
    """A network with the same weights, running means and random seeds."""
    copy = keras.models.clone_model(network)
    for mine, theirs in zip(copy.variables, network.variables, strict=True):
        mine.assign(theirs.value)
    return copy


# %% [markdown]
# The four lines of the two losses: logits of real and of generated images, $L_D$, and, after the
# discriminator's step, $L_G$.

# %%
G, D = copy_of(generator), copy_of(discriminator)
z = keras.random.normal(
    (len(images), latent_dim), seed=keras.random.SeedGenerator(seed)
)
fake = G(z, training=True)


def discriminator_loss():
    real_logits, fake_logits = D(images, training=True), D(fake, training=True)
    return ops.mean(ops.softplus(-real_logits)) + ops.mean(
        ops.softplus(fake_logits)
    ), None


d_loss, _, gradients = differentiate(
    discriminator_loss, D.trainable_variables, D.variables
)
keras.optimizers.Adam(gan_learning_rate, gan_beta_1).apply(
    gradients(), D.trainable_variables
)
g_loss = ops.mean(ops.softplus(-D(fake, training=True)))
by_hand = {"d_loss": float(d_loss), "g_loss": float(g_loss)}

# %% [markdown]
# Now the same step by the code that trains, again on copies:

# %% tags=["nbval-check-output"]
step = Adversarial(
    copy_of(generator), copy_of(discriminator), CrossEntropy(), latent_dim, seed=seed
)
step.compile(*(keras.optimizers.Adam(gan_learning_rate, gan_beta_1) for _ in range(2)))
reported = step.train_on_batch(images, labels, return_dict=True)
for name, value in by_hand.items():
    assert np.isclose(value, reported[name], rtol=1e-4), (name, value, reported[name])
    print(f"{name}: by hand and by the training step the same")

# %% [markdown] tags=["new-page"]
# ## Training
#
# We draw nine latent vectors once and keep them. The same nine again and again show learning, not the
# luck of a draw.

# %%
nine = np.random.default_rng(seed).standard_normal((9, latent_dim)).astype("float32")
moments = sorted({1, *(max(1, round(gan_epochs * f)) for f in (0.05, 0.2, 0.5, 1))})
samples = SampleImages(nine, epochs=moments, folder=chapter.checkpoints / "samples")

# %% [markdown]
# `chapter.fit` calls Keras's own `fit`. If it is interrupted, the next run of this cell resumes from
# the last checkpoint; training stops with an error if a loss becomes NaN. How fast a step is,
# compared with PyTorch, is on the page of recorded [benchmarks](record/benchmarks.ipynb).

# %%
history = chapter.fit(gan, reader, gan_epochs, label="vanilla GAN", callbacks=[samples])

# %% [markdown]
# ## Losses
#
# The losses of a GAN should level off, not fall to zero: each also depends on how good the other
# network is. If the discriminator can only guess, its loss is $2\ln 2 = 1.39$ and the generator's
# $\ln 2 = 0.69$.

# %% mystnb={"figure": {"caption": "Loss of generator and discriminator by epoch. If the discriminator can only guess, D(x) = 1/2, the discriminator's loss is 2 ln 2 = 1.39 and the generator's ln 2 = 0.69.", "name": "fig-gan-losses"}}
figures.loss_curves(history, {"g_loss": "generator", "d_loss": "discriminator"})

# %% mystnb={"figure": {"caption": "Mean of D(x) for real and for generated images: the probability, in the eyes of the discriminator, that an image is not generated. The closer the curves, the harder it is to tell them apart.", "name": "fig-gan-probabilities"}} tags=["hide-input"]
figures.loss_curves(
    history,
    {"d_real": f"{chapter.real} images", "d_fake": "generated images"},
    ylabel="mean D(x)",
)

# %% [markdown]
# ## The same nine latent vectors through training

# %% mystnb={"figure": {"caption": "Images from the same nine latent vectors at several epochs, one row for each epoch.", "name": "fig-gan-samples"}}
samples = load_samples(chapter.checkpoints / "samples")
figures.image_rows({f"epoch {epoch}": images for epoch, images in samples.items()})

# %% [markdown]
# ## Nine cells
#
# The thesis's Figure 13 shows nine cells after 75 epochs. These are ours, from the same nine vectors as
# above, not selected. Look at the background, the rim of the red cells and the nucleus.

# %% mystnb={"figure": {"caption": "Nine cells from the trained generator, not selected.", "name": "fig-gan-nine"}}
figures.image_grid(gan.generate(nine), columns=3)

# %% [markdown]
# A few images cannot show whether the generator repeats the same cells ({term}`mode collapse`). The
# mean distance between two of its images, compared with that between two real<!-- run --> ones, can.

# %%
rng = np.random.default_rng(seed + 1)
latents = rng.standard_normal((256, latent_dim)).astype("float32")
generated = gan.generate(latents)
real = splits["test"].sample(256, seed=seed).read(image_size)
spread = {
    "generated": distances.mean_pairwise_distance(generated, seed=seed),
    "real": distances.mean_pairwise_distance(real, seed=seed),
}

# %% tags=["hide-input"]
Markdown(
    f"Mean distance between two images: **{spread['generated']:.1f}** grey levels for "
    "generated, "
    f"**{spread['real']:.1f}** for {chapter.real} ones (ratio "
    f"{spread['generated'] / spread['real']:.2f})."
)

# %% [markdown] tags=["new-page"]
# ## The expert test
#
# In the thesis a medical technologist was shown 50 real and 50 generated cells in random order,
# without being told how many there were of each, and said of each whether it was real. *Recall* is
# the fraction of real cells called real, *specificity* the fraction of generated cells called
# generated.

# %% tags=["nbval-check-output"]
answered = expert.score_confusion(thesis()["expert"]["confusion"])
kinds = ["real", "generated"]
table_2 = pd.DataFrame(
    answered["confusion"], index=kinds, columns=[f"called {k}" for k in kinds]
)
print(table_2.to_string())
for name in ("recall", "specificity"):
    value, low, high = (answered[name][key] for key in ("value", "low", "high"))
    print(f"{name} {value:.2f}, 95 % interval {low:.2f} to {high:.2f}")

# %% [markdown]
# Look at how wide the intervals are, and whether they include one half, which is guessing. With this
# many images the test detects, with 80 % power, a participant whose true accuracy is at least:

# %%
images = int(table_2.to_numpy().sum())
print(f"{images} images: {expert.detectable_accuracy(images):.3f}")

# %% [markdown]
# For the test of this run we draw test images and generated images and shuffle them.

# %%
count = min(expert_images, len(splits["test"]))
rng = np.random.default_rng(seed + 2)
real_trial = splits["test"].sample(count, seed=seed + 2).read(image_size)
fake_trial = gan.generate(rng.standard_normal((count, latent_dim)).astype("float32"))
trial, is_real = expert.shuffle_trial(real_trial, fake_trial, seed)

# %% [markdown]
# The test is one page that works offline in any browser. Say of each image whether it is
# generated, how sure you are and, if you like, what gave it away. A few images to practise with come first. There is
# also a taste of it: 20 images, with the answer at once. These are from the validation split.

# %%
spare = splits["validation"].sample(12, seed=seed).read(image_size)
made = gan.generate(rng.standard_normal((len(spare), latent_dim)).astype("float32"))
practice = expert.shuffle_trial(spare[10:], made[10:], seed)
taste, answers = expert.shuffle_trial(spare[:10], made[:10], seed)

# %%
about = {"credit": splits["test"].credit, "drawn": splits["test"].name == "phantom"}
html = expert_page.page(trial, practice=practice, **about)
tried = expert_page.page(taste, answers=answers, more="expert-test.html", **about)

# %% [markdown]
# In JupyterLab the next cell shows the test. At the end download your answers, move the file into
# the folder that is named below the page, and run the cells after it again: they score your answers.
# The report shows the score after the next run of this chapter.

# %% tags=["hide-input"]
trial_name = expert.trial_hash(trial)
page = chapter.build / "expert" / f"expert-test-{trial_name}.html"
page.parent.mkdir(parents=True, exist_ok=True)
write_atomically(page, html.encode())
write_atomically(chapter.out / "expert-test.html", html.encode())
write_atomically(chapter.out / "expert-taste.html", tried.encode())
if interactive():
    display(expert_page.frame(html))
    print(f"Move your answers into {page.parent}")
else:
    display(
        HTML(
            f'<p><a href="expert-taste.html">Try {len(taste)} images</a>, with the '
            "answer at once, "
            f'or <a href="expert-test.html">take the whole test</a> of {len(trial)} '
            "images. "
            'A third page asks <a href="which-class.html">which class</a> generated '
            "cells belong "
            "to.</p>"
        )
    )

# %% [markdown]
# Until a person has answered, a machine takes the test: a small classifier trained to tell other
# real<!-- run --> images from other generated ones. It is no expert. It finds traces that no eye would notice,
# such as the grid of the transposed convolutions, and cannot say whether a nucleus is credible.

# %%
reference = splits["generator"].sample(1000, seed=seed).read(image_size)
imitations = gan.generate(
    rng.standard_normal((len(reference), latent_dim)).astype("float32")
)
said_real = classifiers.machine_expert(
    reference, imitations, trial, seed=seed, steps=machine_steps
)
machine = expert.score(is_real, said_real)
person = None
if (file := page.with_name(f"answers-{trial_name}.json")).is_file():
    person = expert.score(is_real, expert.read_answers(file, trial_name)["said_real"])

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

# %% mystnb={"figure": {"caption": "Recall (cells of the data set recognised as such) and specificity (generated cells recognised as generated) with exact 95 % binomial intervals. The dashed line is guessing.", "name": "fig-expert"}} tags=["hide-input"]
figures.interval_plot(intervals, reference=0.5, number=".2f")

# %% [markdown]
# ## What we saw, and what the thesis saw

# %% tags=["nbval-check-output"]
seen = len(history) * len(reader) * gan_batch_size
chapter.compare(
    {
        "images shown (repeats counted)": (
            f"{table_1['buffer_size'] * table_1['epochs']:,}",
            f"{seen:,}",
        ),
        "learning rate": (
            f"{table_1['learning_rate']:.0e}",
            f"{gan_learning_rate:.0e}",
        ),
        "images in the expert test": (int(table_2.to_numpy().sum()), len(is_real)),
    }
)

# %%
last = history.iloc[-1]
chapter.compare(
    {
        "generator's loss at the end": ("read off a plot", f"{last.g_loss:.2f}"),
        "discriminator's loss at the end": ("read off a plot", f"{last.d_loss:.2f}"),
    }
    | {
        name: (
            f"{answered[name]['value']:.2f} (technologist)",
            f"{machine[name]['value']:.2f} (machine)"
            + (f", {person[name]['value']:.2f} (person)" if person else ""),
        )
        for name in ("recall", "specificity")
    }
)

# %% [markdown]
# ## What it means
#
# The thesis's expert told real from generated cells better than chance, and still took nearly half of
# the generated cells for real. A machine's answers cannot be compared with that. Read them as the
# largest difference that a computer can find, not what a person would notice. The fine grid that the
# thesis saw in its backgrounds has a known cause: a 5 × 5 kernel that moves in steps of two covers
# neighbouring pixels unequally often {cite}`odena2016`.
#
# **Try it.**
#
# - Set `kernel = 4` and look at the backgrounds of the nine cells: is the grid still there?
# - Give `CrossEntropy(saturating=True)` to the GAN and compare the first epochs of both losses.
# - Set `gan_learning_rate = 1.0e-5`, the thesis's own, and see how far the same epochs lead.

# %% tags=["remove-cell"]
save_generator(
    generator,
    chapter.out / "vanilla",
    class_names=(),
    dataset=splits["generator"],
    discriminator=discriminator,
)
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
