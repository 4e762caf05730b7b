"""Compare generated cells with real ones: every measure, over all and by class, in one table.

`resamples` times the real images of a class are divided at random into two halves of m images, and
m generated ones drawn without replacement. The first half is compared with these and with the
second half. A value is the mean, its interval the middle 95 %: half of a sample varies about the
whole as the whole does about the truth (delete-half jackknife, Shao & Wu 1989).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cellaug.data.class_map import alike
from cellaug.data.dataset import Dataset
from cellaug.errors import DataError
from cellaug.evaluation import classifiers, measures, scorecard
from cellaug.evaluation import features as extractors
from cellaug.evaluation.features import Extractor
from cellaug.evaluation.finding import Fidelity, crossed, notes
from cellaug.evaluation.measures import COMPONENTS, LARGEST_HALF, Points, Rows
from cellaug.evaluation.memorisation import NEIGHBOURS, Strata, look_for_copies
from cellaug.evaluation.sources import separated, suggestion
from cellaug.files import progress

import numpy as np
import pandas as pd
from numpy import ndarray as Array


def evaluate(
    real: Dataset,
    fake: Dataset,
    reference: Dataset | None = None,
    *,
    features: str = "auto",
    extractor: Extractor | None = None,
    trained_on: np.ndarray | None = None,
    cas: bool = True,
    resamples: int = 200,
    seed: int = 0,
    k: int = 5,
) -> Fidelity:
    """Compare generated images with real ones, at the size of the generated ones.

    Args:
        real: real images that the generator was not trained on, with classes.
        fake: generated images in memory (`Dataset.in_memory`); classes are matched by name.
        reference: the generator's training images, for memorisation and the real accuracy score.
        features: those of the package ("shipped"), "own" ones that are learned from half of the
            reference, or without one from half of the real images, and the other half compared;
            "auto" takes the shipped ones if they know the real cells, else own ones if every class
            has enough images. Features that do not know the cells give values but no verdicts.
            Own features are cross-fitted: all is measured twice, with the halves exchanged, and
            the findings are joined by `crossed`.
        extractor: of features and class logits, in place of the package's own.
        trained_on: what `training_digests` knows of a generator.
        cas: train classifiers for the classification accuracy score (a minute or so).
        resamples: half-samples, at least 20.
        seed: of the half-samples, the classifiers and own features.
        k: neighbours in precision and the like; a class takes 2 (k + 1) images in either set.

    Raises DataError for sets that cannot be compared, ValueError for an argument out of range.
    """
    if resamples < 20 or k < 1 or fake.images is None or features not in extractors.CHOICES:
        wanted = f"resamples from 20, k from 1, features {', '.join(extractors.CHOICES)} and "
        wanted += f"{fake.name} in memory, as `in_memory` gives it"
        raise ValueError(f"expected {wanted}; got {resamples}, {k} and {features}")
    sets = {"real": real, "generated": fake} | ({"reference": reference} if reference else {})
    sets, left_out, said = separated(sets, fake.images.shape[1], trained_on)
    _strata(sets["real"], sets["generated"])  # without a common class nothing need be learned
    findings: list[Fidelity] = []
    for described in _in_features(sets, features, seed, extractor):
        comparison = _Comparison(*described, left_out, resamples, seed, k)
        comparison.by_class()
        fields = {"spectra": comparison.over_all(), **comparison.copies()}
        if cas and (not findings or reference is None):  # it looks at pixels: no fold changes them
            comparison.accuracy()
        findings.append(comparison.finding(**fields))
    found = crossed(findings)
    return replace(found, notes=notes(found, sets.values()) + said)


def expected_seconds(
    real: int, fake: int, reference: int = 0, cas: bool = True, own: bool = False
) -> float:
    """About how long `evaluate` takes for so many images on two cores; `own` features take more.

    As measured: features, 200 half-samples of half of the smaller set, a minute per classifier,
    three for learning features. With own ones all is done twice, but for classifiers that are
    trained on a reference.
    """
    half = min(real // 2, fake // 2, LARGEST_HALF)
    seconds = (real + fake + reference) / 150 + 200 * 3e-7 * half**2 + 180 * own
    return (1 + own) * seconds + 60 * cas * (2 if reference else 1 + own)


def _in_features(
    sets: dict[str, Dataset], choice: str, seed: int, given: Extractor | None
) -> Iterator[tuple[dict[str, Dataset], dict[str, Points], dict[str, Any]]]:
    """The sets to compare, their points, and facts of the features, once or twice: `evaluate`."""
    own, points = choice == "own" and given is None, {}
    if not own:
        extractor = given or extractors.load_extractor(
            extractors.pixels(sets["generated"]).shape[1]
        )
        names = tuple(alike(extractor.class_names, sets["real"].class_names).values())
        points["real"] = Points.of(sets["real"], extractor, names)
        facts = _facts("given" if given else "shipped", sets, points, extractor, names, seed)
        unfit = bool(facts["recognition"]["problem"])
        own = unfit and given is None and choice == "auto" and _teachable(sets, seed)
    if not own:
        for each in progress([name for name in sets if name not in points], "features"):
            points[each] = Points.of(sets[each], extractor, names)
        yield sets, points, facts
        return
    role = "reference" if "reference" in sets else "real"
    half = extractors.halves_to_learn(sets[role].labels, seed)
    for learned in (half, ~half):
        yield _in_own_features(sets, role, learned, seed)


def _in_own_features(
    sets: dict[str, Dataset], role: str, learned: np.ndarray, seed: int
) -> tuple[dict[str, Dataset], dict[str, Points], dict[str, Any]]:
    """The same in features that were learned from these images (bool) of the set in that role."""
    extractor = extractors.learn_extractor(sets[role].subset(learned), seed)
    names, others = extractor.class_names, ~learned
    if role == "real":
        sets = sets | {"real": sets["real"].subset(~learned)}
        others = np.ones(len(sets["real"]), bool)
    points = {e: Points.of(sets[e], extractor, names) for e in progress([*sets], "features")}
    truth = sets[role].table["class"].astype(object).to_numpy()
    tested = others & np.isin(truth, names)
    extractor.accuracy = float((points[role].seen == truth)[tested].mean())
    facts = _facts("own", sets, points, extractor, names, seed)
    return sets, points, facts | {"learned_from": {"set": role, "images": int(learned.sum())}}


def _facts(
    source: str,
    sets: Mapping[str, Dataset],
    points: Mapping[str, Points],
    extractor: Extractor,
    names: tuple[str, ...],
    seed: int,
) -> dict[str, Any]:
    truth = sets["real"].table["class"].astype(object).to_numpy()
    found = extractors.recognition(points["real"].seen, truth, names, extractor.accuracy, seed)
    facts: dict[str, Any] = {"source": source, "digest": extractor.digest, "classes": list(names)}
    facts |= {"features": points["real"].features.shape[1], "accuracy": float(extractor.accuracy)}
    return facts | {"recognition": found}


def _teachable(sets: Mapping[str, Dataset], seed: int) -> bool:
    """Whether there are enough images of every real class to learn own features from."""
    cells = sets.get("reference", sets["real"])
    lesson = cells.subset(extractors.halves_to_learn(cells.labels, seed))
    counts = lesson.counts().reindex(sets["real"].class_names, fill_value=0)
    counts = counts[sets["real"].counts() > 0]
    return len(counts) > 1 and counts.min() >= extractors.ENOUGH


@dataclass
class _Comparison:
    """The sets of an evaluation, matched by class, and what was found, by group and measure."""

    sets: Mapping[str, Dataset]
    points: Mapping[str, Points]
    extractor: dict[str, Any]
    left_out: dict[str, str]
    resamples: int
    seed: int
    k: int

    def __post_init__(self) -> None:
        self.real, self.fake = self.points["real"], self.points["generated"]
        self.trained = self.points.get("reference")
        self.strata, unmatched = _strata(self.sets["real"], self.sets["generated"])
        self.left_out = {**self.left_out, **unmatched}
        self.dimensions = self.real.features.shape[1]
        self.sizes = measures.halves(self.strata, self.dimensions, self.k)
        self.axes, self.share = measures.components(self.real.features)
        self.weights = {name: len(mine) for name, (mine, _) in self.strata.items()}
        self.spreads: dict[str, dict[str, np.ndarray]] = {}
        self.votes: dict[str, list[np.ndarray]] = {}
        self.rows: dict[str, Rows] = {name: {} for name in ("", *self.strata)}

    def rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *what])

    def add(self, group: str, rows: Rows, **columns: Any) -> None:
        """Add rows of one class, or of group "" for over all."""
        self.rows[group] |= {measure: row | columns for measure, row in rows.items()}

    def by_class(self) -> None:
        """Measure distances, diversity, grid texture and class agreement of each class."""
        for number, (name, members) in enumerate(self.strata.items(), 1):
            rng = self.rng(number)
            mine, theirs = (rng.permutation(part)[: 2 * LARGEST_HALF] for part in members)
            m = min(len(mine), len(theirs)) // 2
            if m <= self.k:
                have = f"{len(mine):,} real and {len(theirs):,} generated ones"
                reason = f"it needs {2 * (self.k + 1)} images in either set, there are {have}"
                self.add(name, {key: {"reason": reason} for key in scorecard.MEASURES})
                continue
            real, fake = self.real.take(mine), self.fake.take(theirs)
            inner = {name: (np.arange(len(mine)), np.arange(len(theirs)))}
            draws = list(measures.half_samples(inner, [m], self.resamples, rng))
            self.spreads[name] = spread = {
                "diversity_features": measures.diversity(real.features, fake.features, draws),
                "diversity_pixels": measures.diversity(real.pixels, fake.pixels, draws),
            }
            if not name:  # without classes, this is over all
                return
            found, _ = measures.compare(real, fake, draws, [m], self.k, self.axes)
            found |= {measure: measures.estimate(both) for measure, both in spread.items()}
            self.add(name, found, compared=m)
            row: dict[str, Any] = {"reason": f"the extractor knows no class '{name}'"}
            if name in self.extractor["classes"]:
                sides = zip((self.real, self.fake), members, strict=True)
                self.votes[name] = [points.seen[part] == name for points, part in sides]
                row = measures.agreement([self.votes[name]], rng)
            self.add(name, {"agreement": row})

    def over_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Measure the same over all, and colours; return the mean spectra, real and generated."""
        draws = list(measures.half_samples(self.strata, self.sizes, self.resamples, self.rng(0)))
        found, spectra = measures.compare(self.real, self.fake, draws, self.sizes, self.k, None)
        for measure in ("diversity_features", "diversity_pixels"):
            found[measure] = {"reason": "no class has enough images"}
            if self.spreads:
                parts = [spread[measure] for spread in self.spreads.values()]
                mean = np.average(parts, axis=0, weights=[self.weights[n] for n in self.spreads])
                found[measure] = measures.estimate(mean)
        rows = measures.colours(self.real.images, self.fake.images, draws, self.sizes)
        for name, colours in zip(("", *self.strata), rows, strict=True):
            if "colours" not in self.rows[name]:  # else it has too few images for anything
                self.add(name, {"colours": colours})
        self.add("", found, compared=sum(self.sizes))
        row: dict[str, Any] = {"reason": "the extractor knows none of the classes"}
        if "" in self.strata:
            row["reason"] = "the generated images have no classes"
        elif set(self.strata) & set(self.extractor["classes"]):
            row["reason"] = "no class that the extractor knows has enough images"
        if self.votes:
            row = measures.agreement(list(self.votes.values()), self.rng(0, 1))
            if self.trained is not None:
                classes = self.sets["reference"].table["class"].astype(str)
                right = pd.Series(self.trained.seen == classes).groupby(classes).mean()
                shares = right.reindex(list(self.votes)).to_numpy()
                weights = [self.weights[name] for name in self.votes]
                row["training"] = np.average(shares, weights=weights)
        self.add("", {"agreement": row})
        return spectra

    def copies(self) -> dict[str, Any]:
        """Test for copies of training images; returns fields of `Fidelity`."""
        trained, least = self.trained, 2 * (self.k + 1)
        if trained is None or len(trained.seen) < NEIGHBOURS:
            need = f"it needs at least {NEIGHBOURS} training images, there are"
            reason = f"{need} {len(trained.seen)}" if trained else "no training images were given"
            self.add("", {f"copies in {s}": {"reason": reason} for s in ("features", "pixels")})
            return {}
        rng = self.rng(0, 2)
        sets = self.strata.values()
        matched = [[rng.permutation(part)[: min(map(len, both))] for part in both] for both in sets]
        groups = {name: both for name, both in self.strata.items() if min(map(len, both)) >= least}
        mine, theirs = map(np.concatenate, zip(*matched, strict=True))
        groups[""] = mine, theirs
        few = {"reason": f"it needs {least} images in either set"}
        closest, facts, nearness = {}, {}, {}
        for space, views in (("features", None), ("pixels", measures.views)):
            made, own, known = (getattr(p, space) for p in (self.fake, self.real, trained))
            found = look_for_copies(made, own, known, groups, views)
            rows, facts[space], closest[space], nearness[space] = found
            for name in ("", *self.strata):
                both = rows.get(name, {"copies": few, "nearest": few})
                self.add(name, {f"{measure} in {space}": row for measure, row in both.items()})
        table = pd.concat(closest, names=["space"]).reset_index("space").reset_index(drop=True)
        images = []
        for prefix, role in (("", "generated"), ("training_", "reference")):
            index, cells = table[f"{prefix}index"], self.sets[role]
            images.append(self.points[role].images[index])
            listed = cells.table.loc[index, ["class", "path"]].astype(str)
            table[f"{prefix}class"] = "" if cells.unlabelled else listed["class"].to_numpy()
            table[f"{prefix}file"] = listed["path"].to_numpy()
        fields = {"memorisation": facts, "nearness": nearness, "closest": table}
        return fields | {"pairs": np.stack(images, axis=1)}

    def accuracy(self) -> None:
        """Train classifiers on generated and on as many training images; test on the real ones."""
        if len(self.strata) < 2:
            self.add("", {"accuracy score": {"reason": "it needs two classes"}})
            return
        roles = [role for role in ("generated", "reference") if role in self.sets]
        members = {r: {n: _members(self.sets[r], n) for n in self.strata} for r in roles}
        reason = "" if self.trained else "no training images were given"
        absent = [name for name, part in members.get("reference", {}).items() if not len(part)]
        if absent:
            reason = f"no training image of {', '.join(absent)}"
            del members["reference"]
        counts = {name: min(len(by[name]) for by in members.values()) for name in self.strata}
        scores = pd.concat([self._score(role, counts, members[role]) for role in members], axis=1)
        scores["gap"] = scores["value"] - scores["real"] if "real" in scores else np.nan
        for name, row in scores.iterrows():
            group, measure = ("", name) if name == "macro F1" else (name, "accuracy score")
            many = counts.get(group, sum(counts.values()))
            self.add(group, {measure: row.to_dict()}, compared=many, reason=reason)

    def _score(self, role: str, counts: dict[str, int], members: dict[str, Array]) -> pd.DataFrame:
        """Train on so many images of each class of a set; see `classifiers.accuracy_score`."""
        rng = self.rng(0, 3)
        chosen = [rng.permutation(members[name])[:count] for name, count in counts.items()]
        test = [mine for mine, _ in self.strata.values()]
        sets = ((self.points[role], chosen), (self.real, test))
        images = [points.images[np.concatenate(parts)] for points, parts in sets]
        labels = [np.repeat(np.arange(len(parts)), list(map(len, parts))) for _, parts in sets]
        one, two = zip(images, labels, strict=True)
        found = classifiers.accuracy_score(one, two, tuple(counts), seed=self.seed)
        kind = {"generated": "value", "reference": "real"}[role]
        return found.set_axis([kind, *scorecard.ENDS[kind]], axis=1)

    def finding(self, **fields: Any) -> Fidelity:
        rows = []
        for group, found in self.rows.items():
            place = {"level": "class" if group else "overall", "group": group}
            names = {**scorecard.MEASURES, **found}
            rows += [place | {"measure": name} | found[name] for name in names]
        sets = {
            role: {"name": cells.name, "credit": cells.credit, "images": len(cells)}
            | {"classes": {} if cells.unlabelled else cells.counts().to_dict()}
            for role, cells in self.sets.items()
        }
        settings: dict = {"size": self.fake.images.shape[1], "resamples": self.resamples}
        settings |= {"seed": self.seed, "k": self.k, "compared": sum(self.sizes)}
        settings |= {"components": min(COMPONENTS, self.dimensions)}
        settings["components_variance"] = self.share
        table = scorecard.tidy(rows)
        if problem := self.extractor["recognition"]["problem"]:
            unfit = table["measure"].isin(scorecard.IN_FEATURES) & (table["reason"] == "")
            table.loc[unfit, "reason"] = problem
        return Fidelity(table, sets, self.extractor, settings, self.left_out, **fields)


