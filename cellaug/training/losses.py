"""What the two networks are trained to minimise (Sections 3.11 to 3.13).

An objective has two methods, ``discriminator(real_out, fake_out, labels)`` and
``generator(fake_out, labels, real_out)``, which take the discriminator's outputs for real and for
generated images and give one number, the mean over the batch. The generator's ``real_out`` is None
unless the objective has ``paired = True``. The outputs are logits l, of which the sigmoid
is the thesis's probability D(x) = 1 / (1 + exp(-l)); so log D = -softplus(-l) and
log(1 - D) = -softplus(l), which neither overflow nor lose their gradient to rounding.
"""

from typing import Any

from keras import KerasTensor, losses, ops


def probability(out: Any) -> KerasTensor:
    """The probability of being real that a discriminator's output stands for: D(x) of Eq. 29."""
    return ops.sigmoid(out[0] if isinstance(out, list | tuple) else out)


class CrossEntropy:
    """The game of Eq. 29, and of Eq. 32 where both networks are also given the label.

    The discriminator minimises the negative of V, the cross-entropy of Eq. 1 with target 1 for real
    and 0 for generated images:

        L_D = -E[log D(x)] - E[log(1 - D(G(z)))]

    Eq. 31 as printed, E[log(1 - D(x))] + E[log D(G(z))], is not that: it is V itself with real and
    generated images changed round. It too falls as D(x) rises and D(G(z)) falls, so it asks for the
    same answers, but it has no lower bound, pulls hardest on images that are already judged right
    and fades on those judged wrong. The loss here is the one that Section 4.4 says was used,
    cross-entropy.

    The generator minimises -E[log D(G(z))], the form that Goodfellow et al. recommend because it
    still pulls where the discriminator is sure, or with ``saturating=True`` Eq. 30 word for word,
    E[log(1 - D(G(z)))]. The two have the same fixed point.
    """

    def __init__(self, saturating: bool = False):
        self.saturating = saturating

    def discriminator(
        self, real_out: KerasTensor, fake_out: KerasTensor, labels: Any = None
    ) -> KerasTensor:
        """L_D from the logits (N, 1) of real and of generated images; the labels are not used."""
        return ops.mean(ops.softplus(-real_out)) + ops.mean(ops.softplus(fake_out))

    def generator(
        self, fake_out: KerasTensor, labels: Any = None, real_out: Any = None
    ) -> KerasTensor:
        """L_G from the logits (N, 1) of generated images; nothing else is used."""
        if self.saturating:
            return -ops.mean(ops.softplus(fake_out))
        return ops.mean(ops.softplus(-fake_out))


class AuxiliaryClassifier:
    """The AC-GAN's objective, Eq. 33, on ``[real/fake logits (N, 1), class logits (N, C)]``.

    The discriminator minimises -(L_S + L_C). The generator minimises -(L_C - L_S), of which the
    terms on generated images are its own to change: L_S falls when they pass for real. As in
    `CrossEntropy` its share of L_S is taken in the form that does not saturate unless asked.

    Args:
        fakes_in_class_loss: whether the discriminator also learns the classes from generated
            images, as Eq. 33 has it. Without, it learns them from real images alone, and what a
            class looks like is not a matter that the two networks settle between them.
        saturating: as in `CrossEntropy`.
    """

    def __init__(self, fakes_in_class_loss: bool = True, saturating: bool = False):
        self.fakes_in_class_loss = fakes_in_class_loss
        self.source = CrossEntropy(saturating)

    def discriminator(self, real_out: Any, fake_out: Any, labels: KerasTensor) -> KerasTensor:
        """-(L_S + L_C); generated images were asked for with the same labels as the real ones."""
        loss = self.source.discriminator(real_out[0], fake_out[0]) + class_loss(real_out[1], labels)
        if self.fakes_in_class_loss:
            loss = loss + class_loss(fake_out[1], labels)
        return loss

    def generator(self, fake_out: Any, labels: KerasTensor, real_out: Any = None) -> KerasTensor:
        """-(L_C - L_S) on generated images."""
        return self.source.generator(fake_out[0]) + class_loss(fake_out[1], labels)


class Wasserstein:
    """The game of Arjovsky et al. (2017), whose discriminator is a critic f without a sigmoid.

        L_D = E[f(G(z))] - E[f(x)],  L_G = -E[f(G(z))]

    The critic must be kept from growing: by `UnitGradient`, which makes it WGAN-GP, or by
    ``clip`` of `Adversarial`, as in the first paper. The thesis names it as what to try next.
    """

    def discriminator(
        self, real_out: KerasTensor, fake_out: KerasTensor, labels: Any = None
    ) -> KerasTensor:
        """L_D from the outputs (N, 1) for real and for generated images."""
        return ops.mean(fake_out) - ops.mean(real_out)

    def generator(
        self, fake_out: KerasTensor, labels: Any = None, real_out: Any = None
    ) -> KerasTensor:
        """L_G from the outputs (N, 1) for generated images."""
        return -ops.mean(fake_out)


class Relativistic:
    """Each real image against the generated one of the same row (Jolicoeur-Martineau 2019).

        L_D = E[softplus(l(G(z)) - l(x))],  L_G = E[softplus(l(x) - l(G(z)))]

    What counts is which of the two looks more real, so a generator that repeats itself is still
    pulled towards every real image. Both rows have the same class.
    """

    paired = True

    def discriminator(
        self, real_out: KerasTensor, fake_out: KerasTensor, labels: Any = None
    ) -> KerasTensor:
        """L_D from the logits (N, 1) of real and of generated images."""
        return ops.mean(ops.softplus(fake_out - real_out))

    def generator(
        self, fake_out: KerasTensor, labels: Any = None, real_out: Any = None
    ) -> KerasTensor:
        """L_G from the logits (N, 1) of generated and of real images."""
        return ops.mean(ops.softplus(real_out - fake_out))


class WrongLabels:
    """Adds to an objective that an image must look more real under its own label than another.

    For outputs ``[logits (N, 1), logits with every label (N, C)]``. To what the discriminator
    minimises comes, over real images x of class y and all other labels y', with l the logit

        w E[softplus(l(x, y') - l(x, y))]

    A real image under a wrong label is then judged as a generated one is in `Relativistic`: Reed et
    al. (2016) first showed a discriminator such pairs. Without them it may tell real from generated
    and never ask for the class; with too large a weight the generator draws cells more typical of
    their class than real ones are. Nothing is added to what the generator minimises.

    Args:
        source: the objective for real and generated images.
        weight: w, above 0.
    """

    def __init__(self, source: Any, weight: float = 1.0):
        self.source = source
        self.weight = weight
        self.paired = getattr(source, "paired", False)

    def discriminator(self, real_out: Any, fake_out: Any, labels: KerasTensor) -> KerasTensor:
        """That of the source, and the weighted mean over images and wrong labels."""
        own, every = real_out
        wrong = 1 - ops.one_hot(ops.cast(labels, "int32"), every.shape[-1], dtype=every.dtype)
        harder = ops.sum(wrong * ops.softplus(every - own)) / ops.sum(wrong)
        return self.source.discriminator(own, fake_out[0], labels) + self.weight * harder

    def generator(self, fake_out: Any, labels: KerasTensor, real_out: Any = None) -> KerasTensor:
        """That of the source."""
        return self.source.generator(fake_out[0], labels, real_out[0] if self.paired else None)


def class_loss(logits: KerasTensor, labels: KerasTensor) -> KerasTensor:
    """-E[log P(C = c | X)], one expectation of L_C: logits (N, C), integer labels (N,)."""
    return ops.mean(losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))
