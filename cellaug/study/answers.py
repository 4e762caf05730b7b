"""What a study's tables say: scores, room and what recovers it, worth in real images, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cellaug.data import Dataset, open_dataset
from cellaug.errors import DataError
from cellaug.evaluation import classifiers
from cellaug.study.plan import FINE, OWN, VALIDATION, Plan, choices, of_plan, read_plan
from cellaug.study.statistics import LEVEL, on_resampled_images, over_seeds, worth

import numpy as np
import pandas as pd
from scipy import stats

CALLED = {"gain": "better", "loss": "worse", "undecided": "undecided", "too few seeds": ""}
"""The words of this page for what `evaluation.classifiers.verdict` says."""


@dataclass(frozen=True)
class Results:
    """The tables of a study (`cellaug.study.results.record`) and its plan."""

    plan: Plan
    runs: pd.DataFrame
    contrasts: pd.DataFrame
    answers: pd.DataFrame
    test: pd.DataFrame
    selection: pd.DataFrame
    work: pd.DataFrame

    @property
    def class_names(self) -> list[str]:
        """The set's own classes, in the order of their numbers."""
        runs = self.runs
        own = runs[(runs["measure"] == "recall") & (runs["taxonomy"] == FINE)]
        return list(own["class"].unique())

    @property
    def done(self) -> tuple[int, int]:
        """Classifiers that are finished, and those of the plan."""
        return self.runs["run"].nunique(), len(self.plan.runs())

    @property
    def hours(self) -> float:
        """Hours that all finished runs took, generators and selections too, added up."""
        return float(self.work["seconds"].sum()) / 3600


def read_results(place: Path) -> Results:
    """Read what `record` wrote; DataError if it is not all there."""
    tables = {}
    for name in ("runs", "contrasts", "answers", "test"):
        if not (file := place / f"{name}.parquet").is_file():
            raise DataError(f"{place}: no results of a study: {file.name} is missing")
        tables[name] = pd.read_parquet(file)
    for name in ("selection", "work"):
        tables[name] = pd.read_csv(place / f"{name}.csv", keep_default_na=False)
    return Results(read_plan(place / "plan.yaml"), **tables)


