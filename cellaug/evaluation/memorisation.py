"""Memorisation: are generated images copies of training images?

Nearness alone does not tell. A blurred or average cell lies near every training image, nearer than
a real cell that was never seen, and is a copy of none. A copy is near to one training image and not
to the others. So the test looks at *relative* distances (see `nearest_training`) and counts the
generated images whose relative distance is well below those of real images that were held out.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

Views = Callable[[np.ndarray], np.ndarray]
Progress = Callable[[int], object]

CHUNK = 256

NEIGHBOURS = 50
"""Training images in whose light the nearest one is near or not."""

QUANTILE, MARGIN = 0.01, 2 / 3
"""A copy's relative distance is below `MARGIN` times this quantile of those of held-out images.

The quantile passes over the few held-out images that show the same cell as a training image; the
margin keeps out what is merely the nearest of many.
"""

ALPHA = 0.01
"""Chance of a false alarm, all tests of one call of `look_for_copies` taken together."""

SHOWN = 3
"""Closest pairs that are kept for each space."""


def nearest_training(
    query: np.ndarray,
    training: np.ndarray,
    neighbours: int = NEIGHBOURS,
    views: Views | None = None,
    progress: Progress = lambda count: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each query the nearest training point, and how much nearer it is than its neighbours.

    `query` is (N, d), `training` (M, d). `views` turns rows (n, d) into several views of each
    (views, n, d) of which the nearest counts, an image and its mirror image, say. `progress` is
    told the number of queries done.

    Returns the index of the nearest training point (N,), its Euclidean distance (N,), and that
    *relative* to the mean distance of the `neighbours` nearest (N,), 0–1: near 0 for a copy, near 1
    for a point that is no nearer to one training image than to many, such as a blurred mean of them
    (after Carlini et al. 2023, section 5.1).

    Raises ValueError for fewer training points than `neighbours`.
    """
    if len(training) < neighbours:
        raise ValueError(
            f"training: expected at least {neighbours} images, one for each neighbour, got "
            f"{len(training)}"
        )
    centre = training.mean(0, dtype=float)
    # single precision will do to find the nearest; its distance is then taken anew
    training = (training - centre).astype(np.float32)
    lengths = (training**2).sum(1)
    count = len(query)
    indices, distances, means = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
    for start in range(0, count, CHUNK):
        chunk = slice(start, start + CHUNK)
        part = query[chunk][None] if views is None else views(query[chunk])
        part = (part - centre).astype(np.float32)
        squares = np.full((part.shape[1], len(training)), np.inf, np.float32)
        for view in part:
            product = view @ training.T
            product *= -2
            product += lengths
            product += (view**2).sum(1)[:, None]
            np.minimum(squares, product, out=squares)
        indices[chunk] = squares.argmin(1)
        gaps = part - training[indices[chunk]]
        distances[chunk] = np.sqrt((gaps.astype(float) ** 2).sum(-1).min(0))
        near = np.partition(squares, neighbours - 1, axis=1)[:, :neighbours]
        means[chunk] = np.sqrt(np.maximum(near, 0)).mean(1)
        progress(part.shape[1])
    relative = np.divide(distances, means, out=np.ones(count), where=means > 0)
    return indices, distances, np.minimum(relative, 1)


def excess_of_copies(
    generated: np.ndarray, held_out: np.ndarray, threshold: float
) -> dict[str, float]:
    """Are there more copies among generated images than among real ones that were held out?

    Both are relative distances, (M,) and (N,); those below `threshold` count as copies. Gives
    `share` and `held_out_share`, of images that count, 0–1, and `p`, Fisher's exact chance of as
    many among the generated ones if copies were as likely in either set.
    """
    below, others = int((generated < threshold).sum()), int((held_out < threshold).sum())
    total = len(generated) + len(held_out)
    p = stats.hypergeom.sf(below - 1, total, below + others, len(generated))
    return {
        "share": below / len(generated),
        "held_out_share": others / len(held_out),
        "p": float(p),
    }


