"""Inspect a set of images before training: what it holds, what is unusual, whether it is fit.

Colours are CIELAB (D65): lightness L* from 0 to 100, a* from green to red, b* from blue to yellow,
chroma C* the distance from grey. `inspection.yaml` lists measures, bounds and judgements.
"""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cellaug.data.copies import HELD_OUT, SURE, families, leaked
from cellaug.data.dataset import Dataset, printable
from cellaug.data.measure import measured, near_pairs
from cellaug.data.sets import OVERLOOKED, UNKNOWN
from cellaug.data.splits import (
    DEFAULT_FRACTIONS,
    DISJOINT,
    measurable,
    plan,
    sides_of_groups,
    split,
)
from cellaug.errors import DataError

import numpy as np
import pandas as pd
import yaml
from scipy.stats import mannwhitneyu

_RULES = yaml.safe_load(Path(__file__).with_name("inspection.yaml").read_text("utf-8"))
MEASURES = {name: SimpleNamespace(**entry) for name, entry in _RULES["measures"].items()}
"""Words for low and high values of each measure, its unit and the floor of its scale."""
BOUNDS: dict[str, float] = _RULES["bounds"]
IMAGES_PER_SECOND, PAIRS_PER_SECOND = 500.0, 3e8  # of 360 pixels or fewer, on two cores
_SOUND = tuple(_RULES["sound"])
_LAB = ["background_l", "background_a", "background_b"]
_BACKGROUNDS = (("darker", "brighter"), ("greener", "redder"), ("bluer", "yellower"))
_ACROSS = r"^copy: of (.*) \(in the split \w+, this one in train\)$"
_INNER = r"^a folder inside a class folder; what it holds is not read: ([\d,]+) images"
_COPY, _TWIN = "copy:", "same image under another label:"  # how reasons of the report begin


@dataclass(frozen=True, eq=False)
class Inspection:
    """The results of an inspection, as tables.

    Paths are relative to the root; `side` is "" if the set could not be divided, and `undivided`
    says why, `not_in_four` why not for the protocol "disjoint". `counts` are the images by class
    (index), by side and in all (images). `statistics` has one row per image: path, class, side,
    group, origin, width, height (pixels), the `MEASURES`,
    background_l, background_a, background_b. `outliers`, the worst first: index, path, class, side,
    measure (the most unusual one), score (robust deviations) and reason (all that is unusual).
    `duplicates` are pairs: index, path, class, side, other_index, other, other_class, other_side,
    kind ("same file" or "near"), likeness (up to 1), turn (of `copies.TURNS`); under two labels
    first, then on two sides. `division` says how `split` divides the set (`splits.plan`; None if
    the sides were given), `recall` what the test images measure (`splits.measurable`).
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
    not_in_four: str = ""
    division: dict[str, Any] | None = None
    recall: pd.DataFrame | None = None

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
    def alike_groups(self) -> list[list[str]]:
        """Groups whose names differ only as one patient's may: by case, blanks, zeros, signs, …"""
        names = pd.Series(sorted(set(self.statistics["group"]) - {""}), dtype=object)
        look = names.map(lambda name: unicodedata.normalize("NFKC", name)).str.casefold()
        nothing = r"\.0+$|^[\W_]+|[\W_]+$|(?<=[^\W\d_])[\W_]+(?=\d)|\s|(?<=[^\W\d_]),"
        for odd, same in ((nothing, ""), (r"[\W_]+", "-"), (r"(?<!\d)0+(?=\d)", "")):
            look = look.replace(odd, same, regex=True)
        return [spellings for spellings in names.groupby(look).agg(list) if len(spellings) > 1]

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
                few = "below 0.1 %"
                facts["fraction"] = f"{100 * fraction:.1f} %" if fraction >= 0.001 else few
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
    division, undivided, not_in_four = None if splits else plan(dataset), "", ""
    if splits is None:
        splits, undivided = _attempt(dataset, DEFAULT_FRACTIONS)
        not_in_four = _attempt(dataset, DISJOINT)[1] if splits else ""
    statistics, thumbnails = _measure_all(dataset)
    side_of = {path: side for side, part in splits.items() for path in part.paths}
    statistics.insert(2, "side", [side_of.get(path, "") for path in dataset.paths])
    counts = {side: part.counts() for side, part in splits.items()} | {"images": dataset.counts()}
    table = pd.DataFrame(counts).rename(index=printable)
    facts = printable(dataset.name), dataset.fingerprint, dataset.credit, table
    found = statistics, _outliers(statistics), _pairs(dataset, statistics, thumbnails)
    recall = measurable(splits).rename(index=printable) if splits else None
    report = dataset.report.map(printable)
    return Inspection(*facts, *found, report, undivided, not_in_four, division, recall)