def scores(
    results: Results, measure: str = "macro_f1", taxonomy: str = FINE, tested_on: str = OWN
) -> pd.DataFrame:
    """A measure of all runs of the plan's own classifier: scarcity, arm, seed, value."""
    runs = results.runs[of_plan(results.plan, results.runs)]
    wanted = (runs["measure"] == measure) & (runs["class"] == "")
    wanted &= (runs["taxonomy"] == taxonomy) & (runs["tested_on"] == tested_on)
    return runs.loc[wanted, ["scarcity", "arm", "seed", "value"]].reset_index(drop=True)


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Mean, interval (`over_seeds`), sd and n of `scores`, by scarcity and arm as they come."""
    groups = found.groupby(["scarcity", "arm"], sort=False)["value"]
    rows = {key: over_seeds(values.to_numpy()) for key, values in groups}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(table.index, names=["scarcity", "arm"])
    return table


def without_synthesis(plan: Plan) -> list[str]:
    """The arms that have no image but real ones and copies of them."""
    return [name for name, arm in plan.arms.items()
            if choices(arm)["extra"] in ("none", "duplicates")]  # fmt: skip


def whole(plan: Plan) -> str:
    """The scarcity that leaves all images; DataError if the plan has none."""
    for name, subset in plan.scarcities.items():
        if not subset:
            return name
    raise DataError("the plan has no scarcity with all images, so the room cannot be known")


def best_arm(results: Results, scarcity: str, arms: Sequence[str]) -> str:
    """Which of some arms has the highest mean macro F1 on validation images; "" if none is done."""
    found = scores(results, tested_on=VALIDATION)
    own = found[(found["scarcity"] == scarcity) & found["arm"].isin(arms)]
    return "" if own.empty else str(own.groupby("arm")["value"].mean().idxmax())


def room(results: Results) -> pd.DataFrame:
    """How much a scarcity costs, and the fraction of it that each arm with made images recovers.

    The room is the mean macro F1 with all images less that of the best arm without synthesis, both
    arms chosen on validation images. A row for each scarcity and arm: baseline, score, ceiling,
    room, recovered with its interval low to high (percentiles over seeds and test images; NaN with
    too few seeds for a verdict), n. Left out are scarcities whose room is not above zero, and arms
    that share fewer than `FOR_AN_INTERVAL` seeds with the baseline.
    """
    plan, found = results.plan, scores(results)
    real, full = without_synthesis(plan), whole(plan)
    at = found.set_index(["scarcity", "arm", "seed"])["value"].sort_index()
    rows: list[dict[str, Any]] = []
    if not (top := best_arm(results, full, real)):
        return pd.DataFrame(rows)
    ceiling, order = at[full, top], results.class_names
    truth = np.array([order.index(name) for name in results.test["class"]])
    own = results.answers[
        results.answers["taxonomy"].eq(FINE) & results.answers["tested_on"].eq(OWN)
    ]
    given, drawn = own.set_index("run")["answers"], dict[str, np.ndarray]()
    of_own = results.runs[of_plan(plan, results.runs)].drop_duplicates("run")
    named = of_own.set_index(["scarcity", "arm", "seed"])["run"]

    def resampled(scarcity: str, arm: str, seeds: pd.Index) -> np.ndarray:
        runs = [named[scarcity, arm, seed] for seed in seeds]
        if new := [run for run in runs if run not in drawn]:
            answered = np.stack([given[run] for run in new])
            drawn.update(zip(new, on_resampled_images(truth, answered, len(order)), strict=True))
        return np.stack([drawn[run] for run in runs])

    for scarcity in [name for name in plan.scarcities if name != full]:
        if not (base := best_arm(results, scarcity, real)):
            continue
        baseline = at[scarcity, base]
        if (gap := ceiling.mean() - baseline.mean()) <= 0:
            continue
        made = {"scarcity": scarcity, "baseline": base, "score": baseline.mean(),
                "ceiling": ceiling.mean(), "room": gap}  # fmt: skip
        for arm in found[found["scarcity"] == scarcity]["arm"].unique():
            gains = (at[scarcity, arm] - baseline).dropna()
            if arm in real or len(gains) < classifiers.FOR_AN_INTERVAL:
                continue
            low = high = np.nan
            if len(gains) >= classifiers.FOR_A_VERDICT:
                one, other = (resampled(scarcity, name, gains.index) for name in (arm, base))
                low, high = recovered(one, other, resampled(full, top, ceiling.index))
            rows.append({**made, "arm": arm, "recovered": gains.mean() / gap, "low": low,
                         "high": high, "n": len(gains)})  # fmt: skip
    return pd.DataFrame(rows)


def recovered(arm: np.ndarray, base: np.ndarray, top: np.ndarray) -> np.ndarray:
    """The interval of the fraction of the room that an arm recovers, over its seeds too.

    Each of the three has a row for each seed (those of `arm` and `base` are pairs) and a column for
    each set of resampled test images (`on_resampled_images`).
    """
    rng, each = np.random.default_rng(0), np.arange(arm.shape[1])
    seeds, others = (rng.integers(len(part), size=part.shape) for part in (arm, top))
    gain, lower = ((values[seeds, each]).mean(0) for values in (arm - base, base))
    fraction = gain / (top[others, each].mean(0) - lower)
    return np.quantile(fraction, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])


def curves(plan: Plan) -> dict[str, dict[str, int]]:
    """Scarcities that differ in the number of real images alone: by family, name and number."""
    found: dict[str, dict[str, int]] = {}
    for name, subset in plan.scarcities.items():
        if "images" in subset:
            family = "of each scarce class" if "scarce" in subset else "of every class"
            found.setdefault(family, {})[name] = subset["images"]
    return found


def numbered(results: Results, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `summary` at scarcities of `curves`, as columns with their family and number."""
    places = {name: (family, number) for family, numbers in curves(results.plan).items()
              for name, number in numbers.items()}  # fmt: skip
    rows = table.reset_index()
    rows = rows[rows["scarcity"].isin(places)]
    both = pd.DataFrame([places[name] for name in rows["scarcity"]], rows.index)
    return rows.assign(**both.set_axis(["family", "number"][: both.shape[1]], axis=1))


