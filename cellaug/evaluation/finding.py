"""The finding of an evaluation, and its views: text, JSON, model card, notes."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cellaug.data.dataset import Dataset
from cellaug.evaluation import scorecard
from cellaug.evaluation.classifiers import STEPS
from cellaug.evaluation.features import ENOUGH
from cellaug.evaluation.memorisation import NEIGHBOURS

import numpy as np
import pandas as pd

FORMAT = 3  # of the JSON document and of the model cards' field "fidelity"


@dataclass(frozen=True)
class Fidelity:
    """The finding of `evaluate`; `table` is as `cellaug.evaluation.scorecard` describes it."""

    table: pd.DataFrame  # every measure
    sets: dict[str, dict[str, Any]]  # real, generated, reference: name, credit, images, classes
    extractor: dict[str, Any]  # source (shipped, own, given), digest, number of features, accuracy
    # on its test images, classes, recognition of the real images (`features.recognition`)
    settings: dict[str, Any]  # size (pixels), resamples, seed, k, compared (images in a half),
    # components (of a class's Fréchet distance) and their share of the features' variance
    left_out: dict[str, str]  # classes and images that were not compared, and why
    spectra: tuple[np.ndarray, np.ndarray] = field(repr=False)  # mean power, real and generated
    closest: pd.DataFrame = field(default_factory=pd.DataFrame)  # pairs nearest to each other
    memorisation: dict[str, dict[str, float]] = field(default_factory=dict)  # by space
    nearness: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)  # by space
    pairs: np.ndarray | None = field(default=None, repr=False)  # of closest (P, 2, S, S, 3)
    notes: list[str] = field(default_factory=list)  # on sample sizes, bias and what else to know

    @property
    def scorecard(self) -> pd.DataFrame:
        """The measures that have a target; see `cellaug.evaluation.scorecard.scorecard`."""
        return scorecard.scorecard(self.table)

    def card(self) -> dict[str, Any]:
        """The finding as a model card keeps it: JSON, numbers of the table with six digits."""
        names = ("sets", "extractor", "settings", "memorisation", "left_out", "notes")
        card = {"format": FORMAT} | {name: getattr(self, name) for name in names}
        return card | {"closest": _records(self.closest), "table": scorecard.compact(self.table)}


def crossed(findings: Sequence[Fidelity]) -> Fidelity:
    """The finding of one or of several folds, each with features learned from the other's images.

    Distances in two feature spaces cannot be pooled, so a number is the mean of those of the folds,
    and so are the ends of its interval: the mean of several estimates varies no more than they do,
    so that the interval is rather too wide. Of tests for copies the largest p counts. What a fold
    could not measure or judge is not judged. The closest pairs are those of the first fold.
    """
    first, *others = findings
    if not others:
        return first
    tables = [found.table.set_index(["level", "group", "measure"]) for found in findings]
    rows = pd.concat(tables).groupby(level=[0, 1, 2], sort=False)
    table = rows[scorecard.NUMBERS].agg(lambda column: column.mean(skipna=False))
    table["p"] = rows["p"].max()
    reasons = rows["reason"].agg(lambda reasons: next(filter(None, reasons), ""))
    counted = reasons.str.contains("images") & (first.extractor["learned_from"]["set"] == "real")
    reasons = reasons.mask(counted, reasons + " (of each half of the real images)")
    table["reason"] = reasons.astype(first.table["reason"].dtype)
    extractors = [found.extractor for found in findings]
    known = [each["recognition"] for each in extractors]
    means = {key: _mean(known, key) for key in ("value", "low", "high", "images", "needed")}
    recognition = known[0] | means | {"problem": next(filter(None, _each(known, "problem")), "")}
    lessons = _each(extractors, "learned_from")
    extractor = extractors[0] | {
        "digest": " and ".join(_each(extractors, "digest")),
        "accuracy": _mean(extractors, "accuracy"), "recognition": recognition,
        "learned_from": lessons[0] | {"images": sum(_each(lessons, "images"))},
    }  # fmt: skip
    sets = first.sets
    if lessons[0]["set"] == "real":  # every fold has compared others of them
        parts = [found.sets["real"] for found in findings]
        counts = pd.DataFrame(_each(parts, "classes")).fillna(0).sum().astype(int).to_dict()
        whole = parts[0] | {"images": sum(_each(parts, "images")), "classes": counts}
        sets = sets | {"real": whole}
    facts = {
        space: {key: float(np.mean([f.memorisation[space][key] for f in findings])) for key in part}
        for space, part in first.memorisation.items()
    }
    left_out = {name: why for found in findings for name, why in found.left_out.items()}
    mine, theirs = (np.mean(both, 0) for both in zip(*(f.spectra for f in findings), strict=True))
    return replace(
        first, table=scorecard.tidy(table.reset_index()), sets=sets, extractor=extractor,
        left_out=left_out, spectra=(mine, theirs), memorisation=facts,
    )  # fmt: skip


def _each(parts: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return [part[key] for part in parts]


def _mean(parts: Sequence[dict[str, Any]], key: str) -> float | None:
    """The mean of a number in several parts; None if one lacks it."""
    numbers = _each(parts, key)
    return None if None in numbers else float(np.mean(numbers))


def as_json(found: Fidelity) -> str:
    """One JSON document (ASCII): `Fidelity` without its arrays, and the scorecard."""
    card = found.scorecard.rename_axis("measure").reset_index()
    document = found.card() | {"table": _records(found.table), "scorecard": _records(card)}
    return json.dumps(document, indent=2, allow_nan=False)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return json.loads(table.to_json(orient="records", double_precision=15))


def as_text(found: Fidelity) -> str:
    """The finding for a terminal: the scorecard first."""
    real, made, *trained = found.sets.values()
    lines = [
        f"{made['name']}: {made['images']:,} generated images against {real['images']:,} real ones "
        f"of {real['name']}",
        *(f"Training images: {part['name']} ({part['images']:,})" for part in trained),
        *dict.fromkeys(part["credit"] for part in found.sets.values() if part["credit"]),
        f"\n{scorecard.as_text(found.table)}\n",
    ]
    if len(found.closest):
        shown = found.closest[["space", "index", "file", "training_file", "distance", "relative"]]
        lines += ["closest pairs:", shown.to_string(index=False, float_format="%.2f"), ""]
    return "\n".join([*lines, *found.notes])


def notes(found: Fidelity, sets: Iterable[Dataset]) -> list[str]:
    """Sentences on sample sizes and bias, on what was not measured, and on the sets."""
    settings, extractor, table = found.settings, found.extractor, found.table
    m, classes = settings["compared"], table.loc[table["level"] == "class", "group"].unique()
    overall = table[table["level"] == "overall"].set_index("measure")
    agreement = overall.loc["agreement"]
    said = [
        f"Sample sizes: over all, every distance compares {m:,} real with {m:,} generated images"
        f"{' of the same classes' * bool(len(classes))}, {settings['resamples']} times at random. "
        "Values are means of these, intervals hold 95 % of them.",
        f"Bias: a Fréchet distance with {extractor['features']} features is too large for finite "
        "sets; precision, recall and coverage depend on the number of images too. Compare them "
        f"only with values of {m:,} images, such as those of real halves.",
        f"Images are compared at {settings['size']} pixels.",
        *_on_features(extractor),
    ]
    if len(classes):
        said.append(
            "A class is compared by halves of the smaller set, its Fréchet distance taken in the "
            f"first {settings['components']} principal components of all real images' features "
            f"({100 * settings['components_variance']:.1f} % of their variance)."
        )
    unknown = ", ".join(name for name in classes if name not in extractor["classes"])
    if unknown and pd.notna(agreement["value"]):
        said.append(f"Class agreement is without {unknown}: the extractor does not know it.")
    if pd.notna(agreement["training"]):
        shares = (
            f"{100 * agreement['training']:.1f} %, of the real ones {100 * agreement['real']:.1f} %"
        )
        said += [f"Class agreement of the training images, weighted as the real ones: {shares}."]
        often = "generated images that resemble them are recognised more often than unseen cells"
        whose = {"own": "Own features", "shipped": "The package's own extractor"}
        if extractor["source"] in whose:
            these = {"own": "half of these training images", "shipped": "PBC's training images"}
            learned = f"{whose[extractor['source']]} learned from {these[extractor['source']]}"
            said += [f"{learned}: {often}."]
    if "accuracy score" not in overall.index:
        said.append("accuracy score: not measured, it was not asked for.")
    elif pd.notna(overall.at["accuracy score", "value"]):
        steps = f"{STEPS} steps on {overall.at['accuracy score', 'compared']:,.0f} images"
        said += [f"The accuracy score is of one training, {steps}; its interval over test images."]
    for space, facts in found.memorisation.items():
        near = f"{facts['threshold']:.2f} of the mean of the {NEIGHBOURS} nearest"
        said += [f"Copies in {space} are nearer to a training image than {near}."]
        low = "below −3 generated images lie nearer than real ones do, as copies and blurs do"
        said += [f"C_T in {space} is {facts['copying']:.2f}; {low}."]
    said += [f"Not compared: {name}: {why}." for name, why in found.left_out.items()]
    for cells in sets:
        lost = cells.outcomes().query("outcome == 'dropped'").itertuples()
        said += [f"{cells.name}: {r.files:,} files are not counted ({r.reason})." for r in lost]
        if {"generator", "seed"} <= set(cells.table):
            drawn = cells.table[["generator", "seed"]].drop_duplicates().itertuples(index=False)
            said += [f"{cells.name}: drawn by {maker} with seed {seed}." for maker, seed in drawn]
    return list(dict.fromkeys(said))


def _on_features(extractor: dict[str, Any]) -> list[str]:
    """Sentences on whose features these are, and on how well they know the real images."""
    known, lesson = extractor["recognition"], extractor.get("learned_from")
    right = f"right on {100 * extractor['accuracy']:.1f} % of its own test images"
    said = [f"Features are those of extractor {extractor['digest']}, {right}."]
    if lesson:
        whose = {"real": "real images, while the other half was compared", "reference":
                 "training images"}  # fmt: skip
        of = f"half of the {lesson['images']:,} {whose[lesson['set']]}"
        said = [
            f"Features were learned from {of} (extractors {extractor['digest']}, {right}); then "
            "the halves were exchanged. Values and intervals are the means of both."
        ]
    if known["value"] is not None:
        classes = f"{len(known['classes'])} of the {known['of']} classes"
        told = ("value", "low", "high", "chance", "needed")
        value, low, high, chance, needed = (f"{100 * known[name]:.1f}" for name in told)
        said += [
            f"Of the real images it recognises {value} % (95 %: {low} % to {high} %), the mean of "
            f"the {classes} that it knows; chance is {chance} %, verdicts need {needed} %."
        ]
    if known["problem"]:
        need = f"at least {2 * ENOUGH} images of every class, real ones or training images"
        fix = "Own features need" if lesson else "Learn own features (--features own): they need"
        fix = f"{fix} {need}"
        said += [f"Measures in features are not judged: {known['problem']}. {fix}."]
    return said
