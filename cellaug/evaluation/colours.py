"""Unusual colours: cells whose colours or grain hardly any real cell has.

Some latent vectors lead a generator into coloured noise, or onto a background that no slide has. A
mean over all cells hides these few; here each is held against the real ones by itself.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from sklearn.covariance import ledoit_wolf

USUAL = 0.99
"""Share of the real images beyond which colours are called unusual."""

FEWEST = 200
"""Real images in a half without which their 1 % is too few to say anything."""


def colour_statistics(images: np.ndarray) -> np.ndarray:
    """Fifteen numbers (N, 15) on the colours of uint8 RGB images (N, S, S, 3).

    For each channel of CIELAB, in the 256 levels of OpenCV: mean, standard deviation, first and
    99th percentile over the pixels, and the standard deviation of what a Gaussian blur of 1.5
    pixels takes away, the grain.
    """
    rows = []
    for image in images:
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
        grain = (lab - cv2.GaussianBlur(lab, (0, 0), 1.5)).reshape(-1, 3)
        pixels = lab.reshape(-1, 3)
        low, high = np.percentile(pixels, [1, 99], axis=0)
        rows.append([pixels.mean(0), pixels.std(0), low, high, grain.std(0)])
    return np.array(rows, float).reshape(len(rows), 15)


def unusual(
    reference: np.ndarray, others: Sequence[np.ndarray], usual: float = USUAL
) -> list[np.ndarray]:
    """Which rows (n, d) of each of `others` are farther out than a share of a reference (m, d).

    By the Mahalanobis distance from the mean of the reference, with its own covariance, shrunk
    (Ledoit & Wolf 2004) as far as few rows need it.
    """
    mean, spread = reference.mean(0), np.maximum(reference.std(0), 1e-9)
    covariance = ledoit_wolf((reference - mean) / spread)[0]
    inverse = np.linalg.pinv(covariance) / np.outer(spread, spread)

    def squared(points: np.ndarray) -> np.ndarray:
        away = points - mean
        return np.einsum("ij,jk,ik->i", away, inverse, away)

    limit = np.quantile(squared(reference), usual)
    return [squared(points) > limit for points in others]
