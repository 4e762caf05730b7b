# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Latent space
#
# The generator maps a space of 100 numbers to images of cells. What lies between two points of it?
# Which point makes *this* real cell? And what are its neighbours? This chapter walks the latent
# space of chapter 2's generator.
#
# **What you will see:** one cell turning into another in eight steps, real cells and their
# reconstructions by two routes, neighbours of a reconstructed cell at growing noise, and the way
# between the reconstructions of two real cells of one class.

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
from cellaug import figures, latent, networks
from cellaug.augmentation import load_generator
from cellaug.book import Chapter, thesis
from cellaug.data import to_float
from cellaug.data.reader import Reader
from cellaug.evaluation import similarity
from cellaug.training import fit, generate_images, use_xla

import keras
import numpy as np
from IPython.display import Markdown

chapter = Chapter("04_latent_space", globals())
figures.use_style()

# %%
generator = load_generator(chapter.inputs("02_vanilla_gan") / "vanilla").model
sides = chapter.splits()

# %% [markdown]
# ## Between two cells
#
# A straight line from $z_1$ to $z_2$ in $n$ steps,
#
# $$\hat{z}_k = z_1 + \frac{z_2 - z_1}{n}\,k, \tag{40}$$
#
# goes through latent vectors that the generator has hardly met. Look for jumps: a generator that
# had only memorised would have to leap from one memory to the next.

# %% tags=["nbval-check-output"]
rng = np.random.default_rng(seed)
z_1, z_2 = rng.standard_normal((2, latent_dim)).astype("float32")
line = latent.interpolate(z_1, z_2, steps=8)
print(f"{len(line)} latent vectors of {line.shape[1]} numbers each")
print("halfway lies the mean of the ends:", np.allclose(line[4], (z_1 + z_2) / 2))

# %%
walk = generate_images(generator, line)

# %% mystnb={"figure": {"caption": "From one generated cell to another in eight steps along a straight line.", "name": "fig-interpolation"}}
figures.interpolation(walk)

# %% [markdown]
# How even are the steps? Each image is compared with the next; a jump would stand out.

# %%
steps = [similarity.mean_pairwise_distance(walk[k : k + 2]) for k in range(8)]
ends = similarity.mean_pairwise_distance(walk[[0, 8]])

# %% tags=["hide-input"]
Markdown(
    f"The largest step is **{max(steps):.1f}** grey levels, the smallest {min(steps):.1f}; "
    f"the two ends are {ends:.1f} apart."
)

# %% [markdown]
# ## The latent vector of a real cell
#
# For an image $I$ the best latent vector is
#
# $$\tilde{z} = \underset{z}{\operatorname{argmin}}\;\lVert I - G(z) \rVert. \tag{41}$$
#
# The thesis trained a network to answer at once: the discriminator's convolutions with 100 outputs
# instead of one, trained so that the generator's image of its answer comes close to the image it
# was given, in the mean absolute difference ($L^1$). The generator stays as it is.

# %%
encoder = networks.image_to_latent(image_size, encoder_depth, latent_dim, kernel)
both = latent.autoencoder(encoder, generator)
adam = keras.optimizers.Adam(encoder_learning_rate)
both.compile(optimizer=adam, loss="mae", jit_compile=use_xla())

# %%
reader = Reader(
    sides["generator"],
    image_size,
    encoder_batch_size,
    seed=seed,
    targets="images",
    memory_mb=memory_mb,
)
history = fit(
    both,
    reader,
    encoder_epochs,
    checkpoint=chapter.checkpoints / "encoder",
    settings=chapter.parameters | {"data": sides["generator"].fingerprint},
    restart=True,
    label="image-to-latent network",
)

# %% mystnb={"figure": {"caption": "Mean absolute difference between real training images and their reconstructions, in the network's units (2 is black against white).", "name": "fig-encoder-loss"}}
figures.loss_curves(history, {"loss": "training images"}, ylabel="mean absolute difference")

# %% [markdown]
# Beside the network, the direct way: start at its answer and follow the gradient of {eq}`eq-41`
# for each image separately. It is slow, and it cannot do worse. Test images, so neither the
# generator nor the network has met them.

# %%
chosen = sides["test"].sample(optimise_images, seed=seed)
real = chosen.read(image_size)
encoded_z = encoder.predict(to_float(real), verbose=0)
encoded = generate_images(generator, encoded_z)

