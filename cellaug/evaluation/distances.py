"""Distances between two sets of points, and between images.

Points are an array (N, d), a row an image: features of a network, or reduced pixels. The distance
of two images is the root mean square of their difference in grey levels (0–255), after both were
area-averaged to 32×32 pixels. Two cells of one class of PBC are some 30 to 40 apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cellaug.data.images import check_images

import cv2
import numpy as np
import pandas as pd
from numpy import ndarray as Array
from sklearn.metrics import pairwise_distances_argmin

SIDE = 32  # pixels at which images are compared; smaller images are compared as they are


LARGEST_GRAM = 6000  # points whose inner products are kept for all half-samples (288 MB)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance of the normal distributions fitted to two sets, (N, d) and (M, d).

    |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), with N − 1 in the covariances (Heusel et al. 2017). Too
    large for small sets: compare sets of one size. ValueError unless N and M are above d.
    """
    count, width = min(len(first), len(second)), first.shape[1]
    if count <= width:
        need = f"at least {width + 1} images in each set, got {count}"
        raise ValueError(f"a Fréchet distance with {width} features needs {need}")
    one, two = _moments(first), _moments(second)
    return _frechet(one, _root(one[1]), two)


def _moments(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return points.mean(0), np.atleast_2d(np.cov(points, rowvar=False))


def _root(covariance: np.ndarray) -> np.ndarray:
    """A matrix R with R Rᵀ = Σ."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:  # singular, which this takes five times as long to allow for
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(np.maximum(values, 0))


def _frechet(first: tuple[Array, Array], root: Array, second: tuple[Array, Array]) -> float:
    (mean, one), (other, two) = first, second
    # Σ₁Σ₂ has the eigenvalues of the symmetric rootᵀ Σ₂ root, whose roots are real for certain
    middle = np.sqrt(np.maximum(np.linalg.eigvalsh(root.T @ two @ root), 0)).sum()
    shift = mean - other
    return float(max(shift @ shift + np.trace(one) + np.trace(two) - 2 * middle, 0))


def kernel_distance(first: Array, second: Array, strata: Sequence[Array] | None = None) -> float:
    """Squared maximum mean discrepancy of two sets, (N, d) and (M, d), N and M at least 2.

    The unbiased estimate with the kernel (x·y / d + 1)³ (Bińkowski et al. 2018), of mean 0 for sets
    of one distribution. `strata` (N,), (M,) name the class of each point where sets were drawn with
    fixed numbers of each class, at least 2: without them the estimate would be too small.
    """
    strata = strata or (np.zeros(len(first), int), np.zeros(len(second), int))
    if min(np.unique(part, return_counts=True)[1].min() for part in strata) < 2:
        need = f"at least 2 images of each class, got {len(first)} and {len(second)} images"
        raise ValueError(f"a kernel distance needs in each set {need}")
    width, parts = first.shape[1], zip((first, second), strata, strict=True)
    within = sum(_within(_kernel(part @ part.T, width), classes) for part, classes in parts)
    return float(within - 2 * _kernel(first @ second.T, width).mean())


def _kernel(inner: np.ndarray, width: int) -> np.ndarray:
    linear = inner / width + 1
    return linear * linear * linear  # a tenth of the time of a power


def _within(kernel: np.ndarray, strata: np.ndarray) -> float:
    """Mean kernel of two independent points: of n in a class, n (n − 1) pairs stand for n²."""
    np.fill_diagonal(kernel, 0)
    total = kernel.sum()
    for name in np.unique(strata):
        members = np.flatnonzero(strata == name)
        total += kernel[np.ix_(members, members)].sum() / (len(members) - 1)
    return total / len(kernel) ** 2


def precision_recall_density_coverage(real: Array, fake: Array, k: int = 5) -> dict[str, float]:
    """How much of `fake` (M, d) is real, and how much of `real` (N, d) it reaches.

    A point's ball reaches to its k-th nearest neighbour in its own set, of more than k points.
    Precision and recall: share of fake points inside the ball of a real one, and of real points
    inside the ball of a fake one, 0–1 (Kynkäänniemi et al. 2019). Density: mean number of real
    balls around a fake point over k. Coverage: share of real points whose ball holds a fake one,
    0–1 (Naeem et al. 2020). For equal distributions density is 1, coverage 1 − ½ᵏ or so.
    """
    if min(len(real), len(fake)) <= k:
        need = f"at least {k + 1} images are needed in each set, got {len(real)} and {len(fake)}"
        raise ValueError(f"with k = {k} neighbours {need}")
    own, other = (_reach(squared_distances(part, part), k) for part in (real, fake))
    return _overlap(squared_distances(real, fake), own, other, k)


def _overlap(between: Array, real_reach: Array, fake_reach: Array, k: int) -> dict[str, float]:
    inside_real, inside_fake = between < real_reach[:, None], between < fake_reach
    return {
        "precision": float(inside_real.any(0).mean()),
        "recall": float(inside_fake.any(1).mean()),
        "density": float(inside_real.sum(0).mean() / k),
        "coverage": float(inside_real.any(1).mean()),
    }


def _reach(squares: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each point to its k-th nearest neighbour, from those of all pairs."""
    np.fill_diagonal(squares, np.inf)
    return np.partition(squares, k - 1, axis=1)[:, k - 1]


@dataclass(frozen=True)
class Part:
    """Some of the points of `Samples`, with what their distances to others take."""

    which: np.ndarray  # their numbers (n,)
    reach: np.ndarray  # squared distance to the k-th neighbour (n,)
    within: float  # mean kernel of two of them
    moments: tuple[np.ndarray, np.ndarray]  # mean and covariance along the axes


class Samples:
    """All distances between samples of one set of points (N, d), equal to those of the functions.

    What two samples share is worked out once: inner products of pairs of points, and what a `Part`
    holds. `strata` (n,) are the classes of every part, in its order; the Fréchet distance is taken
    along `axes` (d, p), and left out without them. `k` is as in
    `precision_recall_density_coverage`.
    """

    def __init__(self, points: Array, strata: Array, k: int, axes: Array | None):
        self.points, self.strata, self.k = points, strata, k
        self.along = None if axes is None else points @ axes
        self.squares = (points**2).sum(1)
        self.gram = points @ points.T if len(points) <= LARGEST_GRAM else None

    def part(self, which: np.ndarray) -> Part:
        """The points of these numbers (n,)."""
        inner = self._inner(which, which)
        reach = _reach(self._distances(which, which, inner), self.k)
        within = _within(_kernel(inner, self.points.shape[1]), self.strata)
        empty = np.zeros(0), np.zeros((0, 0))
        return Part(
            which, reach, within, empty if self.along is None else _moments(self.along[which])
        )

    def between(self, first: Part, others: Sequence[Part]) -> list[dict[str, float]]:
        """Distances of one part, of real points, to each of some others."""
        root, found = _root(first.moments[1]), []
        for other in others:
            inner = self._inner(first.which, other.which)
            squares = self._distances(first.which, other.which, inner)
            row = _overlap(squares, first.reach, other.reach, self.k)
            kernel = _kernel(inner, self.points.shape[1]).mean()
            row["kernel"] = float(first.within + other.within - 2 * kernel)
            if self.along is not None:
                row["frechet"] = _frechet(first.moments, root, other.moments)
            found.append(row)
        return found

    def _inner(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        if self.gram is None:
            return self.points[rows] @ self.points[columns].T
        return self.gram[np.ix_(rows, columns)]

    def _distances(self, rows: np.ndarray, columns: np.ndarray, inner: np.ndarray) -> np.ndarray:
        squares = self.squares[rows][:, None] + self.squares[columns] - 2 * inner
        return np.maximum(squares, 0, out=squares)


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (N, M) of all pairs of rows, never below 0."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * (first @ second.T)
    return np.maximum(squares, 0, out=squares)


def pairwise_distances(points: np.ndarray) -> np.ndarray:
    """Euclidean distances (N, N) of all pairs of rows; exactly 0 on the diagonal."""
    points = points - points.mean(0, dtype=float)
    distances = np.sqrt(squared_distances(points, points))
    np.fill_diagonal(distances, 0)
    return distances


def nearest(query: np.ndarray, candidates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the candidate nearest to each image (uint8 N×H×W×3), and its grey-level distance."""
    rows, others = reduced(check_images(query, "query")), reduced(candidates)
    indices = pairwise_distances_argmin(rows, others)
    return indices, _root_mean_square(rows - others[indices])


def mean_pairwise_distance(images: np.ndarray, max_pairs: int = 2000, seed: int = 0) -> float:
    """Mean distance of two images (uint8 N×H×W×3), over at most `max_pairs` pairs; NaN for one."""
    count = len(check_images(images, "images"))
    if count < 2:
        return float("nan")
    rows = reduced(images)
    if count * (count - 1) // 2 <= max_pairs:
        first, second = np.triu_indices(count, 1)
    else:
        rng = np.random.default_rng(seed)
        first = rng.integers(count, size=max_pairs)
        second = (first + rng.integers(1, count, size=max_pairs)) % count
    return float(_root_mean_square(rows[first] - rows[second]).mean())


def diversity(images: Array, labels: Array, class_names: Sequence[str], seed: int = 0) -> pd.Series:
    """`mean_pairwise_distance` inside each class (`labels` are class numbers (N,)), by its name."""
    parts = (images[labels == k] for k in range(len(class_names)))
    values = [mean_pairwise_distance(part, seed=seed) for part in parts]
    return pd.Series(values, list(class_names), float, "diversity")


def reduced(images: np.ndarray) -> np.ndarray:
    """Images as rows of float32 grey levels less 127.5, area-averaged to at most SIDE a side."""
    to = min(images.shape[2], SIDE), min(images.shape[1], SIDE)
    small = [cv2.resize(im.astype(np.float32), to, interpolation=cv2.INTER_AREA) for im in images]
    return np.reshape(small, (len(images), -1)) - np.float32(127.5)


def _root_mean_square(differences: np.ndarray) -> np.ndarray:
    return np.sqrt((differences.astype(float) ** 2).mean(1))
