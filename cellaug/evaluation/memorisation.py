"""Memorisation: are generated images copies of training images?

A blurred cell is near to every training image. A copy is near to one and not to the others: its
*relative* distance (see `nearest_training`) is well below those of held-out real images.
"""

from collections.abc import Callable, Mapping, Sequence

from cellaug.evaluation.distances import squared_distances
from cellaug.files import progress

import numpy as np
import pandas as pd
from numpy import ndarray as Array
from scipy import stats

Views = Callable[[Array], Array] | None
Strata = Mapping[str, tuple[Array, Array]]  # by class indices: real, generated

CHUNK = 256
NEIGHBOURS = 50  # nearest training images whose mean distance the nearest one is divided by

# A copy's relative distance is below MARGIN times this quantile of those of held-out images, a few
# of which may show a training cell. The margin keeps out what is merely the nearest of many.
QUANTILE, MARGIN = 0.01, 2 / 3
ALPHA = 0.01  # probability of a false alarm in all tests of one evaluation together (Bonferroni)


def nearest_training(
    query: np.ndarray, training: np.ndarray, neighbours: int = NEIGHBOURS, views: Views = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each query (N, d) the nearest of the training points (M, d), M at least `neighbours`.

    `views` turns rows (n, d) into views (views, n, d), of which the nearest counts. Returns the
    nearest one's index (N,), its Euclidean distance (N,), and that *relative* to the mean of the
    `neighbours` nearest (N,), 0–1: near 0 for a copy (after Carlini et al. 2023, section 5.1).
    """
    centre = training.mean(0, dtype=float)
    # single precision is enough to find the nearest; its distance is then computed exactly
    training = (training - centre).astype(np.float32)
    count = len(query)
    indices, distances, means = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
    for start in progress(range(0, count, CHUNK), "nearest training images"):
        chunk = slice(start, start + CHUNK)
        seen = query[chunk][None] if views is None else views(query[chunk])
        seen = (seen - centre).astype(np.float32)
        squares = squared_distances(seen[0], training)
        for view in seen[1:]:
            np.minimum(squares, squared_distances(view, training), out=squares)
        indices[chunk] = squares.argmin(1)
        gaps = (seen - training[indices[chunk]]).astype(float)
        distances[chunk] = np.sqrt((gaps**2).sum(-1).min(0))
        means[chunk] = np.sqrt(np.partition(squares, neighbours - 1)[:, :neighbours]).mean(1)
    relative = np.divide(distances, means, out=np.ones(count), where=means > 0)
    return indices, distances, np.minimum(relative, 1)


def excess_of_copies(generated: Array, held_out: Array, threshold: float) -> dict[str, float]:
    """Shares of copies among generated (`value`) and held-out real images (`real`), 0–1.

    The arguments are relative distances, (M,) and (N,); those below `threshold` count as copies.
    `p` is that of Fisher's exact test for more copies among the generated images.
    """
    made, own = generated < threshold, held_out < threshold
    table = [[part.sum(), (~part).sum()] for part in (made, own)]
    p = float(stats.fisher_exact(table, "greater").pvalue)
    return {"value": float(made.mean()), "real": float(own.mean()), "p": p}


def copying_statistic(cells: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """The statistic C_T of data copying (Meehan, Chaudhuri & Dasgupta 2020, section 4.2).

    `cells` holds by class the distances to the nearest training image of generated (M,) and of
    held-out images (N,). Averages standardised Mann–Whitney statistics, weighted by N; below −3
    generated images lie too near.
    """
    scores = []
    for generated, held_out in cells:
        one, two = len(generated), len(held_out)
        above = stats.mannwhitneyu(generated, held_out).statistic
        scores.append((above - one * two / 2) / np.sqrt(one * two * (one + two + 1) / 12))
    return float(np.average(scores, weights=[len(held_out) for _, held_out in cells]))


def look_for_copies(
    generated: Array, held_out: Array, training: Array, groups: Strata, views: Views = None
) -> tuple[dict[str, dict[str, dict]], dict[str, float], pd.DataFrame, list[np.ndarray]]:
    """Test whether generated images are copies of training images, all given as rows (N, d).

    `groups` has by name ("" for all) the indices of held-out and generated images. Returns by group
    the rows "copies" and "nearest" (median distance); `threshold` and `copying_statistic`; the
    three closest pairs (index, training_index, distance, relative); relative distances of both.
    """
    index, near, relative = nearest_training(generated, training, views=views)
    _, own, own_relative = nearest_training(held_out, training, views=views)
    threshold = MARGIN * float(np.quantile(own_relative, QUANTILE))
    rows = {}
    for name, (mine, theirs) in groups.items():
        copies = excess_of_copies(relative[theirs], own_relative[mine], threshold)
        medians = {"value": np.median(near[theirs]), "real": np.median(own[mine])}
        rows[name] = {"copies": copies, "nearest": medians}
    cells = [both for name, both in groups.items() if name] or [groups[""]]
    copying = copying_statistic([(near[theirs], own[mine]) for mine, theirs in cells])
    pairs = pd.DataFrame({"training_index": index, "distance": near, "relative": relative})
    pairs = pairs.rename_axis("index").reset_index().sort_values("relative", kind="stable")
    closest = pairs.drop_duplicates("training_index").head(3)
    return rows, {"threshold": threshold, "copying": copying}, closest, [relative, own_relative]
