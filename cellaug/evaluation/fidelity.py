"""How true generated cells are to real ones: every measure of it, in one call.

`evaluate` compares generated images with real ones that the generator has not seen, over all and
class by class, and measures the same between two halves of the real images: nothing can be asked of
a generator that real images do not do themselves.

How it samples: `resamples` times the real images of each class are divided at random into two
halves of m images, and m generated ones are drawn, none twice. The first half is compared with the
generated images, and with the second half. A value is the mean of these, its interval their middle
95 %. Half of a sample varies about the whole as much as the whole varies about the truth (Shao & Wu
1989), so the interval is that of all images. Drawing with replacement would not do here: it puts
copies into a set, which shrink the balls of precision and recall and enlarge a Fréchet distance
once more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from cellaug.data import DataError
from cellaug.data.images import turned
from cellaug.evaluation import cas as classifiers
from cellaug.evaluation import distances, features, similarity, texture
from cellaug.evaluation.labelled import LabelledImages
from cellaug.evaluation.memorisation import NEIGHBOURS, look_for_copies
from cellaug.evaluation.scorecard import MEASURES, notes, scorecard

import numpy as np
import pandas as pd
from tqdm import tqdm

LARGEST_HALF = 1200
"""Images in a half at most; more would take long and tell little."""

COMPONENTS = 16
"""Principal components of the real images' features in which a class's Fréchet distance is taken:
all features take more images than a scarce class has."""


@dataclass(frozen=True)
class Fidelity:
    """What `evaluate` found. All but the last three fields are JSON as they stand.

    Attributes:
        sets: "real", "generated" and "reference" (None if not given), each with name, credit,
            images, and classes (images by class name).
        extractor: digest, features (their number), accuracy (on its own test images), classes.
        settings: size (pixels), resamples, seed, k, compared (m over all), components (principal
            components of a class's Fréchet distance) and their share of the features' variance.
        overall: the measures over all classes.
        classes: the measures by class name.
        left_out: classes that were not compared, and why.
        memorisation: what `memorisation.look_for_copies` returns for the spaces "features" and
            "pixels"; the closest pairs with class, training_class, file and training_file. None if
            it was not measured.
        grid: by period in pixels the energy at a grid's frequencies relative to what lies around
            them, a measure as below, and `energy_ratio`, that energy itself over that of real
            images, which blur lowers and noise raises.
        accuracy_score: what `cas.accuracy_score` returns, trained on "generated" and on "reference"
            images (None if not given), `gap` (accuracy of the first less the second), `images` to
            train on by class, `test_images` and `steps`. None if it was not measured.
        scorecard: by the names in `scorecard.TARGETS`: value, low, high, where (class or period),
            target (lowest, highest), met (None without a target), measured and of (how many of how
            many classes or periods). None if it was not measured.
        reasons: why memorisation, accuracy_score or a row of the scorecard is None.
        notes: sentences on sample sizes, bias and what to know besides.
        nearness: by "features" and "pixels" the relative distances to the nearest training image,
            of generated and of real images.
        spectra: mean power of real and of generated images, (S, S) each.
        pairs: generated images and the training images nearest to them (P, 2, S, S, 3), in the
            order of `memorisation["closest"]`.

    A group of images (over all, or a class) has `real_images`, `generated_images`, `compared` (m
    on either side), `reasons` (why a measure is None) and every name in `scorecard.MEASURES`; a
    class also its own `grid` by period, as above (None where it is not compared).

    A measure has `value`, `low`, `high` (generated against real), `real`, `real_low`, `real_high`
    (one half of the real images against the other; the interval is that of such pairs of halves)
    and `ratio`, `ratio_low`, `ratio_high` (the first over the second; None for the kernel distance,
    whose mean between halves is 0). Agreement, a share of images, has `gap`, `gap_low`, `gap_high`
    instead: generated less real; over all it has `training` too, that of the reference (None
    without one, or where it lacks a class).
    """

    sets: dict
    extractor: dict
    settings: dict
    overall: dict
    classes: dict
    left_out: dict
    memorisation: dict | None
    grid: dict
    accuracy_score: dict | None
    scorecard: dict
    reasons: dict
    notes: list
    nearness: dict = field(repr=False)
    spectra: tuple = field(repr=False)
    pairs: np.ndarray | None = field(repr=False)

    @property
    def table(self) -> pd.DataFrame:
        """All measures as one tidy table, a row for each level, group and measure.

        `level` is "overall" or "class", `group` empty or the class's name, `measure` a name in
        `scorecard.MEASURES`, "grid 2" and so on (by period in pixels), or, where memorisation was
        measured, "copies in features", "copies in pixels", "nearest in features" and "nearest in
        pixels" (shares of copies, median distances to the nearest training image; `real` of
        held-out real images, `p` of Fisher's test). The other columns are those of a measure.
        """
        rows = []
        for level, groups in (("overall", {"": self.overall}), ("class", self.classes)):
            for name, group in groups.items():
                measures = {key: group[key] for key in MEASURES}
                grid = self.grid if level == "overall" else group["grid"]
                measures |= {f"grid {period}": row for period, row in (grid or {}).items()}
                for space in ("features", "pixels") if self.memorisation else ():
                    tests = self.memorisation[space]
                    test = tests["overall"] if level == "overall" else tests["classes"].get(name)
                    measures[f"copies in {space}"] = test and {
                        "value": test["share"], "real": test["held_out_share"], "p": test["p"]
                    }  # fmt: skip
                    measures[f"nearest in {space}"] = test and {
                        "value": test["generated"],
                        "real": test["held_out"],
                    }
                for measure, found in measures.items():
                    reason = group["reasons"].get(measure, "")
                    rows.append(
                        {"level": level, "group": name, "measure": measure, "reason": reason}
                        | (found or {})
                    )
        kinds = ("", "real", "ratio", "gap")
        spans = [f"{kind}_{end}".strip("_") for kind in kinds for end in ("low", "high")]
        columns = ["level", "group", "measure", "value", "real", "ratio", "gap", *spans]
        return pd.DataFrame(rows, columns=[*columns, "energy_ratio", "training", "p", "reason"])


@dataclass(frozen=True)
class _Points:
    """A set with its features (N, d), reduced pixels (N, p) and the class that is seen in each."""

    images: LabelledImages
    features: np.ndarray
    pixels: np.ndarray
    seen: np.ndarray


_Strata = dict[str, tuple[np.ndarray, np.ndarray]]  # by class: real and generated images
_Draw = tuple[np.ndarray, np.ndarray, np.ndarray]  # two halves of the real ones, generated ones


def evaluate(
    real: LabelledImages,
    fake: LabelledImages,
    reference: LabelledImages | None = None,
    *,
    extractor: features.Extractor | None = None,
    cas: bool = True,
    resamples: int = 200,
    seed: int = 0,
    k: int = 5,
    few: bool = False,
) -> Fidelity:
    """Measure how true generated images are to real ones.

    Args:
        real: real images that the generator was not trained on, with classes.
        fake: generated images of the same size; classes are matched by name.
        reference: what the generator was trained on: memorisation is measured against it, and a
            classifier trained on it is what the accuracy score is compared with.
        extractor: of features and class logits; by default the package's own.
        cas: train classifiers for the classification accuracy score (a minute or so).
        resamples: half-samples, at least 20.
        seed: of the half-samples and the classifiers.
        k: neighbours in precision, recall, density and coverage. A class is compared from
            2 (k + 1) images in either set.
        few: where there are too few images for a Fréchet distance over all, measure the others
            instead of raising an error.

    Raises:
        DataError: for sets of different image sizes, sets without a class in common, too few images
            (how many are needed is said), and real images that are training images too.
        ValueError: for another argument out of range.
    """
    if resamples < 20 or k < 1:
        raise ValueError(f"expected resamples from 20 and k from 1, got {resamples} and {k}")
    _check_sets(real, fake, reference)
    strata, left_out = _strata(real, fake)
    extractor = features.load_extractor() if extractor is None else extractor
    sets = [one for one in (real, fake, reference) if one is not None]
    bar = tqdm(sets, "features", disable=None, leave=False)
    true, made, *trained = [_measured(one, extractor) for one in bar]
    halves = _halves(strata, 0 if few else true.features.shape[1], k)
    rng = np.random.default_rng([seed, 0])
    draws = list(_half_samples(list(strata.values()), halves, resamples, rng))
    overall, classes, explained = _compare(
        true, made, strata, halves, draws, extractor.class_names, resamples, seed, k
    )
    if overall["agreement"]:
        counted = [name for name, group in classes.items() if group["agreement"]]
        overall["agreement"]["training"] = _seen_in(trained, {n: strata[n] for n in counted})
    reasons = {}
    memorisation, nearness, pairs = None, {}, None
    if not trained:
        reasons["memorisation"] = "no training images were given"
    elif len(reference) < NEIGHBOURS:
        reasons["memorisation"] = (
            f"it needs at least {NEIGHBOURS} training images, there are {len(reference)}"
        )
    else:
        memorisation, nearness, pairs = _memorisation(true, made, trained[0], strata, k, seed)
    grid, spectra = _grid(real.images, fake.images, draws)
    score = None
    if not cas:
        reasons["accuracy_score"] = "it was not asked for"
    elif len(strata) < 2:
        reasons["accuracy_score"] = "it needs two classes"
    else:
        score = _accuracy_score(real, fake, reference, strata, seed, reasons)
    result = Fidelity(
        sets={
            "real": _about(real),
            "generated": _about(fake),
            "reference": None if reference is None else _about(reference),
        },
        extractor={
            "digest": extractor.digest,
            "features": true.features.shape[1],
            "accuracy": float(extractor.accuracy),
            "classes": list(extractor.class_names),
        },
        settings={
            "size": real.images.shape[1],
            "resamples": resamples,
            "seed": seed,
            "k": k,
            "compared": sum(halves),
            "components": explained[0],
            "components_variance": explained[1],
        },
        overall=overall,
        classes=classes,
        left_out=left_out,
        memorisation=memorisation,
        grid=grid,
        accuracy_score=score,
        scorecard={},
        reasons=reasons,
        notes=[],
        nearness=nearness,
        spectra=spectra,
        pairs=pairs,
    )
    card, unscored = scorecard(result)
    result = replace(result, scorecard=card, reasons=reasons | unscored)
    said = dict.fromkeys(note for one in sets for note in one.notes)
    return replace(result, notes=[*notes(result), *said])


# --- the sets -----------------------------------------------------------------------------------


def _check_sets(
    real: LabelledImages, fake: LabelledImages, reference: LabelledImages | None
) -> None:
    if real.labels is None:
        raise DataError(f"{real.name}: the real images have no classes; give them labels")
    for other in (fake, reference):
        if other is not None and other.images.shape[1:] != real.images.shape[1:]:
            raise DataError(
                f"{other.name} has images of {other.images.shape[1]} pixels, {real.name} of "
                f"{real.images.shape[1]}: read them at one size"
            )
    if reference is not None:
        known = {image.tobytes() for image in reference.images}
        both = sum(image.tobytes() in known for image in real.images)
        if both:
            raise DataError(
                f"{both:,} of the {len(real):,} real images of {real.name} are among the training "
                f"images of {reference.name} too: compare with images that the generator was not "
                "trained on"
            )


def _strata(real: LabelledImages, fake: LabelledImages) -> tuple[_Strata, dict[str, str]]:
    """The images of each class that is in both sets; and the others, with the reason."""
    if fake.labels is None:
        return {"": (np.arange(len(real)), np.arange(len(fake)))}, {}
    strata, left_out = {}, {}
    for name in dict.fromkeys((*real.class_names, *fake.class_names)):
        mine, theirs = real.of_class(name), fake.of_class(name)
        if len(mine) and len(theirs):
            strata[name] = mine, theirs
        elif len(mine):
            left_out[name] = "there are no generated images of it"
        elif len(theirs):
            left_out[name] = "there are no real images of it"
    if not strata:
        raise DataError(
            f"{real.name} and {fake.name} have no class in common ({', '.join(real.class_names)} "
            f"and {', '.join(fake.class_names)}): give them the same names"
        )
    return strata, left_out


def _measured(images: LabelledImages, extractor: features.Extractor) -> _Points:
    found, logits = extractor(images.images)
    # a row's length is then the root mean square over pixels and colours, in grey levels
    rows = [
        similarity.reduced(images.images[start : start + similarity.CHUNK]).astype(np.float32)
        for start in range(0, len(images), similarity.CHUNK)
    ]
    pixels = np.concatenate(rows)
    pixels /= np.sqrt(pixels.shape[1])
    seen = np.array(extractor.class_names, object)[np.asarray(logits).argmax(1)]
    return _Points(images, np.asarray(found, float), pixels, seen)


def _halves(strata: _Strata, dimensions: int, k: int) -> list[int]:
    """How many images of each class make up a half; DataError if all are too few."""
    halves = [min(len(mine), len(theirs)) // 2 for mine, theirs in strata.values()]
    most, all_in_all = max(LARGEST_HALF, 2 * dimensions), sum(halves)
    if all_in_all > most:
        halves = [m * most // all_in_all for m in halves]
    # one image tells nothing of how its class varies
    halves = [m if m > 1 else 0 for m in halves]
    all_in_all = sum(halves)
    least = max(dimensions, k) + 1
    if all_in_all < least:
        mine, theirs = (sum(map(len, side)) for side in zip(*strata.values(), strict=True))
        raise DataError(
            f"too few images: {f'with {dimensions} features ' * bool(dimensions)}a half must hold "
            f"at least {least}, which takes {2 * least} real images and as many generated ones in "
            f"the same proportions of classes. There are {mine} real and {theirs} generated ones, "
            f"of which {2 * all_in_all} of either can be matched by class. Add images"
        )
    return halves


def _half_samples(
    strata: Sequence[tuple[np.ndarray, np.ndarray]],
    halves: Sequence[int],
    resamples: int,
    rng: np.random.Generator,
) -> Iterator[_Draw]:
    """Two disjoint halves of the real images and as many generated ones, class after class."""
    for _ in range(resamples):
        parts = []
        for (mine, theirs), m in zip(strata, halves, strict=True):
            order = rng.permutation(mine)
            parts.append((order[:m], order[m : 2 * m], rng.permutation(theirs)[:m]))
        yield tuple(np.concatenate(part) for part in zip(*parts, strict=True))


def _about(images: LabelledImages) -> dict:
    return {
        "name": images.name,
        "credit": images.credit,
        "images": len(images),
        "classes": images.counts(),
    }


# --- distances, over all and class by class -----------------------------------------------------


def _compare(
    true: _Points,
    made: _Points,
    strata: _Strata,
    halves: Sequence[int],
    draws: Sequence[_Draw],
    known: Sequence[str],
    resamples: int,
    seed: int,
    k: int,
) -> tuple[dict, dict, tuple[int, float]]:
    """The measures over all, and by class; the components of the classes and their share."""
    labelled = made.images.labels is not None
    groups = len(strata) if labelled else 0
    classes, spreads, votes = {}, [], {}
    dimensions = true.features.shape[1]
    too_few = "with {} {} it needs {} images in either set"
    few_over_all = too_few.format(dimensions, "features", 2 * (dimensions + 1))
    axes, share = _components(true.features)
    main = [points.features @ axes for points in (true, made)]
    count = axes.shape[1]
    few_in_class = too_few.format(count, "principal components", 2 * (count + 1))
    bar = tqdm(total=resamples * (1 + groups), desc="comparing", disable=None, leave=False)
    with bar:
        strata_of = np.repeat(np.arange(len(halves)), halves)
        found = _distances(true.features, made.features, draws, strata_of, k, bar)
        for number, (name, members) in enumerate(strata.items(), 1):
            rng = np.random.default_rng([seed, number])
            mine, theirs = (rng.permutation(part)[: 2 * LARGEST_HALF] for part in members)
            m = min(len(mine), len(theirs)) // 2
            group, reasons = {}, {}
            if m <= k:
                reasons = dict.fromkeys(
                    MEASURES,
                    f"it needs {2 * (k + 1)} images in either set, there are {len(mine):,} real "
                    f"and {len(theirs):,} generated ones",
                )
                bar.update(resamples * labelled)
            else:
                inner = [(np.arange(len(mine)), np.arange(len(theirs)))]
                local = list(_half_samples(inner, [m], resamples, rng))
                if labelled:
                    group = _distances(
                        true.features[mine],
                        made.features[theirs],
                        local,
                        np.zeros(m, int),
                        k,
                        bar,
                        (main[0][mine], main[1][theirs]),
                    )
                    both = true.images.images[mine], made.images.images[theirs]
                    group["grid"], _ = _grid(*both, local)
                spread = {
                    "diversity_features": _spread(
                        true.features[mine], made.features[theirs], local
                    ),
                    "diversity_pixels": _spread(true.pixels[mine], made.pixels[theirs], local),
                }
                spreads.append((len(members[0]), spread))
                group |= {key: _estimate(*both) for key, both in spread.items()}
                if name in known:
                    votes[name] = [
                        points.seen[part] == name
                        for points, part in zip((true, made), members, strict=True)
                    ]
                    group["agreement"] = _agreement([votes[name]], rng)
                else:
                    reasons["agreement"] = f"the extractor knows no class '{name}'"
                if "frechet" not in group:
                    reasons["frechet"] = few_in_class
            if labelled:
                whole = _whole(group, reasons, *map(len, members), m)
                classes[name] = whole | {"grid": group.get("grid")}
    reasons = {} if "frechet" in found else {"frechet": few_over_all}
    weights = [weight for weight, _ in spreads]
    for key in ("diversity_features", "diversity_pixels"):
        if spreads:
            both = np.average([spread[key] for _, spread in spreads], axis=0, weights=weights)
            found[key] = _estimate(*both)
        else:
            reasons[key] = "no class has enough images"
    if votes:
        found["agreement"] = _agreement(list(votes.values()), np.random.default_rng([seed, 0, 1]))
    else:
        reasons["agreement"] = (
            "the extractor knows none of the classes"
            if labelled
            else "the generated images have no classes"
        )
    totals = (sum(map(len, side)) for side in zip(*strata.values(), strict=True))
    return _whole(found, reasons, *totals, len(draws[0][0])), classes, (count, share)


def _components(features: np.ndarray) -> tuple[np.ndarray, float]:
    """The first principal components of features (N, d) as columns, and their variance's share."""
    values, axes = np.linalg.eigh(np.atleast_2d(np.cov(features, rowvar=False)))
    share = values[-COMPONENTS:].sum() / max(values.sum(), np.finfo(float).tiny)
    return axes[:, -COMPONENTS:], float(share)


def _whole(group: dict, reasons: dict, mine: int, theirs: int, m: int) -> dict:
    """A group with all its fields."""
    return {
        "real_images": mine,
        "generated_images": theirs,
        "compared": m if len(reasons) < len(MEASURES) else 0,
        **{key: group.get(key) for key in MEASURES},
        "reasons": reasons,
    }


def _distances(
    mine: np.ndarray,
    theirs: np.ndarray,
    draws: Sequence[_Draw],
    strata: np.ndarray,
    k: int,
    bar: tqdm,
    main: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict:
    """Features of real (N, d) and generated images (M, d) by half-samples of classes (m,).

    The Fréchet distance is taken between `main`, (N, p) and (M, p), if it is given.
    """
    main = (mine, theirs) if main is None else main
    rows = []
    for first, second, other in draws:
        rows.append(
            [
                _between(mine[first], half, main[0][first], main_half, strata, k)
                for half, main_half in (
                    (theirs[other], main[1][other]),
                    (mine[second], main[0][second]),
                )
            ]
        )
        bar.update()
    return {
        key: _estimate(*([row[side][key] for row in rows] for side in (0, 1)), key != "kernel")
        for key in rows[0][0]
    }


def _between(
    real: np.ndarray,
    other: np.ndarray,
    main_real: np.ndarray,
    main_other: np.ndarray,
    strata: np.ndarray,
    k: int,
) -> dict[str, float]:
    found = {
        "kernel": distances.kernel_distance(real, other, (strata, strata)),
        **distances.precision_recall_density_coverage(real, other, k),
    }
    if len(real) > main_real.shape[1]:
        found["frechet"] = distances.frechet_distance(main_real, main_other)
    return found


def _spread(mine: np.ndarray, theirs: np.ndarray, draws: Sequence[_Draw]) -> np.ndarray:
    """Mean distance of two images of a half (2, R): generated, real."""
    real, fake = distances.pairwise_distances(mine), distances.pairwise_distances(theirs)
    m = len(draws[0][0])
    sums = [
        (fake[np.ix_(other, other)].sum(), real[np.ix_(first, first)].sum())
        for first, _, other in draws
    ]
    return np.array(sums).T / (m * (m - 1))


def _estimate(
    values: Sequence[float], halves: Sequence[float], ratio: bool = True
) -> dict[str, float | None]:
    """A measure from its half-samples: generated against real, and real against real."""
    values, halves = np.asarray(values, float), np.asarray(halves, float)
    found = _interval("", values, "value") | _interval("real_", halves, "real")
    if not ratio or halves.mean() <= 0:
        return found | {"ratio": None, "ratio_low": None, "ratio_high": None}
    middle = values.mean() / halves.mean()
    # a half of which nothing is recalled counts as the least that is, which keeps ratios finite
    varied = values / np.maximum(halves, halves[halves > 0].min())
    return found | _interval("ratio_", varied, "ratio", middle)


def _interval(
    prefix: str, varied: np.ndarray, name: str, value: float | None = None
) -> dict[str, float]:
    """A value, by default the mean of those it varies over, and the middle 95 % of these."""
    value = float(varied.mean() if value is None else value)
    low, high = np.quantile(varied, [0.025, 0.975])
    # where nearly all are equal, or none is wrong, the value itself can lie outside
    return {
        name: value,
        f"{prefix}low": float(min(low, value)),
        f"{prefix}high": float(max(high, value)),
    }


def _agreement(votes: Sequence[Sequence[np.ndarray]], rng: np.random.Generator) -> dict:
    """Share of images in which the intended class is seen, classes weighted as among the real.

    `votes` holds for each class whether it is seen in its real and in its generated images. The
    intervals are Jeffreys's: Beta(right + ½, wrong + ½), drawn and then weighted.
    """
    weights = np.array([len(real) for real, _ in votes], float)
    weights /= weights.sum()
    shares, varied = [], []
    for side in (1, 0):
        right = np.array([pair[side].sum() for pair in votes])
        count = np.array([len(pair[side]) for pair in votes])
        shares.append(weights @ (right / count))
        varied.append(rng.beta(right + 0.5, count - right + 0.5, (4000, len(votes))) @ weights)
    return {
        **_interval("", varied[0], "value", shares[0]),
        **_interval("real_", varied[1], "real", shares[1]),
        **_interval("gap_", varied[0] - varied[1], "gap", shares[0] - shares[1]),
    }


def _seen_in(trained: Sequence[_Points], strata: _Strata) -> float | None:
    """Share of training images in which their class is seen, weighted as among the real ones."""
    parts = [trained[0].images.of_class(name) for name in strata] if trained else []
    if not parts or not all(map(len, parts)):
        return None
    shares = [
        (trained[0].seen[part] == name).mean() for part, name in zip(parts, strata, strict=True)
    ]
    return float(np.average(shares, weights=[len(mine) for mine, _ in strata.values()]))


# --- memorisation, grid texture, accuracy score -------------------------------------------------


def _memorisation(
    true: _Points, made: _Points, trained: _Points, strata: _Strata, k: int, seed: int
) -> tuple[dict, dict, np.ndarray]:
    """The test of `cellaug.evaluation.memorisation`, and its closest pairs (P, 2, S, S, 3)."""
    rng = np.random.default_rng([seed, 0, 2])
    matched = [
        [rng.permutation(part)[: min(map(len, members))] for part in members]
        for members in strata.values()
    ]
    groups = {"overall": tuple(np.concatenate(side) for side in zip(*matched, strict=True))}
    if made.images.labels is not None:
        groups |= {name: both for name, both in strata.items() if min(map(len, both)) > 2 * k + 1}
    spaces = {
        "features": (made.features, true.features, trained.features, None),
        "pixels": (made.pixels, true.pixels, trained.pixels, _views),
    }
    total = len(spaces) * (len(made.features) + len(true.features))
    with tqdm(total=total, desc="nearest training images", disable=None, leave=False) as bar:
        found, nearness = look_for_copies(
            spaces, {name: both[::-1] for name, both in groups.items()}, bar.update
        )
    pairs = []
    for row in found["closest"]:
        both = (made.images, row["index"]), (trained.images, row["training_index"])
        for prefix, (images, index) in zip(("", "training_"), both, strict=True):
            labelled = images.labels is not None
            row[f"{prefix}class"] = images.class_names[images.labels[index]] if labelled else None
            row[f"{prefix}file"] = images.files[index] if images.files else None
        pairs.append(np.stack([images.images[index] for images, index in both]))
    return found, nearness, np.stack(pairs)


def _views(rows: np.ndarray) -> np.ndarray:
    """The eight views (8, N, p) of square images given as rows (N, p)."""
    side = int(np.sqrt(rows.shape[1] // 3))
    images = rows.reshape(-1, side, side, 3)
    return np.stack([turned(images, view) for view in range(8)]).reshape(8, len(rows), -1)


def _grid(
    real: np.ndarray, fake: np.ndarray, draws: Sequence[_Draw]
) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    """The grid texture by period, and the mean spectra of real and generated images."""
    powers = []
    for images, side in ((real, 0), (fake, 2)):
        weights = np.zeros((len(draws), len(images)), np.float32)
        for row, draw in zip(weights, draws, strict=True):
            row[draw[side]] = 1 / len(draw[side])
        powers.append(texture.mean_power(images, weights))
    mine, theirs = map(texture.grid_energy, powers)
    found = {}
    for period, (energy, lines) in theirs.items():
        found[str(period)] = _estimate(lines, mine[period][1])
        found[str(period)]["energy_ratio"] = float(energy.mean() / mine[period][0].mean())
    return found, tuple(power.mean(0) for power in powers)


def _accuracy_score(
    real: LabelledImages,
    fake: LabelledImages,
    reference: LabelledImages | None,
    strata: _Strata,
    seed: int,
    reasons: dict,
) -> dict:
    """Classifiers trained on generated and on as many training images, tested on the real ones."""
    counts = {name: len(theirs) for name, (_, theirs) in strata.items()}
    trainings = {"generated": fake}
    if reference is not None:
        both = {name: min(n, len(reference.of_class(name))) for name, n in counts.items()}
        if all(both.values()):
            counts, trainings = both, trainings | {"reference": reference}
        else:
            lacking = ", ".join(name for name, n in both.items() if not n)
            reasons["accuracy_score_reference"] = f"no training image of {lacking}"
    else:
        reasons["accuracy_score_reference"] = "no training images were given"
    test = np.concatenate([mine for mine, _ in strata.values()])
    truth = np.repeat(np.arange(len(strata)), [len(mine) for mine, _ in strata.values()])
    found: dict = {"generated": None, "reference": None, "gap": None}
    for what, source in trainings.items():
        rng = np.random.default_rng([seed, 0, 3])
        chosen = [rng.permutation(source.of_class(name))[:n] for name, n in counts.items()]
        found[what] = classifiers.accuracy_score(
            source.images[np.concatenate(chosen)],
            np.repeat(np.arange(len(chosen)), [len(part) for part in chosen]),
            real.images[test],
            truth,
            tuple(counts),
            steps=classifiers.STEPS,
            seed=seed,
            title=f"classifier on {what} images",
        )
    if found["reference"]:
        found["gap"] = found["generated"]["accuracy"] - found["reference"]["accuracy"]
    return found | {"images": counts, "test_images": len(test), "steps": classifiers.STEPS}
