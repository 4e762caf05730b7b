"""Look at a set of images before training on it: what it holds, what is odd, whether it is fit.

Every image is decoded once, for its size, brightness, contrast, colour, sharpness and background,
and for a thumbnail by which near duplicates are found. An image is an outlier if a measure lies
more than `OUTLIER_BOUND` robust deviations from the usual. Colours are CIELAB (D65): lightness L*
from 0 to 100, a* from green to red, b* from blue to yellow, chroma C* their distance from grey.
"""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from cellaug.data.catalogue import Dataset, printable
from cellaug.data.errors import DataError
from cellaug.data.images import decode, fit_square, turned
from cellaug.data.splits import split

import cv2
import numpy as np
import pandas as pd
from scipy.fft import rfft2
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

# --- what makes a set unfit ----------------------------------------------------------------------

FEWEST_CLASSES = 2
"""A classifier needs two classes to tell apart."""

FEWEST_IMAGES = 20
"""Images of a class: about three of them fall on a test side of 15 %."""

MOST_UNREADABLE = 0.01
"""Share of the files. A few damaged files happen; more means that a copy went wrong."""

MOST_BLANK = 0.01
"""Share of the images that show nothing."""

MOST_CONTRADICTING = 0.005
"""Share of the images that are in the set under another label as well."""

MOST_LEAKED = 0.01
"""Share of the held-out images that have a twin on a training side; scores gain up to as much."""

HELD_OUT = ("validation", "test")
"""The sides that training must not see."""

# --- what is worth a warning ---------------------------------------------------------------------

WIDEST_IMBALANCE = 10
"""Images of the largest class for one of the smallest."""

WIDEST_SIZES = 1.25
"""Longest for shortest central square; beyond it, resizing makes cells of one kind differ."""

SMALL_SIDE = 64
"""Pixels; granules and chromatin can't be seen below."""

# --- what is unusual -----------------------------------------------------------------------------

OUTLIER_BOUND = 5.0
"""Robust deviations, 1.48 × the median distance from the median: 1 in 2 million normal values."""

ENOUGH_IMAGES = 30
"""A class of fewer images is compared with the whole set, because its median means little."""

BLANK_CONTRAST = 1.0
"""Standard deviation of L*, below which there is no cell: stained cells have 5 to 25."""

NEAR = 0.95
"""Likeness of near duplicates, see `near_duplicates`.

Among 10,294 images of PBC no two different cells reach it, and one pair of platelets does with
0.953 if they are cropped to the cell and shrunk to 28 pixels. Copies that were saved as JPEG of
quality 40, brightened by 12 % or shrunk to 40 pixels have 0.98 or more, and cells that are in PBC
twice, photographed anew, 0.952 to 0.996.
"""

THUMBNAIL = 32
"""Side of the grey thumbnails that are compared, pixels."""

_STATISTICS_SIDE, _SHARPNESS_SIDE = 64, 256  # pixels that colours and sharpness are measured on
_RING = 8  # width of the border, of 64 pixels, where the background is looked for
_BACKGROUND_SHARE = 0.2  # of the border that is taken for bare background, the brightest part

_FINE, _COARSE = 0.7, 2.5  # of a thumbnail's details, those between these blurs are compared
_SHIFT = 3  # pixels of the thumbnail that a copy may be shifted by
_FREQUENCIES = 6
_RADIUS = 0.1  # distance of two spectra; the same cell photographed twice has up to 0.09
_CANDIDATES = 4  # compared with each image, the nearest
_FLAT = 0.5  # grey levels; fewer details than this are noise
_ROWS, _COLUMNS = 512, 1024  # of a block of distances, which then stays in the cache
_BATCH = 1024  # images decoded before the next are asked for

_LISTED = 6  # rows of a list in the text, unless all are wanted

# Reasons of a report that are no fault of the file.
_SOUND = (
    "a folder inside",
    "copy:",
    "finer label",
    "hidden or system",
    "listed twice",
    "listed with different",
    "no label",
    "no path",
    "no split",
    "outside the",
    "same image under",
)

COPY, TWIN = "copy:", "same image under another label:"
"""How a report's reasons begin for byte-identical files."""

TURNS = (
    "",
    "turned by 90°",
    "turned by 180°",
    "turned by 270°",
    "mirrored",
    "mirrored and turned by 90°",
    "mirrored and turned by 180°",
    "mirrored and turned by 270°",
)
"""How one of two near duplicates lies to the other; empty if it lies the same way."""