def worths(results: Results) -> pd.DataFrame:
    """What each arm's gain is worth in real images (`statistics.worth`), with its interval.

    The baseline of a family of scarcities (`curves`) is the arm without synthesis that is best on
    validation images among those that all of its scarcities have; a scarcity counts where it has
    three seeds of it. Rows: family, scarcity, number (of real images), baseline, arm, images, low,
    high, n; an arm is measured where it shares three seeds with the baseline. One that scores less
    than the curve does anywhere is worth -inf.
    """
    found, rows, real = scores(results), [], without_synthesis(results.plan)
    for family, numbers in curves(results.plan).items():
        own = found[found["scarcity"].isin(numbers)]
        spread = own.groupby("arm")["scarcity"].nunique()
        common = [arm for arm in real
                  if spread.get(arm, 0) == own["scarcity"].nunique() > 1]  # fmt: skip
        if not common:
            continue
        base = best_arm(results, next(iter(own["scarcity"])), common)
        at = own.set_index(["scarcity", "arm", "seed"])["value"].sort_index()
        enough = at.xs(base, level="arm").groupby("scarcity").size() >= classifiers.FOR_AN_INTERVAL
        curve = {numbers[name]: at[name, base].tolist() for name in enough.index[enough]}
        for (scarcity, arm), values in at.groupby(["scarcity", "arm"], sort=False):
            gains = (values.droplevel([0, 1]) - at[scarcity, base]).dropna()
            enough_of_both = len(gains) >= classifiers.FOR_AN_INTERVAL and len(curve) > 1
            if arm not in real and enough_of_both:
                rows.append({"family": family, "scarcity": scarcity, "number": numbers[scarcity],
                             "baseline": base, "arm": arm, "n": len(gains),
                             **worth(curve, numbers[scarcity], gains.tolist())})  # fmt: skip
    return pd.DataFrame(rows)


def verdict(row: Mapping[str, Any]) -> str:
    """better, worse or undecided, by the interval of a contrast; "" with too few seeds for it."""
    return CALLED[classifiers.verdict(row)]


def points(row: Mapping[str, Any]) -> str:
    """A contrast's mean and interval in percentage points: "+1.2 (+0.3 to +2.1), 5 of 10 seeds"."""
    each = {key: row[key] for key in ("mean", "low", "high") if not pd.isna(row[key])}
    said = {key: f"{100 * value:+.1f}".replace("-", "−") for key, value in each.items()}
    between = f" ({said['low']} to {said['high']})" if "low" in said else ""
    most = max(row["n"], row.get("planned", 0))
    seeds = f"{row['n']}{f' of {most}' * (most > row['n'])} seed{'s' * (most != 1)}"
    return f"{said['mean']}{between}, {seeds}"


def doubt(row: Mapping[str, Any]) -> str:
    """A note for a contrast that is better or worse, but not after the correction; else ""."""
    clear = verdict(row) not in ("better", "worse") or row.get("adjusted", 0) < 1 - LEVEL
    return "" if clear else " (but not after Holm's correction)"


def of_question(results: Results, question: int, tested_on: str = OWN) -> pd.DataFrame:
    """The planned contrasts of one of the page's questions, over all classes of the set's own.

    With the seeds that the plan has for both arms, as `planned`, and whether it was `added` later.
    """
    plan, table = results.plan, results.contrasts
    own = (table["question"] == question) & (table["class"] == "")
    own &= (table["taxonomy"] == FINE) & (table["tested_on"] == tested_on)
    table = table[own].reset_index(drop=True)

    def seeds(scarcity: str, arm: str) -> int:
        return max(
            b["seeds"] for b in plan.blocks if scarcity in b["scarcities"] and arm in b["arms"]
        )

    both = [min(seeds(row.scarcity, arm) for arm in (row.arm, row.against))
            for row in table.itertuples()]  # fmt: skip
    later = {(c.arm, c.against, c.scarcity) for c in plan.contrasts if c.added}
    added = [(row.arm, row.against, row.scarcity) in later for row in table.itertuples()]
    return table.assign(planned=both, added=added)


