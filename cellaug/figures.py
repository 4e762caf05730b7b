"""The book's figures, all in one style.

Every function returns a `matplotlib.figure.Figure` that is already closed for pyplot: in a
notebook it shows once, as the value of its cell, and nothing piles up in memory. Images are uint8
RGB, N×H×W×3, 0–255. Sizes are inches at 110 dots per inch, made for a text column of 7.5 inches.
"""

from collections.abc import Mapping, Sequence
from textwrap import wrap

from cellaug.data.catalogue import Dataset
from cellaug.data.images import check_images
from cellaug.data.inspection import MEASURES, Inspection, pictures, worst
from cellaug.evaluation.fidelity import Fidelity
from cellaug.evaluation.memorisation import NEIGHBOURS
from cellaug.evaluation.scorecard import ROWS, TARGETS

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from matplotlib.ticker import MaxNLocator

WIDTH = 7.5
"""Width of a full-width figure in inches."""

TALLEST = 11.0
"""Height in inches that rows of images are fitted into where they can be."""

GAP = 0.06
"""Space between neighbouring images in inches."""

SMALL, TINY = 8, 7
"""Font sizes of labels and of captions in points."""

PALETTE = sns.color_palette("colorblind")
BLUE, ORANGE = PALETTE[0], PALETTE[1]
INK, GREY = "#222222", "#777777"


def use_style() -> None:
    """Set the book's style: colours that the colour-blind can tell apart, white paper, 110 dpi."""
    sns.set_theme(
        style="whitegrid",
        palette="colorblind",
        rc={
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.labelsize": 9,
            "xtick.labelsize": SMALL,
            "ytick.labelsize": SMALL,
            "legend.fontsize": SMALL,
            "legend.frameon": False,
            "axes.edgecolor": "#bbbbbb",
            "grid.color": "#e4e4e4",
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
        },
    )


# --- pictures of images ------------------------------------------------------------------------


