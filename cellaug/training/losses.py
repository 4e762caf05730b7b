"""The losses that generator and discriminator minimise (Sections 3.11 to 3.13).

An objective has two methods, ``discriminator(real_out, fake_out, labels)`` and
``generator(fake_out, labels, real_out)``, which give one number, the mean over the batch. The
generator's ``real_out`` is None unless the objective has ``paired = True``. The outputs are logits
l (N, 1) with D(x) = 1 / (1 + exp(-l)); so log D = -softplus(-l) and log(1 - D) = -softplus(l),
which neither overflow nor lose their gradient to rounding.
"""

from typing import Any

from keras import KerasTensor as Tensor
from keras import losses, ops


class CrossEntropy:
    """The GAN of Eq. 29, and of Eq. 32 where both networks are also given the label.

        L_D = -E[log D(x)] - E[log(1 - D(G(z)))],  L_G = -E[log D(G(z))]

    L_D is the cross-entropy of Section 4.4; Eq. 31 as printed swaps real and generated images, and
    has no lower bound. L_G keeps a gradient where the discriminator is sure (Goodfellow et al.
    2014); ``saturating=True`` is Eq. 30 word for word, E[log(1 - D(G(z)))].
    """

    def __init__(self, saturating: bool = False):
        self.saturating = saturating

    def discriminator(
        self,
        real_out: Tensor,
        fake_out: Tensor,
        labels: Any = None,
    ) -> Tensor:
        """L_D; the labels are not used."""
        return ops.mean(ops.softplus(-real_out)) + ops.mean(ops.softplus(fake_out))

    def generator(
        self,
        fake_out: Tensor,
        labels: Any = None,
        real_out: Any = None,
    ) -> Tensor:
        """L_G; only the generated images are used."""
        if self.saturating:
            return -ops.mean(ops.softplus(fake_out))
        return ops.mean(ops.softplus(-fake_out))


class AuxiliaryClassifier:
    """The AC-GAN's objective, Eq. 33, on ``[real/fake logits (N, 1), class logits (N, C)]``.

    The discriminator minimises -(L_S + L_C), the generator -(L_C - L_S) on generated images, with
    L_S as in `CrossEntropy`.
    """

    def __init__(self, saturating: bool = False):
        self.source = CrossEntropy(saturating)

    def discriminator(self, real_out: Any, fake_out: Any, labels: Tensor) -> Tensor:
        """-(L_S + L_C); the generated images have the same labels as the real ones."""
        loss = self.source.discriminator(real_out[0], fake_out[0])
        return loss + class_loss(real_out[1], labels) + class_loss(fake_out[1], labels)

    def generator(self, fake_out: Any, labels: Tensor, real_out: Any = None) -> Tensor:
        """-(L_C - L_S) on generated images."""
        return self.source.generator(fake_out[0]) + class_loss(fake_out[1], labels)


class Relativistic:
    """Each real image against the generated one of the same row (Jolicoeur-Martineau 2019).

        L_D = E[softplus(l(G(z)) - l(x))],  L_G = E[softplus(l(x) - l(G(z)))]

    A generator that repeats itself still gets a gradient towards every real image.
    """

    paired = True

    def discriminator(
        self,
        real_out: Tensor,
        fake_out: Tensor,
        labels: Any = None,
    ) -> Tensor:
        """L_D; the labels are not used."""
        return ops.mean(ops.softplus(fake_out - real_out))

    def generator(
        self,
        fake_out: Tensor,
        labels: Any = None,
        real_out: Any = None,
    ) -> Tensor:
        """L_G; the labels are not used."""
        return ops.mean(ops.softplus(real_out - fake_out))


class WrongLabels:
    """Adds to an objective that a real image must look more real with its own label than another.

    For outputs ``[logits (N, 1), logits with every label (N, C)]``. The discriminator's loss of the
    objective `source` gets w E[softplus(l(x, y') - l(x, y))], over real images x of class y and all
    other labels y' (after Reed et al. 2016). Without it the discriminator may ignore the class; too
    large a w makes generated cells more typical of their class than real ones.
    """

    def __init__(self, source: Any, weight: float = 1.0):
        self.source, self.weight = source, weight
        self.paired = getattr(source, "paired", False)

    def discriminator(self, real_out: Any, fake_out: Any, labels: Tensor) -> Tensor:
        """That of the source, and the weighted mean over images and wrong labels."""
        own, every = real_out
        labels, classes = ops.cast(labels, "int32"), every.shape[-1]
        wrong = 1 - ops.one_hot(labels, classes, dtype=every.dtype)
        harder = ops.sum(wrong * ops.softplus(every - own)) / ops.sum(wrong)
        loss = self.source.discriminator(own, fake_out[0], labels)
        return loss + self.weight * harder

    def generator(self, fake_out: Any, labels: Tensor, real_out: Any = None) -> Tensor:
        """That of the source."""
        real = real_out[0] if self.paired else None
        return self.source.generator(fake_out[0], labels, real)


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """-E[log P(C = c | X)], one expectation of L_C: logits (N, C), integer labels (N,)."""
    return ops.mean(losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))


class R1:
    """γ/2 · E‖∇D(x)‖² at real images (Mescheder et al. 2018), a penalty on the discriminator.

    With `r2` the same at generated images is added (Huang et al. 2024). Lazy (Karras et al. 2020):
    it is computed on each `every`-th step only and multiplied by `every`. For images in [-1, 1] of
    64 px in batches of 64, γ is about 0.01 to 0.1.
    """

    def __init__(self, gamma: float = 0.02, every: int = 8, r2: bool = False):
        self.gamma, self.every, self.r2 = gamma, every, r2

    def points(self, real: Tensor, fake: Tensor, mix: Tensor) -> list[Tensor]:
        """The batches of images (N, H, W, C) at which the gradient is taken."""
        return [real, fake] if self.r2 else [real]

    def value(self, gradients: Tensor) -> Tensor:
        """γ/2 times the mean squared norm of the gradients (N, H, W, C)."""
        return self.gamma / 2 * ops.mean(ops.sum(ops.square(gradients), axis=(1, 2, 3)))