def in_words(contrasts: pd.DataFrame) -> str:
    """What contrasts found, a sentence for each pair of arms; says where nothing is decided."""
    sentences = []
    for (arm, against), rows in contrasts.groupby(["arm", "against"], sort=False):
        parts = []
        for row in rows.to_dict("records"):
            called = verdict(row) or "too few seeds for a verdict"
            where = row["scarcity"] + " (added later)" * row.get("added", False)
            parts.append(f"{called} at {where}{doubt(row)}: {points(row)}")
        sentences.append(f"*{arm}* against *{against}*: {'; '.join(parts)}.")
    return " ".join(sentences) or "No run of these contrasts is finished yet."


def ratios(results: Results) -> pd.DataFrame:
    """The arms with a ratio, as rows of `summary` with family "" and the ratio as number (%)."""
    plan, rows = results.plan, []
    table = summary(scores(results))
    plain = choices({})
    for (scarcity, arm), row in table.iterrows():
        chosen = choices(plan.arms[arm])
        if chosen["ratio"] != "fill" and chosen["extra"] in ("generated", "selected", "duplicates"):
            if chosen["pool"] == plain["pool"] and chosen["generator"] == plain["generator"]:
                kind = f"{chosen['extra']}, {scarcity}"
                rows.append({"family": "", "arm": kind, "number": 100 * chosen["ratio"], **row})
    return pd.DataFrame(rows)


def quality_and_gain(results: Results) -> pd.DataFrame:
    """How a generator's measures go with the gain of the arms that use it: rank correlations.

    The gain is over the best arm without synthesis of the same scarcity and seed; gains and
    measures are taken less their mean in a scarcity and arm, so that only generators of like runs
    are compared, and then averaged over the arms that share a generator. Columns: Spearman's ρ, p,
    generators.
    """
    runs = results.runs[of_plan(results.plan, results.runs)].drop_duplicates("run")
    measures = [name for name in ("generator_kernel_distance", "generator_precision",
                                  "generator_coverage", "generator_agreement",
                                  "generator_diversity") if name in runs]  # fmt: skip
    at = scores(results).set_index(["scarcity", "arm", "seed"])["value"]
    real = without_synthesis(results.plan)
    bases = {name: best_arm(results, name, real) for name in runs["scarcity"].unique()}
    keys = runs[["scarcity", "arm", "seed"]]
    gains = [at[tuple(key)] - at.get((key[0], bases[key[0]], key[2]), np.nan)
             for key in keys.itertuples(index=False)]  # fmt: skip
    table = runs.assign(gain=gains).dropna(subset=["gain", *measures])
    same, rows = table.groupby(["scarcity", "seed", *measures]).ngroup(), {}
    for name in measures:
        parts = table.groupby(["scarcity", "arm"])[[name, "gain"]]
        centred = (table[[name, "gain"]] - parts.transform("mean"))[parts.transform("size") > 2]
        centred = centred.groupby(same).mean()
        if len(centred) > 2:
            found = stats.spearmanr(centred[name], centred["gain"])
            label = name.removeprefix("generator_").replace("_", " ")
            rows[label] = {"ρ": found.statistic, "p": found.pvalue, "generators": len(centred)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["ρ", "p", "generators"])


def by_classifier(results: Results, choice: str) -> pd.DataFrame:
    """Macro F1 by a choice of the classifier, "norm" for example: means, spread and seeds.

    Of those arms alone that were trained with several values of it; the rest is the plan's.
    """
    runs = results.runs
    alike = {key: value for key, value in results.plan.classifier.items() if key != choice}
    own = (runs["measure"] == "macro_f1") & (runs["taxonomy"] == FINE)
    own &= (runs["tested_on"] != VALIDATION) & (runs[[*alike]] == pd.Series(alike)).all(axis=1)
    groups = runs[own].groupby(["tested_on", "scarcity", "arm", choice], sort=False)["value"]
    table = groups.agg(["mean", "std", "count"]).unstack(choice)
    table = table[table["mean"].notna().all(axis=1)]
    return table if table.columns.get_level_values(1).nunique() > 1 else table.iloc[:0]