def image_grid(
    images: np.ndarray,
    columns: int | None = None,
    titles: Sequence[str] | None = None,
    scale: float = 1.2,
) -> Figure:
    """Images in rows of `columns`, with an optional title over each.

    An image is `scale` inches wide, or less where a row would not fit the page. Without `columns`
    the grid is as near to a square as fits.
    """
    images = check_images(images, "images")
    count = len(images)
    if titles is not None and len(titles) != count:
        raise ValueError(f"titles: expected {count}, one per image, but got {len(titles)}")
    if columns is None:
        columns = min(int((WIDTH + GAP) / (scale + GAP)), int(np.ceil(np.sqrt(count))))
    columns = max(1, min(columns, count))
    scale = min(scale, (WIDTH + GAP) / columns - GAP)
    rows = -(-count // columns)
    head = 0.2 if titles is not None else 0.0
    fig, ax = _sheet(columns * (scale + GAP) - GAP, rows * (scale + head + GAP) - GAP)
    for i, image in enumerate(images):
        x = (i % columns) * (scale + GAP)
        y = (i // columns) * (scale + head + GAP) + head
        _place(ax, image, x, y, scale)
        if titles is not None:
            _write(ax, x + scale / 2, y - 0.04, titles[i], width=scale, va="bottom", ha="center")
    return fig


def class_examples(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    per_class: int = 6,
    scale: float | None = None,
) -> Figure:
    """One row per class with its first `per_class` images, the class's name on the left.

    A class that has fewer images leaves the rest of its row empty.
    """
    images = check_images(images, "images")
    labels = np.asarray(labels)
    rows = [
        (name, images[np.flatnonzero(labels == k)[:per_class]])
        for k, name in enumerate(class_names)
    ]
    return _rows(rows, scale=scale)


def samples_over_time(samples: Mapping[int, np.ndarray], scale: float | None = None) -> Figure:
    """The same latent vectors through training: one row per epoch, oldest on top."""
    rows = [(f"epoch {epoch}", samples[epoch]) for epoch in sorted(samples)]
    return _rows(rows, scale=scale)


def pairs(
    left: np.ndarray,
    right: np.ndarray,
    names: Sequence[str],
    captions: Sequence[str] | None = None,
    heads: tuple[str, str] = ("generated", "nearest real"),
    per_row: int = 3,
) -> Figure:
    """Pairs of images side by side: a generated cell and the real one most like it, say (Fig. 15).

    `names` stands over each pair, `captions` (the distance, say) under it, and `heads` over the
    left and right images of the top row.
    """
    left, right = check_images(left, "left"), check_images(right, "right")
    captions = [""] * len(left) if captions is None else captions
    if not len(left) == len(right) == len(names) == len(captions):
        raise ValueError(
            "left, right, names and captions must be equally long, but are "
            f"{len(left)}, {len(right)}, {len(names)}, {len(captions)}"
        )
    per_row = min(per_row, len(left))
    between, head, top = 0.28, 0.22, 0.2
    foot = 0.22 if any(captions) else 0.06
    side = (WIDTH - (3 - 1) * between) / (3 * 2) - GAP / 2
    wide, high = 2 * side + GAP, head + side + foot
    rows = -(-len(left) // per_row)
    fig, ax = _sheet(per_row * (wide + between) - between, top + rows * high)
    for i, name in enumerate(names):
        x = (i % per_row) * (wide + between)
        y = top + (i // per_row) * high + head
        if i < per_row:
            for k, text in enumerate(heads):
                _write(
                    ax,
                    x + side / 2 + k * (side + GAP),
                    0.0,
                    text,
                    color=GREY,
                    size=TINY,
                    va="top",
                    ha="center",
                )
        _write(ax, x + wide / 2, y - 0.04, name, width=wide, va="bottom", ha="center")
        _place(ax, left[i], x, y, side)
        _place(ax, right[i], x + side + GAP, y, side)
        _write(
            ax,
            x + wide / 2,
            y + side + 0.03,
            captions[i],
            width=wide,
            size=TINY,
            color=GREY,
            va="top",
            ha="center",
        )
    return fig


def interpolation(images: np.ndarray, ends: tuple[str, str] = ("first", "second")) -> Figure:
    """The way from one generated image to another (Eq. 40, Fig. 17): one row, or one per walk.

    `images` is steps+1×H×W×3, or walks×steps+1×H×W×3 for several walks under one another.
    """
    images = np.asarray(images)
    walks = images[None] if images.ndim == 4 else images
    steps = walks.shape[1] - 1
    heads = [ends[0], *(f"{i}/{steps}" for i in range(1, steps)), ends[1]]
    return _rows([("", walk) for walk in walks], heads=heads)


def reconstructions(
    real: np.ndarray,
    encoded: np.ndarray,
    optimised: np.ndarray | None = None,
    errors: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """Real cells over their reconstructions (Eq. 41, Fig. 18).

    `encoded` comes from the image-to-latent network, `optimised` from a search over the latent
    itself. `errors` may give, under "encoder" and "optimised", the mean absolute difference from
    the real image in grey levels, written under each reconstruction.
    """
    rows = [("real", real), ("encoder", encoded)]
    if optimised is not None:
        rows.append(("optimised", optimised))
    captions = {
        name: [f"{value:.1f}" for value in values] for name, values in (errors or {}).items()
    }
    unknown = set(captions) - {name for name, _ in rows[1:]}
    if unknown:
        raise ValueError(f"errors: no row is called {sorted(unknown)}, only encoder and optimised")
    return _rows(rows, captions=captions)


def perturbations(original: np.ndarray, perturbed: Mapping[float, np.ndarray]) -> Figure:
    """A reconstruction (H×W×3) followed by its neighbours in latent space (Eq. 42, Fig. 19).

    `perturbed` maps the variance of the noise to the images made with it; one row for each.
    """
    original = np.asarray(original)
    rows = [
        (f"σ² = {variance:g}", np.concatenate([original[None], images]))
        for variance, images in sorted(perturbed.items())
    ]
    longest = max(len(images) for _, images in rows)
    return _rows(rows, heads=["original", *(str(i) for i in range(1, longest))])


# --- charts ------------------------------------------------------------------------------------


def class_distribution(counts: pd.DataFrame) -> Figure:
    """Images per class as stacked horizontal bars (Fig. 10, Table 6).

    `counts` has one row per split and one column per class; the total stands at each bar's end.
    """
    names, splits = list(counts.columns), list(counts.index)
    fig, ax = _chart(len(names))
    start = np.zeros(len(names))
    for split, colour in zip(splits, _colours(len(splits)), strict=True):
        width = counts.loc[split].to_numpy(float)
        ax.barh(range(len(names)), width, left=start, height=0.72, color=colour, label=str(split))
        start += width
    for i, total in enumerate(start):
        ax.annotate(
            f"{total:,.0f}",
            (total, i),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
        )
    ax.set_xlim(0, max(start.max(), 1) * 1.1)
    _class_axis(ax, names)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("images")
    if len(splits) > 1:
        _legend_above(ax)
    return fig


def loss_curves(
    history: pd.DataFrame,
    columns: Sequence[str] | Mapping[str, str],
    ylabel: str = "loss",
    log: bool = False,
) -> Figure:
    """Columns of a training history against the epoch (Fig. 14).

    `columns` names them, or maps each to the words used for it in the legend.
    """
    words = dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}
    missing = [name for name in words if name not in history]
    if missing:
        raise ValueError(f"history has no column {missing}; it has {list(history.columns)}")
    fig, ax = _axes(WIDTH, 3.2)
    marker = "o" if len(history) <= 25 else None
    for (name, word), colour in zip(words.items(), _colours(len(words)), strict=True):
        ax.plot(
            history.index,
            history[name],
            color=colour,
            label=word,
            marker=marker,
            markersize=3,
            linewidth=1.4,
        )
    ax.set_xlabel("epoch")
    ax.set_ylabel(ylabel)
    ax.xaxis.get_major_locator().set_params(integer=True)
    if log:
        ax.set_yscale("log")
    _legend_above(ax)
    sns.despine(ax=ax)
    return fig


def confusion_matrix(
    matrix: np.ndarray | Sequence[Sequence[int]],
    class_names: Sequence[str],
    title: str | None = None,
) -> Figure:
    """A confusion matrix of counts, rows the actual and columns the predicted class (Fig. 20–21).

    Each field is coloured by its share of the row; the share in per cent stands in it with the
    count small underneath. Fields without an image stay empty, and so does a class without any.
    """
    matrix = np.asarray(matrix, int)
    size = len(class_names)
    if matrix.shape != (size, size):
        raise ValueError(f"matrix: expected {size}×{size} for {size} classes, got {matrix.shape}")
    support = matrix.sum(1, keepdims=True)
    share = 100 * matrix / np.maximum(support, 1)
    cell = float(np.clip(5.0 / size, 0.42, 0.75))
    names = max(_text_width(name, SMALL) for name in class_names)
    # laid out by hand, so that the fields are square and no long name is cut off
    side, left, bottom = size * cell, names + 0.5, 0.75 * names + 0.5
    right, top = 0.1, 0.35 if title else 0.1
    wide, high = left + side + right, bottom + side + top
    fig = _new(wide, high)
    ax = fig.add_axes((left / wide, bottom / high, side / wide, side / high))
    ax.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    large, small = (9, 6.5) if cell > 0.5 else (7, 5)
    for i, j in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if share[i, j] > 55 else INK
        ax.annotate(
            _percent(share[i, j]),
            (j, i),
            (0, 0.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=large,
            color=colour,
        )
        ax.annotate(
            f"{matrix[i, j]:,}",
            (j, i),
            (0, -1.5),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=small,
            color=colour,
            alpha=0.85,
        )
    ax.set_xticks(range(size), class_names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(size), class_names)
    ax.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    ax.grid(False)
    ax.grid(which="minor", color="#e4e4e4", linewidth=0.6)
    ax.tick_params(which="both", length=0)
    fig.text((left + side / 2) / wide, 0.08 / high, "predicted", ha="center", va="bottom")
    fig.text(0.08 / wide, (bottom + side / 2) / high, "actual", rotation=90, ha="left", va="center")
    if title:
        ax.set_title(title)
    return fig


def per_class_change(
    changes: pd.DataFrame,
    spread: pd.DataFrame | None = None,
    xlabel: str = "change in percentage points",
) -> Figure:
    """Change of each class's recall: one row per class, one panel per column (section 5.4).

    `changes` holds percentage points; blue bars are gains, orange ones losses. `spread`, of the
    same shape, is drawn as a line to either side of a bar's end.
    """
    names = [str(name) for name in changes.index]
    around = 0 if spread is None else spread.to_numpy(float)
    reach = max(np.nanmax(np.abs(changes.to_numpy(float)) + np.nan_to_num(around), initial=0), 1)
    reach *= 1.25 + 0.12 * changes.shape[1]
    fig, axes = _chart(len(names), panels=changes.shape[1])
    for ax, column in zip(np.atleast_1d(axes), changes.columns, strict=True):
        values = changes[column].to_numpy(float)
        ax.barh(
            range(len(names)),
            values,
            height=0.68,
            color=[BLUE if value >= 0 else ORANGE for value in values],
        )
        for i, value in enumerate(values):
            if np.isfinite(value):
                shift, side = (3, "left") if value >= 0 else (-3, "right")
                text = f"{round(value, 1) + 0:+.1f}".replace("-", "−").replace("+0.0", "0.0")
                ax.annotate(
                    text,
                    (value, i),
                    (shift, 0),
                    textcoords="offset points",
                    va="center",
                    ha=side,
                    fontsize=TINY,
                )
        if spread is not None:
            ax.errorbar(
                values,
                range(len(names)),
                xerr=spread[column].to_numpy(float),
                fmt="none",
                ecolor=INK,
                elinewidth=0.8,
                capsize=1.5,
            )
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set_xlim(-reach, reach)
        ax.set_title(str(column))
        _class_axis(ax, names)
    fig.supxlabel(xlabel, fontsize=9)
    return fig


def diversity(
    generated: pd.Series | pd.DataFrame,
    real: pd.Series,
    xlabel: str = "mean distance between two images of a class (grey levels)",
) -> Figure:
    """How much the images of each class differ, generated against real; far apart means collapse.

    `generated` and `real` are indexed by class name; a table has one column per generator. A class
    without a number shows no mark.
    """
    if isinstance(generated, pd.Series):
        generated = generated.to_frame("generated")
    names = [str(name) for name in real.index]
    rows = np.arange(len(names))
    marks = pd.concat([real.rename("real"), generated.reindex(real.index)], axis=1).astype(float)
    fig, ax = _chart(len(names))
    ax.hlines(rows, marks.min(axis=1), marks.max(axis=1), color="#cccccc", linewidth=1.5, zorder=1)
    for name, colour, shape in zip(marks, _colours(marks.shape[1]), _shapes(marks), strict=True):
        ax.plot(marks[name], rows, shape, color=colour, label=str(name), markersize=5.5, alpha=0.9)
    ax.set_xlim(0, max(np.nanmax(marks.to_numpy(), initial=0), 1) * 1.05)
    _class_axis(ax, names)
    ax.set_xlabel(xlabel)
    _legend_above(ax)
    return fig


def interval_plot(
    rows: pd.DataFrame,
    xlabel: str = "",
    reference: float | None = None,
    digits: int = 3,
) -> Figure:
    """Values with their intervals: columns `name`, `value`, `low` and `high`, the first row on top.

    A missing `low` or `high` leaves out the bar. `reference` draws a dashed line, at chance or at
    no difference, say.
    """
    missing = {"name", "value", "low", "high"} - set(rows.columns)
    if missing:
        raise ValueError(f"rows: expected name, value, low and high, but {sorted(missing)} lack")
    value, low, high = (rows[key].to_numpy(float) for key in ("value", "low", "high"))
    fig, ax = _chart(len(rows), row=0.34)
    ax.hlines(range(len(rows)), low, high, color=BLUE, linewidth=2)
    ax.plot(value, range(len(rows)), "o", color=BLUE, markersize=6)
    for i in range(len(rows)):
        text = f"{value[i]:.{digits}f}"
        if np.isfinite(low[i]) and np.isfinite(high[i]):
            text += f"  ({low[i]:.{digits}f} to {high[i]:.{digits}f})"
        ax.annotate(
            text.replace("-", "−"),
            (1.01, i),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=SMALL,
        )
    if reference is not None:
        ax.axvline(reference, color=GREY, linestyle="--", linewidth=1)
    ax.margins(x=0.08)
    _class_axis(ax, [str(name) for name in rows["name"]])
    ax.set_xlabel(xlabel)
    return fig


def ladder(runs: pd.DataFrame, rungs: int) -> Figure:
    """What each rung and side arm reached: a row each, a panel for each measure.

    `runs` is what `cellaug.study.ladder.table` returns; its first `rungs` arms are rungs, the
    others side arms, drawn in another colour and shape. A mark is a run, a bar the mean over an
    arm's seeds. Real cells stand at the dashed line. The axes of distance and grid texture are
    logarithmic; a measure that no run has is left out.
    """
    arms = list(dict.fromkeys(runs["arm"]))
    measures = [m for m in runs if m not in ("arm", "seed") and runs[m].notna().any()]
    fig, axes = _chart(len(arms), len(measures), row=0.24)
    for ax, measure in zip(np.atleast_1d(axes), measures, strict=True):
        for i, arm in enumerate(arms):
            values = runs.loc[runs["arm"] == arm, measure].to_numpy(float)
            colour, shape = (BLUE, "o") if i < rungs else (ORANGE, "D")
            style = {"color": colour, "alpha": 0.7, "clip_on": False}
            ax.plot(values, np.full(len(values), i), shape, markersize=3.5, **style)
            ax.plot([values.mean()] * 2, [i - 0.3, i + 0.3], color=colour, linewidth=2)
        if measure in ("Fréchet distance", "grid texture"):
            ax.set_xscale("log")
        ax.axvline(0 if "points" in measure else 1, color=GREY, linestyle="--", linewidth=1)
        _class_axis(ax, [f"{i + 1}  {arm}" if i < rungs else arm for i, arm in enumerate(arms)])
        ax.set_xlabel(measure, fontsize=TINY)
        ax.tick_params(axis="x", labelsize=TINY)
    return fig


def ladder_samples(
    images: np.ndarray, arms: Sequence[str], class_names: Sequence[str], scale: float | None = None
) -> Figure:
    """A row for each arm with its generated cell of each class, (arms, classes, S, S, 3) uint8."""
    rows = list(zip(arms, images, strict=True))
    return _rows(rows, heads=class_names, scale=scale)


def memory_curve(
    held: pd.DataFrame | pd.Series,
    limit_mb: float | None = None,
    label: str = "images held (MiB)",
) -> Figure:
    """Memory in MiB against the images read so far (its index).

    Each column of a table is a line of its own; `limit_mb` draws the memory that was allowed, and
    `label` says whose memory it is.
    """
    table = held.to_frame(held.name or "held") if isinstance(held, pd.Series) else held
    fig, ax = _axes(WIDTH, 2.8)
    for name, colour in zip(table.columns, _colours(table.shape[1]), strict=True):
        ax.plot(table.index, table[name], color=colour, label=str(name), linewidth=1.6)
    if limit_mb is not None:
        ax.axhline(limit_mb, color=GREY, linestyle="--", linewidth=1, label="allowed")
    ax.set_ylim(0, None)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("images read")
    ax.set_ylabel(label)
    _legend_above(ax)
    sns.despine(ax=ax)
    return fig


def inspection(found: Inspection, dataset: Dataset) -> Figure:
    """What an inspection of a dataset found: its classes, colours, outliers and near duplicates.

    A box holds the middle half of a class and its whiskers 5 to 95 %. Up to 12 unusual images are
    shown, the worst by each measure first, and up to 6 pairs that show the same; whom to credit
    for them stands below.
    """
    odd, alike = worst(found.outliers, 12), found.duplicates.head(6)
    names = [_literal(name) for name in found.counts.index]
    sheets = []
    if len(odd):
        lines = [
            (_file(row.path), _literal(kind), row.reason.partition(", ")[0])
            for row, kind in zip(odd.itertuples(), odd["class"], strict=True)
        ]
        title = f"Unusual images ({len(odd)} of {len(found.outliers):,}; deviations in brackets)"
        sheets.append((title, odd["index"], lines, 1))
    if len(alike):
        both = alike[["index", "other_index"]].to_numpy().ravel()
        lines = []
        for row in alike.to_dict("records"):
            for path, kind, side, words in (
                (row["path"], row["class"], row["side"], f"likeness {row['likeness']:.3f}"),
                (row["other"], row["other_class"], row["other_side"], row["turn"]),
            ):
                lines.append((_file(path), _literal(f"{kind}, {side}".rstrip(", ")), words))
        title = f"Images that show the same ({len(alike)} of {len(found.duplicates):,} pairs)"
        sheets.append((title, both, lines, 2))
    heights = [1.2 + 0.27 * max(len(names), 3), 3.0]
    heights += [_sheet_height(len(lines)) for _, _, lines, _ in sheets]
    credit = wrap(_literal(found.credit), 130)
    heights.append(0.1 + _LINE * len(credit))
    fig = _new(WIDTH, sum(heights), layout="constrained")
    above, middle, *below, foot = fig.subfigures(len(heights), 1, height_ratios=heights)
    verdict = "fit for training" if found.fit else "not fit for training"
    above.suptitle(
        f"{_literal(found.name)}: {len(found.statistics):,} images, {verdict}", fontsize=10
    )
    _inspected_classes(above, found, names)
    _inspected_colours(middle, found)
    for part, (title, places, lines, together), height in zip(
        below, sheets, heights[2:-1], strict=True
    ):
        _captioned(part, height, title, pictures(dataset, places, 160), lines, together)
    foot.text(0.01, 1, "\n".join(credit), fontsize=TINY, color=GREY, va="top")
    return fig


def _inspected_classes(part: SubFigure, found: Inspection, names: Sequence[str]) -> None:
    """Counts by side, and how bright and how colourful each class is."""
    counted, bright, coloured = part.subplots(1, 3, sharey=True, width_ratios=(1.25, 1, 1))
    sides = [side for side in found.counts if side != "images"] or ["images"]
    start = np.zeros(len(names))
    for side, colour in zip(sides, _colours(len(sides)), strict=True):
        images = found.counts[side].to_numpy(float)
        counted.barh(range(len(names)), images, left=start, height=0.72, color=colour, label=side)
        start += images
    counted.set_xlim(0, start.max() * 1.05)
    counted.xaxis.set_major_locator(MaxNLocator(3))
    counted.xaxis.set_major_formatter("{x:,.0f}")
    counted.set_xlabel("images")
    if len(sides) > 1:
        _legend_above(counted, columns=3)
    for ax, measure in ((bright, "brightness"), (coloured, "colour")):
        groups = found.statistics.groupby("class", sort=False)[measure]
        values = {name: rows.to_numpy() for name, rows in groups}
        ax.boxplot(
            [values.get(name, []) for name in found.counts.index],
            positions=range(len(names)),
            orientation="horizontal",
            whis=(5, 95),
            sym="",
            widths=0.6,
            patch_artist=True,
            boxprops={"facecolor": "#d5e3ee", "edgecolor": BLUE},
            medianprops={"color": INK},
            whiskerprops={"color": BLUE},
            capprops={"color": BLUE},
        )
        ax.set_xlabel(f"{measure} ({MEASURES[measure].unit})")
    for ax in (counted, bright, coloured):
        _class_axis(ax, names)


def _inspected_colours(part: SubFigure, found: Inspection) -> None:
    """Every image by background, and by brightness and sharpness; what is unusual stands out."""
    background, sharp = part.subplots(1, 2)
    # a blank image has no sharpness, for which a logarithmic axis has no place
    statistics = found.statistics.assign(sharpness=found.statistics["sharpness"].clip(lower=0.1))
    by_background = found.outliers["measure"] == "background"
    for ax, x, y, odd in (
        (background, "background_a", "background_b", found.outliers[by_background]),
        (sharp, "brightness", "sharpness", found.outliers[~by_background]),
    ):
        usual, marked = statistics.drop(index=odd["index"]), statistics.loc[odd["index"]]
        usual = usual.sample(min(len(usual), 20_000), random_state=0)  # more would hide each other
        style = {"linestyle": "", "rasterized": True}
        ax.plot(
            usual[x], usual[y], "o", color=BLUE, markersize=2, alpha=0.25, **style, label="usual"
        )
        ax.plot(
            marked[x],
            marked[y],
            "^",
            color=ORANGE,
            markersize=4,
            alpha=0.8,
            **style,
            label=f"unusual ({len(marked):,})",
        )
        _legend_above(ax)
        ax.get_legend().legend_handles[0].set_alpha(1)
        sns.despine(ax=ax)
    background.set_xlabel("background a* (green to red)")
    background.set_ylabel("background b* (blue to yellow)")
    sharp.set_xlabel(f"brightness ({MEASURES['brightness'].unit})")
    sharp.set_ylabel("sharpness (grey levels²)")
    sharp.set_yscale("log")


def fidelity(found: Fidelity) -> Figure:
    """How true generated images are to real ones: what `cellaug.evaluation.evaluate` found.

    Dots with lines are generated images with 95 % intervals, triangles the same between two halves
    of the real images. A short bar is the least that the scorecard asks for, a grey band what it
    allows. Below: how near the closest training images are, the power spectrum against that of real
    images, and the closest pairs.
    """
    groups = found.classes or {"all images": found.overall}
    heights = [1.35 + 0.27 * max(len(groups), 2), 3.0]
    shown = 0 if found.pairs is None else len(found.pairs)
    if shown:
        heights.append(_sheet_height(2 * shown))
    said = dict.fromkeys(part["credit"] for part in found.sets.values() if part)
    said = [
        "Lines are 95 % intervals; real halves are one half of the real images against the other.",
        *(text for text in said if text),
    ]
    said = [line for text in said for line in wrap(_literal(text), 130)]
    heights.append(0.1 + _LINE * len(said))
    fig = _new(WIDTH, sum(heights), layout="constrained")
    above, middle, *below, foot = fig.subfigures(len(heights), 1, height_ratios=heights)
    rows = {name: row for name, row in found.scorecard.items() if row and row["met"] is not None}
    missed = [ROWS[name] for name, row in rows.items() if not row["met"]]
    real, made = found.sets["real"], found.sets["generated"]
    above.suptitle(
        f"{_literal(made['name'])}: {made['images']:,} generated images against {real['images']:,} "
        f"real ones of {_literal(real['name'])}\n{len(rows) - len(missed)} of {len(rows)} targets "
        f"met{', missed: ' if missed else ''}{', '.join(missed)}",
        fontsize=9,
    )
    _fidelity_classes(above, groups)
    near, spectrum = middle.subfigures(1, 2, width_ratios=(1.75, 1))
    _fidelity_nearness(near, found)
    _fidelity_spectrum(spectrum, found)
    if shown:
        lines = []
        for pair in found.memorisation["closest"]:
            space = "features" if pair["space"] == "features" else "grey levels"
            lines.append((_literal(pair["class"] or "generated"), f"by {space}", ""))
            words = f"{pair['relative']:.2f} of the mean"
            lines.append((_literal(pair["training_class"] or "training"), "training image", words))
        _captioned(
            below[0],
            heights[2],
            "Closest pairs: a generated image and the training image nearest to it",
            found.pairs.reshape(-1, *found.pairs.shape[2:]),
            lines,
            2,
        )
    foot.text(0.01, 1, "\n".join(said), fontsize=TINY, color=GREY, va="top")
    return fig


def _fidelity_classes(part: SubFigure, groups: Mapping[str, Mapping]) -> None:
    """A row for each class, a panel for each measure."""
    names = [_literal(name) for name in groups]
    rows = np.arange(len(names))
    axes = part.subplots(1, 5, sharey=True)

    def values(measure: str, key: str) -> np.ndarray:
        found = [group[measure] and group[measure][key] for group in groups.values()]
        return np.array([np.nan if value is None else value for value in found], float)

    def marks(
        ax: Axes, measure: str, keys: Sequence[str], look: Sequence, shift: float = 0
    ) -> None:
        value, low, high = (values(measure, key) for key in keys)
        colour, shape, label = look
        ax.hlines(rows + shift, low, high, color=colour, linewidth=1.4)
        ax.plot(value, rows + shift, shape, color=colour, markersize=4, label=label)

    made, own = (BLUE, "o", "generated"), (ORANGE, "^", "real halves")
    shares = ("precision", "recall", "coverage", "agreement")
    for ax, measure in zip((*axes[:3], axes[4]), shares, strict=True):
        marks(ax, measure, ("real", "real_low", "real_high"), own, 0.18)
        marks(ax, measure, ("value", "low", "high"), made, -0.18)
        least = TARGETS.get(f"{measure}_ratio", (None,))[0]
        if least:
            wanted = least * values(measure, "real")
            ax.plot(wanted, rows, "|", color=INK, markersize=9, label="least wanted")
        ax.set_xlim(-0.04, 1.04)
        ax.set_xticks([0, 0.5, 1], ["0", "½", "1"])
        ax.set_xlabel("class\nagreement" if measure == "agreement" else measure)
    for measure, look, shift in (
        ("diversity_features", (PALETTE[2], "D", "diversity in features"), -0.18),
        ("diversity_pixels", (PALETTE[4], "s", "in grey levels"), 0.18),
    ):
        marks(axes[3], measure, ("ratio", "ratio_low", "ratio_high"), look, shift)
    axes[3].axvspan(*TARGETS["diversity_pixels_ratio"], color="#e4e4e4", zorder=0)
    axes[3].set_xlim(0, max(1.3, axes[3].get_xlim()[1]))
    axes[3].set_xlabel("diversity\nover real")
    for ax in axes:
        _class_axis(ax, names)
    entries = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    part.legend(entries.values(), entries.keys(), loc="outside lower right", ncols=5)


def _fidelity_nearness(part: SubFigure, found: Fidelity) -> None:
    """How near the nearest training image is, of generated and of held-out real images."""
    axes = part.subplots(1, 2, sharey=True)
    for ax, (space, words) in zip(
        axes, (("features", "in features"), ("pixels", "in grey levels")), strict=True
    ):
        ax.set_xlabel(
            f"nearest training image over\nmean of {NEIGHBOURS} nearest, {words}", fontsize=SMALL
        )
        if space not in found.nearness:
            reason = "\n".join(wrap(f"not measured: {found.reasons['memorisation']}", 24))
            ax.text(0.5, 0.5, reason, ha="center", va="center", transform=ax.transAxes)
            ax.set_axis_off()
            continue
        bins = np.linspace(0, 1, 41)
        for values, colour, label in zip(
            found.nearness[space], (BLUE, ORANGE), ("generated", "held-out real"), strict=True
        ):
            weights = np.full(len(values), 100 / len(values))
            style = {"histtype": "step", "linewidth": 1.6, "color": colour, "label": label}
            style["linestyle"] = "-" if colour == BLUE else "--"
            ax.hist(values, bins, weights=weights, **style)
        threshold = found.memorisation[space]["threshold"]
        ax.axvline(threshold, color=GREY, linewidth=1, linestyle=":", label="copies below")
        ax.set_xlim(0, 1)
        sns.despine(ax=ax)
    axes[0].set_ylabel("images (%)")
    if found.nearness:
        part.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)


def _fidelity_spectrum(part: SubFigure, found: Fidelity) -> None:
    """Power of generated over that of real images, by frequency; a grid shows as dots."""
    ax = part.subplots()
    # from −¼ to ¾ cycles per pixel, so that no frequency of a grid lies at the edge
    size = len(found.spectra[0])
    real, made = (np.roll(power + 0.25, size // 4, (0, 1)) for power in found.spectra)
    ends = np.array([0, size]) / size - (size // 4 + 0.5) / size
    shown = ax.imshow(
        np.log10(made / real),
        cmap="PuOr",
        vmin=-1,
        vmax=1,
        extent=(*ends, *ends),
        origin="lower",
        interpolation="nearest",
    )
    ax.set_xticks([0, 0.25, 0.5], ["0", "¼", "½"])
    ax.set_yticks([0, 0.25, 0.5], ["0", "¼", "½"])
    ax.grid(False)
    ax.set_xlabel("cycles per pixel")
    bar = part.colorbar(shown, ax=ax, ticks=[-1, 0, 1], shrink=0.8)
    bar.ax.set_yticklabels(["0.1", "1", "10"])
    bar.set_label("power over real", fontsize=SMALL)
    words = [f"period {period} px: {row['ratio']:.2f}" for period, row in found.grid.items()]
    ax.set_title("grid texture over real\n" + ("\n".join(words) or "not measured"), fontsize=SMALL)


# --- what they share ---------------------------------------------------------------------------


def _new(width: float, height: float, **options) -> Figure:
    """A figure that pyplot has already let go of, yet knows how to draw in a notebook."""
    fig = plt.figure(figsize=(width, height), **options)
    plt.close(fig)
    return fig


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    fig = _new(width, height, layout="constrained")
    return fig, fig.add_subplot()


def _chart(rows: int, panels: int = 1, row: float = 0.27) -> tuple[Figure, Axes | np.ndarray]:
    """A chart of horizontal rows, one per class, tall enough for their names."""
    fig = _new(WIDTH, 0.9 + row * max(rows, 2), layout="constrained")
    return fig, fig.subplots(1, panels, sharey=True)


def _class_axis(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    sns.despine(ax=ax, left=True)


def _legend_above(ax: Axes, columns: int = 5) -> None:
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=min(len(labels), columns),
        borderaxespad=0.2,
        handlelength=1.6,
    )


def _colours(count: int) -> list[tuple[float, float, float]]:
    return [PALETTE[i % len(PALETTE)] for i in range(count)]


def _shapes(table: pd.DataFrame) -> list[str]:
    """A marker for each column, so that colour is not all that tells them apart."""
    return ["oDs^vP"[i % 6] for i in range(table.shape[1])]


def _percent(value: float) -> str:
    return "<1" if value < 0.5 else f"{value:.0f}"


def _text_width(text: str, size: float) -> float:
    """Width of a line of text in inches."""
    if not text.strip():
        return 0.0
    return TextPath((0, 0), text, size=size, prop=FontProperties()).get_extents().x1 / 72


def _sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """A blank page whose coordinates are inches from its top left corner.

    One axes for all images: a few hundred axes of their own would take many seconds to draw.
    """
    margin = 0.03
    fig = _new(width + 2 * margin, height + 2 * margin)
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set_autoscale_on(False)
    ax.set_xlim(-margin, width + margin)
    ax.set_ylim(height + margin, -margin)
    ax.set_axis_off()
    return fig, ax


def _place(ax: Axes, image: np.ndarray, x: float, y: float, side: float) -> None:
    height = side * image.shape[0] / image.shape[1]
    ax.imshow(image, extent=(x, x + side, y + height, y), aspect="auto")


def _write(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    width: float | None = None,
    size: float = SMALL,
    **style,
) -> None:
    """Write a line of text, smaller where it would be wider than `width` inches."""
    if width is not None:
        size = min(size, size * width / max(_text_width(text, size), 1e-9))
    ax.text(x, y, text, fontsize=size, **style)


_LINE = 0.13
"""Height of a line of a caption in inches."""


def _sheet_height(count: int) -> float:
    """Height in inches of captioned images, six in a row."""
    return 0.35 + -(-count // 6) * (WIDTH / 6 + 3 * _LINE)


def _captioned(
    part: SubFigure,
    height: float,
    title: str,
    images: np.ndarray,
    captions: Sequence[Sequence[str]],
    together: int,
) -> None:
    """Images six in a row, `together` of them in a group, with lines of text under each."""
    ax = part.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, WIDTH)
    ax.set_ylim(height, 0)
    ax.set_axis_off()
    _write(ax, 0.05, 0.1, title, size=9, va="top")
    between = 3 * GAP
    side = WIDTH / 6 - between
    for k, (image, lines) in enumerate(zip(images, captions, strict=True)):
        x = (k % 6) * WIDTH / 6 + between / 2
        x += (between - GAP) / 2 * (1 if k % together < together - 1 else -1) * (together > 1)
        y = 0.35 + (k // 6) * (WIDTH / 6 + 3 * _LINE)
        _place(ax, image, x, y, side)
        for i, line in enumerate(lines):
            style = {"size": TINY, "color": GREY if i else INK, "va": "top", "ha": "center"}
            width = side if together > 1 else WIDTH / 6 - GAP
            _write(ax, x + side / 2, y + side + 0.03 + i * _LINE, line, width=width, **style)


def _file(path: str) -> str:
    return _literal(path.rpartition("/")[2])


def _literal(text: str) -> str:
    """Text that is no formula, whatever a file or class is called."""
    return text.replace("$", r"\$")


def _rows(
    rows: Sequence[tuple[str, np.ndarray]],
    heads: Sequence[str] | None = None,
    captions: Mapping[str, Sequence[str]] | None = None,
    scale: float | None = None,
) -> Figure:
    """Labelled rows of images; `heads` over the columns, `captions[label]` under a row's images."""
    captions = captions or {}
    rows = [(label, check_images(images, label or "images")) for label, images in rows]
    columns = max((len(images) for _, images in rows), default=0)
    if not columns:
        raise ValueError("there is no image to show")
    left = max(_text_width(label, SMALL) for label, _ in rows)
    left += 0.1 if left else 0
    if scale is None:
        widest = (WIDTH - left + GAP) / columns - GAP
        scale = float(np.clip(min(widest, TALLEST / len(rows) - GAP), 0.5, 1.2))
    heads = [wrap(text, 12, break_long_words=False) for text in heads or ()]
    head = 0.07 + _LINE * max(map(len, heads)) if heads else 0.0
    foot = [0.19 if label in captions else 0.0 for label, _ in rows]
    fig, ax = _sheet(
        left + columns * (scale + GAP) - GAP, head + len(rows) * (scale + GAP) - GAP + sum(foot)
    )
    for k, lines in enumerate(heads):
        x = left + k * (scale + GAP) + scale / 2
        for i, line in enumerate(reversed(lines)):
            style = {"color": GREY, "va": "bottom", "ha": "center"}
            _write(ax, x, head - 0.05 - i * _LINE, line, width=scale, **style)
    y = head
    for (label, images), below in zip(rows, foot, strict=True):
        _write(ax, left - 0.1, y + scale / 2, label, va="center", ha="right")
        for k, image in enumerate(images):
            x = left + k * (scale + GAP)
            _place(ax, image, x, y, scale)
            if label in captions:
                _write(
                    ax,
                    x + scale / 2,
                    y + scale + 0.03,
                    captions[label][k],
                    size=TINY,
                    color=GREY,
                    va="top",
                    ha="center",
                )
        y += scale + GAP + below
    return fig
