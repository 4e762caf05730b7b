"""Figures of the augmentation study: scores against a number of images, by arm."""

from collections.abc import Mapping

from cellaug.data import Dataset
from cellaug.figures import alt, style
from cellaug.figures.charts import interval_plot
from cellaug.figures.sheets import image_rows

import numpy as np
import pandas as pd

LINES = ("-", "--", ":", "-.")


def score_curves(
    rows: pd.DataFrame, xlabel: Mapping[str, str] | str, ylabel: str = "macro F1"
) -> style.Described:
    """Draw scores with intervals against a number, a line for each arm, a panel for each family.

    `rows` has the columns family, arm, number (above 0, on a logarithmic axis), mean, low, high;
    arms differ by colour, mark and line. `xlabel` names the number, by family if it differs. With
    one number in each family the arms stand below each other instead.
    """
    families, arms = [*rows["family"].unique()], [*rows["arm"].unique()]
    if rows.groupby("family")["number"].nunique().max() == 1:  # no line to draw
        words = rows["family"].map(xlabel) if isinstance(xlabel, Mapping) else xlabel
        table = rows.rename(columns={"arm": "name", "mean": "value"})
        table["measure"] = rows["number"].map("{:,.0f} ".format) + words
        return interval_plot(table[["measure", "name", "value", "low", "high"]], ylabel)
    fig = style.new_figure(style.WIDTH, 3.6 + 0.16 * len(arms), layout="constrained")
    axes = fig.subplots(1, len(families), sharey=True, squeeze=False)[0]
    known: dict = {}
    for ax, family in zip(axes, families, strict=True):
        own = rows[rows["family"] == family]
        for k, arm in enumerate(arms):
            line = own[own["arm"] == arm].sort_values("number")
            if line.empty:
                continue
            x = line["number"] * 1.03 ** (k - len(arms) / 2)  # side by side
            look: dict = {"color": style.PALETTE[k % len(style.PALETTE)], "linewidth": 1.4}
            ax.vlines(x, line["low"], line["high"], **look)
            look |= {"marker": style.MARKERS[k % len(style.MARKERS)], "markersize": 5}
            (known[arm],) = ax.plot(x, line["mean"], LINES[k % len(LINES)], **look)
        numbers = sorted(own["number"].unique())
        ax.set_xscale("log")
        ax.set_xticks(numbers, [f"{n:,.0f}" for n in numbers])
        ax.minorticks_off()
        ax.set(xlabel=xlabel if isinstance(xlabel, str) else xlabel[family])
        table = own.pivot(index="number", columns="arm", values="mean")
        fig.alt = f"{fig.alt} {alt.curves(table, ylabel, ax.get_xlabel())}".strip()
    axes[0].set_ylabel(ylabel)
    fig.legend(known.values(), known.keys(), loc="outside upper left", ncols=2)
    return fig


def change_by_class(rows: pd.DataFrame) -> style.Described:
    """Draw contrasts by class (recall, in percentage points), a panel for each scarcity.

    `rows` has the columns class, scarcity, mean, low, high, as fractions, and n, the seeds.
    """
    words = {"class": "name", "scarcity": "measure", "mean": "value", "low": "low", "high": "high"}
    table = rows[[*words]].rename(columns=words)
    table["measure"] += rows["n"].map(" ({} seeds)".format)
    table[["value", "low", "high"]] *= 100
    return interval_plot(table, "change of recall in percentage points", 0, "+.1f")


def worth_in_images(rows: pd.DataFrame) -> style.Described:
    """Draw how many more real images would bring an arm's gain, a panel for each scarcity.

    `rows` are those of `cellaug.study.answers.worths`; what lies beyond the curve is drawn at its
    end, and its interval is open there.
    """
    table = rows.rename(columns={"arm": "name", "scarcity": "measure", "images": "value"})
    columns = ["value", "low", "high"]
    finite = table[columns].to_numpy()[np.isfinite(table[columns])]
    table[columns] = table[columns].clip(min([-1.0, *finite]), max([1.0, *finite]))
    label = "further real images of each class that would bring the same gain"
    return interval_plot(table[["measure", "name", *columns]], label, 0, "+.0f")


def differing_cells(found: Mapping[str, pd.DataFrame], cells: Dataset) -> style.Described:
    """Draw the images of `cellaug.study.answers.only_one` from their set, a row for each arm."""
    places = pd.Series(range(len(cells)), cells.digests)
    found = {arm: table for arm, table in found.items() if len(table)}
    rows = {f"only {arm}": cells.subset(places[table["digest"]].to_numpy()).read(64)
            for arm, table in found.items()}  # fmt: skip
    both = pd.concat(found.values())
    return image_rows(rows, captions=[*(both["class"] + "\nnamed " + both["named"])])


def calibration_errors(rows: pd.DataFrame) -> style.Described:
    """Draw the expected calibration error of each arm before and after temperature scaling.

    `rows` has the columns name (arm), kind, value, low, high.
    """
    fig = interval_plot(rows, "expected calibration error")
    fig.axes[0].set_xlim(0, None)
    return fig
