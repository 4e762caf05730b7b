"""Charts: bars, curves, matrices, and values with their intervals."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from cellaug.evaluation.classifiers import FOR_A_VERDICT, FOR_AN_INTERVAL
from cellaug.figures import alt, style

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import ArrayLike


def stacked_bars(ax: Axes, counts: pd.DataFrame) -> None:
    """Draw images per class as stacked bars, with the total at each bar's end."""
    counts.T.plot.barh(stacked=True, width=0.72, ax=ax, legend=False)
    for bars, hatch in zip(ax.containers, style.HATCHES, strict=False):
        for bar in bars:
            bar.set(hatch=hatch, edgecolor="white")
    for i, total in enumerate(counts.sum()):
        ax.text(total, i, f" {total:,}", va="center", fontsize=style.SMALL)
    if len(counts) > 1:
        style.legend_above(ax)
    style.class_axis(ax, counts.columns)
    ax.set(xlim=(0, 1.15 * max(counts.sum().max(), 1)), xlabel="images")
    ax.xaxis.set_major_formatter("{x:,.0f}")


def class_distribution(counts: pd.DataFrame) -> style.Described:
    """Draw images per class (Fig. 10, Table 6); a row of `counts` is a split, a column a class."""
    fig = style.new_figure(style.WIDTH, 0.9 + 0.27 * counts.shape[1], layout="constrained")
    stacked_bars(fig.add_subplot(), counts)
    fig.alt = alt.bars(counts)
    return fig


FEW, SPAN = 5, 0.1
"""Rows that are written as numbers too; least height of an axis, of its largest value."""


def loss_curves(
    history: pd.DataFrame, columns: Mapping[str, str], ylabel: str = "loss", xlabel: str = "epoch"
) -> style.Described:
    """Draw columns of a training history, with their words in the legend, by epoch (Fig. 14).

    One or two columns of at most `FEW` rows are also written: such a line shows no course.
    """
    fig = style.new_figure(style.WIDTH, 3, layout="constrained")
    ax, table = fig.add_subplot(), history[list(columns)].rename(columns=columns)
    sns.lineplot(table, markers=len(table) <= 25, markersize=5, errorbar=None, linewidth=1.4, ax=ax)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    if len(table) <= FEW and table.shape[1] <= 2:
        for _, values in table.items():
            for x, y in values.dropna().items():
                side = 5 if y == table.loc[x].max() else -10  # points above or below the mark
                look: dict[str, Any] = {"xytext": (0, side), "textcoords": "offset points"}
                ax.annotate(f"{y:.3g}", (x, y), ha="center", size=style.TINY, **look)
        ax.margins(x=0.1, y=0.2)
    low, high = ax.get_ylim()  # what hardly changes must not look as if it did
    if (room := SPAN * float(np.nanmax(np.abs(table))) - (high - low)) > 0:
        ax.set_ylim(low - room / 2, high + room / 2)
    style.legend_above(ax)
    fig.alt = alt.curves(table, ylabel, xlabel)
    return fig


def confusion_matrix(matrix: ArrayLike, class_names: Sequence[str]) -> style.Described:
    """Draw counts of actual (rows) by predicted classes, with per cent of the row (Fig. 20–21)."""
    counts = pd.DataFrame(matrix, class_names, class_names)
    share = 100 * counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    percent = share.map("{:.0f}".format).where(share >= 0.5, "<1")
    notes = (percent + "\n" + counts.map("{:,}".format)).where(counts > 0, "")
    side, left = 0.45 * len(counts), 0.7 + max(style.text_width(name, 8) for name in class_names)
    fig = style.new_figure(side + left, side + 0.8 * left, layout="constrained")
    ax, look = fig.add_subplot(), {"vmin": 0, "vmax": 100, "cmap": "Blues", "linewidths": 0.6}
    look |= {"annot_kws": {"size": style.SMALL}, "square": True, "cbar": False, "fmt": ""}
    sns.heatmap(share, annot=notes, ax=ax, linecolor=style.PALE, **look)
    ax.set(xlabel="predicted", ylabel="actual")
    ax.set_xticks(ax.get_xticks(), class_names, rotation=45, ha="right", rotation_mode="anchor")
    ax.tick_params(axis="y", rotation=0)
    fig.alt = alt.confusion(share)
    return fig


