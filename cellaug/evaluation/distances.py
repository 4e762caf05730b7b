"""Distances between two sets of points: how like one another two sets of images are.

A set is an array (N, d), one row an image: features of a network, or reduced pixels. Nothing here
knows of images or classes; `cellaug.evaluation.fidelity` does.
"""

import numpy as np


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance of the normal distributions fitted to two sets, (N, d) and (M, d).

    |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½), with N − 1 in the covariances (Dowson & Landau 1982;
    Heusel et al. 2017 for images). From finite sets it comes out too large, the more so the smaller
    they are: compare only distances that were taken between sets of the same sizes.

    Raises ValueError unless both sets have more rows than columns, which a covariance of full rank
    takes.
    """
    first, second = _pair(first, second)
    for count in (len(first), len(second)):
        if count <= first.shape[1]:
            raise ValueError(
                f"a Fréchet distance with {first.shape[1]} features needs at least "
                f"{first.shape[1] + 1} images in each set, got {count}"
            )
    shift = first.mean(0) - second.mean(0)
    one, two = (np.atleast_2d(np.cov(points, rowvar=False)) for points in (first, second))
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(np.maximum(values, 0))
    # Σ₁Σ₂ has the eigenvalues of the symmetric rootᵀ Σ₂ root, whose roots are real for certain
    middle = np.sqrt(np.maximum(np.linalg.eigvalsh(root.T @ two @ root), 0)).sum()
    return float(max(shift @ shift + np.trace(one) + np.trace(two) - 2 * middle, 0))


def kernel_distance(
    first: np.ndarray,
    second: np.ndarray,
    strata: tuple[np.ndarray, np.ndarray] | None = None,
) -> float:
    """Squared maximum mean discrepancy of two sets, (N, d) and (M, d), N and M at least 2.

    The unbiased estimate with the kernel (x·y / d + 1)³ (Bińkowski et al. 2018). Its mean does not
    depend on the sizes of the sets; for sets of one distribution it is 0, so it may fall below.

    `strata` (N,), (M,) name the class of each point where sets were drawn with fixed numbers of
    each class, at least 2. Such sets differ less than if all were drawn at random, and without the
    classes the estimate would come out too small.
    """
    first, second = _pair(first, second)
    if strata is None:
        strata = np.zeros(len(first), int), np.zeros(len(second), int)
    smallest = min(np.unique(part, return_counts=True)[1].min(initial=2) for part in strata)
    if min(len(first), len(second), smallest) < 2:
        raise ValueError(
            "a kernel distance needs at least 2 images in each set and of each class, got "
            f"{len(first)} and {len(second)} images"
        )
    within = _within(first, strata[0]) + _within(second, strata[1])
    return float(within - 2 * _kernel(first, second).mean())


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    linear = first @ second.T / first.shape[1] + 1
    return linear * linear * linear  # a tenth of the time of a power


def _within(points: np.ndarray, strata: np.ndarray) -> float:
    """Mean kernel of two independent points: of n in a class, n (n − 1) pairs stand for n²."""
    kernel = _kernel(points, points)
    np.fill_diagonal(kernel, 0)
    total = kernel.sum()
    for name in np.unique(strata):
        members = np.flatnonzero(strata == name)
        total += kernel[np.ix_(members, members)].sum() / (len(members) - 1)
    return total / len(points) ** 2


def precision_recall_density_coverage(
    real: np.ndarray, fake: np.ndarray, k: int = 5
) -> dict[str, float]:
    """How much of `fake` (M, d) is real, and how much of `real` (N, d) it reaches.

    A point's ball reaches to its k-th nearest neighbour in its own set. By name:

    - precision: share of fake points inside the ball of a real one (Kynkäänniemi et al. 2019), 0–1;
    - recall: share of real points inside the ball of a fake one, 0–1;
    - density: mean number of real balls around a fake point over k, 0 up, 1 for equal
      distributions (Naeem et al. 2020);
    - coverage: share of real points whose ball holds a fake one, 0–1; 1 − ½ᵏ or so for equal
      distributions and sizes.

    Raises ValueError unless both sets have more than k points.
    """
    real, fake = _pair(real, fake)
    if k < 1 or min(len(real), len(fake)) <= k:
        raise ValueError(
            f"with k = {k} neighbours at least {k + 1} images are needed in each set, got "
            f"{len(real)} and {len(fake)}"
        )
    between = squared_distances(real, fake)
    inside_real = between < _reach(real, k)[:, None]
    inside_fake = between < _reach(fake, k)
    return {
        "precision": float(inside_real.any(0).mean()),
        "recall": float(inside_fake.any(1).mean()),
        "density": float(inside_real.sum(0).mean() / k),
        "coverage": float(inside_real.any(1).mean()),
    }


def _reach(points: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each point to its k-th nearest neighbour."""
    squares = squared_distances(points, points)
    np.fill_diagonal(squares, np.inf)
    return np.partition(squares, k - 1, axis=1)[:, k - 1]


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances (N, M) of all pairs of rows, never below 0."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * (first @ second.T)
    return np.maximum(squares, 0, out=squares)


def pairwise_distances(points: np.ndarray) -> np.ndarray:
    """Euclidean distances (N, N) of all pairs of rows; exactly 0 on the diagonal.

    The mean off the diagonal is the diversity of the set; near 0 it has collapsed.
    """
    points = _points(points) - np.mean(points, axis=0, dtype=float)
    distances = np.sqrt(squared_distances(points, points))
    np.fill_diagonal(distances, 0)
    return distances


def _pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = _points(first), _points(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"the sets have {first.shape[1]} and {second.shape[1]} features: take both from one "
            "extractor"
        )
    return first, second


def _points(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, float)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError(
            f"expected finite features, one row an image, got an array of shape {points.shape}"
        )
    return points