class Measure(NamedTuple):
    """What is measured of every image: words for too little and too much of it, and its unit.

    `floor` is the least deviation that is taken for one, so that in a very even set trifles are no
    outliers; for sharpness it is in powers of two, because that spreads by factors.
    """

    low: str
    high: str
    unit: str
    floor: float


MEASURES = {
    "brightness": Measure("dark", "bright", "mean L*", 1.0),
    "contrast": Measure("low contrast", "high contrast", "standard deviation of L*", 1.0),
    "colour": Measure("pale", "strongly coloured", "mean chroma C*", 1.0),
    "sharpness": Measure(
        "blurred", "sharp or noisy", "variance of the Laplacian at 256 px, grey levels²", 0.2
    ),
    "background": Measure("", "", "distance in L*a*b* from the set's usual background", 1.5),
}

_BACKGROUNDS = (("darker", "brighter"), ("greener", "redder"), ("bluer", "yellower"))


@dataclass(frozen=True, eq=False)
class Inspection:
    """What an inspection found.

    Paths are relative to the dataset's root where they lie under it; bytes in them that are not
    UTF-8 are written out as \\xff. `side` is empty where no split could be made.

    Attributes:
        name, fingerprint, credit: of the dataset.
        counts: images by class (index) and side, with their sum in the column `images`.
        sizes: columns width, height, images; the most frequent first.
        statistics: one row per image: path, class, side, width, height (pixels), brightness,
            contrast, colour, sharpness, background (units as in `MEASURES`), and the background's
            colour as background_l, background_a, background_b.
        outliers: columns index (of the image), path, class, side, measure (the most unusual one),
            score (deviations) and reason (all that is unusual); the worst first.
        duplicates: pairs of images that are both in the set: columns index, path, class, side,
            other_index, other, other_class, other_side, kind ("same file" or "near"), likeness
            (up to 1) and turn (one of `TURNS`); those under two labels first, then those on two
            sides, then the most alike.
        unreadable: rows of the report about files that are damaged or no image.
        copies: rows of the report about byte-identical files.
        report: the dataset's report.
        problems: sentences on what makes the set unfit for training.
        warnings: sentences on what to look at besides.
    """

    name: str
    fingerprint: str
    credit: str
    counts: pd.DataFrame
    sizes: pd.DataFrame
    statistics: pd.DataFrame
    outliers: pd.DataFrame
    duplicates: pd.DataFrame
    unreadable: pd.DataFrame
    copies: pd.DataFrame
    report: pd.DataFrame
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def fit(self) -> bool:
        """Whether the set is fit for training."""
        return not self.problems


def inspect(dataset: Dataset, splits: Mapping[str, Dataset] | None = None) -> Inspection:
    """Look at every image of a dataset.

    Args:
        dataset: what `open_dataset` returned.
        splits: its sides; by default those that `split` makes.

    Raises:
        DataError: if a file has gone or changed since the dataset was opened.
    """
    problems = []
    if splits is None:
        try:
            splits = split(dataset)
        except DataError as error:
            problems.append(f"It cannot be divided: {printable(str(error))}.")
            splits = {}
    statistics, thumbnails = _measure_all(dataset)
    statistics.insert(2, "side", _sides(dataset, splits))
    counts = pd.DataFrame(
        {side: part.counts() for side, part in splits.items()} | {"images": dataset.counts()}
    ).rename(index=printable)
    sizes = statistics.value_counts(["width", "height"]).rename("images").reset_index()
    report = dataset.report.map(printable)
    dropped = report["outcome"] == "dropped"
    found = {
        "counts": counts,
        "sizes": sizes.sort_values(["images", "width", "height"], ascending=False),
        "statistics": statistics,
        "outliers": _outliers(statistics, dataset.labels),
        "duplicates": _duplicates(dataset, statistics, thumbnails),
        "unreadable": report[dropped & ~report["reason"].str.startswith(_SOUND)],
        "copies": report[report["reason"].str.startswith((COPY, TWIN))],
    }
    warnings = []
    _judge_classes(found, problems, warnings)
    _judge_files(found, problems, warnings)
    _judge_images(found, problems, warnings)
    _judge_duplicates(found, problems, warnings)
    return Inspection(
        name=printable(dataset.name),
        fingerprint=dataset.fingerprint,
        credit=dataset.credit,
        report=report,
        problems=tuple(problems),
        warnings=tuple(warnings),
        **found,
    )


# --- measures ------------------------------------------------------------------------------------