def crowded(rows: pd.DataFrame) -> bool:
    """Whether marks of several kinds, with intervals, stand on one line (see `interval_plot`)."""
    several = rows.duplicated(["measure", "name"]).any()
    return bool(several and rows["low"].notna().any())


def panels(
    fig: Figure | SubFigure, rows: pd.DataFrame, shared: bool = False, number: str = ""
) -> list[Axes]:
    """Draw a panel for each measure of `rows` (see `interval_plot`) and the legend of the kinds."""
    names, kinds = list(rows["name"].unique()), list(rows["kind"].unique())
    measures = rows.groupby("measure", sort=False)
    axes = fig.subplots(1, len(measures), sharey=True, sharex=shared, squeeze=False)[0]
    for ax, (measure, part) in zip(axes, measures, strict=True):
        apart = crowded(part) * 0.76
        for k, kind in enumerate(kinds):
            own, colour = part[part["kind"] == kind], style.PALETTE[k]
            y = own["name"].map(names.index).astype(float)
            y += apart * ((k + 0.5) / len(kinds) - 0.5)
            ax.hlines(y, own["low"], own["high"], color=colour, linewidth=1.6)
            ax.plot(own["value"], y, style.MARKERS[k], color=colour, markersize=5, label=kind)
            for place, row in zip(y, own.itertuples(), strict=True):
                text = f"{row.value:{number}}" if number and np.isfinite(row.value) else ""
                if len(axes) == 1 and text and np.isfinite([row.low, row.high]).all():
                    text += f"  ({row.low:{number}} to {row.high:{number}})"
                look: dict[str, Any] = {"va": "center", "transform": ax.get_yaxis_transform()}
                ax.text(1.01, place, text.replace("-", "−"), size=style.TINY, **look)
        style.class_axis(ax, names)
        ax.margins(x=0.08 if len(axes) == 1 else 0.16)  # beside it stand the numbers of another
        ax.set_title(measure, fontsize=9 if len(axes) < 5 else style.TINY)
    if len(kinds) > 1:
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=5)
    return list(axes)


def interval_plot(
    rows: pd.DataFrame,
    xlabel: str = "",
    reference: float | Mapping[str, float] | None = None,
    number: str = ".3f",
) -> style.Described:
    """Draw values with their intervals, the first on top.

    Args:
        rows: columns `name`, `value`, `low`, `high`; optionally `measure` (panel), `kind` (mark).
        xlabel: the quantity and its unit; panels of several measures then share their axis.
        reference: place of a dashed line; by measure if they differ.
        number: format of the values beside the marks ("": none); kinds need intervals for them.
    """
    rows = pd.DataFrame({"measure": "", "kind": ""}, rows.index).assign(**rows)
    rows = rows.astype(dict.fromkeys(("value", "low", "high"), float))
    names, kinds = rows["name"].nunique(), rows["kind"].nunique()
    height = max(0.27, 0.15 * kinds * crowded(rows)) * max(names, 2)
    fig = style.new_figure(style.WIDTH, 0.9 + height, layout="constrained")
    number = number if kinds == 1 or rows["low"].notna().any() else ""
    for ax in panels(fig, rows, bool(xlabel), number):
        line = reference.get(ax.get_title()) if isinstance(reference, Mapping) else reference
        if line is not None:
            ax.axvline(line, color=style.GREY, linestyle="--", linewidth=1)
    fig.supxlabel(xlabel, fontsize=9)
    fig.alt = alt.intervals(rows, xlabel)
    return fig


