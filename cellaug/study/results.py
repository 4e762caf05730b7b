"""From finished runs to tables: one row for each run and measure, one for each planned contrast."""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from cellaug.data import Dataset
from cellaug.errors import DataError
from cellaug.evaluation.calibration import calibration, probabilities, temperature
from cellaug.evaluation.classifiers import classification_report
from cellaug.files import write_atomically
from cellaug.study.external import HeldOut, own_test
from cellaug.study.plan import FINE, VALIDATION, Contrast, Plan, Run, of_plan, ordered
from cellaug.study.statistics import difference, holm, seeds_needed
from cellaug.study.tasks import sides
from cellaug.study.worker import RESULT

import numpy as np
import pandas as pd

THESIS_GAIN = 0.007
"""The gain in weighted F1 that the thesis saw (0.946 to 0.953), as a fraction."""


def taxonomies(plan: Plan, class_names: Sequence[str]) -> dict[str, tuple[list[str], np.ndarray]]:
    """Names of the classes of each taxonomy, and for each class of the set its number in it."""
    found = {FINE: (list(class_names), np.arange(len(class_names)))}
    for name, merged in plan.taxonomies.items():
        if not set(merged) & set(class_names):
            are, given = ", ".join(class_names), ", ".join(map(str, merged))
            raise DataError(f"plan: taxonomies: {name}: of {given} none is a class, as are {are}")
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
    """All measures of probabilities (N, C), before and after scaling: (measure, class, value).

    Means over classes are over those that occur in `truth`.
    """
    report = classification_report(truth, p.argmax(1), names)
    by_class = {key: report[key] for key in ("recall", "precision", "f1")}
    by_class["specificity"] = dict(
        zip(names, specificity(np.array(report["confusion"])), strict=True)
    )
    means = {key: pd.Series(by_class[key], dtype=float).mean() for key in ("f1", "recall")}
    rows = [(key, "", report[key]) for key in ("accuracy", "weighted_f1")]
    rows += [("macro_f1", "", means["f1"]), ("balanced_accuracy", "", means["recall"])]
    for key, values in by_class.items():
        rows += [(key, kind, np.nan if v is None else float(v)) for kind, v in values.items()]
    for suffix, values in (("", p), ("_scaled", scaled)):
        rows += [(key + suffix, "", v) for key, v in calibration(values, truth).items()]
    return [(measure, kind, float(value)) for measure, kind, value in rows]


def read_run(folder: Path, name: str) -> dict[str, Any] | None:
    """The record of a run; None if it is not finished."""
    file = folder / name / RESULT
    return json.loads(file.read_text("utf-8")) if file.is_file() else None