def copying_statistic(cells: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The statistic C_T of data copying (Meehan, Chaudhuri & Dasgupta 2020, section 4.2).

    `cells` holds, for each cell of a partition (a class, say), the distances to the nearest
    training image of generated (M,) and of held-out real images (N,). In each cell the Mann–Whitney
    statistic is standardised by its normal approximation; their mean, weighted by the held-out
    images, is returned. Below −3 generated images lie nearer to the training set than new real ones
    do; above 3, farther. A generator of blurred images comes near everything without copying.
    """
    scores, weights = [], []
    for generated, held_out in cells:
        one, two = len(generated), len(held_out)
        above = stats.mannwhitneyu(generated, held_out).statistic
        scores.append((above - one * two / 2) / np.sqrt(one * two * (one + two + 1) / 12))
        weights.append(two)
    return float(np.average(scores, weights=weights))


def look_for_copies(
    spaces: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray, Views | None]],
    groups: Mapping[str, tuple[np.ndarray, np.ndarray]],
    progress: Progress = lambda count: None,
) -> tuple[dict, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Test whether generated images are copies of training images, in one space or several.

    Args:
        spaces: by name the generated, held-out real and training images as rows (N, d), and their
            views (see `nearest_training`) or None.
        groups: by name the indices of generated and of held-out images to compare: "overall", in
            equal numbers of every class, and classes.
        progress: is told the number of images done.

    Returns:
        The findings, and by space the relative distances of generated and held-out images. Of the
        findings `memorised` is whether any test gave an alarm, `flagged` in which space and group,
        and `alpha` the p below which a test does: `ALPHA` over the number of tests. By space there
        is the `threshold`, `MARGIN` times the quantile; `overall` and by class in `classes` the
        results of `excess_of_copies` with the median plain distances `generated` and `held_out`;
        and `copying`, the `copying_statistic` over classes (over all, without any). `closest` lists
        the closest pairs of each space: space, index, training_index, distance and relative; a
        training image comes up once in a space.
    """
    found, nearness, closest, tests = {}, {}, [], []
    for space, (generated, held_out, training, views) in spaces.items():
        index, near, relative = nearest_training(generated, training, NEIGHBOURS, views, progress)
        _, real_near, real_relative = nearest_training(
            held_out, training, NEIGHBOURS, views, progress
        )
        nearness[space] = relative, real_relative
        threshold = MARGIN * float(np.quantile(real_relative, QUANTILE))
        results = {}
        for name, (theirs, mine) in groups.items():
            test = excess_of_copies(relative[theirs], real_relative[mine], threshold)
            tests.append((test["p"], space, name))
            results[name] = test | {
                "generated": float(np.median(near[theirs])),
                "held_out": float(np.median(real_near[mine])),
            }
        cells = [both for name, both in groups.items() if name != "overall"]
        found[space] = {
            "threshold": threshold,
            "overall": results.pop("overall"),
            "classes": results,
            "copying": copying_statistic(
                [(near[theirs], real_near[mine]) for theirs, mine in cells or [groups["overall"]]]
            ),
        }
        order = np.argsort(relative, kind="stable")
        _, first = np.unique(index[order], return_index=True)
        for i in order[np.sort(first)[:SHOWN]].tolist():
            pair = {"space": space, "index": i, "training_index": int(index[i])}
            closest.append(pair | {"distance": float(near[i]), "relative": float(relative[i])})
    alpha = ALPHA / len(tests)
    flagged = [{"space": space, "group": name} for p, space, name in tests if p < alpha]
    return {
        "memorised": bool(flagged),
        "flagged": flagged,
        "alpha": alpha,
        "quantile": QUANTILE,
        "margin": MARGIN,
        "neighbours": NEIGHBOURS,
        **found,
        "closest": closest,
    }, nearness
