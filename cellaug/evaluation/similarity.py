"""How like or unlike images are: the nearest real image, and the diversity inside a class.

The distance used throughout is the root mean square difference of two images in grey levels
(0–255), over all pixels and colours, after both were reduced to 32×32 pixels by averaging areas.
The reduction forgives noise and the smallest shifts; what remains is which cell lies where, in
which colours. 0 means the same picture; two cells of one class of PBC are some 30 to 40 apart.
"""

from collections.abc import Sequence

from cellaug.data.images import check_images

import cv2
import numpy as np
import pandas as pd

SIDE = 32
"""Pixels a side at which images are compared; smaller images are compared as they are."""

CHUNK = 1024


def nearest(query: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each image of `query`, the most similar one of `candidates`.

    Both are uint8 N×H×W×3 of one size. Returns the candidates' indices, int64 (N,), and their
    distances in grey levels, float64 (N,). Memory stays bounded by chunks of 1,024 images.
    """
    query, candidates = check_images(query, "query"), check_images(candidates, "candidates")
    if query.shape[1:] != candidates.shape[1:]:
        raise ValueError(
            "query and candidates must have one image size, but have "
            f"{query.shape[1:3]} and {candidates.shape[1:3]} pixels"
        )
    if not len(candidates):
        raise ValueError("candidates: expected at least one image to compare with")
    indices = np.zeros(len(query), np.int64)
    distances = np.zeros(len(query))
    for start in range(0, len(query), CHUNK):
        part = reduced(query[start : start + CHUNK])
        least = np.full(len(part), np.inf)
        best = np.zeros(len(part), np.int64)
        chosen = np.zeros_like(part)
        for first in range(0, len(candidates), CHUNK):
            other = reduced(candidates[first : first + CHUNK])
            # |a − b|² without |a|², which is the same for every candidate
            score = (other**2).sum(1) - 2 * part @ other.T
            place = score.argmin(1)
            lowest = score[np.arange(len(part)), place]
            better = lowest < least
            least[better] = lowest[better]
            best[better] = first + place[better]
            chosen[better] = other[place[better]]
        indices[start : start + CHUNK] = best
        distances[start : start + CHUNK] = np.sqrt(((part - chosen) ** 2).mean(1))
    return indices, distances


def mean_pairwise_distance(images: np.ndarray, max_pairs: int = 2000, seed: int = 0) -> float:
    """Mean distance between two different images of a set, in grey levels; near 0 means collapse.

    `images` is uint8 N×H×W×3 with at least two images. All pairs count where there are at most
    `max_pairs` of them; otherwise that many are drawn at random from `seed`.
    """
    images = check_images(images, "images")
    count = len(images)
    if count < 2:
        raise ValueError(f"images: a distance between images needs two of them, but got {count}")
    if count * (count - 1) // 2 <= max_pairs:
        first, second = np.triu_indices(count, 1)
    else:
        rng = np.random.default_rng(seed)
        first = rng.integers(count, size=max_pairs)
        second = (first + rng.integers(1, count, size=max_pairs)) % count
    total = 0.0
    for start in range(0, len(first), CHUNK):
        chunk = slice(start, start + CHUNK)
        difference = reduced(images[first[chunk]]) - reduced(images[second[chunk]])
        total += np.sqrt((difference**2).mean(1)).sum()
    return float(total / len(first))


def diversity(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    max_pairs: int = 2000,
    seed: int = 0,
) -> pd.Series:
    """Mean pairwise distance inside each class, in grey levels, by class name.

    NaN for a class with fewer than two images: it has no distance.
    """
    images, labels = check_images(images, "images"), np.asarray(labels)
    if labels.shape != (len(images),):
        raise ValueError(f"labels: expected one per image ({len(images)}), got {labels.shape}")
    values = {}
    for k, name in enumerate(class_names):
        members = images[labels == k]
        values[name] = (
            mean_pairwise_distance(members, max_pairs, seed) if len(members) > 1 else np.nan
        )
    return pd.Series(values, name="diversity", dtype=float)


def reduced(images: np.ndarray) -> np.ndarray:
    """Images as rows of float64 grey levels, area-averaged to at most SIDE pixels a side."""
    height, width = images.shape[1:3]
    if max(height, width) > SIDE:
        images = [
            cv2.resize(
                image.astype(np.float32),
                (min(width, SIDE), min(height, SIDE)),
                interpolation=cv2.INTER_AREA,
            )
            for image in images
        ]
    # centred, so that the squares below stay small and exact enough
    return np.asarray(images, np.float64).reshape(len(images), -1) - 127.5
