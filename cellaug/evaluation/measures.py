"""The measures of an evaluation, and their intervals from half-samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cellaug.data.dataset import Dataset
from cellaug.data.images import turned
from cellaug.errors import DataError
from cellaug.evaluation import distances, texture
from cellaug.evaluation.colours import FEWEST, colour_statistics, unusual
from cellaug.evaluation.features import Extractor, pixels
from cellaug.evaluation.memorisation import Strata
from cellaug.evaluation.scorecard import ENDS
from cellaug.files import progress

import numpy as np

LARGEST_HALF = 1200  # more images in a half would take long and change little
COMPONENTS = 16  # for a class's Fréchet distance: all features take more images than it may have

Rows = dict[str, dict[str, Any]]  # by measure the columns of a row of the table
Draw = tuple[np.ndarray, np.ndarray, np.ndarray]  # indices: two real halves, as many generated


@dataclass(frozen=True)
class Points:
    """Images (N, S, S, 3), features (N, d), reduced pixels (N, p), the class seen in each (N,)."""

    images: np.ndarray
    features: np.ndarray
    pixels: np.ndarray
    seen: np.ndarray

    @staticmethod
    def of(cells: Dataset, extractor: Extractor, names: Sequence[str]) -> "Points":
        """A set in memory as points; the norm of a row of pixels is its root mean square.

        `names` are those of the extractor's classes, as the real images have them.
        """
        images = pixels(cells)
        features, logits = extractor(images)
        rows = distances.reduced(images)
        seen = np.array(names, object)[np.asarray(logits).argmax(1)]
        return Points(images, features.astype(float), rows / rows.shape[1] ** 0.5, seen)

    def take(self, indices: np.ndarray) -> "Points":
        """Some of them."""
        return Points(*(part[indices] for part in vars(self).values()))


def halves(strata: Strata, dimensions: int, k: int) -> list[int]:
    """Number of images of each class in a half; DataError if it is not above `k` in all.

    It is at most `LARGEST_HALF` in all, or twice the `dimensions` of the features.
    """
    sizes = [min(map(len, members)) // 2 for members in strata.values()]
    most, total = max(LARGEST_HALF, 2 * dimensions), sum(sizes)
    if total > most:
        sizes = [m * most // total for m in sizes]
    # one image says nothing about the variation of its class
    sizes = [m if m > 1 else 0 for m in sizes]
    total, least = sum(sizes), k + 1
    if total < least:
        mine, theirs = (sum(map(len, side)) for side in zip(*strata.values(), strict=True))
        why = f"a half must hold at least {least}, which takes {2 * least} real images and as many"
        have = f"There are {mine} real and {theirs} generated ones, of which {2 * total} of either"
        raise DataError(f"too few images: {why} generated ones. {have} match by class. Add images")
    return sizes


def half_samples(
    strata: Strata, sizes: Sequence[int], resamples: int, rng: np.random.Generator
) -> Iterator[Draw]:
    """Two disjoint halves of the real images and as many generated ones, class after class."""
    for _ in range(resamples):
        parts = []
        for (mine, theirs), m in zip(strata.values(), sizes, strict=True):
            order = rng.permutation(mine)
            parts.append((order[:m], order[m : 2 * m], rng.permutation(theirs)[:m]))
        first, second, other = map(np.concatenate, zip(*parts, strict=True))
        yield first, second, other


def interval(kind: str, varied: np.ndarray, value: float | None = None) -> dict[str, float]:
    """A value, by default the mean of those it varies over, and the middle 95 % of these."""
    value = varied.mean() if value is None else value
    low, high = np.quantile(varied, [0.025, 0.975])
    # where nearly all are equal, or none is wrong, the value itself can lie outside
    ends = min(low, value), max(high, value)
    return {kind: value, **dict(zip(ENDS[kind], ends, strict=True))}


def estimate(both: np.ndarray | list, ratio: bool = True) -> dict[str, float]:
    """A row from half-samples (R, 2): generated against real, and real against real."""
    values, own = np.asarray(both, float).T
    found = interval("value", values) | interval("real", own)
    if ratio and own.mean() > 0:
        # halves in which nothing is recalled count as the smallest value above 0: ratios are finite
        varied = values / np.maximum(own, own[own > 0].min())
        found |= interval("ratio", varied, values.mean() / own.mean())
    return found


def agreement(votes: Sequence[Sequence[np.ndarray]], rng: np.random.Generator) -> dict[str, float]:
    """Share of images in which the intended class is seen, classes weighted as among the real.

    `votes` holds by class whether it is seen in its real and in its generated images. The intervals
    are Jeffreys's: Beta(right + ½, wrong + ½), drawn and then weighted.
    """
    right, count = (np.array([list(map(f, both)) for both in votes]).T for f in (np.sum, len))
    weights = count[0] / count[0].sum()
    own, made = (right / count) @ weights
    ends, drawn = (right + 0.5, count - right + 0.5), (4000, len(votes))
    beta = [rng.beta(ends[0][side], ends[1][side], drawn) @ weights for side in (1, 0)]
    found = interval("value", beta[0], made) | interval("real", beta[1], own)
    return found | interval("gap", beta[0] - beta[1], made - own)


def components(points: np.ndarray) -> tuple[np.ndarray, float]:
    """The first principal components of points (N, d) as columns, and their variance's share."""
    values, axes = np.linalg.eigh(np.atleast_2d(np.cov(points, rowvar=False)))
    share = values[-COMPONENTS:].sum() / max(values.sum(), np.finfo(float).tiny)
    return axes[:, -COMPONENTS:], float(share)


