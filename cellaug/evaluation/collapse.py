"""A callback that stops a run whose generator has collapsed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from cellaug.data import Dataset
from cellaug.evaluation.distances import diversity

import keras
import numpy as np

COLLAPSED = 0.1
"""The `diversity` below which a run counts as collapsed."""

COMPARED = 2000
"""Most real images with which the diversity of generated ones is compared."""


@dataclass(eq=False, repr=False)
class Diversity(keras.callbacks.Callback):
    """Logs the diversity within classes after every epoch, and stops a run that has collapsed.

    It is `evaluation.diversity` of generated over that of real images, averaged over the classes: 1
    is as varied as real cells, 0 one picture per class. `real` are uint8 images (N, H, W, 3) with
    `labels` (N,). Every epoch so many `images` of each class are generated from the same latent
    vectors. A run is stopped once the number was below `floor` for `patience` epochs on end, after
    the first `after` epochs, in which every generator does that.
    """

    real: np.ndarray
    labels: np.ndarray
    images: int = 16
    floor: float = COLLAPSED
    patience: int = 3
    after: int = 5

    @classmethod
    def beside(cls, cells: Dataset, size: int) -> Self:
        """For a training on these cells at `size` pixels; of many some stand for all."""
        real = cells.sample(COMPARED, seed=0)
        return cls(real.read(size), real.labels)

    def __post_init__(self) -> None:
        """Begin with no low epoch."""
        super().__init__()
        self.low = 0

    def resume(self, history: Sequence[Mapping[str, float]]) -> None:
        """Count the low epochs of a run so far, an epoch's numbers for each; `fit` calls this."""
        self.low = 0
        for epoch, numbers in enumerate(history, 1):
            self._count(epoch, numbers.get("diversity", np.inf))

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Measure the real images."""
        self.conditional = len(self.model.generator.inputs) == 2
        if not self.conditional:
            self.labels = np.zeros(len(self.real), int)
        self.names = [str(k) for k in range(self.labels.max() + 1)]
        self.expected = diversity(self.real, self.labels, self.names)
        self.which = np.repeat(np.arange(len(self.names)), self.images)
        shape = (len(self.which), self.model.latent_dim)
        self.latents = np.random.default_rng(0).standard_normal(shape).astype("float32")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Measure the generated ones."""
        images = self.model.generate(self.latents, self.which if self.conditional else None)
        share = float((diversity(images, self.which, self.names) / self.expected).mean())
        if logs is not None:
            logs["diversity"] = share
        self._count(epoch + 1, share)
        if self.low >= self.patience:
            much = f"{100 * share:.0f} % as much as real ones (floor {100 * self.floor:.0f} %)"
            print(f"\nstopped after epoch {epoch + 1}: the generator has collapsed. Cells of one")
            print(f"class differ {much} for {self.low} epochs on end.")
            print("Try a smaller learning rate, or minibatch deviation")
            self.model.stop_training = True

    def _count(self, epochs: int, share: float) -> None:
        self.low = self.low + 1 if share < self.floor and epochs > self.after else 0
