"""From finished runs to tables: one row for each run and measure, one for each planned contrast."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cellaug.data import Dataset
from cellaug.errors import DataError
from cellaug.evaluation.calibration import calibration, probabilities, temperature
from cellaug.evaluation.classifiers import classification_report
from cellaug.files import write_atomically
from cellaug.study.plan import Plan, Run, ordered
from cellaug.study.statistics import difference, holm
from cellaug.study.tasks import sides
from cellaug.study.worker import RESULT

import numpy as np
import pandas as pd

FINE = "fine"
"""The taxonomy of the set itself."""


def taxonomies(plan: Plan, class_names: Sequence[str]) -> dict[str, tuple[list[str], np.ndarray]]:
    """Names of the classes of each taxonomy, and for each class of the set its number in it."""
    found = {FINE: (list(class_names), np.arange(len(class_names)))}
    for name, merged in plan.taxonomies.items():
        named = [merged.get(kind, kind) for kind in class_names]
        names = list(dict.fromkeys(named))
        found[name] = names, np.array([names.index(kind) for kind in named])
    return found


def merged(p: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Probabilities (N, C) of a coarser taxonomy: those of the classes that it joins, added up."""
    return p @ np.eye(numbers.max() + 1)[numbers]


def specificity(confusion: np.ndarray) -> np.ndarray:
    """Of images that are not of a class, the fraction not named so; rows are true classes."""
    negatives = confusion.sum() - confusion.sum(1)
    wrong = confusion.sum(0) - np.diagonal(confusion)
    return 1 - wrong / np.maximum(negatives, 1)


def measures(
    p: np.ndarray, scaled: np.ndarray, truth: np.ndarray, names: Sequence[str]
) -> list[tuple[str, str, float]]:
    """All measures of probabilities (N, C), before and after scaling: (measure, class, value)."""
    report = classification_report(truth, p.argmax(1), names)
    recall = pd.Series(report["recall"], dtype=float)
    rows = [(key, "", report[key]) for key in ("accuracy", "weighted_f1", "macro_f1")]
    rows.append(("balanced_accuracy", "", recall.mean()))
    by_class = {key: report[key] for key in ("recall", "precision", "f1")}
    by_class["specificity"] = dict(
        zip(names, specificity(np.array(report["confusion"])), strict=True)
    )
    for key, values in by_class.items():
        rows += [(key, kind, np.nan if v is None else float(v)) for kind, v in values.items()]
    for suffix, values in (("", p), ("_scaled", scaled)):
        rows += [(key + suffix, "", v) for key, v in calibration(values, truth).items()]
    return [(measure, kind, float(value)) for measure, kind, value in rows]