def _read(dataset: Dataset, index: int) -> np.ndarray:
    """One image, uint8 RGB (H, W, 3): as stored, or its file in full."""
    if dataset.store is None:
        return decode(dataset.paths[index])[0]
    image = np.empty((1, dataset.store.size, dataset.store.size, 3), np.uint8)
    dataset.store.read(dataset.store.find(dataset.digests[index : index + 1]), image)
    return image[0]


def pictures(dataset: Dataset, places: Sequence[int], size: int) -> np.ndarray:
    """Read some images of a dataset, centre cropped and resized: uint8 RGB (n, size, size, 3)."""
    images = [fit_square(_read(dataset, place), size) for place in places]
    return np.array(images, np.uint8).reshape(-1, size, size, 3)


def _measure_all(dataset: Dataset) -> tuple[pd.DataFrame, np.ndarray]:
    """Measure every image; return the table and grey thumbnails, uint8 (N, 32, 32)."""
    count = len(dataset)
    rows = np.empty((count, 9))
    thumbnails = np.empty((count, THUMBNAIL, THUMBNAIL), np.uint8)

    def look(index: int) -> None:
        rows[index], thumbnails[index] = measure(_read(dataset, index))

    shown = {"leave": False, "delay": 2, "disable": None}
    with (
        ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        tqdm(desc="measuring images", total=count, **shown) as bar,
    ):
        for start in range(0, count, _BATCH):
            for _ in pool.map(look, range(start, min(start + _BATCH, count))):
                bar.update()
    table = dataset.table()[["path", "class"]].map(printable)
    table[["width", "height"]] = rows[:, :2].astype(int)
    table[["brightness", "contrast", "colour", "sharpness"]] = rows[:, 2:6]
    table["background"] = np.linalg.norm(rows[:, 6:] - np.median(rows[:, 6:], axis=0), axis=1)
    table[["background_l", "background_a", "background_b"]] = rows[:, 6:]
    return table, thumbnails


