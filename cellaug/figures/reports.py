"""Figures of several parts: the findings of an inspection and of an evaluation."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from cellaug.data.dataset import Dataset
from cellaug.data.inspection import MEASURES as INSPECTED
from cellaug.data.inspection import Inspection, worst
from cellaug.evaluation.finding import Fidelity
from cellaug.evaluation.memorisation import NEIGHBOURS
from cellaug.evaluation.scorecard import MEASURES, TARGETS, scorecard_table
from cellaug.figures import alt, style
from cellaug.figures.charts import panels, stacked_bars
from cellaug.figures.sheets import LINE, Sheet

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import SubFigure
from matplotlib.ticker import MaxNLocator, NullFormatter

Images = tuple[np.ndarray, Sequence[str], int]  # with their captions, so many together


def _report(
    title: str, notes: Sequence[str], heights: Sequence[float], images: Mapping[str, Images]
) -> tuple[style.Described, list[SubFigure]]:
    """A figure of empty parts, `heights` in inches (returned too), sheets of images, and notes."""
    small = "\n".join(fill(note, 130) for note in notes)
    sheets = [
        Sheet(np.split(shown, range(6, len(shown), 6)), (), captions, together)
        for shown, captions, together in images.values()
    ]
    heights = [*heights, *(sheet.height + 0.4 for sheet in sheets)]
    height = sum(heights) + 0.5 + LINE * small.count("\n")
    fig = style.new_figure(style.WIDTH, height, layout="constrained")
    fig.suptitle("\n".join(fill(line, 100) for line in title.split("\n")), size=9)
    fig.supxlabel(small, x=0.01, ha="left", size=style.TINY, color=style.GREY)
    parts = list(fig.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    for part, head, sheet in zip(parts[-len(sheets) :], images, sheets, strict=False):
        part.suptitle(head, size=9, x=0.01, ha="left")
        sheet.draw(part.subplots(subplot_kw={"anchor": "W"}))
    return fig, parts


def inspection(found: Inspection, dataset: Dataset) -> style.Described:
    """Draw an inspection; a box holds the middle half of a class, its whiskers 5 to 95 %."""
    odd, alike, sheets = worst(found.outliers, 12), found.duplicates.head(6), {}
    if len(odd):
        short = odd.assign(reason=odd["reason"].str.partition(", ")[0])
        title = f"Unusual images ({len(odd)} of {len(found.outliers):,}; deviations in brackets)"
        captions = _captions(short, "path", "class", "reason")
        sheets[title] = dataset.subset(odd["index"]).read(160), captions, 0
    if len(alike):
        alike = alike.assign(likeness="likeness " + alike["likeness"].map("{:.3f}".format))
        left = _captions(alike, "path", "class", "side", "likeness")
        right = _captions(alike, "other", "other_class", "other_side", "turn")
        words = [text for pair in zip(left, right, strict=True) for text in pair]
        title = f"Images that show the same ({len(alike)} of {len(found.duplicates):,} pairs)"
        both = alike[["index", "other_index"]].to_numpy().ravel()
        sheets[title] = dataset.subset(both).read(160), words, 2
    verdict = "fit for training" if found.fit else "not fit for training"
    title = f"{found.name}: {len(found.statistics):,} images, {verdict}"
    heights, shown = (
        (1.2 + 0.27 * max(len(found.counts), 3), 3.0),
        found.counts.drop(columns="images"),
    )
    fig, (classes, colours, *_) = _report(title, [found.credit], heights, sheets)
    _inspected_classes(classes, found)
    _inspected_colours(colours, found)
    fig.alt = f"Report on {title}. {alt.bars((shown if shown.shape[1] else found.counts).T)} "
    fig.alt += f"{len(found.outliers):,} unusual images, {len(found.duplicates):,} pairs that show "
    fig.alt += "the same."
    return fig


def _captions(rows: pd.DataFrame, path: str, *others: str) -> list[str]:
    """A caption for each row: the file's name, the middle of a long one cut out, and the rest."""
    names = rows[path].str.replace(r"^.*/", "", regex=True)
    names = names.str.replace(r"^(.{15}).{3,}(.{15})$", r"\1…\2", regex=True)
    return names.str.cat(rows[list(others)], sep="\n").tolist()