Changes = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""By arm and metric ("weighted_f1", "macro_f1"), a `paired_difference`."""


def forest(sources: Mapping[str, Changes]) -> style.Described:
    """Draw the change of weighted and macro F1 of each arm, with a mark for each source (Table 4).

    `sources` are runs by name, such as "thesis" or "this run". A line is a 95 % interval; a change
    from fewer than `FOR_AN_INTERVAL` seeds has none. ValueError if there is no change to draw.
    """
    rows = {
        (metric.replace("_f1", " F1"), arm, source): found
        for source, arms in sources.items()
        for arm, changes in arms.items()
        for metric, found in changes.items()
    }
    if not rows:
        raise ValueError("there is no change of F1 to draw")
    names = sorted(set(chain(*sources.values())), key=str.lower)  # the same in every figure
    # All combinations, so that a source has the same colour in every figure.
    every = pd.MultiIndex.from_product(
        [["weighted F1", "macro F1"], names, sources], names=["measure", "name", "kind"]
    )
    table = pd.DataFrame.from_dict(rows, "index", float).reindex(every)
    table["value"] = 100 * table["mean"]
    table[["low", "high"]] = 100 * table[["low", "high"]].where(table["n"] >= FOR_AN_INTERVAL)
    fig = interval_plot(table.reset_index(), "change in percentage points of F1", 0, "+.1f")
    known = table[table["n"] >= FOR_A_VERDICT].dropna(subset=["value", "low", "high"])
    above, below = (known["low"] > 0).sum(), (known["high"] < 0).sum()
    found = f"Of {len(known)} changes over {FOR_A_VERDICT} seeds or more {above} are gains and "
    found += f"{below} losses; the intervals of the others include zero."
    fig.alt += f" {found if len(known) else f'No change has {FOR_A_VERDICT} seeds.'}"
    return fig


def per_class_change(changes: Mapping[str, pd.DataFrame]) -> style.Described:
    """Draw the change of each class's recall in percentage points, a panel per arm (section 5.4).

    `changes` has a row per seed and a column per class; lines are the mean ± a standard deviation,
    of at least `FOR_AN_INTERVAL` seeds.
    """
    tall = pd.concat(changes, names=["measure"]).melt(var_name="name", ignore_index=False)
    groups = tall.groupby(["measure", "name"], sort=False)["value"]
    mean, deviation = groups.mean(), groups.std().where(groups.size() >= FOR_AN_INTERVAL)
    rows = pd.DataFrame({"value": mean, "low": mean - deviation, "high": mean + deviation})
    return interval_plot(rows.reset_index(), "change in percentage points", 0, "+z.1f")


def diversity(generated: pd.DataFrame, real: pd.Series, word: str = "real") -> style.Described:
    """Draw mean distances of images of a class (grey levels), real and of each generator.

    `word` stands for the real ones in the legend.
    """
    table = pd.concat([real.rename(word), generated.reindex(real.index)], axis=1)
    rows = table.rename_axis("name").reset_index().melt("name", var_name="kind")
    rows[["low", "high"]] = np.nan
    fig = interval_plot(rows, "mean distance between two images of a class (grey levels)")
    fig.axes[0].set_xlim(0, None)
    return fig


def ladder(runs: pd.DataFrame, steps: int) -> style.Described:
    """Draw an ablation study: a row for each recipe (arm), a panel for each measure of a run.

    A row of `runs` is a training: arm, seed, measures; the first `steps` arms are steps, the others
    variants. Marks are means, lines the range over the seeds, real cells the dashed line.
    """
    tall = runs.drop(columns="seed").melt("arm", var_name="measure").dropna()
    groups = tall.groupby(["arm", "measure"], sort=False)["value"]
    rows = groups.agg(value="mean", low="min", high="max").reset_index()
    place = rows["arm"].map({arm: i for i, arm in enumerate(runs["arm"].unique())})
    rows["kind"] = np.where(place < steps, "step", "variant")
    rows["name"] = (place + 1).astype(str).where(place < steps, "") + "  " + rows["arm"]
    rows = rows.iloc[place.argsort(kind="stable")]
    real = {name: int("points" not in name) for name in rows["measure"]}
    fig = interval_plot(rows, "", real, number="")
    for ax in fig.axes:
        if ax.get_title() in ("Fréchet distance", "grid texture"):
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
    return fig
