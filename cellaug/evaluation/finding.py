"""The finding of an evaluation, and its views: text, JSON, model card, notes."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
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
            f"({settings['components_variance']:.1%} of their variance)."
        )
    unknown = ", ".join(name for name in classes if name not in extractor["classes"])
    if unknown and pd.notna(agreement["value"]):
        said.append(f"Class agreement is without {unknown}: the extractor does not know it.")
    if pd.notna(agreement["training"]):
        shares = f"{agreement['training']:.1%}, of the real ones {agreement['real']:.1%}"
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
    right = f"right on {extractor['accuracy']:.1%} of its own test images"
    said = [f"Features are those of extractor {extractor['digest']}, {right}."]
    if lesson:
        whose = {"real": "real images, which are not compared", "reference": "training images"}
        of = f"{lesson['images']:,} of the {whose[lesson['set']]}"
        said = [f"Features were learned from {of} (extractor {extractor['digest']}, {right})."]
    if known["value"] is not None:
        classes = f"{len(known['classes'])} of the {known['of']} classes"
        said += [
            f"Of the real images it recognises {known['value']:.1%} (95 %: {known['low']:.1%} to "
            f"{known['high']:.1%}), the mean of the {classes} that it knows; chance is "
            f"{known['chance']:.1%}, verdicts need {known['needed']:.1%}."
        ]
    if known["problem"]:
        need = f"at least {2 * ENOUGH} images of every class, real ones or training images"
        fix = "Own features need" if lesson else "Learn own features (--features own): they need"
        fix = f"{fix} {need}"
        said += [f"Measures in features are not judged: {known['problem']}. {fix}."]
    return said