def _inspected_classes(part: SubFigure, found: Inspection) -> None:
    """Counts by split, and how bright and how colourful each class is."""
    counted, *others = part.subplots(1, 3, sharey=True, width_ratios=(1.25, 1, 1))
    counts = found.counts.drop(columns="images")
    stacked_bars(counted, (counts if counts.shape[1] else found.counts).T)
    look = {"whis": (5, 95), "showfliers": False, "width": 0.6, "color": "#d5e3ee"}
    look |= {"linecolor": style.BLUE, "medianprops": {"color": style.INK}}
    for ax, measure in zip(others, ("brightness", "colour"), strict=True):
        sns.boxplot(found.statistics, x=measure, y="class", order=counts.index, ax=ax, **look)
        ax.set_xlabel(f"{measure} ({INSPECTED[measure].unit})", fontsize=style.SMALL)
        style.class_axis(ax, counts.index)
    for ax in (counted, *others):
        ax.xaxis.set_major_locator(MaxNLocator(3))


def _inspected_colours(part: SubFigure, found: Inspection) -> None:
    """Every image by background, and by brightness and sharpness; what is unusual stands out."""
    # a blank image has no sharpness, for which a logarithmic axis has no place
    table = found.statistics.assign(sharpness=found.statistics["sharpness"].clip(lower=0.1))
    stained = found.outliers["measure"] == "background"
    background, sharp = part.subplots(1, 2)
    for ax, x, y, odd in (
        (background, "background_a", "background_b", found.outliers["index"][stained]),
        (sharp, "brightness", "sharpness", found.outliers["index"][~stained]),
    ):
        usual, unusual = table.drop(odd), table.loc[odd]
        ax.scatter(usual[x], usual[y], s=5, alpha=0.4, rasterized=True, label="usual")
        look = {"s": 15, "marker": "^", "rasterized": True, "label": f"unusual ({len(odd):,})"}
        ax.scatter(unusual[x], unusual[y], **look)
        style.legend_above(ax)
    background.set(xlabel="background a* (green to red)", ylabel="background b* (blue to yellow)")
    sharp.set(xlabel=f"brightness ({INSPECTED['brightness'].unit})", yscale="log")
    sharp.set_ylabel("sharpness (grey levels²)")
    sharp.yaxis.set_major_formatter("{x:g}")
    sharp.yaxis.set_minor_formatter(NullFormatter())


def fidelity(found: Fidelity) -> style.Described:
    """Draw the finding of `evaluate`: a panel for each measure, a row for each class.

    Dots are generated images with 95 % intervals, triangles halves of the real images. Below:
    nearness of training images, power spectrum over that of real images, closest pairs.
    """
    rows = found.table[found.table["level"] == "class"]
    rows = found.table.assign(group="all images") if rows.empty else rows
    sheets, captions = {}, []
    if found.pairs is not None:
        for pair in found.closest.to_dict("records"):
            space = pair["space"].replace("pixels", "grey levels")
            captions += [f"{pair['class'] or 'generated'}\nby {space}"]
            near = f"training image\n{pair['relative']:.2f} of the mean"
            captions += [f"{pair['training_class'] or 'training'}\n{near}"]
        title = "Closest pairs: a generated image and the training image nearest to it"
        sheets[title] = np.concatenate(found.pairs), captions, 2
    verdicts = scorecard_table(found.table)[""]
    judged = verdicts[verdicts != ""]
    words = [word for word in ("missed", "undecided", "not judged") if word in set(judged)]
    unmeasured = ", ".join(verdicts.index[verdicts == ""])
    real, made = found.sets["real"], found.sets["generated"]
    title = f"{made['name']}: {made['images']:,} generated images against {real['images']:,} real "
    title += f"ones of {real['name']}\n{judged.eq('met').sum()} of {len(judged)} targets met"
    title += "".join(f", {word}: {', '.join(judged.index[judged == word])}" for word in words)
    title += f"; not measured: {unmeasured}" * bool(unmeasured)
    notes = ["Lines: 95 % intervals. Real halves: half of the real images against the other half."]
    notes += ["Grey: values that meet the target."]
    notes += dict.fromkeys(part["credit"] for part in found.sets.values())
    heights = 1.2 + 0.3 * max(rows["group"].nunique(), 2), 3.0
    fig, (classes, nearest, *_) = _report(title, notes, heights, sheets)
    _by_class(classes, rows)
    left, right = nearest.subfigures(1, 2, squeeze=False, width_ratios=(1.75, 1))[0]
    _nearness(left, found)
    _spectrum(right.subplots(), found)
    fig.alt = f"Report on {title}. Generated images against halves of the real ones, by class, in "
    fig.alt += f"{rows['measure'].nunique()} measures."
    return fig