def measure(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure one image, uint8 RGB (H, W, 3); of its central square but for its size.

    Returns nine values and a thumbnail. The values are width and height in pixels, brightness,
    contrast, colour and sharpness (units as in `MEASURES`), and the background's L*, a* and b*: the
    median of the brightest fifth of the border, which on a smear is bare glass between red cells.
    The thumbnail is grey, uint8 (32, 32).
    """
    height, width = image.shape[:2]
    square = fit_square(image, _SHARPNESS_SIDE)
    sharpness = cv2.Laplacian(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var()
    small = cv2.resize(square, (_STATISTICS_SIDE,) * 2, interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lightness = lab[..., 0]
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    ring = np.ones(lightness.shape, bool)
    ring[_RING:-_RING, _RING:-_RING] = False
    border = lab[ring]
    bare = border[border[:, 0] >= np.quantile(border[:, 0], 1 - _BACKGROUND_SHARE)]
    values = [width, height, lightness.mean(), lightness.std(), chroma.mean(), sharpness]
    tiny = cv2.resize(small, (THUMBNAIL,) * 2, interpolation=cv2.INTER_AREA)
    return np.array([*values, *np.median(bare, axis=0)]), cv2.cvtColor(tiny, cv2.COLOR_RGB2GRAY)


def _sides(dataset: Dataset, splits: Mapping[str, Dataset]) -> list[str]:
    side_of = {path: side for side, part in splits.items() for path in part.paths}
    return [side_of.get(path, "") for path in dataset.paths]


# --- outliers ------------------------------------------------------------------------------------


def deviations(values: np.ndarray, labels: np.ndarray, floor: float) -> np.ndarray:
    """How far values (N,) lie from their class's median, in robust deviations of at least `floor`.

    A class of fewer than `ENOUGH_IMAGES` is compared with all values.
    """
    scores = _deviations(values, values, floor)
    for label in np.unique(labels):
        members = labels == label
        if members.sum() >= ENOUGH_IMAGES:
            scores[members] = _deviations(values[members], values[members], floor)
    return scores


def _deviations(values: np.ndarray, usual: np.ndarray, floor: float) -> np.ndarray:
    median = np.median(usual)
    return (values - median) / max(1.4826 * np.median(np.abs(usual - median)), floor)


def _outliers(statistics: pd.DataFrame, labels: np.ndarray) -> pd.DataFrame:
    scores = {}
    for name, (_, _, _, floor) in MEASURES.items():
        values = statistics[name].to_numpy(float)
        if name == "background":  # a distance already, and the same for all classes
            scores[name] = values / max(1.4826 * np.median(values), floor)
        else:
            values = np.log2(values + 1) if name == "sharpness" else values
            scores[name] = deviations(values, labels, floor)
    scores = pd.DataFrame(scores)
    sizes = scores.abs()
    odd = np.flatnonzero(sizes.max(axis=1) > OUTLIER_BOUND)
    rows = statistics.loc[odd, ["path", "class", "side"]]
    rows.insert(0, "index", odd)
    rows["measure"] = sizes.loc[odd].idxmax(axis=1) if len(odd) else ""
    rows["score"] = sizes.loc[odd].max(axis=1)
    lab = statistics[["background_l", "background_a", "background_b"]].to_numpy()
    usual = np.median(lab, axis=0)
    rows["reason"] = [
        ", ".join(
            _reason(name, score, lab[i] - usual)
            for name, score in scores.loc[i].sort_values(key=np.abs, ascending=False).items()
            if abs(score) > OUTLIER_BOUND
        )
        for i in odd
    ]
    return rows.sort_values(["score", "path"], ascending=[False, True], ignore_index=True)


def worst(outliers: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return up to `count` outliers: the worst by each measure, then the second worst and so on."""
    place = outliers.groupby("measure", sort=False).cumcount()
    return outliers.loc[place.sort_values(kind="stable").index[:count]].reset_index(drop=True)


def _reason(name: str, score: float, shift: np.ndarray) -> str:
    """In words: "bluer background (12.4)", the number being deviations."""
    if name == "background":
        most = int(np.abs(shift).argmax())
        words = f"{_BACKGROUNDS[most][int(shift[most] > 0)]} background"
    else:
        words = MEASURES[name].high if score > 0 else MEASURES[name].low
    return f"{words} ({abs(score):.1f})"


# --- duplicates ----------------------------------------------------------------------------------


def near_duplicates(thumbnails: np.ndarray) -> pd.DataFrame:
    """Pairs of thumbnails that show the same, however bright, shifted, mirrored or turned.

    Two images are likely pairs if the amplitudes of their lowest spatial frequencies agree, which
    shifts leave as they are and mirrors and quarter turns only put in another order. All are
    compared, block by block, and the nearest few of each are kept. Their likeness is the best
    correlation of their details over shifts of up to a tenth of the side, mirrors and quarter
    turns. Images without details are left out.

    Args:
        thumbnails: grey, uint8 (N, 32, 32).

    Returns:
        Columns first, second (places, first < second), likeness (`NEAR` to 1) and turn (`TURNS`).
    """
    pairs = []
    if len(thumbnails):
        spectra = np.concatenate([_spectra(_details(part)) for part in _parts(thumbnails, _BATCH)])
        flat = ~spectra.any(axis=1)
        places = np.flatnonzero(~flat)
        for first, second in _candidates(spectra[places]):
            first, second = places[first], places[second]
            likeness, turn = _likeness(*_details(thumbnails[[first, second]]))
            if likeness >= NEAR:
                pairs.append((first, second, likeness, TURNS[turn]))
    return pd.DataFrame(sorted(pairs), columns=["first", "second", "likeness", "turn"])


def _parts(array: np.ndarray, size: int) -> list[np.ndarray]:
    return [array[start : start + size] for start in range(0, len(array), size)]


def _details(thumbnails: np.ndarray) -> np.ndarray:
    """Without noise and without the broad dark disc that all cells are; float32, the same shape.

    Zeros for a thumbnail that has no details.
    """
    fine, coarse = (
        [cv2.GaussianBlur(thumbnail, (0, 0), blur) for thumbnail in thumbnails.astype(np.float32)]
        for blur in (_FINE, _COARSE)
    )
    details = np.subtract(fine, coarse)
    inner = details[:, _SHIFT:-_SHIFT, _SHIFT:-_SHIFT]
    details[inner.std(axis=(1, 2)) < _FLAT] = 0
    return details


_WINDOW = np.sqrt(np.hanning(THUMBNAIL + 2)[1:-1]).astype(np.float32)
_WINDOW = _WINDOW * _WINDOW[:, None]  # fades what a shift moves in and out at the border


def _spectra(details: np.ndarray) -> np.ndarray:
    """Amplitudes of low frequencies, ordered within those that turns and mirrors exchange.

    float32 (N, 72), zeros for an image without details; distances are between 0 and √2.
    """
    images = (details - details.mean(axis=(1, 2), keepdims=True)) * _WINDOW
    norms = np.linalg.norm(images, axis=(1, 2), keepdims=True)
    waves = np.abs(rfft2(images / np.where(norms > 0, norms, 1), norm="ortho"))
    low = np.arange(_FREQUENCIES)
    rising, falling = waves[:, :_FREQUENCIES, :_FREQUENCIES], waves[:, -low, :_FREQUENCIES]
    i, j = np.triu_indices(_FREQUENCIES, 1)
    four = np.stack([rising[:, i, j], falling[:, i, j], rising[:, j, i], falling[:, j, i]], axis=-1)
    two = np.stack([rising[:, low, low], falling[:, low, low]], axis=-1)
    ordered = [np.sort(waves, axis=-1).reshape(len(details), -1) for waves in (four, two)]
    return np.concatenate(ordered, axis=1).astype(np.float32)


def _candidates(spectra: np.ndarray) -> np.ndarray:
    """Pairs (M, 2) of rows nearer than `_RADIUS`, at most `_CANDIDATES` later ones for each."""
    # −|a − b|² / 2 = a·b − |a|² / 2 − |b|² / 2, so that one product gives a block of distances
    half = -(spectra**2).sum(axis=1, keepdims=True) / 2
    one = np.ones_like(half)
    left, right = np.hstack([spectra, half, one]), np.hstack([spectra, one, half])
    pairs = [np.empty((0, 2), int)]
    shown = {"leave": False, "delay": 2, "disable": None}
    with tqdm(desc="comparing images", total=len(spectra), **shown) as bar:
        for start in range(0, len(spectra), _ROWS):
            block = left[start : start + _ROWS]
            found = _NOTHING
            for first in range(start, len(spectra), _COLUMNS):
                nearness = block @ right[first : first + _COLUMNS].T
                hits = np.flatnonzero(nearness > -(_RADIUS**2) / 2)
                rows, columns = np.divmod(hits, nearness.shape[1])
                rows, columns, nearness = rows + start, columns + first, nearness.ravel()[hits]
                later = columns > rows
                if later.any():
                    found = _nearest(found, (rows[later], columns[later], nearness[later]))
            pairs.append(np.stack(found[:2], axis=1))
            bar.update(len(block))
    return np.concatenate(pairs)


_Hits = tuple[np.ndarray, np.ndarray, np.ndarray]  # rows, columns and nearness
_NOTHING: _Hits = (np.empty(0, int), np.empty(0, int), np.empty(0, np.float32))


def _nearest(found: _Hits, more: _Hits) -> _Hits:
    """The nearest `_CANDIDATES` columns of every row."""
    rows, columns, nearness = map(np.concatenate, zip(found, more, strict=True))
    order = np.lexsort((-nearness, rows))
    rows = rows[order]
    near = np.arange(len(rows)) - np.searchsorted(rows, rows) < _CANDIDATES
    return rows[near], columns[order][near], nearness[order][near]


def _likeness(first: np.ndarray, second: np.ndarray) -> tuple[float, int]:
    """The best correlation of two images' details (32, 32), and the turn that gives it."""
    inner = first[_SHIFT:-_SHIFT, _SHIFT:-_SHIFT]
    best = (-1.0, 0)
    for turn in range(len(TURNS)):
        view = np.ascontiguousarray(turned(second[..., None], turn))
        match = cv2.matchTemplate(view, inner, cv2.TM_CCOEFF_NORMED)
        best = max(best, (min(float(match.max()), 1.0), turn), key=lambda found: found[0])
        if best[0] >= NEAR:
            break
    return best


def _duplicates(dataset: Dataset, statistics: pd.DataFrame, thumbnails: np.ndarray) -> pd.DataFrame:
    digests = pd.Series(dataset.digests)
    once = np.flatnonzero(~digests.duplicated())
    first_of = dict(zip(digests[once], once, strict=True))
    same = [(first_of[digests[i]], i) for i in np.flatnonzero(digests.duplicated())]
    near = near_duplicates(thumbnails[once])
    pairs = pd.DataFrame(same, columns=["index", "other_index"]).astype(int)
    pairs = pairs.assign(kind="same file", likeness=1.0, turn="")
    near = pd.DataFrame(
        {
            "index": once[near["first"].to_numpy(int)],
            "other_index": once[near["second"].to_numpy(int)],
            "kind": "near",
            "likeness": near["likeness"].astype(float),
            "turn": near["turn"],
        }
    )
    pairs = pd.concat([part for part in (pairs, near) if len(part)] or [pairs])
    known = statistics[["path", "class", "side"]]
    for prefix, column in (("", "index"), ("other_", "other_index")):
        rows = known.iloc[pairs[column]].reset_index(drop=True)
        rows.columns = ["other" if prefix else "path", f"{prefix}class", f"{prefix}side"]
        pairs = pd.concat([pairs.reset_index(drop=True), rows], axis=1)
    order = {
        "_one_class": pairs["class"] == pairs["other_class"],
        "_one_side": pairs["side"] == pairs["other_side"],
        "_unlike": -pairs["likeness"],
    }
    return pairs.assign(**order).sort_values([*order, "path"], ignore_index=True)[
        [
            *("index", "path", "class", "side"),
            *("other_index", "other", "other_class", "other_side"),
            *("kind", "likeness", "turn"),
        ]
    ]


def leaked(duplicates: pd.DataFrame, statistics: pd.DataFrame) -> np.ndarray:
    """Places of the held-out images that have a copy or near duplicate on a training side."""
    pairs = duplicates[["index", "other_index"]].to_numpy(int)
    count = len(statistics)
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, groups = connected_components(links, directed=False)
    sides = statistics["side"].to_numpy()
    held_out = np.isin(sides, HELD_OUT)
    seen = np.zeros(groups.max() + 1, bool)
    seen[groups[~held_out & (sides != "")]] = True
    return np.flatnonzero(held_out & seen[groups])


# --- judgement -----------------------------------------------------------------------------------


def _judge_classes(found: dict, problems: list[str], warnings: list[str]) -> None:
    images = found["counts"]["images"]
    if len(images) < FEWEST_CLASSES:
        problems.append(
            f"There is only one class, {images.index[0]}. A classifier needs {FEWEST_CLASSES} or "
            "more: put the images of each into a folder of its own."
        )
    few = images[images < FEWEST_IMAGES]
    if len(few):
        which = ", ".join(f"{name} ({count})" for name, count in few.items())
        problems.append(
            f"{_count(len(few), 'class', 'has', 'have')} fewer than {FEWEST_IMAGES} images: "
            f"{which}. Add images, put related classes together, or leave small ones out."
        )
    if images.max() > WIDEST_IMBALANCE * images.min():
        warnings.append(
            f"Class {images.idxmax()} has {images.max():,} images, {images.idxmin()} only "
            f"{images.min():,}: more than {WIDEST_IMBALANCE} for one. Add images to the small "
            "classes, or balance them in training, as the reader can."
        )


def _judge_files(found: dict, problems: list[str], warnings: list[str]) -> None:
    unreadable, images = found["unreadable"], len(found["statistics"])
    if len(unreadable):
        share = len(unreadable) / (images + len(unreadable))
        kinds = _kinds(unreadable).value_counts()
        reasons = "; ".join(f"{count:,} × {kind}" for kind, count in kinds.head(3).items())
        (problems if share > MOST_UNREADABLE else warnings).append(
            f"{_count(len(unreadable), 'file')} ({_share(share)}) cannot be used: {reasons}. Copy "
            "them again from where they came from, or remove them."
        )
    torn = found["copies"]["reason"].str.startswith(TWIN)
    dropped = found["copies"]["outcome"] == "dropped"
    if count := int((torn & dropped).sum()):
        warnings.append(
            f"{_count(count, 'file', 'was', 'were')} left out because the same image has another "
            "label elsewhere. Find out which label is right and remove the other file."
        )
    if count := int((~torn & dropped).sum()):
        warnings.append(
            f"{_count(count, 'file', 'was', 'were')} left out as byte-identical to another of the "
            "same class. Nothing needs to be done."
        )


def _judge_images(found: dict, problems: list[str], warnings: list[str]) -> None:
    statistics, outliers = found["statistics"], found["outliers"]
    images = len(statistics)
    if blank := int((statistics["contrast"] < BLANK_CONTRAST).sum()):
        (problems if blank / images > MOST_BLANK else warnings).append(
            f"{_count(blank, 'image')} ({_share(blank / images)}) of a contrast below "
            f"{BLANK_CONTRAST:g} show nothing. Remove them."
        )
    sides = statistics[["width", "height"]].min(axis=1)
    if sides.max() > WIDEST_SIZES * sides.min():
        warnings.append(
            f"The images' shorter sides go from {sides.min()} to {sides.max()} pixels. All are "
            "resized to one, so equal cells will look unequal unless the scale differs as well: "
            "crop or resize them to one scale (micrometres per pixel)."
        )
    if small := int((sides < SMALL_SIDE).sum()):
        warnings.append(
            f"{_count(small, 'image')} ({_share(small / images)}) of fewer than {SMALL_SIDE} "
            "pixels on a side hardly show granules and chromatin. Use larger originals if there "
            "are any."
        )
    if len(outliers):
        kinds = outliers["measure"].value_counts()
        which = ", ".join(f"{count:,} by {kind}" for kind, count in kinds.items())
        warnings.append(
            f"{_count(len(outliers), 'image', 'is', 'are')} unusual "
            f"({_share(len(outliers) / images)}): {which}. Look at them, and remove those that are "
            "faulty."
        )
    lab = ["background_l", "background_a", "background_b"]
    usual = np.median(statistics[lab].to_numpy(), axis=0)
    bound = OUTLIER_BOUND * MEASURES["background"].floor
    medians = statistics.groupby("class", sort=False)[lab].median()
    for name, shift in (medians - usual).iterrows():
        far = np.linalg.norm(shift)
        if far > bound:
            words = _reason("background", far, shift.to_numpy()).partition(" (")[0]
            warnings.append(
                f"Class {name} has a {words} than the others (by {far:.0f}; up to {bound:g} is "
                "usual). A classifier can learn the stain instead of the cell: take all classes "
                "from the same slides, or match their colours."
            )


def _judge_duplicates(found: dict, problems: list[str], warnings: list[str]) -> None:
    pairs, statistics = found["duplicates"], found["statistics"]
    torn = pairs["class"] != pairs["other_class"]
    if torn.any():
        count = len(np.unique(pairs.loc[torn, ["index", "other_index"]]))
        share = count / len(statistics)
        (problems if share > MOST_CONTRADICTING else warnings).append(
            f"{_count(count, 'image')} ({_share(share)}) are in the set under another label as "
            "well, as copies or near duplicates. Find out which label is right and remove the "
            "others."
        )
    held_out = int(statistics["side"].isin(HELD_OUT).sum())
    if count := len(leaked(pairs, statistics)):
        share = count / held_out
        (problems if share > MOST_LEAKED else warnings).append(
            f"{count:,} of {_count(held_out, 'image')} held out for validation or test "
            f"({_share(share)}) have a copy or near duplicate on a training side, so scores will "
            "be too good. Remove them, or keep them together: a manifest's column 'group' does it."
        )
    if inside := int((~torn).sum()):
        warnings.append(
            f"{_count(inside, 'pair')} of images of one class show the same. Keep one of each."
        )


def _kinds(report: pd.DataFrame) -> pd.Series:
    """What stands in a report's reasons before what belongs to one file only."""
    return report["reason"].str.split(r":| \(row ", regex=True).str[0]


def _count(count: int, noun: str, one: str = "", many: str = "") -> str:
    """Such as "1 file was", "2,000 files were"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending} {one if count == 1 else many}".rstrip()


def _share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "below 0.1%"


# --- for people and machines ---------------------------------------------------------------------


def as_json(inspection: Inspection) -> str:
    """One JSON document (ASCII) of what was found, outliers and duplicates in full.

    Keys: name, hash, credit, images, fit, problems, warnings (lists of sentences); counts (by class
    the images of each side, and "images" in all); sizes (list of width, height, images); statistics
    (by class and measure the low, median and high value: 5, 50 and 95 %), units (of the measures);
    outliers, duplicates, unreadable, copies and report (lists, with the columns of `Inspection`);
    bounds (the limits that were applied).
    """
    found = inspection
    statistics = {
        kind: {name: dict(zip(_QUANTILES, row, strict=True)) for name, row in rows.items()}
        for kind, rows in _by_class(found).items()
    }
    document = {
        "name": found.name,
        "hash": found.fingerprint,
        "credit": found.credit,
        "images": len(found.statistics),
        "fit": found.fit,
        "problems": list(found.problems),
        "warnings": list(found.warnings),
        "counts": found.counts.to_dict("index"),
        "sizes": found.sizes.to_dict("records"),
        "statistics": statistics,
        "units": {name: measure.unit for name, measure in MEASURES.items()},
        "outliers": found.outliers.drop(columns="index").to_dict("records"),
        "duplicates": found.duplicates.drop(columns=["index", "other_index"]).to_dict("records"),
        "unreadable": found.unreadable.to_dict("records"),
        "copies": found.copies.to_dict("records"),
        "report": found.report.to_dict("records"),
        "bounds": {
            "fewest_classes": FEWEST_CLASSES,
            "fewest_images": FEWEST_IMAGES,
            "most_unreadable": MOST_UNREADABLE,
            "most_blank": MOST_BLANK,
            "most_contradicting": MOST_CONTRADICTING,
            "most_leaked": MOST_LEAKED,
            "widest_imbalance": WIDEST_IMBALANCE,
            "widest_sizes": WIDEST_SIZES,
            "small_side": SMALL_SIDE,
            "outlier_bound": OUTLIER_BOUND,
            "blank_contrast": BLANK_CONTRAST,
            "near": NEAR,
        },
    }
    return json.dumps(_plain(document), indent=1, allow_nan=False)


_QUANTILES = {"low": 0.05, "median": 0.5, "high": 0.95}


def _by_class(found: Inspection) -> dict[str, dict[str, np.ndarray]]:
    """The low, median and high value of each measure, by class and measure."""
    groups = found.statistics.groupby("class", sort=False)
    return {
        kind: {name: np.quantile(rows[name], list(_QUANTILES.values())) for name in MEASURES}
        for kind, rows in groups
    }


def _plain(value: object) -> object:
    """The value in types that JSON has."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def as_text(inspection: Inspection, everything: bool = False) -> str:
    """What was found, for a terminal; the lists are cut short unless `everything` is wanted."""
    found = inspection
    most = None if everything else _LISTED
    lines = [
        f"{found.name}: {len(found.statistics):,} images, {_count(len(found.counts), 'class')}",
        f"data hash {found.fingerprint}",
        *([found.credit] if found.credit else []),
        "",
        *_table(found.counts.map("{:,}".format)),
        "",
        f"{_count(len(found.sizes), 'size')} in pixels",
        *_list(
            [f"{row.images:,} × {row.width}×{row.height}" for row in found.sizes.itertuples()], most
        ),
        "",
        "median (5 to 95 %) by class",
        *_table(
            pd.DataFrame(
                {
                    kind: {
                        name: f"{middle:.0f} ({low:.0f} to {high:.0f})"
                        for name, (low, middle, high) in rows.items()
                    }
                    for kind, rows in _by_class(found).items()
                }
            ).T.rename_axis("class")
        ),
        *(f"  {name}: {measure.unit}" for name, measure in MEASURES.items()),
        "",
    ]
    for measure, rows in found.outliers.groupby("measure", sort=False):
        lines.append(f"unusual by {measure}: {_count(len(rows), 'image')} (deviations)")
        lines += _list([f"{_whose(row)}: {row.reason}" for row in rows.itertuples()], most)
    for kind, rows in found.duplicates.groupby("kind", sort=False):
        words = "in the set more than once" if kind == "same file" else "nearly the same"
        lines.append(f"{words}: {_count(len(rows), 'pair')} (likeness)")
        pairs = [
            f"{_whose(row)} and {_label(row.other, row.other_class, row.other_side)}: "
            f"{row.likeness:.3f}{', ' * bool(row.turn)}{row.turn}"
            for row in rows.itertuples()
        ]
        lines += _list(pairs, most)
    if found.report.empty:
        lines.append("no file was dropped or converted")
    for (outcome, kind), rows in found.report.groupby(
        ["outcome", _kinds(found.report)], sort=False
    ):
        lines.append(f"{outcome}: {len(rows):,} × {kind}")
        lines += _list([f"{row.path}  ({row.reason})" for row in rows.itertuples()], most)
    lines.append("")
    lines += [f"warning: {sentence}" for sentence in found.warnings]
    lines += [f"problem: {sentence}" for sentence in found.problems]
    lines.append("fit for training" if found.fit else "not fit for training")
    return "\n".join(lines)


def _table(table: pd.DataFrame) -> list[str]:
    """Its rows with their names on the left, all columns to the right."""
    rows = [[str(table.index.name), *table.columns]]
    rows += [[str(name), *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join(
            [row[0].ljust(first), *(w.rjust(n) for w, n in zip(row[1:], others, strict=True))]
        )
        for row in rows
    ]


def _list(lines: list[str], most: int | None) -> list[str]:
    shown = [f"  {line}" for line in lines[:most]]
    left = len(lines) - len(shown)
    return [*shown, f"  … and {left:,} more: '--all' lists them"] if left else shown


def _whose(row: tuple) -> str:
    # `class` is no name that a tuple's field could have
    return _label(row.path, row[3], row.side)


def _label(path: str, kind: str, side: str) -> str:
    return f"{path} ({kind}{', ' * bool(side)}{side})"