def _members(cells: Dataset, name: str) -> np.ndarray:
    """Indices (n,) of the images of a class; none if there is no such class."""
    return np.flatnonzero((cells.table["class"] == name).to_numpy())


def _strata(real: Dataset, fake: Dataset) -> tuple[Strata, dict[str, str]]:
    """The images of each class that is in both sets; and the others, with the reason."""
    if fake.unlabelled:
        return {"": (np.arange(len(real)), np.arange(len(fake)))}, {}
    strata, left_out = {}, {}
    only = [[n for n, count in cells.counts().items() if count] for cells in (real, fake)]
    only = [[n for n in one if n not in other] for one, other in zip(only, only[::-1], strict=True)]
    for name in dict.fromkeys((*real.class_names, *fake.class_names)):
        mine, theirs = _members(real, name), _members(fake, name)
        if len(mine) and len(theirs):
            strata[name] = mine, theirs
        elif len(mine) or len(theirs):
            left_out[name] = f"there are no {'generated' if len(mine) else 'real'} images of it"
            left_out[name] += suggestion(name, only[bool(len(mine))])
    if not strata:
        names = " and ".join(", ".join(cells.class_names) for cells in (real, fake))
        none = f"{real.name} and {fake.name} have no class in common ({names})"
        raise DataError(f"{none}: give them the same names")
    return strata, left_out