def read_run(folder: Path, run: Run) -> dict[str, Any] | None:
    """The record of a run; None if it is not finished."""
    file = folder / run.name / RESULT
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def gather(
    plan: Plan, folder: Path, validation: Dataset, test: Dataset
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The results of all classifiers that are finished.

    Returns the table, with a row for each run, taxonomy, measure and class ("" for all), and every
    choice that made the run; and the class numbers that each run gave to the test images, as one
    list for each run and taxonomy.
    """
    kinds = taxonomies(plan, test.class_names)
    rows, answers = [], []
    for run in plan.runs():
        record = read_run(folder, run)
        if record is None:
            continue
        made = facts(run, record, folder)
        with np.load(folder / run.name / "logits.npz", allow_pickle=False) as file:
            logits = {name: file[name] for name in ("validation", "test")}
        warm = temperature(logits["validation"], validation.labels)
        plain, scaled = probabilities(logits["test"]), probabilities(logits["test"], warm)
        for taxonomy, (names, numbers) in kinds.items():
            truth = numbers[test.labels]
            found = measures(merged(plain, numbers), merged(scaled, numbers), truth, names)
            rows += [made | {"taxonomy": taxonomy, "measure": m, "class": k, "value": v}
                     for m, k, v in found]  # fmt: skip
            named = merged(plain, numbers).argmax(1).astype(np.uint8)
            answers.append({"run": run.name, "taxonomy": taxonomy, "answers": named})
        valued = merged(probabilities(logits["validation"]), kinds[FINE][1])
        score = classification_report(validation.labels, valued.argmax(1), test.class_names)
        rows.append(made | {"taxonomy": FINE, "measure": "validation_macro_f1", "class": "",
                            "value": score["macro_f1"]})  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(answers)


def facts(run: Run, record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Everything that made a classifier, as columns of the table."""
    settings, found = run.settings, record["found"]
    before = sum(
        json.loads((folder / name / RESULT).read_text("utf-8"))["seconds"]
        for name in set(record["needs"].values())
    )
    keys = ["data", "image_size", "seed", "arm", "sampling", "augment", "extra", "pool"]
    keys += ["generator", "pretrain"]
    generator = next((r.settings for r in _all(run) if r.settings["task"] == "generator"), {})
    return {
        "run": run.name,
        "scarcity": settings["subset"]["scarcity"],
        **{key: settings[key] for key in keys},
        "ratio": str(settings["ratio"]),
        **settings["classifier"],
        "generator_images": generator.get("images", 0),
        "real_images": sum(found["real"].values()),
        "extra_images": sum(found["extra"].values()),
        "seconds": record["seconds"],
        "seconds_before": before,
        **{key: record[key] for key in ("commit", "device")},
    }


def _all(run: Run) -> list[Run]:
    return [run, *(each for other in run.needs for each in _all(other))]


def of_plan(plan: Plan, table: pd.DataFrame) -> pd.Series:
    """Which rows are of the plan's own classifier, and not of a block's variant of it."""
    same = [table[key] == value for key, value in plan.classifier.items()]
    return pd.concat(same, axis=1).all(axis=1)


def contrasts(
    plan: Plan, table: pd.DataFrame, answers: pd.DataFrame, test: Dataset, resamples: int = 2000
) -> pd.DataFrame:
    """The planned comparisons, each over the seeds that both arms have.

    Columns: those of `Contrast`, taxonomy, class (""), mean, low and high (BCa over seeds and test
    images, or groups where they are known), p (sign flips) and adjusted (Holm, over all contrasts
    of a taxonomy), d, sd, n and by_seed, the differences. They are fractions, not points.
    """
    kinds = taxonomies(plan, test.class_names)
    groups = test.table["group"] if (test.table["group"] != "").all() else None
    runs = table[of_plan(plan, table)].drop_duplicates("run")
    runs = runs.set_index(["scarcity", "arm", "seed"])["run"]
    given = answers.set_index(["taxonomy", "run"])["answers"]
    rows = []
    for contrast in plan.contrasts:
        pair = [
            runs[contrast.scarcity][arm]
            if (contrast.scarcity, arm) in runs.index.droplevel(2)
            else {}
            for arm in (contrast.arm, contrast.against)
        ]
        seeds = sorted(set(getattr(pair[0], "index", ())) & set(getattr(pair[1], "index", ())))
        if not seeds:
            continue
        for taxonomy, (names, numbers) in kinds.items():
            truth = numbers[test.labels]
            one, other = (
                np.array([given[taxonomy][names_of[s]] for s in seeds]) for names_of in pair
            )
            found = difference(truth, one, other, len(names), contrast.measure, groups, resamples)
            by_seed = found.pop("by_seed")
            rows.append({**vars(contrast), "taxonomy": taxonomy, "class": "", **found,
                         "by_seed": by_seed.tolist()})  # fmt: skip
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    frame["adjusted"] = frame.groupby("taxonomy")["p"].transform(holm)
    return frame


def record(plan: Plan, folder: Path, place: Path) -> Path:
    """Write all results so far to a folder: tables and the plan; returns the folder.

    `runs.parquet` is `gather`'s table, `answers.parquet` the class numbers of its runs,
    `contrasts.parquet` the planned comparisons, `selection.csv` how many generated images were kept
    and refused, `plan.yaml` the plan. Raises DataError if no run is finished.
    """
    parts = sides({"data": plan.data, "options": plan.options, "image_size": plan.image_size})
    table, answers = gather(plan, folder, parts["validation"], parts["test"])
    if table.empty:
        raise DataError(f"{folder}: no run is finished yet, so there is nothing to record")
    tables = {
        "runs": table.assign(data_hash=parts["train"].fingerprint),
        "answers": answers,
        "contrasts": contrasts(plan, table, answers, parts["test"]),
    }
    place.mkdir(parents=True, exist_ok=True)
    for name, found in tables.items():
        found.to_parquet(buffer := io.BytesIO(), index=False)
        write_atomically(place / f"{name}.parquet", buffer.getvalue())
    chosen = selections(plan, folder)
    write_atomically(place / "selection.csv", chosen.to_csv(index=False).encode())
    write_atomically(place / "plan.yaml", plan.text.encode())
    return place


def selections(plan: Plan, folder: Path) -> pd.DataFrame:
    """How many generated images each selection kept and refused: scarcity, seed, class, reason."""
    rows = []
    for run in ordered(plan.runs()):
        record = read_run(folder, run) if run.settings["task"] == "select" else None
        for kind, reasons in (record["found"]["reasons"] if record else {}).items():
            made = {"run": run.name, "scarcity": run.settings["subset"]["scarcity"],
                    "seed": run.settings["seed"], "class": kind}  # fmt: skip
            rows += [made | {"reason": reason, "images": n} for reason, n in reasons.items()]
    columns = ["run", "scarcity", "seed", "class", "reason", "images"]
    return pd.DataFrame(rows, columns=columns)
