"""A machine in the expert's place: a small classifier that learns to tell real from generated."""

from collections.abc import Iterator

import numpy as np


def machine_expert(
    real_train: np.ndarray,
    fake_train: np.ndarray,
    trial_images: np.ndarray,
    seed: int = 0,
    steps: int = 300,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
) -> np.ndarray:
    """Train a compact Xception on real against generated images, then let it take the trial.

    All images are uint8 RGB of one size. Each of the `steps` shows half a batch of real and half a
    batch of generated images, however many there are of each, so that neither answer is likelier
    beforehand. Returns bool (N,): True where the machine says real; compare with the trial's
    truth by `expert.score`.

    Raises ValueError where an image of the trial is also one to train on (the machine would know
    the answer), or where sizes differ.
    """
    from cellaug.backend import use_xla
    from cellaug.data import to_float
    from cellaug.networks import classifier

    import keras

    sets = {"real_train": real_train, "fake_train": fake_train, "trial_images": trial_images}
    shape = trial_images.shape[1:]
    for name, images in sets.items():
        if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
            raise ValueError(
                f"{name}: expected at least one uint8 image of the trial's size {shape}, got "
                f"{images.dtype} {images.shape}"
            )
    seen = {image.tobytes() for images in (real_train, fake_train) for image in images}
    known = sum(image.tobytes() in seen for image in trial_images)
    if known:
        raise ValueError(
            f"{known} of the trial's {len(trial_images)} images are among those to train on: "
            "take them out of real_train and fake_train"
        )

    model = classifier("compact", shape[0], 2, seed=seed)
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=use_xla(),
    )
    rng = np.random.default_rng(seed)
    half = batch_size // 2
    fakes, reals = _endless(fake_train, half, rng), _endless(real_train, half, rng)
    labels = np.repeat([0, 1], half)
    for _ in range(steps):
        model.train_on_batch(to_float(np.concatenate([next(fakes), next(reals)])), labels)
    logits = model.predict(to_float(trial_images), batch_size=batch_size, verbose=0)
    return np.asarray(logits).argmax(1) == 1


def _endless(images: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Batches without end, in which every image comes up equally often."""
    order = np.zeros(0, int)
    while True:
        while len(order) < size:
            order = np.concatenate([order, rng.permutation(len(images))])
        yield images[order[:size]]
        order = order[size:]
