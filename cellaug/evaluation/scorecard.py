"""The table of an evaluation, its scorecard, and both as text.

The table has a row for each level ("overall" or "class"), group (empty or the class's name) and
measure: the names in `MEASURES` ("colours": shares of images that are `colours.unusual`); "grid 2",
"grid 4", "grid 8", the grid texture by its period in pixels (`energy_ratio`: its energy over that
of real images); "copies in features" and "in pixels", shares of copies (`real` of held-out images,
`p` of Fisher's exact test); "nearest in ...", median distances to the nearest training image;
"accuracy score" (by class: recall) and "macro F1" of a classifier trained on generated images
(`real`: on as many training images).

Columns: `value` (generated against real), `real` (real against real), `ratio` (of these) or, for
shares, `gap` (their difference), each with its 95 % interval (`low`, `high`, `real_low`, ...);
`training` (class agreement of training images), `compared` (images in each half, or to train on),
and `reason`, why a value is missing, or if there is one why it is not judged.
"""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

from cellaug.evaluation.memorisation import ALPHA

import pandas as pd

NAN = float("nan")

MEASURES = {  # over all and class by class
    "frechet": "Fréchet distance",
    "kernel": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "diversity_features": "diversity (features)",
    "diversity_pixels": "diversity (grey levels)",
    "agreement": "class agreement",
    "colours": "unusual colours",
}

IN_FEATURES = {"frechet", "kernel", "precision", "recall", "density", "coverage", "agreement"}
IN_FEATURES |= {"diversity_features", "copies in features", "nearest in features"}

_TARGETS = {  # in words, the lowest and the highest value that meet the target; None for none
    "frechet_ratio": ("Fréchet distance", None, 3.0),
    "coverage_ratio": ("coverage", 0.8, None),
    "recall_ratio": ("recall", 0.6, None),
    "diversity_features_ratio": ("diversity in features", 0.8, 1.1),
    "diversity_pixels_ratio": ("diversity in grey levels", 0.8, 1.1),
    "memorised": ("memorised", None, 0),
    "grid_ratio": ("grid texture", 0.9, 1.1),
    "agreement_gap": ("class accuracy, generated minus real", -0.03, 0.03),
}
ROWS = {name: words for name, (words, _, _) in _TARGETS.items()}
TARGETS = {name: tuple(ends) for name, (_, *ends) in _TARGETS.items()}

FRECHET_IMAGES = 700
"""Images in each set of the scorecard's Fréchet distance, about half of PBC's test split."""

ENDS = {kind: (f"{kind}_low", f"{kind}_high") for kind in ("real", "ratio", "gap")}
ENDS = {"value": ("low", "high")} | ENDS  # the columns of a value's interval
NUMBERS = [*ENDS, *sum(ENDS.values(), ()), "energy_ratio", "training", "p", "compared"]
_PER_CLASS = ("coverage", "recall", "diversity_features", "diversity_pixels")


def tidy(rows: Sequence[Mapping[str, Any]] | Sequence[str] | pd.DataFrame) -> pd.DataFrame:
    """The table of some rows, or of CSV lines; missing numbers are NaN, missing texts empty."""
    if not isinstance(rows, pd.DataFrame) and rows and isinstance(rows[0], str):
        text = StringIO("\n".join(map(str, rows)))
        rows = pd.read_csv(text, keep_default_na=False, na_values=[""])
    table = pd.DataFrame(rows).reindex(columns=["level", "group", "measure", *NUMBERS, "reason"])
    return table.astype(dict.fromkeys(NUMBERS, float)).fillna({"group": "", "reason": ""})


