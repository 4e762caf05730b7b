"""Training: objectives, the adversarial step, and a loop that can be stopped and resumed."""

from cellaug.backend import use_xla
from cellaug.training.adversarial import Adversarial, generate_images
from cellaug.training.augment import DifferentiableAugmentation, Symmetries
from cellaug.training.callbacks import (
    Diversity,
    Progress,
    SampleImages,
    StopOnNonFinite,
    load_samples,
)
from cellaug.training.checkpoint import Mismatch
from cellaug.training.loop import fit
from cellaug.training.losses import (
    AuxiliaryClassifier,
    CrossEntropy,
    Relativistic,
    Wasserstein,
    WrongLabels,
)
from cellaug.training.penalties import R1, UnitGradient
from cellaug.training.recipe import conditional

__all__ = [
    "Adversarial",
    "AuxiliaryClassifier",
    "CrossEntropy",
    "DifferentiableAugmentation",
    "Diversity",
    "Mismatch",
    "Progress",
    "R1",
    "Relativistic",
    "SampleImages",
    "StopOnNonFinite",
    "Symmetries",
    "UnitGradient",
    "Wasserstein",
    "WrongLabels",
    "conditional",
    "fit",
    "generate_images",
    "load_samples",
    "use_xla",
]