def _by_class(part: SubFigure, rows: pd.DataFrame) -> None:
    """A row for each class, a panel for each measure."""
    shown = "precision recall coverage diversity_features diversity_pixels agreement".split()
    made = rows[rows["measure"].isin(shown)].rename(columns={"group": "name"})
    halves = {"value": made["real"], "low": made["real_low"], "high": made["real_high"]}
    both = pd.concat([made.assign(kind="generated"), made.assign(kind="real halves", **halves)])
    both["measure"] = both["measure"].map(MEASURES).str.replace(" ", "\n", n=1)
    if made["value"].isna().all():
        part.text(0.5, 0.5, f"Not measured: {made['reason'].iloc[0]}", ha="center", va="center")
        return
    axes = panels(part, both)
    for ax, (measure, of_real) in zip(axes, made.groupby("measure", sort=False), strict=True):
        lowest, highest = TARGETS.get(f"{measure}_ratio", (np.nan, np.nan))
        low, high = of_real["real"] * lowest, of_real["real"] * highest if highest else 1
        ax.barh(range(len(of_real)), high - low, 0.8, low, color=style.PALE, zorder=0)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.set_xlim(min(0, ax.get_xlim()[0]) if of_real["value"].notna().any() else 0, None)


def _nearness(part: SubFigure, found: Fidelity) -> None:
    """How near training images are to generated images and to held-out real ones."""
    if not found.memorisation:
        reasons = found.table["reason"][found.table["measure"].str.startswith("copies")]
        words = f"Nearest training images\nnot measured: {reasons.iloc[0]}"
        part.text(0.5, 0.5, words, ha="center", va="center")
        return
    axes = part.subplots(1, 2, sharey=True)
    for ax, (space, facts) in zip(axes, found.memorisation.items(), strict=True):
        kinds = ("generated", "-"), ("held-out real", "--")
        for (kind, line), near in zip(kinds, found.nearness[space], strict=True):
            counts, edges = np.histogram(near, np.linspace(0, 1, 41))
            ax.stairs(100 * counts / len(near), edges, linestyle=line, label=kind, linewidth=1.4)
        ax.legend(fontsize=style.SMALL)
        ax.axvline(facts["threshold"], color=style.GREY, linestyle=":")
        where = f"mean of {NEIGHBOURS} nearest, in {space.replace('pixels', 'grey levels')}"
        ax.set_xlabel(f"nearest training image over\n{where}", fontsize=style.SMALL)
        ax.set_title("left of the dots: copies", fontsize=style.SMALL)
        ax.set(xlim=(0, 1), ylabel="images (%)")
        sns.despine(ax=ax)


def _spectrum(ax: Axes, found: Fidelity) -> None:
    """Power of generated over that of real images, by frequency; a grid shows as dots."""
    # From −¼ to ¾ cycles per pixel, so that no frequency of a grid lies at the edge.
    size = len(found.spectra[0])
    real, made = (np.roll(power + 0.25, size // 4, (0, 1)) for power in found.spectra)
    ends = np.array([0, size]) / size - (size // 4 + 0.5) / size
    look: dict[str, Any] = {"cmap": "PuOr", "norm": LogNorm(0.1, 10), "interpolation": "nearest"}
    shown = ax.imshow(made / real, extent=(*ends, *ends), origin="lower", **look)
    ax.figure.colorbar(shown, ax=ax, shrink=0.8, format="%g", label="power over real")
    ax.set(xticks=(0, 0.25, 0.5), yticks=(0, 0.25, 0.5), xlabel="cycles per pixel")
    ax.grid(False)
    rows = found.table[found.table["measure"].str.startswith("grid ")].query("level == 'overall'")
    words = [f"period {row.measure[5:]} px: {row.ratio:.2f}" for row in rows.itertuples()]
    words = ["grid texture over real", *(words or ["not measured"])]
    ax.set_title("\n".join(words), fontsize=style.SMALL)