def seconds(images: int) -> float:
    """About how long `inspect` takes on two cores, the first time."""
    return images / IMAGES_PER_SECOND + images**2 / PAIRS_PER_SECOND


def _attempt(dataset: Dataset, fractions: Mapping[str, float]) -> tuple[Mapping[str, Dataset], str]:
    """The parts of a set, or none and the reason."""
    try:
        return split(dataset, fractions), ""
    except DataError as error:
        return {}, printable(str(error))


def _measure_all(dataset: Dataset) -> tuple[pd.DataFrame, np.ndarray]:
    values, thumbnails = measured(dataset)
    known = ["path", "class", "group", "origin"]
    table = dataset.table[known].astype(object).map(printable)
    table[["width", "height"]] = values[:, :2].astype(int)
    table[["brightness", "contrast", "colour", "sharpness"]] = values[:, 2:6]
    table["background"] = np.linalg.norm(values[:, 6:] - np.median(values[:, 6:], axis=0), axis=1)
    table[_LAB] = values[:, 6:]
    return table, thumbnails


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


def _pairs(dataset: Dataset, statistics: pd.DataFrame, thumbnails: np.ndarray) -> pd.DataFrame:
    places = pd.Series(range(len(dataset)))
    first = places.groupby(list(dataset.digests)).transform("min")
    same = pd.DataFrame({"first": first, "second": places})[first < places]
    once = places[first == places].to_numpy()
    near = near_pairs(thumbnails[once]).assign(kind="near")
    near[["first", "second"]] = once[near[["first", "second"]].to_numpy(int)]
    pairs = pd.concat([same.assign(likeness=1.0, turn="", kind="same file"), near])
    pairs = pairs.rename(columns={"first": "index", "second": "other_index"})
    known = statistics[["path", "class", "side"]]
    others = known.add_prefix("other_").rename(columns={"other_path": "other"})
    pairs = pairs.join(known, on="index").join(others, on="other_index")
    one = pairs["class"] == pairs["other_class"]
    pairs = pairs[one | (pairs["likeness"] >= SURE)]
    order = [pairs[name] == pairs[f"other_{name}"] for name in ("class", "side")]
    rank = np.lexsort((pairs["path"], -pairs["likeness"].astype(float), *reversed(order)))
    return pairs.iloc[rank].reset_index(drop=True)


