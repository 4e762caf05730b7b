"""The image-to-latent network (Section 4.6, Fig. 26)."""

from cellaug.networks.dcgan import discriminator_body

from keras import Input, Model, layers


def image_to_latent(
    size: int = 256,
    depth: int = 64,
    latent_dim: int = 100,
    kernel: int = 5,
    dropout: float = 0.0,
) -> Model:
    """Images (N, size, size, 3) in [-1, 1] to latent vectors (N, latent_dim).

    The discriminator's body with ``latent_dim`` linear outputs in place of its one. Dropout is off:
    each dropped feature would shift the latent vector that is to be found.
    """
    image = Input((size, size, 3), name="image")
    features = discriminator_body(image, size, depth, kernel, dropout)
    latent = layers.Dense(latent_dim, dtype="float32", name="latent")(features)
    return Model(image, latent, name="image_to_latent")
