"""Training: objectives, the adversarial step, and a loop that can be stopped and resumed."""

from cellaug.training.augment import Symmetries
from cellaug.training.backends import use_xla
from cellaug.training.checkpoint import Mismatch
from cellaug.training.fit import SampleImages, fit, load_samples
from cellaug.training.gan import Adversarial, generate_images
from cellaug.training.losses import R1, AuxiliaryClassifier, CrossEntropy, Relativistic, WrongLabels
from cellaug.training.recipe import Recipe
