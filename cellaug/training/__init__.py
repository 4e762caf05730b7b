"""Training: objectives, the adversarial step, and a loop that can be stopped and resumed."""

from cellaug.training.adversarial import Adversarial, generate_images, use_xla
from cellaug.training.callbacks import Progress, SampleImages, StopOnNonFinite, load_samples
from cellaug.training.checkpoint import Mismatch, restore, save
from cellaug.training.loop import fit
from cellaug.training.losses import AuxiliaryClassifier, CrossEntropy

__all__ = [
    "Adversarial",
    "AuxiliaryClassifier",
    "CrossEntropy",
    "Mismatch",
    "Progress",
    "SampleImages",
    "StopOnNonFinite",
    "fit",
    "generate_images",
    "load_samples",
    "restore",
    "save",
    "use_xla",
]