def compact(table: pd.DataFrame) -> list[str]:
    """The table as lines of CSV without empty columns, numbers with six digits; `tidy` reads it."""
    table = table.replace("", NAN).dropna(axis=1, how="all")
    return table.to_csv(index=False, float_format="%.6g").splitlines()


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Its rows over all, of classes those that the scorecard names, and a row "memorised"."""
    card = scorecard(table)
    worst = {(name.rpartition("_")[0], where) for name, where in card["where"].items()}
    named = pd.MultiIndex.from_frame(table[["measure", "group"]]).isin(worst)
    copies = {"level": "overall", "measure": "memorised"}
    copies |= card.loc["memorised", ["value", "reason"]].to_dict()
    return tidy([*table[(table["level"] == "overall") | named].to_dict("records"), copies])


def alarms(table: pd.DataFrame) -> pd.DataFrame:
    """The tests for copies that give an alarm: p below `ALPHA` over the number of tests."""
    table = table[table["p"].notna() & (table["reason"] == "")]
    return table[table["p"] < ALPHA / max(len(table), 1)]


def scorecard(rows: Sequence[str] | pd.DataFrame) -> pd.DataFrame:
    """Compare the measures that have a target with it, each for its worst class or period.

    `rows` is a table, or its lines of CSV as a model card has them. Returns for each name in
    `TARGETS`: value, low, high (95 %), where (class or period), lowest and highest (the target),
    met, measured and of (how many of how many classes or periods), reason (for no verdict).

    `met` is decided by the interval: True if in every class the whole of it is within the target,
    False if in one it is wholly outside, None if undecided or not judged. `where` is the class that
    decides, of several the one farthest out. With fewer images intervals grow, and more remains
    undecided; the values themselves must not change with the number of images m in each set:

    - A Fréchet distance is F + c/m, the finite-sample bias being the same for generated and for
      real images (Chong & Forsyth 2020); between real images F is 0. Its ratio to that of real
      images, 1 + F m/c, would grow with m, so it is given for m = `FRECHET_IMAGES`, as
      1 + (ratio − 1) · `FRECHET_IMAGES` / m. The interval is that of the distance over the mean
      distance of real halves, of which a single one says little.
    - Ratios of coverage, recall, diversity and grid texture compare equal numbers in numerator and
      denominator. On real cells they changed by at most 0.03 from m = 12 to m = 120 of a class.
    """
    table = tidy(rows)
    card = pd.DataFrame({name: _row(name, table) for name in TARGETS}).T
    return card.astype(dict.fromkeys(("value", "low", "high", "lowest", "highest"), float))


def _row(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """The group that is farthest out of its target, or nearest to leaving it."""
    low, high = (NAN if end is None else end for end in TARGETS[name])
    measure, _, kind = name.rpartition("_")
    level = "class" if measure in _PER_CLASS and "class" in set(table["level"]) else "overall"
    own = table[(table["level"] == level) & table["measure"].str.startswith(measure)]
    own = own.assign(where=own["group"].replace("", "over all"))
    reason = own["reason"].iloc[0] if len(own) == 1 else "no class has enough images"
    if measure == "grid":
        own["where"] = "period " + own["measure"].str.removeprefix("grid ")
        reason = "the images are too small for any period"
    elif name == "memorised":
        own, kind = _memorised(table).assign(where=""), "value"
        reason = own["reason"].iloc[0]
    if name == "frechet_ratio":
        more = FRECHET_IMAGES / own["compared"].fillna(FRECHET_IMAGES)
        for column, value in zip((kind, *ENDS[kind]), ("value", "low", "high"), strict=True):
            ratio = (own[value] / own["real"]).fillna(own[column])
            own[column] = (1 + (ratio - 1) * more).clip(lower=0)
    known = own[own[kind].notna()]
    row = {"value": NAN, "low": NAN, "high": NAN, "where": "", "lowest": low, "highest": high}
    if known.empty:
        return row | {"met": None, "measured": 0, "of": 0, "reason": reason}
    ends = [known[end].fillna(known[kind]) for end in ENDS[kind]]
    missed = (ends[1] < low) | (ends[0] > high)
    met = ~((ends[0] < low) | (ends[1] > high))
    room = pd.concat([known[kind] - low, high - known[kind]], axis=1).min(axis=1)
    order = pd.DataFrame({"rank": 1 + met.astype(int) - missed.astype(int), "room": room})
    first = order.sort_values(["rank", "room"], kind="stable").index[0]
    worst = known.loc[first, [kind, *ENDS[kind], "where"]]
    row |= dict(zip(("value", "low", "high", "where"), worst, strict=True))
    verdict = {0: False, 1: None, 2: True}[order["rank"][first]]
    reason = known["reason"][first]
    row |= {"met": None if reason else verdict, "reason": reason}
    return row | {"measured": len(known), "of": len(own)}


def _memorised(table: pd.DataFrame) -> pd.DataFrame:
    """One row, whose value is 1 if there is an alarm; a summary has it and lacks the tests."""
    if "memorised" in set(table["measure"]):
        return table[table["measure"] == "memorised"]
    tests = table[table["measure"].str.startswith("copies")]
    if (tests["p"].notna() & (tests["reason"] == "")).any():
        return tidy([{"value": float(len(alarms(table)) > 0)}])
    return tidy([{"reason": "".join(tests["reason"].head(1)) or "no training images were given"}])


def number(value: float) -> str:
    """A number with two significant digits or more; a dash where there is none."""
    size = abs(value)
    digits = ".0f" if size >= 100 else ".2f" if size >= 0.095 or not size else ".2g"
    return "–" if pd.isna(value) else f"{value:{digits}}".replace("-", "−")


def span(low: float, high: float) -> str:
    """An interval, which may have one end or none."""
    if pd.isna(low) or pd.isna(high):
        return f"from {number(low)}" * pd.notna(low) + f"up to {number(high)}" * pd.notna(high)
    return f"{number(low)} to {number(high)}"


def scorecard_table(rows: Sequence[str] | pd.DataFrame) -> pd.DataFrame:
    """The scorecard of a table in words, a row for each measure as `ROWS` names it."""
    words = {}
    for name, row in scorecard(rows).iterrows():
        value, target = number(row["value"]), span(row["lowest"], row["highest"])
        if name == "memorised":
            value, target = {0: "no", 1: "yes"}.get(row["value"], "–"), "no"
        some = f" ({row['measured']} of {row['of']} measured)" * (row["measured"] < row["of"])
        measured, judged = pd.notna(row["value"]), not row["reason"]
        within = span(row["low"], row["high"]) if measured else row["reason"]
        met = {True: "met", False: "missed", None: "undecided" if judged else "not judged"}
        verdict = met[row["met"]] if measured else ""
        where = row["where"] + some
        words[ROWS[str(name)]] = [value, within or "–", where or "–", target, verdict]
    columns = ["worst value", "95 %", "where", "target", ""]
    return pd.DataFrame.from_dict(words, "index", columns=columns)


def as_text(table: pd.DataFrame) -> str:
    """The table in words, for a terminal: the scorecard first."""
    table = table.assign(group=table["group"].replace("", "over all"))
    alarm = alarms(table)
    where = ", ".join(alarm["group"] + " (" + alarm["measure"] + ")")
    table["name"] = table["measure"].replace(MEASURES)
    overall = table[(table["level"] == "overall") & table["value"].notna()]
    kinds = {"value": "generated", "real": "real", "ratio": "ratio", "gap": "gap"}
    columns = {"over all": overall["name"]}
    columns |= {name: _cells(overall, kind) for kind, name in kinds.items()}
    parts = [scorecard_table(table).to_string(), pd.DataFrame(columns).to_string(index=False)]
    if table["p"].notna().any():
        parts.append(f"copies: {where or 'nowhere more than in held-out real images'}")
    classes = table[table["level"] == "class"]
    for kind, name in (kinds | {"energy_ratio": "energy of the grid over real"}).items():
        wide = classes.dropna(subset=kind).set_index(["name", "group"])[kind].unstack(sort=False)
        wide = wide.rename_axis(index=None, columns=f"{name}, by class")
        if len(wide):
            parts.append(wide.to_string(float_format=number, na_rep="–", line_width=120))
    for reason, rows in table[table["reason"] != ""].groupby("reason", sort=False):
        what = ", ".join(rows["name"].unique())
        what = "measures" if set(MEASURES) <= set(rows["measure"]) else what
        lack = "no" if rows["value"].isna().any() else "no verdict on"
        parts.append(f"{', '.join(rows['group'].unique())}, {lack} {what}: {reason}")
    return "\n\n".join(parts)


def _cells(table: pd.DataFrame, kind: str) -> list[str]:
    rows = table[[kind, *ENDS[kind]]].itertuples(index=False)
    return [f"{number(value)} ({span(*ends)})".removesuffix(" ()") for value, *ends in rows]