def compare(
    real: Points, fake: Points, draws: list[Draw], sizes: list[int], k: int, axes: np.ndarray | None
) -> tuple[Rows, tuple[np.ndarray, np.ndarray]]:
    """Distances and grid texture of half-samples with so many of each class; two mean spectra.

    The Fréchet distance is taken along `axes`, the spectra are of real and of generated images.
    """
    classes = np.repeat(np.arange(len(sizes)), sizes)
    space = "features" if axes is None else "principal components"
    width = real.features.shape[1] if axes is None else axes.shape[1]
    exact = len(classes) > width
    axes = np.eye(width) if axes is None else axes
    points = np.concatenate([real.features, fake.features])
    samples = distances.Samples(points, classes, k, axes if exact else None)
    rows = []
    for first, second, other in progress(draws, "comparing"):
        near, far, made = map(samples.part, (first, second, other + len(real.features)))
        rows.append(samples.between(near, (made, far)))
    found: Rows = {}
    for name in rows[0][0]:  # the kernel distance of real halves has the mean 0, hence no ratio
        found[name] = estimate([[side[name] for side in both] for both in rows], name != "kernel")
    if not exact:
        need = f"it needs {2 * (width + 1)} images in either set, "
        need += f"{2 * len(classes)} of either match by class"
        found["frechet"] = {"reason": f"with {width} {space} {need}"}
    powers = [_power(real.images, draws, 0), _power(fake.images, draws, 2)]
    mine, theirs = map(texture.grid_energy, powers)
    for period, (energy, lines) in theirs.items():
        found[f"grid {period}"] = estimate(np.stack([lines, mine[period][1]], axis=1))
        found[f"grid {period}"]["energy_ratio"] = energy.mean() / mine[period][0].mean()
    return found, (powers[0].mean(0), powers[1].mean(0))


def _power(images: np.ndarray, draws: Sequence[Draw], part: int) -> np.ndarray:
    """Mean power (R, S, S) of one part of each half-sample."""
    weights = np.zeros((len(draws), len(images)), np.float32)
    for row, draw in zip(weights, draws, strict=True):
        row[draw[part]] = 1 / len(draw[part])
    return texture.mean_power(images, weights)


def diversity(real: np.ndarray, fake: np.ndarray, draws: Sequence[Draw]) -> np.ndarray:
    """Mean distance of two images of a half (R, 2): generated, real."""
    mine, theirs = map(distances.pairwise_distances, (real, fake))
    sums = [(theirs[np.ix_(o, o)].sum(), mine[np.ix_(f, f)].sum()) for f, _, o in draws]
    m = len(draws[0][0])
    return np.array(sums) / (m * (m - 1))


def colours(
    real: np.ndarray, fake: np.ndarray, draws: Sequence[Draw], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """Shares of images (N, S, S, 3) with unusual colours: a row over all, then for each class.

    The first half of the real images says what is usual, for the second half and as many generated.
    """
    if sum(sizes) < FEWEST:
        need = f"it needs {2 * FEWEST} images in either set, "
        need += f"{2 * sum(sizes)} of either match by class"
        return [{"reason": need} for _ in (0, *sizes)]
    own, made = map(colour_statistics, (real, fake))
    ends = np.cumsum([0, *sizes])
    shares = []  # for each draw (1 + classes, 2): generated, real
    for first, second, other in draws:
        flags = np.array(unusual(own[first], (made[other], own[second])), float)
        parts = [flags, *(flags[:, a:b] for a, b in pairwise(ends))]
        shares.append([part.mean(1) if part.size else np.full(2, np.nan) for part in parts])
    rows = [estimate(both) for both in np.array(shares).transpose(1, 0, 2)]
    return [row if np.isfinite(row["value"]) else {"reason": "too few images"} for row in rows]


def views(rows: np.ndarray) -> np.ndarray:
    """The eight views (8, N, p) of square images given as rows (N, p)."""
    side = int(np.sqrt(rows.shape[1] // 3))
    images = rows.reshape(-1, side, side, 3)
    return np.stack([turned(images, view) for view in range(8)]).reshape(8, len(rows), -1)