def calibration_of(results: Results, scarcity: str) -> pd.DataFrame:
    """Calibration errors at a scarcity by arm: name, kind (before or after scaling), and spread."""
    rows = []
    for measure, kind in (("ece", "as trained"), ("ece_scaled", "temperature scaled")):
        table = summary(own) if len(own := scores(results, measure)) else pd.DataFrame()
        for (where, arm), row in table.iterrows():
            if where == scarcity:
                rows.append(
                    {"name": arm, "kind": kind, "value": row["mean"], **row[["low", "high"]]}
                )
    return pd.DataFrame(rows)


def only_one(
    results: Results, arm: str, against: str, scarcity: str, count: int = 6
) -> dict[str, pd.DataFrame]:
    """The test images on which two arms differ most: by the arm that names them right.

    Each table has at most `count` rows: digest, class, named (what the other arm says in most of
    its seeds) and apart (the fraction of seeds in which one is right, less that of the other), the
    largest first. Empty where an arm has no run.
    """
    runs = results.runs[of_plan(results.plan, results.runs)].drop_duplicates("run")
    own = results.answers[(results.answers["tested_on"] == OWN)
                          & (results.answers["taxonomy"] == FINE)]  # fmt: skip
    given = own.set_index("run")["answers"]
    order = results.class_names
    truth = np.array([order.index(name) for name in results.test["class"]])
    at = runs[runs["scarcity"] == scarcity].groupby("arm")["run"].agg(list)
    if arm not in at or against not in at:
        return {}
    said = {name: np.stack([*given[at[name]]]) for name in (arm, against)}
    right = {name: (values == truth).mean(0) for name, values in said.items()}
    found = {}
    for one, other in ((arm, against), (against, arm)):
        apart = right[one] - right[other]
        rows = np.argsort(-apart, kind="stable")[:count]
        rows = rows[apart[rows] > 0]
        usual = stats.mode(said[other][:, rows], axis=0).mode
        found[one] = results.test.iloc[rows].assign(
            named=[order[k] for k in usual], apart=apart[rows]
        )
    return found


def cells_of(results: Results) -> Dataset | None:
    """The study's set; None where it is not at hand."""
    try:
        return open_dataset(results.plan.data, **results.plan.options)
    except (DataError, OSError):
        return None


def advice(results: Results) -> str:
    """What the table allows to recommend, scarcity by scarcity, as a list in Markdown.

    Left out is a scarcity with one arm, or whose best one has fewer than `FOR_A_VERDICT` seeds.
    """
    table, lines = summary(scores(results)), []
    planned = of_question(results, 1)
    for scarcity in table.index.get_level_values(0).unique():
        real = best_arm(results, scarcity, without_synthesis(results.plan))
        own = table.loc[scarcity]
        if not real or len(own) < 2 or own.at[real, "n"] < classifiers.FOR_A_VERDICT:
            continue
        words = f"**{scarcity}**: of the arms without synthesis take *{real}*"
        words += f" (macro F1 {own.at[real, 'mean']:.3f}, {own.at[real, 'n']:.0f} seeds)"
        rows = planned[planned["scarcity"] == scarcity]
        told: dict[str, dict[str, str]] = {}
        for row in rows[rows["against"] == real].to_dict("records"):
            told.setdefault(verdict(row), {})[f"*{row['arm']}*"] = doubt(row)
        for word, do in (("better", "add generated cells"), ("worse", "add no generated cells")):
            if named := told.get(word):
                if all(doubts := [*named.values()]):
                    words += f"; generated cells seem {word}{doubts[0]}: {', '.join(named)}"
                else:
                    both = [arm + doubted for arm, doubted in named.items()]
                    words += f"; {do}: {', '.join(both)} did {word}"
                break
        if undecided := told.get("undecided"):
            words += f"; not shown to help: {', '.join(undecided)}"
        if set(told) == {""}:
            words += "; whether generated cells help is not decided, for there are too few seeds"
        lines.append(f"- {words}.")
    few = f"Nothing yet: no arm without synthesis has {classifiers.FOR_A_VERDICT} seeds."
    return "\n".join(lines) or few