def _judgements(found: Inspection) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Apply each rule: its name, the number of cases, of how many, and facts for its sentence."""
    statistics, pairs, images = found.statistics, found.duplicates, len(found.statistics)
    by_class, bad = found.counts["images"], found.unreadable
    yield "divided", bool(found.undivided), 1, {"error": found.undivided}
    yield "not_in_four", bool(found.not_in_four), 1, {"error": found.not_in_four}
    yield "one_class", len(by_class) < BOUNDS["fewest_classes"], 1, {"only": by_class.index[0]}
    few = by_class[by_class < BOUNDS["fewest_images"]]
    yield "few_images", len(few), len(by_class), {"which": _listed(few)}
    facts = {"largest": by_class.idxmax(), "smallest": by_class.idxmin()}
    facts |= {"most": by_class.max(), "fewest": by_class.min()}
    yield "imbalance", facts["most"] > BOUNDS["widest_imbalance"] * facts["fewest"], 1, facts
    facts = {"which": _listed(_kinds(bad).value_counts().head(3))}
    yield "unreadable", len(bad), images + len(bad), facts
    unread = found.report["reason"].str.extract(_INNER)[0].dropna().str.replace(",", "").astype(int)
    yield "inner_folders", (unread > 0).sum(), 1, {"files": f"{unread.sum():,}"}
    dropped = found.copies[found.copies["outcome"] == "dropped"]["reason"]
    yield "two_labels", dropped.str.startswith(_TWIN).sum(), 1, {}
    across = dropped.str.extract(_ACROSS)[0].dropna()
    yield "copies", dropped.str.startswith(_COPY).sum() - len(across), 1, {}
    held_out = statistics["side"].isin(HELD_OUT)
    published = found.division["published"] if found.division else HELD_OUT
    yield "split_leaked", across.nunique(), statistics["side"].isin(published).sum(), {}
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
    yield from _origins(statistics)
    names = found.report["reason"].str.extract(UNKNOWN + r": (.*)")[0].dropna()
    yield "unknown_groups", len(names), images, {"which": _listed(names.value_counts())}
    unread = found.report["reason"].str.extract(OVERLOOKED + r": (.*)")[0].dropna()
    yield "overlooked", len(unread), 1, {"which": "; ".join(unread)}
    yield from _groups(statistics, found.recall, found.alike_groups)
    torn = pairs["class"] != pairs["other_class"]
    contradicting = np.unique(pairs.loc[torn, ["index", "other_index"]])
    yield "contradicting", len(contradicting), images, {}
    yield "leaked", len(leaked(pairs, statistics)), held_out.sum(), {}
    yield "duplicates", (~torn).sum(), 1, {}
    named = families(statistics)
    facts = {"which": "; ".join(", ".join(paths[:3]) for paths in named[:2])}
    yield "families", len(named), images, facts | {"files": sum(map(len, named))}


def _origins(statistics: pd.DataFrame) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Generated images on the held-out sides, and classes whose sharpness tells them apart."""
    made = statistics["origin"] == "synthetic"
    yield "made_held_out", (made & statistics["side"].isin(HELD_OUT)).sum(), made.sum(), {}
    apart = {}
    for kind, rows in statistics["sharpness"].groupby(statistics["class"], sort=False):
        real, generated = rows[~made[rows.index]], rows[made[rows.index]]
        if min(len(real), len(generated)) >= BOUNDS["enough_of_origin"]:
            area = mannwhitneyu(real, generated).statistic / len(real) / len(generated)
            apart[kind] = max(area, 1 - area)
    told = {kind: area for kind, area in apart.items() if area >= BOUNDS["told_apart"]}
    facts = {"which": ", ".join(f"{kind} ({area:.2f})" for kind, area in told.items())}
    yield "origin_told", len(told), len(apart), facts


def _groups(
    statistics: pd.DataFrame, recall: pd.DataFrame | None, alike: Sequence[Sequence[str]]
) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Patients or slides that are divided, unknown or written in two ways, and what is too few."""
    grouped = statistics[statistics["group"] != ""]
    sides = sides_of_groups(statistics)
    torn = sides[sides.map(len) > 1]
    which = (f"{group} ({', '.join(parts)})" for group, parts in torn.head(3).items())
    yield "torn_groups", len(torn), len(sides), {"which": ", ".join(which)}
    more = f"; and {len(alike) - 20} more, which '--all' lists" * (len(alike) > 20)
    facts = {"which": "; ".join(" = ".join(spellings) for spellings in alike[:20]) + more}
    yield "alike_groups", len(alike), grouped["group"].nunique(), facts
    real = statistics["origin"] != "synthetic"  # a generated image has none
    unknown = (real & (statistics["group"] == "")).sum() if len(grouped) else 0
    yield "no_group", unknown, real.sum(), {}
    yield from _training(statistics[real & (statistics["side"] != "")])
    recall = pd.DataFrame() if recall is None else recall
    low = recall.query("0 < groups < @BOUNDS['fewest_groups']") if len(recall) else recall
    yield "few_groups", len(low), len(recall), {"which": _listed(low.get("groups", pd.Series()))}
    one = recall.query("groups > 0 and tested < 2") if len(recall) else recall
    yield "one_tested", len(one), len(recall), {"which": ", ".join(one.index)}
    few = recall.query("0 < images < @BOUNDS['fewest_tested']") if len(recall) else recall
    rows = few.itertuples()
    which = (f"{r.Index} ({r.images}: {r.low:.2f} to {r.high:.2f})" for r in rows)
    yield "few_tested", len(few), len(recall), {"which": ", ".join(which)}


def _training(divided: pd.DataFrame) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
    """Classes of which another split has more images than training, or the one large group."""
    images = divided.groupby(["class", "side"], sort=False).size().unstack(fill_value=0)
    grouped = divided[divided["group"] != ""]
    largest = grouped.groupby(["class", "side", "group"]).size().groupby(level=[0, 1]).max()
    largest = largest.unstack(fill_value=0).reindex(images.index, fill_value=0)
    heavy = largest.max(axis=1) > BOUNDS["heavy_group"] * images.sum(axis=1)
    short = images.get("train", 0) < images.max(axis=1)
    some = images[short | (heavy & (largest.get("train", 0) < largest.max(axis=1)))]
    which = [f"{name} ({row.get('train', 0)} of {row.sum()})" for name, row in some.iterrows()]
    known = "train" in images  # other splits have other names
    yield "short_training", known * len(some), len(images), {"which": ", ".join(which)}


def _listed(counts: pd.Series) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())


def _kinds(report: pd.DataFrame) -> pd.Series:
    """The part of a report's reasons before what belongs to one file only."""
    return report["reason"].str.split(r":| \(row ", regex=True).str[0]