# %%
optimised_z, descent = latent.optimise(
    generator, real, optimise_steps, optimise_learning_rate, seed=seed, start=encoded_z
)
optimised = generate_images(generator, optimised_z)

# %% mystnb={"figure": {"caption": "Real test images (top), what the image-to-latent network makes of them, and the same after direct optimisation.", "name": "fig-reconstructions"}}
figures.reconstructions(real, encoded, optimised)

# %%
errors = {
    "network": latent.reconstruction_error(real, encoded).mean(),
    "optimised": latent.reconstruction_error(real, optimised).mean(),
}
scrambled = latent.reconstruction_error(real, np.roll(encoded, 1, axis=0)).mean()

# %% tags=["hide-input"]
Markdown(
    f"Mean absolute difference in grey levels: network **{errors['network']:.1f}**, optimised "
    f"**{errors['optimised']:.1f}**; reconstructions compared with the wrong cell "
    f"{scrambled:.1f}, which is what a reconstruction has to beat."
)

# %% [markdown]
# ## Neighbours
#
# New cells close to a given one, by adding noise to its latent vector:
#
# $$I_{\text{perturbed}}(\tilde{z}, \epsilon) = G(\tilde{z} + \epsilon), \qquad
# \epsilon \in \mathcal{N}(0, \sigma^2 I). \tag{42}$$
#
# The thesis settled on $\sigma^2 = 0.04$. From row to row the noise grows; look for the point
# where a cell stops being a variant and becomes another cell.

# %%
variances = sorted({variance, variance / 4, variance * 6.25, 1.0})
rng = np.random.default_rng(seed + 1)
near = {v: latent.perturb(optimised_z[0], v, count=5, rng=rng) for v in variances}
variants = {v: generate_images(generator, z) for v, z in near.items()}

# %% mystnb={"figure": {"caption": "A reconstructed cell (left) and five neighbours at each variance.", "name": "fig-perturbations"}}
figures.perturbations(optimised[0], variants)

# %%
moved = {
    v: float(np.mean([similarity.mean_pairwise_distance(np.stack([optimised[0], x])) for x in xs]))
    for v, xs in variants.items()
}

# %% tags=["hide-input"]
Markdown(
    "| variance | mean distance to the reconstruction (grey levels) |\n|---|---|\n"
    + "\n".join(f"| {v:g} | {d:.1f} |" for v, d in moved.items())
)

# %% [markdown]
# ## Between two real cells of one class
#
# The thesis suggests a safer way to new cells: between the reconstructions of two real cells of
# one class. Its latent vectors are found by both routes in turn, the network first.

# %%
largest = int(sides["test"].counts().to_numpy().argmax())
two = sides["test"].of_class(largest).sample(2, seed=seed).read(image_size)
start = encoder.predict(to_float(two), verbose=0)
pair_z, _ = latent.optimise(
    generator, two, optimise_steps, optimise_learning_rate, seed=seed, start=start
)
between = generate_images(generator, latent.interpolate(*pair_z, steps=8))

# %% mystnb={"figure": {"caption": "Interpolation between the reconstructions of two real cells of the class with most test images; the two real cells stand at the ends.", "name": "fig-real-interpolation"}}
figures.image_grid(
    np.concatenate([two[:1], between, two[1:]]),
    columns=11,
    titles=["real", *(f"{k}/8" for k in range(9)), "real"],
    scale=0.62,
)

# %% [markdown]
# ## What we saw, and what the thesis saw

# %% tags=["hide-input"]
theirs = thesis()["latent_space"]
Markdown(
    "| | thesis | here |\n|---|---|---|\n"
    f"| interpolation in {theirs['steps']} steps | smooth, with small jumps | largest step "
    f"{max(steps) / np.mean(steps):.1f} × the mean step |\n"
    f"| reconstruction by the network | shape kept, detail lost (by eye) | "
    f"{errors['network']:.1f} grey levels |\n"
    f"| direct optimisation of Eq. 41 | not done | {errors['optimised']:.1f} grey levels |\n"
    f"| neighbours at σ² = {theirs['variance']:g} | small changes, some large ones | "
    f"{moved[variance]:.1f} grey levels away |\n"
)

# %% [markdown]
# ## What it means
#
# What direct optimisation cannot reach, no network can: the rest of the error belongs to the
# generator, which has no latent vector for that cell. And a step in latent space has no regard for
# classes. The same noise that varies one cell turns another into its neighbour's class, which is
# why the thesis did not train a classifier on such images.

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
