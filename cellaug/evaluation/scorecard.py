"""What a comparison of generated with real cells comes to: scorecard, notes, text and JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from cellaug.evaluation.fidelity import Fidelity

FORMAT = 2
"""Version of the JSON document."""

MEASURES = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "diversity_features": "diversity (features)",
    "diversity_pixels": "diversity (grey levels)",
    "agreement": "class agreement",
}
"""What is measured over all and class by class, in words."""

TARGETS = {
    "frechet_ratio": (None, 3.0),
    "coverage_ratio": (0.8, None),
    "recall_ratio": (0.6, None),
    "diversity_features_ratio": (0.8, 1.1),
    "diversity_pixels_ratio": (0.8, 1.1),
    "memorised": (None, 0),
    "grid_ratio": (0.9, 1.1),
    "agreement_gap": (-0.03, 0.03),
}
"""The rows of the scorecard, with the lowest and the highest value that will do."""

ROWS = {
    "frechet_ratio": "Fréchet distance",
    "coverage_ratio": "coverage",
    "recall_ratio": "recall",
    "diversity_features_ratio": "diversity in features",
    "diversity_pixels_ratio": "diversity in grey levels",
    "memorised": "memorised",
    "grid_ratio": "grid texture",
    "agreement_gap": "class agreement, less real",
}
"""The rows in words."""

_SPACES = ("features", "pixels")
_TRAINED_ON = {"generated": "generated", "reference": "training"}
_NO_JSON = ("nearness", "spectra", "pairs")  # arrays, for the figure


def scorecard(found: "Fidelity") -> tuple[dict, dict]:
    """The measures that have targets, each of the worst class; and why a row is None.

    The rows are described under `Fidelity.scorecard`.
    """
    overall = {"over all": found.overall}
    groups = found.classes or overall
    periods = {f"period {period}": {"grid": row} for period, row in found.grid.items()}
    card = {
        "frechet_ratio": _row("frechet_ratio", overall),
        **{f"{key}_ratio": _row(f"{key}_ratio", groups) for key in _PER_CLASS},
        "memorised": None,
        "grid_ratio": _row("grid_ratio", periods),
        "agreement_gap": _row("agreement_gap", overall),
    }
    reasons = {}
    if found.memorisation:
        flagged = found.memorisation["flagged"]
        card["memorised"] = {
            "value": int(bool(flagged)),
            "low": None,
            "high": None,
            "where": None,
            "target": list(TARGETS["memorised"]),
            "met": not flagged,
            "measured": 1,
            "of": 1,
        }
    else:
        reasons["memorised"] = found.reasons["memorisation"]
    if not periods:
        size = found.settings["size"]
        reasons["grid_ratio"] = f"images of {size} pixels are too small for any period"
    if card["agreement_gap"] is None:
        reasons["agreement_gap"] = found.overall["reasons"]["agreement"]
    for name, row in card.items():
        if row is None:
            reasons.setdefault(name, "no class has enough images")
    return card, reasons


_PER_CLASS = ("coverage", "recall", "diversity_features", "diversity_pixels")


def _row(name: str, groups: Mapping[str, Mapping]) -> dict | None:
    """The row of the group that is farthest out of its target, or nearest to leaving it."""
    measure, _, kind = name.rpartition("_")
    low, high = TARGETS[name]
    rows = {
        where: [group[measure][key] for key in (kind, f"{kind}_low", f"{kind}_high")]
        for where, group in groups.items()
        if group[measure] and group[measure][kind] is not None
    }
    if not rows:
        return None
    room = {
        where: min(np.inf if low is None else value - low, np.inf if high is None else high - value)
        for where, (value, _, _) in rows.items()
    }
    worst = min(room, key=room.get)
    value, least, most = rows[worst]
    return {
        "value": value,
        "low": least,
        "high": most,
        "where": worst,
        "target": [low, high],
        "met": None if low is None and high is None else bool(room[worst] >= 0),
        "measured": len(rows),
        "of": len(groups),
    }


def notes(found: "Fidelity") -> list[str]:
    """Sentences on sample sizes and bias, and on what was not measured."""
    settings, dimensions = found.settings, found.extractor["features"]
    m = settings["compared"]
    said = [
        f"Sample sizes: over all, every distance compares {m:,} real with {m:,} generated images"
        f"{' of the same classes' * bool(found.classes)}, {settings['resamples']} times at random"
        f"{'; within a class, half of the images of the smaller set' * bool(found.classes)}. "
        "Values are means of these, intervals hold 95 % of them.",
        f"Bias: a Fréchet distance with {dimensions} features comes out too large for finite sets. "
        f"Compare it with distances between {m:,} images only, such as that of two halves of the "
        "real images. Precision, recall and coverage change with the number of images too, and "
        "stand beside those of real halves of that size. The kernel distance has no bias.",
        *_components_note(found),
        f"Features are those of extractor {found.extractor['digest']}, right on "
        f"{found.extractor['accuracy']:.1%} of its own test images. Images are compared at "
        f"{settings['size']} pixels.",
    ]
    unknown = [name for name in found.classes if name not in found.extractor["classes"]]
    if unknown and found.overall["agreement"]:
        said.append(
            "Class agreement over all is that of the classes the extractor knows; it does not know "
            f"{', '.join(unknown)}."
        )
    if found.accuracy_score:
        said.append(
            f"The accuracy score is of one training each, {found.accuracy_score['steps']} steps; "
            "its interval is over the test images only."
        )
    agreement = found.overall["agreement"]
    if agreement and agreement["training"] is not None:
        said.append(
            "Class agreement of the training images, weighted as the real ones: "
            f"{agreement['training']:.1%}, of the real ones {agreement['real']:.1%}. Where the "
            "extractor learned from those training images, as the package's own did from PBC's, "
            "a generator that draws what it has seen is named right more often than unseen cells."
        )
    few = [name for name, group in found.classes.items() if _half(group) < 2]
    if few:
        said.append(f"Too few images to count over all: {', '.join(few)}.")
    said += [f"{name} was not compared: {reason}." for name, reason in found.left_out.items()]
    return said


def _components_note(found: "Fidelity") -> list[str]:
    if not found.classes:
        return []
    settings = found.settings
    return [
        f"A class's Fréchet distance is taken in the first {settings['components']} principal "
        f"components of all real images' features, {settings['components_variance']:.1%} of their "
        "variance, since a covariance of all features takes more images than a class has; it is "
        "no part of the distance over all."
    ]


def _half(group: Mapping) -> int:
    return min(group["real_images"], group["generated_images"]) // 2


# --- for people and machines ---------------------------------------------------------------------


def as_json(found: "Fidelity") -> str:
    """One JSON document (ASCII) of what was found: the fields of `Fidelity` but its arrays."""
    document = {"format": FORMAT}
    for part in fields(found):
        if part.name not in _NO_JSON:
            document[part.name] = getattr(found, part.name)
    document["table"] = json.loads(found.table.to_json(orient="records", double_precision=15))
    return json.dumps(document, indent=2, allow_nan=False)


def as_text(found: "Fidelity") -> str:
    """What was found, for a terminal: the scorecard first."""
    real, made, trained = (found.sets[key] for key in ("real", "generated", "reference"))
    credits = dict.fromkeys(part["credit"] for part in (real, made, trained) if part)
    against = f", training images {trained['name']} ({trained['images']:,})" if trained else ""
    lines = [
        f"{made['name']}: {made['images']:,} generated images against {real['images']:,} real ones "
        f"of {real['name']}{against}",
        *(credit for credit in credits if credit),
        "",
        scorecard_text(found.scorecard, found.reasons),
        "",
        *_overall_lines(found),
        *_class_lines(found),
        "",
        *_copy_lines(found),
        "",
        *_grid_lines(found),
        "",
        *_accuracy_lines(found),
        "",
        *found.notes,
    ]
    return "\n".join(lines)


def scorecard_table(card: Mapping[str, Mapping | None], reasons: Mapping[str, str]) -> pd.DataFrame:
    """A `Fidelity`'s scorecard and reasons, or those of a model card, as a table of words.

    One row for each measure, named as `ROWS` has it; the value is that of the worst class or
    period, against what one half of the real images scores on the other.
    """
    verdicts = {True: "met", False: "missed", None: ""}
    rows = {}
    for name, words in ROWS.items():
        row = card[name]
        if row is None:
            rows[words] = ["–", "", reasons[name], "", ""]
            continue
        value = _yes(row["value"]) if name == "memorised" else _number(row["value"])
        some = (
            "" if row["measured"] == row["of"] else f" ({row['measured']} of {row['of']} measured)"
        )
        where = f"{row['where'] or ''}{some}"
        target = "no" if name == "memorised" else _span(*row["target"])
        rows[words] = [value, _span(row["low"], row["high"]), where, target, verdicts[row["met"]]]
    columns = ["worst value", "95 %", "where", "target", ""]
    return pd.DataFrame.from_dict(rows, "index", columns=columns)


def scorecard_text(card: Mapping[str, Mapping | None], reasons: Mapping[str, str]) -> str:
    """`scorecard_table` as plain text."""
    table = scorecard_table(card, reasons)
    head = ["against real images' own", *table.columns]
    return "\n".join(_table([head, *([name, *row] for name, row in table.T.items())]))


def _overall_lines(found: "Fidelity") -> list[str]:
    rows = [["over all", "generated", "95 %", "real halves", "95 %", "ratio", "95 %"]]
    for key, words in MEASURES.items():
        measure = found.overall[key]
        if measure is None:
            rows.append([words, "–", found.overall["reasons"][key], "", "", "", ""])
            continue
        kind = "gap" if key == "agreement" else "ratio"
        rows.append(
            [
                words,
                _number(measure["value"]),
                _span(measure["low"], measure["high"]),
                _number(measure["real"]),
                _span(measure["real_low"], measure["real_high"]),
                f"{_number(measure[kind])}{' (gap)' * (kind == 'gap')}",
                _span(measure[f"{kind}_low"], measure[f"{kind}_high"]),
            ]
        )
    return _table(rows)


def _class_lines(found: "Fidelity") -> list[str]:
    """A row for each class; a value with that of the real halves in brackets."""
    if not found.classes:
        return []
    short = {
        "frechet": "Fréchet",
        "kernel": "kernel",
        "precision": "precision",
        "recall": "recall",
        "density": "density",
        "coverage": "coverage",
        "diversity_features": "div. feat.",
        "diversity_pixels": "div. grey",
        "agreement": "agreement",
    }
    rows = [["by class (real halves)", "generated", "real", *short.values()]]
    why: dict[str, list[str]] = {}
    for name, group in found.classes.items():
        cells = [f"{group['generated_images']:,}", f"{group['real_images']:,}"]
        for key in short:
            measure = group[key]
            cells.append(
                f"{_number(measure['value'])} ({_number(measure['real'])})" if measure else "–"
            )
        rows.append([name, *cells])
        for key, reason in group["reasons"].items():
            many = len(group["reasons"]) == len(MEASURES)
            words = reason if many else f"no {MEASURES[key]}: {reason}"
            why.setdefault(words, [])
            if name not in why[words]:
                why[words].append(name)
    lines = [
        f"  {'every class' if len(who) == len(found.classes) else ', '.join(who)}: {words}"
        for words, who in why.items()
    ]
    return ["", *_table(rows), *lines]


def _copy_lines(found: "Fidelity") -> list[str]:
    copies = found.memorisation
    if copies is None:
        return [f"memorisation: not measured, {found.reasons['memorisation']}"]
    rows = [["training images", "copies", "in real", "p", "median", "in real", "C_T"]]
    for space in _SPACES:
        part = copies[space]
        tests = {"over all": part["overall"], **part["classes"]}
        alarms = {name for name, test in tests.items() if test["p"] < copies["alpha"]}
        shown = alarms | {"over all", min(tests, key=lambda name: tests[name]["p"])}
        for name in (name for name in tests if name in shown):
            test = tests[name]
            rows.append(
                [
                    f"in {space}, {name}",
                    f"{test['share']:.1%}",
                    f"{test['held_out_share']:.1%}",
                    f"{test['p']:.2g}",
                    _number(test["generated"]),
                    _number(test["held_out"]),
                    _number(part["copying"]) if name == "over all" else "",
                ]
            )
    pairs = []
    for pair in copies["closest"]:
        who = pair["file"] or f"image {pair['index']}"
        whom = pair["training_file"] or f"image {pair['training_index']}"
        pairs.append(
            f"  {pair['space']}: {who} and {whom}, {_number(pair['distance'])} apart, "
            f"{_number(pair['relative'])} of the distance to {copies['neighbours']} neighbours"
        )
    where = ", ".join(f"{row['group']} ({row['space']})" for row in copies["flagged"])
    thresholds = " and ".join(_number(copies[space]["threshold"]) for space in _SPACES)
    return [
        f"memorised: {_yes(where)} (p below {copies['alpha']:.2g} {where or 'nowhere'})",
        *_table(rows),
        f"  Copy: its distance to the nearest training image is under {thresholds} of the mean to "
        f"the {copies['neighbours']} nearest; {copies['quantile']:.0%} of held-out real images are "
        f"under {1 / copies['margin']:.1f} times that. Median: of the plain distances, in features "
        "or grey levels. C_T of these below −3: nearer than real images on the whole, as copies "
        "are, and bland images too.",
        "closest pairs:",
        *pairs,
    ]


def _grid_lines(found: "Fidelity") -> list[str]:
    if not found.grid:
        return [f"grid texture: not measured, {found.reasons['grid_ratio']}"]
    rows = [["grid texture", "generated", "real", "ratio", "95 %", "energy ratio"]]
    for period, row in found.grid.items():
        rows.append(
            [
                f"period {period} pixels",
                _number(row["value"]),
                _number(row["real"]),
                _number(row["ratio"]),
                _span(row["ratio_low"], row["ratio_high"]),
                _number(row["energy_ratio"]),
            ]
        )
    measured = {name: group["grid"] for name, group in found.classes.items() if group["grid"]}
    if not measured:
        return _table(rows)
    heads = ["by class, ratio and 95 %", *(f"period {period}" for period in found.grid)]
    by_class = [heads]
    for name, grid in measured.items():
        ratios = (
            f"{_number(row['ratio'])} ({_span(row['ratio_low'], row['ratio_high'])})"
            for row in grid.values()
        )
        by_class.append([name, *ratios])
    return [*_table(rows), "", *_table(by_class)]


def _accuracy_lines(found: "Fidelity") -> list[str]:
    score = found.accuracy_score
    if score is None:
        return [f"accuracy score: not measured, {found.reasons['accuracy_score']}"]
    images = sum(score["images"].values())
    rows = [["classifier trained on", "accuracy", "95 %", "macro F1"]]
    for what, words in _TRAINED_ON.items():
        part = score[what]
        if part:
            rows.append(
                [
                    f"{images:,} {words} images",
                    _number(part["accuracy"]),
                    _span(part["low"], part["high"]),
                    _number(part["macro_f1"]),
                ]
            )
    lines = _table(rows)
    if score["reference"] is None:
        why = found.reasons["accuracy_score_reference"]
        lines.append(f"  Nothing to compare it with: {why}.")
    trained = {words: score[what] for what, words in _TRAINED_ON.items() if score[what]}
    by_class = [["recall by class and 95 %", *trained]]
    for name in score["images"]:
        recalls = (
            f"{_number(part['recall'][name])} ({_span(*part['recall_interval'][name])})"
            for part in trained.values()
        )
        by_class.append([name, *recalls])
    return [
        *lines,
        f"  Tested on {score['test_images']:,} real images.",
        "",
        *_table(by_class),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    size = abs(value)
    text = f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    if 0 < size < 0.095:
        text = f"{value:.4f}" if size >= 0.0005 else f"{value:.1e}"
    return text.replace("-", "−")


def _span(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f"from {_number(low)}"
    if low is None:
        return f"up to {_number(high)}"
    return f"{_number(low)} to {_number(high)}"


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines; columns stand under their heads, the last ones ragged."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