def gather(
    plan: Plan, folder: Path, validation: Dataset, tests: Sequence[HeldOut]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The results of all classifiers that are finished, on each set of test images.

    Returns the table, with a row for each run, test set, taxonomy, measure and class ("" for all),
    and every choice that made the run; and the class numbers that each run gave to the images of a
    test set that a taxonomy can place, as one list for each.
    """
    kinds = taxonomies(plan, validation.class_names)
    rows, answers = [], []
    for run in plan.runs():
        record = read_run(folder, run.name)
        if record is None:
            continue
        made = facts(run, record, folder)
        with np.load(folder / run.name / "logits.npz", allow_pickle=False) as file:
            valued = file["validation"]
        warm = temperature(valued, validation.labels)
        for test in tests:
            logits = test.logits(folder / run.name)
            plain, scaled = (probabilities(logits, t) for t in (1.0, warm))
            for taxonomy, (names, numbers) in kinds.items():
                truth = test.truth(names, validation.class_names, numbers)
                if not (placed := truth >= 0).any():
                    continue
                which = {"tested_on": test.name, "taxonomy": taxonomy}
                p, calibrated = (merged(part, numbers)[placed] for part in (plain, scaled))
                found = measures(p, calibrated, truth[placed], names)
                rows += [made | which | {"measure": m, "class": k, "value": v} for m, k, v in found]
                answers.append({"run": run.name, **which, "answers": p.argmax(1).astype(np.uint8)})
        score = classification_report(validation.labels, valued.argmax(1), validation.class_names)
        rows.append(made | {"tested_on": VALIDATION, "taxonomy": FINE, "class": "",
                            "measure": "macro_f1", "value": score["macro_f1"]})  # fmt: skip
    return pd.DataFrame(rows), pd.DataFrame(answers)


def facts(run: Run, record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Everything that made a classifier, as columns of the table."""
    settings, found = run.settings, record["found"]
    known = {task: read_run(folder, name) or {} for task, name in run.before.items()}
    before = sum(other["seconds"] for other in known.values())
    made = known.get("generator")
    quality = made["found"]["quality"] if made else {}
    keys = ["data", "image_size", "seed", "arm", "sampling", "augment", "extra", "pool"]
    keys += ["generator", "pretrain", "only"]
    return {
        "run": run.name,
        "scarcity": settings["subset"]["scarcity"],
        **{key: settings[key] for key in keys},
        "ratio": str(settings["ratio"]),
        **settings["classifier"],
        "generator_images": made["settings"]["images"] if made else 0,
        "generator_sha256": found.get("generator_sha256", ""),
        "real_images": sum(found["real"].values()),
        "extra_images": sum(found["extra"].values()),
        "seconds": record["seconds"],
        "seconds_before": before,
        **{f"generator_{key}": value for key, value in quality.items()},
        **{key: record[key] for key in ("commit", "device")},
    }


def contrasts(
    plan: Plan, table: pd.DataFrame, answers: pd.DataFrame, tests: Sequence[HeldOut],
    fine: Sequence[str], resamples: int = 2000,
) -> pd.DataFrame:  # fmt: skip
    """The planned comparisons, each over the seeds that both arms have.

    Columns: those of `Contrast`, tested_on, taxonomy, class ("" for all: the contrast's measure;
    else the recall of this class of `fine`, the set's own), mean, low and high (BCa over seeds and
    test images, or groups where they are known), p (sign flips), adjusted (Holm, over all contrasts
    of a test set and taxonomy that the plan has, or over the classes of one contrast), d, sd, n,
    needed (the paired seeds that would show `THESIS_GAIN`) and by_seed, the differences. They are
    fractions. A seed is left out if two arms that share a generator had different ones.
    """
    kinds, rows = taxonomies(plan, fine), []
    runs = table[of_plan(plan, table)].drop_duplicates("run")
    runs = runs.set_index(["scarcity", "arm", "seed"])["run"].sort_index()
    given = answers.set_index(["tested_on", "taxonomy", "run"])["answers"].to_dict()
    for contrast, test in product(plan.contrasts, tests):
        places = [(contrast.scarcity, arm) for arm in (contrast.arm, contrast.against)]
        pair = [runs.loc[place] if place in runs.index.droplevel(2) else {} for place in places]
        both = [seed for seed in set(pair[0].keys()) & set(pair[1].keys())
                if one_generator(plan, contrast, seed, [p[seed] for p in pair], table)]  # fmt: skip
        pair = [{seed: part[seed] for seed in both} for part in pair]
        for taxonomy, (names, numbers) in kinds.items():
            truth = test.truth(names, fine, numbers)
            groups: Any = None if test.groups is None else test.groups[truth >= 0]
            if not len(truth := truth[truth >= 0]):
                continue
            # of runs that are kept from before, those that were tested on this set
            told = [{seed: said for seed, run in part.items()
                     if len(said := given.get((test.name, taxonomy, run), ())) == len(truth)}
                    for part in pair]  # fmt: skip
            if not (seeds := sorted(told[0].keys() & told[1].keys())):
                continue
            one, other = (np.array([part[s] for s in seeds]) for part in told)
            made = {**vars(contrast), "tested_on": test.name, "taxonomy": taxonomy}
            parts = {"": np.ones(len(truth), bool)}
            if taxonomy == FINE:  # accuracy on the images of a class is its recall
                parts |= {names[k]: truth == k for k in np.unique(truth)}
            for kind, own in parts.items():
                found = difference(
                    truth[own], one[:, own], other[:, own], len(names),
                    "accuracy" if kind else contrast.measure,
                    None if groups is None else groups[own], resamples,
                )  # fmt: skip
                found["by_seed"] = found["by_seed"].tolist()
                found["needed"] = seeds_needed(found["sd"], THESIS_GAIN) if seeds[1:] else np.nan
                rows.append(made | {"class": kind, **found})
    keys = [*Contrast.__dataclass_fields__, "tested_on", "taxonomy", "class", "mean", "low", "high"]
    keys += ["p", "d", "sd", "n", "by_seed", "needed"]
    frame = pd.DataFrame(rows, columns=keys)
    if frame.empty:
        return frame.assign(adjusted=[])
    whole, each = frame["class"] == "", ["tested_on", "taxonomy"]
    planned = len(plan.contrasts)
    frame["adjusted"] = frame[whole].groupby(each)["p"].transform(holm, family=planned)
    each += ["arm", "against", "scarcity"]
    by_class = frame[~whole].groupby(each)["p"].transform(holm)
    return frame.assign(adjusted=frame["adjusted"].fillna(by_class))


def one_generator(
    plan: Plan, contrast: Contrast, seed: int, runs: Sequence[str], table: pd.DataFrame
) -> bool:
    """Whether two runs had the same generator, if the plan gives both the same; else True.

    A generator that was lost and trained again on another machine is not the same. Told by the
    weights (generator_sha256), or where an earlier run did not note them by its kernel distance.
    """
    both = [plan.run(contrast.scarcity, arm, seed, plan.classifier).before
            for arm in (contrast.arm, contrast.against)]  # fmt: skip
    named = [before["generator"] for before in both if "generator" in before]
    if len(set(named)) != 1 or len(named) != 2 or "generator_kernel_distance" not in table:
        return True
    known = table[table["run"].isin(runs)].drop_duplicates("run")
    noted = "generator_sha256" in known and (known["generator_sha256"] != "").all()
    return known["generator_sha256" if noted else "generator_kernel_distance"].nunique() == 1


def record(plan: Plan, folder: Path, place: Path, external: HeldOut | None = None) -> Path:
    """Write all results so far to a folder: tables and the plan; returns the folder.

    `runs.parquet` is `gather`'s table, `answers.parquet` the class numbers of its runs,
    `test.parquet` the digest and class of each of the study's test images, `contrasts.parquet` the
    plan's comparisons, `selection.csv` how many generated images were kept and refused, `work.csv`
    what each finished run took, `plan.yaml` the plan. The column generator_sha256 of runs has 16
    digits of the weights that drew a classifier's cells ("" for none, and for runs from before
    there was this column; see `one_generator`). Results of the plan's runs that the folder has from
    before, and which `folder` lacks, are kept; on other test sets too, unless a run was trained
    again; so is the work of runs that were lost. Raises DataError if no run is finished.
    """
    parts = sides({"data": plan.data, "options": plan.options, "image_size": plan.image_size})
    test, fine = parts["test"], parts["test"].class_names
    tests = [own_test(test), *([external] if external else [])]
    table, answers = gather(plan, folder, parts["validation"], tests)
    tables = {"runs": table.assign(data_hash=parts["train"].fingerprint), "answers": answers,
              "selection": selections(plan, folder), "work": work(plan, folder)}  # fmt: skip
    before = recorded(place, parts["train"].fingerprint)
    again = add_before(tables, before, {run.name for run in ordered(plan.runs())})
    if tables["runs"].empty:
        raise DataError(f"{folder}: no run is finished yet, so there is nothing to record")
    tables["test"] = pd.DataFrame({"digest": test.digests, "class": tests[0].named})
    pairs = contrasts(plan, tables["runs"], tables["answers"], tests, fine)
    if before and not again:  # on test sets that are not at hand now
        old = pd.read_parquet(place / "contrasts.parquet")
        rows = old.reindex(columns=[*Contrast.__dataclass_fields__], fill_value=False)
        rows = rows.itertuples(index=False, name=None)
        old = old.loc[[Contrast(*row) in plan.contrasts for row in rows]]
        old = old[~old["tested_on"].isin([test.name for test in tests])]
        pairs = pd.concat([pairs, old], ignore_index=True) if len(old) else pairs
    tables["contrasts"] = pairs
    place.mkdir(parents=True, exist_ok=True)
    for name, found in tables.items():
        if name in AS_TEXT:
            write_atomically(place / f"{name}.csv", found.to_csv(index=False).encode())
        else:
            write_atomically(place / f"{name}.parquet", found.to_parquet(index=False))
    write_atomically(place / "plan.yaml", plan.text.encode())
    return place


def add_before(
    tables: dict[str, pd.DataFrame], before: Mapping[str, pd.DataFrame], wanted: set[str]
) -> set[str]:
    """Add the rows of wanted runs from before that are not in the tables; the runs trained twice.

    Of what is trained again, because its files were lost, the first work is kept, and no result.
    """
    now = dict(zip(tables["work"]["run"], tables["work"]["seconds"], strict=True))
    rows = before["runs"][["run", "seconds"]].to_numpy() if before else ()
    again = {run for run, seconds in rows if now.get(run, seconds) != seconds}
    for name, known in before.items():
        new, keys = tables[name], [k for k in ("run", "tested_on", "seconds") if k in known]
        old = known[known["run"].isin(wanted if name == "work" else wanted - again)]
        done = {*map(tuple, new.reindex(columns=keys).round(3).to_numpy())}
        old = old.loc[[tuple(row) not in done for row in old[keys].round(3).to_numpy()]]
        tables[name] = pd.concat([part for part in (old, new) if len(part)] or [new])
    return again


AS_TEXT = ("selection", "work")


def recorded(place: Path, data_hash: str | None = None) -> dict[str, pd.DataFrame]:
    """The tables of runs that a folder has from before; none, or of another set, are empty."""
    if not (place / "runs.parquet").is_file():
        return {}
    found = {name: pd.read_parquet(place / f"{name}.parquet") for name in ("runs", "answers")}
    found |= {name: pd.read_csv(place / f"{name}.csv", keep_default_na=False) for name in AS_TEXT}
    new = {"generator_sha256": "", "only": "every class"}  # columns that earlier records have not
    found["runs"] = found["runs"].reindex(columns=[*{**found["runs"], **new}]).fillna(new)
    same = data_hash is None or (found["runs"]["data_hash"] == data_hash).all()
    return found if same else {}


def work(plan: Plan, folder: Path) -> pd.DataFrame:
    """What each finished run took: run, task, seconds, commit, device."""
    keys = ("name", "seconds", "commit", "device")
    rows = [{key: known[key] for key in keys} | {"task": run.settings["task"]}
            for run in ordered(plan.runs()) if (known := read_run(folder, run.name))]  # fmt: skip
    return pd.DataFrame(rows, columns=[*keys, "task"]).rename(columns={"name": "run"})


def selections(plan: Plan, folder: Path) -> pd.DataFrame:
    """How many generated images each selection kept and refused: scarcity, seed, class, reason."""
    rows = []
    for run in ordered(plan.runs()):
        record = read_run(folder, run.name) if run.settings["task"] == "select" else None
        for kind, reasons in (record["found"]["reasons"] if record else {}).items():
            made = {"run": run.name, "scarcity": run.settings["subset"]["scarcity"],
                    "seed": run.settings["seed"], "class": kind}  # fmt: skip
            rows += [made | {"reason": reason, "images": n} for reason, n in reasons.items()]
    columns = ["run", "scarcity", "seed", "class", "reason", "images"]
    return pd.DataFrame(rows, columns=columns)
