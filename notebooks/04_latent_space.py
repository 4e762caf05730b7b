# ---
# jupyter:
#   language_info:
#     name: python
# ---

# %% [markdown]
# # Latent space
#
# The generator turns 100 numbers into an image of a cell. What lies between two points of this
# {term}`latent space`? Which point gives *this* real<!-- run --> cell? And what do its neighbours look like? This
# chapter explores the latent space of chapter 2's generator, and first also that of a generator
# that was trained for hours on real cells.
#
# **What you will see:** one cell turning into another in eight steps, one latent vector drawn as
# eleven classes, real<!-- run --> cells and two kinds of reconstructions of them, variations of a reconstructed
# cell with increasing noise, and the interpolation between the reconstructions of two real<!-- run --> cells of
# one class.

# %% [markdown]
# ## Parameters

# %% tags=["parameters"]
profile = "demo"
seed = 1
image_size = 32
latent_dim = 100
kernel = 5
encoder_depth = 24
encoder_epochs = 10
encoder_batch_size = 64
encoder_learning_rate = 2.0e-4
optimise_images = 5
optimise_steps = 200
optimise_learning_rate = 0.05
variance = 0.04
memory_mb = 512

# %% tags=["hide-input"]
from cellaug import explorer, figures, latent, networks
from cellaug.book import Chapter, interactive, show, thesis
from cellaug.data import to_float
from cellaug.data.reader import Reader
from cellaug.evaluation import distances, expert_page
from cellaug.generators import load_generator
from cellaug.training import generate_images, use_xla

import keras
import numpy as np
import pandas as pd
from IPython.display import HTML, Markdown, display

chapter = Chapter("04_latent_space", globals())
figures.use_style()

# %%
generator = load_generator(chapter.inputs("02_vanilla_gan") / "vanilla").model
shipped = load_generator("pbc-fine-64")
splits = chapter.splits()

# %% [markdown]
# ## Between two cells
#
# A straight line from $z_1$ to $z_2$ in $n$ steps,
#
# $$\hat{z}_k = z_1 + \frac{z_2 - z_1}{n}\,k, \tag{40}$$
#
# goes through points that were never used in training. Smooth change suggests that the generator has
# learned the variation of cells; sudden jumps suggest memorised images.

# %%
show(latent.interpolate)

