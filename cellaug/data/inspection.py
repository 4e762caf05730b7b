"""Inspect a set of images before training: what it holds, what is unusual, whether it is fit.

Colours are CIELAB (D65): lightness L* from 0 to 100, a* from green to red, b* from blue to yellow,
chroma C* the distance from grey. `inspection.yaml` lists measures, bounds and judgements.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cellaug.data.dataset import Dataset, printable
from cellaug.data.images import decode, fit_square, turned
from cellaug.data.splits import split
from cellaug.errors import DataError
from cellaug.files import progress

import cv2
import numpy as np
import pandas as pd
import yaml
from scipy.fft import rfft2
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

_RULES = yaml.safe_load(Path(__file__).with_name("inspection.yaml").read_text("utf-8"))
MEASURES = {name: SimpleNamespace(**entry) for name, entry in _RULES["measures"].items()}
"""Words for low and high values of each measure, its unit and the floor of its scale."""
BOUNDS: dict[str, float] = _RULES["bounds"]
_SOUND = tuple(_RULES["sound"])
_LAB = ["background_l", "background_a", "background_b"]
_BACKGROUNDS = (("darker", "brighter"), ("greener", "redder"), ("bluer", "yellower"))
_HELD_OUT = ("validation", "test")  # the splits that training must not see
_TURNED = [f"turned by {degrees}°" for degrees in (90, 180, 270)]
TURNS = ("", *_TURNED, "mirrored", *(f"mirrored and {turn}" for turn in _TURNED))
"""How one of two near duplicates lies relative to the other; empty if it lies the same way."""
_NEAR = SimpleNamespace(**_RULES["near_duplicates"])
_INNER = slice(_NEAR.shift, -_NEAR.shift)  # what is left of a side if it is shifted
_BLOCK = 1024  # images handled at once, which bounds the memory
_COPY, _TWIN = "copy:", "same image under another label:"  # how reasons of the report begin


@dataclass(frozen=True, eq=False)
class Inspection:
    """The results of an inspection, as tables.

    Paths are relative to the root; `side` is "" if the set could not be divided, and `undivided`
    says why. `counts` are the images by class (index), by side and in all (images). `statistics`
    has one row per image: path, class, side, width, height (pixels), the `MEASURES`, background_l,
    background_a, background_b. `outliers`, the worst first: index, path, class, side, measure (the
    most unusual one), score (robust deviations) and reason (all that is unusual). `duplicates` are
    pairs: index, path, class, side, other_index, other, other_class, other_side, kind ("same file"
    or "near"), likeness (up to 1), turn (of `TURNS`); under two labels first, then on two sides.
    """

    name: str
    fingerprint: str
    credit: str
    counts: pd.DataFrame
    statistics: pd.DataFrame
    outliers: pd.DataFrame
    duplicates: pd.DataFrame
    report: pd.DataFrame
    undivided: str = ""

    @property
    def sizes(self) -> pd.DataFrame:
        """Columns width, height (pixels), images; the most frequent first."""
        sizes = self.statistics.value_counts(["width", "height"]).reset_index(name="images")
        return sizes.sort_values(["images", "width", "height"], ascending=False)

    @property
    def unreadable(self) -> pd.DataFrame:
        """Rows of the report about files that are damaged or not an image."""
        sound = self.report["reason"].str.startswith(_SOUND)
        return self.report[(self.report["outcome"] == "dropped") & ~sound]

    @property
    def copies(self) -> pd.DataFrame:
        """Rows of the report about byte-identical files."""
        return self.report[self.report["reason"].str.startswith((_COPY, _TWIN))]

    @cached_property
    def findings(self) -> pd.DataFrame:
        """The judgements of `inspection.yaml` that apply: columns severity and sentence."""
        rows = []
        for name, count, total, facts in _judgements(self):
            if count:
                severity, words = _RULES["judgements"][name]
                fraction = count / max(total, 1)
                if severity in BOUNDS:
                    severity = "problem" if fraction > BOUNDS[severity] else "warning"
                facts |= {"count": f"{count:,}", "total": f"{total:,}"}
                facts["fraction"] = f"{fraction:.1%}" if fraction >= 0.001 else "below 0.1%"
                rows.append((severity, words.format(**BOUNDS, **facts)))
        return pd.DataFrame(rows, columns=["severity", "sentence"])

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences on what makes the set unfit for training."""
        return tuple(self.findings.query("severity == 'problem'")["sentence"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what else to look at."""
        return tuple(self.findings.query("severity == 'warning'")["sentence"])

    @property
    def fit(self) -> bool:
        """Whether the set is fit for training."""
        return not self.problems


def inspect(dataset: Dataset, splits: Mapping[str, Dataset] | None = None) -> Inspection:
    """Look at every image of a set and its `splits` (else `split`); `DataError` if one is bad."""
    undivided = ""
    if splits is None:
        try:
            splits = split(dataset)
        except DataError as error:
            splits, undivided = {}, printable(str(error))
    statistics, thumbnails = _measure_all(dataset)
    side_of = {path: side for side, part in splits.items() for path in part.paths}
    statistics.insert(2, "side", [side_of.get(path, "") for path in dataset.paths])
    counts = {side: part.counts() for side, part in splits.items()} | {"images": dataset.counts()}
    table = pd.DataFrame(counts).rename(index=printable)
    facts = printable(dataset.name), dataset.fingerprint, dataset.credit, table
    found = statistics, _outliers(statistics), _pairs(dataset, statistics, thumbnails)
    return Inspection(*facts, *found, dataset.report.map(printable), undivided)


def _measure_all(dataset: Dataset) -> tuple[pd.DataFrame, np.ndarray]:
    def look(start: int) -> list[tuple[np.ndarray, np.ndarray]]:
        part, store = dataset.subset(range(start, min(start + 64, len(dataset)))), dataset.store
        images = part.read(store.size) if store else (decode(path)[0] for path in part.paths)
        return [measure(image) for image in images]

    starts = range(0, len(dataset), 64)
    with ThreadPoolExecutor() as pool:
        looks = progress(pool.map(look, starts), "measuring", total=len(starts), unit_scale=64)
        measured = [found for part in looks for found in part]
    values, thumbnails = (np.array(part) for part in zip(*measured, strict=True))
    table = dataset.table[["path", "class"]].astype(object).map(printable)
    table[["width", "height"]] = values[:, :2].astype(int)
    table[["brightness", "contrast", "colour", "sharpness"]] = values[:, 2:6]
    table["background"] = np.linalg.norm(values[:, 6:] - np.median(values[:, 6:], axis=0), axis=1)
    table[_LAB] = values[:, 6:]
    return table, thumbnails


def measure(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Measure the central square of one image, uint8 RGB (H, W, 3).

    Returns nine values, width and height in pixels, brightness, contrast, colour, sharpness (units
    as in `MEASURES`) and the background's L*, a*, b* (the median of the brightest fifth of the
    border: bare glass on a smear), and a grey thumbnail, uint8 (32, 32).
    """
    square = fit_square(image, 256)
    sharpness = cv2.Laplacian(cv2.cvtColor(square, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var()
    small = cv2.resize(square, (64, 64), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lightness, chroma = lab[..., 0], np.hypot(lab[..., 1], lab[..., 2])
    border = lab[np.pad(np.zeros((48, 48), bool), 8, constant_values=True)]
    bare = border[border[:, 0] >= np.quantile(border[:, 0], 0.8)]
    values = [*image.shape[1::-1], lightness.mean(), lightness.std(), chroma.mean(), sharpness]
    tiny = cv2.resize(small, (_NEAR.thumbnail,) * 2, interpolation=cv2.INTER_AREA)
    return np.array([*values, *np.median(bare, axis=0)]), cv2.cvtColor(tiny, cv2.COLOR_RGB2GRAY)


def deviations(values: pd.Series, classes: pd.Series, floor: float) -> pd.Series:
    """Robust z-scores within each class (if it has 30 images); the scale is at least `floor`."""

    def scaled(values: pd.Series) -> pd.Series:
        apart = values - values.median()
        return apart / max(1.4826 * apart.abs().median(), floor)

    groups = values.groupby(classes)
    enough = groups.transform("size") >= BOUNDS["enough_images"]
    return groups.transform(scaled).where(enough, scaled(values))


def _outliers(statistics: pd.DataFrame) -> pd.DataFrame:
    values = statistics.assign(sharpness=np.log2(statistics["sharpness"] + 1))
    floors = {name: entry.floor for name, entry in MEASURES.items()}
    scores = pd.DataFrame({n: deviations(values[n], values["class"], floors[n]) for n in floors})
    # a distance already, and the same for all classes
    usual = max(1.4826 * values["background"].median(), floors["background"])
    scores["background"] = values["background"] / usual
    odd = scores.stack().rename_axis(["index", "measure"]).rename("score").reset_index()
    odd = odd[odd["score"].abs() > BOUNDS["outlier_bound"]]
    odd = odd.sort_values("score", key=np.abs, ascending=False, kind="stable")
    shifts = (values[_LAB] - values[_LAB].median()).to_numpy()
    rows = odd.itertuples(index=False, name=None)
    odd["reason"] = [f"{_words(what, by, shifts[i])} ({abs(by):.1f})" for i, what, by in rows]
    odd = odd.assign(score=odd["score"].abs()).groupby("index", sort=False)
    rows = odd.agg({"measure": "first", "score": "first", "reason": ", ".join})
    rows = statistics[["path", "class", "side"]].join(rows, how="inner").reset_index(names="index")
    return rows.sort_values(["score", "path"], ascending=[False, True], ignore_index=True)


def worst(outliers: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return up to `count` outliers: the worst by each measure, then the second worst and so on."""
    place = outliers.groupby("measure", sort=False).cumcount()
    return outliers.loc[place.sort_values(kind="stable").index[:count]].reset_index(drop=True)


def _words(measure: str, score: float, shift: np.ndarray) -> str:
    """Such as "blurred" or "bluer background", which the shift in L*a*b* tells."""
    if measure != "background":
        return MEASURES[measure].high if score > 0 else MEASURES[measure].low
    axis = int(np.abs(shift).argmax())
    return f"{_BACKGROUNDS[axis][int(shift[axis] > 0)]} background"


def near_duplicates(thumbnails: np.ndarray) -> pd.DataFrame:
    """Pairs of thumbnails that show the same, however bright, shifted, mirrored or turned.

    Images with similar amplitudes of low spatial frequencies, which shifts do not change, are
    candidates. Their likeness is the best correlation of their details over shifts of up to a tenth
    of the side, mirrors and quarter turns. `thumbnails` are grey, uint8 (N, 32, 32). Returns
    columns first, second (places, first < second), likeness (0.95 to 1) and turn (`TURNS`).
    """
    blocks = (thumbnails[i : i + _BLOCK] for i in range(0, len(thumbnails), _BLOCK))
    spectra = np.concatenate([_spectra(_details(block)) for block in blocks])
    places = np.flatnonzero(spectra.any(axis=1))
    spectra, alike = spectra[places], []
    search = NearestNeighbors(radius=_NEAR.radius, algorithm="brute")
    for start in progress(range(0, len(spectra), _BLOCK), "comparing blocks of images"):
        search.fit(spectra[start:])
        near = search.radius_neighbors(spectra[start : start + _BLOCK], sort_results=True)[1]
        for row, others in enumerate(near):
            for other in others[others > row][: _NEAR.candidates]:
                pair = places[[start + row, start + other]]
                alike.append((*pair, *_likeness(*_details(thumbnails[pair]))))
    found = pd.DataFrame(alike, columns=["first", "second", "likeness", "turn"])
    return found[found["likeness"] >= BOUNDS["near"]].sort_values(["first", "second"])


def _details(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails without noise and the dark disc of a cell, float32; zeros without details."""
    images, look = thumbnails.astype(np.float32), {"axes": (1, 2), "mode": "mirror"}
    fine, coarse = (gaussian_filter(images, blur, **look) for blur in _NEAR.blurs)
    spread = (fine - coarse)[:, _INNER, _INNER].std(axis=(1, 2), keepdims=True)
    return np.where(spread >= _NEAR.flat, fine - coarse, 0)


def _spectra(details: np.ndarray) -> np.ndarray:
    """Amplitudes (N, 72) of low frequencies, sorted within those that turns and mirrors exchange.

    Zeros for an image without details. A window fades what a shift moves in or out at the border.
    """
    window = np.sqrt(np.hanning(_NEAR.thumbnail + 2)[1:-1]).astype(np.float32)
    images = (details - details.mean(axis=(1, 2), keepdims=True)) * window * window[:, None]
    norms = np.linalg.norm(images, axis=(1, 2), keepdims=True)
    waves = np.abs(rfft2(images / np.where(norms > 0, norms, 1), norm="ortho"))
    low = np.arange(_NEAR.frequencies)
    rising, falling = waves[:, : len(low), : len(low)], waves[:, -low, : len(low)]
    i, j = np.triu_indices(len(low), 1)
    four = np.stack([rising[:, i, j], falling[:, i, j], rising[:, j, i], falling[:, j, i]], axis=-1)
    two = np.stack([rising[:, low, low], falling[:, low, low]], axis=-1)
    ordered = [np.sort(waves, axis=-1).reshape(len(details), -1) for waves in (four, two)]
    return np.concatenate(ordered, axis=1).astype(np.float32)


def _likeness(first: np.ndarray, second: np.ndarray) -> tuple[float, str]:
    """The best correlation of two images' details (32, 32), and the turn that gives it."""
    views = [np.ascontiguousarray(turned(second[..., None], view)) for view in range(len(TURNS))]
    inner, how = first[_INNER, _INNER], cv2.TM_CCOEFF_NORMED
    found = [cv2.matchTemplate(view, inner, how).max() for view in views]
    return min(float(max(found)), 1.0), TURNS[int(np.argmax(found))]


def _pairs(dataset: Dataset, statistics: pd.DataFrame, thumbnails: np.ndarray) -> pd.DataFrame:
    places = pd.Series(range(len(dataset)))
    first = places.groupby(list(dataset.digests)).transform("min")
    same = pd.DataFrame({"first": first, "second": places})[first < places]
    once = places[first == places].to_numpy()
    near = near_duplicates(thumbnails[once]).assign(kind="near")
    near[["first", "second"]] = once[near[["first", "second"]].to_numpy(int)]
    pairs = pd.concat([same.assign(likeness=1.0, turn="", kind="same file"), near])
    pairs = pairs.rename(columns={"first": "index", "second": "other_index"})
    known = statistics[["path", "class", "side"]]
    others = known.add_prefix("other_").rename(columns={"other_path": "other"})
    pairs = pairs.join(known, on="index").join(others, on="other_index")
    order = [pairs[name] == pairs[f"other_{name}"] for name in ("class", "side")]
    rank = np.lexsort((pairs["path"], -pairs["likeness"].astype(float), *reversed(order)))
    return pairs.iloc[rank].reset_index(drop=True)


def leaked(duplicates: pd.DataFrame, statistics: pd.DataFrame) -> np.ndarray:
    """Places of the held-out images that have a copy or near duplicate on a training side."""
    first, second = duplicates[["index", "other_index"]].to_numpy(int).T
    side = statistics["side"].to_numpy()
    links = coo_array((np.ones(len(first)), (first, second)), shape=(len(side), len(side)))
    group = connected_components(links, directed=False)[1]
    held_out = np.isin(side, _HELD_OUT)
    return np.flatnonzero(held_out & np.isin(group, group[~held_out & (side != "")]))


def _judgements(found: Inspection) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Apply each rule: its name, the number of cases, of how many, and facts for its sentence."""
    statistics, pairs, images = found.statistics, found.duplicates, len(found.statistics)
    by_class, bad = found.counts["images"], found.unreadable
    yield "divided", bool(found.undivided), 1, {"error": found.undivided}
    yield "one_class", len(by_class) < BOUNDS["fewest_classes"], 1, {"only": by_class.index[0]}
    few = by_class[by_class < BOUNDS["fewest_images"]]
    yield "few_images", len(few), len(by_class), {"which": _listed(few)}
    facts = {"largest": by_class.idxmax(), "smallest": by_class.idxmin()}
    facts |= {"most": by_class.max(), "fewest": by_class.min()}
    yield "imbalance", facts["most"] > BOUNDS["widest_imbalance"] * facts["fewest"], 1, facts
    facts = {"which": _listed(_kinds(bad).value_counts().head(3))}
    yield "unreadable", len(bad), images + len(bad), facts
    dropped = found.copies[found.copies["outcome"] == "dropped"]["reason"]
    yield "two_labels", dropped.str.startswith(_TWIN).sum(), 1, {}
    yield "copies", dropped.str.startswith(_COPY).sum(), 1, {}
    yield "blank", (statistics["contrast"] < BOUNDS["blank_contrast"]).sum(), images, {}
    sides = statistics[["width", "height"]].min(axis=1)
    facts = {"shortest": sides.min(), "longest": sides.max()}
    yield "sizes", facts["longest"] > BOUNDS["widest_sizes"] * facts["shortest"], 1, facts
    yield "small", (sides < BOUNDS["small_side"]).sum(), images, {}
    facts = {"which": _listed(found.outliers["measure"].value_counts())}
    yield "unusual", len(found.outliers), images, facts
    usual = BOUNDS["outlier_bound"] * MEASURES["background"].floor
    medians = statistics.groupby("class", sort=False)[_LAB].median()
    for name, shift in (medians - statistics[_LAB].median()).iterrows():
        far = float(np.linalg.norm(shift))
        facts = {"name": name, "words": _words("background", far, shift.to_numpy())}
        yield "stain", far > usual, 1, facts | {"shift": far, "usual": usual}
    torn = pairs["class"] != pairs["other_class"]
    contradicting = np.unique(pairs.loc[torn, ["index", "other_index"]])
    yield "contradicting", len(contradicting), images, {}
    yield "leaked", len(leaked(pairs, statistics)), statistics["side"].isin(_HELD_OUT).sum(), {}
    yield "duplicates", (~torn).sum(), 1, {}


def _listed(counts: pd.Series) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _kinds(report: pd.DataFrame) -> pd.Series:
    """The part of a report's reasons before what belongs to one file only."""
    return report["reason"].str.split(r":| \(row ", regex=True).str[0]


def _by_class(found: Inspection) -> pd.DataFrame:
    """The 5, 50 and 95 % quantiles of each measure (low, median, high), by class."""
    groups = found.statistics.groupby("class", sort=False)[list(MEASURES)]
    return groups.quantile([0.05, 0.5, 0.95]).rename({0.05: "low", 0.5: "median", 0.95: "high"})


def as_json(found: Inspection) -> str:
    """What was found as JSON (ASCII); statistics are the 5, 50 and 95 % quantiles by class."""
    names = "name credit fit problems warnings sizes unreadable copies report".split()
    document: dict[str, Any] = {name: getattr(found, name) for name in names}
    document |= {"hash": found.fingerprint, "images": len(found.statistics), "bounds": BOUNDS}
    document["counts"] = found.counts.to_dict("index")
    rows = _by_class(found).groupby(level=0, sort=False)
    document["statistics"] = {name: part.droplevel(0).to_dict() for name, part in rows}
    document["units"] = {name: measure.unit for name, measure in MEASURES.items()}
    document["outliers"] = found.outliers.drop(columns="index")
    document["duplicates"] = found.duplicates.drop(columns=["index", "other_index"])
    return json.dumps(document, indent=1, allow_nan=False, default=lambda t: t.to_dict("records"))


def as_text(found: Inspection, everything: bool = False) -> str:
    """What was found, for a terminal; lists end after six rows unless `everything` is wanted."""

    def section(title: str, lines: pd.Series) -> None:
        shown = lines if everything else lines.head(6)
        text.extend([f"{title}: {len(lines):,}", *("  " + shown)])
        if left := len(lines) - len(shown):
            text.append(f"  … and {left:,} more: '--all' lists them")

    def image(rows: pd.DataFrame, columns: Sequence[str] = ("path", "class", "side")) -> pd.Series:
        path, kind, side = (rows[column] for column in columns)
        return path + " (" + (kind + ", " + side).str.removesuffix(", ") + ")"

    text = [f"{found.name}: {len(found.statistics):,} images, {len(found.counts)} classes"]
    text += [f"data hash {found.fingerprint}", *filter(None, [found.credit]), ""]
    named = {"index": None, "columns": "class"}
    text += [found.counts.map(" {:,}".format).rename_axis(**named).to_string(), ""]
    sizes = found.sizes.astype(str)
    section("sizes in pixels", sizes["width"] + "×" + sizes["height"] + ": " + sizes["images"])
    rounded = _by_class(found).map("{:.0f}".format)
    low, median, high = (rounded.xs(level, level=1) for level in ("low", "median", "high"))
    cells = (median + " (" + low + " to " + high + ")").rename_axis(**named)
    text += ["", "median (5 to 95 %) by class", cells.to_string()]
    text += [f"  {name}: {measure.unit}" for name, measure in MEASURES.items()] + [""]
    for measure, rows in found.outliers.groupby("measure", sort=False):
        section(f"unusual by {measure}, with deviations", image(rows) + ": " + rows["reason"])
    for kind, rows in found.duplicates.groupby("kind", sort=False):
        both = image(rows) + " and " + image(rows, ["other", "other_class", "other_side"])
        words = ": " + rows["likeness"].map("{:.3f}".format) + ", " + rows["turn"]
        alike = "in the set more than once" if kind == "same file" else "nearly the same"
        section(f"pairs {alike}, with likeness", both + words.str.removesuffix(", "))
    text += ["no file was dropped or converted"] if found.report.empty else []
    kinds = ["outcome", _kinds(found.report)]
    for (outcome, kind), rows in found.report.groupby(kinds, sort=False):
        section(f"{outcome}, {kind}", rows["path"] + "  (" + rows["reason"] + ")")
    text += ["", *(found.findings["severity"] + ": " + found.findings["sentence"])]
    return "\n".join([*text, "fit for training" if found.fit else "not fit for training"])