def _by_class(found: Inspection) -> pd.DataFrame:
    """The 5, 50 and 95 % quantiles of each measure (low, median, high), by class."""
    groups = found.statistics.groupby("class", sort=False)[list(MEASURES)]
    return groups.quantile([0.05, 0.5, 0.95]).rename({0.05: "low", 0.5: "median", 0.95: "high"})


def _split_words(division: Mapping[str, Any]) -> str:
    """Which split was looked at, as a line of text."""
    published = division["published"]
    free = {n: part for n, part in division["fractions"].items() if n not in published}
    if len(free) == 1:
        return f"published split, with {', '.join(published)} held out"
    parts = ", ".join(
        f"{name} {100 * part / sum(free.values()):.0f} %" for name, part in free.items()
    )
    how = (
        "stratified" if division["stratified"] else "by the content of each image alone, as PBC is"
    )
    words = f"{parts}; by {division['by']}, {how}, seed {division['seed']}"
    return (
        f"published split ({', '.join(published)}), the rest: {words}"
        if published
        else "split: " + words
    )


def as_json(found: Inspection) -> str:
    """What was found as JSON (ASCII); statistics are the 5, 50 and 95 % quantiles by class."""
    names = "name credit fit problems warnings sizes unreadable copies alike_groups report".split()
    document: dict[str, Any] = {name: getattr(found, name) for name in names}
    document |= {"hash": found.fingerprint, "images": len(found.statistics), "bounds": BOUNDS}
    document |= {"generated": int((found.statistics["origin"] == "synthetic").sum())}
    document |= {"split": found.division, "test": None}
    if found.recall is not None:
        rows = found.recall.astype(object).where(found.recall.notna(), None)
        document["test"] = rows.to_dict("index")
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
    if made := (found.statistics["origin"] == "synthetic").sum():
        text[0] += f"; {made:,} of the images are generated"
    text += [f"data hash {found.fingerprint}", *filter(None, [found.credit]), ""]
    text += [_split_words(found.division)] if found.division else []
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
    if len(found.alike_groups) > 20:
        spelled = pd.Series([" = ".join(names) for names in found.alike_groups])
        section("patients or slides that may be one", spelled)
    text += ["no file was dropped or converted"] if found.report.empty else []
    kinds = ["outcome", _kinds(found.report)]
    for (outcome, kind), rows in found.report.groupby(kinds, sort=False):
        section(f"{outcome}, {kind}", rows["path"] + "  (" + rows["reason"] + ")")
    text += ["", *(found.findings["severity"] + ": " + found.findings["sentence"])]
    return "\n".join([*text, "fit for training" if found.fit else "not fit for training"])