# %% tags=["nbval-check-output"]
rng = np.random.default_rng(seed)
z_1, z_2 = rng.standard_normal((2, latent_dim)).astype("float32")
line = latent.interpolate(z_1, z_2, steps=8)
print(f"{len(line)} latent vectors of {line.shape[1]} numbers each")
middle = line[len(line) // 2]
print("the middle is the mean of the ends:", np.allclose(middle, (z_1 + z_2) / 2))

# %% [markdown]
# We walk with two generators: that of chapter 2 and `pbc-fine-64`, which comes with the package and
# was trained much longer on real cells ([its page](record/weights.ipynb)). The second one also takes a
# class; here it draws monocytes.

# %%
walk = generate_images(generator, line)
ends = np.random.default_rng(seed).standard_normal((2, shipped.latent_dim))
monocytes = np.full(len(line), shipped.class_names.index("monocyte"))
shipped_line = latent.interpolate(*ends, steps=len(line) - 1)
shipped_walk = generate_images(shipped.model, shipped_line, monocytes)

# %% mystnb={"figure": {"caption": "From one generated cell to another in equal steps along a straight line: chapter 2's generator, and the shipped one, which was trained on PBC (Acevedo et al. 2020, CC BY 4.0), as a monocyte.", "name": "fig-interpolation"}}
last = len(line) - 1
figures.image_rows(
    {"chapter 2": walk, "pbc-fine-64": shipped_walk},
    heads=["first", *(f"{k}/{last}" for k in range(1, last)), "second"],
)

# %% [markdown]
# How even are the steps? We compare each image with the next; a jump would be much larger than the others.


# %%
def step_lengths(images):
    pairs = [images[k : k + 2] for k in range(len(images) - 1)]
    return [distances.mean_pairwise_distance(pair) for pair in pairs]


steps, shipped_steps = step_lengths(walk), step_lengths(shipped_walk)
apart = distances.mean_pairwise_distance(walk[[0, -1]])

# %% tags=["hide-input"]
Markdown(
    f"The largest step of chapter 2's generator is **{max(steps):.1f}** grey levels, "
    "the smallest "
    f"{min(steps):.1f}; the two ends are {apart:.1f} apart. The steps of the shipped "
    "generator are "
    f"between {min(shipped_steps):.1f} and {max(shipped_steps):.1f} grey levels."
)

# %% [markdown]
# ## One latent vector, eleven classes
#
# A conditional generator can draw the *same* latent vector as every class. Which properties of a cell
# belong to the vector, and which to the class? The walk leads from vector to vector, four in all, along
# straight lines of ten steps.


# %%
def way(dimensions):
    stops = np.random.default_rng(seed).standard_normal((4, dimensions))
    return latent.path(stops, steps=10)


path = way(shipped.latent_dim)
cells = {
    name: generate_images(shipped.model, path, np.full(len(path), number))
    for number, name in enumerate(shipped.class_names)
}

# %% [markdown]
# Move the slider with the mouse or with the arrow keys. The red cells and the background stay nearly
# the same in all classes: they belong to the vector. The nucleus and the granules belong to the class.
# The last picture is chapter 2's generator on a walk of its own; it knows no classes. In JupyterLab
# you can choose vector and class, and see the nearest real training cell if PBC is on your machine.
# *Scale* multiplies the vector: below 1 the cells become more typical and more alike.

# %% tags=["hide-input"]
note = f"Generated, not real, and not selected. Trained on {shipped.credit}."
(chapter.out / "explorer.html").write_text(explorer.html(cells, 10, note), "utf-8")
own = {"chapter 2, no class": generate_images(generator, way(latent_dim))}
if interactive():
    display(explorer.live(shipped, generator))
else:
    display(HTML(explorer.html(cells | own, 10, note)))

# %% [markdown]
# Do you see the classes, too? Two cells of each, in random order, make a short test: say which class
# you see. It tells the class that each cell was generated as.

# %% tags=["hide-input"]
mixed = np.random.default_rng(seed).permutation(
    np.repeat(np.arange(len(shipped.class_names)), 2)
)
test_cells = np.stack(
    [shipped.generate(int(k), 1, (seed, n))[0] for n, k in enumerate(mixed)]
)
source = f"generated by pbc-fine-64, which was trained on {shipped.credit}"
quiz = expert_page.page(test_cells, source, shipped.class_names, answers=mixed)
(chapter.out / "which-class.html").write_text(quiz, "utf-8")
if interactive():
    display(expert_page.frame(quiz))
else:
    display(HTML('<p><a href="which-class.html">Which class is it?</a></p>'))

# %% [markdown] tags=["new-page"]
# ## The latent vector of a real<!-- run --> cell
#
# For an image $I$ the best latent vector is
#
# $$\tilde{z} = \underset{z}{\operatorname{argmin}}\;\lVert I - G(z) \rVert. \tag{41}$$
#
# The thesis trained a network that gives this vector directly: the discriminator's convolutions with
# 100 outputs instead of one. It is trained so that the generator's image of its output is close to the
# input image, in the mean absolute difference ($L^1$). The generator does not change.

# %%
show(networks.image_to_latent, latent.autoencoder)

# %%
encoder = networks.image_to_latent(image_size, encoder_depth, latent_dim, kernel)
both = latent.autoencoder(encoder, generator)
adam = keras.optimizers.Adam(encoder_learning_rate)
both.compile(optimizer=adam, loss="mae", jit_compile=use_xla())

# %%
reader = Reader(
    splits["generator"],
    image_size,
    encoder_batch_size,
    seed=seed,
    targets="images",
    memory_mb=memory_mb,
)
history = chapter.fit(both, reader, encoder_epochs, label="image-to-latent network")

# %% mystnb={"figure": {"caption": "Mean absolute difference between real training images and their reconstructions, in the network's units (2 is black against white).", "name": "fig-encoder-loss"}}
figures.loss_curves(
    history, {"loss": "training images"}, ylabel="mean absolute difference"
)

# %% [markdown]
# The alternative to the network is direct optimisation: start at the network's answer and follow the
# gradient of {eq}`eq-41`, for each image separately. It is slower but never worse. We use test images,
# which neither network has seen.

# %%
chosen = splits["test"].sample(optimise_images, seed=seed)
real = chosen.read(image_size)
encoded_z = encoder.predict(to_float(real), verbose=0)
encoded = generate_images(generator, encoded_z)

# %%
optimised_z, descent = latent.optimise(
    generator, real, optimise_steps, optimise_learning_rate, seed=seed, start=encoded_z
)
optimised = generate_images(generator, optimised_z)

# %% mystnb={"figure": {"caption": "Real test images (top), what the image-to-latent network makes of them, and the same after direct optimisation.", "name": "fig-reconstructions"}}
figures.image_rows({chapter.real: real, "network": encoded, "optimised": optimised})

# %%
errors = {
    "network": latent.reconstruction_error(real, encoded).mean(),
    "optimised": latent.reconstruction_error(real, optimised).mean(),
}
scrambled = latent.reconstruction_error(real, np.roll(encoded, 1, axis=0)).mean()

# %% tags=["hide-input"]
Markdown(
    f"Mean absolute difference in grey levels: network **{errors['network']:.1f}**, "
    "optimised "
    f"**{errors['optimised']:.1f}**. Compared with a wrong cell the reconstructions "
    "differ by "
    f"{scrambled:.1f}; a useful reconstruction must be better than that."
)

# %% [markdown]
# ## Small variations
#
# Noise that is added to a latent vector gives new cells close to a given one:
#
# $$I_{\text{perturbed}}(\tilde{z}, \epsilon) = G(\tilde{z} + \epsilon), \qquad
# \epsilon \in \mathcal{N}(0, \sigma^2 I). \tag{42}$$
#
# The thesis chose $\sigma^2 = 0.04$. The noise increases from row to row. Look for the row where a
# variation becomes another cell.

# %%
variances = sorted({variance, variance / 4, variance * 6.25, 1.0})
rng = np.random.default_rng(seed + 1)
near = {v: latent.perturb(optimised_z[0], v, count=5, rng=rng) for v in variances}
variants = {v: generate_images(generator, z) for v, z in near.items()}

# %% mystnb={"figure": {"caption": "A reconstructed cell (left) and five variations at each variance of the noise.", "name": "fig-perturbations"}}
rows = {f"σ² = {v:g}": np.concatenate([optimised[:1], x]) for v, x in variants.items()}
figures.image_rows(rows, heads=["original", "1", "2", "3", "4", "5"])

# %%
moved = {
    v: float(
        np.mean(
            [distances.mean_pairwise_distance(np.stack([optimised[0], x])) for x in xs]
        )
    )
    for v, xs in variants.items()
}

# %%
pd.Series(moved, name="mean distance to the reconstruction (grey levels)").rename_axis(
    "variance"
).to_frame().style.format(precision=1).format_index("{:g}")

# %% [markdown]
# ## Between two real<!-- run --> cells of one class
#
# The thesis suggests a safer way to new cells: interpolate between the reconstructions of two
# real<!-- run --> cells of one class. Their latent vectors come from the network and are then optimised.

# %%
largest = int(splits["test"].counts().to_numpy().argmax())
two = splits["test"].of_class(largest).sample(2, seed=seed).read(image_size)
start = encoder.predict(to_float(two), verbose=0)
pair_z, _ = latent.optimise(
    generator, two, optimise_steps, optimise_learning_rate, seed=seed, start=start
)
between = generate_images(generator, latent.interpolate(*pair_z, steps=8))

# %% mystnb={"figure": {"caption": "Interpolation between the reconstructions of two real cells of the class with most test images; the two real cells stand at the ends.", "name": "fig-real-interpolation"}}
figures.image_grid(
    np.concatenate([two[:1], between, two[1:]]),
    columns=11,
    captions=[chapter.real, *(f"{k}/8" for k in range(9)), chapter.real],
)

# %% [markdown]
# ## What we saw, and what the thesis saw

# %% tags=["nbval-check-output"]
theirs = thesis()["latent_space"]
chapter.compare(
    {
        "steps of an interpolation": (str(theirs["steps"]), str(len(line) - 1)),
        "variance of the noise": (f"{theirs['variance']:g}", f"{variance:g}"),
        "learning rate of the network": (
            f"{theirs['learning_rate']:.0e}",
            f"{encoder_learning_rate:.0e}",
        ),
    }
)

# %%
chapter.compare(
    {
        "interpolation": (
            "smooth, with small jumps",
            f"largest step {max(steps) / np.mean(steps):.1f} times the mean "
            f"(shipped: {max(shipped_steps) / np.mean(shipped_steps):.1f})",
        ),
        "reconstruction by the network": (
            "shape kept, detail lost (by eye)",
            f"{errors['network']:.1f} grey levels",
        ),
        "direct optimisation of Eq. 41": (
            "not done",
            f"{errors['optimised']:.1f} grey levels",
        ),
        "variations": (
            "small changes, some large ones",
            f"{moved[variance]:.1f} grey levels from the reconstruction",
        ),
    }
)

# %% [markdown]
# ## What it means
#
# The error that remains after direct optimisation is the generator's: it cannot draw that cell. And
# steps in latent space do not respect classes. Noise that only varies one cell may turn another into a
# cell of a neighbouring class. This is why the thesis did not train a classifier on such images.
#
# **Try it.**
#
# - Set `steps=24` in the first interpolation: do the jumps become smaller?
# - Start the optimisation without the network (leave out `start=`) and compare the errors.
# - Replace the generator by `load_generator("pbc-vanilla-64").model` where `image_size` is 64.
# - Draw the explorer's eleven classes with a scale of 0.5 and of 1.5: what is lost, what breaks?

# %% tags=["remove-cell"]
chapter.finish(
    {
        "interpolation_largest_over_mean_step": max(steps) / float(np.mean(steps)),
        "encoder_loss": history["loss"].iloc[-1],
        "reconstruction_error_network": errors["network"],
        "reconstruction_error_optimised": errors["optimised"],
        "reconstruction_error_wrong_cell": scrambled,
        "perturbation_distance": {f"{v:g}": d for v, d in moved.items()},
        "training_seconds": history["seconds"].sum(),
    }
)
